"""What a correction did, for the user's records."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from recbole_llmd.unlearning.mapping.correction import Change, Correction
from recbole_llmd.unlearning.request import Request


class Pairs(NamedTuple):
    """Interactions removed or added: internal ids, and their entries of X.

    >>> Pairs([2], [1], [1.0]).values
    [1.0]
    """

    users: list[int]
    items: list[int]
    values: list[float]


@dataclass(frozen=True)
class Receipt:
    """The record of one request.

    Attributes:
        request: ``"forget"``, ``"learn"`` or ``"refit"``.
        model, mode: the mapping model and the mode of the engine.
        users, interactions: how many were concerned, and how many pairs were removed or added (in the mode "none":
            asked for).
        digest, salt: SHA-256 over the salt and the pairs
            (:func:`~recbole_llmd.unlearning.digests.digest_of_request`), which proves to who has both what the request
            was about. The salt is a secret, since with it all pairs can be tried: :meth:`json` leaves it out. It is
            None if it was given to the engine.
        pairs: the pairs themselves, only if the engine was asked to keep them: this is personal data.
        skipped: pairs of the request that were not in X (forget) or already there (learn); only with ``strict=False``.
        new_users, new_items: how many the model grew by (in the mode "none": was to grow by).
        method: what was done to B, such as ``"low-rank update"`` or ``"refit"``.
        estimates: seconds that the methods to choose from were expected to take (EASE).
        residual, tolerance: how far B is from solving its equations, and what is allowed; None where it is exact.
        notes: what the user should know, such as why B was fitted anew.
        seconds: the correction alone, from the request to the corrected model, without the two hashes.
        hash_seconds: both hashes.
        peak_bytes: memory above what the process held before the correction; None where the system does not tell.
        hash_before, hash_after: of the model (:class:`~recbole_llmd.unlearning.model_hash.ModelHash`); None if the
            engine does not hash.

    >>> Receipt(request="forget", model="EASE", mode="mapping", users=1, interactions=3).skipped
    0
    """

    request: str
    model: str
    mode: str
    users: int
    interactions: int
    digest: str | None = None
    salt: str | None = None
    pairs: Pairs | None = None
    skipped: int = 0
    new_users: int = 0
    new_items: int = 0
    method: str = "none"
    estimates: Mapping[str, float] = field(default_factory=dict)
    residual: float | None = None
    tolerance: float | None = None
    notes: Sequence[str] = ()
    seconds: float = 0.0
    hash_seconds: float = 0.0
    peak_bytes: int | None = None
    hash_before: str | None = None
    hash_after: str | None = None

    @classmethod
    def of(cls, request: Request | None, change: Change, correction: Correction, *, model: str, mode: str) -> Receipt:
        """What a correction did for a request (None for a refit); what names or costs something is not in it yet."""
        return cls(
            request="refit" if request is None else request.kind,
            model=model,
            mode=mode,
            users=len(change.users),
            interactions=change.delta.nnz,
            new_users=0 if request is None else len(request.new_users),
            new_items=0 if request is None else len(request.new_items),
            method=correction.method,
            estimates=correction.estimates,
            residual=correction.residual,
            tolerance=correction.tolerance,
            notes=correction.notes,
        )

    def json(self) -> str:
        """The receipt as JSON text, without the salt: beside the digest it would let anybody try all pairs."""
        return json.dumps({key: value for key, value in dataclasses.asdict(self).items() if key != "salt"}, indent=1)
