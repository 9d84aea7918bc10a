"""LLMD4Rec: a conventional recommender (CRM) and an LLM recommender that teach each other; the CRM is served."""

from __future__ import annotations

from typing import Any

from recbole.config import Config
from recbole.data.dataset import SequentialDataset
from recbole.data.interaction import Interaction
from recbole.model.abstract_recommender import SequentialRecommender
from torch import Tensor

from recbole_llmd import config as configs
from recbole_llmd.errors import ModelError
from recbole_llmd.model.llmrec import LLMRec
from recbole_llmd.model_lookup import crm_class


class LLMD4Rec(SequentialRecommender):
    """Both sides of a mutual distillation (LLMD4Rec, arXiv 2505.18120); ``LLMD4RecTrainer`` trains them in turn.

    Attributes:
        crm: the RecBole model named by ``crm_model``; every score this model gives is the CRM's.
        llm (LLMRec): the LLM recommender, which takes no part in serving.

    >>> from recbole.quick_start import run_recbole  # small: a tiny dataset and language model, small sizes
    >>> epochs = {"epochs": 1, "llm_epochs": 1, "llm_warmup_epochs": 1, "distill_rounds": 1}
    >>> result = run_recbole(model="LLMD4Rec", config_dict={**small, **epochs, "crm_model": "GRU4Rec"})
    >>> [phase["label"] for phase in result["distillation"]["phases"]]
    ['warm-up, LLM phase', 'round 1, CRM phase (LLM teaches)', 'round 1, LLM phase (CRM teaches)']
    >>> sorted(result["test_result"]) == sorted(result["llm"]["test_result"])  # the CRM's, and beside it the LLM's
    True
    """

    def __init__(self, config: Config, dataset: SequentialDataset) -> None:
        super().__init__(config, dataset)
        # First, so that its initial weights are those of the same CRM run alone with the same seed.
        self.crm = crm_class(config["crm_model"])(configs.side_config(config, model=config["crm_model"]), dataset)
        vectors = None if config["llm_item_vectors"] == "own" else self.crm_vectors()
        self.llm = LLMRec(configs.llm_side_config(config), dataset, vectors)

    def crm_vectors(self) -> Tensor:
        """The CRM's item vectors, ``[n_items, size of the CRM's]``.

        Raises:
            ModelError: if the CRM does not keep one vector an item in ``item_embedding``.
        """
        weight = getattr(getattr(self.crm, "item_embedding", None), "weight", None)
        if not isinstance(weight, Tensor) or weight.dim() != 2 or len(weight) < self.n_items:
            name = type(self.crm).__name__
            raise ModelError(
                f"crm_model = {name!r}: {name} keeps no item vectors in item_embedding that the LLM could read. Use a "
                "model that does, such as SASRec or GRU4Rec, or llm_item_vectors: own."
            )
        return weight[: self.n_items].detach()  # some models have rows for a mask after the items

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The CRM's."""
        return self.crm(*args, **kwargs)

    def calculate_loss(self, interaction: Interaction) -> Tensor | tuple[Tensor, ...]:
        """The CRM's."""
        return self.crm.calculate_loss(interaction)

    def predict(self, interaction: Interaction) -> Tensor:
        """The CRM's."""
        return self.crm.predict(interaction)

    def full_sort_predict(self, interaction: Interaction) -> Tensor:
        """The CRM's."""
        return self.crm.full_sort_predict(interaction)

    def other_parameter(self) -> Any:
        """What the CRM's checkpoints hold beside its weights."""
        return self.crm.other_parameter()

    def load_other_parameter(self, para: Any) -> None:
        """Read what :meth:`other_parameter` gave."""
        self.crm.load_other_parameter(para)
