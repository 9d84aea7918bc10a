"""The ledger: every change of its bytes is found, an append is whole, and it names nobody."""

import dataclasses
import json

import pytest

from recbole_llmd.errors import LedgerError
from recbole_llmd.unlearning.erasure.ledger import FIRST, Erased, Ledger

KEY = "a key of many characters"


def facts(number):
    """Entry ``number`` leads from checkpoint and model ``number - 1`` to ``number``."""
    return {
        "model": "EASE",
        "method": "low-rank update",
        "checkpoint_before": f"c{number - 1}",
        "checkpoint_after": f"c{number}",
        "model_before": f"m{number - 1}",
        "model_after": f"m{number}",
    }


def make(path, entries=3, key=None):
    ledger = Ledger(path, key)
    for number in range(1, entries + 1):
        ledger.append(ledger.next_entry([Erased(f"r{number}", "5f" * 32, 10 * number, 1)], **facts(number)))
    return ledger


def test_an_entry_says_what_was_done(workdir):
    made = make("l")
    read = Ledger("l")
    assert read.entries == made.entries and read.torn == b""
    assert [entry.previous for entry in read.entries] == [FIRST, read.entries[0].hash, read.entries[1].hash]
    assert read.done == {f"r{n}": Erased(f"r{n}", "5f" * 32, 10 * n, 1) for n in (1, 2, 3)}
    fields = json.loads((workdir / "l").read_text().splitlines()[1])
    assert fields["checkpoint_before"] == "c1" and fields["model_after"] == "m2" and fields["number"] == 2
    assert fields["time"].endswith("Z") and set(fields["versions"]) >= {"recbole_llmd", "recbole", "numpy", "scipy"}


@pytest.mark.parametrize("key, flips", [(None, (0x01, 0x20, 0x80)), (KEY, (0x01,))])
def test_every_changed_byte_is_found(workdir, key, flips):
    make("l", 2, key)
    content = (workdir / "l").read_bytes()
    for position in range(len(content)):
        for flip in flips:
            changed = bytearray(content)
            changed[position] ^= flip
            (workdir / "l").write_bytes(changed)
            with pytest.raises(LedgerError):
                Ledger("l", key).refuse_torn()
    (workdir / "l").write_bytes(content)
    Ledger("l", key).refuse_torn()


@pytest.mark.parametrize("inserted", [b" ", b"\n", b"0"])
def test_inserted_bytes_are_found(workdir, inserted):
    make("l", 1)
    content = (workdir / "l").read_bytes()
    for position in range(len(content) + 1):
        (workdir / "l").write_bytes(content[:position] + inserted + content[position:])
        with pytest.raises(LedgerError):
            Ledger("l").refuse_torn()


def test_removed_exchanged_and_repeated_entries_are_found(workdir):
    make("l", 4)
    lines = (workdir / "l").read_bytes().splitlines(keepends=True)
    one, two, three, four = lines
    for changed in ([two, three, four], [one, three, four], [one, three, two, four], [one, two, two], [*lines, four]):
        (workdir / "l").write_bytes(b"".join(changed))
        with pytest.raises(LedgerError, match="does not follow the line before it"):
            Ledger("l")
    (workdir / "l").write_bytes(one + two)  # the chain cannot tell: the checkpoint does, see test_verify.py
    assert len(Ledger("l").entries) == 2


def rewritten(entries, key=None):
    """A whole new chain without the first entry, by somebody who knows how."""
    previous, lines = FIRST, []
    for number, entry in enumerate(entries[1:], 1):
        entry = dataclasses.replace(entry, number=number, previous=previous, hash="").sealed(key)
        previous = entry.hash
        lines.append(entry.line())
    return b"".join(lines)


def test_only_a_key_keeps_the_whole_chain_from_being_written_anew(workdir):
    (workdir / "l").write_bytes(rewritten(make("plain").entries))
    assert len(Ledger("l").entries) == 2
    for forger in (None, "another key of many characters"):
        (workdir / "l").write_bytes(rewritten(make(f"keyed {forger}", key=KEY).entries, forger))
        with pytest.raises(LedgerError, match="does not have the hash that its content gives under this key"):
            Ledger("l", KEY)
    make("k", key=KEY)
    with pytest.raises(LedgerError, match=r"or it is kept with a key: give --ledger-key"):
        Ledger("k")


def test_a_half_written_line_is_completed_or_refused(workdir):
    ledger = make("l", 1)
    whole = (workdir / "l").read_bytes()
    entry = ledger.next_entry([Erased("r2", "5f" * 32, 1)], **facts(2))
    for length in [*range(0, len(entry.line()), 7), len(entry.line()) - 1]:
        (workdir / "l").write_bytes(whole + entry.line()[:length])
        again = Ledger("l")
        assert again.torn == entry.line()[:length] and len(again.entries) == 1
        if length:
            with pytest.raises(
                LedgerError, match=rf"{length} bytes after entry 1, .*cut it to its first {len(whole)} bytes"
            ):
                again.refuse_torn()
        if length > 200:  # so much belongs to that entry alone
            with pytest.raises(LedgerError, match="the last line is incomplete"):
                again.append(again.next_entry([Erased("other", "5f" * 32, 1)], **{**facts(2), "checkpoint_after": "x"}))
        again.append(entry)
        assert (workdir / "l").read_bytes() == whole + entry.line()


def test_an_entry_that_does_not_fit_is_not_appended(workdir):
    ledger = make("l", 1)
    before = (workdir / "l").read_bytes()
    for requests, changed, message in [
        ([Erased("r1", "5f" * 32, 1)], {}, "answers request 'r1', which is answered already"),
        ([], {"model_before": "m7"}, "starts from another model than line 1 left"),
    ]:
        with pytest.raises(LedgerError, match=message):
            ledger.append(ledger.next_entry(requests, **{**facts(2), **changed}))
    with pytest.raises(LedgerError, match="does not follow"):
        ledger.append(ledger.entries[0].__class__(**{**vars(ledger.entries[0]), "requests": ()}).sealed())
    assert (workdir / "l").read_bytes() == before
