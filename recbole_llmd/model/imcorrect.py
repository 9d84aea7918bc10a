"""IMCorrect as a model of RecBole: a mapping model that is trained, forgets, and is compared with retraining."""

from __future__ import annotations

from time import perf_counter

from recbole.config import Config
from recbole.data.dataset import Dataset
from recbole.model.abstract_recommender import GeneralRecommender
from recbole.utils import InputType, ModelType, get_model


class IMCorrect(GeneralRecommender):
    """A factory: building an ``IMCorrect`` returns RecBole's own model named by ``mapping_model``.

    What is trained, corrected, served and saved is that model (an EASE, or our DualEASE, for instance), so that its
    checkpoints are plain RecBole's and no call goes through a wrapper. The name ``IMCorrect`` is there for RecBole's
    ``--model`` alone: it chooses the settings ``unlearn_...`` and the trainer that lets the model forget. There is no
    object of this class. What corrects a model is the engine, ``recbole_llmd.unlearning.Unlearner(model, dataset)``.

    The model's attribute ``fit_seconds`` says how long RecBole took to fit it.

    >>> from types import SimpleNamespace
    >>> from scipy.sparse import csr_matrix
    >>> dataset = SimpleNamespace(num=lambda field: 3, inter_matrix=lambda form: csr_matrix([[0, 0, 0], [0, 1, 1.0]]))
    >>> class Config(dict):  # stands for RecBole's
    ...     device = "cpu"
    >>> names = {"USER_ID_FIELD": "user_id", "ITEM_ID_FIELD": "item_id", "NEG_PREFIX": "neg_"}
    >>> model = IMCorrect(Config(names, mapping_model="EASE", reg_weight=1.0, device="cpu"), dataset)
    >>> type(model).__name__, model.item_similarity.shape, model.fit_seconds > 0
    ('EASE', (3, 3), True)
    """

    input_type = InputType.POINTWISE
    type = ModelType.TRADITIONAL

    def __new__(cls, config: Config, dataset: Dataset) -> GeneralRecommender:
        """RecBole's trained model."""
        started = perf_counter()
        model = get_model(config["mapping_model"])(config, dataset)
        model.fit_seconds = perf_counter() - started
        return model
