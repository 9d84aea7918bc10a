"""Finding a model's class by its name, with an error that helps where there is none."""

from __future__ import annotations

import contextlib
import difflib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import recbole
import recbole.data.dataset
import recbole.trainer
from recbole.utils import ModelType, get_model

from recbole_llmd import registry
from recbole_llmd.errors import SettingsError
from recbole_llmd.settings import OneOf


def crm_class(name: object) -> type[Any]:
    """The class of the conventional recommender called ``name``: a sequential model of RecBole.

    Raises:
        SettingsError: if there is no such model, or it cannot be one side of a distillation; with the nearest name, or
            the reason.
    """
    if not isinstance(name, str) or registry.is_ours(name):
        raise SettingsError(f"crm_model = {name!r}: must be the name of one of RecBole's sequential models.")
    with unknown_model("crm_model", name):
        model_class: type[Any] = get_model(name)
    if getattr(model_class, "type", None) != ModelType.SEQUENTIAL:
        raise SettingsError(
            f"crm_model = {name!r}: must be a sequential model (it reads item_id_list); "
            f"{name} is {model_class.type.name.lower()}. Use SASRec, GRU4Rec or another sequential model."
        )
    for module, own, why in (
        (recbole.data.dataset, "Dataset", "reads data that the LLM's side does not have"),
        (recbole.trainer, "Trainer", "is trained in stages of its own"),
    ):
        if hasattr(module, name + own):
            raise SettingsError(
                f"crm_model = {name!r}: {name} needs RecBole's {name}{own} ({name} {why}), which cannot be one "
                "side of a mutual distillation. Use SASRec, GRU4Rec or another sequential model."
            )
    return model_class


def mapping_class(name: object) -> type[Any]:
    """The class of the mapping model called ``name``.

    Raises:
        SettingsError: if it is none that can be corrected.
    """
    rule = OneOf(registry.mapping_names)
    if not rule.test(name):
        raise SettingsError(f"mapping_model = {name!r}: must be {rule.text}.")
    model_class: type[Any] = get_model(name)
    return model_class


def nearest_model(name: object) -> str:
    """The name of the model most like ``name``, among RecBole's and ours."""
    folder = Path(recbole.__file__).parent / "properties" / "model"
    known = [*registry.names(), *registry.mapping_names(), *(path.stem for path in folder.glob("*.yaml"))]
    by_lower = {candidate.lower(): candidate for candidate in known}
    return by_lower[difflib.get_close_matches(str(name).lower(), by_lower, n=1, cutoff=0)[0]]


@contextlib.contextmanager
def unknown_model(key: str, name: object) -> Iterator[None]:
    """Inside, RecBole's failure to find a model, which may be a missing lightgbm, is an error with the nearest name."""
    try:
        yield
    except (ValueError, AttributeError, ImportError):
        nearest = nearest_model(name)
        if nearest == name:
            raise
        raise SettingsError(
            f"{key} = {name!r}: there is no model of that name. The nearest name is {nearest!r}."
        ) from None
