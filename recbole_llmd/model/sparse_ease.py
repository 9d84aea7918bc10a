"""EASE with a sparse mapping, for catalogues with many items and many users, as a model of RecBole."""

from __future__ import annotations

from recbole_llmd.model.closed_form import ClosedFormRecommender
from recbole_llmd.unlearning.mapping import sparse_ease


class SparseEASE(ClosedFormRecommender):
    """Every item's ridge regression on its ``k`` nearest items (:mod:`~recbole_llmd.unlearning.mapping.sparse_ease`).

    EASE (Steck, WWW 2019) with zeros where two items are not near; its ``item_similarity`` is a SciPy matrix.

    >>> from recbole.utils import get_model
    >>> get_model("SparseEASE") is SparseEASE
    True
    """

    corrections = sparse_ease
