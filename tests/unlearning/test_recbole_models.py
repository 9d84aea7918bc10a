"""IMCorrect beside RecBole: its own refit on the retained interactions, its evaluation and its checkpoints."""

import copy

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from recbole.quick_start import load_data_and_model
from recbole.utils import get_model, get_trainer

from recbole_llmd.errors import CheckpointError, ModelError, RequestError
from recbole_llmd.unlearning import Unlearner
from tests.helpers.mapping_models import MODELS, dense, evaluate, retained

# --- the last word: RecBole's own class on the retained interactions --------------------------------------------------


def assert_equal_but_for_what_recbole_leaves_open(name, model, reference):
    B, expected = (dense(getattr(m, "w" if name == "ItemKNN" else "item_similarity")) for m in (model, reference))
    if name == "ItemKNN":
        assert np.array_equal(np.sort(B, axis=0), np.sort(expected, axis=0))
        for j in np.flatnonzero((expected != B).any(axis=0)):  # ties at the k-th place are the only difference
            last = np.sort(expected[:, j])[-8]
            assert np.array_equal(B[:, j] * (B[:, j] > last), expected[:, j] * (expected[:, j] > last))
        assert (expected != B).any(axis=0).mean() < 0.5
    else:
        # float32; RecBole stops SLIMElastic at a gap of 1e-4, ADMMSLIM (here) after 400 iterations
        allowed = {"EASE": 1e-5, "SLIMElastic": 2e-3, "ADMMSLIM": 2e-3, "DualEASE": 1e-5}[name]
        assert np.linalg.norm(B - expected) <= allowed * np.linalg.norm(expected)


@pytest.mark.parametrize("name", MODELS)
def test_a_corrected_model_is_recboles_refit_on_the_retained_interactions(trained, name):
    config, (train, _, test), model = trained(name)
    engine = Unlearner(model, train.dataset, keep_pairs=True)
    X = engine.X.copy()
    first = engine.forget_users([3, 17], ids="internal")
    second = engine.forget(X.tocoo().row[400:440:2], X.tocoo().col[400:440:2], ids="internal")
    third = engine.forget_items(5, ids="internal", strict=False)
    users, items = ([*first.pairs[n], *second.pairs[n], *third.pairs[n]] for n in range(2))
    assert len(users) > 40
    reference = get_model(name)(config, retained(train.dataset, users, items))
    assert (reference.interaction_matrix.tocsr() != engine.X).nnz == 0
    assert_equal_but_for_what_recbole_leaves_open(name, model, reference)

    if name == "ItemKNN":  # the same choice among ties on both sides
        Unlearner(reference, train.dataset).refit()
    mine, theirs = (evaluate(config, m, test) for m in (model, reference))
    digits = 1e-6 if name in ("EASE", "ItemKNN", "DualEASE") else 0.02
    assert mine.keys() == theirs.keys() and all(abs(mine[key] - theirs[key]) <= digits for key in mine)


@pytest.mark.parametrize("name", ["EASE", "ItemKNN"])
def test_one_user_of_ml_100k(build, name):
    config, (train, _, _), model = build(
        {
            "model": name,
            "dataset": "ml-100k",
            "state": "WARNING",
            "show_progress": False,
            "user_inter_num_interval": "[60,inf)",
            "item_inter_num_interval": "[40,inf)",
        }
    )
    engine = Unlearner(model, train.dataset, keep_pairs=True)
    receipt = engine.forget_users(7, ids="internal")
    reference = get_model(name)(config, retained(train.dataset, *receipt.pairs[:2]))
    if name == "ItemKNN":
        Unlearner(reference, train.dataset).refit()
        assert (model.w != reference.w).nnz == 0
        users = torch.arange(model.n_users)
        scores = [m.full_sort_predict({m.USER_ID: users}) for m in (model, reference)]
        assert torch.equal(*scores)
    else:
        expected = np.asarray(reference.item_similarity)
        assert np.linalg.norm(engine.B - expected) < 1e-4 * np.linalg.norm(expected)


# --- growth, checkpoints, receipts ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODELS)
def test_the_model_grows_by_new_users_and_items(trained, name):
    config, (train, _, test), model = trained(name)
    engine = Unlearner(model, train.dataset)
    n_users, n_items = model.n_users, model.n_items
    before = evaluate(config, model, test)
    with pytest.raises(RequestError, match="grow=True"):
        engine.learn(["newcomer"], ["i1"])
    users = ["newcomer", "newcomer", *(f"u{n}" for n in range(1, 30))]
    receipt = engine.learn(users, ["i1"] + ["novelty"] * 30, grow=True)
    assert (receipt.new_users, receipt.new_items) == (1, 1)
    assert engine.X.shape == (n_users + 1, n_items + 1) and engine.B.shape == (n_items + 1,) * 2
    assert (model.n_users, model.n_items) == engine.X.shape == (train.dataset.user_num, train.dataset.item_num)
    assert train.dataset.token2id("user_id", "newcomer") == n_users
    scratch = copy.deepcopy(model)
    Unlearner(scratch, train.dataset).refit()
    assert np.allclose(dense(engine.B), dense(Unlearner(scratch, train.dataset).B), atol=1e-5)
    assert dense(engine.B)[:, -1].any()
    after = evaluate(config, model, test)
    assert after.keys() == before.keys() and all(abs(after[key] - before[key]) < 0.1 for key in after)
    forgotten = engine.forget_users("newcomer")
    assert forgotten.users == 1 and not engine.X[n_users].nnz


