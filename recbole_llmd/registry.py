"""The models of this package, and RecBole's that it corrects: one entry a model, and all that the rest asks of it.

Config, command line, comparisons and checkpoints read the entries here and know no model by its name. A new model is
one file (class, trainer, rules), one property file with its defaults, and one :func:`register`; a new mapping model is
one file (the corrections, and the class where RecBole has none) and one :func:`register_mapping`.

RecBole finds a model by importing ``recbole.model.<kind>.<name in lower case>`` and a trainer as an attribute
``<name>Trainer`` of ``recbole.trainer``. :func:`install` enters our modules there under those names, so ``get_model``
and ``get_trainer``, however they were imported, return our classes: one class object each.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

from recbole_llmd import settings
from recbole_llmd.errors import ModelError
from recbole_llmd.settings import OneOf, Rule

if TYPE_CHECKING:
    from recbole_llmd.unlearning.mapping.correction import MappingModel

KINDS = ("general_recommender", "sequential_recommender")  # RecBole's folders of model modules that ours may join


@dataclass(frozen=True)
class InnerModel:
    """The model of RecBole that one of our models wraps.

    Attributes:
        key: the setting that names it, such as ``crm_model``.
        find: ``"module:function"`` that gives its class by name, or a ``SettingsError`` that says why it cannot be one.
        attribute: where our model holds it, such as ``crm``; None where building our model gives the inner one itself.

    >>> InnerModel("crm_model", "recbole_llmd.model_lookup:crm_class", "crm").class_of("GRU4Rec").__name__
    'GRU4Rec'
    """

    key: str
    find: str
    attribute: str | None = None

    def class_of(self, name: object) -> type[Any]:
        """The class of the inner model called ``name``."""
        model_class: type[Any] = resolve(self.find)(name)
        return model_class


@dataclass(frozen=True)
class ModelSpec:
    """A model of this package.

    Attributes:
        name: the value of ``--model``.
        kind: RecBole's kind of model, one of :data:`KINDS`.
        model, trainer: ``"module:Class"``; the trainer's class is called ``<name>Trainer``.
        rules: what the values of its own settings may be; every key has a default in ``defaults_file``.
        prefixes: what its settings' names begin with, so that a misspelt one is known to be ours.
        unprefixed: its settings that no prefix tells from RecBole's.
        defaults_file: its file in ``properties/model``, or the path of one elsewhere.
        inner: the model of RecBole that it wraps, if it does.
        side: another model of ours that it trains beside the inner one: that model's own settings are its own too, and
            its training keys have ``llm_`` in front.
        refuse: ``"module:function"`` that is given all settings and raises a ``SettingsError`` for those that do not go
            together; empty where all do.
        needs: by setting and value, the setting that must then be given.
        after_warm_up: settings that a run does not depend on until its first round begins: runs of a comparison that
            agree in all others share a warm-up.
        only_in_warm_up: by a number of epochs, further settings on which the warm-up depends where that is not 0.
        not_comparable: why it cannot stand in a comparison; empty where it can.
        unlearner: ``"module:Class"`` of the engine that lets it forget; empty where it cannot.

    >>> entry = spec("LLMRec")
    >>> entry.rules["llm_layers"].text, entry.is_setting("llm_layer"), entry.is_setting("distill_rounds")
    ('a whole number of at least 0', True, False)
    """

    name: str
    kind: str
    model: str
    trainer: str
    rules: Mapping[str, Rule | OneOf] = field(repr=False)
    prefixes: tuple[str, ...]
    defaults_file: str
    unprefixed: tuple[str, ...] = ()
    inner: InnerModel | None = None
    side: str | None = None
    refuse: str = ""
    needs: Mapping[str, Mapping[str, str]] = field(default_factory=dict, repr=False)
    after_warm_up: tuple[str, ...] = ()
    only_in_warm_up: Mapping[str, tuple[str, ...]] = field(default_factory=dict, repr=False)
    not_comparable: str = ""
    unlearner: str = ""

    def is_setting(self, key: str) -> bool:
        """Whether ``key`` reads as a setting of this model, misspelt ones included."""
        return key.startswith(self.prefixes) or key in self.unprefixed


@dataclass(frozen=True)
class MappingSpec:
    """A model whose scores are X·B, and the module that corrects its B.

    Attributes:
        name: the name of its class.
        corrections: the module, see :mod:`recbole_llmd.unlearning.mapping`.
        model: ``"module:Class"`` of a model that RecBole does not have, or of a subclass that stands for RecBole's;
            None for RecBole's own.
        defaults_file: the property file of a model that RecBole does not have.

    >>> mapping_spec("EASE")
    MappingSpec(name='EASE', corrections='recbole_llmd.unlearning.mapping.ease', model=None, defaults_file=None)
    """

    name: str
    corrections: str
    model: str | None = None
    defaults_file: str | None = None


_SPECS: dict[str, ModelSpec] = {}
_MAPPINGS: dict[str, MappingSpec] = {}
_shown: dict[str, Callable[[], None]] = {}  # how to take back what RecBole was shown; empty before install()
_installed = False


def resolve(target: str) -> Any:
    """What ``"module:name"`` stands for."""
    module, _, name = target.partition(":")
    return getattr(importlib.import_module(module), name)


# --- our models -------------------------------------------------------------------------------------------------------


def register(spec: ModelSpec) -> None:
    """Add a model; RecBole knows it from then on (from :func:`install` on, where that is later).

    Raises:
        ModelError: if the name is taken, or the kind is none of :data:`KINDS`.
    """
    _refuse_taken(spec.name)
    if spec.kind not in KINDS:
        raise ModelError(f"kind = {spec.kind!r}: must be one of {', '.join(KINDS)}.")
    _SPECS[spec.name] = spec
    if _installed:
        _show(spec.name, spec.kind, spec.model, spec.trainer)


def unregister(name: str) -> None:
    """Take a model away again."""
    del _SPECS[name]
    _hide(name)


def names() -> tuple[str, ...]:
    """The names of our models."""
    return tuple(_SPECS)


def is_ours(name: object) -> bool:
    """Whether ``name`` is the name of one of our models."""
    return isinstance(name, str) and name in _SPECS


def spec(name: str) -> ModelSpec:
    """The entry of one of our models.

    >>> spec("LLMD4Rec").inner.key
    'crm_model'
    """
    return _SPECS[name]


def specs() -> tuple[ModelSpec, ...]:
    """All entries, in the order in which they were registered."""
    return tuple(_SPECS.values())


def exportable() -> tuple[str, ...]:
    """The models that hold an inner one which can be written as a checkpoint of its own."""
    return tuple(entry.name for entry in specs() if entry.inner is not None and entry.inner.attribute is not None)


def is_our_setting(key: str) -> bool:
    """Whether ``key`` reads as a setting of one of our models, misspelt ones included."""
    return any(entry.is_setting(key) for entry in specs())


def rules_of(name: str) -> Mapping[str, Rule | OneOf]:
    """The rules of a model's settings; empty for RecBole's own models."""
    return _SPECS[name].rules if name in _SPECS else {}


def models_with(key: str) -> list[str]:
    """Our models that have the setting ``key``."""
    return [entry.name for entry in specs() if key in entry.rules]


def all_settings() -> list[str]:
    """The settings of all our models."""
    return list(dict.fromkeys(key for entry in specs() for key in entry.rules))


def why_not_comparable(name: str) -> str:
    """Why the model cannot stand in a comparison; empty where it can, as RecBole's own can."""
    return _SPECS[name].not_comparable if name in _SPECS else ""


