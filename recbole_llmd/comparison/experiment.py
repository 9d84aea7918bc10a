"""What is compared with what: the datasets and variants of an experiment as a list of cells."""

from __future__ import annotations

import copy
import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from recbole.config import Config
from recbole.evaluator.base_metric import TopkMetric
from recbole.evaluator.register import metrics_dict
from recbole.utils import EvaluatorType, ModelType

from recbole_llmd import registry
from recbole_llmd.comparison.experiment_file import (
    Seeds,
    Settings,
    as_truth,
    list_names,
    list_seeds,
    list_tests,
    nearest,
    read_experiment,
    variants_of,
)
from recbole_llmd.config import existing_files
from recbole_llmd.errors import SettingsError
from recbole_llmd.trainer.llmd4rec import fingerprint

# The last interaction of every user is the test, the one before it the validation; all items are ranked.
EVAL_ARGS = {"split": {"LS": "valid_and_test"}, "order": "TO", "group_by": "user", "mode": "full"}
SET_BY_COMPARISON = {  # settings that a comparison sets itself, and how to say it instead
    "eval_args": "a comparison tests on every user's last interaction, for all models",
    "repeatable": "a comparison ranks the same items for all models; mask_history says which",
    "mask_history": "it holds for all models; give it beside seeds in an experiment file, or as compare's own option",
    "seed": "give seeds",
    "model": "give models, or variants in an experiment file",
    "dataset": "give dataset",
    "checkpoint_dir": "give out; checkpoints are kept in there until their cell ends",
    "resume": "a comparison goes on where it was by itself",
}


@dataclass(frozen=True, eq=False)
class Cell:
    """One run: a variant on a dataset with a seed.

    Attributes:
        settings: everything given, as RecBole's ``config_dict``.
        files: RecBole's property files.
        mask_history: whether items of the user's history are left out of the ranking.
        key: hash of every setting that changes the result, defaults included.

    >>> Cell("ml-100k", "two layers", "SASRec", 2020, {"n_layers": 2}, [], False, "0123abcd").name
    'ml-100k__two-layers__2020-0123abcd'
    """

    dataset: str
    variant: str
    model: str
    seed: int
    settings: Settings
    files: list[str]
    mask_history: bool
    key: str

    @property
    def name(self) -> str:
        """The name of the cell's files."""
        return "__".join(map(_file_name, (self.dataset, self.variant, str(self.seed)))) + f"-{self.key}"


@dataclass
class Experiment:
    """Datasets and variants with their settings, and what to report of them.

    Attributes:
        datasets: for each name its settings.
        variants: for each name its settings, ``model`` among them.
        seeds: each variant runs with each of them.
        baseline: the variant that the others are compared with; empty: the first one.
        metrics: the columns of the tables; empty: all that RecBole computes, the validation metric first.
        settings: hold for all variants that have them, below a dataset's and a variant's own.
        files: RecBole's property files, below all settings.
        tests: pairs of rows that are compared besides; an LLM's row is its variant's name and `` · LLM``.
        mask_history: whether items of a user's history are left out of all rankings; None: where not all models are
            sequential, as is known after :meth:`cells`.

    Raises:
        SettingsError: if a name, key or value cannot be; found before anything runs.

    >>> experiment = Experiment({"ml-100k": {}}, {"a": {"model": "BPR"}, "b": {"model": "BPR"}}, seeds=[2020])
    >>> experiment.baseline
    'a'
    """

    datasets: dict[str, Settings]
    variants: dict[str, Settings]
    seeds: list[int]
    baseline: str = ""
    metrics: list[str] = field(default_factory=list)
    settings: Settings = field(default_factory=dict)
    files: list[str] = field(default_factory=list)
    tests: list[list[str]] = field(default_factory=list)
    mask_history: bool | None = None

    def __post_init__(self) -> None:
        if not self.datasets or not self.variants:
            raise SettingsError("compare needs --models and --dataset, or --experiment with variants and a dataset.")
        self.baseline = self.baseline or next(iter(self.variants))
        if self.baseline not in self.variants:
            raise SettingsError(
                f"baseline = {self.baseline!r}: must be one of {', '.join(self.variants)}. "
                f"The nearest is {nearest(self.baseline, self.variants)!r}."
            )
        for given in (self.settings, *self.datasets.values()):
            refuse_set_by_comparison(given)
        for variant in self.variants.values():
            refuse_set_by_comparison({key: value for key, value in variant.items() if key != "model"})
            if reason := registry.why_not_comparable(variant["model"]):
                raise SettingsError(reason)
        self._refuse_unknown()
        self.tests = list_tests(self.tests, self._rows())

    def cells(self) -> list[Cell]:
        """Every cell, seed by seed, so that an unfinished comparison is already a paired one."""
        configs = {
            (dataset, seed, variant): self._config(dataset, variant, seed)
            for dataset in self.datasets
            for seed in self.seeds
            for variant in self.variants
        }
        _check_equal_evaluation([(variant, config) for (_, _, variant), config in configs.items()])
        types = {config["MODEL_TYPE"] for config in configs.values()}
        if self.mask_history is None:
            # RecBole ranks a general model's unseen items and a sequential model's whole catalogue.
            self.mask_history = types != {ModelType.SEQUENTIAL}
        self.metrics = _columns(next(iter(configs.values())), self.metrics)
        return [
            Cell(
                dataset,
                variant,
                config["model"],
                seed,
                self._given(dataset, variant, seed),
                self.files,
                self.mask_history,
                hashlib.sha256(f"{fingerprint(config)} {self.mask_history}".encode()).hexdigest()[:12],
            )
            for (dataset, seed, variant), config in configs.items()
        ]

    def _rows(self) -> list[str]:
        """The names of the results: of every variant, and of the LLM beside it."""
        models = {variant: own["model"] for variant, own in self.variants.items()}
        with_llm = [name for name, model in models.items() if registry.is_ours(model) and registry.spec(model).side]
        return [*models, *map(llm_row, with_llm)]

    def _given(self, dataset: str, variant: str, seed: int) -> Settings:
        own = dict(self.variants[variant])
        known = registry.rules_of(own.pop("model"))
        for_all = {**self.settings, **self.datasets[dataset]}
        given = {key: value for key, value in for_all.items() if not registry.is_our_setting(key) or key in known}
        return copy.deepcopy({"show_progress": False, **given, **own, "seed": seed, "eval_args": EVAL_ARGS})

    def _config(self, dataset: str, variant: str, seed: int) -> Config:
        given = self._given(dataset, variant, seed)  # RecBole's Config changes what it is given
        return Config(
            model=self.variants[variant]["model"], dataset=dataset, config_file_list=self.files, config_dict=given
        )

    def _refuse_unknown(self) -> None:
        """A setting of ours for all variants must be a setting of one of the models at least."""
        models = dict.fromkeys(variant["model"] for variant in self.variants.values())
        known = {key for model in models for key in registry.rules_of(model)}
        for given in (self.settings, *self.datasets.values()):
            for key in filter(registry.is_our_setting, given):
                if key in known:
                    continue
                owners = registry.models_with(key)
                hint = f"The nearest is {nearest(key, registry.all_settings())}."
                if owners:
                    hint = f"It is one of {', '.join(owners)}."
                raise SettingsError(f"{key} is a setting of none of the models compared ({', '.join(models)}). {hint}")


