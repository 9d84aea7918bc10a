"""Priorities of the settings, which models there are, and what of RecBole's Config is mended."""

import shutil
import sys

import pytest
from recbole.config import Config

from recbole_llmd import config as package_config
from recbole_llmd.config import PROPERTIES, load_properties
from recbole_llmd.errors import SettingsError
from tests.helpers.configs import MODELS, config_of, refusal

NO_NEGATIVES = {"distribution": "none", "sample_num": "none", "alpha": "none", "dynamic": False, "candidate_num": 0}


# --- priority ---------------------------------------------------------------------------------------------------------


def test_priority(tmp_path, monkeypatch):
    """RecBole < the CRM's property file < ours < config file < config_dict < command line: a key for each step."""
    properties = tmp_path / "properties"
    shutil.copytree(PROPERTIES, properties)
    with open(properties / "model" / "LLMD4Rec.yaml", "a", encoding="utf-8") as file:
        file.write("\nhidden_dropout_prob: 0.125\n")  # no real key stands in a CRM's file and in ours
    monkeypatch.setattr(package_config, "PROPERTIES", properties)
    path = tmp_path / "given.yaml"
    path.write_text("llm_layers: 11\nllm_lora_r: 11\nllm_item_tokens: 11\n")
    monkeypatch.setattr(sys, "argv", ["run", "--llm_item_tokens=33"])
    config = config_of("LLMD4Rec", [str(path)], crm_model="BERT4Rec", llm_lora_r=22, llm_item_tokens=22)
    assert config["eval_batch_size"] == 4096  # RecBole's own, which nobody overrides
    assert config["transform"] == "mask_itemseq"  # RecBole: None, BERT4Rec's file: mask_itemseq
    assert config["hidden_dropout_prob"] == 0.125  # BERT4Rec's file: 0.2, ours: 0.125
    assert config["epochs"] == load_properties("LLMD4Rec")["epochs"] != 300  # RecBole: 300
    assert config["llm_layers"] == 11  # ours: 2, config file: 11
    assert config["llm_lora_r"] == 22  # config file: 11, config_dict: 22
    assert config["llm_item_tokens"] == 33  # config_dict: 22, command line: 33


def test_llmrec_over_recbole():
    config = config_of("LLMRec", learning_rate=0.5)
    assert (config["epochs"], config["learner"], config["learning_rate"]) == (12, "adamw", 0.5)
    assert config["eval_args"]["split"] == {"LS": "valid_and_test"}  # RecBole's for sequential models


@pytest.mark.parametrize("how", ["config_dict", "file", "command line"])
def test_the_crm_brings_its_own_defaults(how, tmp_path, monkeypatch):
    """However the CRM is chosen."""
    path = tmp_path / "given.yaml"
    path.write_text("crm_model: GRU4Rec\n" if how == "file" else "seed: 1\n")
    if how == "command line":
        monkeypatch.setattr(sys, "argv", ["run", "--crm_model=GRU4Rec"])
    config = config_of("LLMD4Rec", [str(path)], **({"crm_model": "GRU4Rec"} if how == "config_dict" else {}))
    assert [config[key] for key in ("embedding_size", "hidden_size", "num_layers", "dropout_prob")] == [64, 128, 1, 0.3]
    assert config["n_heads"] is None  # nothing of SASRec, the default


def test_the_crms_defaults_can_be_overridden():
    config = config_of("LLMD4Rec", crm_model="GRU4Rec", hidden_size=32)
    assert [config[key] for key in ("embedding_size", "hidden_size", "dropout_prob")] == [64, 32, 0.3]


def test_the_default_crm_is_sasrec():
    config = config_of("LLMD4Rec")
    assert [config[key] for key in ("crm_model", "n_heads", "hidden_size", "inner_size")] == ["SASRec", 2, 64, 256]


def test_defaults_are_fresh_in_every_config():
    """Values that RecBole changes in place must not reach the next run."""
    first = config_of("LLMD4Rec")
    first["load_col"]["inter"].append("spoilt")
    first["llm_clip_grad_norm"]["max_norm"] = 99
    second = config_of("LLMD4Rec")
    assert second["load_col"]["inter"] == ["user_id", "item_id", "timestamp"]
    assert second["llm_clip_grad_norm"] == {"max_norm": 1.0}


# --- which models -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "given, words",
    [
        ("SASRek", ["there is no model of that name", "nearest name is 'SASRec'"]),
        ("sasrec", ["there is no model of that name", "nearest name is 'SASRec'"]),
        ("gru4rec", ["there is no model of that name", "nearest name is 'GRU4Rec'"]),
        ("a.b", ["there is no model of that name"]),
        ("BPR", ["must be a sequential model", "BPR is general", "SASRec"]),
        ("DeepFM", ["must be a sequential model", "DeepFM is context"]),
        ("DIEN", ["needs RecBole's DIENDataset", "SASRec"]),
        ("GRU4RecKG", ["needs RecBole's GRU4RecKGDataset", "SASRec"]),
        ("S3Rec", ["needs RecBole's S3RecTrainer", "SASRec"]),
        ("LLMRec", ["one of RecBole's sequential models"]),
        ("LLMD4Rec", ["one of RecBole's sequential models"]),
        (None, ["one of RecBole's sequential models"]),
        (["SASRec"], ["one of RecBole's sequential models"]),
    ],
)
def test_a_crm_that_cannot_be_one(given, words):
    message = refusal("LLMD4Rec", crm_model=given)
    assert message.startswith(f"crm_model = {given!r}: ")
    for word in words:
        assert word in message