def unlearner(name: str) -> type[Any]:
    """The engine that lets the model ``name`` forget; :class:`Unlearner`, which says what it corrects, of any other.

    >>> unlearner("SequentialRules").__name__, unlearner("EASE").__name__
    ('SequentialUnlearner', 'Unlearner')
    """
    own = _SPECS[name].unlearner if name in _SPECS else ""
    engine: type[Any] = resolve(own or "recbole_llmd.unlearning.unlearner:Unlearner")
    return engine


# --- mapping models ---------------------------------------------------------------------------------------------------


def register_mapping(name: str, corrections: str, model: str | None = None, defaults_file: str | None = None) -> None:
    """Add a mapping model (arguments: see :class:`MappingSpec`).

    Raises:
        ModelError: if the name is taken.
    """
    _refuse_taken(name)
    _MAPPINGS[name] = MappingSpec(name, corrections, model, defaults_file)
    if _installed and model is not None:
        _show(name, KINDS[0], model)


def unregister_mapping(name: str) -> None:
    """Take a mapping model away again."""
    del _MAPPINGS[name]
    _hide(name)


def mapping_names() -> tuple[str, ...]:
    """The names of the models that can be corrected.

    >>> mapping_names()
    ('EASE', 'ItemKNN', 'SLIMElastic', 'ADMMSLIM', 'AsymKNN', 'DualEASE', 'SparseEASE', 'NCEPLRec')
    """
    return tuple(_MAPPINGS)


