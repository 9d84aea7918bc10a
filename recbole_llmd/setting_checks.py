"""Refusing unknown settings and values out of range, when RecBole's Config is built."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Any

from recbole_llmd import registry
from recbole_llmd.errors import SettingsError
from recbole_llmd.registry import ModelSpec
from recbole_llmd.settings import TRAINING_KEYS


def check(model: str, values: Mapping[str, Any], given: Iterable[str]) -> None:
    """Refuse unknown keys and values out of range.

    Args:
        model: the name of one of our models.
        values: every setting of the run, defaults included.
        given: the keys that the user gave (file, config_dict, command line).

    Raises:
        SettingsError: naming the key, the value, the rule and, for an unknown key, the nearest valid name; or a key
            that another setting's value needs and that is not set; or values that do not go together.
    """
    spec = registry.spec(model)
    for key in given:
        if key not in spec.rules and registry.is_our_setting(key):
            raise SettingsError(_unknown_key(key, spec))
    for key, rule in spec.rules.items():
        if not rule.test(values.get(key)):
            raise SettingsError(f"{key} = {values.get(key)!r}: must be {rule.text}.")
    for key, needed_by_value in spec.needs.items():
        needed = needed_by_value.get(values[key])
        if needed is not None and values[needed] is None:
            wanted = spec.rules[needed].text.removeprefix("None or ")
            raise SettingsError(f"{needed} = None: {key} = {values[key]!r} needs {wanted}.")
    if spec.refuse:
        registry.resolve(spec.refuse)(values)


def _unknown_key(key: str, spec: ModelSpec) -> str:
    plain = key.removeprefix("llm_")
    as_side = [other.name for other in registry.specs() if other.side == spec.name]
    if as_side and plain in TRAINING_KEYS:
        return f"{key} is a setting of {as_side[0]}; for {spec.name} alone set RecBole's {plain}."
    owners = registry.models_with(key)
    if owners:
        return f"{key} is a setting of {owners[0]}, not of {spec.name}. Remove it, or run --model={owners[0]}."
    nearest = difflib.get_close_matches(key, spec.rules, n=1, cutoff=0)
    return f"{key} is not a setting of {spec.name}. The nearest valid name is {nearest[0]}."
