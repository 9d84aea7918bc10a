"""What a comparison asks about a model: its settings, whether it can be compared, whether its warm-up can be shared."""

from __future__ import annotations

from collections.abc import Mapping

from recbole_llmd import settings
from recbole_llmd.settings import Rule

NOT_COMPARABLE = {
    "IMCorrect": "IMCorrect compares arms of its own with each other: run it, or recbole-llmd unlearn --evaluate. "
    "Here, name the model that it corrects, such as EASE."
}
SHARING_WARM_UP = ("LLMD4Rec",)


def settings_of(model: str) -> Mapping[str, Rule]:
    """The settings that this package adds to RecBole's for ``model``; none for RecBole's own models."""
    return settings.RULES.get(model, {})


def models_with(key: str) -> list[str]:
    """The models of this package that have the setting ``key``."""
    return [model for model, rules in settings.RULES.items() if key in rules]


def every_setting() -> list[str]:
    """All settings of all models of this package."""
    return [key for rules in settings.RULES.values() for key in rules]


def is_our_setting(key: str) -> bool:
    """Whether ``key`` reads as a setting of this package, a misspelt one included."""
    return key.startswith(settings.PREFIXES) or key in settings.WITHOUT_PREFIX


def why_not_comparable(model: str) -> str:
    """Why ``model`` cannot stand in a comparison; empty where it can."""
    return NOT_COMPARABLE.get(model, "")


def shares_warm_up(model: str) -> bool:
    """Whether runs of ``model`` that agree until round 1 can share what comes before it."""
    return model in SHARING_WARM_UP
