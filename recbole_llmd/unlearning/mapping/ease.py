"""EASE (Steck, WWW 2019, "Embarrassingly Shallow Autoencoders for Sparse Data"): fit and exact low-rank correction.

G = XᵀX + λI, P = G⁻¹, B = I - P·diag(1/P_jj) with diag(B) = 0. X and B determine P:

    P_jj = 1 / (G_jj - (G·B)_jj),   P = (I - B)·diag(P_jj)

A change of X changes G by U·S·Uᵀ of low rank with S⁻¹ = S, and P by Woodbury's identity:

    P' = P - W·K⁻¹·Wᵀ,   W = P·U,   K = S + Uᵀ·P·U

W and K⁻¹·Wᵀ stay beside B (:mod:`~recbole_llmd.unlearning.mapping.corrected_matrix`) until ``PENDING`` rows of them are
written into it together.

Between items that X' no longer connects (an item that nobody has any more, for one) P' is zero. There the identity
would leave rounding residues, which are made from what was forgotten and tell it: they are set to zero.

Whether a B belongs to X is seen from y = P·x, which should solve G·y = x, for some x: the componentwise backward error
max_j |G·y - x|_j / (|G|·|y| + |x|)_j (Oettli and Prager, 1964) is of the size of rounding whatever the condition of G.
For what was forgotten itself, x = the forgotten profile, it tells a corrected B from one that still knows it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import scipy.sparse as sp
from numpy.typing import DTypeLike, NDArray

from recbole_llmd.errors import MappingMismatch, UnsolvedError
from recbole_llmd.unlearning.mapping.components import separated_by
from recbole_llmd.unlearning.mapping.corrected_matrix import CorrectedMatrix, Inverse
from recbole_llmd.unlearning.mapping.correction import (
    Change,
    Correction,
    FittedMapping,
    MappingMatrix,
    gram,
    gram_rows,
    holds_interactions,
)
from recbole_llmd.unlearning.mapping.cost_model import cholesky_inverse, low_rank_seconds, refit_seconds
from recbole_llmd.unlearning.mapping.sparse_rows import Rows
from recbole_llmd.unlearning.mapping.threads import in_parallel

PARAMETERS: tuple[str, ...] = ("reg_weight",)
MATRIX = "item_similarity"
TOLERANCE = {"float32": 3e-5, "float64": 1e-11}  # of the componentwise backward error
REQUIRED: dict[str, Any] = {}

PENDING = 96  # the rank of the corrections that wait beside B
PROBES = 16  # vectors x that tell whether a B belongs to X
FEW = 8  # vectors, up to which SciPy multiplies them faster one by one
PROFILES = 4  # of those who forget, which tell whether it is forgotten
FLOOR = 1e-2
AS_A_FIT = 10  # times the error of a fit: a B that far from it is another's
USELESS = 1e-2  # the backward error of a fit that solves nothing
WORTH_COMPARING = 1 / 16  # of n: corrections of a lower rank are always cheaper than a fit

Matrix = NDArray[Any]
Float64 = NDArray[np.float64]


def fit(X: sp.csr_matrix, params: Mapping[str, Any], dtype: DTypeLike = np.float32) -> Matrix:
    """B [n_items, n_items], an array of ``dtype``; n_items³ operations (Cholesky) and no second n_items² array."""
    P = inverse_gram(X, params["reg_weight"], dtype)
    P /= -P.diagonal()
    np.fill_diagonal(P, 0)
    return P


def inverse_gram(X: sp.csr_matrix, weight: float, dtype: DTypeLike) -> Matrix:
    """(XᵀX + λI)⁻¹ [n, n] of X [m, n]."""
    P = gram(X, dtype)
    n = len(P)
    P[np.diag_indices(n)] += weight
    cholesky_inverse(P)
    for first, stop in _ranges(n, 512):  # mirror the upper triangle by blocks
        square = P[first:stop, first:stop]
        square[:] = np.triu(square) + np.triu(square, 1).T
        P[stop:, first:stop] = P[first:stop, stop:].T
    return P


def correct(fitted: FittedMapping, change: Change, tolerance: float) -> Correction:
    """B after the change, beside which the correction waits; fitted anew where that is cheaper or more exact.

    Extra memory: factors [rank, n_items], and one [n_items, n_items] array where corrections are written into B, or for
    a fit.

    Raises:
        MappingMismatch: if B is not the solution of X (checked at the first correction of a model).
        UnsolvedError: if even a fit has a backward error above ``tolerance``.
    """
    B = _corrected_matrix(fitted, change, tolerance)
    factors, signature = low_rank(change, fitted.X)
    n, rank, estimates = B.shape[0], len(signature), dict[str, float]()
    if rank > n * WORTH_COMPARING:
        estimates["low-rank update"] = low_rank_seconds(n, rank, factors.nnz, B.dtype)
        estimates["refit"] = refit_seconds(n, B.dtype)
        if estimates["refit"] < estimates["low-rank update"] or rank >= n:
            return refit(change.X, fitted.params, B.dtype, tolerance, estimates)
    return updated(B, (factors, signature), fitted, change, tolerance, estimates, refit)


def updated(
    B: CorrectedMatrix,
    low_rank: tuple[sp.csr_matrix, Float64],
    fitted: FittedMapping,
    change: Change,
    tolerance: float,
    estimates: dict[str, float],
    refit: Callable[..., Correction],
) -> Correction:
    """B after the change, whose factors and signature :func:`low_rank` gave; by ``refit`` where it is not exact."""
    factors, signature = low_rank
    weight = fitted.params["reg_weight"]
    image, solved, after = woodbury(B, factors, signature)
    if not (np.isfinite(after).all() and (after > 0).all()):
        return refit(change.X, fitted.params, B.dtype, tolerance, estimates, "the update was singular")
    apart, tree = separated_by(fitted.cache.get("tree"), fitted.X, change)
    if len(apart.items):
        after[apart.alone] = 1 / (squares(change.X, apart.alone) + weight)
    result = B.corrected(image, solved.astype(B.dtype), after, apart.alone)
    probes = profiles(change)
    error = backward_error(change.X, weight, result.inverse_rows(probes), probes.toarray())
    if not error <= tolerance:
        reason = f"backward error {error:.1e} of the update above {tolerance:.0e}"
        return refit(change.X, fitted.params, B.dtype, tolerance, estimates, reason)
    estimates["rank"] = len(signature)
    cache, islands = {"diagonal": after, "tree": tree}, len(apart.items) > len(apart.alone)
    if not islands and result.rank <= PENDING:
        return Correction(result, "low-rank update", estimates, error, tolerance, cache)
    labels = apart.labels if islands else None
    folded = written(result, change.X, fitted.params, tolerance, refit, labels)
    if folded.method == "refit":
        return folded
    return Correction(folded.B, "low-rank update", estimates, error, tolerance, cache)


def fold(B: CorrectedMatrix, X: sp.csr_matrix, params: Mapping[str, Any], tolerance: float) -> Correction:
    """B with what waits beside it written into it; fitted anew where the errors of corrections have added up."""
    return written(B, X, params, tolerance, refit)


def written(
    B: CorrectedMatrix,
    X: sp.csr_matrix,
    params: Mapping[str, Any],
    tolerance: float,
    refit: Callable[..., Correction],
    labels: NDArray[np.int64] | None = None,
) -> Correction:
    """:func:`fold` by ``refit``; zero between items of different ``labels`` [n_items], if there are any."""
    drift = _error_of(B, X, params["reg_weight"])  # in all directions, not in the last request's alone
    if not drift <= tolerance:
        reason = f"backward error {drift:.1e} of the corrections so far above {tolerance:.0e}"
        return refit(X, params, B.dtype, tolerance, {}, reason)
    return Correction(B.folded(labels), "fold", {}, drift, tolerance, {"diagonal": B.diagonal})


def trained_on(stored: Mapping[str, Any], X: sp.csr_matrix, params: Mapping[str, Any]) -> bool:
    """Whether the interactions stored with RecBole's model are X."""
    return holds_interactions(stored, X)


