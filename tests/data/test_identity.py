"""The identity of a model's training data."""

import json
import shutil
from types import SimpleNamespace

import numpy as np
import torch

from recbole_llmd.data.identity import KEY, DataIdentity, add_identity
from tests.helpers.scenario_cases import WATCHED


def identity_of(hand_case, pairs, **more):
    return DataIdentity.of(hand_case(pairs, **more).dataset)


def test_it_says_what_differs(hand_case, workdir):
    def identity(pairs):
        shutil.rmtree(workdir / "hand", ignore_errors=True)
        return identity_of(hand_case, pairs)

    trained_on = identity(WATCHED)
    assert trained_on.users[:3] == ("[PAD]", "u", "v") and trained_on.items[:3] == ("[PAD]", "a", "b")
    assert trained_on.mismatch(identity(WATCHED)) is None and trained_on == identity(WATCHED)
    assert trained_on.mismatch(identity([*WATCHED, ("new", "a")])) == "there were 6 users and are 7"
    assert trained_on.mismatch(identity([*WATCHED, ("u", "new")])) == "there were 5 items and are 6"
    swapped = identity([WATCHED[3], *WATCHED[:3], *WATCHED[4:]])
    assert trained_on.mismatch(swapped) == "user 1 (internal id) was 'u' and is 'v'"
    assert trained_on.mismatch(identity([*WATCHED, ("z", "a")])) == "the training interactions are others"
    assert trained_on.mismatch(identity([*WATCHED, WATCHED[-1]])) == "the training interactions are others"
    inside = identity([*WATCHED[:-2], WATCHED[-1], WATCHED[-2]])  # numbers users y and z the other way round
    assert trained_on.mismatch(inside) == "user 5 (internal id) was 'y' and is 'z'"


def test_it_survives_as_plain_types(hand_case):
    identity = identity_of(hand_case, WATCHED)
    again = DataIdentity.from_dict(json.loads(json.dumps(identity.as_dict())))
    assert again == identity and again.mismatch(identity) is None


def test_tokens_are_told_apart_where_they_join():
    X = np.zeros((3, 2))
    one, other = (_dataset(DataIdentity(("[PAD]", *users), ("[PAD]", "i"), "")) for users in (("ab", "c"), ("a", "bc")))
    assert DataIdentity.of(one, X).sha256 != DataIdentity.of(other, X).sha256


def test_it_is_added_to_a_checkpoint_of_recbole(hand_case, workdir):
    dataset = hand_case(WATCHED).dataset
    torch.save({"epoch": 3, "state_dict": {"w": torch.ones(2)}}, "model.pth")
    add_identity("model.pth", DataIdentity.of(dataset))
    content = torch.load("model.pth", weights_only=False)
    assert {type(value) for value in content[KEY].values()} == {list, str}
    assert DataIdentity.from_dict(content[KEY]) == DataIdentity.of(dataset)
    assert content["epoch"] == 3 and content["state_dict"]["w"].tolist() == [1, 1]


def _dataset(identity):
    tokens = {"user_id": list(identity.users), "item_id": list(identity.items)}
    return SimpleNamespace(uid_field="user_id", iid_field="item_id", field2id_token=tokens)
