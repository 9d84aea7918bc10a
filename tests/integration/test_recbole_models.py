"""RecBole's own models and services on the installed stack: they run, show no warning and return plain numbers."""

import contextlib
import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from recbole_llmd import compat  # mends RecBole, so it stands before RecBole's imports

# isort: split
from recbole.config import Config
from recbole.data import create_dataset, data_preparation
from recbole.evaluator.register import metrics_dict
from recbole.quick_start import load_data_and_model, objective_function, run_recbole
from recbole.utils import get_model, get_trainer, init_logger, init_seed
from recbole.utils.case_study import full_sort_topk

ROOT = Path(__file__).resolve().parents[2]
SETTINGS = {
    "state": "ERROR", "show_progress": False, "use_gpu": False, "epochs": 1, "seed": 2024,
    "train_batch_size": 512, "eval_batch_size": 512, "user_inter_num_interval": "[20,24)",
    "embedding_size": 8, "hidden_size": 8, "inner_size": 8, "n_layers": 1, "n_heads": 1, "MAX_ITEM_LIST_LENGTH": 10,
    "metrics": ["Recall", "MRR", "NDCG", "Hit", "Precision"], "topk": [5, 10], "valid_metric": "NDCG@10",
}  # fmt: skip
CROSS_ENTROPY = {"train_neg_sample_args": None, "loss_type": "CE"}
FEATURES = {
    "load_col": {
        "inter": ["user_id", "item_id", "rating"],
        "user": ["user_id", "age", "gender"],
        "item": ["item_id", "release_year", "class"],  # "class" is a token_seq
    },
    "threshold": {"rating": 4}, "train_neg_sample_args": None, "metrics": ["AUC", "LogLoss"], "valid_metric": "AUC",
    "eval_args": {"split": {"RS": [0.8, 0.1, 0.1]}, "order": "RO", "group_by": "user", "mode": "labeled"},
}  # fmt: skip
GRAPH = {
    "load_col": {
        "inter": ["user_id", "item_id"],
        "kg": ["head_id", "relation_id", "tail_id"],
        "link": ["item_id", "entity_id"],
    }
}
MODELS = {
    "BPR": {}, "LightGCN": {}, "NGCF": {"hidden_size_list": [8]}, "EASE": {}, "ItemKNN": {}, "SLIMElastic": {},
    "ADMMSLIM": {}, "MultiVAE": {}, "DMF": {},
    "SASRec": CROSS_ENTROPY, "GRU4Rec": CROSS_ENTROPY, "BERT4Rec": CROSS_ENTROPY, "NARM": CROSS_ENTROPY,
    "Caser": {**CROSS_ENTROPY, "reg_weight": 1e-4},
    "FM": FEATURES, "DeepFM": {**FEATURES, "mlp_hidden_size": [8]}, "CKE": GRAPH,
}  # fmt: skip


