"""Requests: what they check, the change they make, and the engine's one path for them."""

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given
from hypothesis import strategies as st

from recbole_llmd.errors import RequestError
from recbole_llmd.unlearning import Request, Unlearner
from tests.helpers.mapping_cases import change_between, interactions, quick
from tests.helpers.mapping_models import dense


@given(st.integers(0, 10**6), st.sampled_from(["forget", "learn"]))
@quick
def test_the_change_of_a_request_is_the_difference_that_it_makes(seed, kind):
    X = sp.csr_matrix(interactions(seed, highest=3).astype(np.float32))
    rng = np.random.default_rng(seed)
    cells = rng.integers(1, X.shape, (30, 2))
    values = 1 + cells.sum(axis=1) % 3  # equal for equal pairs
    request = Request(kind, *cells.T, values=values if kind == "learn" else None).distinct()
    request = request.subset(request.applies_to(X))
    after = X.toarray()
    for n, cell in enumerate(zip(request.users, request.items, strict=True)):
        assert (after[cell] != 0) == (kind == "forget")
        after[cell] = request.values[n] if kind == "learn" else 0
    change, expected = request.change(X), change_between(X, sp.csr_matrix(after))
    assert np.array_equal(change.X.toarray(), after) and change.X.has_canonical_format and change.X.dtype == X.dtype
    assert np.array_equal(change.users, expected.users) and np.array_equal(change.items, expected.items)
    assert change.delta.shape == expected.delta.shape and (change.delta != expected.delta).nnz == 0
    users, items, values = change.pairs
    assert list(zip(users, items)) == list(zip(request.users.tolist(), request.items.tolist()))
    assert np.array_equal(values, np.abs(after - X.toarray())[users, items])


def test_a_pair_is_given_one_value():
    request = Request("learn", [2, 1, 2], [3, 3, 3], [5, 1, 5]).distinct()
    assert (request.users.tolist(), request.items.tolist(), request.values.tolist()) == ([1, 2], [3, 3], [1.0, 5.0])
    with pytest.raises(RequestError, match="values = 5 and 7 for the same pair"):
        Request("learn", [2, 1, 2], [3, 3, 3], [5, 1, 7]).distinct()


@pytest.mark.parametrize(
    "request_, message",
    [
        (lambda: Request("remove", [1], [1]), "kind = 'remove': expected one of 'forget', 'learn'"),
        (lambda: Request("forget", [1.0], [1]), "users: expected internal ids.*float64"),
        (lambda: Request("forget", [1], ["i1"]), "items: expected internal ids"),
        (lambda: Request("forget", [[1]], [[1]]), "shape"),
        (lambda: Request("forget", [1, 2], [1]), "2 users and 1 items"),
        (lambda: Request("forget", [1], [1], [1]), "forgotten whole"),
        (lambda: Request("forget", [1], [1], new_users=("u",)), "forgotten whole"),
        (lambda: Request("learn", [1], [1], [0]), "1 whole numbers above 0"),
        (lambda: Request("learn", [1], [1], [np.inf]), "1 whole numbers above 0"),
        (lambda: Request("learn", [1], [1], [2**24 + 1]), "up to 16,777,216"),
        (lambda: Request("forget", [[1], [1, 2]], [1]), "users: expected internal ids"),
        (lambda: Request("learn", [1], [1], new_users="u"), "new_users = 'u': expected a tuple"),
        (lambda: Request("learn", [1], [1], new_items=None), "new_items = None: expected a tuple"),
        (lambda: Request("learn", [1], [1], ["much"]), "1 whole numbers above 0"),
        (lambda: Request("learn", [1, 2], [1, 2], [[1], [1, 2]]), "2 whole numbers above 0"),
        (lambda: Request("learn", [1, 2], [1, 2], [[1, 2]]), "2 whole numbers above 0"),
        (lambda: Request("learn", [1, 2], [1, 2], 3.0), "2 whole numbers above 0"),
        (lambda: Request("forget", [1], [1], strict="no"), "strict = 'no': expected True or False"),
        (lambda: Request("forget", None, [1]), "users: expected internal ids"),
    ],
)
def test_what_is_no_request_is_refused(request_, message):
    with pytest.raises(RequestError, match=message):
        request_()


@pytest.mark.parametrize(
    "request_, message",
    [
        (Request("forget", [0], [1]), "user = 0: the model does not know it"),
        (Request("forget", [1], [5000]), "item = 5000: the model does not know it"),
        (Request("learn", [5000], [1], new_users=("new",)), "user = 5000"),
        (Request("learn", [1], [1], new_users=("new",)), r"new users = \('new',\): each must"),
        (Request("learn", [1], [1], new_items=("new",)), r"new items = \('new',\): each must"),
    ],
)
def test_requests_that_do_not_fit_the_model_are_refused(trained, request_, message):
    _, (train, _, _), model = trained("EASE")
    engine = Unlearner(model, train.dataset)
    before = engine.X.copy(), dense(engine.B).copy()
    with pytest.raises(RequestError, match=message):
        engine.apply(request_)
    assert (before[0] != engine.X).nnz == 0 and np.array_equal(engine.B, before[1])


def test_new_tokens_must_be_new(trained):
    _, (train, _, _), model = trained("EASE")
    engine = Unlearner(model, train.dataset)
    n = model.n_users
    for tokens, users in ((("u3",), [n]), (("a", "a"), [n, n + 1]), (("",), [n]), ((5,), [n])):
        with pytest.raises(RequestError, match="that the model does not know yet"):
            engine.apply(Request("learn", users, [1] * len(users), new_users=tokens))
    with pytest.raises(RequestError, match="that the model does not know yet"):
        engine.learn("", "i1", grow=True)


def test_a_request_does_what_the_calls_by_token_do(trained):
    _, (train, _, _), model = trained("EASE")
    by_token, by_request = (Unlearner(model, train.dataset, keep_pairs=True) for model in (model, trained("EASE")[2]))
    user, item = by_token.X.nonzero()[0][0], by_token.X.nonzero()[1][0]
    tokens = train.dataset.id2token("user_id", user), train.dataset.id2token("item_id", item)
    receipts = by_token.forget(*tokens), by_request.apply(Request("forget", [user], [item]))
    assert receipts[0].hash_after == receipts[1].hash_after != receipts[1].hash_before
    assert by_request.apply(Request("forget", [user], [item], strict=False)).skipped == 1
    n_users = model.n_users
    receipt = by_request.apply(Request("learn", [n_users, user], [item, item], [2, 1], new_users=("newcomer",)))
    assert (receipt.new_users, receipt.pairs.values, by_request.X[n_users, item]) == (1, [1.0, 2.0], 2)
    assert train.dataset.token2id("user_id", "newcomer") == n_users
