"""One entry a model: what RecBole sees of it, and that nothing else in the package knows a model by its name."""

import ast
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from recbole.config import Config
from recbole.quick_start import run_recbole
from recbole.utils import get_model, get_trainer

import recbole_llmd
from recbole_llmd import registry
from recbole_llmd.errors import ModelError, SettingsError
from recbole_llmd.registry import InnerModel, ModelSpec
from recbole_llmd.settings import choice, number
from recbole_llmd.unlearning import Unlearner

PACKAGE = Path(recbole_llmd.__file__).parent
DATA = {"dataset": "tiny", "data_path": str(PACKAGE.parent / "dataset"), "show_progress": False, "state": "ERROR"}


@pytest.fixture
def module(tmp_path, monkeypatch):
    """``module(name, source)`` writes a module that can be imported, away from the package."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def write(name, source):
        (tmp_path / f"{name}.py").write_text(source)
        return name

    yield write
    for name in [name for name in sys.modules if name.startswith("user_")]:
        del sys.modules[name]


# --- a new model flag -------------------------------------------------------------------------------------------------

SCALED = """
from recbole.model.general_recommender.ease import EASE
from recbole.trainer import TraditionalTrainer

class Scaled(EASE):
    '''EASE with scores times a factor.'''
    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        self.factor = config["scaled_factor"]

    def full_sort_predict(self, interaction):
        return super().full_sort_predict(interaction) * self.factor

class ScaledTrainer(TraditionalTrainer):
    pass
"""


@pytest.fixture
def flag(module, tmp_path):
    name = module("user_flag", SCALED)
    (tmp_path / "Scaled.yaml").write_text("scaled_factor: 1.0\nscaled_kind: plain\nreg_weight: 10.0\n")
    registry.register(
        ModelSpec(
            name="Scaled",
            kind="general_recommender",
            model=f"{name}:Scaled",
            trainer=f"{name}:ScaledTrainer",
            rules={"scaled_factor": number(-2, 2), "scaled_kind": choice("plain", "odd")},
            prefixes=("scaled_",),
            defaults_file=str(tmp_path / "Scaled.yaml"),
        )
    )
    yield "Scaled"
    registry.unregister("Scaled")


def test_a_new_model_flag_is_one_file_and_one_entry(flag):
    result = run_recbole(model=flag, config_dict=DATA)
    turned = run_recbole(model=flag, config_dict={**DATA, "scaled_factor": -1.0})
    assert result["test_result"]["ndcg@10"] > turned["test_result"]["ndcg@10"]  # the best come last


def test_its_settings_are_checked_like_ours(flag):
    def refusal(**settings):
        with pytest.raises(SettingsError) as caught:
            Config(model=flag, dataset="tiny", config_dict=settings)
        return str(caught.value)

    assert refusal(scaled_factor=2) == "scaled_factor = 2: must be a number of at least -2 and below 2."
    assert refusal(scaled_kid="odd").endswith("The nearest valid name is scaled_kind.")
    assert refusal(llm_layers=2).startswith("llm_layers is a setting of LLMRec, not of Scaled.")


def test_what_was_registered_can_be_taken_away(flag):
    registry.unregister(flag)
    with pytest.raises((ValueError, ImportError)):  # RecBole looks last among models whose libraries may be missing
        get_model("Scaled")
    assert not registry.is_our_setting("scaled_factor")
    registry.register(ModelSpec("Scaled", KIND, "user_flag:Scaled", "user_flag:ScaledTrainer", {}, ("s_",), ""))


KIND = "general_recommender"


@pytest.mark.parametrize("name", ["LLMRec", "EASE"])
def test_a_name_is_given_once(name):
    with pytest.raises(ModelError, match="registered already"):
        registry.register(ModelSpec(name, KIND, "a:b", "a:c", {}, ("x_",), "x.yaml"))
    with pytest.raises(ModelError, match="registered already"):
        registry.register_mapping(name, "a")


def test_an_unknown_kind_is_refused():
    with pytest.raises(ModelError, match="kind = 'knowledge': must be one of"):
        registry.register(ModelSpec("New", "knowledge", "a:b", "a:c", {}, ("x_",), "x.yaml"))


# --- a new mapping model ----------------------------------------------------------------------------------------------

COUNTS = """
import numpy as np
import torch
from recbole.model.abstract_recommender import GeneralRecommender
from recbole.utils import InputType, ModelType
from recbole_llmd.unlearning.mapping.correction import Correction, holds_interactions as trained_on

PARAMETERS, MATRIX, TOLERANCE, REQUIRED = ("counts_power",), "item_similarity", {"float32": 0.0, "float64": 0.0}, {}

def fit(X, params, dtype=np.float32):
    B = (X.T @ X).toarray().astype(dtype) ** params["counts_power"]
    np.fill_diagonal(B, 0)
    return B

def correct(model, change, tolerance):
    return Correction(fit(change.X, model.params, model.B.dtype), "counted anew")

def derived(X, B, params):
    return {}

