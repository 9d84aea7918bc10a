"""What is compared: the command line, experiment files, and what is refused before anything runs."""

from pathlib import Path

import pytest

from recbole_llmd.comparison.command import command_line
from recbole_llmd.comparison.experiment import EVAL_ARGS, Experiment, make_experiment
from recbole_llmd.comparison.experiment_file import list_seeds
from recbole_llmd.errors import SettingsError

REPO = Path(__file__).resolve().parents[2]


def _experiment(settings=None, **given):
    return make_experiment(settings=settings, **given)


def _cells(experiment):
    return {(cell.dataset, cell.variant, cell.seed): cell for cell in experiment.cells()}


@pytest.fixture
def file(workdir):
    (workdir / "a.yaml").write_text(
        "datasets: {tiny: {MAX_ITEM_LIST_LENGTH: 8, epochs: 3}, ml-100k: {}}\n"
        "seeds: [7, 9]\nmetrics: [NDCG@10]\n"
        "settings: {distill_alpha_llm_to_crm: 2.0, llm_layers: 2, epochs: 2, metrics: [Recall, NDCG]}\n"
        "variants:\n"
        "  plain: {model: GRU4Rec}\n"
        "  mutual: {model: LLMD4Rec, epochs: 4}\n"
        "  llm: {model: LLMRec}\n"
    )
    return "a.yaml"


@pytest.mark.parametrize(
    "given, seeds",
    [
        (3, [2020, 2021, 2022]),
        ("2", [2020, 2021]),
        ("7,5", [7, 5]),
        ("2020,", [2020]),
        ([4], [4]),
        ((4, 6), [4, 6]),
        ("[1, 2]", [1, 2]),
    ],
)
def test_seeds(given, seeds):
    assert list_seeds(given) == seeds


@pytest.mark.parametrize("given", ["2020", "0", "x", "1,1", [], "1.5"])
def test_bad_seeds(given):
    with pytest.raises(SettingsError, match=r"seeds = .*number of seeds"):
        list_seeds(given)


def test_settings_of_file_dataset_variant_and_command_line(file):
    """The command line wins over the variant, the variant over the dataset, the dataset over the rest."""
    cells = _cells(_experiment({"data_path": str(REPO / "dataset"), "llm_layers": "1"}, experiment=file))
    assert list(cells)[:4] == [("tiny", "plain", 7), ("tiny", "mutual", 7), ("tiny", "llm", 7), ("tiny", "plain", 9)]
    assert len(cells) == 2 * 3 * 2
    plain, mutual, llm = (cells["tiny", name, 9].settings for name in ("plain", "mutual", "llm"))
    assert (plain["epochs"], mutual["epochs"], cells["ml-100k", "plain", 7].settings["epochs"]) == (3, 4, 2)
    assert plain["MAX_ITEM_LIST_LENGTH"] == 8 and "MAX_ITEM_LIST_LENGTH" not in cells["ml-100k", "llm", 7].settings
    assert "llm_layers" not in plain and llm["llm_layers"] == mutual["llm_layers"] == "1"
    assert "distill_alpha_llm_to_crm" not in llm and mutual["distill_alpha_llm_to_crm"] == 2.0
    assert all(
        cell.settings["eval_args"] == EVAL_ARGS and cell.settings["seed"] == cell.seed for cell in cells.values()
    )


def test_names_are_a_list_or_have_commas_between_them():
    as_text = _cells(_experiment(models="SASRec,BPR", datasets="ml-100k", seeds="2020,2022"))
    as_list = _cells(_experiment(models=["SASRec", "BPR"], datasets=["ml-100k"], seeds=[2020, 2022]))
    assert [cell.name for cell in as_text.values()] == [cell.name for cell in as_list.values()] and len(as_text) == 4


