"""Vectors of texts on disk, one by one: what was encoded once, in whatever company, is never encoded again."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from recbole_llmd.atomic_write import refuse_unwritable
from recbole_llmd.errors import OutputError

WAIT = 60.0  # seconds for another process that writes
AT_ONCE = 500  # keys in one question; SQLite takes 999 at least


class TextCache:
    """A file of vectors by key, which several processes may read and write at once.

    A key stands for a text and all that can change its vector, so that what is written once holds for ever. The file is
    an SQLite database; each :meth:`put` is written whole or not at all, whenever the process ends.

    Args:
        path: the file; it is made with its folder when the first vectors are put.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     TextCache(Path(folder) / "texts.sqlite").put({b"comet": np.float32([1, 2])})
    ...     TextCache(Path(folder) / "texts.sqlite").get([b"comet", b"clue"])
    {b'comet': array([1., 2.], dtype=float32)}
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    def get(self, keys: Sequence[bytes]) -> dict[bytes, NDArray[np.float32]]:
        """The vectors that are there, float32, ``[size]`` each.

        Raises:
            OutputError: if the file is no cache of vectors, or another process holds it.
        """
        found: dict[bytes, NDArray[np.float32]] = {}
        if not self.path.is_file():
            return found
        with self._open("ro") as database:
            for first in range(0, len(keys), AT_ONCE):
                some = keys[first : first + AT_ONCE]
                marks = ",".join("?" * len(some))
                rows = database.execute(f"SELECT key, vector FROM vectors WHERE key IN ({marks})", some)
                found.update({key: np.frombuffer(vector, "<f4").astype(np.float32) for key, vector in rows})
        return found

    def put(self, vectors: Mapping[bytes, NDArray[np.float32]]) -> None:
        """Add vectors; those of a key that is there already stay as they are.

        Raises:
            OutputError: if the file cannot be written, is no cache of vectors, or another process holds it.
        """
        refuse_unwritable(self.path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        rows = [(key, np.asarray(vector, "<f4").tobytes()) for key, vector in vectors.items()]
        with self._open("rwc") as database, database:  # the inner block is one transaction
            database.execute("CREATE TABLE IF NOT EXISTS vectors (key BLOB PRIMARY KEY, vector BLOB) WITHOUT ROWID")
            database.executemany("INSERT OR IGNORE INTO vectors VALUES (?, ?)", rows)

    @contextlib.contextmanager
    def _open(self, mode: str) -> Iterator[sqlite3.Connection]:
        try:
            with contextlib.closing(
                sqlite3.connect(f"{self.path.absolute().as_uri()}?mode={mode}", timeout=WAIT, uri=True)
            ) as database:
                yield database
        except sqlite3.Error as error:
            raise OutputError(
                f"{self.path}: the vectors of item texts cannot be kept there ({error}). Delete the file if it is "
                "broken, or set llm_cache_dir to a folder on a local disk."
            ) from error
