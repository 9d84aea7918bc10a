"""IMCorrect on RecBole's own models: requests, modes, errors, sequences, receipts."""

import copy
import json
import re

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch

from recbole_llmd import registry
from recbole_llmd.errors import MappingMismatch, ModelError, RequestError, SettingsError
from recbole_llmd.unlearning import Unlearner, fingerprint
from tests.helpers.engines import assert_as_it_was, engine_of, snapshot
from tests.helpers.mapping_models import ALL, MODELS, dense, scores_by_hand

# --- the scores -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ALL)
def test_predict_and_full_sort_predict_follow_the_correction(trained, name):
    _, (train, _, _), model = trained(name)
    engine = Unlearner(model, train.dataset, keep_pairs=True)
    engine.forget_users("u3")
    user = engine.user_ids.to_internal("u7")[0][0]
    row = engine.X[[user]].toarray()
    receipt = engine.forget([user], [int(row[0].nonzero()[0][0])], ids="internal")
    row[0, receipt.pairs.items[0]] = 0
    X = engine.X.toarray()
    assert np.array_equal(X[[user]], row)
    expected = scores_by_hand(X, dense(engine.B), engine.config)[user]
    pairs = {model.USER_ID: torch.full((model.n_items,), user), model.ITEM_ID: torch.arange(model.n_items)}
    every = model.full_sort_predict({model.USER_ID: torch.tensor([user])}).reshape(-1)
    assert np.allclose(every, expected, atol=1e-4)
    assert np.allclose(model.predict(pairs), expected, atol=1e-4)
    gone = model.full_sort_predict({model.USER_ID: engine_ids("u3", engine)}).reshape(-1)
    assert np.abs(gone.numpy()).max() < 1e-4


def engine_ids(token, engine):
    return torch.as_tensor(engine.user_ids.to_internal(token)[0])


# --- modes ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ALL)
def test_modes(trained, name):
    _, (train, _, _), original = trained(name)
    models = {mode: copy.deepcopy(original) for mode in ("none", "interaction", "mapping", "retrain")}
    trained_B = dense(Unlearner(original, train.dataset).B).copy()
    X = Unlearner(original, train.dataset).X
    receipts = {}
    for mode, model in models.items():
        engine = Unlearner(model, train.dataset, mode=mode)
        receipts[mode] = engine.forget_users([4, 5], ids="internal")
        assert receipts[mode].mode == mode
        B, changed = dense(engine.B), (engine.X != X).nnz
        assert changed == (0 if mode == "none" else receipts[mode].interactions)
        assert np.array_equal(B, trained_B) == (mode in ("none", "interaction"))
    assert receipts["none"].hash_before == receipts["none"].hash_after
    mapping, retrain = (dense(Unlearner(models[mode], train.dataset).B) for mode in ("mapping", "retrain"))
    assert np.linalg.norm(mapping - retrain) <= 1e-4 * np.linalg.norm(retrain)
    user = torch.tensor([4])
    scores = {mode: models[mode].full_sort_predict({original.USER_ID: user}).abs().max() for mode in models}
    if name in MODELS:  # by users, those whom B calls neighbours still recommend
        assert scores["none"] > 0.01 > 1e-4 > scores["interaction"]


def test_a_mapping_left_behind_by_x_is_noticed(trained):
    for name in ("EASE", "ItemKNN"):
        _, (train, _, _), model = trained(name)
        Unlearner(model, train.dataset, mode="interaction").forget_users([4, 5], ids="internal")
        engine = Unlearner(model, train.dataset)
        before = snapshot(engine)
        with pytest.raises(MappingMismatch, match=r"does not belong to interaction_matrix.*refit"):
            engine.forget_users([6], ids="internal")
        assert_as_it_was(engine, before)
        engine.refit()
        engine.forget_users([6], ids="internal")


