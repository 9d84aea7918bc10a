"""Defaults, rules and messages of the settings, through RecBole's own Config."""

import sys

import pytest
import yaml

from recbole_llmd.config import PROPERTIES, load_properties
from recbole_llmd.errors import SettingsError
from recbole_llmd.registry import rules_of, spec
from recbole_llmd.setting_checks import check
from recbole_llmd.settings import DISTILLATION_RULES, LLM_RULES, TRAINING_KEYS
from tests.helpers.configs import MODELS, config_of, refusal
from tests.helpers.ids import stable_id


def final_values(model):
    return config_of(model).final_config_dict


def yaml_keys(model):
    with open(PROPERTIES / "model" / f"{model}.yaml", encoding="utf-8") as file:
        return yaml.safe_load(file).keys()


# --- property files and rules -----------------------------------------------------------------------------------------


def test_the_rules_know_the_keys_of_the_property_files():
    ours = {key for key in yaml_keys("LLMRec") if spec("LLMRec").is_setting(key)}
    assert ours == set(LLM_RULES)
    assert set(TRAINING_KEYS) <= set(yaml_keys("LLMRec"))
    distillation = {f"llm_{key}" for key in TRAINING_KEYS} | {
        key for key in yaml_keys("LLMD4Rec") if spec("LLMD4Rec").is_setting(key)
    }
    assert distillation == set(DISTILLATION_RULES)
    assert set(rules_of("LLMD4Rec")) == ours | distillation


@pytest.mark.parametrize("model", MODELS)
def test_the_defaults_pass_and_are_complete(model):
    values = final_values(model)
    check(model, values, values)  # every key as if the user had given it
    assert set(rules_of(model)) <= set(values)


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
    ("llm_text_model", "", "a non-empty string"),
    ("llm_text_batch_tokens", 0, "a whole number of at least 1"),
    ("llm_backbone", "frozen", "one of 'pretrained', 'random', 'none'"),
    ("llm_cache_dir", None, "a non-empty string"),
    ("item_text_fields", [], "None or a non-empty list of names"),
    ("item_text_fields", "title", "None or a non-empty list of names"),
    ("item_text_template", " ", "None or a non-empty string"),
    ("item_text_shuffle", "yes", "True or False"),
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
    ("crm_text_start", -1, "a number of at least 0"),
    ("crm_leave_out_text_only", "yes", "True or False"),
    ("distill_rounds", -1, "a whole number of at least 0"),
    ("distill_direction", "both", "one of 'mutual', 'llm_to_crm', 'crm_to_llm', 'none'"),
    ("distill_temperature_llm_to_crm", 0, "a number above 0"),
    ("distill_temperature_crm_to_llm", -1, "a number above 0"),
    ("distill_first", "SASRec", "one of 'CRM', 'LLM'"),
    ("distill_refresh_vectors", "once", "True or False"),
    ("distill_rescale_weights", 0, "True or False"),
    ("distill_evidence", 1, "True or False"),
    ("distill_synthetic", -0.5, "a number of at least 0"),
    ("distill_synthetic_epochs", 0, "a whole number of at least 1"),
    ("crm_ema_decay", 1.0, "a number of at least 0 and below 1"),
    ("llm_item_vectors", "crm_once", "one of 'own', 'crm', 'both'"),
    ("distill_alpha_llm_to_crm", -1, "a number of at least 0"),
    ("distill_alpha_crm_to_llm", "1x", "a number of at least 0"),
    ("distill_weighting", "best", "one of 'adaptive', 'confidence', 'rank', 'target_rank', 'uniform'"),
    ("distill_topk", "all", "'auto' or a whole number of at least 0"),
    ("distill_topk", -1, "'auto' or a whole number of at least 0"),
    ("resume", 1, "True or False"),
]


def test_every_rule_has_a_bad_value_here():
    """crm_model has messages of its own, below."""
    assert {key for key, *_ in BAD} == set(rules_of("LLMD4Rec")) - {"crm_model"}


