"""Our property files and checks inside RecBole's Config.

RecBole's ``Config`` is extended in place, so that plain RecBole calls (``run_recbole``, ``objective_function``,
``Config(...)``) see our models: their defaults are laid over RecBole's internal ones, below everything the user
gives, and the settings are checked before anything is loaded.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from recbole.config.configurator import Config
from recbole.utils import ModelType, get_model

from recbole_llmd import registry
from recbole_llmd.errors import SettingsError
from recbole_llmd.model_lookup import unknown_model
from recbole_llmd.registry import ModelSpec
from recbole_llmd.setting_checks import check
from recbole_llmd.settings import TRAINING_KEYS

_HERE = Path(__file__).resolve().parent
# An installed wheel carries properties/ inside the package; a checkout (editable or not) has it beside the package.
PROPERTIES = next(path for path in (_HERE / "properties", _HERE.parent / "properties") if path.is_dir())


# --- property files ---------------------------------------------------------------------------------------------------


def load_properties(name: str) -> dict[str, Any]:
    """The defaults of one of our models (its name), or those in a property file (its path), as a dict."""
    file = registry.spec(name).defaults_file if registry.is_ours(name) else name
    with open(PROPERTIES / "model" / file, encoding="utf-8") as stream:  # an absolute path stays what it is
        values: dict[str, Any] = yaml.safe_load(stream)
    return values


def defaults(spec: ModelSpec, inner_defaults: dict[str, Any] | None = None) -> dict[str, Any]:
    """All defaults of a model, to be laid over RecBole's internal ones, the last word last.

    First those of the model that it wraps; then the settings of its LLM side, whose training keys get ``llm_`` in
    front; then its own.
    """
    merged = dict(inner_defaults or {})
    if spec.side is not None:
        side, values = registry.spec(spec.side), load_properties(spec.side)
        merged.update({key: value for key, value in values.items() if side.is_setting(key)})
        merged.update({f"llm_{key}": values[key] for key in TRAINING_KEYS})
    return {**merged, **load_properties(spec.name)}


def existing_files(files: Sequence[str]) -> list[str]:
    """The property files, all of which are there.

    Raises:
        SettingsError: naming the first that is not.
    """
    for file in files:
        if not os.path.isfile(file):
            raise SettingsError(f"config_files: there is no file {file!r}.")
    return list(files)


# --- Configs made of a Config -----------------------------------------------------------------------------------------


def side_config(config: Config, **values: Any) -> Config:
    """A copy of ``config`` for one side of a run, with some values replaced.

    A Config in RecBole holds plain settings; only the dict of final values is copied.
    """
    twin = Config.__new__(Config)
    twin.__dict__.update(config.__dict__)
    twin.final_config_dict = {**config.final_config_dict, **values}
    return twin


def llm_side_config(config: Config) -> Config:
    """The Config of a distillation's LLM side: RecBole's training keys take the values of their ``llm_`` namesakes."""
    values = {key: config[f"llm_{key}"] for key in TRAINING_KEYS}
    return side_config(config, model=registry.spec(config["model"]).side, reg_weight=None, **values)


def plain_config(config: Config, name: str) -> Config:
    """A copy of ``config`` for RecBole's model ``name`` run alone, without a trace of this package."""
    plain = copy.copy(config)
    plain.model, plain.model_class = name, get_model(name)
    for attribute, values in vars(config).items():
        if attribute.endswith("config_dict"):
            kept = {key: value for key, value in values.items() if key != "model" and not registry.is_our_setting(key)}
            setattr(plain, attribute, kept)
    plain.final_config_dict["model"] = name
    return plain


# --- RecBole's Config, extended ---------------------------------------------------------------------------------------

_get_model_and_dataset = Config._get_model_and_dataset
_load_internal_config_dict = Config._load_internal_config_dict
_set_default_parameters = Config._set_default_parameters


def install() -> None:
    """Extend RecBole's Config; called once by ``import recbole_llmd``."""
    Config._get_model_and_dataset = _find_model_and_dataset
    Config._load_internal_config_dict = _load_defaults
    Config._set_default_parameters = _check_and_derive