def derived(X: sp.csr_matrix, B: MappingMatrix, params: Mapping[str, Any]) -> dict[str, Any]:
    """Nothing: the model keeps X and B alone."""
    return {}


def low_rank(change: Change, X: sp.csr_matrix) -> tuple[sp.csr_matrix, Float64]:
    """Factors of G' - G = U·S·Uᵀ: Uᵀ (CSR [rank, n_items]) and S [rank, rank] with S⁻¹ = S.

    By users: U = [rows before, rows after], S = diag(-1, +1). By items, with D = X' - X and M = (X' + X) / 2:
    G' - G = DᵀM + MᵀD, so for the t columns in which D differs from zero U = [their unit vectors, MᵀD], S = [[0, I],
    [I, 0]]. The one of lower rank is taken: a popular item may be forgotten by thousands of users at rank 2.
    """
    n = X.shape[1]
    before, after = Rows.of(X, change.users), Rows.of(change.X, change.users)
    lost, gained = before.chosen(before.lengths > 0), after.chosen(after.lengths > 0)
    ranks = [len(rows.indptr) - 1 for rows in (lost, gained)]
    if sum(ranks) <= 2 * len(change.items):
        data, indices = np.concatenate([lost.data, gained.data]), np.concatenate([lost.indices, gained.indices])
        both = Rows(data, indices, np.append(lost.indptr, lost.indptr[-1] + gained.indptr[1:]))
        return both.matrix(n, np.float64), np.diag(np.repeat([-1.0, 1.0], ranks))
    t = len(change.items)
    units = sp.csr_matrix((np.ones(t), (np.arange(t), change.items)), shape=(t, n))
    signature: Float64 = np.kron(np.array([[0.0, 1.0], [1.0, 0.0]]), np.eye(t))
    mixed = change.delta[:, change.items].T.astype(np.float64) @ (
        (before.matrix(n, np.float64) + after.matrix(n, np.float64)) * 0.5
    )
    return sp.vstack([units, mixed]).tocsr(), signature


