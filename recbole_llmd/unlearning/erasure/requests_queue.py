"""Requests to forget, answered in batches on one checkpoint, each exactly once.

A request is a forget file in a folder (``<id>.forget``), or the lines of one id in a file with the column
``request_id:token``. A batch is answered like this, under the ledger's lock:

1. What a killed run began is brought to its end (:mod:`~recbole_llmd.unlearning.erasure.exchange`, which has the order
   of all writes and says what each moment of a crash means).
2. Requests whose ids the ledger has are done. The others are taken, up to ``batch_size``, once there are so many or
   the oldest has waited for ``deadline`` seconds.
3. One correction removes all that the batch names; the checkpoint is exchanged, and one entry of the ledger names every
   request of the batch.

Killed at any moment, the next run finds each request either in the ledger or still open, and the model as the ledger
says. A request that cannot be answered (an unknown user, say) holds up no other; it stays open and is named at the end.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray
from recbole.config import Config

from recbole_llmd.data.atomic_file import read_atomic_file
from recbole_llmd.errors import CheckpointError, DataError, RequestError, SettingsError
from recbole_llmd.unlearning.digests import digest_of_request, named_in
from recbole_llmd.unlearning.erasure.durable import file_sha256, locked
from recbole_llmd.unlearning.erasure.exchange import Exchange
from recbole_llmd.unlearning.erasure.ledger import Erased, Ledger
from recbole_llmd.unlearning.erasure.secrets_files import read_salt
from recbole_llmd.unlearning.erasure.suppression import SuppressionList
from recbole_llmd.unlearning.forget_file import named_by, read_forget_file
from recbole_llmd.unlearning.request import Request, entries_of, pairs_of
from recbole_llmd.unlearning.unlearner import Unlearner

SUFFIX = ".forget"  # of the files of a folder that are requests; others, half-copied ones say, are left alone
REQUEST_ID = "request_id"


@dataclass(frozen=True)
class ErasureRequest:
    """What one request names.

    Attributes:
        id: its id.
        users: tokens ``[n]``.
        items: tokens ``[n]``, or None where the users are forgotten whole.
        received: when its file was written, in seconds since 1970.

    >>> ErasureRequest("2026-001", ["u3"], None, received=0.0).items is None
    True
    """

    id: str
    users: list[str] = field(repr=False)
    items: list[str] | None = field(repr=False)
    received: float


@dataclass
class Answers:
    """What a run of the queue did.

    Attributes:
        answered: ids, in the order in which they were answered.
        done_before: ids that the ledger had.
        waiting: ids that wait for more requests, or for the deadline.
        refused: why, by id.

    >>> Answers(answered=["2026-001"]).refused
    {}
    """

    answered: list[str] = field(default_factory=list)
    done_before: list[str] = field(default_factory=list)
    waiting: list[str] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)


# --- reading ----------------------------------------------------------------------------------------------------------


def read_requests(path: str | PathLike[str], config: Config, refused: dict[str, str]) -> list[ErasureRequest]:
    """The requests in a folder, by name, or in a file, in its order.

    Args:
        path: a folder of forget files ``<id>.forget``, or an atomic file with ``request_id:token``.
        config: the model's Config.
        refused: gets the files of the folder that cannot be read, by id, and why.

    Raises:
        DataError: if there is neither, or the file cannot be read as requests.
    """
    if os.path.isdir(path):
        requests = []
        for file in sorted(entry for entry in Path(path).iterdir() if entry.suffix == SUFFIX):
            try:
                requests.append(ErasureRequest(file.stem, *read_forget_file(file, config), file.stat().st_mtime))
            except DataError as error:
                refused[file.stem] = str(error)
        return requests
    if os.path.isfile(path):
        return _requests_in_file(path, config)
    raise DataError(f"queue = {os.fspath(path)!r}: is not there. Give a folder of *{SUFFIX} files, or an atomic file.")


def _requests_in_file(path: str | PathLike[str], config: Config) -> list[ErasureRequest]:
    frame, _ = read_atomic_file(path, config)
    if list(frame.columns).count(REQUEST_ID) != 1 or (frame[REQUEST_ID] == "").any():
        raise DataError(
            f"queue = {os.fspath(path)!r}: a file of requests has the column {REQUEST_ID}:token once, and an id in "
            "every line. Add it, or give a folder with one forget file a request."
        )
    ids = frame[REQUEST_ID]
    users, items = named_by(frame.drop(columns=REQUEST_ID), path, config)
    lines: dict[str, list[int]] = {}
    for number, name in enumerate(ids):
        lines.setdefault(name, []).append(number)
    received = os.path.getmtime(path)
    return [
        ErasureRequest(name, [users[n] for n in of], None if items is None else [items[n] for n in of], received)
        for name, of in lines.items()
    ]


# --- answering --------------------------------------------------------------------------------------------------------


def answer_queue(
    queue: str | PathLike[str],
    checkpoint: str | PathLike[str],
    ledger: str | PathLike[str],
    *,
    batch_size: int = 100,
    deadline: float = 0.0,
    strict: bool = True,
    suppression_list: str | PathLike[str] | None = None,
    key: str | None = None,
) -> Answers:
    """Answer the open requests of a queue on a checkpoint, which is replaced.

    Args:
        queue: see :func:`read_requests`.
        checkpoint: of EASE, ItemKNN, SLIMElastic, ADMMSLIM or NCEPLRec; after every batch the corrected one is in its
            place.
        ledger: the file of the ledger; it is made by the first batch, and its salt in ``<ledger>.salt``.
        batch_size: the most requests that one correction answers.
        deadline: how many seconds requests may wait for a batch to fill; 0 answers all at once.
        strict: refuse a request that names what is not in the model, instead of skipping that.
        suppression_list: the list that what was forgotten is added to, or None.
        key: the text of the ledger's key, if it has one.

    Returns:
        Which requests were answered, and which not, and why.

    Raises:
        SettingsError: if the batch size or the deadline is out of range.
        LedgerError: if the ledger is damaged, or not that of this checkpoint.
        LLMDError: if the checkpoint or the queue cannot be read, or another process works on the ledger.
    """
    if batch_size < 1:
        raise SettingsError(f"batch-size = {batch_size!r}: must be a whole number of at least 1.")
    if not deadline >= 0:
        raise SettingsError(f"deadline = {deadline!r}: must be a number of seconds of at least 0.")
    if not os.path.isfile(checkpoint):
        raise CheckpointError(
            f"checkpoint = {os.fspath(checkpoint)!r}: there is no such file. Give the one to correct."
        )
    with locked(ledger):
        listed = None if suppression_list is None else SuppressionList(suppression_list, create=True)
        exchange = Exchange(checkpoint, Ledger(ledger, key), listed.add if listed else None)
        exchange.recover()
        salt = read_salt(f"{os.fspath(ledger)}.salt", create=exchange.ledger.last is None)
        engine, answers = Unlearner.from_checkpoint(checkpoint), Answers()
        known = _ever_in(engine)
        requests = read_requests(queue, engine.config, answers.refused)
        still_open = _open(requests, exchange.ledger, salt, answers)
        if listed is not None:
            _list_done(requests, answers, listed)
        for batch in _batches(still_open, batch_size, deadline, answers):
            _answer(batch, engine, known, exchange, salt, listed, strict, answers)
    return answers


def _open(requests: Sequence[ErasureRequest], ledger: Ledger, salt: str, answers: Answers) -> list[ErasureRequest]:
    """The requests that the ledger does not have yet."""
    still_open = []
    for request in requests:
        done = ledger.done.get(request.id)
        if done is None:
            still_open.append(request)
        elif done.digest == digest_of_request(salt, request.users, request.items):
            answers.done_before.append(request.id)
        else:
            answers.refused[request.id] = (
                f"request {request.id!r}: was answered when it named something else. Give what is new another id."
            )
    return still_open


def _list_done(requests: Sequence[ErasureRequest], answers: Answers, listed: SuppressionList) -> None:
    """Add what was answered before the list was there."""
    done = [request for request in requests if request.id in answers.done_before]
    lines = [line for request in done for line in listed.lines(request.users, request.items)]
    if not set(lines) <= set(listed.entries):
        listed.add(lines)


def _batches(
    requests: list[ErasureRequest], size: int, deadline: float, answers: Answers
) -> Iterator[list[ErasureRequest]]:
    """Full batches, and the rest if its oldest request has waited long enough."""
    for start in range(0, len(requests), size):
        batch = requests[start : start + size]
        if len(batch) == size or time.time() - min(request.received for request in batch) >= deadline:
            yield batch
        else:
            answers.waiting += [request.id for request in batch]


def _answer(
    batch: Sequence[ErasureRequest],
    engine: Unlearner,
    known: sp.csr_matrix,
    exchange: Exchange,
    salt: str,
    listed: SuppressionList | None,
    strict: bool,
    answers: Answers,
) -> None:
    """Forget what a batch names, in the engine, the checkpoint and the ledger."""
    taken, erased, suppressed = np.zeros(0, np.int64), list[Erased](), list[str]()
    for request in batch:
        try:
            pairs, missing = _pairs_to_forget(engine, request, known, strict)
        except RequestError as error:
            answers.refused[request.id] = f"request {request.id!r}: {error}"
            continue
        new = np.setdiff1d(pairs, taken)
        taken = np.concatenate([taken, new])
        digest = digest_of_request(salt, request.users, request.items)
        erased.append(Erased(request.id, digest, len(new), missing))
        suppressed += listed.lines(request.users, request.items) if listed else []
    if not erased:
        return
    before = engine.fingerprint(), file_sha256(exchange.checkpoint)
    method, n_items = "nothing to correct", engine.X.shape[1]
    if len(taken):
        method = engine.apply(Request("forget", taken // n_items, taken % n_items)).method
        exchange.prepare(engine.save)
    entry = exchange.ledger.next_entry(
        erased,
        model=engine.name,
        method=method,
        checkpoint_before=before[1],
        checkpoint_after=file_sha256(exchange.next) if len(taken) else before[1],
        model_before=before[0],
        model_after=engine.fingerprint(),
    )
    exchange.carry_out(entry, suppressed)
    answers.answered += [request.id for request in erased]


def _pairs_to_forget(
    engine: Unlearner, request: ErasureRequest, known: sp.csr_matrix, strict: bool
) -> tuple[NDArray[np.int64], int]:
    """The pairs in X that a request names, as user · n_items + item, and how many users or pairs have none there.

    Args:
        engine: of the model.
        request: what is asked.
        known: all interactions that the model ever had, CSR like X: what an earlier request has removed is no mistake.
        strict: whether a user or pair that is in neither is refused.

    Raises:
        RequestError: if one is.
    """
    named, whole, n_items = named_in(request.users, request.items), request.items is None, engine.X.shape[1]
    there = named if strict else [names for names in named if _has_tokens(engine, names)]
    users = engine.user_ids.to_internal([names[0] for names in there])[0]
    items = engine.item_ids.to_internal([names[1] for names in there])[0] if not whole else users[:0]
    found, ever = (
        np.diff(M.indptr)[users] > 0 if whole else entries_of(M, users, items) != 0 for M in (engine.X, known)
    )
    never = int((~(found | ever)).sum())
    if strict and never:
        raise RequestError(
            f"{never} of the {'users' if whole else 'pairs'} named never were in X, the training interactions. Leave "
            "them out, or skip such (strict=False; --skip-missing on the command line)."
        )
    owners, items = pairs_of(engine.X, users) if whole else (users[found], items[found])
    return np.unique(owners * n_items + items).astype(np.int64), len(named) - int(found.sum())


def _ever_in(engine: Unlearner) -> sp.csr_matrix:
    """The interactions of the training data, and those that the model has now; CSR [n_users, n_items]."""
    trained_on = engine.in_files
    return engine.X if trained_on is None else (trained_on + engine.X).tocsr()


def _has_tokens(engine: Unlearner, names: tuple[str, ...]) -> bool:
    tokens = [ids.dataset.field2token_id[ids.field] for ids in (engine.user_ids, engine.item_ids) if ids.dataset]
    return all(name in known for name, known in zip(names, tokens))


def report(answers: Answers) -> None:
    """Print what a run of the queue did.

    Raises:
        RequestError: if a request was refused, after all others were answered.
    """
    for text, ids in (
        ("answered", answers.answered),
        ("done before", answers.done_before),
        ("waiting for more requests or the deadline", answers.waiting),
    ):
        print(f"{len(ids)} requests {text}" + (f": {', '.join(ids)}" if ids else ""))
    if answers.refused:
        raise RequestError(
            f"{len(answers.refused)} requests were refused and stay open: " + " ".join(answers.refused.values())
        )
