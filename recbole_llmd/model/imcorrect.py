"""IMCorrect as a model of RecBole: a mapping model that is trained, forgets, and is compared with retraining."""

from time import perf_counter

from recbole.model.abstract_recommender import GeneralRecommender
from recbole.utils import InputType, ModelType, get_model


class IMCorrect(GeneralRecommender):
    """Gives RecBole's own model named by ``mapping_model``, which its trainer lets forget.

    What is trained, corrected, served and saved is that model: building an ``IMCorrect`` returns an EASE, ItemKNN,
    SLIMElastic or ADMMSLIM. Its attribute ``fit_seconds`` says how long RecBole took to fit it.
    """

    input_type = InputType.POINTWISE
    type = ModelType.TRADITIONAL

    def __new__(cls, config, dataset):
        started = perf_counter()
        model = get_model(config["mapping_model"])(config, dataset)
        model.fit_seconds = perf_counter() - started
        return model
