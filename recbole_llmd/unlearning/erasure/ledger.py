"""The ledger: one line of JSON for every checkpoint that was corrected, each holding the hash of the one before.

A changed, removed or inserted line breaks the chain; lines that were cut off at the end are found because the last
entry must name the checkpoint (:mod:`~recbole_llmd.unlearning.erasure.verify`). Without a key, whoever can write the
file can write a whole new chain; with one (HMAC-SHA256), only who has the key can.

The file holds no token: requests are named by their ids and by salted digests of what they asked.
"""

from __future__ import annotations

import dataclasses
import hashlib
import hmac
import json
import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib import metadata
from os import PathLike
from typing import Any

from recbole_llmd.atomic_write import refuse_unwritable
from recbole_llmd.errors import LedgerError
from recbole_llmd.unlearning.erasure.durable import folder_of, sync
from recbole_llmd.version import __version__

FIRST = "0" * 64  # what the first entry names as the hash before it


@dataclass(frozen=True)
class Erased:
    """A request that was answered.

    Attributes:
        id: its id.
        digest: the salted digest of what it named (:func:`~recbole_llmd.unlearning.erasure.digests.digest_of_request`).
        interactions: how many it removed from the model; those that an earlier request removed do not count.
        skipped: how many of what it named were not there.

    >>> Erased("2026-001", "5f" * 32, interactions=12).skipped
    0
    """

    id: str
    digest: str
    interactions: int
    skipped: int = 0


@dataclass(frozen=True)
class Entry:
    """A line of the ledger: requests that one corrected checkpoint answers.

    Attributes:
        number: 1, 2, ...
        time: when, in UTC.
        requests: what was answered.
        model, method: the mapping model, and what was done to its B.
        checkpoint_before, checkpoint_after: SHA-256 of the checkpoint's file.
        model_before, model_after: SHA-256 of X and B (:func:`~recbole_llmd.unlearning.fingerprint`).
        versions: of the packages that did it.
        previous: the hash of the entry before.
        hash: of all that stands above.

    >>> entry = Entry(1, "2026-01-31T12:00:00Z", (), "EASE", "refit", "a", "b", "c", "d", {}, FIRST)
    >>> Entry.from_line(entry.sealed().line()) == entry.sealed()
    True
    """

    number: int
    time: str
    requests: tuple[Erased, ...]
    model: str
    method: str
    checkpoint_before: str
    checkpoint_after: str
    model_before: str
    model_after: str
    versions: Mapping[str, str]
    previous: str
    hash: str = ""

    def sealed(self, key: str | None = None) -> Entry:
        """The entry with its hash: SHA-256 of the rest, or HMAC-SHA256 with the key."""
        body = _json({name: value for name, value in dataclasses.asdict(self).items() if name != "hash"})
        digest = hashlib.sha256(body).hexdigest() if key is None else _keyed(key, body)
        return dataclasses.replace(self, hash=digest)

    def line(self) -> bytes:
        """The entry as it stands in the file: the one way to write it, with the end of the line."""
        return _json(dataclasses.asdict(self)) + b"\n"

    @classmethod
    def from_line(cls, line: bytes) -> Entry:
        """The inverse of :meth:`line`.

        Raises:
            ValueError, TypeError: if the line is no entry, or is not written as :meth:`line` writes it.
        """
        fields = json.loads(line.decode("utf-8"))
        entry = cls(**{**fields, "requests": tuple(Erased(**erased) for erased in fields["requests"])})
        if entry.line() != line:
            raise ValueError("it is not written as entries are")
        return entry


