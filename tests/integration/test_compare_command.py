"""``recbole-llmd compare`` on the tiny dataset; cells run in this process, but where processes are what is tested."""

import csv
import json
import os
import subprocess
import sys
import time
import traceback
from pathlib import Path

import psutil
import pytest
from recbole.quick_start import run_recbole

from recbole_llmd.cli import main
from recbole_llmd.comparison import cell, runner
from recbole_llmd.comparison.command import compare
from recbole_llmd.comparison.experiment import EVAL_ARGS
from recbole_llmd.trainer.side_trainer import SideTrainer
from tests.helpers.pages import data_of

REPO = Path(__file__).resolve().parents[2]


@pytest.fixture
def ran(monkeypatch):
    """The tasks that were run, in this process."""
    tasks = []

    def in_this_process(task, log):
        tasks.append(task)
        try:
            cell.execute(json.loads(json.dumps(task)))
        except Exception:
            log.write_text(traceback.format_exc())
            return 1
        return 0

    monkeypatch.setattr(runner, "in_own_process", in_this_process)
    return tasks


@pytest.fixture
def quick(fast_distill):
    return {**fast_distill, "epochs": 1, "llm_epochs": 1}


@pytest.fixture
def options(quick):
    """The settings as command-line arguments, for all variants that have them."""
    settings = {key: value for key, value in quick.items() if key not in ("model", "dataset")}
    return [f"--{key}={value}" for key, value in settings.items()]


def _write_experiment(variants, **more):
    Path("x.yaml").write_text(json.dumps({"dataset": "tiny", "variants": variants, "seeds": 2, **more}))
    return ["compare", "--experiment=x.yaml", "--out=out"]


def _records():
    return {
        (record["variant"], record["seed"]): record
        for record in (json.loads(path.read_text()) for path in Path("out/cells").glob("*.json"))
    }


VARIANTS = {
    "alone": {"model": "LLMD4Rec", "distill_direction": "none"},
    "mutual": {"model": "LLMD4Rec"},
    "Pop": {"model": "Pop"},
}


def _check_learning_curves(traces, record):
    """The phases stand in the order in which they ran, with every epoch's validation result and gaps between them."""
    points = {}
    for side, name in (("CRM", "mutual"), ("LLM", "mutual · LLM")):
        trace = next(trace for trace in traces if trace["name"] == name)
        entries = [entry for entry in record["distillation"][side] if "valid" in entry]
        assert [y for y in trace["y"] if y is not None] == [entry["valid"] for entry in entries]
        gaps = [i for i, x in enumerate(trace["x"]) if x is None]
        assert len(gaps) == len({entry["label"] for entry in entries}) - 1
        points |= dict(zip((x for x in trace["x"] if x is not None), (entry["label"] for entry in entries)))
    labels = [phase["label"] for phase in record["distillation"]["phases"]]
    assert list(dict.fromkeys(points[x] for x in sorted(points))) == labels


