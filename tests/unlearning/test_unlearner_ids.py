"""What names users and items to the engine, and what does not."""

import numpy as np
import pandas as pd
import pytest
import torch

from recbole_llmd.errors import RequestError
from tests.helpers.engines import assert_as_it_was, engine_of, snapshot
from tests.helpers.ids import stable_id

NOT_NAMES = [  # what is neither a token nor a list of such, nor an internal id or a list of such
    b"12",
    bytearray(b"12"),
    [b"12"],
    np.array([b"12"]),
    {3, 5},
    {3: 5},
    {"u3": "u5"}.keys(),
    pd.DataFrame({"user_id": ["u3", "u5"]}),
    None,
    [None],
    3.0,
    [3.0],
    np.array([3.0]),
    torch.tensor([3.0]),
    [["u3"], ["u5"]],
    [[3], [5]],
    np.array([["u3"], ["u5"]]),
    np.array([[3, 5]]),
    torch.tensor([[3]]),
    True,
    [True],
    np.array([True]),
    iter([3]),
]


@pytest.mark.parametrize("ids", ["token", "internal"])
@pytest.mark.parametrize(
    "given", NOT_NAMES, ids=lambda given: stable_id(f"{type(given).__name__} {given}".replace("\n", ";"))
)
def test_what_names_no_users_is_refused(trained, given, ids):
    engine = engine_of(trained, "EASE")
    before = snapshot(engine)
    for ask in (
        lambda: engine.forget_users(given, ids=ids, strict=False),
        lambda: engine.forget_items(given, ids=ids, strict=False),
        lambda: engine.forget(given, given, ids=ids, strict=False),
        lambda: engine.learn(given, given, ids=ids, strict=False, grow=True),
    ):
        with pytest.raises(RequestError, match=r"(user|item)s? = .*Give|(user|item)s? = .*Leave ids"):
            ask()
    assert_as_it_was(engine, before)


@pytest.mark.parametrize("given", [3, [3, 5], np.array([3]), np.int64(3), torch.tensor([3]), pd.Series([3])])
def test_numbers_are_internal_ids_only_if_that_is_said(trained, given):
    """Token '196' and internal id 196 of ml-100k are two users: a number alone must not choose between them."""
    engine = engine_of(trained, "EASE")
    before = snapshot(engine)
    with pytest.raises(RequestError, match=r"user = 3 .*token as a string, '3', or say ids=.internal"):
        engine.forget_users(given)
    assert_as_it_was(engine, before)
    assert set(engine.forget_users(given, ids="internal").pairs.users) == set(np.ravel(given).tolist())


def test_strings_are_tokens_only(trained):
    engine = engine_of(trained, "EASE")
    for tokens in ("u3", ["u3"], np.array(["u3"]), pd.Series(["u3"])):
        with pytest.raises(RequestError, match=r"user = 'u3' .*Leave ids=.internal. out"):
            engine.forget_users(tokens, ids="internal")
    for wrong in ("tokens", None, 0):
        with pytest.raises(RequestError, match=f"ids = {wrong!r}: expected 'token'.*'internal'"):
            engine.forget_users("u3", ids=wrong)
    assert set(engine.forget_users("u3").pairs.users) == {engine.user_ids.to_internal("u3")[0][0]}