@pytest.mark.parametrize(
    "given, nearest",
    [
        ("LLMD4Rek", "LLMD4Rec"),
        ("llmrec", "LLMRec"),
        ("LLMRecs", "LLMRec"),
        ("SASRek", "SASRec"),
        ("LigthGCN", "LightGCN"),
    ],
)
@pytest.mark.parametrize("how", ["argument", "setting"])
def test_an_unknown_model_names_the_nearest(given, nearest, how):
    with pytest.raises(SettingsError) as caught:
        if how == "argument":
            config_of(given)
        else:
            Config(config_dict={"model": given, "dataset": "toy"})
    assert str(caught.value) == f"model = {given!r}: there is no model of that name. The nearest name is {nearest!r}."


def test_a_known_model_whose_library_is_missing_is_no_unknown_model(monkeypatch):
    """RecBole's boosted trees need lightgbm and xgboost, which it does not install: their absence is the message."""
    monkeypatch.setitem(sys.modules, "lightgbm", None)
    for name in [name for name in sys.modules if name.startswith("recbole.model.exlib_recommender")]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(ImportError, match="lightgbm"):
        config_of("lightgbm")
    with pytest.raises(SettingsError, match="there is no model of that name"):
        config_of("lightgbn")


@pytest.mark.parametrize("given, missing", [({"dataset": "toy"}, "model"), ({"model": "LLMRec"}, "dataset")])
def test_model_and_dataset_must_be_given(given, missing):
    with pytest.raises(SettingsError, match=f"^{missing} need to be specified"):
        Config(config_dict=given)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("nproc", [1, 2])
def test_nproc_is_refused(model, nproc):
    assert refusal(model, nproc=nproc).startswith(f"nproc = {nproc}: {model} trains in one process.")


# --- negative samples and columns -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "model, settings",
    [
        ("SASRec", {}),
        ("GRU4Rec", {}),
        ("LLMRec", {}),
        ("LLMD4Rec", {}),
        ("LLMD4Rec", {"crm_model": "GRU4Rec"}),
        ("SASRec", {"train_neg_sample_args": None}),
        ("LLMD4Rec", {"train_neg_sample_args": None}),
    ],
)
def test_cross_entropy_takes_no_negatives(model, settings):
    assert config_of(model, **settings)["train_neg_sample_args"] == NO_NEGATIVES


@pytest.mark.parametrize(
    "model, settings",
    [
        ("SASRec", {"loss_type": "BPR"}),
        ("LLMD4Rec", {"loss_type": "BPR"}),
        ("LLMD4Rec", {"loss_type": "BPR", "crm_model": "GRU4Rec"}),
        ("LLMD4Rec", {"crm_model": "TransRec"}),
        ("BPR", {}),
    ],
)
def test_bpr_keeps_recboles_uniform_negatives(model, settings):
    """TransRec and BPR say so by their class and have no loss_type."""
    config = config_of(model, **settings)
    assert config["train_neg_sample_args"] == {
        "distribution": "uniform",
        "sample_num": 1,
        "alpha": 1.0,
        "dynamic": False,
        "candidate_num": 0,
    }
    assert config["MODEL_INPUT_TYPE"].name == "PAIRWISE"


@pytest.mark.parametrize("model", ["SASRec", "LLMD4Rec"])
def test_negatives_that_the_user_gave_are_the_users(model):
    given = {"distribution": "popularity", "sample_num": 3}
    message = refusal(model, ValueError, train_neg_sample_args=given)
    assert "train_neg_sample_args" in message and "should be None when the loss_type is CE" in message  # RecBole's own
    config = config_of(model, train_neg_sample_args=given, loss_type="BPR")
    assert config["train_neg_sample_args"]["distribution"] == "popularity"
    assert config["train_neg_sample_args"]["sample_num"] == 3


@pytest.mark.parametrize("model", [*MODELS, "SASRec"])
def test_timestamps_are_loaded_from_an_unknown_dataset(model):
    """A sequence needs them; RecBole's default, users and items alone, stays where no sequence is made."""
    assert config_of(model)["load_col"] == {"inter": ["user_id", "item_id", "timestamp"]}
    assert config_of("BPR")["load_col"] == {"inter": ["user_id", "item_id"]}


@pytest.mark.parametrize("model", MODELS)
def test_columns_that_are_known_stay(model):
    """RecBole's own list for ml-100k has them, and the user's list is the user's."""
    columns = config_of(model, dataset="ml-100k")["load_col"]["inter"]
    assert columns == ["user_id", "item_id", "rating", "timestamp"]
    given = {"inter": ["user_id", "item_id"]}
    assert config_of(model, load_col=given)["load_col"] == given
    assert config_of(model, TIME_FIELD="timestamp", load_col=None)["load_col"] is None
