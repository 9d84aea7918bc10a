"""The text of each item, from the atomic ``.item`` file."""

from __future__ import annotations

import os
import string
from collections.abc import Mapping, Sequence
from logging import getLogger
from typing import Any

import numpy as np
import pandas as pd
from recbole.data.dataset import Dataset

from recbole_llmd.data.atomic_file import read_atomic_file
from recbole_llmd.errors import DataError, SettingsError


def item_file(config: Mapping[str, Any]) -> str:
    """The path of the dataset's ``.item`` file (which need not exist).

    >>> item_file({"data_path": "dataset/tiny", "dataset": "tiny"})
    'dataset/tiny/tiny.item'
    """
    return os.path.join(config["data_path"], f"{config['dataset']}.item")


def load_item_texts(config: Mapping[str, Any], dataset: Dataset) -> list[str]:
    """One text per item id.

    The ``.item`` file is read directly, so that neither the user's ``load_col`` nor the CRM's features depend on it.

    Args:
        config: the run's Config; ``item_text_fields`` and ``item_text_template`` say what makes a text, and
            ``item_text_shuffle`` whether the items that have one keep it.
        dataset: the RecBole dataset, which maps tokens to item ids.

    Returns:
        ``texts[item_id]``, for all ``n_items`` ids; empty for the padding item and for items without text.

    Raises:
        SettingsError: if a named field is not in the file, with the fields that are; or fields are named and there is
            no file.
        DataError: if the file cannot be read, or does not say which items its lines are of.
    """
    texts = [""] * dataset.item_num
    path = item_file(config)
    if not os.path.isfile(path):
        if config["item_text_fields"] or config["item_text_template"]:
            raise SettingsError(
                f"item_text_fields and item_text_template need the file {path}, which does not exist. "
                "Remove these settings, or add the file."
            )
        return _warn_if_missing(texts, f"{path} does not exist")
    frame, types = read_atomic_file(path, config)
    if dataset.iid_field not in frame.columns:
        raise DataError(
            f"{path} has the fields {', '.join(frame.columns)}: its lines need {dataset.iid_field}, the items' ids. "
            "Add that field, or set ITEM_ID_FIELD to the one that has them."
        )
    frame = frame.drop_duplicates(subset=dataset.iid_field)
    fields, template = _fields_and_template(config, frame, types, path)
    if not fields:
        return _warn_if_missing(texts, f"{path} has no token_seq field")
    token2id = dataset.field2token_id[dataset.iid_field]
    values = frame[[dataset.iid_field, *fields]]
    for token, *row in values.itertuples(index=False):
        item = token2id.get(token)
        if item and any(value.strip() for value in row):
            filled = {field: value.strip() for field, value in zip(fields, row)}
            texts[item] = template.format(**filled) if template else ", ".join(filter(None, filled.values()))
    if config["item_text_shuffle"]:
        texts = shuffled(texts, config["seed"])
    return _warn_if_missing(texts, f"{path} has no text for them")


def shuffled(texts: Sequence[str], seed: int) -> list[str]:
    """The same texts, dealt at random to the items that have one: each of them gets the text of another.

    What texts still bring afterwards, they do not bring by what they say of their items.

    >>> shuffled(["", "Comet", "", "Clue"], seed=2020)
    ['', 'Clue', '', 'Comet']
    """
    order = np.random.default_rng(seed).permutation([item for item, text in enumerate(texts) if text])
    dealt = list(texts)
    for item, giver in zip(order, np.roll(order, 1)):
        dealt[item] = texts[giver]
    return dealt


def _fields_and_template(
    config: Mapping[str, Any], frame: pd.DataFrame, types: Mapping[str, str], path: str
) -> tuple[list[str], str | None]:
    """The fields that make a text, and the template that they fill (None: they are joined)."""
    template: str | None = config["item_text_template"]
    if template:
        try:
            fields = [field for _, field, _, _ in string.Formatter().parse(template) if field]
            template.format(**dict.fromkeys(fields, ""))
        except (ValueError, KeyError, IndexError, AttributeError) as error:
            raise SettingsError(f"item_text_template = {template!r}: {error}. Write each field as {{name}}.") from error
        if not fields:
            raise SettingsError(f"item_text_template = {template!r}: names no field. Write each field as {{name}}.")
    else:
        fields = list(config["item_text_fields"] or [name for name, kind in types.items() if kind == "token_seq"])
    for field in fields:
        if field not in frame.columns:
            raise SettingsError(
                f"item text field {field!r} is not in {path}. Its fields are: {', '.join(frame.columns)}."
            )
    return fields, template


def _warn_if_missing(texts: list[str], reason: str) -> list[str]:
    missing = sum(not text for text in texts[1:])
    if missing:
        getLogger().warning(
            f"{missing} of {len(texts) - 1} items have no text ({reason}): "
            "they are represented by their item embedding alone."
        )
    return texts
