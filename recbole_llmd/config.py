"""Our property files and checks inside RecBole's Config.

RecBole's ``Config`` is extended in place, so that plain RecBole calls (``run_recbole``, ``objective_function``,
``Config(...)``) see our models: their defaults are laid over RecBole's internal ones, below everything the user
gives, and the settings are checked before anything is loaded.
"""

import contextlib
import copy
import difflib
import functools
from pathlib import Path

import recbole
import recbole.data.dataset
import recbole.trainer
import yaml
from recbole.config.configurator import Config
from recbole.utils import ModelType, get_model

from recbole_llmd import settings
from recbole_llmd.errors import SettingsError

_HERE = Path(__file__).resolve().parent
# An installed wheel carries properties/ inside the package; a checkout (editable or not) has it beside the package.
PROPERTIES = next(path for path in (_HERE / "properties", _HERE.parent / "properties") if path.is_dir())


def load_properties(name):
    """The defaults of one of our models, as a dict."""
    with open(PROPERTIES / "model" / f"{name}.yaml", encoding="utf-8") as file:
        return yaml.safe_load(file)


def defaults(model, inner_defaults=None):
    """All defaults of ``model``, to be laid over RecBole's internal ones.

    For LLMD4Rec: the CRM's own property file, then LLMRec's settings (its training keys with ``llm_`` in front),
    then LLMD4Rec's. For IMCorrect: the mapping model's, then its own.
    """
    if model == "IMCorrect":
        return {**(inner_defaults or {}), **load_properties(model)}
    llm = load_properties("LLMRec")
    if model == "LLMRec":
        return llm
    merged = dict(inner_defaults or {})
    merged.update({key: value for key, value in llm.items() if key.startswith(settings.PREFIXES)})
    merged.update({f"llm_{key}": llm[key] for key in settings.TRAINING_KEYS})
    merged.update(load_properties("LLMD4Rec"))
    return merged