@pytest.mark.parametrize("key, value, rule", BAD)
def test_a_bad_value_is_refused(key, value, rule):
    """The message has the key, the value and the rule."""
    for model in MODELS:
        if key in rules_of(model):
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
    ("distill_temperature_llm_to_crm", 0.1),
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
        ("LLMD4Rec", "distill_temprature_llm_to_crm", "distill_temperature_llm_to_crm"),
        ("LLMD4Rec", "crm_modle", "crm_model"),
        ("LLMD4Rec", "llm_learning_rat", "llm_learning_rate"),
        ("LLMRec", "llm_layer", "llm_layers"),
        ("LLMRec", "item_text_field", "item_text_fields"),
    ],
)
def test_an_unknown_key_names_the_nearest(model, key, nearest):
    assert refusal(model, **{key: 1}) == f"{key} is not a setting of {model}. The nearest valid name is {nearest}."


@pytest.mark.parametrize(
    "key", ["distill_rounds", "crm_model", "distill_topk", "llm_warmup_epochs", "llm_item_vectors"]
)
def test_a_key_of_llmd4rec_with_llmrec(key):
    message = refusal("LLMRec", **{key: 1})
    assert message.startswith(f"{key} is a setting of LLMD4Rec, not of LLMRec.") and "--model=LLMD4Rec" in message


@pytest.mark.parametrize("key", TRAINING_KEYS)
def test_a_training_key_with_llmrec_names_recboles(key):
    message = refusal("LLMRec", **{f"llm_{key}": 1})
    assert message == f"llm_{key} is a setting of LLMD4Rec; for LLMRec alone set RecBole's {key}."


# Each value is right, but they do not go together.
CRM_FIRST = "Set crm_warmup_epochs above 0, or distill_first: CRM."
NOT_TOGETHER = [
    (
        {"distill_first": "LLM"},
        ["crm_warmup_epochs = 0", "in its round 1, LLM phase", "from the CRM before", CRM_FIRST],
    ),
    ({"distill_first": "LLM", "distill_direction": "crm_to_llm"}, ["from the CRM before", CRM_FIRST]),
    ({"epochs": 0}, ["crm_warmup_epochs = 0", "in its round 1, LLM phase", "trained. Set crm_warmup_epochs above 0."]),
    (
        {"llm_item_vectors": "crm"},
        ["in its warm-up, LLM phase", "llm_item_vectors = 'crm'", "or llm_warmup_epochs: 0 and distill_first: CRM."],
    ),
    (
        {"llm_item_vectors": "both", "llm_warmup_epochs": 0, "distill_first": "LLM", "distill_direction": "none"},
        ["in its round 1, LLM phase", "llm_item_vectors = 'both'", CRM_FIRST],
    ),
    (
        {"llm_item_vectors": "crm", "crm_warmup_epochs": 5, "llm_input": "prompt"},
        ["llm_item_vectors = 'crm'", "llm_input = 'prompt'", "Set llm_input: item, or llm_item_vectors: own."],
    ),
]


@pytest.mark.parametrize("settings, parts", NOT_TOGETHER, ids=stable_id)
def test_values_that_do_not_go_together_are_refused(settings, parts):
    message = refusal("LLMD4Rec", **settings)
    for part in parts:
        assert part in message


@pytest.mark.parametrize(
    "settings",
    [
        {"distill_first": "LLM", "crm_warmup_epochs": 1},
        {"distill_first": "LLM", "distill_direction": "llm_to_crm"},
        {"distill_first": "LLM", "distill_direction": "none"},
        {"distill_first": "LLM", "distill_alpha_crm_to_llm": 0},
        {"distill_first": "LLM", "distill_rounds": 0},
        {"llm_item_vectors": "crm", "llm_warmup_epochs": 0},
        {"llm_item_vectors": "both", "crm_warmup_epochs": 1, "distill_first": "LLM"},
        {"llm_warmup_epochs": 0},
    ],
    ids=stable_id,
)
def test_values_that_go_together_are_taken(settings):
    config_of("LLMD4Rec", **settings)


def test_other_models_do_not_mind_our_keys():
    """One config file may serve LLMD4Rec and its CRM alone."""
    config = config_of("SASRec", distill_rounds=-1, llm_whatever=2)
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