def llm_row(variant: str) -> str:
    """What tables call the LLM that was trained beside the served model of ``variant``."""
    return f"{variant} · LLM"


def make_experiment(
    models: str | Sequence[str] | None = None,
    datasets: str | Sequence[str] | None = None,
    seeds: Seeds | None = None,
    *,
    baseline: str | None = None,
    experiment: str | None = None,
    mask_history: bool | str | None = None,
    config_files: Sequence[str] = (),
    settings: Mapping[str, object] | None = None,
) -> Experiment:
    """The experiment that is asked for (arguments: see :func:`~recbole_llmd.comparison.command.compare`).

    Raises:
        SettingsError: if a name, key or value cannot be.
    """
    if experiment and models:
        raise SettingsError("--models and --experiment: the experiment file says what is compared. Give one of them.")
    content = read_experiment(experiment) if experiment else {}
    variants = variants_of(models) if models else content.get("variants", {})
    settings_by_dataset = content.get("datasets", {})
    if datasets:
        settings_by_dataset = {name: settings_by_dataset.get(name, {}) for name in list_names(datasets)}
    settings = dict(settings or {})
    return Experiment(
        datasets=_without(settings, settings_by_dataset),
        variants=_without(settings, variants),
        seeds=list_seeds(content.get("seeds", 1) if seeds is None or seeds == "" else seeds),
        baseline=baseline or content.get("baseline") or "",
        metrics=content.get("metrics") or [],
        settings={**content.get("settings", {}), **settings},
        files=existing_files(config_files),
        tests=content.get("tests") or [],
        mask_history=as_truth(content.get("mask_history") if mask_history in (None, "") else mask_history),
    )


def _without(settings: Settings, named: dict[str, Settings]) -> dict[str, Settings]:
    """``named`` without the keys of ``settings``, which have the last word."""
    return {name: {key: own[key] for key in own if key not in settings} for name, own in named.items()}


def refuse_set_by_comparison(settings: Settings) -> None:
    """Refuse settings that a comparison sets itself."""
    for key, reason in SET_BY_COMPARISON.items():
        if key in settings:
            raise SettingsError(f"{key} = {settings[key]!r}: is not set by hand in a comparison: {reason}.")


def _check_equal_evaluation(configs: Sequence[tuple[str, Config]]) -> None:
    """All variants are selected and compared by the same figures."""
    _, first = configs[0]
    for variant, config in configs:
        for key in ("metrics", "topk", "valid_metric"):
            if config[key] != first[key]:
                raise SettingsError(
                    f"{variant}: {key} = {config[key]!r}, but {first[key]!r} for the first variant. "
                    f"Give {key} once, for all."
                )
        if config["eval_type"] != EvaluatorType.RANKING:
            raise SettingsError(
                f"metrics = {config['metrics']!r}: a comparison ranks all items. Use ranking metrics such as NDCG."
            )


def _columns(config: Config, chosen: Sequence[str]) -> list[str]:
    """The metrics of the tables in RecBole's spelling: those ``chosen``, or all; the first one is what plots show."""
    names = [name.lower() for name in config["metrics"]]
    known = [f"{name}@{k}" for name in names if issubclass(metrics_dict[name], TopkMetric) for k in config["topk"]]
    if not known:
        raise SettingsError(f"metrics = {config['metrics']!r}: none of them has a value for each user. Add NDCG.")
    if not chosen:
        first = config["valid_metric"].lower()
        return sorted(known, key=lambda name: name != first)
    columns = [str(name).lower() for name in chosen]
    for name in columns:
        if name not in known:
            raise SettingsError(
                f"metrics = {name!r}: is not computed; computed are {', '.join(known)}. "
                "Set RecBole's metrics and topk under settings."
            )
    return columns


def _file_name(text: str) -> str:
    return re.sub(r"[^\w.+-]+", "-", text)
