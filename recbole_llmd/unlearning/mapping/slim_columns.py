"""The columns of SLIM: sparse non-negative (or signed) least squares, solved from a warm start to a stated tolerance.

Column j of C minimises, with G = XᵀX (or of the centred X), c_j = 0 where the item may not explain itself:

    ½·cᵀGc - G_jᵀc + ½·Σ_i ridge_i·c_i² + l1·|c|₁        (c ≥ 0 if positive)

Without the l1 term, the gradient is r = Gc - G_j + ridge·c. Optimality (Karush-Kuhn-Tucker): r_i = -l1·sign(c_i)
where c_i ≠ 0, |r_i| ≤ l1 where c_i = 0 (r_i ≥ -l1 if positive). Columns that violate it are re-solved: coordinate
descent over the present support and the worst violators finds the support, a linear system over the support gives the
exact values.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from recbole_llmd.errors import UnsolvedError
from recbole_llmd.unlearning.mapping.correction import Change, FittedMapping, MappingMatrix

BLOCK = 128  # columns solved together
ADDED = 48  # violators that join a column's working set at a time
ENTRIES = 1 << 22  # of the systems that are solved together
ROUNDS = 200
SWEEPS = 4

Floats: TypeAlias = NDArray[np.float64]
Numbers: TypeAlias = NDArray[np.int64]


@dataclass(frozen=True)
class Problem:
    """The data of the columns: X (CSR float64 [n_users, n_items]), ridge [n_items], l1, and the constraints.

    ``means`` [n_items]: subtracted from the columns of X, or None.

    >>> X = sp.csr_matrix([[1.0, 1.0], [1.0, 1.0], [1.0, 0.0]])  # G = [[3, 2], [2, 2]]
    >>> problem = Problem(X, ridge=np.ones(2), l1=0.5, positive=True, hollow=True)
    >>> C, resolved, violation = solve(problem, sp.csc_matrix((2, 2)), tolerance=1e-10)
    >>> C.toarray().tolist()  # (2 - 0.5) / (2 + 1) and (2 - 0.5) / (3 + 1)
    [[0.0, 0.375], [0.5, 0.0]]
    """

    X: sp.csr_matrix
    ridge: Floats
    l1: float
    positive: bool
    hollow: bool  # c_j = 0
    means: Floats | None = None

    def gram(self, items: Numbers, others: Numbers) -> Floats:
        """G[items, others], dense."""
        G: Floats = (self.X[:, items].T @ self.X[:, others]).toarray()
        if self.means is not None:
            G -= self.X.shape[0] * np.outer(self.means[items], self.means[others])
        return G

    def gradient(self, C: Floats, columns: Numbers) -> Floats:
        """The gradient r [n_items, columns] at C [n_items, columns], by X, which has far fewer entries than G."""
        shifted = C.copy()
        shifted[columns, np.arange(len(columns))] -= 1
        R: Floats = self.X.T @ (self.X @ shifted)
        if self.means is not None:
            R -= self.X.shape[0] * np.outer(self.means, self.means @ shifted)
        gradient: Floats = R + self.ridge[:, None] * C
        return gradient

    def scale(self) -> Floats:
        """G_jj [n_items], at least 1: what the violation of a column is measured against."""
        G = np.asarray(self.X.power(2).sum(axis=0)).ravel()
        if self.means is not None:
            G = G - self.X.shape[0] * self.means**2
        scale: Floats = np.maximum(G, 1.0)
        return scale

    def violation(self, C: Floats, R: Floats) -> Floats:
        """How far each coefficient is from optimality: the distance of -r from the subgradient of the l1 term."""
        active = np.abs(R + self.l1 * np.sign(C))
        inactive = (-R if self.positive else np.abs(R)) - self.l1
        return np.where(C != 0, active, np.maximum(inactive, 0))


def solve(
    problem: Problem, warm: MappingMatrix, tolerance: float, columns: Numbers | None = None
) -> tuple[sp.csc_matrix, int, float]:
    """All columns, optimal to ``tolerance``·G_jj.

    Args:
        problem: the data of the columns.
        warm: sparse or dense [n_items, n_items], a solution of nearly the same problem.
        tolerance: of the largest violation relative to G_jj.
        columns: ids of those to check and solve, the others being known to be optimal (all if None).

    Returns:
        C (CSC float64 [n_items, n_items]), how many columns had to be re-solved, and the largest violation
        relative to G_jj among the columns checked.

    Raises:
        UnsolvedError: if a column does not reach the tolerance.
    """
    n, scale = problem.X.shape[1], problem.scale()
    columns = np.arange(n) if columns is None else columns
    warm = sp.csc_matrix(warm, dtype=np.float64)
    blocks, resolved, worst = [warm], 0, 0.0
    for first in range(0, len(columns), BLOCK):
        block = columns[first : first + BLOCK]
        C = warm[:, block].toarray()
        count, violation = _solve_block(problem, C, block, scale[block], tolerance)
        blocks.append(sp.csc_matrix(C))
        resolved, worst = resolved + count, max(worst, violation)
    source = np.arange(n)
    source[columns] = n + np.arange(len(columns))
    return sp.hstack(blocks, format="csc")[:, source], resolved, worst


def of_present_users(X: sp.csr_matrix) -> sp.csr_matrix:
    """X [n_users, n_items] as RecBole has it of data in which only the users with interactions occur.

    These are the rows that are not empty, after one of padding: a fit counts them (N). A user who has left with
    everything is not counted, as if that user had never been there.

    >>> of_present_users(sp.csr_matrix([[0, 0], [1, 0], [0, 0], [1, 1]])).toarray().tolist()
    [[0, 0], [1, 0], [1, 1]]
    """
    X = X.tocsr()  # RecBole's SLIMElastic has another form
    starts = np.append(X.indptr[:-1][np.diff(X.indptr) > 0], X.nnz)
    return sp.csr_matrix((X.data, X.indices, np.append(0, starts)), shape=(len(starts), X.shape[1]))


def concerned(fitted: FittedMapping, change: Change) -> Numbers | None:
    """Ids of the columns whose optimality conditions a change of X changes; None for all.

    All of a model that is not known to be optimal, and where N changes, with which the penalties (or the items' means)
    are scaled. Otherwise G changes between the items of the users who changed, and G(c_j - e_j) where c_j - e_j has one
    of those items.
    """
    present = [np.count_nonzero(np.diff(X.indptr)) for X in (fitted.X, change.X)]
    if "exact_for" not in fitted.cache or present[0] != present[1]:
        return None
    of_users = np.zeros(fitted.X.shape[1], bool)
    of_users[change.items] = of_users[change.X[change.users].indices] = True
    listed = sp.csr_matrix(fitted.B)[of_users].indices
    return np.union1d(np.flatnonzero(of_users), listed)


def _solve_block(problem: Problem, C: Floats, columns: Numbers, scale: Floats, tolerance: float) -> tuple[int, float]:
    """Solve the columns of C [n_items, len(columns)] in place; how many violated, and the violation left."""
    if problem.positive:
        np.maximum(C, 0, out=C)
    if problem.hollow:
        C[columns, np.arange(len(columns))] = 0
    resolved: int | None = None
    for _ in range(ROUNDS):
        R = problem.gradient(C, columns)
        V = problem.violation(C, R)
        if problem.hollow:
            V[columns, np.arange(len(columns))] = 0
        violation = V.max(axis=0, initial=0) / scale
        todo = np.flatnonzero(violation > tolerance)
        if resolved is None:
            resolved = len(todo)
        if not len(todo):
            return resolved, float(violation.max(initial=0))
        support = (C[:, todo] != 0) | _worst(V[:, todo], tolerance * scale[todo])
        for batch in _alike(support.sum(axis=0)):
            _solve_support(problem, C, columns, todo[batch], support[:, batch], scale[todo[batch]] * tolerance)
    raise UnsolvedError(
        f"{len(todo)} columns violate their optimality conditions by up to {violation.max():.1e}·G_jj after "
        f"{ROUNDS} rounds (tolerance {tolerance:.0e})"
    )


def _alike(sizes: Numbers) -> Iterator[Numbers]:
    """Columns with working sets of similar size, whose systems [columns, size, size] have at most ENTRIES entries."""
    order = np.argsort(sizes, kind="stable")
    while len(order):
        count = max(1, ENTRIES // max(1, int(sizes[order[-1]])) ** 2)
        yield order[-count:]
        order = order[:-count]


def _worst(V: Floats, allowed: Floats) -> NDArray[np.bool_]:
    """The ADDED largest violations of each column that are above ``allowed``, as a mask."""
    worst: NDArray[np.bool_] = allowed < V
    if len(V) > ADDED:
        worst &= np.partition(V, len(V) - ADDED, axis=0)[len(V) - ADDED] <= V
    return worst


def _solve_support(
    problem: Problem, C: Floats, columns: Numbers, todo: Numbers, support: NDArray[np.bool_], allowed: Floats
) -> None:
    """Solve the columns ``todo`` over their working sets ``support`` [n_items, len(todo)], all at once."""
    union = np.flatnonzero(support.any(axis=1))
    place = np.full(len(C), -1)
    place[union] = np.arange(len(union))
    column, item = np.nonzero(support.T)
    sizes = np.bincount(column, minlength=len(todo))
    slot = np.arange(len(column)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    index = np.full((len(todo), sizes.max()), -1)
    index[column, slot] = place[item]
    present = index >= 0
    G, targets = problem.gram(union, union), problem.gram(union, columns[todo])
    G[np.diag_indices(len(union))] += problem.ridge[union]
    Q = G[index[:, :, None], index[:, None, :]]
    Q *= present[:, :, None] & present[:, None, :]
    b = np.where(present, targets[index, np.arange(len(todo))[:, None]], 0)
    c = np.where(present, C[union[index], todo[:, None]], 0)
    descend(problem, Q, b, c, allowed)
    C[union[index[present]], np.broadcast_to(todo[:, None], index.shape)[present]] = c[present]


def descend(problem: Problem, Q: Floats, b: Floats, c: Floats, allowed: Floats) -> None:
    """Minimise ½·cᵀQc - bᵀc + l1·|c| for every row of c [m, a] in place: exact solutions over the support, and
    coordinate descent where the support is not yet right. Q is [m, a, a].
    """
    unsolved = np.arange(len(c))
    for _ in range(ROUNDS):
        exact, optimal = _exact(problem, Q[unsolved], b[unsolved], c[unsolved], allowed[unsolved])
        c[unsolved[optimal]] = exact[optimal]
        unsolved = unsolved[~optimal]
        if not len(unsolved):
            return
        c[unsolved] = _sweep(problem, Q[unsolved], b[unsolved], c[unsolved])


def _exact(problem: Problem, Q: Floats, b: Floats, c: Floats, allowed: Floats) -> tuple[Floats, NDArray[np.bool_]]:
    """The solution over the support and signs of c, and in which rows it is the optimum."""
    active, signs = c != 0, np.sign(c)
    system = np.where(active[:, :, None] & active[:, None, :], Q, np.eye(c.shape[1]))
    try:
        exact = np.linalg.solve(system, np.where(active, b - problem.l1 * signs, 0)[:, :, None])[:, :, 0]
    except np.linalg.LinAlgError:  # ridge = 0 and linearly dependent items: descent alone
        exact = c
    R = np.einsum("mij,mj->mi", Q, exact) - b
    optimal = (problem.violation(exact, R) <= allowed[:, None]).all(axis=1) & (np.sign(exact) == signs).all(axis=1)
    return exact, optimal


def _sweep(problem: Problem, Q: Floats, b: Floats, c: Floats) -> Floats:
    """SWEEPS rounds of coordinate descent over the coordinates of every row."""
    R = np.einsum("mij,mj->mi", Q, c) - b
    for _ in range(SWEEPS):
        for i in range(c.shape[1]):
            q = Q[:, i, i]
            free = c[:, i] * q - R[:, i]
            value = np.maximum(np.abs(free) - problem.l1, 0) * np.sign(free)
            if problem.positive:
                value = np.maximum(value, 0)
            step = np.where(q > 0, value / np.where(q > 0, q, 1), 0) - c[:, i]
            if step.any():
                R += Q[:, i] * step[:, None]
                c[:, i] += step
    return c