@pytest.fixture(autouse=True)
def own_folder(tmp_path, monkeypatch):
    """RecBole writes into the working directory, and its Config reads the command line."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["pytest"])


@contextlib.contextmanager
def nothing_shown():
    """Fails if a warning arises that Python shows by default (pytest has other filters)."""
    torch.set_warn_always(True)  # else PyTorch gives most of its warnings once per process
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        for hidden in (DeprecationWarning, PendingDeprecationWarning, ResourceWarning):
            warnings.simplefilter("ignore", hidden)
        compat.torch_warnings_about_models.apply()  # set at import; pytest has put its own filters in their place
        yield
    torch.set_warn_always(False)
    assert not [f"{w.category.__name__}: {w.message} ({w.filename}:{w.lineno})" for w in caught]


def is_plain(result):
    """Whether every value is a Python float, so that it prints as ``0.1`` and not as ``np.float64(0.1)``."""
    return bool(result) and all(type(value) is float for value in result.values())


def checkpoint():
    (path,) = Path("saved").glob("*.pth")
    return str(path)


def prepared(model, **settings):
    """What run_recbole does up to the training."""
    config = Config(model=model, dataset="ml-100k", config_dict={**SETTINGS, **settings})
    init_seed(config["seed"], config["reproducibility"])
    init_logger(config)
    dataset = create_dataset(config)
    train_data, valid_data, test_data = data_preparation(config, dataset)
    init_seed(config["seed"], config["reproducibility"])
    network = get_model(model)(config, train_data.dataset).to(config["device"])
    return get_trainer(config["MODEL_TYPE"], model)(config, network), train_data, valid_data, test_data


@pytest.mark.parametrize("model", list(MODELS))
def test_model_trains_and_its_checkpoint_gives_the_test_result(model):
    with nothing_shown():
        result = run_recbole(model=model, dataset="ml-100k", config_dict={**SETTINGS, **MODELS[model]})
        config, network, _, _, _, test_data = load_data_and_model(checkpoint())
        trainer = get_trainer(config["MODEL_TYPE"], model)(config, network)
        again = trainer.evaluate(test_data, load_best_model=False)
    assert is_plain(result["test_result"]) and is_plain(result["best_valid_result"])
    assert type(result["best_valid_score"]) is float
    assert "float64" not in str(result)
    assert all(0 <= value <= 1 for name, value in result["test_result"].items() if name != "logloss")
    assert again == result["test_result"]


def test_every_metric():
    ranking = [name for name, metric in metrics_dict.items() if "RANKING" in str(metric.metric_type)]
    value = [name for name in metrics_dict if name not in ranking]
    assert {"gauc", "map", "itemcoverage", "giniindex", "tailpercentage"} <= set(ranking)
    assert set(value) == {"auc", "logloss", "mae", "rmse"}
    with nothing_shown():
        full = run_recbole(model="BPR", dataset="ml-100k", config_dict={**SETTINGS, "metrics": ranking})
        features = {**FEATURES, "metrics": value}
        labeled = run_recbole(model="FM", dataset="ml-100k", config_dict={**SETTINGS, **features})
    assert is_plain(full["test_result"]) and is_plain(labeled["test_result"])
    assert {name.split("@")[0] for name in full["test_result"]} == set(ranking)
    assert set(labeled["test_result"]) == set(value)


def test_checkpoint_in_a_fresh_process():
    result = run_recbole(model="GRU4Rec", dataset="ml-100k", config_dict={**SETTINGS, **CROSS_ENTROPY})
    code = (
        "import json, sys\n"
        "import recbole_llmd\n"
        "from recbole.quick_start import load_data_and_model\n"
        "from recbole.trainer import Trainer\n"
        "path, sys.argv = sys.argv[1], sys.argv[:1]\n"
        "config, model, _, _, _, test_data = load_data_and_model(path)\n"
        "print(json.dumps(Trainer(config, model).evaluate(test_data, load_best_model=False)))\n"
    )
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code, checkpoint()], capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == result["test_result"]


def test_saved_dataset_and_dataloaders_are_read_again():
    settings = {**SETTINGS, "save_dataset": True, "save_dataloaders": True}
    with nothing_shown():
        first = run_recbole(model="BPR", dataset="ml-100k", config_dict=settings, saved=False)
        written = {path.name: path.stat().st_mtime_ns for path in Path("saved").iterdir()}
        assert set(written) == {"ml-100k-Dataset.pth", "ml-100k-for-BPR-dataloader.pth"}
        second = run_recbole(model="BPR", dataset="ml-100k", config_dict=settings, saved=False)
    assert {path.name: path.stat().st_mtime_ns for path in Path("saved").iterdir()} == written
    assert is_plain(first["test_result"]) and is_plain(second["test_result"])


def test_training_goes_on_from_a_checkpoint():
    with nothing_shown():
        trainer, train_data, valid_data, test_data = prepared("SASRec", **CROSS_ENTROPY)
        trainer.fit(train_data, valid_data)
        resumed, train_data, valid_data, test_data = prepared("SASRec", **CROSS_ENTROPY, epochs=2)
        resumed.resume_checkpoint(trainer.saved_model_file)
        weights = trainer.model.state_dict()
        assert all(torch.equal(value, weights[name]) for name, value in resumed.model.state_dict().items())
        assert resumed.start_epoch == 1
        resumed.fit(train_data, valid_data)
        assert is_plain(resumed.evaluate(test_data))
    assert list(resumed.train_loss_dict) == [1]


def test_objective_function_needs_no_ray(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)  # as if no ray were installed
    with nothing_shown():
        result = objective_function({**SETTINGS, "model": "BPR", "dataset": "ml-100k"}, saved=False)
    assert is_plain(result["test_result"]) and is_plain(result["best_valid_result"])


def test_case_study():
    with nothing_shown():
        trainer, _, _, test_data = prepared("BPR")
        users = test_data.dataset.token2id("user_id", list(test_data.dataset.field2id_token["user_id"][1:4]))
        scores, items = full_sort_topk(users, trainer.model, test_data, k=5)
    assert scores.shape == items.shape == (3, 5) and torch.isfinite(scores).all()
    for user, row in zip(users, items):
        assert not set(row.tolist()) & set(test_data.uid2history_item[user].tolist())
    assert isinstance(test_data.dataset.id2token("item_id", items), np.ndarray)