class Counts(GeneralRecommender):
    '''How often two items have a user in common.'''
    input_type, type = InputType.POINTWISE, ModelType.TRADITIONAL

    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        self.dummy = torch.nn.Parameter(torch.zeros(1))
        self.interaction_matrix = dataset.inter_matrix(form="csr").astype(np.float32)
        self.item_similarity = fit(self.interaction_matrix, {"counts_power": config["counts_power"]})
        self.other_parameter_name = ["interaction_matrix", "item_similarity"]

    def calculate_loss(self, interaction):
        return torch.nn.Parameter(torch.zeros(1))

    def predict(self, interaction):
        users, items = interaction[self.USER_ID].cpu().numpy(), interaction[self.ITEM_ID].cpu().numpy()
        scores = self.interaction_matrix[users] @ self.item_similarity
        return torch.from_numpy(scores[np.arange(len(items)), items])

    def full_sort_predict(self, interaction):
        rows = self.interaction_matrix[interaction[self.USER_ID].cpu().numpy()]
        return torch.from_numpy((rows @ self.item_similarity).ravel())
"""


@pytest.fixture
def mapping(module, tmp_path):
    name = module("user_counts", COUNTS)
    (tmp_path / "Counts.yaml").write_text("counts_power: 1.0\n")
    registry.register_mapping("Counts", name, f"{name}:Counts", str(tmp_path / "Counts.yaml"))
    yield "Counts"
    registry.unregister_mapping("Counts")


def test_a_new_mapping_model_is_one_file_and_one_entry(mapping, build):
    """RecBole trains it, the engine corrects it, and so does the evaluation, all by its name."""
    assert run_recbole(model=mapping, config_dict=DATA)["test_result"]["ndcg@10"] > 0
    _, (train, *_), model = build(DATA, model=mapping)
    before = model.item_similarity.copy()
    Unlearner(model, train.dataset).forget_users([train.dataset.id2token("user_id", 1)])
    X = train.dataset.inter_matrix(form="csr").astype(np.float32).tolil()
    X[1] = 0
    expected = (X.T @ X).toarray()
    np.fill_diagonal(expected, 0)
    assert (model.item_similarity == expected).all() and (model.item_similarity != before).any()
    rows = run_recbole(
        model="IMCorrect", config_dict={**DATA, "mapping_model": mapping, "unlearn_seeds": 2, "unlearn_ratio": 0.1}
    )["unlearning"]["rows"]
    assert {row["model"] for row in rows} == {mapping}
    assert [row["B_frobenius"] for row in rows if row["method"] == "counted anew"] == [0.0]


def test_a_mapping_model_needs_no_parameters(module, build):
    plain = COUNTS.replace('("counts_power",)', "()").replace(' ** params["counts_power"]', "")
    plain = plain.replace('{"counts_power": config["counts_power"]}', "{}")
    name = module("user_plain_counts", plain)
    registry.register_mapping("Counts", name, f"{name}:Counts")
    try:
        _, (train, *_), model = build(DATA, model="Counts")
        receipt = Unlearner(model, train.dataset).forget_users([1], ids="internal")
    finally:
        registry.unregister_mapping("Counts")
    assert receipt.method == "counted anew" and not model.interaction_matrix[1].nnz


def test_its_name_is_known_everywhere(mapping):
    assert Config(model=mapping, dataset="tiny")["counts_power"] == 1.0
    with pytest.raises(
        SettingsError,
        match=r"must be one of 'EASE', 'ItemKNN', .*'DualEASE', 'SparseEASE', 'NCEPLRec', 'Counts'",
    ):
        Config(model="IMCorrect", dataset="tiny", config_dict={"mapping_model": "Count"})
    with pytest.raises(SettingsError, match="The nearest name is 'Counts'"):
        Config(model="Countz", dataset="tiny")


# --- what RecBole sees, and who knows a name --------------------------------------------------------------------------


@pytest.mark.parametrize("name", registry.names())
def test_recbole_finds_our_classes_and_they_are_one_object(name):
    spec = registry.spec(name)
    assert get_model(name) is registry.resolve(spec.model)
    assert get_trainer(None, name) is registry.resolve(spec.trainer)
    assert getattr(recbole_llmd, name, get_model(name)) is get_model(name)


def test_every_entry_finds_its_inner_model():
    inner = {name: registry.spec(name).inner for name in registry.names()}
    assert inner == {
        "LLMRec": None,
        "SequentialRules": None,
        "LLMD4Rec": InnerModel("crm_model", "recbole_llmd.model_lookup:crm_class", "crm"),
        "IMCorrect": InnerModel("mapping_model", "recbole_llmd.model_lookup:mapping_class"),
    }
    assert inner["LLMD4Rec"].class_of("GRU4Rec") is get_model("GRU4Rec")
    assert inner["IMCorrect"].class_of("ItemKNN") is get_model("ItemKNN")


def test_no_other_module_of_the_package_knows_a_models_name():
    """In strings of the code; docstrings may explain, and a class is called what it is called where it is defined."""
    names = re.compile(rf"\b({'|'.join((*registry.names(), *registry.mapping_names()))})\b")
    knowing = {
        f"{path.relative_to(PACKAGE)}:{node.lineno}: {node.value[:60]}"
        for path in sorted(PACKAGE.rglob("*.py"))
        if path.name != "registry.py"
        for node in code_strings(ast.parse(path.read_text(encoding="utf-8")))
        if names.search(node.value)
    }
    assert not knowing, "\n".join(sorted(knowing))


def code_strings(tree):
    """The string constants of a module that are no docstrings."""
    docstrings = {
        id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
            yield node