def test_weights_loaded_from_elsewhere_are_not_taken_for_the_corrected_ones(trained):
    for name in ("EASE", "ItemKNN"):
        _, (train, _, _), model = trained(name)
        old = {key: copy.deepcopy(getattr(model, key)) for key in ("interaction_matrix", *model.other_parameter_name)}
        engine = Unlearner(model, train.dataset)
        engine.forget_users([4], ids="internal")
        model.load_other_parameter(old)  # what trainer.evaluate(load_best_model=True) does
        engine.forget_users([5], ids="internal")
        fresh = Unlearner(copy.deepcopy(model), train.dataset)
        fresh.refit()
        assert np.allclose(dense(engine.B), dense(fresh.B), atol=1e-6)


def test_a_checkpoint_that_brings_back_only_w_is_noticed(trained):
    engine = engine_of(trained, "ItemKNN")
    old = {"w": engine.model.w, "pred_mat": engine.model.pred_mat}  # all that RecBole's ItemKNN stores
    engine.forget_users([4], ids="internal")
    engine.model.load_other_parameter(old)
    with pytest.raises(MappingMismatch, match="w does not belong to interaction_matrix"):
        engine.forget_users([5], ids="internal")


# --- requests ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ALL)
def test_forget_then_learn_restores_the_model(trained, name):
    engine = engine_of(trained, name)
    engine.refit()
    X, B = engine.X.copy(), dense(engine.B).copy()
    receipts = [engine.forget_users([2, 9], ids="internal"), engine.forget_items([7], ids="internal", strict=False)]
    for receipt in reversed(receipts):
        engine.learn(*receipt.pairs, ids="internal")
    assert (engine.X != X).nnz == 0
    assert np.abs(dense(engine.B) - B).max() < (1e-30 if "KNN" in name else 1e-6)


def test_ids_and_tokens_name_the_same(trained):
    engines = [engine_of(trained, "EASE") for _ in range(7)]
    dataset = engines[0].user_ids.dataset
    X = engines[0].X
    users = np.array([3, 8])
    items = X[users].toarray().argmax(axis=1)
    tokens = [dataset.id2token(dataset.uid_field, users), dataset.id2token(dataset.iid_field, items)]
    requests = [
        (users, items, "internal"),
        (users.tolist(), items.tolist(), "internal"),
        (torch.tensor(users), torch.tensor(items), "internal"),
        (*tokens, "token"),
        (*(list(map(str, named)) for named in tokens), "token"),
        (*(tuple(map(str, named)) for named in tokens), "token"),
        (*(pd.Series(named) for named in tokens), "token"),
    ]
    receipts = [engine.forget(*request, ids=ids) for engine, (*request, ids) in zip(engines, requests, strict=True)]
    assert len({receipt.hash_after for receipt in receipts}) == 1
    assert sorted(zip(*receipts[0].pairs[:2])) == sorted(zip(users.tolist(), items.tolist()))


def test_an_empty_request_changes_nothing(trained):
    for name in ALL:
        engine = engine_of(trained, name)
        before = snapshot(engine)
        for receipt in (engine.forget([], []), engine.forget_users([]), engine.forget_items([]), engine.learn([], [])):
            assert receipt.method == "nothing to correct" and receipt.users == 0
            assert receipt.hash_before == receipt.hash_after
        assert_as_it_was(engine, before)


def test_the_same_pair_twice_in_a_request_counts_once(trained):
    engine = engine_of(trained, "EASE")
    item = int(engine.X[[3]].indices[0])
    assert engine.forget([3, 3, 3], [item, item, item], ids="internal").pairs.users == [3]
    assert engine.learn([3, 3], [item, item], ids="internal").pairs.values == [1.0]
    assert engine.X[3, item] == 1


def test_the_same_request_twice_is_refused_or_skipped(trained):
    engine = engine_of(trained, "ItemKNN")
    item = int(engine.X[[3]].indices[0])
    user, name = engine.user_ids.name(3), engine.item_ids.name(item)
    assert re.fullmatch(r"user 'u\d+'", user) and re.fullmatch(r"item 'i\d+'", name)
    engine.forget([3], [item], ids="internal")
    before = snapshot(engine)
    with pytest.raises(RequestError, match=rf"1 of 1 pairs to forget are not in X.*{user}, {name}.*strict=False"):
        engine.forget([3], [item], ids="internal")
    assert_as_it_was(engine, before)
    receipt = engine.forget([3], [item], ids="internal", strict=False)
    assert receipt.skipped == 1 and receipt.method == "nothing to correct"
    engine.learn([3], [item], ids="internal")
    with pytest.raises(RequestError, match="already in X"):
        engine.learn([3], [item], ids="internal")
    assert engine.learn([3], [item], ids="internal", strict=False).skipped == 1
    engine.forget_users(3, ids="internal")
    with pytest.raises(RequestError, match=f"{user}.*no interaction to forget"):
        engine.forget_users([3], ids="internal")
    assert engine.forget_users([3], ids="internal", strict=False).skipped == 1


