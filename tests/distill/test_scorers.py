"""Scores of histories in order of length, without their padding."""

import pytest
import torch
from recbole.data.interaction import Interaction

from recbole_llmd.distill import scorers


class _Model:
    """Scores a history by its items in order, so that a lost, added or swapped item changes the scores."""

    ITEM_SEQ, ITEM_SEQ_LEN = "item_id_list", "item_length"

    def __init__(self):
        self.widths = []

    def full_sort_predict(self, interaction):
        seq, length = interaction[self.ITEM_SEQ], interaction[self.ITEM_SEQ_LEN]
        self.widths.append(seq.shape[1])
        weights = 10.0 ** torch.arange(seq.shape[1], dtype=torch.float64)
        return torch.stack([(seq * weights).sum(1), length.double()], dim=1)


@pytest.fixture
def histories():
    length = torch.tensor([3, 1, 8, 2, 3, 1, 5])
    seq = torch.arange(1, 8).unsqueeze(1).repeat(1, 10) * (torch.arange(10) < length.unsqueeze(1))
    return Interaction({"item_id_list": seq, "item_length": length})


def test_scores_come_back_in_the_order_of_the_histories(histories, monkeypatch):
    monkeypatch.setattr(scorers, "HISTORIES_AT_ONCE", 2)
    model = _Model()
    expected = model.full_sort_predict(histories)
    with scorers.scored_by_length(model):
        assert torch.equal(model.full_sort_predict(histories), expected)
    assert model.widths == [10, 1, 3, 5, 8]  # two histories each: 1 1, 2 3, 3 5, 8
    assert histories["item_id_list"].shape == (7, 10)  # the caller's histories are as they were


def test_outside_the_model_is_its_own(histories):
    model = _Model()
    with pytest.raises(RuntimeError), scorers.scored_by_length(model):
        raise RuntimeError
    model.full_sort_predict(histories)
    assert model.widths == [10]
