"""Atomic files without what was forgotten: the other lines keep their bytes, the old files stay until they are let go.

``<name>.before-purge`` is the file as it was. It is made before the new file takes its place, so that both names are
there at every moment; :func:`confirm` removes it, once the present file is seen to hold nothing that was to go.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import BinaryIO

from recbole.config import Config

from recbole_llmd.errors import DataError
from recbole_llmd.unlearning.erasure.durable import durable_remove, durable_replace, folder_of, locked, sync

BEFORE = ".before-purge"
Tokens = tuple[str, ...]


@dataclass(frozen=True)
class Forgotten:
    r"""What is to go, and how the files that may hold it are written.

    Attributes:
        users: the tokens of users who are forgotten whole.
        pairs: tokens of users and items.
        fields: the columns of users and of items.
        separator, encoding: of the atomic files.

    >>> forgotten = Forgotten.of(["u1"], None, {"USER_ID_FIELD": "user_id", "ITEM_ID_FIELD": "item_id",
    ...                                         "field_separator": ",", "encoding": "utf-8"})
    >>> _ = Path("toy.inter").write_bytes(b"user_id:token,item_id:token\nu1,i1\nu2,i1\n")
    >>> forgotten.lines_in("toy.inter")
    1
    """

    users: frozenset[str]
    pairs: frozenset[Tokens]
    fields: tuple[str, str]
    separator: str
    encoding: str

    @classmethod
    def of(cls, users: Sequence[str], items: Sequence[str] | None, config: Config) -> Forgotten:
        """Of what a forget file names: users [n], and items [n] or None."""
        return cls(
            users=frozenset(users if items is None else ()),
            pairs=frozenset(() if items is None else zip(users, items)),
            fields=(config["USER_ID_FIELD"], config["ITEM_ID_FIELD"]),
            separator=config["field_separator"],
            encoding=config["encoding"] or "utf-8",
        )

    def lines_in(self, path: str | PathLike[str]) -> int:
        """How many lines of an atomic file hold what is to go; 0 if it has no column of users."""
        with open(path, "rb") as stream:
            return sum(gone for _, gone in self.lines(stream, path))

    def lines(self, stream: BinaryIO, path: str | PathLike[str]) -> Iterator[tuple[bytes, bool]]:
        """The lines of an atomic file, its head first, and whether each is to go.

        Raises:
            DataError: if a line cannot be told: it has another number of fields than the head, or other letters than
                the encoding has.
        """
        head = stream.readline()
        names = [name.split(":")[0] for name in self._fields(head, path, 1)]
        columns = [names.index(field) for field in self.fields if field in names]
        yield head, False
        has_users, has_items = self.fields[0] in names, self.fields[1] in names
        for number, line in enumerate(stream, 2):
            fields = self._fields(line, path, number) if line.strip(b"\r\n") and has_users else None
            if fields is None:
                yield line, False
                continue
            if len(fields) != len(names):
                raise self._refused(path, number, f"has {len(fields)} fields, and the head has {len(names)}")
            named = tuple(fields[column] for column in columns)
            yield line, named[0] in self.users or (has_items and named in self.pairs)

    def _fields(self, line: bytes, path: str | PathLike[str], number: int) -> list[str]:
        try:
            text = line.decode(self.encoding)
        except UnicodeError as error:
            raise self._refused(path, number, f"is not written in {self.encoding}") from error
        fields = text.rstrip("\r\n").split(self.separator)
        # RecBole's reader takes a field between quotation marks without them.
        return [field[1:-1] if len(field) > 1 and field[0] == field[-1] == '"' else field for field in fields]

    def _refused(self, path: str | PathLike[str], number: int, problem: str) -> DataError:
        return DataError(
            f"{os.fspath(path)}: line {number} {problem}, so that it cannot be told whether it is to go. Mend it, "
            "or set field_separator and encoding as the file is written. No file was changed."
        )


def atomic_files(config: Config) -> list[Path]:
    """The files of a dataset that name users: the interactions, those of ``benchmark_filename`` too, and the users."""
    folder, name = Path(config["data_path"]), config["dataset"]
    parts = [f".{part}" for part in config["benchmark_filename"] or []]
    candidates = [*(f"{name}{part}.inter" for part in ["", *parts]), f"{name}.user"]
    # Of a link, the file that it points to: the link alone would be replaced, and the data stay.
    found = [(folder / candidate).resolve() for candidate in candidates if (folder / candidate).is_file()]
    if not found:
        raise DataError(
            f"dataset = {name!r}: there is no {name}.inter in {folder}. Give --data_path, or the dataset's name."
        )
    return found


def purge(forgotten: Forgotten, config: Config) -> dict[Path, int]:
    """Write a dataset's atomic files without what is to go; the old ones stay as ``<name>.before-purge``.

    Returns:
        How many lines went, by file; a file in which there were none is left alone.

    Raises:
        DataError: if there is no file, a line cannot be told, or an earlier purge was not confirmed; none is changed.
    """
    files = atomic_files(config)
    with locked(files[0]):
        counts = {file: forgotten.lines_in(file) for file in files}  # before any is changed
        for file in files:
            if counts[file] and _before(file).exists():
                raise DataError(
                    f"{_before(file)} is there, from an earlier purge. Let it go (--purge --confirm with that forget "
                    "file) or move it back first. No file was changed."
                )
        for file in files:
            if counts[file]:
                _write_without(file, forgotten)
    return counts


def confirm(forgotten: Forgotten, config: Config) -> list[Path]:
    """Remove the old files that :func:`purge` kept, if the present ones hold nothing that is to go.

    Raises:
        DataError: if a present file still does; nothing is removed then.
    """
    files = atomic_files(config)
    with locked(files[0]):
        for file in files:
            left = forgotten.lines_in(file)
            if left:
                raise DataError(
                    f"{file}: {left} lines still hold what is to go. Purge first (--purge without --confirm). "
                    "Nothing was removed."
                )
        removed = [_before(file) for file in files if _before(file).exists()]
        for path in removed:
            durable_remove(path)
    return removed


def _before(file: Path) -> Path:
    return file.with_name(file.name + BEFORE)


def _write_without(file: Path, forgotten: Forgotten) -> None:
    temporary = file.with_name(file.name + ".tmp")
    with open(file, "rb") as source, open(temporary, "wb") as target:
        for line, gone in forgotten.lines(source, file):
            if not gone:
                target.write(line)
        target.flush()
        os.fsync(target.fileno())
    shutil.copystat(file, temporary)
    os.link(file, _before(file))
    sync(folder_of(file))
    durable_replace(temporary, file)
