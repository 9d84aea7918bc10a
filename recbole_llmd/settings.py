"""The settings of this package: one rule per key, checked when a RecBole Config is built.

The defaults live in ``properties/model/*.yaml`` alone; this module says what a value may be.
"""

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Integral, Real

from recbole_llmd.errors import SettingsError

PREFIXES = ("llm_", "crm_", "distill_", "item_text_", "unlearn_")

TRAINING_KEYS = (
    "epochs",
    "train_batch_size",
    "learner",
    "learning_rate",
    "weight_decay",
    "stopping_step",
    "eval_step",
    "clip_grad_norm",
)  # RecBole's keys that the two sides of LLMD4Rec have each for itself: the LLM's with llm_ in front


@dataclass(frozen=True)
class Rule:
    """What a value may be: the test, and the sentence that an error message shows."""

    test: Callable[[object], bool]
    text: str


def _integer(low):
    return Rule(
        lambda v: isinstance(v, Integral) and not isinstance(v, bool) and v >= low, f"a whole number of at least {low}"
    )


def _number(low, high=float("inf"), above=False):
    text = f"a number {'above' if above else 'of at least'} {low}" + (
        f" and below {high}" if high < float("inf") else ""
    )
    return Rule(
        lambda v: isinstance(v, Real) and not isinstance(v, bool) and (v > low if above else v >= low) and v < high,
        text,
    )


def _choice(*values):
    return Rule(lambda v: v in values, "one of " + ", ".join(map(repr, values)))


def _either(word, rule):
    return Rule(lambda v: v == word or rule.test(v), f"{word!r} or {rule.text}")


def _optional(rule):
    return Rule(lambda v: v is None or rule.test(v), f"None or {rule.text}")


def _one_or_more(rule):
    return Rule(
        lambda v: bool(v) and all(map(rule.test, v)) if isinstance(v, (list, tuple)) else rule.test(v),
        f"{rule.text}, or a non-empty list of such",
    )


_name = Rule(lambda v: isinstance(v, str) and bool(v.strip()), "a non-empty string")
_names = Rule(
    lambda v: isinstance(v, (list, tuple)) and bool(v) and all(isinstance(x, str) for x in v),
    "a non-empty list of names",
)
_name_or_names = Rule(lambda v: _name.test(v) or _names.test(v), "a name or a non-empty list of names")
_dict = Rule(lambda v: isinstance(v, dict), "a dict")
_boolean = Rule(lambda v: isinstance(v, bool), "True or False")
_share = Rule(lambda v: _number(0, above=True).test(v) and v <= 1, "a share above 0 and at most 1")
_field_value = Rule(
    lambda v: (
        isinstance(v, dict) and len(v) == 1 and all(isinstance(x, (str, Real)) for pair in v.items() for x in pair)
    ),
    "a dict of one field of the .item file and its value, such as {'class': 'Horror'}",
)

LLM_RULES = {
    "llm_model": _name,
    "llm_layers": _integer(0),
    "llm_dtype": _choice("auto", "float32", "bfloat16", "float16"),
    "llm_input": _choice("item", "prompt"),
    "llm_item_tokens": _integer(1),
    "llm_embedding_size": _integer(1),
    "llm_dropout": _number(0, 1),
    "llm_match_rank": _integer(0),
    "llm_ema_decay": _number(0, 1),
    "llm_lora_r": _integer(1),
    "llm_lora_alpha": _number(0, above=True),
    "llm_lora_dropout": _number(0, 1),
    "llm_lora_targets": _name_or_names,
    "llm_window_overlap": _number(0, 1),
    "llm_text_batch_size": _integer(1),
    "llm_cache_dir": _name,
    "item_text_fields": _optional(_names),
    "item_text_template": _optional(_name),
}

