"""The mapping models that can be corrected.

Each is a module here with the constants and functions of
:class:`~recbole_llmd.unlearning.mapping.correction.MappingModel`, over NumPy and SciPy arrays alone. To add a model,
add its file and its name here.
"""

from __future__ import annotations

import importlib
from typing import cast

from recbole_llmd.errors import ModelError
from recbole_llmd.unlearning.mapping.correction import MappingModel

MODELS = {"EASE": "ease", "ItemKNN": "itemknn", "SLIMElastic": "slim", "ADMMSLIM": "admm"}


def mapping_of(name: str) -> MappingModel:
    """The module of RecBole's model ``name``.

    Raises:
        ModelError: if there is none.
    """
    if name not in MODELS:
        raise ModelError(
            f"model = {name!r}: unlearning corrects mapping models (scores = X·B): one of "
            + ", ".join(map(repr, MODELS))
            + ". Retrain any other model on the retained interactions."
        )
    return cast(MappingModel, importlib.import_module(f"{__name__}.{MODELS[name]}"))
