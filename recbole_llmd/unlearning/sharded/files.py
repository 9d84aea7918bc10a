"""The folder of a model that is divided among processes: a file of rows for each, and a description, written last."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from recbole_llmd.atomic_write import atomic_write
from recbole_llmd.errors import CheckpointError, OutputError

DESCRIPTION = "sharded-ease.json"  # a folder that has it has a whole model


def file_name(first: int, stop: int) -> str:
    """Of the rows from ``first`` up to ``stop``."""
    return f"rows-{first}-{stop}.npy"


def rows_in(folder: Path, first: int, stop: int, n: int, dtype: np.dtype[Any]) -> NDArray[Any]:
    """The rows [stop - first, n] of a file, which is read where they are used.

    Raises:
        CheckpointError: if the file is missing or of another shape or type.
    """
    path = folder / file_name(first, stop)
    try:
        rows: NDArray[Any] = np.load(path, mmap_mode="r")
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: the rows cannot be read ({error}). Fit the model anew.") from error
    if rows.shape != (stop - first, n) or rows.dtype != dtype:
        raise CheckpointError(f"{path}: holds {rows.shape} of {rows.dtype}, not its rows. Fit the model anew.")
    return rows


def hash_of(X: sp.csr_matrix) -> str:
    """SHA-256 over the shape and the entries of X.

    >>> hash_of(sp.csr_matrix([[1.0, 0]])) == hash_of(sp.csr_matrix([[0, 1.0]]))
    False
    """
    digest = hashlib.sha256(repr(X.shape).encode())
    for array, dtype in ((X.indptr, np.int64), (X.indices, np.int64), (X.data, np.float64)):
        digest.update(np.ascontiguousarray(array, dtype).data)
    return digest.hexdigest()


def describe_in(folder: Path, facts: Mapping[str, Any]) -> None:
    """Write the description."""
    with atomic_write(folder / DESCRIPTION) as temporary:
        temporary.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")


def refuse_model_in(folder: Path | None) -> None:
    """Refuse to write over a model.

    Raises:
        OutputError: if ``folder`` has one.
    """
    if folder is not None and (folder / DESCRIPTION).exists():
        raise OutputError(f"folder = {str(folder)!r}: a model is there already. Load it, or give another folder.")


def description_in(folder: Path) -> dict[str, Any]:
    """The facts that :func:`describe_in` wrote.

    Raises:
        CheckpointError: if there is no whole model.
    """
    try:
        description: dict[str, Any] = json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{folder}: there is no whole model here ({DESCRIPTION} is missing). Fit it.") from error
    return description