def mapping_spec(name: str) -> MappingSpec | None:
    """The entry of a mapping model, or None."""
    return _MAPPINGS.get(name)


def mapping_module(name: str) -> MappingModel:
    """The module that corrects the mapping model ``name``.

    Raises:
        ModelError: if it is none.
    """
    if name in _SPECS and _SPECS[name].unlearner:
        raise ModelError(
            f"model = {name!r}: the queue, the verification and the evaluation of unlearning are for models that score "
            f"by a matrix which the interactions determine: one of {', '.join(map(repr, _MAPPINGS))}. {name} forgets "
            f"by recbole-llmd unlearn --checkpoint=... --forget-file=... --out=..., or {unlearner(name).__name__}."
        )
    if name not in _MAPPINGS:
        raise ModelError(
            f"model = {name!r}: unlearning corrects models that score by a matrix which the interactions determine: "
            f"one of {', '.join(map(repr, _MAPPINGS))}. The parameters of a model trained by gradient steps have no "
            "closed form and depend on every sample of every step. Retrain other models on the retained interactions."
        )
    return cast("MappingModel", importlib.import_module(_MAPPINGS[name].corrections))


# --- what RecBole sees ------------------------------------------------------------------------------------------------


def install() -> None:
    """Show every registered model to RecBole; called once by ``import recbole_llmd``."""
    global _installed
    _installed = True
    for entry in specs():
        _show(entry.name, entry.kind, entry.model, entry.trainer)
    for mapping in _MAPPINGS.values():
        if mapping.model is not None:
            _show(mapping.name, KINDS[0], mapping.model)


def _show(name: str, kind: str, model: str, trainer: str | None = None) -> None:
    import recbole.trainer

    module_name = f"recbole.model.{kind}.{name.lower()}"
    sys.modules[module_name] = importlib.import_module(model.partition(":")[0])
    if trainer is not None:
        setattr(recbole.trainer, f"{name}Trainer", resolve(trainer))

    def hide() -> None:
        sys.modules.pop(module_name, None)
        if trainer is not None:
            delattr(recbole.trainer, f"{name}Trainer")

    _shown[name] = hide


def _hide(name: str) -> None:
    if name in _shown:
        _shown.pop(name)()


def _refuse_taken(name: str) -> None:
    if name in _SPECS or name in _MAPPINGS:
        raise ModelError(
            f"model = {name!r}: a model of that name is registered already. Give the new one another name."
        )


# --- the entries ------------------------------------------------------------------------------------------------------