@functools.wraps(_get_model_and_dataset)
def _find_model_and_dataset(self: Config, model: Any, dataset: Any) -> Any:
    try:
        with unknown_model("model", model or self.external_config_dict.get("model")):
            return _get_model_and_dataset(self, model, dataset)
    except KeyError as error:
        raise SettingsError(f"{error.args[0]}. Give --model=... and --dataset=...") from None


@functools.wraps(_load_internal_config_dict)
def _load_defaults(self: Config, model: str, model_class: Any, dataset: str) -> None:
    _load_internal_config_dict(self, model, model_class, dataset)
    if registry.is_ours(model):
        _lay_over_ours(self, registry.spec(model), dataset)
    else:
        _lay_over_mapping(self, model)
    if model_class.type == ModelType.SEQUENTIAL or _ordered_by_time(self):
        _load_time_field(self)
    self.internal_config_dict.update(load_properties(os.fspath(PROPERTIES / "every_model.yaml")))


def _lay_over_ours(config: Config, spec: ModelSpec, dataset: str) -> None:
    """Put our model's defaults over RecBole's; those of the model it wraps are read as if that were run alone."""
    inner_defaults = None
    if spec.inner is not None:
        name = config.external_config_dict.get(spec.inner.key, load_properties(spec.name)[spec.inner.key])
        _load_internal_config_dict(config, name, spec.inner.class_of(name), dataset)
        _lay_over_mapping(config, name)
        inner_defaults, config.internal_config_dict = config.internal_config_dict, {}
    config.internal_config_dict.update(defaults(spec, inner_defaults))


def _lay_over_mapping(config: Config, name: str) -> None:
    """Put the defaults of a mapping model that RecBole does not have over RecBole's."""
    mapping = registry.mapping_spec(name)
    if mapping is not None and mapping.defaults_file is not None:
        config.internal_config_dict.update(load_properties(mapping.defaults_file))


@functools.wraps(_set_default_parameters)
def _check_and_derive(self: Config) -> None:
    if registry.is_ours(self.model):
        _check_ours(self)
    with _class_that_is_trained(self):
        _no_negatives_for_cross_entropy(self)
        _set_default_parameters(self)


def _check_ours(config: Config) -> None:
    values = config.final_config_dict
    check(config.model, values, config.external_config_dict)
    if "nproc" in values:
        raise SettingsError(f"nproc = {values['nproc']}: {config.model} trains in one process. Leave nproc out.")


@contextlib.contextmanager
def _class_that_is_trained(config: Config) -> Iterator[None]:
    """Inside, the Config's class is that of the wrapped model: its loss type, input and negative samples are taken."""
    own_class, inner = config.model_class, registry.is_ours(config.model) and registry.spec(config.model).inner
    if inner:
        config.model_class = inner.class_of(config.final_config_dict[inner.key])
    try:
        yield
    finally:
        config.model_class = own_class


def _ordered_by_time(config: Config) -> bool:
    return bool((config.external_config_dict.get("eval_args") or {}).get("order") == "TO")


def _load_time_field(config: Config) -> None:
    """Load the timestamps, which sequences and splits by time need, where RecBole's default leaves them out."""
    values = config.internal_config_dict
    columns = (values.get("load_col") or {}).get("inter")
    time = config.external_config_dict.get("TIME_FIELD", values["TIME_FIELD"])
    if isinstance(columns, list) and time not in columns:
        values["load_col"] = {**values["load_col"], "inter": [*columns, time]}


def _no_negatives_for_cross_entropy(config: Config) -> None:
    """Take no negative samples where the user said nothing of them and the loss is cross-entropy.

    RecBole refuses its own default (uniform) for a sequential model with that loss and asks every user to write
    ``train_neg_sample_args: ~``.
    """
    values = config.final_config_dict
    if values["MODEL_TYPE"] != ModelType.SEQUENTIAL or "train_neg_sample_args" in config.external_config_dict:
        return
    if hasattr(config.model_class, "input_type"):
        return
    if values.get("loss_type") == "CE":
        values["train_neg_sample_args"] = None
