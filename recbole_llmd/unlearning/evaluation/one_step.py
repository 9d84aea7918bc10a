"""An approximate opponent of the exact correction of EASE: one step from the old inverse.

G' = G + ΔG has the inverse P' = P - P·ΔG·P + P·ΔG·P·ΔG·P - ..., of which this keeps the first two terms: what influence
functions (Koh and Liang, ICML 2017) do with the Hessian of a ridge regression, which is G. With ΔG = U·S·Uᵀ the exact
correction has (S + Uᵀ·P·U)⁻¹ where this has S.
"""

from __future__ import annotations

from time import perf_counter
from typing import Any

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray
from recbole.config import Config
from recbole.model.abstract_recommender import GeneralRecommender

from recbole_llmd.unlearning.evaluation.arms import Arm
from recbole_llmd.unlearning.mapping.correction import Change
from recbole_llmd.unlearning.mapping.ease import inverse_diagonal
from recbole_llmd.unlearning.receipt import Receipt
from recbole_llmd.unlearning.request import Request


def first_order(
    B: NDArray[Any], diagonal: NDArray[np.float64], change: Change
) -> tuple[NDArray[Any], NDArray[np.float64]]:
    """B' and the diagonal of P' = P - P·ΔG·P after a change of X.

    >>> B, diagonal = np.array([[0, 0.5], [0.5, 0]]), np.array([2 / 3, 2 / 3])  # X = [[1, 1]], weight 1
    >>> empty = sp.csr_matrix((1, 2))
    >>> after, _ = first_order(B, diagonal, Change(empty, np.array([0]), np.array([0, 1]), sp.csr_matrix([[-1.0, -1]])))
    >>> after  # the exact one is zero
    array([[0.        , 0.28571429],
           [0.28571429, 0.        ]])

    Args:
        B: [n_items, n_items], P = (I - B)·diag(``diagonal``); it is not changed.
        diagonal: of P, [n_items].
        change: what changes in X.
    """
    B, after = np.asarray(B), change.X[change.users].astype(np.float64)
    before = after - change.delta
    U, signs = sp.vstack([before, after], format="csr"), np.repeat([-1.0, 1.0], len(change.users))
    image = (U.toarray() - U @ B.astype(np.float64)) * diagonal
    following = diagonal - np.einsum("rj,r,rj->j", image, signs, image)
    corrected = (B * diagonal + image.T @ (signs[:, None] * image)) / following
    np.fill_diagonal(corrected, 0)
    return corrected.astype(B.dtype), following


class OneStep(Arm):
    """X is corrected, B by :func:`first_order` alone; the errors of requests add up.

    >>> from types import SimpleNamespace
    >>> class EASE(SimpleNamespace):  # stands for RecBole's
    ...     USER_ID, ITEM_ID, n_users, n_items = "user_id", "item_id", 2, 3
    >>> X, B = sp.csr_matrix([[0, 0, 0], [0, 1, 1.0]]), np.array([[0, 0, 0], [0, 0, 0.5], [0, 0.5, 0]])
    >>> arm = OneStep(EASE(interaction_matrix=X, item_similarity=B), {"reg_weight": 1.0})
    >>> receipt = arm.answer(Request("forget", np.array([1, 1]), np.array([1, 2])))
    >>> arm.engine.X.nnz, round(float(arm.engine.B[1, 2]), 3)
    (0, 0.286)
    """

    def __init__(self, model: GeneralRecommender, config: Config) -> None:
        super().__init__("one step", model, config, "interaction")
        self._diagonal = inverse_diagonal(self.engine.X, self.engine.B, self.engine.params["reg_weight"])

    def answer(self, request: Request) -> Receipt:
        """Answer a request."""
        started = perf_counter()
        change = request.distinct().change(self.engine.X)
        B, self._diagonal = first_order(self.engine.B, self._diagonal, change)
        receipt = self.engine.apply(request)
        setattr(self.model, self.engine.mapping.MATRIX, B)
        self._count([perf_counter() - started], receipt.peak_bytes, "first-order step")
        return receipt