register(
    ModelSpec(
        name="LLMRec",
        kind="sequential_recommender",
        model="recbole_llmd.model.llmrec:LLMRec",
        trainer="recbole_llmd.trainer.llmrec:LLMRecTrainer",
        rules={**settings.LLM_RULES, "loss_type": settings.choice("CE")},
        prefixes=("llm_", "item_text_"),
        defaults_file="LLMRec.yaml",
    )
)
register(
    ModelSpec(
        name="LLMD4Rec",
        kind="sequential_recommender",
        model="recbole_llmd.model.llmd4rec:LLMD4Rec",
        trainer="recbole_llmd.trainer.llmd4rec:LLMD4RecTrainer",
        rules={**settings.LLM_RULES, **settings.DISTILLATION_RULES},
        prefixes=("llm_", "item_text_", "crm_", "distill_"),
        unprefixed=("resume",),
        defaults_file="LLMD4Rec.yaml",
        inner=InnerModel("crm_model", "recbole_llmd.model_lookup:crm_class", attribute="crm"),
        side="LLMRec",
        refuse="recbole_llmd.trainer.plan_check:refuse_impossible_plan",
        after_warm_up=(
            "epochs",
            "llm_epochs",
            "distill_rounds",
            "distill_restart",
            "distill_direction",
            "distill_first",
            "distill_refresh_vectors",
            "distill_temperature_llm_to_crm",
            "distill_temperature_crm_to_llm",
            "distill_alpha_llm_to_crm",
            "distill_alpha_crm_to_llm",
            "distill_weighting",
            "distill_rescale_weights",
            "distill_evidence",
            "distill_synthetic",
            "distill_synthetic_epochs",
            "distill_topk",
        ),
        only_in_warm_up={
            "crm_warmup_epochs": (
                "crm_ema_decay",
                "crm_text_start",
                "crm_leave_out_text_only",
                "epochs",
                "stopping_step",
                "eval_step",
                "learning_rate",
                "dropout_prob",
                "hidden_dropout_prob",
                "attn_dropout_prob",
            )
        },
    )
)
register(
    ModelSpec(
        name="SequentialRules",
        kind="sequential_recommender",
        model="recbole_llmd.model.sequential_rules:SequentialRules",
        trainer="recbole_llmd.trainer.sequential_rules:SequentialRulesTrainer",
        rules=settings.COUNTING_RULES,
        prefixes=("rules_", "item_text_"),
        defaults_file="SequentialRules.yaml",
        unlearner="recbole_llmd.unlearning.sequential_unlearner:SequentialUnlearner",
    )
)
register(
    ModelSpec(
        name="IMCorrect",
        kind="general_recommender",
        model="recbole_llmd.model.imcorrect:IMCorrect",
        trainer="recbole_llmd.trainer.imcorrect:IMCorrectTrainer",
        rules={**settings.UNLEARNING_RULES, "mapping_model": OneOf(mapping_names)},
        prefixes=("unlearn_",),
        unprefixed=("mapping_model",),
        defaults_file="IMCorrect.yaml",
        inner=InnerModel("mapping_model", "recbole_llmd.model_lookup:mapping_class"),
        needs={"unlearn_scenario": {"sensitive": "unlearn_sensitive", "file": "unlearn_forget_file"}},
        not_comparable=(
            "IMCorrect compares arms of its own with each other: run it, or recbole-llmd unlearn --evaluate. "
            "Here, name the model that it corrects, such as EASE."
        ),
    )
)
register_mapping("EASE", "recbole_llmd.unlearning.mapping.ease")
register_mapping("ItemKNN", "recbole_llmd.unlearning.mapping.itemknn")
register_mapping("SLIMElastic", "recbole_llmd.unlearning.mapping.slim")
register_mapping("ADMMSLIM", "recbole_llmd.unlearning.mapping.admm")
register_mapping("AsymKNN", "recbole_llmd.unlearning.mapping.asymknn")
register_mapping(
    "DualEASE",
    "recbole_llmd.unlearning.mapping.dual_ease",
    model="recbole_llmd.model.dual_ease:DualEASE",
    defaults_file="DualEASE.yaml",
)
register_mapping(
    "SparseEASE",
    "recbole_llmd.unlearning.mapping.sparse_ease",
    model="recbole_llmd.model.sparse_ease:SparseEASE",
    defaults_file="SparseEASE.yaml",
)
register_mapping(
    "NCEPLRec",
    "recbole_llmd.unlearning.mapping.nceplrec",
    model="recbole_llmd.model.nceplrec:NCEPLRec",  # RecBole's, which keeps neither X nor B
)
