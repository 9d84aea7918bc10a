"""SequentialRules forgets: against double loops over the retained sequences, and against what it cannot know."""

import random
import re

import numpy as np
import pytest
import scipy.sparse as sp

from recbole_llmd.data.sequences import TrainingSequences
from recbole_llmd.data.transitions import Samples
from recbole_llmd.distill.evidence import USUAL, Evidence, PooledEvidence, fit_weights
from recbole_llmd.errors import DataError, ModelError, RequestError, SettingsError
from recbole_llmd.unlearning.request import Request
from recbole_llmd.unlearning.sequential_unlearner import SequentialUnlearner
from tests.helpers.sequence_cases import (
    HELD_OUT,
    oracle,
    popularity_of,
    samples_of,
    settings_of,
    train,
    write_dataset,
)

WINDOW = 4
WORDS = ("comet", "orbit", "garlic", "butter", "clue", "shadow")


class Case:
    """A trained model, its engine, and the sequences of internal ids that it is to rest on."""

    def __init__(self, build, folder, lists, texts=True, linear=True, window=WINDOW, **engine):
        items = dict.fromkeys(item for sequence in lists.values() for item in sequence)
        titles = {item: f"{WORDS[n % 6]} {WORDS[n * n % 5]} {item}" for n, item in enumerate(items)} if texts else None
        write_dataset(folder, lists, titles)
        self.settings = settings_of(folder, window, rules_text=texts, rules_linear=linear)
        self.loaders, self.model = train(build, self.settings)
        self.dataset, self.window, self.linear = self.loaders[0].dataset, window, linear
        self.engine = SequentialUnlearner(self.model, self.dataset, **engine)
        self.n_items = self.model.n_items
        everything = {self.user(u): [self.item(i) for i in sequence] for u, sequence in lists.items()}
        self.lists = {user: sequence[:-HELD_OUT] for user, sequence in everything.items()}
        self.drawn = self.model.validation.users.tolist()
        self.targets = {user: sequence[-HELD_OUT] for user, sequence in everything.items()}

    def user(self, token):
        return self.dataset.token2id("user_id", token)

    def item(self, token):
        return self.dataset.token2id("item_id", token)

    def forget(self, pairs):
        receipt = self.engine.forget([u for u, _ in pairs], [i for _, i in pairs], ids="internal")
        for user in {user for user, _ in pairs}:
            self.lists[user] = [item for item in self.lists[user] if (user, item) not in pairs]
        return receipt

    def forget_users(self, users):
        receipt = self.engine.forget_users(users, ids="internal")
        for user in users:
            self.lists[user] = []
        return receipt

    def check(self):
        """What the model holds is what double loops count on the retained lists, and what our own counting gives."""
        evidence, n = self.model.evidence, self.n_items
        following, matrix, rest = oracle(self.lists, n, self.window, evidence.weights, self.model.texts, self.linear)
        np.testing.assert_allclose(evidence.next.toarray(), following, rtol=1e-6, atol=0)
        assert evidence.next.nnz == (following != 0).sum()
        got = evidence.matrix.toarray() if sp.issparse(evidence.matrix) else evidence.matrix
        np.testing.assert_allclose(got, matrix, rtol=1e-5, atol=1e-7)
        np.testing.assert_allclose(evidence.rest.numpy(), rest, rtol=1e-6)
        assert self.model.popularity.tolist() == popularity_of(self.lists, n).tolist()
        with_nobody = [item for item in range(1, n) if not any(item in items for items in self.lists.values())]
        if self.model.texts is None or not self.linear:
            assert not got[with_nobody].any() and not got[:, with_nobody].any()
        assert not evidence.next[with_nobody].nnz and not evidence.next[:, with_nobody].nnz
        again = self.counted_anew()
        assert (again.next != evidence.next).nnz == 0 and np.array_equal(again.rest, evidence.rest)
        if not self.linear:
            assert (again.matrix != evidence.matrix).nnz == 0
        return with_nobody

    def retained(self):
        """The samples of the retained lists."""
        return samples_of(
            [(user, items[:k], items[k]) for user, items in sorted(self.lists.items()) for k in range(1, len(items))],
            self.window,
        )

    def evidence(self):
        return Evidence.of(self.retained(), popularity_of(self.lists, self.n_items), self.model.texts, self.linear)

    def counted_anew(self):
        return PooledEvidence(self.evidence(), self.model.evidence.weights)

    def validation(self):
        """The validation samples of users of whom something is left, in the order of the draw."""
        left = [(user, self.lists[user], self.targets[user]) for user in self.drawn if self.lists[user]]
        return samples_of(left, self.window)

    def fitted_anew(self):
        return fit_weights(self.evidence(), self.validation())


