"""What the engines have in common: requests by tokens or ids, and what receipts say of them."""

from __future__ import annotations

import secrets
from abc import ABC, abstractmethod
from dataclasses import replace
from time import perf_counter
from typing import Any

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from recbole_llmd.errors import RequestError, SettingsError
from recbole_llmd.unlearning.digests import digest_of_request
from recbole_llmd.unlearning.identifiers import Identifiers
from recbole_llmd.unlearning.mapping.correction import Change
from recbole_llmd.unlearning.receipt import Pairs, Receipt
from recbole_llmd.unlearning.request import Request


class NamedRequests(ABC):
    """An engine whose requests name users and items by tokens or internal ids, and which answers with receipts."""

    hashes: bool
    keep_pairs: bool
    salt: str | None

    @property
    @abstractmethod
    def user_ids(self) -> Identifiers:
        """The model's users, by what names them."""

    @property
    @abstractmethod
    def item_ids(self) -> Identifiers:
        """The model's items, by what names them."""

    @abstractmethod
    def apply(self, request: Request) -> Receipt:
        """Correct the model as ``request`` says."""

    def _set_receipts(self, hashes: bool, keep_pairs: bool, salt: str | None) -> None:
        """What receipts are to hold."""
        for key, value, kinds, rule in (
            ("hashes", hashes, bool, "True or False"),
            ("keep_pairs", keep_pairs, bool, "True or False"),
            ("salt", salt, (str, type(None)), "a text, or None"),
        ):
            if not isinstance(value, kinds):
                raise SettingsError(f"{key} = {value!r}: expected {rule}.")
        self.hashes, self.keep_pairs, self.salt = hashes, keep_pairs, salt

    def forget(self, users: object, items: object, *, ids: str = "token", strict: bool = True) -> Receipt:
        """Remove interactions; pair ``n`` is user ``n`` with item ``n``. Repeated pairs count once.

        Args:
            users: one or many.
            items: as many as users; none is an empty request, which is recorded.
            ids: ``"token"`` if they are tokens (strings, as in the data files), ``"internal"`` if they are RecBole's
                internal ids (whole numbers).
            strict: whether a pair that is not in X is refused; else it is skipped and counted in the receipt.

        Raises:
            RequestError: if an id is unknown or of another type, or a pair is not in X.
        """
        started = perf_counter()
        user_ids, _ = self.user_ids.to_internal(users, ids)
        item_ids, _ = self.item_ids.to_internal(items, ids)
        return self._answered(Request("forget", user_ids, item_ids, strict=strict), started)

    def _answered(self, request: Request, started: float, skipped: int = 0) -> Receipt:
        """:meth:`apply`, whose receipt also counts the time since ``started`` and what was skipped before."""
        resolving = perf_counter() - started
        receipt = self.apply(request)
        return replace(receipt, seconds=receipt.seconds + resolving, skipped=receipt.skipped + skipped)

    @staticmethod
    def _without_pairs(
        identifiers: Identifiers, leaving: NDArray[np.int64], owners: NDArray[np.int64], strict: bool
    ) -> int:
        """How many of ``leaving`` have no pair among those of ``owners``; with ``strict`` there must be none."""
        if not isinstance(strict, bool):
            raise RequestError(f"strict = {strict!r}: expected True or False.")
        without = np.setdiff1d(leaving, owners)
        if strict and len(without):
            raise RequestError(
                f"{identifiers.name(int(without[0]))}: there is no interaction to forget. Leave it out, or skip such "
                f"(strict=False; --skip-missing on the command line)."
            )
        return len(without)

    def _change(self, request: Request, X: sp.csr_matrix) -> tuple[Change, int]:
        """What a request changes in X, which is already grown, and how many of its pairs are skipped.

        Raises:
            RequestError: if one does not apply, and the request is strict.
        """
        pairs = request.distinct()
        applies = pairs.applies_to(X)
        if request.strict and not applies.all():
            raise self._not_applicable(pairs.subset(~applies), len(pairs))
        return pairs.subset(applies).change(X), int((~applies).sum())

    def _not_applicable(self, pairs: Request, asked: int) -> RequestError:
        problem = "to forget are not in X" if pairs.kind == "forget" else "to learn are already in X"
        user, item = self.user_ids.name(int(pairs.users[0])), self.item_ids.name(int(pairs.items[0]))
        return RequestError(
            f"{len(pairs)} of {asked} pairs {problem}, the training interactions; the first: {user}, {item}. Leave "
            f"them out, or skip such (strict=False; --skip-missing on the command line)."
        )

    def _named(self, change: Change) -> dict[str, Any]:
        """What a receipt says of the pairs: their salted digest, and the pairs only if they are to be kept."""
        pairs = Pairs(*change.pairs)
        salt = secrets.token_hex(16) if self.salt is None else self.salt
        users, items = self.user_ids, self.item_ids
        named = [users.token(number) for number in pairs.users], [items.token(number) for number in pairs.items]
        return {
            "digest": digest_of_request(salt, *named),
            "salt": salt if self.salt is None else None,
            "pairs": pairs if self.keep_pairs else None,
        }
