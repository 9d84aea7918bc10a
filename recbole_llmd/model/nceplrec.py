"""RecBole's NCEPLRec, with what its corrections start from: the interactions, and B."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import numpy as np
from recbole.config import Config
from recbole.data.dataset import Dataset
from recbole.model import general_recommender as recboles
from sklearn.utils.extmath import randomized_svd

from recbole_llmd.unlearning.mapping.low_rank_matrix import LowRankMatrix


class NCEPLRec(recboles.NCEPLRec):
    """RecBole's class, its training and its scores; it keeps X and B, too, and writes them into checkpoints.

    Attributes:
        interaction_matrix: X, CSR [n_users, n_items].
        item_similarity: B of rank ``rank``, the product of V·diag(σ)^½ and ``item_embeddings``.

    >>> from recbole.utils import get_model
    >>> get_model("NCEPLRec") is NCEPLRec, issubclass(NCEPLRec, recboles.NCEPLRec)
    (True, True)
    """

    def __init__(self, config: Config, dataset: Dataset) -> None:
        super().__init__(config, dataset)
        self.interaction_matrix = dataset.inter_matrix(form="csr").astype(np.float32)
        self._fitted_with = {key: config[key] for key in ("beta", "rank", "seed")}
        self.other_parameter_name = ["interaction_matrix", "item_similarity", "user_embeddings", "item_embeddings"]

    @functools.cached_property
    def item_similarity(self) -> LowRankMatrix:
        """B as RecBole fitted it. RecBole throws V away: its own call with its seed gives V again."""
        X, (beta, rank, seed) = self.interaction_matrix, self._fitted_with.values()
        sums = np.asarray(X.sum(axis=0)).ravel()
        with np.errstate(divide="ignore"):  # items that nobody has
            weights = np.maximum(np.log(X.shape[0] / np.power(sums, beta)), 0)
        D = X.tocoo()
        D.data = weights[D.col]
        _, sigma, Vt = randomized_svd(
            D.astype(np.float64),
            n_components=int(rank),
            n_iter="auto",
            power_iteration_normalizer="QR",
            random_state=seed,
        )
        return LowRankMatrix(Vt.T * np.sqrt(sigma), self.item_embeddings.cpu().numpy())

    def load_other_parameter(self, para: Mapping[str, Any] | None) -> None:
        """Take over what a checkpoint holds, on the model's device."""
        super().load_other_parameter(para)
        B = vars(self).get("item_similarity")
        if isinstance(B, tuple):  # as it is pickled
            self.item_similarity = LowRankMatrix(*B)
        for name in ("user_embeddings", "item_embeddings"):
            setattr(self, name, getattr(self, name).to(self.device))
