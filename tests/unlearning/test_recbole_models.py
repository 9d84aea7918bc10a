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
from tests.conftest import REPO
from tests.helpers.mapping_models import ALL, BY_USERS, dense, evaluate, retained

# --- the last word: RecBole's own class on the retained interactions --------------------------------------------------


def assert_equal_but_for_what_recbole_leaves_open(name, model, reference):
    B, expected = (dense(getattr(m, "w" if "KNN" in name else "item_similarity")) for m in (model, reference))
    if "KNN" in name:
        B, expected = (B.T, expected.T) if name in BY_USERS else (B, expected)
        assert np.array_equal(np.sort(B, axis=0), np.sort(expected, axis=0))
        for j in np.flatnonzero((expected != B).any(axis=0)):  # ties at the k-th place are the only difference
            last = np.sort(expected[:, j])[-8]
            assert np.array_equal(B[:, j] * (B[:, j] > last), expected[:, j] * (expected[:, j] > last))
        assert (expected != B).any(axis=0).mean() < 0.5
    else:
        # float32; RecBole stops SLIMElastic at a gap of 1e-4, ADMMSLIM (here) after 400 iterations
        allowed = {"EASE": 1e-5, "DualEASE": 1e-5, "SparseEASE": 0.0, "NCEPLRec": 1e-4}.get(name, 2e-3)
        assert np.linalg.norm(B - expected) <= allowed * np.linalg.norm(expected)


@pytest.mark.parametrize("name", ALL)
def test_a_corrected_model_is_recboles_refit_on_the_retained_interactions(trained, name):
    # NCEPLRec of rank 12 depends on RecBole's randomized decomposition, which with so high a rank is exact.
    config, (train, _, test), model = trained(name, **({"rank": 45} if name == "NCEPLRec" else {}))
    engine = Unlearner(model, train.dataset, keep_pairs=True)
    X = engine.X.copy()
    if name in ("SLIMElastic", "ADMMSLIM", "NCEPLRec"):  # here RecBole goes on counting users who have nothing left
        first = engine.forget([3] * (X[3].nnz - 1), X[3].indices[1:], ids="internal")
    else:
        first = engine.forget_users([3, 17], ids="internal")
    second = engine.forget(X.tocoo().row[400:440:2], X.tocoo().col[400:440:2], ids="internal")
    third = engine.forget_items(5, ids="internal", strict=False)
    users, items = ([*first.pairs[n], *second.pairs[n], *third.pairs[n]] for n in range(2))
    assert len(users) > 40
    reference = get_model(config["model"])(config, retained(train.dataset, users, items))
    assert (reference.interaction_matrix.tocsr() != engine.X).nnz == 0
    assert_equal_but_for_what_recbole_leaves_open(name, model, reference)

    if "KNN" in name:  # the same choice among ties on both sides
        Unlearner(reference, train.dataset).refit()
    mine, theirs = (evaluate(config, m, test) for m in (model, reference))
    digits = 1e-6 if "EASE" in name or "KNN" in name else 0.02
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
    reference = get_model(config["model"])(config, retained(train.dataset, *receipt.pairs[:2]))
    if name == "ItemKNN":
        Unlearner(reference, train.dataset).refit()
        assert (model.w != reference.w).nnz == 0
        users = torch.arange(model.n_users)
        scores = [m.full_sort_predict({m.USER_ID: users}) for m in (model, reference)]
        assert torch.equal(*scores)
    else:
        expected = np.asarray(reference.item_similarity)
        assert np.linalg.norm(engine.B - expected) < 1e-4 * np.linalg.norm(expected)


