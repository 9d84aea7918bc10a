"""The columns of SLIM: sparse non-negative (or signed) least squares, solved from a warm start to a stated tolerance.

Column j of C minimises, with G = XᵀX (or of the centred X), c_j = 0 where the item may not explain itself:

    ½·cᵀGc - G_jᵀc + ½·Σ_i ridge_i·c_i² + l1·|c|₁        (c ≥ 0 if positive)

Without the l1 term, the gradient is r = Gc - G_j + ridge·c. Optimality (Karush-Kuhn-Tucker): r_i = -l1·sign(c_i)
where c_i ≠ 0, |r_i| ≤ l1 where c_i = 0 (r_i ≥ -l1 if positive). Columns that violate it are re-solved: coordinate
descent over the present support and the worst violators finds the support, a linear system over the support gives the
exact values.
"""

from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp

from recbole_llmd.errors import UnsolvedError

BLOCK = 128  # columns solved together
ADDED = 48  # violators that join a column's working set at a time
ENTRIES = 1 << 22  # of the systems that are solved together
ROUNDS = 200
SWEEPS = 4


@dataclass(frozen=True)
class Problem:
    """The data of the columns: X (CSR float64 [n_users, n_items]), ridge [n_items], l1, and the constraints.

    ``means`` [n_items]: subtracted from the columns of X, or None.
    """

    X: sp.csr_matrix
    ridge: np.ndarray
    l1: float
    positive: bool
    hollow: bool  # c_j = 0
    means: np.ndarray = None

    def gram(self, items, others):
        """G[items, others], dense."""
        G = (self.X[:, items].T @ self.X[:, others]).toarray()
        if self.means is not None:
            G -= self.X.shape[0] * np.outer(self.means[items], self.means[others])
        return G

    def gradient(self, C, columns):
        """r [n_items, columns] at C [n_items, columns], by way of X, which has far fewer entries than G."""
        shifted = C.copy()
        shifted[columns, np.arange(len(columns))] -= 1
        R = self.X.T @ (self.X @ shifted)
        if self.means is not None:
            R -= self.X.shape[0] * np.outer(self.means, self.means @ shifted)
        return R + self.ridge[:, None] * C

    def scale(self):
        """G_jj [n_items], at least 1: what the violation of a column is measured against."""
        G = np.asarray(self.X.power(2).sum(axis=0)).ravel()
        if self.means is not None:
            G = G - self.X.shape[0] * self.means**2
        return np.maximum(G, 1)

    def violation(self, C, R):
        """How far each coefficient is from optimality: the distance of -r from the subgradient of the l1 term."""
        active = np.abs(R + self.l1 * np.sign(C))
        inactive = (-R if self.positive else np.abs(R)) - self.l1
        return np.where(C != 0, active, np.maximum(inactive, 0))


def solve(problem, warm, tolerance, columns=None):
    """All columns, optimal to ``tolerance``·G_jj.

    Args:
        warm: sparse or dense [n_items, n_items] to start from.
        columns: ids of those to check and solve, the others being known to be optimal (all if None).

    Returns:
        tuple: C (CSC float64 [n_items, n_items]), how many columns had to be re-solved, and the largest violation
        relative to G_jj among the columns checked.

    Raises:
        UnsolvedError: if a column does not reach the tolerance.
    """
    n, scale = problem.X.shape[1], problem.scale()
    columns = np.arange(n) if columns is None else columns
    warm = sp.csc_matrix(warm, dtype=np.float64)
    pieces, resolved, worst = [warm], 0, 0.0
    for start in range(0, len(columns), BLOCK):
        some = columns[start : start + BLOCK]
        C = warm[:, some].toarray()
        count, violation = _solve_block(problem, C, some, scale[some], tolerance)
        pieces.append(sp.csc_matrix(C))
        resolved, worst = resolved + count, max(worst, violation)
    source = np.arange(n)
    source[columns] = n + np.arange(len(columns))
    return sp.hstack(pieces, format="csc")[:, source], resolved, worst


def concerned(fitted, change):
    """Ids of the columns whose gradient a change of X changes; None (all) for a model not known to be optimal.

    G changes between the items of the users who changed, and G(c_j - e_j) where c_j - e_j has one of those items.
    """
    if fitted.cache.get("own") != fitted.X.shape:  # the number of users is part of the problem
        return None
    of_users = np.zeros(fitted.X.shape[1], bool)
    of_users[change.items] = of_users[change.X[change.users].indices] = True
    listed = sp.csr_matrix(fitted.B)[of_users].indices
    return np.union1d(np.flatnonzero(of_users), listed)


def _solve_block(problem, C, columns, scale, tolerance):
    """Solve the columns of C [n_items, len(columns)] in place; how many violated, and the violation left."""
    if problem.positive:
        np.maximum(C, 0, out=C)
    if problem.hollow:
        C[columns, np.arange(len(columns))] = 0
    resolved = None
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
        for some in _alike(support.sum(axis=0)):
            _solve_support(problem, C, columns, todo[some], support[:, some], scale[todo[some]] * tolerance)
    raise UnsolvedError(
        f"{len(todo)} columns violate their optimality conditions by up to {violation.max():.1e}·G_jj after "
        f"{ROUNDS} rounds (tolerance {tolerance:.0e})"
    )


def _alike(sizes):
    """Columns with working sets of similar size, whose systems [columns, size, size] have at most ENTRIES entries."""
    order = np.argsort(sizes, kind="stable")
    while len(order):
        take = max(1, ENTRIES // max(1, int(sizes[order[-1]])) ** 2)
        yield order[-take:]
        order = order[:-take]


def _worst(V, allowed):
    """The ADDED largest violations of each column that are above ``allowed``, as a mask."""
    if len(V) <= ADDED:
        return V > allowed
    bar = np.partition(V, len(V) - ADDED, axis=0)[len(V) - ADDED]
    return (V > allowed) & (V >= bar)


def _solve_support(problem, C, columns, todo, support, allowed):
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
    _descend(problem, Q, b, c, allowed)
    C[union[index[present]], np.broadcast_to(todo[:, None], index.shape)[present]] = c[present]


def _descend(problem, Q, b, c, allowed):
    """Minimise ½·cᵀQc - bᵀc + l1·|c| for every row of c [m, a] in place: exact solutions over the support, and
    coordinate descent where the support is not yet right. Q is [m, a, a].
    """
    rows = np.arange(len(c))
    for _ in range(ROUNDS):
        exact, good = _exact(problem, Q[rows], b[rows], c[rows], allowed[rows])
        c[rows[good]] = exact[good]
        rows = rows[~good]
        if not len(rows):
            return
        c[rows] = _sweep(problem, Q[rows], b[rows], c[rows])


def _exact(problem, Q, b, c, allowed):
    """The solution over the support and signs of c, and in which rows it is the optimum."""
    active, signs = c != 0, np.sign(c)
    system = np.where(active[:, :, None] & active[:, None, :], Q, np.eye(c.shape[1]))
    try:
        exact = np.linalg.solve(system, np.where(active, b - problem.l1 * signs, 0)[:, :, None])[:, :, 0]
    except np.linalg.LinAlgError:  # ridge = 0 and linearly dependent items: descent alone
        exact = c
    R = np.einsum("mij,mj->mi", Q, exact) - b
    good = (problem.violation(exact, R) <= allowed[:, None]).all(axis=1) & (np.sign(exact) == signs).all(axis=1)
    return exact, good


def _sweep(problem, Q, b, c):
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
