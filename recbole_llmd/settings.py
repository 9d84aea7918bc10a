"""The settings of this package: one rule per key, checked when a RecBole Config is built.

The defaults live in ``properties/model/*.yaml`` alone; this module says what a value may be. Which model has which
settings stands in :mod:`recbole_llmd.registry`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

TRAINING_KEYS = (
    "epochs",
    "train_batch_size",
    "learner",
    "learning_rate",
    "weight_decay",
    "stopping_step",
    "eval_step",
    "clip_grad_norm",
)  # RecBole's keys that the two sides of a distillation have each for itself: the LLM's with llm_ in front


@dataclass(frozen=True)
class Rule:
    """What a value may be: the test, and the words that an error message shows after "must be".

    >>> rule = integer(1)
    >>> rule.test(3), rule.test(0), rule.text
    (True, False, 'a whole number of at least 1')
    """

    test: Callable[[Any], bool]
    text: str


@dataclass(frozen=True)
class OneOf:
    """A rule like :class:`Rule`: one of the names that there are when it is asked.

    >>> known = ["EASE"]
    >>> rule = OneOf(lambda: tuple(known))
    >>> known.append("Mine")
    >>> rule.test("Mine"), rule.text
    (True, "one of 'EASE', 'Mine'")
    """

    names: Callable[[], tuple[str, ...]]

    def test(self, value: Any) -> bool:
        """Whether ``value`` is one of the names."""
        return value in self.names()

    @property
    def text(self) -> str:
        """The words after "must be"."""
        return "one of " + ", ".join(map(repr, self.names()))


def integer(low: int) -> Rule:
    """A whole number of at least ``low``."""
    return Rule(
        lambda v: isinstance(v, Integral) and not isinstance(v, bool) and int(v) >= low,
        f"a whole number of at least {low}",
    )


def number(low: float, high: float = float("inf"), above: bool = False) -> Rule:
    """A number from ``low`` (or above it) and below ``high``."""
    text = f"a number {'above' if above else 'of at least'} {low}" + (
        f" and below {high}" if high < float("inf") else ""
    )
    return Rule(
        lambda v: (
            isinstance(v, Real)
            and not isinstance(v, bool)
            and (float(v) > low if above else float(v) >= low)
            and float(v) < high
        ),
        text,
    )


def choice(*values: str) -> Rule:
    """One of these values."""
    return Rule(lambda v: v in values, "one of " + ", ".join(map(repr, values)))


def either(word: str | int, rule: Rule) -> Rule:
    """This word or number, or what ``rule`` allows."""
    return Rule(lambda v: v == word or rule.test(v), f"{word!r} or {rule.text}")


def optional(rule: Rule) -> Rule:
    """None, or what ``rule`` allows."""
    return Rule(lambda v: v is None or rule.test(v), f"None or {rule.text}")


def one_or_more(rule: Rule) -> Rule:
    """What ``rule`` allows, or a list of such."""
    return Rule(
        lambda v: bool(v) and all(map(rule.test, v)) if isinstance(v, (list, tuple)) else rule.test(v),
        f"{rule.text}, or a non-empty list of such",
    )


non_empty_string = Rule(lambda v: isinstance(v, str) and bool(v.strip()), "a non-empty string")
list_of_names = Rule(
    lambda v: isinstance(v, (list, tuple)) and bool(v) and all(isinstance(x, str) for x in v),
    "a non-empty list of names",
)
name_or_names = Rule(lambda v: non_empty_string.test(v) or list_of_names.test(v), "a name or a non-empty list of names")
dictionary = Rule(lambda v: isinstance(v, dict), "a dict")
boolean = Rule(lambda v: isinstance(v, bool), "True or False")
share = Rule(lambda v: number(0, above=True).test(v) and v <= 1, "a share above 0 and at most 1")
field_value = Rule(
    lambda v: (
        isinstance(v, dict) and len(v) == 1 and all(isinstance(x, (str, Real)) for pair in v.items() for x in pair)
    ),
    "a dict of one field of the .item file and its value, such as {'class': 'Horror'}",
)

LLM_RULES: dict[str, Rule] = {
    "llm_model": non_empty_string,
    "llm_backbone": choice("pretrained", "random", "none"),
    "llm_layers": integer(0),
    "llm_dtype": choice("auto", "float32", "bfloat16", "float16"),
    "llm_input": choice("item", "prompt"),
    "llm_item_tokens": integer(1),
    "llm_embedding_size": integer(1),
    "llm_dropout": number(0, 1),
    "llm_match_rank": integer(0),
    "llm_ema_decay": number(0, 1),
    "llm_lora_r": integer(1),
    "llm_lora_alpha": number(0, above=True),
    "llm_lora_dropout": number(0, 1),
    "llm_lora_targets": name_or_names,
    "llm_window_overlap": number(0, 1),
    "llm_text_model": non_empty_string,
    "llm_text_batch_tokens": integer(1),
    "llm_cache_dir": non_empty_string,
    "item_text_fields": optional(list_of_names),
    "item_text_template": optional(non_empty_string),
    "item_text_shuffle": boolean,
}

DISTILLATION_RULES: dict[str, Rule] = {
    "crm_model": non_empty_string,
    "crm_warmup_epochs": integer(0),
    "crm_window_overlap": number(0, 1),
    "crm_ema_decay": number(0, 1),
    "crm_text_start": number(0),
    "crm_leave_out_text_only": boolean,
    "llm_epochs": integer(0),
    "llm_warmup_epochs": integer(0),
    "llm_item_vectors": choice("own", "crm", "both"),
    "llm_train_batch_size": integer(1),
    "llm_learner": non_empty_string,
    "llm_learning_rate": number(0, above=True),
    "llm_weight_decay": number(0),
    "llm_stopping_step": integer(0),
    "llm_eval_step": integer(1),
    "llm_clip_grad_norm": optional(dictionary),
    "distill_rounds": integer(0),
    "distill_restart": boolean,
    "distill_direction": choice("mutual", "llm_to_crm", "crm_to_llm", "none"),
    "distill_first": choice("CRM", "LLM"),
    "distill_refresh_vectors": boolean,
    "distill_temperature_llm_to_crm": number(0, above=True),
    "distill_temperature_crm_to_llm": number(0, above=True),
    "distill_alpha_llm_to_crm": number(0),
    "distill_alpha_crm_to_llm": number(0),
    "distill_weighting": choice("adaptive", "confidence", "rank", "target_rank", "uniform"),
    "distill_rescale_weights": boolean,
    "distill_evidence": boolean,
    "distill_synthetic": number(0),
    "distill_synthetic_epochs": integer(1),
    "distill_topk": either("auto", integer(0)),
    "resume": boolean,
}

COUNTING_RULES: dict[str, Rule] = {
    "rules_text": boolean,
    "rules_linear": boolean,
    "rules_validation_users": integer(1),
    "item_text_fields": optional(list_of_names),
    "item_text_template": optional(non_empty_string),
    "item_text_shuffle": boolean,
}

UNLEARNING_RULES: dict[str, Rule] = {
    "unlearn_scenario": choice("users", "interactions", "sensitive", "spam", "noise", "file"),
    "unlearn_group": choice("core", "edge", "random"),
    "unlearn_ratio": one_or_more(share),
    "unlearn_seeds": one_or_more(integer(0)),
    "unlearn_batch": integer(0),
    "unlearn_checkpoints": optional(one_or_more(share)),
    "unlearn_sensitive": optional(field_value),
    "unlearn_spam_targets": integer(1),
    "unlearn_spam_fillers": integer(0),
    "unlearn_forget_file": optional(non_empty_string),
    "unlearn_relearn": boolean,
    "unlearn_shards": integer(1),
    "unlearn_shadow_models": either(0, integer(4)),
    "unlearn_drift_requests": integer(0),
    "unlearn_dir": non_empty_string,
}

SUPPRESSION_RULES: dict[str, Rule] = {"suppression_list": optional(non_empty_string)}  # for every model