@pytest.mark.parametrize("name, more", [*((name, {}) for name in ALL), ("ADMMSLIM", {"center_columns": True})])
def test_users_who_left_are_as_if_they_had_never_been_in_the_data_file(build, workdir, name, more):
    """RecBole counts the users of the file (with one row of padding) in its penalties and means."""
    first_of_each = {"split": {"RS": [0.8, 0.1, 0.1]}, "order": "TO", "mode": "full", "group_by": "user"}
    leaving = [f"u{n}" for n in range(1, 31)]
    head, *lines = (REPO / "dataset" / "tiny" / "tiny.inter").read_text().splitlines()
    if name == "SparseEASE":
        more = {"k": 1000}  # no tie at the k-th place, which the numbers of the items would decide
    models = []
    for folder, kept in (("all", lines), ("fewer", [line for line in lines if line.split("\t")[0] not in leaving])):
        (workdir / folder / "tiny").mkdir(parents=True)
        (workdir / folder / "tiny" / "tiny.inter").write_text("\n".join([head, *kept]) + "\n")
        settings = {"model": name, "dataset": "tiny", "data_path": str(workdir / folder), "eval_args": first_of_each}
        _, loaders, model = build({**settings, "show_progress": False, **ALL[name], **more})
        models.append((model, loaders[0].dataset))
    (model, dataset), (reference, fewer) = models
    assert reference.n_users == model.n_users - len(leaving)
    engine = Unlearner(model, dataset)
    engine.forget_users([user for user in leaving if user in dataset.field2token_id["user_id"]])
    tokens = fewer.field2id_token["item_id"]  # numbered in another order, and some are gone
    numbers = dataset.token2id("item_id", list(tokens))
    users = dataset.token2id("user_id", list(fewer.field2id_token["user_id"]))
    related = users if name in BY_USERS else numbers
    B, expected = dense(engine.B)[np.ix_(related, related)], dense(getattr(reference, engine.mapping.MATRIX))
    if "KNN" in name:  # but for ties
        along = 1 if name in BY_USERS else 0
        assert np.allclose(np.sort(B, axis=along), np.sort(expected, axis=along))
    else:
        assert np.linalg.norm(B - expected) <= {"EASE": 1e-5}.get(name, 2e-3) * np.linalg.norm(expected)
    if name == "ADMMSLIM" and more:
        assert np.allclose(model.item_means[numbers], reference.item_means, atol=1e-6)


@pytest.mark.parametrize("by", ["item", "user"])
@pytest.mark.parametrize("name, more", [("ItemKNN", {}), ("AsymKNN", {"alpha": 0.3, "beta": 0.7, "q": 3})])
def test_neighbours_and_scores_are_recboles(trained, name, more, by):
    """With no tie at the k-th place there is one w, and the scores made of it are those that RecBole keeps."""
    _, (train, _, _), model = trained(name, k=200, knn_method=by, **more)
    w, scores = model.w.toarray(), model.pred_mat.toarray()
    engine = Unlearner(model, train.dataset)
    engine.refit()
    assert engine.B.nnz > 1000 and np.allclose(dense(engine.B), w, rtol=1e-6, atol=0)
    assert np.allclose(model.pred_mat.tocsr().toarray(), scores, rtol=1e-4 if more else 1e-5, atol=1e-7)
    users, items = np.nonzero(scores)
    ids = {model.USER_ID: torch.from_numpy(users[::97]), model.ITEM_ID: torch.from_numpy(items[::97])}
    assert np.allclose(model.predict(ids), scores[users[::97], items[::97]], rtol=1e-4)


# --- growth, checkpoints, receipts ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ALL)
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
    assert (
        engine.X.shape == (n_users + 1, n_items + 1)
        and engine.B.shape == ((n_users if name in BY_USERS else n_items) + 1,) * 2
    )
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


@pytest.mark.parametrize("name", ALL)
def test_checkpoints_go_to_and_come_from_recbole(trained, name, tmp_path):
    config, (train, _, test), model = trained(name)
    trainer = get_trainer(config["MODEL_TYPE"], config["model"])(config, model)
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
    if "KNN" in name:
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
    trainer = get_trainer(config["MODEL_TYPE"], config["model"])(config, model)
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


@pytest.mark.parametrize("name", ALL)
def test_a_grown_checkpoint_is_evaluated_by_recbole(trained, name):
    config, (_, _, test), model = trained(name)
    before = evaluate(config, model, test)
    trainer = get_trainer(config["MODEL_TYPE"], config["model"])(config, model)
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
