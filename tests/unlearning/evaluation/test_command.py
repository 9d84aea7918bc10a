"""Several models and scenarios evaluated into one report, with RecBole's runs made up."""

import json

import pytest
import recbole.quick_start

from recbole_llmd.unlearning.evaluation import command
from recbole_llmd.unlearning.evaluation.record import EvaluationRecord


@pytest.fixture
def runs(monkeypatch):
    """Every run that the command makes: RecBole's keyword arguments, with a made-up result."""
    made = []

    def run_recbole(model, dataset, **arguments):
        settings = arguments["config_dict"]
        made.append((model, dataset, arguments))
        fit = {"model": settings["mapping_model"], "dataset": "toy", "recbole_seconds": 2.0, "seconds": len(made)}
        fit |= {"B_frobenius": 0.0, "columns": 0}
        row = {"model": fit["model"], "dataset": "toy", "scenario": settings["unlearn_scenario"], "group": None}
        row |= {"ratio": None, "seed": 2, "checkpoint": 1.0, "phase": "forget", "arm": "retrained", "method": "refit"}
        row |= {"requests": 1, "interactions": 4, "users": 3, "test_ndcg@10": 0.5}
        record = EvaluationRecord(
            provenance={"command": "one run", "commit": "abc1234", "machine": {}, "versions": {}},
            config={"run": len(made)},
            datasets={"users": 9, "items": 5, "interactions": 20},
            fits=[fit],
            rows=[row],
            drift=[{"model": fit["model"], "dtype": "float32", "requests": 1, "B_frobenius": 1e-7}],
        )
        return {"unlearning": record.as_dict()}

    monkeypatch.setattr(recbole.quick_start, "run_recbole", run_recbole)
    return made


def test_every_model_and_scenario_is_run_and_all_go_into_one_report(runs, workdir, capsys):
    files = [str(workdir / "a.yaml")]
    (workdir / "a.yaml").write_text("k: 7\n")
    record = command.compare_unlearning(
        ["EASE", "ItemKNN"], ["users", "noise"], "toy", "report", config_files=files, settings={"k": 8, "reg_weight": 0}
    )
    assert [(model, dataset, arguments["config_file_list"]) for model, dataset, arguments in runs] == [
        ("IMCorrect", "toy", files)
    ] * 4
    assert [arguments["config_dict"] for _, _, arguments in runs] == [
        {
            "k": 8,
            "reg_weight": 0,
            "mapping_model": model,
            "unlearn_scenario": scenario,
            "unlearn_dir": f"report/{model}-{scenario}",
        }
        for model in ("EASE", "ItemKNN")
        for scenario in ("users", "noise")
    ]
    assert not any(arguments["saved"] for _, _, arguments in runs)
    rows = [(row["model"], row["scenario"]) for row in record.rows]
    assert rows == [(model, name) for model in ("EASE", "ItemKNN") for name in ("users", "noise")]
    assert [row["model"] for row in record.drift] == ["EASE", "EASE", "ItemKNN", "ItemKNN"]
    assert [(fit["model"], fit["seconds"]) for fit in record.fits] == [("EASE", 2), ("ItemKNN", 4)]  # the last of each
    assert record.config == {"run": 1} and record.provenance["commit"] == "abc1234"
    assert record.provenance["command"] == (
        "recbole-llmd unlearn --evaluate --models=EASE,ItemKNN --scenarios=users,noise --dataset=toy "
        "--config_files=a.yaml --k=8"
    )
    assert json.loads((workdir / "report" / "evaluation.json").read_text()) == record.as_dict()
    assert capsys.readouterr().out.splitlines()[-1] == "The report is in report/evaluation.html"


def test_names_with_commas_and_a_command_of_ones_own(runs):
    record = command.compare_unlearning(
        "EASE,ItemKNN", "users", "toy", "report", command="make unlearning --out=/some/report"
    )
    assert [row["model"] for row in record.rows] == ["EASE", "ItemKNN"]
    assert record.provenance["command"] == "make unlearning --out=report"