@pytest.mark.parametrize("name", MODELS)
def test_checkpoints_go_to_and_come_from_recbole(trained, name, tmp_path):
    config, (train, _, test), model = trained(name)
    trainer = get_trainer(config["MODEL_TYPE"], name)(config, model)
    trainer._save_checkpoint(0, verbose=False)
    path, out = trainer.saved_model_file, tmp_path / "out" / "corrected.pth"

    engine = Unlearner.from_checkpoint(path, keep_pairs=True)
    assert np.array_equal(dense(engine.B), dense(Unlearner(model, train.dataset).B))
    receipt = engine.forget_users(["u3", "u5"])
    engine.learn(["newcomer"], ["i1"], grow=True)
    engine.forget_users(["newcomer"])
    engine.save(out)

    _, loaded, *_ = load_data_and_model(str(out))  # RecBole's own
    assert np.array_equal(dense(getattr(loaded, engine.mapping.MATRIX)), dense(engine.B))
    assert (loaded.interaction_matrix.tocsr() != engine.X).nnz == 0
    assert evaluate(config, engine.model, test) == evaluate(config, loaded, test)
    if name == "ItemKNN":
        assert sp.issparse(loaded.pred_mat)  # nothing of this package in the file

    again = Unlearner.from_checkpoint(out)
    assert again.user_ids.to_internal("newcomer")[0] == [engine.model.n_users - 1]
    with pytest.raises(RequestError, match="no interaction"):
        again.forget_users("u3")
    again.learn(*receipt.pairs, ids="internal")
    scratch = Unlearner(copy.deepcopy(again.model), again.user_ids.dataset)
    scratch.refit()
    assert np.allclose(dense(again.B), dense(scratch.B), atol=1e-5)


@pytest.mark.parametrize("name", ["EASE", "ItemKNN", "SLIMElastic"])
def test_a_checkpoint_is_read_without_training(trained, name, monkeypatch):
    config, _, model = trained(name)
    trainer = get_trainer(config["MODEL_TYPE"], name)(config, model)
    trainer._save_checkpoint(0, verbose=False)
    sizes = []
    for module, function in (("numpy.linalg", "inv"), ("numpy", "argsort"), ("scipy.sparse", "vstack")):
        original = getattr(__import__(module, fromlist=["x"]), function)
        monkeypatch.setattr(
            f"{module}.{function}",
            lambda a, *rest, _f=original, **more: (sizes.append(len(a)), _f(a, *rest, **more))[1],
        )
    Unlearner.from_checkpoint(trainer.saved_model_file)
    if name in ("EASE", "SLIMElastic"):
        assert 1 in sizes and model.n_items not in sizes


def test_wrong_checkpoints_are_refused(tmp_path):
    with pytest.raises(CheckpointError, match="there is no such file"):
        Unlearner.from_checkpoint(tmp_path / "missing.pth")
    torch.save([1], tmp_path / "list.pth")
    with pytest.raises(CheckpointError, match="a checkpoint that RecBole wrote"):
        Unlearner.from_checkpoint(tmp_path / "list.pth")
    torch.save({"config": {"model": "SASRec"}}, tmp_path / "other.pth")
    with pytest.raises(ModelError, match="model = 'SASRec'"):
        Unlearner.from_checkpoint(tmp_path / "other.pth")


@pytest.mark.parametrize("name", MODELS)
def test_a_grown_checkpoint_is_evaluated_by_recbole(trained, name):
    config, (_, _, test), model = trained(name)
    before = evaluate(config, model, test)
    trainer = get_trainer(config["MODEL_TYPE"], name)(config, model)
    trainer._save_checkpoint(0, verbose=False)
    engine = Unlearner.from_checkpoint(trainer.saved_model_file)
    engine.learn(["newcomer"] * 2, ["i1", "novelty"], grow=True)
    engine.save("grown.pth")
    config, model, dataset, train, _, test = load_data_and_model("grown.pth")
    for data in (dataset, train.dataset, test.dataset):
        assert (data.user_num, data.item_num) == (model.n_users, model.n_items)
        assert data.id2token("item_id", data.item_num - 1) == "novelty"
        assert data.token2id("user_id", "newcomer") == data.user_num - 1
    after = evaluate(config, model, test)
    assert after.keys() == before.keys() and all(abs(after[key] - before[key]) < 0.1 for key in after)
