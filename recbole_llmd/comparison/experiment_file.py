"""What a user writes to say what is compared: experiment files, names and seeds, checked and in one form."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import yaml

from recbole_llmd.errors import SettingsError

Settings = dict[str, Any]  # keys and values of RecBole's config_dict
Seeds = int | str | Sequence[int | str]

FIRST_SEED = 2020  # RecBole's
MOST_SEEDS = 100
KEYS = ("dataset", "datasets", "seeds", "baseline", "tests", "metrics", "mask_history", "settings", "variants")


def read_experiment(path: str) -> dict[str, Any]:
    """An experiment file, with ``datasets``, ``variants`` and ``settings`` as dicts of settings.

    Raises:
        SettingsError: if there is no such file, or it holds an unknown key or a value of the wrong kind.
    """
    if not os.path.isfile(path):
        raise SettingsError(f"experiment = {path!r}: there is no such file.")
    content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    if not isinstance(content, dict):
        raise SettingsError(f"experiment = {path!r}: must hold keys such as datasets and variants.")
    for key in content:
        if key not in KEYS:
            raise SettingsError(f"{path}: {key} is not a key of an experiment. The nearest is {nearest(key, KEYS)}.")
    if "dataset" in content:
        if "datasets" in content:
            raise SettingsError(f"{path}: dataset and datasets are both given. Give one of them.")
        content["datasets"] = content.pop("dataset")
    content["datasets"] = _with_settings(path, "datasets", content.get("datasets"))
    content["variants"] = _with_settings(path, "variants", content.get("variants"))
    for name, variant in content["variants"].items():
        if not isinstance(variant.get("model"), str):
            raise SettingsError(f"{path}: variant {name!r} has no model. Write {{model: SASRec, ...}}.")
    content["settings"] = _as_settings(path, "settings", content.get("settings"))
    return content


def _with_settings(path: str, key: str, value: object) -> dict[str, Settings]:
    """A name, a list of names, or names with their settings, as the last of these."""
    if isinstance(value, (str, int)):
        value = [value]
    if isinstance(value, list):
        value = dict.fromkeys(value)
    named = _as_settings(path, key, value)
    return {str(name): _as_settings(path, f"{key}: {name}", own) for name, own in named.items()}


def _as_settings(path: str, key: str, value: object) -> Settings:
    if value is not None and not isinstance(value, dict):
        raise SettingsError(f"{path}: {key} = {value!r}: must be settings, written key: value.")
    return dict(value or {})


def as_truth(value: object) -> bool | None:
    """``mask_history`` as a user writes it; None where it is not set.

    >>> as_truth("True"), as_truth(False), as_truth(None)
    (True, False, None)

    Raises:
        SettingsError: if it is neither.
    """
    values = {"True": True, "False": False, "None": None}
    if str(value) not in values:
        raise SettingsError(f"mask_history = {value!r}: must be True or False. Leave it out to let the models decide.")
    return values[str(value)]


def list_tests(given: object, rows: Sequence[str]) -> list[list[str]]:
    """The pairs of rows that a comparison tests besides the differences to its baseline.

    Args:
        given: a list of pairs of names.
        rows: the names that there are.

    >>> list_tests([["mutual", "alone"]], ["alone", "mutual"])
    [['mutual', 'alone']]

    Raises:
        SettingsError: if it is something else.
    """
    rule = "must be a list of pairs of different rows, such as [[mutual, alone], [mutual · LLM, alone · LLM]]."
    if given is None:
        return []
    if not isinstance(given, (list, tuple)):
        raise SettingsError(f"tests = {given!r}: {rule}")
    for pair in given:
        if not isinstance(pair, (list, tuple)) or len(pair) != 2 or pair[0] == pair[1]:
            raise SettingsError(f"tests: {pair!r}: {rule}")
        for name in pair:
            if name not in rows:
                raise SettingsError(
                    f"tests: {name!r}: there is no such row, but {', '.join(rows)}. "
                    f"The nearest is {nearest(name, rows)!r}."
                )
    return [list(pair) for pair in given]


def variants_of(models: str | Sequence[str]) -> dict[str, Settings]:
    """A variant of each model with its defaults.

    Raises:
        SettingsError: if a name is empty or there twice.
    """
    variants: dict[str, Settings] = {}
    for name in list_names(models):
        if not name or name in variants:
            raise SettingsError(
                f"models = {models!r}: must be different names with commas between them. To compare settings of one "
                "model, write variants in an experiment file."
            )
        variants[name] = {"model": name}
    return variants


def list_names(names: str | Sequence[str]) -> list[str]:
    """Names with commas between them, or a sequence of names, as a list.

    >>> list_names("SASRec,GRU4Rec") == list_names(("SASRec", "GRU4Rec")) == ["SASRec", "GRU4Rec"]
    True
    """
    return names.split(",") if isinstance(names, str) else [str(name) for name in names]


def list_seeds(given: Seeds) -> list[int]:
    """Seeds: a number of them, counted from RecBole's seed 2020, or the seeds themselves.

    >>> list_seeds(3), list_seeds("2020,2025"), list_seeds([7]), list_seeds("2020,")
    ([2020, 2021, 2022], [2020, 2025], [7], [2020])

    Raises:
        SettingsError: if it is neither, or a seed is there twice.
    """
    rule = f"must be a number of seeds (1 to {MOST_SEEDS}) or a list of seeds such as '2020,2021' (one seed: '2020,')."
    if isinstance(given, Sequence) and not isinstance(given, str):
        entries, is_number = [str(entry) for entry in given], False
    else:
        written = str(given)
        entries = [entry for entry in written.strip("[]").split(",") if entry.strip()]
        is_number = len(entries) == 1 and "," not in written and "[" not in written
    try:
        seeds = [int(entry) for entry in entries]
    except ValueError:
        raise SettingsError(f"seeds = {given!r}: {rule}") from None
    if is_number:
        if not 1 <= seeds[0] <= MOST_SEEDS:
            raise SettingsError(f"seeds = {given!r}: {rule}")
        return list(range(FIRST_SEED, FIRST_SEED + seeds[0]))
    if not seeds or len(set(seeds)) < len(seeds):
        raise SettingsError(f"seeds = {given!r}: {rule} No seed twice.")
    return seeds


def nearest(name: object, names: Iterable[str]) -> str:
    """The one of ``names`` that is spelt most like ``name``."""
    return difflib.get_close_matches(str(name), list(names), n=1, cutoff=0)[0]
