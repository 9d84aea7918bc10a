"""One checkpoint takes the place of another and the ledger says so: both, or neither, whenever the process is killed.

Beside the checkpoint C and the ledger L stand ``C.next``, the corrected checkpoint, and ``L.intent``, the entry that L
is to get. Under the lock of L, each step on the disk before the next begins:

    1. write C.next                    2. write L.intent (the entry names the hashes of C and of C.next)
    3. add to the suppression list     4. rename C.next to C
    5. append the entry to L           6. remove L.intent

The intent decides: before it is there, nothing has happened; from then on the batch is carried to its end.
:meth:`Exchange.recover`, called first by whoever holds the lock, asks which checkpoint C is:

    no intent                           C must be what L's last entry left; what is left of C.next is removed
    intent, C is the checkpoint before  killed in 2 to 4: go on at 3 if C.next is the one intended; else nothing but the
                                        intent was written: it is removed, and the requests are still open
    intent, C is the checkpoint after   killed in 4 to 6: go on at 3, without the rename; L's last line may be there, be
                                        half written, or be missing
    intent, C is another                refused: someone replaced C

A lost intent cannot go unseen, either: C is then what no entry of L left.

Every step may be done twice: the list takes an entry once, and L's last entry is not appended again. A request is
answered if and only if its id is in L after recovery.
"""

from __future__ import annotations

import glob
import json
import os
from collections.abc import Callable, Sequence
from os import PathLike
from pathlib import Path

from recbole_llmd.errors import LedgerError
from recbole_llmd.unlearning.erasure.durable import (
    durable_remove,
    durable_replace,
    durable_write,
    file_sha256,
    folder_of,
    sync,
)
from recbole_llmd.unlearning.erasure.ledger import Entry, Ledger

Suppress = Callable[[Sequence[str]], None]


class Exchange:
    """Replaces a checkpoint and appends to its ledger; the caller holds the ledger's lock.

    Args:
        checkpoint: the file that is replaced.
        ledger: its ledger.
        suppress: adds lines to the suppression list, those that it has once; or None.

    >>> files = [Path(name) for name in ("model.pth", "model.pth.next")]
    >>> _ = files[0].write_bytes(b"old")
    >>> exchange = Exchange("model.pth", Ledger("erasures.jsonl"))
    >>> exchange.prepare(lambda path: Path(path).write_bytes(b"new"))
    >>> facts = dict(model="EASE", method="refit", model_before="b", model_after="d")
    >>> facts |= dict(checkpoint_before=file_sha256("model.pth"), checkpoint_after=file_sha256("model.pth.next"))
    >>> exchange.carry_out(exchange.ledger.next_entry([], **facts))
    >>> files[0].read_bytes(), files[1].exists(), len(Ledger("erasures.jsonl").entries)
    (b'new', False, 1)
    """

    def __init__(self, checkpoint: str | PathLike[str], ledger: Ledger, suppress: Suppress | None = None) -> None:
        # Of a link, the file that it points to: the link alone would be replaced, and the old model stay.
        self.checkpoint, self.ledger, self._suppress = os.path.realpath(checkpoint), ledger, suppress
        self.next, self.intent = f"{self.checkpoint}.next", f"{ledger.path}.intent"

    def prepare(self, write: Callable[[str], object]) -> None:
        """Let ``write(path)`` write the corrected checkpoint beside the present one."""
        write(self.next)
        sync(self.next)
        sync(folder_of(self.next))

    def carry_out(self, entry: Entry, suppressed: Sequence[str] = ()) -> None:
        """Put the prepared checkpoint in place and append ``entry``; ``suppressed`` goes to the suppression list."""
        content = {"line": entry.line().decode("ascii"), "suppressed": list(suppressed)}
        durable_write(self.intent, json.dumps(content).encode())
        self._finish(entry, suppressed, file_sha256(self.checkpoint))

    def recover(self) -> None:
        """Bring what a killed process began to its end, or undo it.

        Raises:
            LedgerError: if the checkpoint is none that the ledger knows, or the ledger's last line is incomplete.
        """
        today = file_sha256(self.checkpoint)
        if os.path.exists(self.intent):
            self._recover_from_intent(today)
        else:
            self.ledger.refuse_torn()
            last = self.ledger.last
            if last is not None and last.checkpoint_after != today:
                raise LedgerError(
                    f"checkpoint = {self.checkpoint!r}: is not the one that entry {last.number} of {self.ledger.path} "
                    "left (its SHA-256 is another). Restore that checkpoint, or begin a new ledger for this one."
                )
        self._remove_leftovers()

    def _recover_from_intent(self, today: str) -> None:
        try:
            content = json.loads(Path(self.intent).read_bytes())
            entry, suppressed = Entry.from_line(content["line"].encode()), list(content["suppressed"])
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise LedgerError(
                f"{self.intent} is damaged ({type(error).__name__}). It says what was being written to "
                f"{self.ledger.path}: restore it from a copy, or both files and the checkpoint from one time."
            ) from None
        intended = os.path.exists(self.next) and file_sha256(self.next) == entry.checkpoint_after
        if today == entry.checkpoint_after or (today == entry.checkpoint_before and intended):
            self._finish(entry, suppressed, today)
        elif today == entry.checkpoint_before:
            durable_remove(self.intent)
            self.ledger.refuse_torn()
        else:
            raise LedgerError(
                f"checkpoint = {self.checkpoint!r}: is neither the one before nor the one after the entry that was "
                f"being written to {self.ledger.path}. Restore it; {self.intent} has the SHA-256 of both."
            )

    def _finish(self, entry: Entry, suppressed: Sequence[str], today: str) -> None:
        """Steps 3 to 6, with ``today`` the hash of the checkpoint that is in place."""
        if self._suppress is not None and suppressed:
            self._suppress(suppressed)
        if today != entry.checkpoint_after:
            durable_replace(self.next, self.checkpoint)
        if self.ledger.last != entry:
            self.ledger.append(entry)
        durable_remove(self.intent)

    def _remove_leftovers(self) -> None:
        """What a killed process left of files that it was writing under temporary names; nobody else writes these."""
        for leftover in folder_of(self.next).glob(f"{glob.escape(os.path.basename(self.next))}.*.tmp"):
            durable_remove(leftover)
        durable_remove(self.next)
        durable_remove(f"{self.intent}.tmp")
