"""Defaults, rules, messages and priorities of the settings, through RecBole's own Config."""

import shutil
import sys

import pytest
import yaml
from recbole.config import Config

from recbole_llmd import config as package_config
from recbole_llmd.config import PROPERTIES, load_properties
from recbole_llmd.settings import DISTILLATION_RULES, LLM_RULES, PREFIXES, RULES, TRAINING_KEYS, SettingsError, check

MODELS = ("LLMRec", "LLMD4Rec")
NO_NEGATIVES = {"distribution": "none", "sample_num": "none", "alpha": "none", "dynamic": False, "candidate_num": 0}


def config_of(model, files=None, dataset="toy", **settings):
    return Config(model=model, dataset=dataset, config_file_list=files, config_dict=settings)


def refusal(model, error=SettingsError, **settings):
    with pytest.raises(error) as caught:
        config_of(model, **settings)
    return str(caught.value)


def final_values(model):
    return config_of(model).final_config_dict


def yaml_keys(model):
    with open(PROPERTIES / "model" / f"{model}.yaml", encoding="utf-8") as file:
        return yaml.safe_load(file).keys()


# --- property files and rules -----------------------------------------------------------------------------------------


def test_the_rules_know_the_keys_of_the_property_files():
    ours = {key for key in yaml_keys("LLMRec") if key.startswith(PREFIXES)}
    assert ours == set(LLM_RULES)
    assert set(TRAINING_KEYS) <= set(yaml_keys("LLMRec"))
    distillation = {f"llm_{key}" for key in TRAINING_KEYS} | {
        key for key in yaml_keys("LLMD4Rec") if key.startswith(PREFIXES) or key == "resume"
    }
    assert distillation == set(DISTILLATION_RULES)
    assert set(RULES["LLMD4Rec"]) == ours | distillation


@pytest.mark.parametrize("model", MODELS)
def test_the_defaults_pass_and_are_complete(model):
    values = final_values(model)
    check(model, values, values)  # every key as if the user had given it
    assert set(RULES[model]) <= set(values)


def test_llm_side_defaults_come_from_llmrec():
    """LLMRec's own defaults, with llm_ in front, unless LLMD4Rec's file says otherwise."""
    values, llm, distill = final_values("LLMD4Rec"), load_properties("LLMRec"), load_properties("LLMD4Rec")
    for key in TRAINING_KEYS:
        assert values[f"llm_{key}"] == distill.get(f"llm_{key}", llm[key])
    for key in LLM_RULES:
        assert values[key] == distill.get(key, llm[key])
    assert (values["llm_train_batch_size"], values["train_batch_size"]) == (256, 2048)  # the LLM's and the CRM's


BAD = [
    ("llm_model", "", "a non-empty string"),
    ("llm_model", 7, "a non-empty string"),
    ("llm_layers", -1, "a whole number of at least 0"),
    ("llm_layers", 1.5, "a whole number of at least 0"),
    ("llm_layers", True, "a whole number of at least 0"),
    ("llm_dtype", "int8", "one of 'auto', 'float32', 'bfloat16', 'float16'"),
    ("llm_input", "text", "one of 'item', 'prompt'"),
    ("llm_item_tokens", 0, "a whole number of at least 1"),
    ("llm_embedding_size", 0, "a whole number of at least 1"),
    ("llm_dropout", 1, "a number of at least 0 and below 1"),
    ("llm_dropout", -0.1, "a number of at least 0 and below 1"),
    ("llm_dropout", "much", "a number of at least 0 and below 1"),
    ("llm_lora_r", 0, "a whole number of at least 1"),
    ("llm_lora_alpha", 0, "a number above 0"),
    ("llm_lora_dropout", 1.0, "a number of at least 0 and below 1"),
    ("llm_lora_targets", [], "a name or a non-empty list of names"),
    ("llm_lora_targets", [1], "a name or a non-empty list of names"),
    ("llm_window_overlap", 1.0, "a number of at least 0 and below 1"),
    ("llm_text_batch_size", 0, "a whole number of at least 1"),
    ("llm_cache_dir", None, "a non-empty string"),
    ("item_text_fields", [], "None or a non-empty list of names"),
    ("item_text_fields", "title", "None or a non-empty list of names"),
    ("item_text_template", " ", "None or a non-empty string"),
    ("crm_warmup_epochs", -1, "a whole number of at least 0"),
    ("crm_window_overlap", 1.0, "a number of at least 0 and below 1"),
    ("llm_epochs", -1, "a whole number of at least 0"),
    ("llm_warmup_epochs", 2.0, "a whole number of at least 0"),
    ("llm_train_batch_size", 0, "a whole number of at least 1"),
    ("llm_learner", "", "a non-empty string"),
    ("llm_learning_rate", 0, "a number above 0"),
    ("llm_learning_rate", float("nan"), "a number above 0"),
    ("llm_weight_decay", -0.5, "a number of at least 0"),
    ("llm_stopping_step", -1, "a whole number of at least 0"),
    ("llm_eval_step", 0, "a whole number of at least 1"),
    ("llm_clip_grad_norm", 1.0, "None or a dict"),
    ("llm_match_rank", -1, "a whole number of at least 0"),
    ("llm_ema_decay", 1.0, "a number of at least 0 and below 1"),
    ("distill_restart", "no", "True or False"),
    ("distill_text_start", -1, "a number of at least 0"),
    ("distill_rounds", -1, "a whole number of at least 0"),
    ("distill_direction", "both", "one of 'mutual', 'llm_to_crm', 'crm_to_llm', 'none'"),
    ("distill_temperature", 0, "a number above 0"),
    ("distill_alpha_llm_to_crm", -1, "a number of at least 0"),
    ("distill_alpha_crm_to_llm", "1x", "a number of at least 0"),
    ("distill_weighting", "best", "one of 'adaptive', 'confidence', 'rank', 'uniform'"),
    ("distill_topk", "all", "'auto' or a whole number of at least 0"),
    ("distill_topk", -1, "'auto' or a whole number of at least 0"),
    ("resume", 1, "True or False"),
]


