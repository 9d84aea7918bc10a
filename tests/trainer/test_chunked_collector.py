"""Rankings collected in chunks of users against RecBole's own collection."""

from recbole.evaluator import Collector
from recbole.trainer import Trainer
from recbole.utils import init_seed

from recbole_llmd.trainer import chunked_collector
from recbole_llmd.trainer.side_trainer import SideTrainer


def test_rankings_collected_in_chunks_are_those_of_the_batch(build, fast_distill, monkeypatch):
    """Chunks of eight users give RecBole's metrics; no chunk is larger, and the last user's targets are not lost."""
    metrics = ["Recall", "MRR", "NDCG", "GAUC", "ItemCoverage", "AveragePopularity"]
    config, (train, valid, _), model = build(fast_distill, metrics=metrics)
    trainers = SideTrainer(config, model.crm, "CRM"), Trainer(config, model.crm)
    for trainer in trainers:
        trainer.eval_collector.data_collect(train)
    at_once, shapes = trainers[1].evaluate(valid, load_best_model=False), []
    monkeypatch.setattr(chunked_collector, "USERS_AT_ONCE", 8)
    collect = Collector.eval_batch_collect

    def seen(self, scores, *rest):
        shapes.append(len(scores))
        return collect(self, scores, *rest)

    monkeypatch.setattr(Collector, "eval_batch_collect", seen)
    assert trainers[0].evaluate(valid, load_best_model=False) == at_once
    assert shapes == [8] * 9 + [len(valid.dataset) - 72]


def test_sampled_evaluation_is_recboles(build, fast_distill, monkeypatch):
    monkeypatch.setattr(chunked_collector, "USERS_AT_ONCE", 8)
    sampled = {"split": {"LS": "valid_and_test"}, "order": "TO", "mode": "uni20"}
    config, (train, valid, _), model = build(fast_distill, eval_args=sampled)
    results = []
    for trainer in (SideTrainer(config, model.crm, "CRM"), Trainer(config, model.crm)):
        trainer.eval_collector.data_collect(train)
        init_seed(1, True)
        results.append(trainer.evaluate(valid, load_best_model=False))
    assert results[0] == results[1]
