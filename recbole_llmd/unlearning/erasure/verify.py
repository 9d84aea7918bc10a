"""Whether a ledger, a checkpoint and the interactions in it agree, and nothing forgotten is left."""

from __future__ import annotations

import os
from dataclasses import dataclass
from os import PathLike
from typing import Any

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from recbole_llmd.errors import LedgerError, MappingMismatch
from recbole_llmd.unlearning import fingerprint
from recbole_llmd.unlearning.digests import digest_of_request, named_in
from recbole_llmd.unlearning.erasure.durable import file_sha256
from recbole_llmd.unlearning.erasure.ledger import Ledger
from recbole_llmd.unlearning.erasure.secrets_files import read_salt
from recbole_llmd.unlearning.forget_file import read_forget_file
from recbole_llmd.unlearning.mapping.correction import Change, FittedMapping, explicit
from recbole_llmd.unlearning.unlearner import Unlearner

REFIT_TOLERANCE = {"float32": 1e-4, "float64": 1e-8}  # of the largest difference, relative to the largest entry


@dataclass(frozen=True)
class Finding:
    """One check: what was looked at, and whether it is as it should be.

    >>> str(Finding("no pair that was to be forgotten is in X", True))
    'ok      no pair that was to be forgotten is in X'
    """

    text: str
    clean: bool

    def __str__(self) -> str:
        return f"{'ok' if self.clean else 'FAILED':<8}{self.text}"


def verify(
    ledger: str | PathLike[str],
    checkpoint: str | PathLike[str],
    *,
    forget_file: str | PathLike[str] | None = None,
    refit: bool = False,
    key: str | None = None,
) -> list[Finding]:
    """Check a ledger's chain, its checkpoint, and the model in it.

    Args:
        ledger: the file; its salt is in ``<ledger>.salt``.
        checkpoint: the checkpoint that the ledger is about.
        forget_file: what is not to be in the model: see :func:`~recbole_llmd.unlearning.forget_file.read_forget_file`.
        refit: whether B is compared with a fit from scratch, too.
        key: the text of the ledger's key, if it has one.

    Returns:
        What was checked, all of it clean.

    Raises:
        LedgerError: naming the checks that failed, or why there is nothing to check.
    """
    chain = Ledger(ledger, key)
    if os.path.exists(f"{chain.path}.intent"):
        raise LedgerError(f"{chain.path}.intent is there: a queue was killed. Run recbole-llmd unlearn --queue first.")
    chain.refuse_torn()
    last = chain.last
    if last is None:
        raise LedgerError(f"ledger = {chain.path!r}: has no entry, so that nothing can be verified with it.")
    engine = Unlearner.from_checkpoint(checkpoint)
    findings = [
        Finding(f"the chain of {len(chain.entries)} entries, {len(chain.done)} requests", True),
        Finding("the checkpoint's SHA-256 is that of the last entry", file_sha256(checkpoint) == last.checkpoint_after),
        Finding("the model's hash is that of the last entry", fingerprint(engine.X, engine.B) == last.model_after),
    ]
    if forget_file is not None:
        users, items = read_forget_file(forget_file, engine.config)
        findings += _forgotten(engine, chain, users, items)
        profiles = _profiles(engine, users, items)
    else:
        profiles = np.zeros((0, engine.X.shape[1]))
    findings.append(_solves(engine, profiles))
    if refit:
        findings.append(_as_refitted(engine))
    if not all(finding.clean for finding in findings):
        failed = "; ".join(finding.text for finding in findings if not finding.clean)
        raise LedgerError(
            f"checkpoint = {os.fspath(checkpoint)!r} with ledger = {chain.path!r}: not so: {failed}. Entries may "
            "have been cut off, or a file replaced: restore both of one time, or forget the requests again."
        )
    return findings