def random_lists(seed, users=10, items=14, longest=11):
    draw = random.Random(seed)
    return {
        f"u{user}": [f"i{draw.randint(1, items)}" for _ in range(draw.randint(4, longest))] for user in range(users)
    }


def numbers(weights):
    return [*weights.kinds, weights.floor, weights.sharpness]


@pytest.mark.parametrize("linear", [True, False])
@pytest.mark.parametrize("texts", [True, False])
def test_random_requests_leave_what_loops_over_the_retained_lists_count(build, workdir, texts, linear):
    draw = random.Random(7)
    case = Case(build, workdir, random_lists(3), texts, linear, refit_weights=False)
    case.check()
    before, emptied = case.model.evidence.weights, set()
    while any(case.lists.values()):
        pairs = sorted({(user, item) for user, items in case.lists.items() for item in items})
        if draw.random() < 0.25:
            user = draw.choice(pairs)[0]
            receipt, expected = case.forget_users([user]), [pair for pair in pairs if pair[0] == user]
        else:
            expected = draw.sample(pairs, min(len(pairs), draw.randint(1, 5)))
            receipt = case.forget(expected)
        assert (receipt.interactions, receipt.users) == (len(expected), len({user for user, _ in expected}))
        emptied.update(case.check())
    assert emptied == set(range(1, case.n_items)) and case.model.evidence.weights == before
    assert case.engine.X.nnz == 0 and not len(case.engine.sequences.items)


def test_a_sequence_closes_up_over_the_cut_of_the_window(build, workdir):
    lists = {"u1": [*"abcdefgh", "x", "y"], "u2": [*"hgfe", "x", "y"], "u3": [*"abab", "x", "y"]}
    case = Case(build, workdir, lists, texts=False, linear=False, refit_weights=False)
    a, e, f = (case.item(token) for token in "aef")
    assert case.model.evidence.next[a, f] == 0  # five apart, and histories have four
    case.forget([(case.user("u1"), e)])
    assert case.model.evidence.next[a, f] > 0
    case.check()


def test_all_occurrences_of_an_item_go(build, workdir):
    lists = {"u1": [*"abcabca", "x", "y"], "u2": [*"cba", "x", "y"]}
    case = Case(build, workdir, lists, refit_weights=False)
    receipt = case.forget([(case.user("u1"), case.item("a"))])
    assert receipt.interactions == 1 and case.lists[case.user("u1")] == [case.item(token) for token in "bcbc"]
    case.check()


def test_a_sequence_of_one_item_counts_nothing_and_can_still_be_forgotten(build, workdir):
    lists = {"u1": [*"ab", "x", "y"], "u2": [*"cba", "x", "y"]}
    case = Case(build, workdir, lists)
    u1, a, b = case.user("u1"), case.item("a"), case.item("b")
    case.forget([(u1, b)])
    assert case.model.popularity[a] == 1  # of u2
    case.check()
    case.forget([(u1, a)])
    case.check()
    assert u1 not in case.model.validation.users


@pytest.mark.parametrize("linear", [True, False])
def test_who_leaves_whole_leaves_the_weights_too(build, workdir, linear):
    case = Case(build, workdir, random_lists(5, users=25), linear=linear)
    before = case.model.evidence.weights
    np.testing.assert_allclose(numbers(before), numbers(case.fitted_anew()), rtol=1e-4)
    receipt = case.forget_users([case.user("u4"), case.user("u11")])
    assert "weights fitted again on 23 validation samples" in receipt.method and not receipt.notes
    np.testing.assert_allclose(numbers(case.model.evidence.weights), numbers(case.fitted_anew()), rtol=1e-4)
    assert np.abs(np.subtract(numbers(before), numbers(case.fitted_anew()))).max() > 1e-2
    assert not {case.user("u4"), case.user("u11")} & set(case.model.validation.users)
    case.check()


def test_single_interactions_leave_the_weights_unless_asked(build, workdir):
    case = Case(build, workdir, random_lists(5, users=25))
    before, user = case.model.evidence.weights, case.user("u2")
    receipt = case.forget([(user, case.lists[user][1])])
    assert case.model.evidence.weights == before and "stay as they were" in receipt.notes[0]
    held = case.model.validation
    row = held.users.tolist().index(user)
    assert held.items[row, : held.lengths[row]].tolist() == case.lists[user][-WINDOW:]
    case.engine.refit()
    np.testing.assert_allclose(numbers(case.model.evidence.weights), numbers(case.fitted_anew()), rtol=1e-4)
    assert case.model.evidence.weights != before

    other = Case(build, workdir, random_lists(5, users=25), refit_weights=True)
    receipt = other.forget([(user, item) for item in [other.lists[user][1]]])
    assert "weights fitted again on 25" in receipt.method
    np.testing.assert_allclose(numbers(other.model.evidence.weights), numbers(case.model.evidence.weights), rtol=1e-4)