def inverse_diagonal(X: sp.csr_matrix, B: Matrix, weight: float) -> Float64:
    """P_jj = 1 / (G_jj - (G·B)_jj), [n_items] in float64, from the entries of XᵀX."""
    n, B = X.shape[1], np.asarray(B)  # RecBole's is a matrix
    product, counts = np.zeros(n), np.zeros(n)
    for first, block in gram_rows(X.astype(np.float64)):
        block = block.tocoo()
        product += np.bincount(block.col, block.data * B[first + block.row, block.col], n)
        on_diagonal = block.row + first == block.col
        counts[block.col[on_diagonal]] = block.data[on_diagonal]
    return 1 / (counts + weight - product)


def woodbury(B: Inverse, factors: sp.csr_matrix, signature: Float64) -> tuple[Matrix, Float64, Float64]:
    """Wᵀ = Uᵀ·P [rank, n_items] in B's dtype; K⁻¹·Wᵀ and the diagonal of P' [n_items] in float64 (NaN if singular)."""
    image = B.inverse_rows(factors)
    capacitance = signature + factors @ image.T.astype(np.float64)
    solved = np.full(image.shape, np.nan)
    try:
        inverse = np.linalg.inv((capacitance + capacitance.T) / 2)  # twice as fast as solving for n_items
    except np.linalg.LinAlgError:
        return image, solved, solved[0]  # the caller refits

    def solve(ranges: Iterable[tuple[int, int]]) -> None:
        # BLAS's own threads would wait busily for the next call, at the expense of what follows.
        for first, stop in ranges:
            np.matmul(inverse, image[:, first:stop], out=solved[:, first:stop])

    if len(signature) > PENDING:
        in_parallel(solve, _ranges(image.shape[1], 1024))
    else:
        solve([(0, image.shape[1])])
    return image, solved, B.diagonal - np.einsum("rj,rj->j", image, solved)