class Ledger:
    """A ledger file, read and its chain checked.

    Args:
        path: the file; one that is not there is an empty ledger.
        key: the text of the key, where the ledger is kept with one.

    Attributes:
        entries: its entries.
        torn: the bytes after its last whole line: what a crash left of an entry.

    Raises:
        LedgerError: if a line is no entry, or the chain is broken.

    >>> ledger = Ledger("erasures.jsonl")
    >>> facts = dict(model="EASE", method="refit", checkpoint_before="a", model_before="b", model_after="d")
    >>> ledger.append(ledger.next_entry([Erased("2026-001", "5f" * 32, 12)], checkpoint_after="c", **facts))
    >>> Ledger("erasures.jsonl").done["2026-001"].interactions
    12
    """

    def __init__(self, path: str | PathLike[str], key: str | None = None) -> None:
        refuse_unwritable(path, "ledger")
        self.path, self._key = os.fspath(path), key
        self.entries: list[Entry] = []
        self.done: dict[str, Erased] = {}
        content = b""
        if os.path.exists(path):
            with open(path, "rb") as stream:
                content = stream.read()
        *lines, self.torn = content.split(b"\n")
        for line in lines:
            self._add(self._checked(line + b"\n"))

    @property
    def last(self) -> Entry | None:
        """The newest entry."""
        return self.entries[-1] if self.entries else None

    def _checked(self, line: bytes) -> Entry:
        """The entry that follows those read so far."""
        said = f"ledger = {self.path!r}: line {len(self.entries) + 1}"
        remedy = "The ledger has been changed or damaged: restore it from a copy."
        try:
            entry = Entry.from_line(line)
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise LedgerError(f"{said} is no entry ({type(error).__name__}). {remedy}") from None
        before = self.last
        if not hmac.compare_digest(entry.hash.encode(), entry.sealed(self._key).hash.encode()):
            key = " (or it is kept with a key: give --ledger-key)" if self._key is None else " under this key"
            raise LedgerError(f"{said} does not have the hash that its content gives{key}. {remedy}")
        if entry.previous != (FIRST if before is None else before.hash) or entry.number != len(self.entries) + 1:
            raise LedgerError(f"{said} does not follow the line before it. {remedy}")
        if before is not None and before.model_after != entry.model_before:
            raise LedgerError(f"{said} starts from another model than line {before.number} left. {remedy}")
        twice = [erased.id for erased in entry.requests if erased.id in self.done]
        if twice:
            raise LedgerError(f"{said} answers request {twice[0]!r}, which is answered already. {remedy}")
        return entry

    def _add(self, entry: Entry) -> None:
        self.entries.append(entry)
        self.done.update({erased.id: erased for erased in entry.requests})

    def refuse_torn(self) -> None:
        """Refuse a file whose last line is incomplete, where nobody knows how it was to go on.

        Raises:
            LedgerError: saying where the last whole line ends.
        """
        if self.torn:
            count, whole = len(self.entries), os.path.getsize(self.path) - len(self.torn)
            raise LedgerError(
                f"ledger = {self.path!r}: the last line is incomplete: {len(self.torn)} bytes after entry {count}, and "
                f"there is no {os.path.basename(self.path)}.intent that tells the rest. Restore the file from a copy; "
                f"if the checkpoint is the one that entry {count} left, cut it to its first {whole} bytes."
            )

    def next_entry(self, requests: list[Erased], **facts: Any) -> Entry:
        """The entry to be appended next; ``facts`` are the rest of :class:`Entry`'s attributes."""
        return Entry(
            number=len(self.entries) + 1,
            time=datetime.now(timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            requests=tuple(requests),
            versions=_versions(),
            previous=FIRST if self.last is None else self.last.hash,
            **facts,
        ).sealed(self._key)

    def append(self, entry: Entry) -> None:
        """Append an entry, or what a crash left out of it; it is on the disk when this returns.

        Raises:
            LedgerError: if it does not follow the entries that are there, or other bytes were begun.
        """
        line = entry.line()
        self._checked(line)
        if not line.startswith(self.torn):
            self.refuse_torn()
        folder_of(self.path).mkdir(parents=True, exist_ok=True)
        with open(self.path, "ab") as stream:
            stream.write(line[len(self.torn) :])
            stream.flush()
            os.fsync(stream.fileno())
        sync(folder_of(self.path))
        self.torn = b""
        self._add(entry)


def _json(plain: Mapping[str, Any]) -> bytes:
    return json.dumps(plain, sort_keys=True, ensure_ascii=True, separators=(",", ":")).encode("ascii")


def _keyed(key: str, body: bytes) -> str:
    return hmac.new(key.encode("utf-8", "surrogateescape"), body, hashlib.sha256).hexdigest()


def _versions() -> dict[str, str]:
    packages = ("recbole", "numpy", "scipy", "torch")
    return {"recbole_llmd": __version__, "python": platform.python_version()} | {
        name: metadata.version(name) for name in packages
    }
