"""Sequential rules: what followed what, in closed form, as a sequential recommender of the whole catalogue.

After Kamehkhosh, Jannach and Ludewig ("A comparison of frequent pattern techniques and a deep learning method for
session-based recommendation", RecTemp 2017) and Ludewig and Jannach ("Evaluation of session-based recommendation
algorithms", UMUAI 2018), where such counts rank beside recurrent networks. Nothing is learned by gradients from
training data: what a trained model has to be better than.
"""

from __future__ import annotations

import torch
from recbole.config import Config
from recbole.data.dataset import SequentialDataset
from recbole.data.interaction import Interaction
from recbole.model.abstract_recommender import SequentialRecommender
from recbole.utils import InputType
from torch import Tensor

from recbole_llmd.data.item_text import load_item_texts
from recbole_llmd.data.sequences import TrainingSequences
from recbole_llmd.data.tfidf import tfidf_vectors
from recbole_llmd.data.transitions import Samples, item_popularity
from recbole_llmd.distill.evidence import PooledEvidence


class SequentialRules(SequentialRecommender):
    """Scores items by the pooled evidence of a history (:mod:`recbole_llmd.distill.evidence` has the equation).

    ``SequentialRulesTrainer`` counts, and fits the weights of the kinds of evidence on validation samples.

    Attributes:
        popularity: how often each item was chosen in training, ``[n_items]``.
        texts: TF-IDF vectors of the items, CSR ``[n_items, n_words]``; None without.
        evidence: with its weights; None before training.
        sequences: the training sequences that it was counted on; None before training, and where training samples are
            not the beginnings of one sequence a user.
        validation: the samples that the weights were fitted on; None without.

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
        self.other_parameter_name = ["evidence", "popularity", "texts", "sequences", "validation"]
        self.popularity = item_popularity(dataset)
        self.texts = tfidf_vectors(load_item_texts(config, dataset)) if config["rules_text"] else None
        self.evidence: PooledEvidence | None = None
        self.sequences: TrainingSequences | None = None
        self.validation: Samples | None = None

    def calculate_loss(self, interaction: Interaction) -> Tensor:
        """There is none: rules are counted."""
        raise NotImplementedError("sequential rules are counted, not trained by a loss")

    def predict(self, interaction: Interaction) -> Tensor:
        """The scores of pairs of a history and an item, ``[batch]``."""
        scores = self.full_sort_predict(interaction)
        return scores.gather(1, interaction[self.ITEM_ID].unsqueeze(1)).squeeze(1)

    def full_sort_predict(self, interaction: Interaction) -> Tensor:
        """The scores of all items, ``[batch, n_items]``: logarithms of probabilities, not normalised."""
        items, lengths = (interaction[field].cpu().numpy() for field in (self.ITEM_SEQ, self.ITEM_SEQ_LEN))
        device = interaction[self.ITEM_SEQ].device
        if self.evidence is None:  # RecBole counts operations before it trains
            return torch.zeros(len(items), self.n_items, device=device)
        return self.evidence.scores(items, lengths).to(device)
