"""What a cell measures, against the raw data file and a naive ranking."""

import numpy as np
import pandas as pd
import pytest
import torch
from recbole.trainer import Trainer

from recbole_llmd.comparison import cell_metrics
from recbole_llmd.comparison.experiment import EVAL_ARGS
from tests.conftest import REPO


@pytest.fixture
def loaders(fast, build):
    """``loaders(model)`` on the tiny dataset, where one user has a single and one has two interactions."""
    columns = {"inter": ["user_id", "item_id", "timestamp"]}

    def _loaders(model):
        settings = {key: value for key, value in fast.items() if not key.startswith("llm_")}
        return build(settings, model=model, eval_args=EVAL_ARGS, load_col=columns)

    return _loaders


@pytest.fixture
def raw():
    """The interactions of the file in time order."""
    frame = pd.read_csv(REPO / "dataset" / "tiny" / "tiny.inter", sep="\t")
    frame.columns = [name.split(":")[0] for name in frame]
    return frame.sort_values("timestamp", kind="stable")


def _histories(loader):
    """For every user of an evaluation loader: the items hidden from the ranking, and the target."""
    histories = {}
    for interaction, (row, item), _, target in loader:
        for place, user in enumerate(interaction["user_id"].tolist()):
            histories[user] = (set(item[row == place].tolist()), target[place].item())
    return histories


def test_hidden_histories_are_those_that_recbole_hides_from_general_models(loaders):
    _, sequential, _ = loaders("SASRec")
    _, general, _ = loaders("BPR")
    assert next(iter(sequential[2]))[1] is None  # RecBole hides nothing from a sequential model
    cell_metrics.hide_history(*sequential)
    for ours, recboles in zip(sequential[1:], general[1:], strict=True):
        ours, recboles = _histories(ours), _histories(recboles)
        common = ours.keys() & recboles.keys()
        assert len(common) >= 77 and all(ours[user] == recboles[user] for user in common)
        assert all(hidden and target not in hidden for hidden, target in ours.values())


@pytest.mark.parametrize("model, least, trained", [("SASRec", 3, {1: 0, 2: 2, 3: 2}), ("BPR", 2, {1: 1, 2: 1})])
def test_facts_of_the_test_users_against_the_raw_file(loaders, raw, model, least, trained):
    """``least``: users with fewer interactions have no test; ``trained``: how many of so many are for training.

    A row of a sequential model needs an item before it, so it leaves out one row less for validation and test.
    """
    _, (train, valid, test), _ = loaders(model)
    facts = cell_metrics.test_users(train, valid, test)
    dataset = train.dataset
    users = dataset.id2token("user_id", facts["user"])
    tested = {user: group["item_id"].tolist() for user, group in raw.groupby("user_id") if len(group) >= least}
    assert sorted(users) == sorted(tested)
    assert dataset.id2token("item_id", facts["target"]).tolist() == [tested[user][-1] for user in users]
    assert facts["history"].tolist() == [len(tested[user]) - 1 for user in users]
    sequences = raw.groupby("user_id")["item_id"].agg(list)
    counts = pd.Series([item for items in sequences for item in items[: trained.get(len(items), len(items) - 2)]])
    counts = counts.value_counts()
    assert facts["popularity"].tolist() == [counts.get(tested[user][-1], 0) for user in users]


def test_values_per_user_are_those_of_a_naive_ranking(loaders):
    config, (train, _, test), model = loaders("SASRec")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.3)
    trainer = Trainer(config, model)
    trainer.eval_collector.data_collect(train)
    with cell_metrics.values_per_user(trainer.evaluator) as values:
        result = trainer.evaluate(test, load_best_model=False)
    samples = test.dataset.inter_feat
    with torch.no_grad():
        scores = model.full_sort_predict(samples.to(model.device))[:, 1:]
    target = scores.gather(1, samples["item_id"].unsqueeze(1) - 1)
    rank = 1 + (scores > target).sum(1).numpy()
    assert 0 < (rank <= 10).mean() < 1
    assert values["recall@10"] == pytest.approx((rank <= 10).astype(float))
    assert values["ndcg@10"] == pytest.approx(np.where(rank <= 10, 1 / np.log2(rank + 1), 0))
    assert result["ndcg@10"] == pytest.approx(values["ndcg@10"].mean(), abs=1e-6)
    again = trainer.evaluate(test, load_best_model=False)  # the evaluator is RecBole's again
    assert again == result and cell_metrics.serving_microseconds(trainer, test) > 0


def test_the_vocabulary_tells_datasets_apart(loaders, fast, build):
    facts = cell_metrics.data_facts(*loaders("SASRec")[1])
    assert facts["vocabulary"] == cell_metrics.data_facts(*loaders("BPR")[1])["vocabulary"]
    assert (facts["users"], facts["items"], facts["test_users"]) == (80, 50, 78)
    settings = {key: value for key, value in fast.items() if not key.startswith("llm_")}
    fewer = build(settings, model="SASRec", user_inter_num_interval="[5,inf)")[1]
    assert cell_metrics.data_facts(*fewer)["vocabulary"] != facts["vocabulary"]