def backward_error(X: sp.csr_matrix, weight: float, answers: Matrix, probes: Matrix) -> float:
    """max |G·y - x| / (|G|·|y| + |x|) over the rows y of ``answers`` and x of ``probes`` [m, n_items]; y = G⁻¹·x.

    Where an item is hardly concerned, the error is set against ``FLOOR`` of the largest size: y is rounding there.
    """
    if not len(probes):
        return 0.0
    y, x = answers.astype(np.float64), probes.astype(np.float64)
    both = np.vstack([y, np.abs(y)])
    image, size = np.vsplit(_gram_times(X, both) + weight * both, 2)
    difference, size = np.abs(image - x), size + np.abs(x)
    size = np.maximum(size, FLOOR * size.max(axis=1, keepdims=True))
    return float(np.divide(difference, size, out=np.zeros_like(size), where=size != 0).max())


def _gram_times(X: sp.csr_matrix, rows: Float64) -> Float64:
    """XᵀX times each of ``rows`` [m, n_items], as rows."""
    if len(rows) > FEW:
        together: Float64 = (X.T @ (X @ rows.T)).T
        return together
    transposed = X.T
    return np.stack([transposed @ (X @ row) for row in rows])


def refit(
    X: sp.csr_matrix,
    params: Mapping[str, Any],
    dtype: DTypeLike,
    tolerance: float,
    estimates: Mapping[str, float],
    reason: str | None = None,
) -> Correction:
    """B fitted on X, checked as an update is; ``reason`` says what else was tried before.

    Raises:
        UnsolvedError: if the backward error is above ``USELESS``.
    """
    return checked_refit(_whole(X, params, dtype), X, params, tolerance, estimates, reason)


def _whole(X: sp.csr_matrix, params: Mapping[str, Any], dtype: DTypeLike) -> CorrectedMatrix:
    """A fit, with the diagonal of P."""
    B = fit(X, params, dtype)
    return CorrectedMatrix.of(B, inverse_diagonal(X, B, params["reg_weight"]))


def checked_refit(
    whole: CorrectedMatrix,
    X: sp.csr_matrix,
    params: Mapping[str, Any],
    tolerance: float,
    estimates: Mapping[str, float],
    reason: str | None,
) -> Correction:
    """The correction to a fitted B: ``whole``, which has the diagonal of P.

    Of badly conditioned data a fit, too, has an error above the tolerance. No B of this dtype is better: a note tells.

    Raises:
        UnsolvedError: if the backward error is above ``USELESS``.
    """
    error = _error_of(whole, X, params["reg_weight"])
    notes = notes_of_fit(error, whole.dtype, params["reg_weight"], tolerance, reason)
    return Correction(whole.base, "refit", estimates, error, tolerance, {"diagonal": whole.diagonal}, notes)


def notes_of_fit(
    error: float, dtype: DTypeLike, weight: float, tolerance: float, reason: str | None
) -> tuple[str, ...]:
    """What the user should know of a fit with the backward ``error``; ``reason`` says why it was made.

    Raises:
        UnsolvedError: if the error is above ``USELESS``.
    """
    if not error <= USELESS:
        raise UnsolvedError(
            f"backward error {error:.1e} of a fit in {dtype}: a larger reg_weight or float64 is needed."
        )
    notes = [f"fitted anew: {reason}"] if reason else []
    if error > tolerance:
        notes.append(
            f"the data are badly conditioned at reg_weight = {weight}: a fit in {dtype} has the "
            f"backward error {error:.1e}; a larger one or float64 is more exact"
        )
    return tuple(notes)


