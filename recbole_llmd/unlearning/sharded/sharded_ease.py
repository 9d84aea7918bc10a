"""EASE whose matrix is divided among processes: for catalogues whose B fits no single memory.

B = I - P·diag(1/P_jj), P = (XᵀX + λI)⁻¹, as :mod:`~recbole_llmd.unlearning.mapping.ease` has it. Every process holds X
and some columns of P (:class:`~recbole_llmd.unlearning.sharded.inverse.ShardedInverse`). A request changes P by
P' = P - W·K⁻¹·Wᵀ with W = P·U of few columns: once W is known, each process corrects its columns by itself. All
processes call the same methods with the same arguments in the same order; what they decide follows from numbers that
all of them have.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from os import PathLike
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse as sp
from numpy.typing import ArrayLike, DTypeLike, NDArray

from recbole_llmd.errors import (
    CheckpointError,
    DataError,
    ModelError,
    RequestError,
    UnsolvedError,
)
from recbole_llmd.unlearning.mapping import ease
from recbole_llmd.unlearning.mapping.components import separation
from recbole_llmd.unlearning.mapping.correction import Change, Correction
from recbole_llmd.unlearning.receipt import Receipt
from recbole_llmd.unlearning.request import Request
from recbole_llmd.unlearning.sharded.arguments import checked_ids, checked_k, checked_model, checked_pairs
from recbole_llmd.unlearning.sharded.files import DESCRIPTION, describe_in, description_in, hash_of, refuse_model_in
from recbole_llmd.unlearning.sharded.inverse import ShardedInverse
from recbole_llmd.unlearning.sharded.processes import Processes

if TYPE_CHECKING:
    import torch.distributed as dist

UPDATED = 1 / 4  # of a process's share of n_items: requests of a higher rank are fitted anew
BATCH = 256  # users

Matrix = NDArray[Any]


class ShardedEASE:
    """EASE over the processes of a ``torch.distributed`` group, or in one process, with exact corrections.

    Each process holds X and n_items² / (number of processes) numbers, in memory or in a file; beside them panels of 512
    rows in a fit, and a few rows for each rank of a request. Users and items are named by internal ids. After an error
    in the middle of a fit or a correction nothing is answered until :meth:`fit` has been called again; X is as before.

    Args:
        X: the interactions, CSR [n_users, n_items] with RecBole's padding (user 0, item 0); the same in all processes.
        reg_weight: λ, above 0.
        group: of a backend for the CPU (gloo); None for all processes.
        dtype: of P, float32 or float64.
        folder: where each process keeps its rows in a file, as :meth:`save` writes it; None for memory.

    Attributes:
        X: the interactions that are in the model.

    Raises:
        DataError: if X is no matrix of finite numbers, has fewer items than there are processes, or differs between
            them.
        SettingsError: if an argument is of the wrong kind.
        OutputError: if ``folder`` has a model already.

    >>> X = sp.csr_matrix([[0, 0, 0, 0], [0, 1, 1, 0], [0, 1, 0, 1]])
    >>> model = ShardedEASE(X, reg_weight=1.0, dtype="float64")
    >>> model.fit().method
    'refit'
    >>> model.scores([1]).round(3).tolist()
    [[0.0, 0.5, 0.4, 0.2]]
    >>> receipt = model.forget([2], [3])
    >>> receipt.interactions, receipt.residual < receipt.tolerance, bool(model.columns()[3].any())
    (1, True, False)
    >>> items, scores = model.topk([2], k=1)
    >>> items.tolist()
    [[2]]
    """

    def __init__(
        self,
        X: sp.csr_matrix,
        reg_weight: float,
        group: dist.ProcessGroup | None = None,
        dtype: DTypeLike = np.float32,
        folder: str | PathLike[str] | None = None,
    ) -> None:
        self.processes = Processes(group)
        self.folder = None if folder is None else Path(folder)
        together = self.processes.together
        self.X, self.reg_weight, self.dtype = together(lambda: checked_model(X, reg_weight, dtype, self.processes.size))
        if not self.processes.agree_on(f"{hash_of(self.X)} {self.reg_weight} {self.dtype}".encode()):
            raise DataError("X, reg_weight or dtype differ between the processes. Give all of them the same.")

        def inverse() -> ShardedInverse:
            refuse_model_in(self.folder)
            return ShardedInverse(self.X.shape[1], self.dtype, self.processes, self.folder)

        self._inverse = together(inverse)
        self._ready = False
        self._error = np.inf  # when P was last checked in all directions
        self._unchecked = 0  # the rank of the corrections since then

    @property
    def own_items(self) -> range:
        """The items whose scores this process holds."""
        return range(self._inverse.first, self._inverse.stop)

    # --- fit, forget and learn ----------------------------------------------------------------------------------------

    def fit(self) -> Receipt:
        """Fit on X: 2·n_items³ operations by all processes together.

        Raises:
            UnsolvedError: if the fit does not solve its equations: λ is too small for ``dtype``.
        """
        started = perf_counter()
        change = Change.none(self.X)
        return self._receipt(None, change, self._changed(self.X, lambda: self._fitted(self.X)), started)

    def forget(self, users: ArrayLike, items: ArrayLike, *, strict: bool = True) -> Receipt:
        """Remove interactions; pair ``n`` is user ``n`` with item ``n``. Repeated pairs count once.

        Args:
            users: internal ids [n].
            items: internal ids [n].
            strict: whether a pair that is not in X is refused; else it is skipped and counted in the receipt.

        Raises:
            RequestError: if an id is unknown, a pair is not in X, or the processes have different requests.
            ModelError: if the model is not fitted.
            UnsolvedError: as :meth:`fit`, where that was needed.
        """
        return self._answered("forget", users, items, None, strict)

    def learn(
        self, users: ArrayLike, items: ArrayLike, values: ArrayLike | None = None, *, strict: bool = True
    ) -> Receipt:
        """Add interactions of users and items that X has rows and columns for; ``values`` are its entries, 1 if None.

        Raises:
            RequestError: if an id is unknown, a pair is already in X, values do not fit, or the processes have
                different requests.
            ModelError: if the model is not fitted.
            UnsolvedError: as :meth:`fit`, where that was needed.
        """
        return self._answered("learn", users, items, values, strict)

    def _answered(
        self, kind: str, users: ArrayLike, items: ArrayLike, values: ArrayLike | None, strict: bool
    ) -> Receipt:
        started = perf_counter()

        def checked() -> tuple[Request, NDArray[np.bool_]]:
            self._refuse_unfitted()
            weights: Any = values  # checked by the request
            request = Request(kind, self._ids("user", users), self._ids("item", items), weights, strict=strict)
            return checked_pairs(request, self.X)

        pairs, applies = self.processes.together(checked)
        change = pairs.subset(applies).change(self.X)
        self._refuse_another(kind, change.pairs)
        if len(change.users):
            correction = self._changed(change.X, lambda: self._corrected(change))
        else:
            correction = Correction(self._inverse, "nothing to correct")
        return replace(self._receipt(pairs, change, correction, started), skipped=int((~applies).sum()))

    def _fitted(self, X: sp.csr_matrix, reason: str | None = None) -> Correction:
        """P fitted on X; ``reason`` says what else was tried before."""
        try:
            self._inverse.fit(X, self.reg_weight)
        except np.linalg.LinAlgError as error:
            raise UnsolvedError(
                f"ShardedEASE cannot be fitted: {error} A larger reg_weight or float64 is needed."
            ) from error
        self._check(X)
        notes = ease.notes_of_fit(self._error, self.dtype, self.reg_weight, self._tolerance, reason)
        return Correction(self._inverse, "refit", {}, self._error, self._tolerance, notes=notes)

    def _corrected(self, change: Change) -> Correction:
        """P after the change. Operations, not seconds, decide: all processes must come to the same."""
        X, weight, tolerance, largest = change.X, self.reg_weight, self._tolerance, self.processes.largest
        factors, signature = ease.low_rank(change, self.X)
        rank = len(signature)
        if rank * self.processes.size > UPDATED * X.shape[1]:
            return self._fitted(X, f"the request has the rank {rank}")
        image, solved, after = ease.woodbury(self._inverse, factors, signature)
        if largest(float(not (np.isfinite(after).all() and (after > 0).all()))):
            return self._fitted(X, "the update was singular")
        self._inverse.subtract(image, solved)
        apart = separation(X, np.unique(self.X[change.users].indices))
        if len(apart.items):
            self._inverse.separate(apart, ease.squares(X, apart.alone), weight)
        self._inverse.read_diagonal()
        probes = ease.profiles(change)
        error = largest(ease.backward_error(X, weight, self._inverse.inverse_rows(probes), probes.toarray()))
        self._unchecked += rank
        if self._unchecked > ease.PENDING:
            self._check(X)
            error = max(error, self._error)
        if error > tolerance:
            return self._fitted(X, f"backward error {error:.1e} of the update above {tolerance:.0e}")
        return Correction(self._inverse, "low-rank update", {"rank": rank}, error, tolerance)

    def _check(self, X: sp.csr_matrix) -> None:
        """Measure the backward error in all directions."""
        self._error = self.processes.largest(ease.worst_error(self._inverse, X, self.reg_weight, X[:0]))
        self._unchecked = 0

    def _changed(self, X: sp.csr_matrix, correct: Callable[[], Correction]) -> Correction:
        """Let ``correct`` write P, which belongs to X then."""
        together = self.processes.together
        self._ready = False
        together(self._begin)
        correction = correct()
        together(self._inverse.end)
        self.X, self._ready = X, True
        if (folder := self.folder) is not None:
            together(lambda: self._describe_in(folder))
        return correction

    def _begin(self) -> None:
        if self.folder is not None and self.processes.rank == 0:
            (self.folder / DESCRIPTION).unlink(missing_ok=True)  # until the model is whole again
        self._inverse.begin()

    # --- scores -------------------------------------------------------------------------------------------------------

    def scores(self, users: ArrayLike) -> Matrix:
        """Scores X·B of ``users`` [m] for :attr:`own_items`, [m, len(own_items)]; all processes ask together."""
        rows = self._rows_of("scores", users)
        return np.vstack([self._scores(batch) for batch in _batches(rows)])

    def topk(self, users: ArrayLike, k: int, *, mask_seen: bool = True) -> tuple[NDArray[np.int64], Matrix]:
        """The k best items of ``users`` [m] and their scores, both [m, k], the same in all processes.

        RecBole's padding is none of them; of equal scores the lower id comes first. Where fewer items are left, the
        rest are 0 with the score -inf.

        Args:
            users: internal ids.
            k: at most the number of items.
            mask_seen: whether the items that a user has are left out.

        Raises:
            RequestError: if a user is unknown, k does not fit, or the processes ask for different users.
        """
        rows = self._rows_of("topk", users, k, mask_seen)
        found = [self._best(batch, k, mask_seen) for batch in _batches(rows)]
        return np.vstack([items for items, _ in found]), np.vstack([scores for _, scores in found])

    def columns(self) -> Matrix:
        """B[:, own_items] as an array [n_items, len(own_items)] of its own: for comparisons of small models."""
        self._refuse_unfitted()
        own = self._inverse.own
        B: Matrix = -(self._inverse.block.T / self._inverse.diagonal[own].astype(self.dtype))
        B[np.arange(own.start, own.stop), np.arange(B.shape[1])] = 0
        return B

    def _scores(self, rows: sp.csr_matrix) -> Matrix:
        own = self._inverse.own
        answers = self._inverse.inverse_rows(rows)[:, own] / self._inverse.diagonal[own].astype(self.dtype)
        scores: Matrix = rows[:, own].toarray().astype(self.dtype) - answers
        return scores

    def _best(self, rows: sp.csr_matrix, k: int, mask_seen: bool) -> tuple[NDArray[np.int64], Matrix]:
        scores, first, rank = self._scores(rows), self._inverse.first, self.processes.rank
        if mask_seen:
            scores[rows[:, self._inverse.own].nonzero()] = -np.inf
        if first == 0:
            scores[:, 0] = -np.inf
        kept = np.argsort(-scores, axis=1, kind="stable")[:, :k]
        # Each process fills its part, and the sum has all of them.
        shape = (self.processes.size, len(scores), k)
        items, best = np.zeros(shape, np.int64), np.zeros(shape, self.dtype)
        best[rank] = -np.inf
        items[rank, :, : kept.shape[1]] = kept + first
        best[rank, :, : kept.shape[1]] = np.take_along_axis(scores, kept, axis=1)
        self.processes.add(items)
        self.processes.add(best)
        items, best = np.hstack(list(items)), np.hstack(list(best))
        items[np.isneginf(best)] = 0
        order = np.lexsort((items, -best), axis=1)[:, :k]
        return np.take_along_axis(items, order, axis=1), np.take_along_axis(best, order, axis=1)

    def _rows_of(self, what: str, users: ArrayLike, k: int = 1, mask_seen: bool = True) -> sp.csr_matrix:
        """The rows of X of the users, after a check that all processes ask for the same."""

        def checked() -> NDArray[np.int64]:
            self._refuse_unfitted()
            checked_k(k, self.X.shape[1])
            return self._ids("user", users)

        ids = self.processes.together(checked)
        self._refuse_another(what, ids.tolist(), int(k), bool(mask_seen))
        return self.X[ids]

    # --- files --------------------------------------------------------------------------------------------------------

    def save(self, folder: str | PathLike[str]) -> None:
        """Write the rows of every process, a file each, and a description, last. X is not written: it is yours.

        Raises:
            ModelError: if the model is not fitted.
            OutputError: if ``folder`` has a model already.
        """
        to = Path(folder)

        def write() -> None:
            self._refuse_unfitted()
            refuse_model_in(to)
            self._inverse.write_rows(to)

        self.processes.together(write)
        self.processes.together(lambda: self._describe_in(to))

    @classmethod
    def load(
        cls,
        source: str | PathLike[str],
        X: sp.csr_matrix,
        group: dist.ProcessGroup | None = None,
        folder: str | PathLike[str] | None = None,
    ) -> ShardedEASE:
        """The model that :meth:`save` wrote, or another one kept in its ``folder``, in any number of processes.

        Args:
            source: a folder that all processes can read.
            X: the interactions that were in the model then.
            group: as for the class.
            folder: as for the class; not ``source``.

        Raises:
            CheckpointError: if there is no whole model, it is of other interactions, or its files are damaged.
        """
        at, processes = Path(source), Processes(group)
        description = processes.together(lambda: description_in(at))
        model = cls(X, description["reg_weight"], group, description["dtype"], folder)
        if hash_of(model.X) != description["X"]:
            raise CheckpointError(
                f"{at}: the model is of other interactions. Give the X that it had when it was saved."
            )

        def read() -> Correction:
            processes.together(lambda: model._inverse.read_rows(at, description["rows"]))
            model._inverse.read_diagonal()
            model._check(model.X)
            if not model._error <= max(model._tolerance, ease.AS_A_FIT * description["error"]):
                raise CheckpointError(
                    f"{at}: backward error {model._error:.1e}: a file is damaged. Fit the model anew."
                )
            return Correction(model._inverse, "loaded")

        model._changed(model.X, read)
        return model

    def _describe_in(self, folder: Path) -> None:
        if self.processes.rank == 0:
            facts = {"reg_weight": self.reg_weight, "dtype": str(self.dtype), "error": self._error}
            describe_in(folder, {**facts, "rows": self._inverse.ranges, "X": hash_of(self.X)})

    # --- what is asked and answered -----------------------------------------------------------------------------------

    @property
    def _tolerance(self) -> float:
        return ease.TOLERANCE[str(self.dtype)]

    def _ids(self, kind: str, given: ArrayLike) -> NDArray[np.int64]:
        return checked_ids(kind, given, self.X.shape[kind == "item"])

    def _refuse_unfitted(self) -> None:
        if not self._ready:
            raise ModelError("the model is not fitted, or a correction did not come to its end: call fit() first.")

    def _refuse_another(self, *content: object) -> None:
        if not self.processes.agree_on(repr(content).encode()):
            raise RequestError("the processes were asked for different things. Ask all of them for the same.")

    def _receipt(self, request: Request | None, change: Change, correction: Correction, started: float) -> Receipt:
        receipt = Receipt.of(request, change, correction, model=type(self).__name__, mode="mapping")
        return replace(receipt, seconds=perf_counter() - started)


def _batches(rows: sp.csr_matrix) -> Iterator[sp.csr_matrix]:
    """At most ``BATCH`` rows each; one that is empty if there are none."""
    return (rows[first : first + BATCH] for first in range(0, max(rows.shape[0], 1), BATCH))