def test_keys_follow_what_changes_the_result(file):
    base = _cells(_experiment(experiment=file, datasets="ml-100k"))
    assert len({cell.key for cell in base.values()}) == 6
    elsewhere = _cells(
        _experiment({"show_progress": "True", "llm_cache_dir": "x"}, experiment=file, datasets="ml-100k")
    )
    assert [cell.key for cell in elsewhere.values()] == [cell.key for cell in base.values()]
    changed = _cells(_experiment({"crm_warmup_epochs": "3"}, experiment=file, datasets="ml-100k"))
    differ = {
        variant for (_, variant, _), cell in changed.items() if cell.key != base["ml-100k", variant, cell.seed].key
    }
    assert differ == {"mutual"}


def test_the_history_is_hidden_from_all_models_as_soon_as_one_is_not_sequential():
    sequential = _cells(_experiment(models="SASRec,GRU4Rec", datasets="ml-100k"))
    mixed = _cells(_experiment(models="SASRec,EASE", datasets="ml-100k"))
    assert not any(cell.mask_history for cell in sequential.values())
    assert all(cell.mask_history for cell in mixed.values())
    assert sequential["ml-100k", "SASRec", 2020].key != mixed["ml-100k", "SASRec", 2020].key


@pytest.mark.parametrize("models, usual", [("SASRec,GRU4Rec", False), ("SASRec,EASE", True)])
def test_whether_the_history_is_hidden_can_be_said(models, usual, workdir):
    given = {"models": models, "datasets": "ml-100k"}
    masks = {said: _experiment(**given, mask_history=said).cells() for said in (None, "True", False)}
    assert [{cell.mask_history for cell in cells} for cells in masks.values()] == [{usual}, {True}, {False}]
    keys = {said: [cell.key for cell in cells] for said, cells in masks.items()}
    assert keys[None] == keys["True" if usual else False] != keys[False if usual else "True"]
    (workdir / "m.yaml").write_text(
        f"dataset: ml-100k\nmask_history: {not usual}\nvariants: {{a: {{model: SASRec}}, b: {{model: EASE}}}}"
    )
    assert {cell.mask_history for cell in _experiment(experiment="m.yaml").cells()} == {not usual}
    assert {cell.mask_history for cell in _experiment(experiment="m.yaml", mask_history=usual).cells()} == {usual}


def test_pairs_to_test(file):
    with open(file, "a") as stream:
        stream.write("tests: [[mutual, llm], [mutual · LLM, llm]]\n")
    assert _experiment(experiment=file).tests == [["mutual", "llm"], ["mutual · LLM", "llm"]]


def test_columns_and_baseline():
    experiment = _experiment({"metrics": "['Recall', 'NDCG']", "topk": "[5, 10]", "valid_metric": "NDCG@10"},
                             models="BPR,EASE", datasets="ml-100k")  # fmt: skip
    experiment.cells()
    assert experiment.metrics == ["ndcg@10", "recall@5", "recall@10", "ndcg@5"] and experiment.baseline == "BPR"
    one_for_all_users = {"metrics": "['ItemCoverage']", "valid_metric": "ItemCoverage@10"}
    with pytest.raises(SettingsError, match="none of them has a value for each user"):
        _experiment(one_for_all_users, models="BPR", datasets="ml-100k").cells()