def _corrected_matrix(fitted: FittedMapping, change: Change, tolerance: float) -> CorrectedMatrix:
    """B with what waits beside it: remembered, or with the P_jj of the model as it stands, checked by probes."""
    weight, diagonal = fitted.params["reg_weight"], fitted.cache.get("diagonal")
    if isinstance(fitted.B, CorrectedMatrix):
        B = fitted.B
    elif diagonal is None:
        B = CorrectedMatrix.of(fitted.B, inverse_diagonal(fitted.X, fitted.B, weight))
    else:
        new_items = np.full(fitted.X.shape[1] - len(diagonal), 1 / weight)  # G_jj = λ, nothing else
        B = CorrectedMatrix.of(fitted.B, np.append(diagonal, new_items))
    if "diagonal" not in fitted.cache or fitted.cache.get("stored"):
        refuse_another(B, fitted, tolerance, _whole)
    return CorrectedMatrix.of(B.folded(), B.diagonal) if connects_again(B, change) else B


def connects_again(B: CorrectedMatrix, change: Change) -> bool:
    """Whether a change is of somebody who has an item that was alone: its zeros must be written before."""
    concerned = np.append(change.items, Rows.of(change.X, change.users).indices)
    return bool(B.is_alone[concerned].any())


def refuse_another(
    B: CorrectedMatrix, fitted: FittedMapping, tolerance: float, fit: Callable[..., CorrectedMatrix]
) -> None:
    """Refuse a B that is not the solution of X; ``fit`` gives the one that is.

    Raises:
        MappingMismatch: if its backward error is above ``tolerance``, and above ``AS_A_FIT`` times that of a fit: of
            badly conditioned data even a fit has a large one.
    """
    weight = fitted.params["reg_weight"]
    error = _error_of(B, fitted.X, weight)
    if error <= tolerance:
        return
    own = _error_of(fit(fitted.X, fitted.params, B.dtype), fitted.X, weight)
    if not error <= AS_A_FIT * own:
        raise MappingMismatch(f"backward error {error:.1e} above {tolerance:.0e} at reg_weight = {weight}")


def error_of(B: Matrix, X: sp.csr_matrix, params: Mapping[str, Any], profiles: sp.csr_matrix) -> float:
    """The backward error of B for X, over ``profiles`` [n, n_items] that were forgotten and over random vectors."""
    weight = params["reg_weight"]
    return worst_error(CorrectedMatrix.of(B, inverse_diagonal(X, B, weight)), X, weight, profiles)


def worst_error(B: Inverse, X: sp.csr_matrix, weight: float, profiles: sp.csr_matrix) -> float:
    """:func:`error_of` of a B whose diagonal of P is known."""
    blocks = [profiles[first : first + 256] for first in range(0, profiles.shape[0], 256)]
    of_blocks = [backward_error(X, weight, B.inverse_rows(block), block.toarray()) for block in blocks]
    return max([_error_of(B, X, weight), *of_blocks])


def _error_of(B: Inverse, X: sp.csr_matrix, weight: float) -> float:
    """The backward error of B for X, by fixed normal vectors: of a size everywhere, cancelling nowhere."""
    probes = np.random.default_rng(0).standard_normal((PROBES, B.shape[0]))
    return backward_error(X, weight, B.inverse_rows(sp.csr_matrix(probes)), probes)


def profiles(change: Change) -> sp.csr_matrix:
    """What was forgotten or learned, as probes: the first users' rows, and a mixture of all."""
    pairs = abs(change.delta)
    if pairs.shape[0] <= PROFILES:
        return pairs
    mixture = np.random.default_rng(0).standard_normal((1, pairs.shape[0]))
    return sp.vstack([pairs[: PROFILES - 1], sp.csr_matrix(mixture @ pairs)], format="csr")


def squares(X: sp.csr_matrix, items: NDArray[np.int64]) -> Float64:
    """(XᵀX)_jj of ``items``."""
    columns = X[:, items].astype(np.float64)
    return np.asarray(columns.power(2).sum(axis=0), np.float64).ravel()


def _ranges(n: int, step: int) -> list[tuple[int, int]]:
    return [(first, min(first + step, n)) for first in range(0, n, step)]