DISTILLATION_RULES = {
    "crm_model": _name,
    "crm_warmup_epochs": _integer(0),
    "crm_window_overlap": _number(0, 1),
    "llm_epochs": _integer(0),
    "llm_warmup_epochs": _integer(0),
    "llm_train_batch_size": _integer(1),
    "llm_learner": _name,
    "llm_learning_rate": _number(0, above=True),
    "llm_weight_decay": _number(0),
    "llm_stopping_step": _integer(0),
    "llm_eval_step": _integer(1),
    "llm_clip_grad_norm": _optional(_dict),
    "distill_rounds": _integer(0),
    "distill_restart": _boolean,
    "distill_text_start": _number(0),
    "distill_direction": _choice("mutual", "llm_to_crm", "crm_to_llm", "none"),
    "distill_temperature": _number(0, above=True),
    "distill_alpha_llm_to_crm": _number(0),
    "distill_alpha_crm_to_llm": _number(0),
    "distill_weighting": _choice("adaptive", "confidence", "rank", "uniform"),
    "distill_topk": _either("auto", _integer(0)),
    "resume": _boolean,
}

UNLEARNING_RULES = {
    "mapping_model": _choice("EASE", "ItemKNN", "SLIMElastic", "ADMMSLIM"),
    "unlearn_scenario": _choice("users", "interactions", "sensitive", "spam", "noise", "file"),
    "unlearn_group": _choice("core", "edge", "random"),
    "unlearn_ratio": _one_or_more(_share),
    "unlearn_seeds": _one_or_more(_integer(0)),
    "unlearn_batch": _integer(0),
    "unlearn_checkpoints": _optional(_one_or_more(_share)),
    "unlearn_sensitive": _optional(_field_value),
    "unlearn_spam_targets": _integer(1),
    "unlearn_spam_fillers": _integer(0),
    "unlearn_forget_file": _optional(_name),
    "unlearn_relearn": _boolean,
    "unlearn_shards": _integer(1),
    "unlearn_drift_requests": _integer(0),
    "unlearn_dir": _name,
}
NEEDS = {"sensitive": "unlearn_sensitive", "file": "unlearn_forget_file"}  # by scenario

RULES = {
    "LLMRec": {**LLM_RULES, "loss_type": _choice("CE")},
    "LLMD4Rec": {**LLM_RULES, **DISTILLATION_RULES},
    "IMCorrect": UNLEARNING_RULES,
}
WITHOUT_PREFIX = ("resume", "mapping_model")  # keys of ours that no prefix tells from RecBole's


def check(model, values, given):
    """Refuse unknown keys and values out of range.

    Args:
        model (str): ``LLMRec``, ``LLMD4Rec`` or ``IMCorrect``.
        values (dict): every setting of the run, defaults included.
        given (iterable of str): the keys that the user gave (file, config_dict, command line).

    Raises:
        SettingsError: naming the key, the value, the rule and, for an unknown key, the nearest valid name; or a key
            that the scenario needs and that is not set.
    """
    rules = RULES[model]
    for key in given:
        if key not in rules and (key.startswith(PREFIXES) or key in WITHOUT_PREFIX):
            raise SettingsError(_unknown(key, model))
    for key, rule in rules.items():
        if not rule.test(values.get(key)):
            raise SettingsError(f"{key} = {values.get(key)!r}: must be {rule.text}.")
    needed = NEEDS.get(values["unlearn_scenario"]) if model == "IMCorrect" else None
    if needed and values[needed] is None:
        wanted = rules[needed].text.removeprefix("None or ")
        raise SettingsError(f"{needed} = None: unlearn_scenario = {values['unlearn_scenario']!r} needs {wanted}.")


def _unknown(key, model):
    plain = key.removeprefix("llm_")
    if model == "LLMRec" and plain in TRAINING_KEYS:
        return f"{key} is a setting of LLMD4Rec; for LLMRec alone set RecBole's {plain}."
    others = [name for name, rules in RULES.items() if key in rules]
    if others:
        return f"{key} is a setting of {others[0]}, not of {model}. Remove it, or run --model={others[0]}."
    nearest = difflib.get_close_matches(key, RULES[model], n=1, cutoff=0)
    return f"{key} is not a setting of {model}. The nearest valid name is {nearest[0]}."
