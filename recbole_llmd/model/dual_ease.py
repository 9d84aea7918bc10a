"""EASE for catalogues with more items than users, as a model of RecBole."""

from __future__ import annotations

from recbole_llmd.model.closed_form import ClosedFormRecommender
from recbole_llmd.unlearning.mapping import dual_ease


class DualEASE(ClosedFormRecommender):
    """The model of RecBole's EASE (Steck, WWW 2019), with its scores, in memory of users x users.

    RecBole's EASE holds B [n_items, n_items]; this one what B is made of
    (:mod:`~recbole_llmd.unlearning.mapping.dual_matrix`). Like RecBole's it is trained where it is built.

    >>> from recbole.utils import get_model
    >>> get_model("DualEASE") is DualEASE
    True
    """

    corrections = dual_ease
