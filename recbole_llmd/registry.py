"""Shows our models and trainers to RecBole under RecBole's own names.

RecBole finds a model by importing ``recbole.model.<kind>.<name in lower case>`` and a trainer as an attribute
``<name>Trainer`` of ``recbole.trainer``. Our modules are entered there under those names, so ``get_model`` and
``get_trainer``, however they were imported, return our classes: one class object each.
"""

import importlib
import sys

MODELS = {
    # name: (module of the model, module of the trainer, RecBole's kind of model)
    "LLMRec": ("recbole_llmd.model.llmrec", "recbole_llmd.trainer.llmrec", "sequential_recommender"),
    "LLMD4Rec": ("recbole_llmd.model.llmd4rec", "recbole_llmd.trainer.llmd4rec", "sequential_recommender"),
    "IMCorrect": ("recbole_llmd.model.imcorrect", "recbole_llmd.trainer.imcorrect", "general_recommender"),
}


def install():
    """Register every model; called once by ``import recbole_llmd``."""
    import recbole.trainer

    for name, (model_module, trainer_module, kind) in MODELS.items():
        sys.modules[f"recbole.model.{kind}.{name.lower()}"] = importlib.import_module(model_module)
        trainer = getattr(importlib.import_module(trainer_module), f"{name}Trainer")
        setattr(recbole.trainer, f"{name}Trainer", trainer)
