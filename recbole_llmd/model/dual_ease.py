"""EASE for catalogues with more items than users, as a model of RecBole."""

from __future__ import annotations

import numpy as np
import torch
from recbole.config import Config
from recbole.data.dataset import Dataset
from recbole.data.interaction import Interaction
from recbole.model.abstract_recommender import GeneralRecommender
from recbole.utils import InputType, ModelType

from recbole_llmd.unlearning.mapping import dual_ease

USERS = 256  # at a time


class DualEASE(GeneralRecommender):
    """The model of RecBole's EASE (Steck, WWW 2019), with its scores, in memory of users x users.

    RecBole's EASE holds B [n_items, n_items]; this one what B is made of
    (:mod:`~recbole_llmd.unlearning.mapping.dual_matrix`). Like RecBole's it is trained where it is built.

    >>> from recbole.utils import get_model
    >>> get_model("DualEASE") is DualEASE
    True
    """

    input_type = InputType.POINTWISE
    type = ModelType.TRADITIONAL

    def __init__(self, config: Config, dataset: Dataset) -> None:
        super().__init__(config, dataset)
        self.dummy_param = torch.nn.Parameter(torch.zeros(1))  # RecBole's trainers want one
        self.interaction_matrix = dataset.inter_matrix(form="csr").astype(np.float32)
        self.interaction_matrix.sort_indices()
        self.item_similarity = dual_ease.fit(self.interaction_matrix, {"reg_weight": config["reg_weight"]})
        self.other_parameter_name = ["interaction_matrix", "item_similarity"]  # what RecBole's checkpoints hold

    def calculate_loss(self, interaction: Interaction) -> torch.Tensor:
        """Nothing is left to train."""
        return torch.nn.Parameter(torch.zeros(1))

    def predict(self, interaction: Interaction) -> torch.Tensor:
        """Scores of pairs, [n_pairs]; those of ``USERS`` users' whole catalogues are held at a time."""
        users, items = (interaction[field].cpu().numpy() for field in (self.USER_ID, self.ITEM_ID))
        distinct, place = np.unique(users, return_inverse=True)
        scores = np.empty(len(users), np.float32)
        for first in range(0, len(distinct), USERS):
            own = np.flatnonzero((place >= first) & (place < first + USERS))
            scores[own] = self._scores(distinct[first : first + USERS])[place[own] - first, items[own]]
        return torch.from_numpy(scores).to(self.device)

    def full_sort_predict(self, interaction: Interaction) -> torch.Tensor:
        """Scores of all items, [n_users · n_items]."""
        scores = self._scores(interaction[self.USER_ID].cpu().numpy())
        return torch.from_numpy(scores.reshape(-1)).to(self.device)

    def _scores(self, users: np.ndarray) -> np.ndarray:
        scores: np.ndarray = self.interaction_matrix[users] @ self.item_similarity
        return scores