def crm_class(name):
    """The RecBole class of the CRM called ``name``.

    Raises:
        SettingsError: if there is no such model, or it is no sequential model, with the nearest names.
    """
    if not isinstance(name, str) or name in settings.RULES:
        raise SettingsError(f"crm_model = {name!r}: must be the name of one of RecBole's sequential models.")
    with _unknown_model("crm_model", name):
        cls = get_model(name)
    if getattr(cls, "type", None) != ModelType.SEQUENTIAL:
        raise SettingsError(
            f"crm_model = {name!r}: must be a sequential model (it reads item_id_list); "
            f"{name} is {cls.type.name.lower()}. Use SASRec, GRU4Rec or another sequential model."
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
    return cls


def mapping_class(name):
    """The RecBole class of the mapping model called ``name``.

    Raises:
        SettingsError: if it is none that can be corrected.
    """
    rule = settings.RULES["IMCorrect"]["mapping_model"]
    if not rule.test(name):
        raise SettingsError(f"mapping_model = {name!r}: must be {rule.text}.")
    return get_model(name)


# The models that hold one of RecBole's: the key that names it, and how its class is found.
INNER = {"LLMD4Rec": ("crm_model", crm_class), "IMCorrect": ("mapping_model", mapping_class)}


def nearest_model(name):
    """The name of the model most like ``name``, among RecBole's and ours."""
    folder = Path(recbole.__file__).parent / "properties" / "model"
    names = [*settings.RULES, *(path.stem for path in folder.glob("*.yaml"))]
    by_lower = {known.lower(): known for known in names}
    return by_lower[difflib.get_close_matches(str(name).lower(), by_lower, n=1, cutoff=0)[0]]


@contextlib.contextmanager
def _unknown_model(key, name):
    """RecBole's failure to find a model, which may be a missing lightgbm, as an error with the nearest name."""
    try:
        yield
    except (ValueError, AttributeError, ImportError):
        nearest = nearest_model(name)
        if nearest == name:
            raise
        raise SettingsError(
            f"{key} = {name!r}: there is no model of that name. The nearest name is {nearest!r}."
        ) from None


def side_config(config, **values):
    """A copy of ``config`` for one side of a run, with some values replaced.

    A Config in RecBole holds plain settings; only the dict of final values is copied.
    """
    copy = Config.__new__(Config)
    copy.__dict__.update(config.__dict__)
    copy.final_config_dict = {**config.final_config_dict, **values}
    return copy


def plain_config(config, name):
    """A copy of ``config`` for RecBole's model ``name`` run alone, without a trace of this package."""
    plain = copy.copy(config)
    plain.model, plain.model_class = name, get_model(name)
    for attribute, values in vars(config).items():
        if attribute.endswith("config_dict"):
            kept = {
                key: value
                for key, value in values.items()
                if not key.startswith(settings.PREFIXES) and key not in ("model", *settings.WITHOUT_PREFIX)
            }
            setattr(plain, attribute, kept)
    plain.final_config_dict["model"] = name
    return plain


def llm_side_config(config):
    """The Config of the LLM side of LLMD4Rec: RecBole's training keys take the values of their ``llm_`` namesakes."""
    values = {key: config[f"llm_{key}"] for key in settings.TRAINING_KEYS}
    return side_config(config, model="LLMRec", reg_weight=None, **values)


def install():
    """Extend RecBole's Config; called once by ``import recbole_llmd``."""
    load_internal = Config._load_internal_config_dict
    set_defaults = Config._set_default_parameters
    get_model_and_dataset = Config._get_model_and_dataset

    @functools.wraps(load_internal)
    def _load_internal_config_dict(self, model, model_class, dataset):
        load_internal(self, model, model_class, dataset)
        if model in settings.RULES:
            _lay_over(self, model, dataset)
        ordered = (self.external_config_dict.get("eval_args") or {}).get("order") == "TO"
        if model_class.type == ModelType.SEQUENTIAL or ordered:
            _load_time_field(self)

    def _lay_over(self, model, dataset):
        inner_defaults = None
        if model in INNER:
            key, model_of = INNER[model]
            name = self.external_config_dict.get(key, load_properties(model)[key])
            load_internal(self, name, model_of(name), dataset)  # as if that model were run alone
            inner_defaults = self.internal_config_dict
            self.internal_config_dict = {}
        self.internal_config_dict.update(defaults(model, inner_defaults))

    @functools.wraps(set_defaults)
    def _set_default_parameters(self):
        values, given = self.final_config_dict, self.external_config_dict
        ours = self.model in settings.RULES
        if ours:
            settings.check(self.model, values, given)
            if "nproc" in values:
                raise SettingsError(f"nproc = {values['nproc']}: {self.model} trains in one process. Leave nproc out.")
        own_class = self.model_class
        if self.model == "LLMD4Rec":  # loss_type, input type and negative samples follow the CRM
            self.model_class = crm_class(values["crm_model"])
        try:
            _no_negatives_for_cross_entropy(self)
            set_defaults(self)
        finally:
            self.model_class = own_class

    @functools.wraps(get_model_and_dataset)
    def _get_model_and_dataset(self, model, dataset):
        try:
            with _unknown_model("model", model or self.external_config_dict.get("model")):
                return get_model_and_dataset(self, model, dataset)
        except KeyError as error:
            raise SettingsError(f"{error.args[0]}. Give --model=... and --dataset=...") from None

    Config._get_model_and_dataset = _get_model_and_dataset
    Config._load_internal_config_dict = _load_internal_config_dict
    Config._set_default_parameters = _set_default_parameters


def _load_time_field(config):
    """Load the timestamps, which sequences and splits by time need, where RecBole's default leaves them out."""
    values = config.internal_config_dict
    columns = (values.get("load_col") or {}).get("inter")
    time = config.external_config_dict.get("TIME_FIELD", values["TIME_FIELD"])
    if isinstance(columns, list) and time not in columns:
        values["load_col"] = {**values["load_col"], "inter": [*columns, time]}


def _no_negatives_for_cross_entropy(config):
    """A sequential model with cross-entropy loss takes no negative samples: RecBole refuses its own default
    (uniform) there and asks every user to write ``train_neg_sample_args: ~``. Where the user said nothing,
    that is what is meant.
    """
    values = config.final_config_dict
    if values["MODEL_TYPE"] != ModelType.SEQUENTIAL or "train_neg_sample_args" in config.external_config_dict:
        return
    if hasattr(config.model_class, "input_type"):
        return
    if values.get("loss_type") == "CE":
        values["train_neg_sample_args"] = None