@pytest.mark.parametrize("name", ALL)
def test_forgetting_everything(trained, name):
    engine = engine_of(trained, name)
    receipt = engine.forget_users(np.arange(1, engine.model.n_users), ids="internal", strict=False)
    assert engine.X.nnz == 0 and not dense(engine.B).any() and receipt.interactions > 500
    assert not engine.model.full_sort_predict({engine.model.USER_ID: torch.tensor([5])}).abs().max() > 1e-4
    engine.learn(*receipt.pairs, ids="internal")
    other = engine_of(trained, name)
    other.refit()
    assert np.allclose(dense(engine.B), dense(other.B), atol=1e-5)


@pytest.mark.parametrize(
    "request_, message",
    [
        (lambda e: e.forget(["nobody"], ["i1"]), "user = 'nobody': the model does not know it.*'user_id'.*grow=True"),
        (lambda e: e.forget(["u1"], ["nothing"]), "item = 'nothing'"),
        (lambda e: e.forget_users([0], ids="internal"), "user = 0: .*from 1 to .*padding"),
        (lambda e: e.forget_users(["[PAD]"]), "padding"),
        (lambda e: e.forget_users([-1], ids="internal"), "user = -1"),
        (lambda e: e.forget_users([10**30], ids="internal"), "user = 1000"),
        (lambda e: e.forget_items([5000], ids="internal"), "item = 5000"),
        (lambda e: e.learn([5000], [1], ids="internal"), "user = 5000"),
        (lambda e: e.learn([5000], [1], ids="internal", grow=True), "without a gap"),
        (lambda e: e.forget_users([1.0]), "user = 1.0.*strings.*whole numbers"),
        (lambda e: e.forget_users([True]), "user = True"),
        (lambda e: e.forget_users(["u1", 1]), "user = 1 .*'1'"),
        (lambda e: e.forget([1, 2], [1], ids="internal"), "2 users and 1 items"),
        (lambda e: e.learn([1], [1], [0.5], ids="internal"), "whole numbers above 0"),
        (lambda e: e.learn([1], [1], [1, 1], ids="internal"), "expected 1 whole numbers"),
    ],
)
def test_wrong_requests_are_refused_and_change_nothing(trained, request_, message):
    engine = engine_of(trained, "EASE")
    before = snapshot(engine)
    with pytest.raises(RequestError, match=message):
        request_(engine)
    assert_as_it_was(engine, before)


def test_wrong_engines_are_refused(trained):
    config, (train, _, _), model = trained("EASE")
    with pytest.raises(SettingsError, match=r"mode = 'all'.*'mapping'"):
        Unlearner(model, train.dataset, mode="all")
    with pytest.raises(RequestError, match="a token needs the dataset"):
        Unlearner(model, config).forget_users(["u1"])
    assert Unlearner(model, config).forget_users([1], ids="internal").method
    with pytest.raises(ModelError, match=r"model = 'Linear'.*'EASE'"):
        Unlearner(torch.nn.Linear(2, 2), config)
    for tolerance in (0, -1, float("nan"), "small"):
        with pytest.raises(SettingsError, match=r"tolerance = .*above 0"):
            Unlearner(model, config, tolerance=tolerance)
    for source in (None, train):
        with pytest.raises(SettingsError, match=r"source = \w+: expected the dataset.*train_data.dataset"):
            Unlearner(model, source)
    for another in (trained("ItemKNN")[0], {}):
        with pytest.raises(SettingsError, match="reg_weight: none is in the Config"):
            Unlearner(model, another)


