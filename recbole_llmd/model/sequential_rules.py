r"""Sequential rules: co-transition counts of items, in closed form, as a sequential recommender of the whole catalogue.

After Kamehkhosh, Jannach and Ludewig ("A comparison of frequent pattern techniques and a deep learning method for
session-based recommendation", RecTemp 2017) and Ludewig and Jannach ("Evaluation of session-based recommendation
algorithms", UMUAI 2018), where such counts rank beside recurrent networks. Nothing is learned by gradients: what a
trained model has to be better than.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
import torch
from numpy.typing import NDArray
from recbole.config import Config
from recbole.data.dataset import SequentialDataset
from recbole.data.interaction import Interaction
from recbole.model.abstract_recommender import SequentialRecommender
from recbole.utils import InputType
from torch import Tensor

from recbole_llmd.data.item_text import load_item_texts
from recbole_llmd.data.tfidf import tfidf_vectors


@dataclass(frozen=True)
class RuleParameters:
    r"""The parameters of the scores; for the equation see :class:`SequentialRules`.

    Attributes:
        distance_decay: :math:`\delta`, what a transition counts for every further item in between.
        backward: :math:`\beta`, what a transition counts in the other direction.
        normalisation: :math:`\alpha`, the exponent of the popularity that counts are divided by.
        recency: :math:`\rho`, what an item of the history weighs against the one after it.
        text: :math:`\lambda`, the weight of the likeness of item texts.
        popularity: :math:`\mu`, the weight of the items' popularity.

    >>> RuleParameters(0.8, 0, 0, 0.5, 0.3, 0).text
    0.3
    """

    distance_decay: float
    backward: float
    normalisation: float
    recency: float
    text: float
    popularity: float


class SequentialRules(SequentialRecommender):
    r"""Scores items by how often they followed the items of a history.

    A training sequence :math:`i_1, \dots, i_n` adds :math:`\delta^{q-p-1}` to the count :math:`c_{i_p i_q}` for every
    :math:`p < q`. With popularity :math:`f`, a history :math:`i_1, \dots, i_t` scores item :math:`j` by

    .. math:: z_j = \frac{a_j}{\max_k a_k} + \lambda \frac{b_j}{\max_k b_k} + \mu
        \frac{\log(1 + f_j)}{\max_k \log(1 + f_k)},\quad
        a_j = \sum_{s \le t} \rho^{t-s} \frac{c_{i_s j} + \beta\, c_{j i_s}}{(1 + f_{i_s})^\alpha (1 + f_j)^{\alpha/2}}
        ,\quad b_j = \sum_{s \le t} \rho^{t-s} x_{i_s}^\top x_j,

    where :math:`x` are TF-IDF vectors of the item texts. ``SequentialRulesTrainer`` counts, and chooses the parameters
    by validation.

    >>> from recbole.quick_start import run_recbole  # small: a tiny dataset
    >>> given = {key: value for key, value in small.items() if not key.startswith("llm_")}
    >>> result = run_recbole(model="SequentialRules", config_dict=given)
    >>> result["test_result"]["ndcg@10"] > 0.2
    True
    """

    input_type = InputType.POINTWISE

    def __init__(self, config: Config, dataset: SequentialDataset) -> None:
        super().__init__(config, dataset)
        self.placeholder = torch.nn.Parameter(torch.zeros(1))  # RecBole's trainers want something to optimise
        self.other_parameter_name = ["chosen", "rules", "popularity", "texts"]
        self.popularity = np.asarray(dataset.inter_matrix(form="csr").sum(axis=0), np.float64).ravel()
        self.texts = tfidf_vectors(load_item_texts(config, dataset))
        self.chosen: RuleParameters | None = None
        self.rules: sp.csr_matrix | None = None

    def set_rules(self, parameters: RuleParameters, counts: sp.csr_matrix) -> None:
        """Score by these parameters from now on.

        Args:
            parameters: the parameters.
            counts: the transition counts of their ``distance_decay``, ``[n_items, n_items]``.
        """
        inverse = sp.diags((1 + self.popularity) ** -parameters.normalisation)
        inverse_root = sp.diags((1 + self.popularity) ** (-parameters.normalisation / 2))
        rules = inverse @ (counts + parameters.backward * counts.T) @ inverse_root
        self.chosen, self.rules = parameters, rules.tocsr().astype(np.float32)

    def calculate_loss(self, interaction: Interaction) -> Tensor:
        """There is none: rules are counted."""
        raise NotImplementedError("sequential rules are counted, not trained by a loss")

    def predict(self, interaction: Interaction) -> Tensor:
        """The scores of pairs of a history and an item, ``[batch]``."""
        scores = self.full_sort_predict(interaction)
        return scores.gather(1, interaction[self.ITEM_ID].unsqueeze(1)).squeeze(1)

    def full_sort_predict(self, interaction: Interaction) -> Tensor:
        """The scores of all items, ``[batch, n_items]``."""
        items, lengths = (interaction[field].cpu().numpy() for field in (self.ITEM_SEQ, self.ITEM_SEQ_LEN))
        if self.chosen is None or self.rules is None:  # RecBole counts operations before it trains
            return torch.zeros(len(items), self.n_items, device=interaction[self.ITEM_SEQ].device)
        history = weighted_histories(items, lengths, self.chosen.recency, self.n_items)
        scores = _by_largest((history @ self.rules).toarray())
        if self.texts is not None and self.chosen.text:
            scores += self.chosen.text * _by_largest(((history @ self.texts) @ self.texts.T).toarray())
        if self.chosen.popularity:
            scores += self.chosen.popularity * _by_largest(np.log1p(self.popularity, dtype=np.float32)[None, :])
        return torch.from_numpy(scores).to(interaction[self.ITEM_SEQ].device)


def transition_counts(
    items: NDArray[np.int64], lengths: NDArray[np.int64], targets: NDArray[np.int64], decay: float, n_items: int
) -> sp.csr_matrix:
    """How often one item came before another, CSR ``[n_items, n_items]``, from RecBole's training samples.

    Every pair of a sequence stands once among the samples: one item in the history, the other as the target.

    Args:
        items: the histories, right-padded, ``[n_samples, length]``.
        lengths: their lengths, ``[n_samples]``.
        targets: the next items, ``[n_samples]``.
        decay: what a pair counts for every further item in between.
        n_items: the number of items, with the padding.

    >>> counts = transition_counts(np.array([[1, 0], [1, 2]]), np.array([1, 2]), np.array([2, 3]), 0.5, 4)
    >>> counts.toarray()[1].tolist(), counts.toarray()[2].tolist()
    ([0.0, 0.0, 1.0, 0.5], [0.0, 0.0, 0.0, 1.0])
    """
    counts = sp.csr_matrix((n_items, n_items))
    for distance in range(1, int(lengths.max(initial=0)) + 1):
        reaching = lengths >= distance
        before = items[reaching, lengths[reaching] - distance]
        weights = np.full(len(before), decay ** (distance - 1))
        counts = counts + sp.csr_matrix((weights, (before, targets[reaching])), shape=counts.shape)
    return counts.tocsr()


def weighted_histories(
    items: NDArray[np.int64], lengths: NDArray[np.int64], recency: float, n_items: int
) -> sp.csr_matrix:
    """The histories as rows of weights, CSR ``[batch, n_items]``: 1 for the last item, ``recency`` for the one before.

    >>> weighted_histories(np.array([[3, 1, 0]]), np.array([2]), 0.5, 4).toarray().tolist()
    [[0.0, 1.0, 0.0, 0.5]]
    """
    steps = np.arange(items.shape[1])
    inside = steps < lengths[:, None]
    weights = recency ** (lengths[:, None] - 1.0 - steps).clip(min=0)
    users = np.broadcast_to(np.arange(len(items))[:, None], items.shape)
    entries = weights[inside].astype(np.float32), (users[inside], items[inside])
    return sp.csr_matrix(entries, shape=(len(items), n_items))


def _by_largest(scores: NDArray[np.float32]) -> NDArray[np.float32]:
    return scores / np.maximum(scores.max(axis=1, keepdims=True), 1e-9)
