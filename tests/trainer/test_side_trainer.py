"""Evaluation of a side: rows in order of length, without their padding."""

import pytest
import torch
from recbole.data.interaction import Interaction
from recbole.evaluator import Collector
from recbole.trainer import Trainer
from recbole.utils import init_seed

from recbole_llmd.data.windows import add_row_numbers
from recbole_llmd.distill.scorers import CRMScorer, LLMScorer
from recbole_llmd.trainer import side_trainer
from recbole_llmd.trainer.side_trainer import SideTrainer


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


@pytest.mark.parametrize("dtype, precision", [("bfloat16", "medium"), ("float32", "highest")])
def test_float32_products_are_as_exact_as_the_backbone(build, fast, dtype, precision):
    """Only while an epoch of the LLM lasts, also when it fails."""
    config, (train, _, _), model = build({**fast, "model": "LLMRec"}, llm_dtype=dtype)
    add_row_numbers(train.dataset)
    llm = SideTrainer(config, model, "LLM", 0.0)
    llm.prepare(LLMScorer(model), train)
    seen = []

    def objective(batch):
        seen.append(torch.get_float32_matmul_precision())
        raise RuntimeError

    with pytest.raises(RuntimeError):
        llm._train_epoch(train, 0, loss_func=objective)
    assert seen == [precision] and torch.get_float32_matmul_precision() == "highest"


@pytest.fixture
def histories():
    length = torch.tensor([3, 1, 8, 2, 3, 1, 5])
    seq = torch.arange(1, 8).unsqueeze(1).repeat(1, 10) * (torch.arange(10) < length.unsqueeze(1))
    return Interaction({"item_id_list": seq, "item_length": length})


def test_scores_come_back_in_the_rows_order(histories, monkeypatch):
    monkeypatch.setattr(side_trainer, "ROWS_TOGETHER", 2)
    model = _Model()
    expected = model.full_sort_predict(histories)
    with side_trainer.scored_by_length(model):
        assert torch.equal(model.full_sort_predict(histories), expected)
    assert model.widths == [10, 1, 3, 5, 8]  # two rows each: 1 1, 2 3, 3 5, 8
    assert histories["item_id_list"].shape == (7, 10)  # the caller's rows are as they were


def test_outside_the_model_is_its_own(histories):
    model = _Model()
    with pytest.raises(RuntimeError), side_trainer.scored_by_length(model):
        raise RuntimeError
    model.full_sort_predict(histories)
    assert model.widths == [10]


def test_validation_of_a_causal_crm_computes_no_padding(build, fast_distill):
    """The metrics are those of RecBole's own evaluation; every pass is as wide as its longest history."""
    config, (train, valid, _), model = build(fast_distill, MAX_ITEM_LIST_LENGTH=30)
    add_row_numbers(train.dataset)
    crm = SideTrainer(config, model.crm, "CRM", 0.0)
    crm.prepare(CRMScorer(model.crm, train.dataset, train), train)
    widths = []
    forward = model.crm.forward  # full_sort_predict calls it past the hooks

    def seen(item_seq, item_seq_len):
        widths.append((item_seq.shape[1], int(item_seq_len.max())))
        return forward(item_seq, item_seq_len)

    model.crm.forward = seen
    crm.eval_collector.data_collect(train)
    got = crm.evaluate(valid, load_best_model=False)
    assert widths and all(width == longest for width, longest in widths)
    del model.crm.forward
    plain = Trainer(config, model.crm)
    plain.eval_collector.data_collect(train)
    assert got == plain.evaluate(valid, load_best_model=False)


def test_rankings_collected_in_parts_are_those_of_the_batch(build, fast_distill, monkeypatch):
    """Parts of eight users give RecBole's metrics; no part is larger, and the last user's targets are not lost."""
    metrics = ["Recall", "MRR", "NDCG", "GAUC", "ItemCoverage", "AveragePopularity"]
    config, (train, valid, _), model = build(fast_distill, metrics=metrics)
    trainers = SideTrainer(config, model.crm, "CRM", 0.0), Trainer(config, model.crm)
    for trainer in trainers:
        trainer.eval_collector.data_collect(train)
    whole, shapes = trainers[1].evaluate(valid, load_best_model=False), []
    monkeypatch.setattr(side_trainer, "ROWS_TOGETHER", 8)
    collect = Collector.eval_batch_collect

    def seen(self, scores, *rest):
        shapes.append(len(scores))
        return collect(self, scores, *rest)

    monkeypatch.setattr(Collector, "eval_batch_collect", seen)
    assert trainers[0].evaluate(valid, load_best_model=False) == whole
    assert shapes == [8] * 9 + [len(valid.dataset) - 72]


def test_sampled_evaluation_is_recboles(build, fast_distill, monkeypatch):
    monkeypatch.setattr(side_trainer, "ROWS_TOGETHER", 8)
    sampled = {"split": {"LS": "valid_and_test"}, "order": "TO", "mode": "uni20"}
    config, (train, valid, _), model = build(fast_distill, eval_args=sampled)
    results = []
    for trainer in (SideTrainer(config, model.crm, "CRM", 0.0), Trainer(config, model.crm)):
        trainer.eval_collector.data_collect(train)
        init_seed(1, True)
        results.append(trainer.evaluate(valid, load_best_model=False))
    assert results[0] == results[1]
