"""What is compared with what: the command line or an experiment file as a list of cells (dataset, variant, seed)."""

import copy
import difflib
import hashlib
import os
import re
from dataclasses import dataclass, field
from pathlib import Path

import yaml
from recbole.config import Config
from recbole.evaluator.base_metric import TopkMetric
from recbole.evaluator.register import metrics_dict
from recbole.utils import EvaluatorType, ModelType

from recbole_llmd import registry
from recbole_llmd.errors import SettingsError
from recbole_llmd.trainer.llmd4rec import fingerprint

# The last interaction of every user is the test, the one before it the validation; all items are ranked.
EVAL_ARGS = {"split": {"LS": "valid_and_test"}, "order": "TO", "group_by": "user", "mode": "full"}
FIRST_SEED = 2020  # RecBole's
MOST_SEEDS = 100
KEYS = ("dataset", "datasets", "seeds", "baseline", "metrics", "settings", "variants")
OWN = {  # settings that a comparison sets itself, and how to say it instead
    "eval_args": "a comparison tests on every user's last interaction, for all models",
    "repeatable": "a comparison ranks the same items for all models",
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
        settings (dict): everything given, as RecBole's ``config_dict``.
        files (list of str): RecBole's property files.
        mask_history (bool): whether items of the user's history are left out of the ranking.
        key (str): hash of every setting that changes the result, defaults included.
    """

    dataset: str
    variant: str
    model: str
    seed: int
    settings: dict
    files: list
    mask_history: bool
    key: str

    @property
    def name(self):
        """The name of the cell's files."""
        return "__".join(map(_file_name, (self.dataset, self.variant, str(self.seed)))) + f"-{self.key}"


@dataclass
class Experiment:
    """Datasets and variants with their settings, and what to report of them.

    Raises:
        SettingsError: if a name, key or value cannot be; found before anything runs.
    """

    datasets: dict
    variants: dict
    seeds: list
    baseline: str = None
    metrics: list = None
    settings: dict = field(default_factory=dict)
    files: list = field(default_factory=list)
    mask_history: bool = False

    def __post_init__(self):
        if not self.datasets or not self.variants:
            raise SettingsError("compare needs --models and --dataset, or --experiment with variants and a dataset.")
        self.baseline = self.baseline or next(iter(self.variants))
        if self.baseline not in self.variants:
            raise SettingsError(
                f"baseline = {self.baseline!r}: must be one of {', '.join(self.variants)}. "
                f"The nearest is {_nearest(self.baseline, self.variants)!r}."
            )
        for given in (self.settings, *self.datasets.values()):
            refuse_own(given)
        for variant in self.variants.values():
            refuse_own({key: value for key, value in variant.items() if key != "model"})
            if registry.is_ours(variant["model"]) and registry.spec(variant["model"]).not_comparable:
                raise SettingsError(registry.spec(variant["model"]).not_comparable)
        self._refuse_unknown()

    def cells(self):
        """Every cell, seed by seed, so that an unfinished comparison is already a paired one."""
        configs = {
            (dataset, seed, variant): self._config(dataset, variant, seed)
            for dataset in self.datasets
            for seed in self.seeds
            for variant in self.variants
        }
        self._check_equal(configs)
        types = {config["MODEL_TYPE"] for config in configs.values()}
        # RecBole ranks a general model's unseen items and a sequential model's whole catalogue.
        self.mask_history = types != {ModelType.SEQUENTIAL}
        self.metrics = self._columns(next(iter(configs.values())))
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

    def _given(self, dataset, variant, seed):
        own = dict(self.variants[variant])
        model = own.pop("model")
        known = registry.rules_of(model)
        for_all = {**self.settings, **self.datasets[dataset]}
        given = {key: value for key, value in for_all.items() if not registry.is_our_setting(key) or key in known}
        return copy.deepcopy({"show_progress": False, **given, **own, "seed": seed, "eval_args": EVAL_ARGS})

    def _config(self, dataset, variant, seed):
        given = self._given(dataset, variant, seed)  # RecBole's Config changes what it is given
        return Config(
            model=self.variants[variant]["model"], dataset=dataset, config_file_list=self.files, config_dict=given
        )

    def _refuse_unknown(self):
        """A setting of ours for all variants must be a setting of one of the models at least."""
        models = [variant["model"] for variant in self.variants.values()]
        known = [key for model in models for key in registry.rules_of(model)]
        for given in (self.settings, *self.datasets.values()):
            for key in filter(registry.is_our_setting, given):
                if key not in known:
                    owners = [spec.name for spec in registry.specs() if key in spec.rules]
                    every = [key for spec in registry.specs() for key in spec.rules]
                    raise SettingsError(
                        f"{key} is a setting of none of the models compared ({', '.join(dict.fromkeys(models))}). "
                        + (
                            f"It is one of {', '.join(owners)}."
                            if owners
                            else f"The nearest is {_nearest(key, every)}."
                        )
                    )

    @staticmethod
    def _check_equal(configs):
        """All variants are selected and judged by the same figures."""
        first = next(iter(configs.values()))
        for (_, _, variant), config in configs.items():
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

    def _columns(self, config):
        """The metrics of the tables in RecBole's spelling; the first one is what plots show."""
        names = [name.lower() for name in config["metrics"]]
        known = [f"{name}@{k}" for name in names if issubclass(metrics_dict[name], TopkMetric) for k in config["topk"]]
        if not known:
            raise SettingsError(f"metrics = {config['metrics']!r}: none of them has a value for each user. Add NDCG.")
        if self.metrics is None:
            first = config["valid_metric"].lower()
            return sorted(known, key=lambda name: name != first)
        columns = [str(name).lower() for name in self.metrics]
        for name in columns:
            if name not in known:
                raise SettingsError(
                    f"metrics = {name!r}: is not computed; computed are {', '.join(known)}. "
                    "Set RecBole's metrics and topk under settings."
                )
        return columns


def from_arguments(args, settings):
    """The experiment that the command line asks for.

    Args:
        args: ``experiment``, ``models``, ``dataset``, ``seeds``, ``baseline``, ``config_files``, each a str or None.
        settings (dict): the ``--key=value`` arguments: they hold for every cell, above the experiment file's.
    """
    if args.experiment and args.models:
        raise SettingsError("--models and --experiment: the experiment file says what is compared. Give one of them.")
    found = read(args.experiment) if args.experiment else {}
    if args.models:
        found["variants"] = _models(args.models)
    if args.dataset:
        datasets = found.get("datasets", {})
        found["datasets"] = {name: datasets.get(name, {}) for name in args.dataset.split(",")}
    if args.baseline:
        found["baseline"] = args.baseline
    for part in ("datasets", "variants"):  # the command line has the last word
        found[part] = {
            name: {key: value for key, value in own.items() if key not in settings}
            for name, own in found.get(part, {}).items()
        }
    files = (args.config_files or "").split()
    for file in files:
        if not os.path.isfile(file):
            raise SettingsError(f"config_files: there is no file {file!r}.")
    return Experiment(
        datasets=found["datasets"],
        variants=found["variants"],
        seeds=read_seeds(args.seeds or found.get("seeds", 1)),
        baseline=found.get("baseline"),
        metrics=found.get("metrics"),
        settings={**found.get("settings", {}), **settings},
        files=files,
    )


def read(path):
    """An experiment file as a dict with ``datasets`` and ``variants`` as dicts of settings."""
    if not os.path.isfile(path):
        raise SettingsError(f"experiment = {path!r}: there is no such file.")
    found = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    if not isinstance(found, dict):
        raise SettingsError(f"experiment = {path!r}: must hold keys such as datasets and variants.")
    for key in found:
        if key not in KEYS:
            raise SettingsError(f"{path}: {key} is not a key of an experiment. The nearest is {_nearest(key, KEYS)}.")
    if "dataset" in found:
        if "datasets" in found:
            raise SettingsError(f"{path}: dataset and datasets are both given. Give one of them.")
        found["datasets"] = found.pop("dataset")
    found["datasets"] = _with_settings(path, "datasets", found.get("datasets"))
    found["variants"] = _with_settings(path, "variants", found.get("variants"))
    for name, variant in found["variants"].items():
        if not isinstance(variant.get("model"), str):
            raise SettingsError(f"{path}: variant {name!r} has no model. Write {{model: LLMD4Rec, ...}}.")
    found["settings"] = _as_dict(path, "settings", found.get("settings"))
    return found


def _with_settings(path, key, value):
    """A name, a list of names, or names with their settings, as the last of these."""
    if isinstance(value, (str, int)):
        value = [value]
    if isinstance(value, list):
        value = dict.fromkeys(value)
    return {str(name): _as_dict(path, f"{key}: {name}", own) for name, own in _as_dict(path, key, value).items()}


def _as_dict(path, key, value):
    if value is not None and not isinstance(value, dict):
        raise SettingsError(f"{path}: {key} = {value!r}: must be settings, written key: value.")
    return dict(value or {})


def _models(names):
    variants = {}
    for name in names.split(","):
        if not name or name in variants:
            raise SettingsError(
                f"models = {names!r}: must be different names with commas between them. To compare settings of one "
                "model, write variants in an experiment file."
            )
        variants[name] = {"model": name}
    return variants


def read_seeds(given):
    """Seeds: a number of them, counted from RecBole's seed 2020, or a list (``"2020,2021"``; ``"2020,"`` is one).

    Raises:
        SettingsError: if it is neither.
    """
    rule = f"must be a number of seeds (1 to {MOST_SEEDS}) or a list of seeds such as '2020,2021' (one seed: '2020,')."
    parts = given if isinstance(given, list) else [part for part in str(given).strip("[]").split(",") if part.strip()]
    try:
        seeds = [int(str(part)) for part in parts]
    except ValueError:
        raise SettingsError(f"seeds = {given!r}: {rule}") from None
    if not isinstance(given, list) and len(seeds) == 1 and "," not in str(given) and "[" not in str(given):
        if not 1 <= seeds[0] <= MOST_SEEDS:
            raise SettingsError(f"seeds = {given!r}: {rule}")
        return list(range(FIRST_SEED, FIRST_SEED + seeds[0]))
    if not seeds or len(set(seeds)) < len(seeds):
        raise SettingsError(f"seeds = {given!r}: {rule} No seed twice.")
    return seeds


def refuse_own(settings):
    """Refuse settings that a comparison sets itself."""
    for key, why in OWN.items():
        if key in settings:
            raise SettingsError(f"{key} = {settings[key]!r}: is not set by hand in a comparison: {why}.")


def _nearest(name, names):
    return difflib.get_close_matches(str(name), list(names), n=1, cutoff=0)[0]


def _file_name(text):
    return re.sub(r"[^\w.+-]+", "-", text)
