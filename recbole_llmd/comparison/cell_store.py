"""The cells of a comparison on disk: each one's record (JSON) and its values for every test user (npz).

A comparison writes them to ``cells/`` in its folder. Finished ones can be packed into ``cells.zip`` beside it (see
``benchmarks/pack_cells.py``), whose members have the same names; where both have a cell, the one in ``cells/`` counts.
"""

from __future__ import annotations

import functools
import io
import json
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from recbole_llmd.atomic_write import atomic_write
from recbole_llmd.errors import DataError
from recbole_llmd.report.table import write_json

Record = dict[str, Any]  # as JSON holds it
UNREADABLE = (OSError, EOFError, ValueError, zipfile.BadZipFile, zlib.error)  # what half a file raises


class CellStore:
    """The cells in the folder of a comparison.

    Args:
        folder: the comparison's, which holds ``cells/``, ``cells.zip`` or both.

    Raises:
        DataError: from any method, if a file cannot be read or a finished cell has no values.

    >>> import tempfile
    >>> store = CellStore(Path(tempfile.mkdtemp()))
    >>> write_cell(store.record_file("a-1"), {"status": "finished"}, {"user": np.array([3, 4])})
    >>> store.record("a-1"), store.values("a-1")["user"].tolist(), store.record("b-1")
    ({'status': 'finished'}, [3, 4], None)
    """

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)

    def record_file(self, name: str) -> Path:
        """Where the record of the cell ``name`` is written."""
        return self.folder / "cells" / f"{name}.json"

    def record(self, name: str) -> Record | None:
        """The record of a cell, finished or failed; None if there is none."""
        content = self._read(f"cells/{name}.json")
        if content is None:
            return None
        try:
            record: Record = json.loads(content)
        except ValueError as error:
            raise self._unreadable(f"cells/{name}.json", error) from error
        return record

    def values(self, name: str) -> dict[str, npt.NDArray[Any]]:
        """What a finished cell kept of each test user: arrays ``[n_users]``."""
        content = self._read(f"cells/{name}.npz")
        if content is None:
            raise DataError(
                f"{self.folder}: cells/{name}.npz is missing, in the folder and in cells.zip: a finished cell has the "
                "values of its test users there. Delete its record (.json) to run it again."
            )
        try:
            with np.load(io.BytesIO(content)) as file:
                return dict(file)
        except UNREADABLE as error:
            raise self._unreadable(f"cells/{name}.npz", error) from error

    @functools.cached_property
    def _archive(self) -> zipfile.ZipFile | None:
        file = self.folder / "cells.zip"
        if not file.exists():
            return None
        try:
            return zipfile.ZipFile(file)
        except UNREADABLE as error:
            raise self._unreadable("cells.zip", error) from error

    def _read(self, member: str) -> bytes | None:
        file = self.folder / member
        if file.exists():
            return file.read_bytes()
        if self._archive is None or member not in self._archive.namelist():
            return None
        try:
            return self._archive.read(member)
        except UNREADABLE as error:
            raise self._unreadable(f"{member} of cells.zip", error) from error

    def _unreadable(self, name: str, error: Exception) -> DataError:
        return DataError(
            f"{self.folder / name}: cannot be read ({error}). Restore the file, or delete it: what is missing is run."
        )


def write_cell(record_file: Path, record: Record, values: Mapping[str, npt.NDArray[Any]]) -> None:
    """Write a finished cell: the values first, so that a record always has them."""
    arrays: dict[str, Any] = dict(values)
    with atomic_write(record_file.with_suffix(".npz")) as temporary, open(temporary, "wb") as file:
        np.savez_compressed(file, **arrays)
    write_json(record_file, record)