def test_emptied_by_pairs_is_to_leave_whole(build, workdir):
    case, other = (Case(build, workdir, random_lists(5, users=12)) for _ in range(2))
    user = case.user("u3")
    case.forget_users([user])
    receipt = other.forget([(user, item) for item in set(other.lists[user])])
    assert "weights fitted again" in receipt.method and case.engine.fingerprint() == other.engine.fingerprint()


@pytest.mark.parametrize("linear", [True, False])
def test_nothing_tells_what_a_user_who_left_had(build, workdir, linear):
    """Two models whose data differ in one user alone are the same once the user has left."""
    lists, engines = random_lists(8, users=12), []
    for number, theirs in enumerate((["i1", "i2", "i3", "i4"], ["i5", "i5", "i9", "i2", "i7", "i8"])):
        case = Case(build, workdir / str(number), {**lists, "leaver": theirs}, linear=linear)
        engines.append(case.engine)
    hashes = {engine.fingerprint() for engine in engines}
    assert len(hashes) == 2
    receipts = [engine.forget_users("leaver") for engine in engines]
    assert hashes == {receipt.hash_before for receipt in receipts}
    assert receipts[0].hash_after == receipts[1].hash_after == engines[0].fingerprint()


@pytest.mark.parametrize("linear", [True, False])
def test_nothing_tells_which_item_was_taken_out(build, workdir, linear):
    lists, hashes = random_lists(8, users=12), set()
    for item in ("i1", "i9"):
        folder = workdir / item
        case = Case(
            build, folder, {**lists, "u": ["i2", "i3", item, "i4", "i5", "i6"]}, linear=linear, refit_weights=True
        )
        hashes.add(case.engine.forget("u", item).hash_after)
    assert len(hashes) == 1


def test_the_order_of_requests_does_not_matter(build, workdir):
    one, other = (Case(build, workdir, random_lists(9)) for _ in range(2))
    one.forget_users([2]), one.forget([(3, one.lists[3][0])]), one.forget_users([5])
    other.forget([(3, other.lists[3][0])]), other.forget_users([2, 5])
    assert one.engine.fingerprint() == other.engine.fingerprint()


def test_refit_of_an_untouched_model_is_that_model(build, workdir):
    receipt = Case(build, workdir, random_lists(2)).engine.refit()
    assert (receipt.request, receipt.interactions) == ("refit", 0) and receipt.hash_before == receipt.hash_after


def test_a_user_with_nothing_but_a_validation_sample_can_leave(build, workdir):
    lists = {**random_lists(4), "late": ["i1", "i2", "i3", "i4"], "later": random_lists(5)["u0"]}
    write_dataset(workdir, lists, starts={"late": 100, "later": 200})
    split = {"split": {"RS": [0.8, 0.1, 0.1]}, "order": "TO", "mode": "full", "group_by": None}
    (train_data, *_), model = train(build, settings_of(workdir, rules_text=False, eval_args=split))
    engine, late = SequentialUnlearner(model, train_data.dataset), train_data.dataset.token2id("user_id", "late")
    assert not len(engine.sequences.of_user(late)) and late in model.validation.users
    receipt = engine.forget_users("late")
    assert (receipt.users, receipt.interactions) == (1, 0) and "weights fitted again" in receipt.method
    assert late not in model.validation.users and receipt.hash_before != receipt.hash_after
    for users in ("late", "later"):  # one has left, of the other there is only test data
        with pytest.raises(RequestError, match=f"user '{users}': there is no interaction to forget"):
            engine.forget_users(users)


def test_without_validation_data_the_usual_weights_stay(build, workdir):
    write_dataset(workdir, random_lists(4))
    settings = settings_of(workdir, rules_text=False)
    config, (train_data, *_), model = build(settings)
    from recbole.utils import get_trainer

    get_trainer(config["MODEL_TYPE"], config["model"])(config, model).fit(train_data, None, verbose=False, saved=False)
    engine = SequentialUnlearner(model, train_data.dataset)
    engine.forget_users("u1")
    assert model.evidence.weights == USUAL and model.validation is None


def test_everybody_may_leave(build, workdir):
    case = Case(build, workdir, random_lists(4), texts=False)
    receipt = case.forget_users(sorted(case.lists))
    assert "on 0 validation samples" in receipt.method and case.model.evidence.weights == USUAL
    assert not case.model.evidence.matrix.any() and not case.model.popularity.any()


