"""SequentialRules against counting by hand, its choice of parameters, and its checkpoints."""

import dataclasses
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from recbole.data.interaction import Interaction
from recbole.quick_start import load_data_and_model, run_recbole
from recbole.utils import get_trainer
from sklearn.feature_extraction.text import TfidfVectorizer

from recbole_llmd.data.item_text import load_item_texts
from recbole_llmd.model.sequential_rules import RuleParameters, transition_counts

PARAMETERS = RuleParameters(0.7, 0.5, 0.4, 0.6, 0.3, 0.1)


@pytest.fixture
def settings(fast):
    return {key: value for key, value in fast.items() if not key.startswith("llm_")} | {"model": "SequentialRules"}


@pytest.fixture
def trained(build, settings):
    """``trained(**more)`` gives the trainer, the loaders and the training sequences by user."""

    def _trained(**more):
        config, loaders, model = build({**settings, **more})
        trainer = get_trainer(config["MODEL_TYPE"], "SequentialRules")(config, model)
        trainer.fit(*loaders[:2], verbose=False, saved=False)
        return trainer, loaders

    return _trained


def sequences_of(dataset):
    """The training sequence of each user, from its longest sample."""
    feat, longest = dataset.inter_feat, {}
    for row in range(len(feat)):
        length, user = int(feat["item_length"][row]), int(feat["user_id"][row])
        sequence = [*feat["item_id_list"][row][:length].tolist(), int(feat["item_id"][row])]
        if len(sequence) > len(longest.get(user, [])):
            longest[user] = sequence
    return longest.values()


def naive_counts(sequences, decay):
    counts = Counter()
    for sequence in sequences:
        for q, target in enumerate(sequence):
            for p in range(q):
                counts[sequence[p], target] += decay ** (q - p - 1)
    return counts


def test_counts_are_those_of_every_pair_of_a_sequence(build, settings):
    _, (train, *_), _ = build(settings, MAX_ITEM_LIST_LENGTH=100)
    feat, n = train.dataset.inter_feat, train.dataset.item_num
    arrays = (feat[name].numpy() for name in ("item_id_list", "item_length", "item_id"))
    counts = transition_counts(*arrays, 0.7, n).toarray()
    expected = np.zeros((n, n))
    for pair, count in naive_counts(sequences_of(train.dataset), 0.7).items():
        expected[pair] = count
    np.testing.assert_allclose(counts, expected, rtol=1e-12)
    assert counts.any() and not counts[0].any() and not counts[:, 0].any()


def test_no_sample_gives_no_count():
    empty = np.zeros((0, 5), np.int64), np.zeros(0, np.int64), np.zeros(0, np.int64)
    assert transition_counts(*empty, 0.5, 7).nnz == 0


def test_scores_follow_the_documented_equation(build, settings):
    config, (train, *_), model = build(settings)
    n, X = train.dataset.item_num, train.dataset.inter_matrix(form="csr")
    counts = sp.random(n, n, 0.2, format="csr", random_state=0)
    model.set_rules(PARAMETERS, counts)
    f, c = np.asarray(X.sum(axis=0)).ravel(), counts.toarray()
    x = TfidfVectorizer(sublinear_tf=True, token_pattern=r"(?u)\b\w+\b").fit_transform(
        load_item_texts(config, train.dataset)
    )
    likeness, p = (x @ x.T).toarray(), PARAMETERS
    history, expected = [4, 9, 2], np.zeros(n)
    a, b = np.zeros(n), np.zeros(n)
    for back, i in enumerate(reversed(history)):
        for j in range(n):
            popularity = (1 + f[i]) ** p.normalisation * (1 + f[j]) ** (p.normalisation / 2)
            a[j] += p.recency**back * (c[i, j] + p.backward * c[j, i]) / popularity
            b[j] += p.recency**back * likeness[i, j]
    popular = np.log(1 + f)
    expected = a / a.max() + p.text * b / b.max() + p.popularity * popular / popular.max()
    padded = torch.tensor([[*history, 0, 0], [7, 0, 0, 0, 0]])
    batch = Interaction({"item_id_list": padded, "item_length": torch.tensor([3, 1]), "item_id": torch.tensor([5, 6])})
    scores = model.full_sort_predict(batch)
    np.testing.assert_allclose(scores[0], expected, rtol=1e-5)
    torch.testing.assert_close(model.predict(batch), torch.stack([scores[0, 5], scores[1, 6]]))


def test_it_learns_the_walks_of_the_tiny_dataset(settings):
    assert run_recbole(config_dict=settings)["test_result"]["ndcg@10"] > 0.2


def test_the_choice_is_the_best_that_changing_one_parameter_reaches(trained):
    trainer, (_, valid, _) = trained()
    best = trainer.model.chosen
    assert trainer.tried[best] == max(trainer.tried.values()) == trainer.best_valid_score
    values = {name: trainer.config[f"rules_{name}"] for name in dataclasses.asdict(best)}
    for name, candidates in values.items():  # every neighbour was tried, and none is better
        for value in candidates:
            assert trainer.tried[dataclasses.replace(best, **{name: value})] <= trainer.tried[best]
    assert trainer.evaluate(valid, load_best_model=False)["ndcg@10"] == pytest.approx(trainer.best_valid_score)


def test_numbers_are_taken_as_they_are(trained):
    given = {f"rules_{name}": value for name, value in dataclasses.asdict(PARAMETERS).items()}
    trainer, _ = trained(**given)
    assert trainer.model.chosen == PARAMETERS and list(trainer.tried) == [PARAMETERS]


def test_few_validation_users_choose_for_all(trained):
    """The choice looks at some users, drawn by the seed; the result is that of all."""
    trainer, (_, valid, _) = trained(rules_validation_users=10)
    again, _ = trained(rules_validation_users=10)
    other, _ = trained(rules_validation_users=10, seed=1)
    assert trainer.tried == again.tried != other.tried
    everyone = trainer.evaluate(valid, load_best_model=False)
    assert trainer.best_valid_result == everyone and max(trainer.tried.values()) != trainer.best_valid_score


def test_without_validation_the_first_values_are_taken(build, settings):
    config, (train, *_), model = build(settings)
    trainer = get_trainer(config["MODEL_TYPE"], "SequentialRules")(config, model)
    trainer.fit(train, None, verbose=False, saved=False)
    assert model.chosen == RuleParameters(0.8, 0.5, 0.5, 0.6, 0, 0)


def test_without_texts_their_weight_is_none(trained, workdir, settings):
    folder = workdir / "bare" / "tiny"
    folder.mkdir(parents=True)
    (folder / "tiny.inter").write_bytes((Path(settings["data_path"]) / "tiny" / "tiny.inter").read_bytes())
    trainer, _ = trained(data_path=str(workdir / "bare"))
    assert trainer.model.texts is None and {parameters.text for parameters in trainer.tried} == {0.0}


def test_a_checkpoint_has_all_that_is_served(settings):
    result = run_recbole(config_dict=settings)
    (file,) = Path("saved").glob("SequentialRules-tiny-*.pth")
    config, model, _, _, _, test = load_data_and_model(str(file))
    trainer = get_trainer(config["MODEL_TYPE"], "SequentialRules")(config, model)
    assert dict(trainer.evaluate(test, load_best_model=False)) == dict(result["test_result"])
    model.rules = model.rules * 0
    assert dict(trainer.evaluate(test, load_best_model=False)) != dict(result["test_result"])