def _internal(engine: Unlearner, users: list[str], items: list[str] | None) -> list[tuple[int, ...]]:
    """The internal ids of what a forget file names; what the model never knew is left out."""
    known = [ids.dataset.field2token_id[ids.field] for ids in (engine.user_ids, engine.item_ids) if ids.dataset]
    return [
        tuple(int(tokens[token]) for tokens, token in zip(known, named))
        for named in named_in(users, items)
        if all(token in tokens for tokens, token in zip(known, named))
    ]


def _forgotten(engine: Unlearner, chain: Ledger, users: list[str], items: list[str] | None) -> list[Finding]:
    """That nothing a forget file names is in X, and which entry of the ledger has that very request."""
    X = engine.X
    left = sum(X[ids].nnz if len(ids) == 1 else int(X[ids] != 0) for ids in _internal(engine, users, items))
    what = "interactions of users" if items is None else "pairs"
    findings = [Finding(f"{left} of the {what} that were to be forgotten are in X", left == 0)]
    salt_file = f"{chain.path}.salt"
    if os.path.exists(salt_file):
        digest = digest_of_request(read_salt(salt_file), users, items)
        ids = [erased.id for erased in chain.done.values() if erased.digest == digest]
        found = f"request {', '.join(ids)}" if ids else "no single request of the ledger"
        findings.append(Finding(f"what the forget file names is {found}", True))
    return findings


def _profiles(engine: Unlearner, users: list[str], items: list[str] | None) -> NDArray[Any]:
    """What was forgotten, as vectors over items [n, n_items]: the named items of each user.

    Of a user who was forgotten whole, today's data files tell the items, if they still have them.
    """
    if items is None:
        rows = engine.in_files
        if rows is None:
            return np.zeros((0, engine.X.shape[1]))
        profiles = rows[[ids[0] for ids in _internal(engine, users, None)]].toarray()
    else:
        pairs = _internal(engine, users, items)
        owners = {user: row for row, user in enumerate(dict.fromkeys(user for user, _ in pairs))}
        profiles = np.zeros((len(owners), engine.X.shape[1]))
        for user, item in pairs:
            profiles[owners[user], item] = 1
    kept: NDArray[Any] = profiles[profiles.any(axis=1)].astype(np.float64)
    return kept


def _solves(engine: Unlearner, profiles: NDArray[Any]) -> Finding:
    """That B is what X gives, asked with the forgotten profiles: a B that still knows them fails there most."""
    error_of = getattr(engine.mapping, "error_of", None)  # of the models that have equations to solve
    if error_of is None:
        return _solves_its_conditions(engine)
    allowed = engine.mapping.TOLERANCE[str(engine.B.dtype)]
    error = error_of(engine.B, engine.X, engine.params, sp.csr_matrix(profiles))
    return Finding(
        f"B solves the equations of X: backward error {error:.1e} over {len(profiles)} forgotten profiles and random "
        f"vectors, {allowed:.0e} allowed",
        error <= allowed,
    )


def _solves_its_conditions(engine: Unlearner) -> Finding:
    """That correcting B for no change at all, with nothing remembered, leaves it as it is."""
    fitted = FittedMapping(engine.X, engine.B, engine.params)
    try:
        corrected = engine.mapping.correct(fitted, Change.none(engine.X), engine.mapping.TOLERANCE[str(engine.B.dtype)])
    except MappingMismatch as error:
        return Finding(f"B is what X gives: {error}", False)
    difference = abs(corrected.B - engine.B).max()
    return Finding(f"B is what X gives: {corrected.method}; largest change {difference:.1e}", difference == 0)


def _as_refitted(engine: Unlearner) -> Finding:
    fitted = explicit(engine.mapping.fit(engine.X, engine.params, engine.B.dtype))
    B = explicit(engine.B)
    difference, largest = float(abs(fitted - B).max()), float(abs(fitted).max())
    allowed = REFIT_TOLERANCE[str(B.dtype)] * largest
    return Finding(
        f"B is that of a fit from scratch: largest difference {difference:.1e}, {allowed:.1e} allowed",
        difference <= allowed,
    )