def test_the_receipt(build, workdir):
    from recbole_llmd.unlearning.digests import digest_of_request

    case = Case(build, workdir, random_lists(4), keep_pairs=True, salt="salt")
    item = case.engine.item_ids.token(case.lists[2][0])
    receipt = case.engine.forget(case.engine.user_ids.token(2), item)
    assert receipt.digest == digest_of_request("salt", [case.engine.user_ids.token(2)], [item])
    assert (receipt.model, receipt.mode, receipt.salt) == ("SequentialRules", "counts", None)
    assert (receipt.pairs.users, receipt.pairs.items) == ([2], [case.lists[2][0]])
    assert receipt.hash_after == case.engine.fingerprint() != receipt.hash_before
    nothing = case.engine.forget([], [])
    assert nothing.method == "nothing to correct" and nothing.hash_after == receipt.hash_after


def test_refusals_change_nothing(build, workdir):
    case = Case(build, workdir, random_lists(4))
    engine, before = case.engine, case.engine.fingerprint()
    missing = next(item for item in range(1, case.n_items) if item not in case.lists[1])
    for call, message in (
        (lambda: engine.forget_users("nobody"), "user = 'nobody': the model does not know it"),
        (lambda: engine.forget("u1", "nothing"), "item = 'nothing'"),
        (lambda: engine.forget(1, missing, ids="internal"), "1 of 1 pairs to forget are not in X"),
        (lambda: engine.forget(1, 2), "a number alone does not say"),
        (lambda: engine.forget_users("u1", strict=1), "strict = 1"),
        (lambda: engine.forget(["u1", "u2"], ["i1"]), "2 users and 1 items"),
        (lambda: engine.apply(Request("learn", [1], [missing])), "SequentialRules forgets only"),
        (lambda: engine.apply(Request("forget", [case.n_items + 99], [1])), "the model does not know it"),
    ):
        with pytest.raises(RequestError, match=re.escape(message)):
            call()
    assert engine.fingerprint() == before
    skipped = engine.forget([1, 1], [missing, case.lists[1][0]], ids="internal", strict=False)
    assert (skipped.skipped, skipped.interactions) == (1, 1)


def test_wrong_engines_are_refused(build, workdir):
    case = Case(build, workdir, random_lists(4))
    for settings, message in (
        ({"refit_weights": 1}, "refit_weights = 1: expected True, False or None"),
        ({"hashes": None}, "hashes = None"),
        ({"salt": 3}, "salt = 3"),
    ):
        with pytest.raises(SettingsError, match=message):
            SequentialUnlearner(case.model, case.dataset, **settings)
    _, loaders, untrained = build(case.settings)
    with pytest.raises(ModelError, match="after its training"):
        SequentialUnlearner(untrained, loaders[0].dataset)
    write_dataset(workdir / "more", {**random_lists(4), "newcomer": ["i1", "i2", "i3", "i4"]})
    _, loaders, _ = build({**case.settings, "data_path": str(workdir / "more"), "rules_text": False})
    with pytest.raises(DataError, match="the dataset has 11 users and the model 10"):
        SequentialUnlearner(case.model, loaders[0].dataset)
    case.model.sequences = None
    with pytest.raises(ModelError, match="not the beginnings of one sequence a user"):
        SequentialUnlearner(case.model, case.dataset)


def test_a_request_that_fails_leaves_the_model_as_it_was(build, workdir, monkeypatch):
    case = Case(build, workdir, random_lists(4))
    before, held = case.engine.fingerprint(), case.model.evidence
    with monkeypatch.context() as patch:
        patch.setattr("recbole_llmd.unlearning.sequential_unlearner.fit_weights", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            case.engine.forget_users("u1")
    assert case.engine.fingerprint() == before and case.model.evidence is held
    case.forget_users([case.user("u1")])
    case.check()


def test_a_model_that_was_loaded_anew_is_counted_anew(build, workdir):
    case, other = (Case(build, workdir, random_lists(4)) for _ in range(2))
    stored = {name: getattr(other.model, name) for name in other.model.other_parameter_name}
    case.forget_users([1])
    case.model.load_other_parameter(stored)
    case.engine.forget_users(2, ids="internal"), other.engine.forget_users(2, ids="internal")
    assert case.engine.fingerprint() == other.engine.fingerprint()


def test_training_sequences_are_those_of_the_lists(build, workdir):
    case = Case(build, workdir, random_lists(6, longest=12), texts=False)
    assert {user: case.engine.sequences.of_user(user).tolist() for user in case.lists} == {
        user: items if len(items) > 1 else [] for user, items in case.lists.items()
    }
    assert isinstance(case.engine.sequences, TrainingSequences) and isinstance(case.model.validation, Samples)