def test_a_whole_comparison(ran, options, capsys):
    tests = [["mutual", "Pop"], ["mutual · LLM", "mutual"]]
    arguments = [*_write_experiment(VARIANTS, metrics=["NDCG@10"], tests=tests), *options]
    assert main(arguments) == 0
    records = _records()
    assert list(records) and len(ran) == len(records) == 6
    assert all(record["status"] == "finished" and record["commit"] for record in records.values())

    # Both took over the warm-up of "alone", and none of what comes after depends on that.
    alone, mutual = records["alone", 2020], records["mutual", 2020]
    assert alone["cost"]["shared_warmup_seconds"] == 0 < mutual["cost"]["shared_warmup_seconds"]
    assert mutual["cost"]["train_seconds"] > mutual["cost"]["shared_warmup_seconds"]
    assert records["Pop", 2020]["mask_history"] and mutual["mask_history"]
    epochs = {name: record["distillation"]["CRM"] for name, record in (("alone", alone), ("mutual", mutual))}
    warm = [[e["valid"] for e in entries if e["label"].startswith("warm-up")] for entries in epochs.values()]
    assert warm[0] == warm[1] and len(warm[0]) == 2
    taught = epochs["mutual"][-1]
    assert taught["weight quantiles"] == sorted(taught["weight quantiles"]) and len(taught["weight quantiles"]) == 5
    assert taught["weight quantiles"][0] < taught["weight mean"] < taught["weight quantiles"][-1]

    with open("out/comparison.csv") as file:
        flat = list(csv.DictReader(file))
    rows = {(row["variant"], row["figure"]): row for row in reversed(flat)}  # of several the first: to the baseline
    named = [row for row in flat if [row["variant"], row["reference"]] in tests]
    assert [row["figure"] for row in named] == ["ndcg@10"] * 2 and named[0]["mean"] == rows["mutual", "ndcg@10"]["mean"]
    assert all(float(row["relative_low"]) <= float(row["relative"]) <= float(row["relative_high"]) for row in named)
    for variant, key in (("mutual", "test_result"), ("mutual · LLM", "llm")):
        results = [records["mutual", seed][key] for seed in (2020, 2021)]
        results = [result.get("test_result", result)["ndcg@10"] for result in results]
        assert float(rows[variant, "ndcg@10"]["mean"]) == pytest.approx(sum(results) / 2, abs=2e-6)
    assert rows["mutual", "ndcg@10"]["reference"] == "alone" and rows["mutual · LLM", "ndcg@10"]["users"] == "78"
    assert rows["mutual · LLM", "ndcg@10"]["reference"] == "alone · LLM"
    difference = float(rows["Pop", "ndcg@10"]["mean"]) - float(rows["alone", "ndcg@10"]["mean"])
    assert float(rows["Pop", "ndcg@10"]["difference"]) == pytest.approx(difference, abs=0.01)  # one user more

    whole = json.loads(Path("out/comparison.json").read_text())
    assert sum(row["users"] for row in whole["by_history"] if row["variant"] == "mutual") == 78
    assert any("history were left out" in note for note in whole["notes"])
    assert str(Path.cwd()) not in json.dumps(whole) + json.dumps(mutual)
    assert [phase["label"] for phase in whole["phases"] if phase["variant"] == "mutual"] == [
        "warm-up, CRM phase",
        "round 1, CRM phase (LLM teaches)",
    ]
    taught = whole["phases"][-1]
    of_seeds = [records["mutual", seed]["llm"]["best_valid_score"] for seed in (2020, 2021)]
    assert taught["variant"] == "mutual · LLM" and taught["valid"]["mean"] == pytest.approx(sum(of_seeds) / 2)
    tables = Path("out/comparison.md").read_text()
    assert "| mutual · LLM | round 1, LLM phase (CRM teaches) | yes |" in tables and "95% interval" in tables
    page = Path("out/comparison.html").read_text()
    for text in (
        "Phases",
        "Rounds",
        "Learning curves",
        "against training cost",
        "by popularity of the target",
        "Sample weights",
    ):
        assert text in page
    _check_learning_curves(data_of(page)[0], mutual)
    assert not list(Path("out/checkpoints").iterdir()) and "· LLM" in capsys.readouterr().out

    ran.clear()
    Path("out/comparison.html").unlink()
    assert main(arguments) == 0 and not ran and Path("out/comparison.html").is_file()


def test_a_cell_has_the_result_of_the_same_run_by_itself(ran, options, quick):
    """Neither the shared warm-up nor the cell's own way to the trainer changes a result."""
    assert main([*_write_experiment({name: VARIANTS[name] for name in ("alone", "mutual")}, seeds=1), *options]) == 0
    expected = run_recbole(config_dict={**quick, "eval_args": EVAL_ARGS})
    record = _records()["mutual", 2020]
    assert record["cost"]["shared_warmup_seconds"] > 0 and not record["mask_history"]
    assert record["test_result"] == expected["test_result"] and record["llm"] == expected["llm"]
    assert record["best_valid_result"] == expected["best_valid_result"]


def test_an_interrupted_cell_goes_on_where_it_was(ran, options, monkeypatch):
    arguments = [*_write_experiment({"mutual": VARIANTS["mutual"]}, seeds=1), *options]
    assert main(arguments) == 0
    expected = _records()["mutual", 2020]
    os.rename("out", "whole")
    evaluate = SideTrainer.evaluate

    def interrupted(self, *args, **kwargs):
        if self.label.startswith("round 1, CRM"):  # its first validation: nothing of the round is saved yet
            raise RuntimeError("interrupted")
        return evaluate(self, *args, **kwargs)

    monkeypatch.setattr(SideTrainer, "evaluate", interrupted)
    assert main(arguments) == 1
    failed = _records()["mutual", 2020]
    assert failed["status"] == "failed" and failed["error"][-1] == "RuntimeError: interrupted"
    monkeypatch.setattr(SideTrainer, "evaluate", evaluate)
    assert main(arguments) == 0
    record = _records()["mutual", 2020]
    assert ran[-1]["settings"]["resume"] and record["cost"]["train_seconds"] is None
    assert record["test_result"] == expected["test_result"] and record["llm"] == expected["llm"]
    assert not list(Path("out/checkpoints").iterdir())


