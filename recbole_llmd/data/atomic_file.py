"""Reading RecBole's atomic files as text."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from os import PathLike
from typing import Any

import pandas as pd

from recbole_llmd.errors import DataError


def read_atomic_file(path: str | PathLike[str], config: Mapping[str, Any]) -> tuple[pd.DataFrame, dict[str, str]]:
    r"""All columns of an atomic file as strings, untouched by ``load_col`` and by guesses about missing values.

    Args:
        path: the file.
        config: the run's Config; its ``field_separator`` and ``encoding`` say how the file is written.

    Returns:
        tuple: the frame, with the names of the fields as columns, and their types by name ("" where none is given).

    Raises:
        DataError: if the file is empty, in another encoding, or has lines with more fields than its head.

    >>> from pathlib import Path
    >>> _ = Path("toy.item").write_text("item_id:token,title:token_seq\n7,NA\n")
    >>> frame, types = read_atomic_file("toy.item", {"field_separator": ",", "encoding": "utf-8"})
    >>> frame.to_dict("records"), types
    ([{'item_id': '7', 'title': 'NA'}], {'item_id': 'token', 'title': 'token_seq'})
    """
    # Quotation marks in titles (inches, for one) are text, never a quoted field; a title may be "NA" or "None".
    try:
        frame = pd.read_csv(
            path,
            sep=config["field_separator"],
            dtype=str,
            encoding=config["encoding"],
            engine="python",
            quoting=csv.QUOTE_NONE,
            keep_default_na=False,
        )
    except (pd.errors.EmptyDataError, pd.errors.ParserError, UnicodeError) as error:
        raise DataError(
            f"{path} cannot be read as an atomic file with field_separator = {config['field_separator']!r} and "
            f"encoding = {config['encoding']!r}: {error}. Mend the file, or set these two as it is written."
        ) from error
    if len(frame) and not isinstance(frame.index, pd.RangeIndex):  # of the first fields of longer lines, by pandas
        raise DataError(
            f"{path} cannot be read as an atomic file with field_separator = {config['field_separator']!r}: its lines "
            "have more fields than its head. Mend the file, or set the separator as it is written."
        )
    head = [column.split(":") for column in frame.columns]
    frame.columns = [name for name, *_ in head]
    return frame.fillna(""), {name: kind[0] if kind else "" for name, *kind in head}