@pytest.mark.parametrize(
    "text, message",
    [
        ("dataset: tiny\nvariant: {}", "variant is not a key of an experiment. The nearest is variants"),
        ("dataset: tiny\ndatasets: [tiny]", "both given"),
        ("dataset: tiny\nvariants: {a: {}}", "variant 'a' has no model"),
        ("dataset: tiny\nvariants: {a: 3}", "variants: a = 3: must be settings"),
        ("dataset: tiny\nvariants: [BPR]", "variant 'BPR' has no model"),
        ("dataset: tiny\nvariants: {a: {model: BPR}}\nbaseline: b", "baseline = 'b': must be one of a"),
        ("dataset: tiny\nvariants: {a: {model: BPR, seed: 1}}", "seed = 1: is not set by hand"),
        ("dataset: tiny\nvariants: {a: {model: LLMRec}}\nsettings: {llm_layer: 1}", "nearest is llm_layers"),
        (
            "dataset: tiny\nvariants: {a: {model: BPR}}\nsettings: {llm_layers: 1}",
            "llm_layers is .* none .* It is one of LLMRec, LLMD4Rec",
        ),
        ("dataset: ml-100k\nvariants: {a: {model: BPRR}}", "nearest name is 'BPR'"),
        ("dataset: ml-100k\nvariants: {a: {model: LLMRec, crm_model: SASRec}}", "crm_model is a setting of LLMD4Rec"),
        ("dataset: ml-100k\nvariants: {a: {model: BPR}}\nmetrics: [NDCG@7]", "metrics = 'ndcg@7': is not computed"),
        ("dataset: ml-100k\nvariants: {a: {model: BPR}, b: {model: EASE, topk: [5]}}", "b: topk = .5., but .10."),
        ("- a", "must hold keys"),
        ("dataset: tiny\nvariants: {a: {model: BPR}}\nmask_history: some", "mask_history = 'some': must be True or"),
        ("dataset: tiny\nvariants: {a: {model: BPR}}\nsettings: {mask_history: True}", "beside seeds in an experiment"),
        ("dataset: tiny\nvariants: {a: {model: BPR}}\ntests: a", "tests = 'a': must be a list of pairs"),
        ("dataset: tiny\nvariants: {a: {model: BPR}}\ntests: [[a, a]]", "must be a list of pairs of different rows"),
        ("dataset: tiny\nvariants: {a: {model: BPR}, b: {model: EASE}}\ntests: [[a, c]]", "'c': there is no such row"),
        (
            "dataset: tiny\nvariants: {a: {model: BPR}, b: {model: EASE}}\ntests: [[a, b · LLM]]",
            "no such row, but a, b. The nearest is 'b'",
        ),
    ],
)
def test_bad_experiment_files_are_refused_before_anything_runs(text, message, workdir):
    (workdir / "bad.yaml").write_text(text)
    with pytest.raises(SettingsError, match=message):
        _experiment(experiment="bad.yaml").cells()


@pytest.mark.parametrize(
    "given, settings, message",
    [
        ({"models": "BPR"}, {}, "needs --models and --dataset"),
        ({"models": "BPR,BPR", "datasets": "tiny"}, {}, "different names"),
        ({"models": "BPR,IMCorrect", "datasets": "tiny"}, {}, "name the model that it corrects"),
        ({"models": "BPR", "datasets": "tiny", "experiment": "x"}, {}, "Give one of them"),
        ({"experiment": "no.yaml"}, {}, "there is no such file"),
        ({"models": "BPR", "datasets": "tiny", "config_files": ["no.yaml"]}, {}, "there is no file 'no.yaml'"),
        ({"models": "BPR", "datasets": "tiny"}, {"eval_args": "{}"}, "last interaction, for all models"),
    ],
)
def test_bad_command_lines(given, settings, message):
    with pytest.raises(SettingsError, match=message):
        _experiment(settings, **given)


@pytest.mark.parametrize(
    "path", sorted((REPO / "properties" / "experiment").glob("*.yaml")), ids=lambda path: path.stem
)
def test_the_experiment_files_of_the_package_are_valid(path):
    experiment = _experiment({"data_path": str(REPO / "dataset")}, experiment=str(path))
    assert isinstance(experiment, Experiment) and experiment.cells()


@pytest.mark.parametrize("seeds, written", [(5, "5"), ([2020], "2020,"), ((7, 9), "7,9"), ("2020,", "2020,")])
def test_the_command_line_of_a_call_asks_for_the_same(seeds, written):
    options = {"models": ["SASRec", "BPR"], "dataset": "a b", "seeds": seeds, "out": Path("x"), "baseline": None}
    line = command_line(options)
    assert line == f"recbole-llmd compare --models=SASRec,BPR '--dataset=a b' --seeds={written} --out=x"
    assert list_seeds(written) == list_seeds(seeds)