def test_from_a_program(ran, fast, capsys):
    """The same as a call: it returns what it writes, finds what is finished, and lets an interruption through."""
    settings = {key: fast[key] for key in ("data_path", "metrics", "valid_metric", "show_progress", "state")}
    record = compare(["Pop", "Random"], ["tiny"], [7, 9], baseline="Random", settings=settings, out="out")
    assert record == json.loads(Path("out/comparison.json").read_text())
    assert [cell["status"] for cell in record["cells"]] == ["finished"] * 4 and len(ran) == 4
    assert record["experiment"]["baseline"] == "Random" and record["rows"][0]["ndcg@10"]["n"] == 2
    assert record["command"].startswith("recbole-llmd compare --models=Pop,Random --dataset=tiny --seeds=7,9 --base")
    assert "NDCG@10" in capsys.readouterr().out
    again = compare("Pop,Random", "tiny", "7,9", baseline="Random", settings=settings, out=Path("out"), command="mine")
    assert len(ran) == 4 and again == {**record, "command": "mine"}


def test_an_interruption_is_let_through_and_the_command_line_says_how_to_go_on(monkeypatch, capsys):
    def interrupted(task, log):
        raise KeyboardInterrupt

    monkeypatch.setattr(runner, "in_own_process", interrupted)
    settings = {"data_path": str(REPO / "dataset")}
    with pytest.raises(KeyboardInterrupt):
        compare("Pop", "tiny", settings=settings)
    assert main(["compare", "--models=Pop", "--dataset=tiny", f"--data_path={REPO / 'dataset'}"]) == 130
    assert capsys.readouterr().out.endswith("Interrupted. The same command goes on from here.\n")


def test_where_every_cell_failed_there_is_a_record_without_figures(monkeypatch, capsys):
    def failing(task, log):
        log.write_text("ValueError: no\n")
        return 1

    monkeypatch.setattr(runner, "in_own_process", failing)
    record = compare("Pop", "tiny", settings={"data_path": str(REPO / "dataset")}, out="out")
    assert [cell["status"] for cell in record["cells"]] == ["failed"] and "rows" not in record
    assert "Every cell failed. Their logs: out/logs" in capsys.readouterr().out
    assert not list(Path("out").glob("comparison.*"))
    assert main(["compare", "--models=Pop", "--dataset=tiny", f"--data_path={REPO / 'dataset'}", "--out=out"]) == 1


def test_packed_cells_are_found_and_give_the_same_tables(ran, options):
    options = [option for option in options if option.startswith(("--data_path", "--metrics", "--valid_metric"))]
    arguments = [*_write_experiment({"Pop": VARIANTS["Pop"], "Random": {"model": "Random"}}), *options]
    assert main(arguments) == 0
    tables = [Path("out", name).read_bytes() for name in ("comparison.csv", "comparison.json")]
    subprocess.run([sys.executable, REPO / "benchmarks" / "pack_cells.py", "out"], check=True)
    assert not Path("out/cells").exists()
    ran.clear()
    assert main(arguments) == 0 and not ran
    assert [Path("out", name).read_bytes() for name in ("comparison.csv", "comparison.json")] == tables


def test_a_failing_cell_is_recorded_and_ends_nothing(options, capfd):
    """In processes of their own, as they always run."""
    variants = {"broken": {"model": "SASRec", "hidden_size": 16, "n_heads": 3}, "Pop": {"model": "Pop"}}
    options = [option for option in options if option.startswith("--data_path")]
    large = b"x" * 2**30  # a cell's memory is its own, not that of the process that started it
    assert main([*_write_experiment(variants, seeds=1), *options]) == 1
    records = _records()
    assert records["broken", 2020]["status"] == "failed" and records["broken", 2020]["exit_status"] == 1
    assert "not a multiple of the number of attention heads" in records["broken", 2020]["error"][-1]
    assert records["Pop", 2020]["status"] == "finished"
    assert 2**26 < records["Pop", 2020]["cost"]["peak_bytes"] < len(large)
    assert "Failed: tiny, broken, seed 2020" in capfd.readouterr().out


def test_a_killed_comparison_takes_its_cell_with_it_and_continues(ran, options, workdir):
    arguments = [*_write_experiment({"Pop": VARIANTS["Pop"], "mutual": {"model": "LLMD4Rec"}}, seeds=1), *options]
    process = subprocess.Popen(
        [sys.executable, "-m", "recbole_llmd", *arguments],
        env={**os.environ, "PYTHONPATH": str(REPO)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    while not list(Path("out/logs").glob("*mutual*")):
        assert process.poll() is None
        time.sleep(0.05)
    children = psutil.Process(process.pid).children()
    process.kill()
    process.wait()
    assert children and not psutil.wait_procs(children, timeout=60)[1]
    finished = _records()
    assert list(finished) == [("Pop", 2020)]
    assert main(arguments) == 0
    assert [task["variant"] for task in ran] == ["mutual"] and _records()["Pop", 2020] == finished["Pop", 2020]
