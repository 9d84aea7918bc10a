"""What our models of a mapping matrix in closed form share."""

from __future__ import annotations

from types import ModuleType

import numpy as np
import scipy.sparse as sp
import torch
from recbole.config import Config
from recbole.data.dataset import Dataset
from recbole.data.interaction import Interaction
from recbole.model.abstract_recommender import GeneralRecommender
from recbole.utils import InputType, ModelType

USERS = 256  # at a time


class ClosedFormRecommender(GeneralRecommender):
    """Scores by X·B, with a B that the ``corrections`` module of a subclass fits. It is trained where it is built.

    >>> from recbole_llmd.unlearning.mapping import sparse_ease
    >>> class Mine(ClosedFormRecommender):
    ...     corrections = sparse_ease
    >>> Mine.corrections.PARAMETERS  # the settings that it reads
    ('k', 'reg_weight')
    """

    input_type = InputType.POINTWISE
    type = ModelType.TRADITIONAL
    corrections: ModuleType

    def __init__(self, config: Config, dataset: Dataset) -> None:
        super().__init__(config, dataset)
        self.dummy_param = torch.nn.Parameter(torch.zeros(1))  # RecBole's trainers want one
        self.interaction_matrix = dataset.inter_matrix(form="csr").astype(np.float32)
        self.interaction_matrix.sort_indices()
        params = {key: config[key] for key in self.corrections.PARAMETERS}
        self.item_similarity = self.corrections.fit(self.interaction_matrix, params)
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
        product = self.interaction_matrix[users] @ self.item_similarity
        scores: np.ndarray = product.toarray() if sp.issparse(product) else product
        return scores