def test_every_rule_has_a_bad_value_here():
    """crm_model has messages of its own, below."""
    assert {key for key, *_ in BAD} == set(RULES["LLMD4Rec"]) - {"crm_model"}


@pytest.mark.parametrize("key, value, rule", BAD)
def test_a_bad_value_is_refused(key, value, rule):
    """The message has the key, the value and the rule."""
    for model in MODELS:
        if key in RULES[model]:
            assert f"{key} = {value!r}: must be {rule}." in refusal(model, **{key: value})


GOOD = [
    ("llm_layers", 0),
    ("llm_dropout", 0),
    ("llm_dropout", 0.99),
    ("llm_lora_alpha", 0.5),
    ("llm_window_overlap", 0.99),
    ("llm_lora_targets", ["q_proj", "v_proj"]),
    ("llm_lora_targets", "all-linear"),
    ("item_text_fields", ["title"]),
    ("item_text_template", "{title}"),
    ("llm_epochs", 0),
    ("llm_weight_decay", 0),
    ("llm_clip_grad_norm", None),
    ("distill_restart", True),
    ("distill_rounds", 0),
    ("distill_alpha_llm_to_crm", 0),
    ("distill_topk", 0),
    ("distill_topk", 500),
    ("distill_topk", "auto"),
    ("distill_temperature", 0.1),
    ("resume", True),
    ("distill_direction", "none"),
]


@pytest.mark.parametrize("key, value", GOOD)
def test_a_value_at_the_edge_is_taken(key, value):
    config = config_of("LLMD4Rec", **{key: value})
    assert config[key] == value


# --- keys -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "model, key, nearest",
    [
        ("LLMD4Rec", "distill_temprature", "distill_temperature"),
        ("LLMD4Rec", "crm_modle", "crm_model"),
        ("LLMD4Rec", "llm_learning_rat", "llm_learning_rate"),
        ("LLMRec", "llm_layer", "llm_layers"),
        ("LLMRec", "item_text_field", "item_text_fields"),
    ],
)
def test_an_unknown_key_names_the_nearest(model, key, nearest):
    assert refusal(model, **{key: 1}) == f"{key} is not a setting of {model}. The nearest valid name is {nearest}."


@pytest.mark.parametrize("key", ["distill_rounds", "crm_model", "distill_topk", "llm_warmup_epochs"])
def test_a_key_of_llmd4rec_with_llmrec(key):
    message = refusal("LLMRec", **{key: 1})
    assert message.startswith(f"{key} is a setting of LLMD4Rec, not of LLMRec.") and "--model=LLMD4Rec" in message


@pytest.mark.parametrize("key", TRAINING_KEYS)
def test_a_training_key_with_llmrec_names_recboles(key):
    message = refusal("LLMRec", **{f"llm_{key}": 1})
    assert message == f"llm_{key} is a setting of LLMD4Rec; for LLMRec alone set RecBole's {key}."


def test_other_models_do_not_mind_our_keys():
    """One config file may serve LLMD4Rec and its CRM alone."""
    config = config_of("SASRec", distill_temperature=-1, llm_whatever=2)
    assert config["llm_whatever"] == 2
    assert config["crm_model"] is None  # and none of our defaults


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("where", ["file", "command line"])
def test_keys_are_checked_wherever_they_are_given(model, where, tmp_path, monkeypatch):
    path = tmp_path / "given.yaml"
    path.write_text("llm_lora_rank: 4\n" if where == "file" else "seed: 1\n")
    if where == "command line":
        monkeypatch.setattr(sys, "argv", ["run", "--llm_lora_rank=4"])
    with pytest.raises(SettingsError, match="llm_lora_rank is not a setting"):
        config_of(model, [str(path)])


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
