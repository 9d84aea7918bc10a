"""Files in RecBole's atomic format that name what to forget."""

from __future__ import annotations

import os
from os import PathLike
from typing import TYPE_CHECKING

import pandas as pd

from recbole_llmd.data.atomic_file import read_atomic_file
from recbole_llmd.errors import DataError

if TYPE_CHECKING:
    from recbole.config import Config


def read_forget_file(path: str | PathLike[str], config: Config) -> tuple[list[str], list[str] | None]:
    """The users, and the items or None, that a forget file names.

    Args:
        path: an atomic file with the columns of ``USER_ID_FIELD`` and ``ITEM_ID_FIELD`` (``user_id:token``,
            ``item_id:token``), or of the users alone, who are then forgotten whole. Columns beside
            users and items are ignored.
        config: the model's Config, for the names of the fields and the separator.

    Returns:
        Tokens of the users ``[n]``, and of the items ``[n]`` or None.

    Raises:
        DataError: if there is no such file, it has no column of users or two of a kind, has other columns in place of
            the items, or a token is missing.
    """
    if not os.path.isfile(path):
        raise DataError(f"forget-file = {str(path)!r}: there is no such file. Give an atomic file of what to forget.")
    return named_by(read_atomic_file(path, config)[0], path, config)


def named_by(frame: pd.DataFrame, path: str | PathLike[str], config: Config) -> tuple[list[str], list[str] | None]:
    """What :func:`read_forget_file` gives, of the frame read from ``path``."""
    user, item = config["USER_ID_FIELD"], config["ITEM_ID_FIELD"]
    named, others = [list(frame.columns).count(column) for column in (user, item)], len(frame.columns) - 1
    # Other columns in place of the items may be the items, misspelled: all that the users did would be forgotten.
    if named[0] != 1 or named[1] > 1 or (not named[1] and others):
        raise DataError(
            f"forget-file = {str(path)!r}: has the columns {', '.join(frame.columns)}; an atomic file with the header "
            f"{user}:token and {item}:token is needed, or {user}:token alone to forget users whole."
        )
    columns = [column for column in (user, item) if column in frame.columns]
    frame = frame[columns]
    if (frame == "").any(axis=None):
        line = int((frame == "").any(axis=1).to_numpy().argmax()) + 2
        raise DataError(
            f"forget-file = {str(path)!r}: line {line} lacks a value. Each line names a user"
            + (" and an item." if item in columns else ".")
        )
    return frame[user].tolist(), frame[item].tolist() if item in columns else None
