"""The rules of unlearning's settings and the defaults in its property file."""

import pytest

from recbole_llmd.config import load_properties
from recbole_llmd.errors import SettingsError
from recbole_llmd.registry import is_our_setting, mapping_names, rules_of, specs
from recbole_llmd.setting_checks import check
from recbole_llmd.unlearning.evaluation.forget_sets import BUILDERS


def refusal(model="IMCorrect", **settings):
    with pytest.raises(SettingsError) as caught:
        check(model, {**load_properties(model), **settings}, settings)
    return str(caught.value)


BAD = [
    (
        "mapping_model",
        "BPR",
        "one of 'EASE', 'ItemKNN', 'SLIMElastic', 'ADMMSLIM', 'AsymKNN', 'DualEASE', 'SparseEASE', 'NCEPLRec'",
    ),
    ("unlearn_scenario", "items", "one of 'users', 'interactions', 'sensitive', 'spam', 'noise', 'file'"),
    ("unlearn_group", "all", "one of 'core', 'edge', 'random'"),
    ("unlearn_ratio", [], "a share above 0 and at most 1, or a non-empty list of such"),
    ("unlearn_ratio", 0, "a share above 0 and at most 1, or a non-empty list of such"),
    ("unlearn_ratio", [0.5, 1.01], "a share above 0 and at most 1, or a non-empty list of such"),
    ("unlearn_ratio", "5%", "a share above 0 and at most 1, or a non-empty list of such"),
    ("unlearn_ratio", [float("nan")], "a share above 0 and at most 1, or a non-empty list of such"),
    ("unlearn_ratio", True, "a share above 0 and at most 1, or a non-empty list of such"),
    ("unlearn_seeds", [-1], "a whole number of at least 0, or a non-empty list of such"),
    ("unlearn_seeds", [2, 0.5], "a whole number of at least 0, or a non-empty list of such"),
    ("unlearn_seeds", None, "a whole number of at least 0, or a non-empty list of such"),
    ("unlearn_batch", -1, "a whole number of at least 0"),
    ("unlearn_checkpoints", [], "None or a share above 0 and at most 1, or a non-empty list of such"),
    ("unlearn_checkpoints", [0, 1], "None or a share above 0 and at most 1, or a non-empty list of such"),
    ("unlearn_sensitive", "{class: Horror}", "None or a dict of one field"),
    ("unlearn_sensitive", {}, "None or a dict of one field"),
    ("unlearn_sensitive", {"class": ["Horror"]}, "None or a dict of one field"),
    ("unlearn_sensitive", {"class": "Horror", "year": 1990}, "None or a dict of one field"),
    ("unlearn_spam_targets", 0, "a whole number of at least 1"),
    ("unlearn_spam_fillers", -1, "a whole number of at least 0"),
    ("unlearn_forget_file", "", "None or a non-empty string"),
    ("unlearn_relearn", 1, "True or False"),
    ("unlearn_shards", 0, "a whole number of at least 1"),
    ("unlearn_shadow_models", 2, "0 or a whole number of at least 4"),
    ("unlearn_drift_requests", 1.5, "a whole number of at least 0"),
    ("unlearn_dir", None, "a non-empty string"),
]


def test_every_rule_of_unlearning_has_a_bad_value_here():
    assert {key for key, *_ in BAD} == set(rules_of("IMCorrect"))


@pytest.mark.parametrize("key, value, rule", BAD)
def test_a_bad_value_of_unlearning_is_refused(key, value, rule):
    assert refusal(**{key: value}).startswith(f"{key} = {value!r}: must be {rule}")


@pytest.mark.parametrize(
    "key, value",
    [
        ("unlearn_ratio", 1e-6),
        ("unlearn_ratio", [1e-6, 1]),
        ("unlearn_ratio", (0.05,)),
        ("unlearn_seeds", 0),
        ("unlearn_batch", 0),
        ("unlearn_checkpoints", 0.5),
        ("unlearn_checkpoints", None),
        ("unlearn_sensitive", {"class": "Horror"}),
        ("unlearn_sensitive", {"year": 1990}),
        ("unlearn_spam_fillers", 0),
        ("unlearn_shadow_models", 0),
        ("unlearn_shadow_models", 4),
        ("unlearn_drift_requests", 1000),
    ],
)
def test_a_value_of_unlearning_at_the_edge_is_taken(key, value):
    check("IMCorrect", {**load_properties("IMCorrect"), key: value}, [key])


def test_the_defaults_of_unlearning_pass_and_are_complete():
    values = load_properties("IMCorrect")
    check("IMCorrect", values, values)
    assert set(rules_of("IMCorrect")) == {key for key in values if key.startswith("unlearn_") or key == "mapping_model"}


@pytest.mark.parametrize(
    "scenario, key, needed",
    [
        ("sensitive", "unlearn_sensitive", "a dict of one field of the .item file and its value"),
        ("file", "unlearn_forget_file", "a non-empty string"),
    ],
)
def test_a_scenario_says_what_it_needs(scenario, key, needed):
    message = refusal(unlearn_scenario=scenario)
    assert message.startswith(f"{key} = None: unlearn_scenario = {scenario!r} needs {needed}")
    given = {"class": "Horror"} if scenario == "sensitive" else "tiny.forget"
    for chosen in (scenario, "users"):  # where it does not apply, it does nothing
        check("IMCorrect", {**load_properties("IMCorrect"), "unlearn_scenario": chosen, key: given}, [key])


@pytest.mark.parametrize(
    "key, message",
    [
        ("unlearn_ratoi", "unlearn_ratoi is not a setting of IMCorrect. The nearest valid name is unlearn_ratio."),
        ("llm_layers", "llm_layers is a setting of LLMRec, not of IMCorrect."),
        ("distill_rounds", "distill_rounds is a setting of LLMD4Rec, not of IMCorrect."),
        ("llm_epochs", "llm_epochs is a setting of LLMD4Rec, not of IMCorrect."),
        ("resume", "resume is a setting of LLMD4Rec, not of IMCorrect."),
    ],
)
def test_keys_that_unlearning_does_not_have(key, message):
    assert refusal(**{key: 1}).startswith(message)


def test_the_rules_know_the_mapping_models_and_the_scenarios():
    for key, names in (("mapping_model", mapping_names()), ("unlearn_scenario", BUILDERS)):
        assert rules_of("IMCorrect")[key].text == "one of " + ", ".join(map(repr, names))


@pytest.mark.parametrize("model", ["LLMRec", "LLMD4Rec"])
@pytest.mark.parametrize("key", ["mapping_model", "unlearn_ratio"])
def test_a_key_of_unlearning_with_another_of_our_models(model, key):
    message = refusal(model, **{key: 1})
    assert message == f"{key} is a setting of IMCorrect, not of {model}. Remove it, or run --model=IMCorrect."


def test_every_key_is_known_to_be_ours():
    """By its prefix or by name; loss_type is RecBole's, limited by LLMRec."""
    keys = {key for spec in specs() for key in spec.rules} - {"loss_type"}
    prefixes = tuple(prefix for spec in specs() for prefix in spec.prefixes)
    assert {key for key in keys if not key.startswith(prefixes)} == {"resume", "mapping_model"}
    assert all(map(is_our_setting, keys)) and not is_our_setting("loss_type")
