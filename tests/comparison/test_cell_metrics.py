"""What a cell measures, against the raw data file and a naive ranking."""

import numpy as np
import pandas as pd
import pytest
import torch
from recbole.config import Config
from recbole.data import create_dataset
from recbole.data.interaction import Interaction
from recbole.trainer import Trainer

from recbole_llmd.comparison import cell, cell_metrics
from recbole_llmd.comparison.experiment import EVAL_ARGS
from recbole_llmd.unlearning import Unlearner
from tests.conftest import REPO
from tests.helpers.mapping_models import MODELS, dense, scores_by_hand


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


def _naive_ndcg(raw, reg_weight, mask):
    """NDCG@10 of each tested user under EASE in closed form: B of all but the last two interactions, from X without the
    last one; None where the target shares its score with another item, so that its rank is not defined.
    """
    sequences = {user: group["item_id"].tolist() for user, group in raw.groupby("user_id")}
    items = sorted(raw["item_id"].unique())
    place = {item: number for number, item in enumerate(items)}

    def row(history):
        counts = np.zeros(len(items))
        np.add.at(counts, [place[item] for item in history], 1)
        return counts

    trained = {
        user: seq[: len(seq) - (2 if len(seq) > 2 else 1 if len(seq) == 2 else 0)] for user, seq in sequences.items()
    }
    X = np.array([row(history) for history in trained.values()])
    P = np.linalg.inv(X.T @ X + reg_weight * np.eye(len(items)))
    B = -P / np.diag(P)
    np.fill_diagonal(B, 0)
    values = {}
    for user, seq in sequences.items():
        if len(seq) < 2:
            continue
        scores = row(seq[:-1]) @ B
        target = scores[place[seq[-1]]]
        hidden = {place[item] for item in seq[:-1]} - {place[seq[-1]]} if mask else set()
        others = [scores[i] for i in range(len(items)) if i not in hidden and i != place[seq[-1]]]
        rank = 1 + sum(score > target for score in others)
        tied = any(abs(score - target) < 1e-5 for score in others)
        values[user] = None if tied else 1 / np.log2(rank + 1) if rank <= 10 else 0.0
    return values


@pytest.mark.parametrize("mask", [True, False])
def test_a_general_model_is_ranked_as_the_sequential_ones(fast, raw, workdir, mask):
    """On the same candidates, and with the validation item in the history, as a user of the served model has it."""
    settings = {key: fast[key] for key in ("data_path", "metrics", "valid_metric", "show_progress", "state")}
    settings |= {"eval_args": EVAL_ARGS, "seed": 1, "reg_weight": 5.0}
    task = {"dataset": "tiny", "model": "EASE", "files": [], "settings": settings, "mask_history": mask}
    record, users = cell.run({**task, "warmups": "w", "started": 0.0})
    expected = _naive_ndcg(raw, 5.0, mask)
    tokens = _tokens(fast, users["user"])
    assert len(tokens) == len(expected) == 79 and record["knows_validation_item"]
    known = [number for number, token in enumerate(tokens) if expected[token] is not None]
    assert len(known) > 70
    got = users["ndcg@10"][known]
    assert got == pytest.approx([expected[tokens[number]] for number in known], abs=1e-6)
    other = _naive_ndcg(raw, 5.0, not mask)
    assert got.mean() != pytest.approx(np.mean([other[tokens[number]] or 0 for number in known]), abs=0.01)


def _tokens(fast, users):
    config = Config(model="EASE", dataset="tiny", config_dict={"data_path": fast["data_path"], "state": "ERROR"})
    return create_dataset(config).id2token("user_id", users).tolist()


@pytest.mark.parametrize("name", MODELS)
def test_a_mapping_model_reads_the_validation_item_at_test(trained, name):
    config, (train, valid, _), model = trained(name, eval_args=EVAL_ARGS)
    B, before = Unlearner(model, train.dataset).B, train.dataset.inter_matrix(form="csr").toarray()
    assert cell_metrics.take_up_validation(model, config, valid)
    rows = before.copy()
    for user, item in zip(*(valid.dataset.inter_feat[field].tolist() for field in ("user_id", "item_id")), strict=True):
        rows[user, item] += 1
    assert rows.sum() == before.sum() + len(valid.dataset.inter_feat)
    engine = Unlearner(model, train.dataset)
    assert np.array_equal(dense(engine.B), dense(B)) and np.array_equal(engine.X.toarray(), rows)
    users = torch.arange(1, 60)
    scores = model.full_sort_predict(Interaction({"user_id": users})).reshape(len(users), -1).numpy()
    if name != "ADMMSLIM":  # RecBole's adds noise
        np.testing.assert_allclose(scores, scores_by_hand(rows, dense(B), config)[1:60], rtol=1e-4, atol=1e-5)


def test_other_general_models_cannot_take_up_anything(trained, loaders):
    config, (_, valid, _), model = loaders("BPR")
    assert not cell_metrics.take_up_validation(model, config, valid)
    config, (_, valid, _), model = trained("ItemKNN", knn_method="user")
    assert not cell_metrics.take_up_validation(model, config, valid)


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