@pytest.mark.parametrize("name", ["BPR", "LightGCN", "FISM", "Pop", "SASRec"])
def test_models_without_a_matrix_in_closed_form_are_refused_with_the_reason(name):
    with pytest.raises(ModelError, match=rf"model = '{name}'.*'EASE'.*no closed form.*every sample.*Retrain"):
        registry.mapping_module(name)


@pytest.mark.parametrize("name", ALL)
def test_a_failed_correction_leaves_the_model_as_it_was(trained, name, monkeypatch):
    engine = engine_of(trained, name)
    engine.forget_users([2], ids="internal")
    before = snapshot(engine)

    def fail(*arguments, **keywords):
        raise MemoryError

    target = {
        "EASE": "ease.backward_error",
        "ItemKNN": "neighbours.with_parts",
        "SLIMElastic": "slim_columns.descend",
        "ADMMSLIM": "slim_columns.descend",
        "AsymKNN": "neighbours.with_parts",
        "DualEASE": "ease.backward_error",
        "SparseEASE": "sparse_ease.regress",
        "NCEPLRec": "nceplrec.ridge_error",
    }[engine.name]
    with monkeypatch.context() as patch:
        patch.setattr(f"recbole_llmd.unlearning.mapping.{target}", fail)
        for call in (
            lambda: engine.forget_users([3], ids="internal"),
            lambda: engine.learn(["new"], ["i1"], grow=True),
        ):
            with pytest.raises(MemoryError):
                call()
    assert_as_it_was(engine, before)
    assert "new" not in engine.user_ids.dataset.field2token_id["user_id"]
    engine.forget_users([3], ids="internal")
    other = engine_of(trained, name)
    other.forget_users([2, 3], ids="internal")
    assert np.allclose(dense(engine.B), dense(other.B), atol=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_an_item_that_only_a_newcomer_had_keeps_no_trace_of_them(trained, dtype):
    engine = engine_of(trained, "EASE")
    engine.refit(dtype)
    for _ in range(2):
        engine.learn(["newcomer"] * 4, ["novelty", "i1", "i7", "i9"], grow=True)
        assert engine.B[:, -1].any() and engine.B[-1].any()
        engine.forget_users("newcomer")
        assert not engine.B[:, -1].any() and not engine.B[-1].any()


# --- receipts ---------------------------------------------------------------------------------------------------------


def test_receipts_tell_what_happened(trained):
    engine = engine_of(trained, "EASE")
    before = fingerprint(engine.X, engine.B)
    row = engine.X[[6]]
    receipt = engine.forget_users([6], ids="internal")
    assert (receipt.request, receipt.model, receipt.mode) == ("forget", "EASE", "mapping")
    assert receipt.pairs.users == [6] * row.nnz and receipt.users == 1
    assert (receipt.pairs.items, receipt.pairs.values) == (row.indices.tolist(), row.data.tolist())
    assert receipt.method == "low-rank update" and receipt.estimates["rank"] == 1
    assert 0 < receipt.residual < receipt.tolerance and receipt.seconds > 0
    assert receipt.hash_before == before == engine_of(trained, "EASE").fingerprint() != receipt.hash_after
    record = json.loads(receipt.json())
    assert record["hash_after"] == receipt.hash_after and record["pairs"][1] == receipt.pairs.items
    assert receipt.peak_bytes is None or receipt.peak_bytes >= 0
    quiet = engine_of(trained, "EASE", hashes=False).forget_users([6], ids="internal")
    assert quiet.hash_before is None and quiet.hash_after is None


def test_a_fingerprint_sees_a_single_changed_value():
    X, B = sp.csr_matrix(np.eye(3, dtype=np.float32)), np.eye(3, dtype=np.float32)
    assert fingerprint(X, B) == fingerprint(X.tolil(), B.copy())
    other = B.copy()
    other[2, 0] = 1e-7
    assert (
        len(
            {
                fingerprint(X, B),
                fingerprint(X, other),
                fingerprint(X * 2, B),
                fingerprint(X, B.astype(float)),
                fingerprint(X, sp.csc_matrix(B)),
            }
        )
        == 5
    )
