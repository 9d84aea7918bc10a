"""Comparing models: runs what is missing and writes the comparison."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from recbole_llmd.atomic_write import atomic_write
from recbole_llmd.comparison import page, summary, tables
from recbole_llmd.comparison.cell_store import CellStore, Record
from recbole_llmd.comparison.experiment import Cell, Experiment, make_experiment
from recbole_llmd.comparison.experiment_file import Seeds, list_names
from recbole_llmd.comparison.runner import run_cells
from recbole_llmd.comparison.summary import VariantResult
from recbole_llmd.report.provenance import provenance
from recbole_llmd.report.table import present, terminal_table, write_csv, write_json


def compare(
    models: str | Sequence[str] | None = None,
    datasets: str | Sequence[str] | None = None,
    seeds: Seeds | None = None,
    *,
    baseline: str | None = None,
    experiment: str | None = None,
    mask_history: bool | str | None = None,
    config_files: Sequence[str] = (),
    settings: Mapping[str, Any] | None = None,
    out: str | Path | None = None,
    command: str | None = None,
) -> dict[str, Any]:
    """Train models over several seeds, test their differences to a baseline, print and write the result.

    What is finished in ``out`` is not run again, so a call that was interrupted goes on where it was.

    Args:
        models: names, as a list or with commas between them, of models with their defaults.
        datasets: the same of datasets; with ``experiment``, which of its datasets.
        seeds: how many, from RecBole's 2020 on, or a list of them; one if None.
        baseline: the model, or variant, that the others are compared with; the first one if None.
        experiment: an experiment file, in place of ``models``.
        mask_history: whether the items of a user's history are left out of the ranking of every model; if None, as the
            experiment file says, else where not all models are sequential.
        config_files: RecBole's property files, below all other settings.
        settings: hold for every model that has them, above those of the experiment file.
        out: the folder of records and report; ``saved/compare/<datasets or experiment>`` if None.
        command: what the records give as their command; the command line for the same comparison if None.

    Returns:
        The content of ``comparison.json``; ``"cells"`` names each cell's record and its status, ``"finished"`` or
        ``"failed"``. If every cell failed there are no figures, and no comparison is written.

    Raises:
        SettingsError: if a name, key or value cannot be; before anything runs.
        DataError: if what is in ``out`` cannot be read.

    >>> compare(["SASRec", "BPR"], "ml-100k", seeds=0)  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    recbole_llmd.errors.SettingsError: seeds = 0: must be a number of seeds (1 to 100) or a list of seeds such as ...
    """
    named: dict[str, Any] = {"baseline": baseline, "experiment": experiment, "mask_history": mask_history}
    asked = make_experiment(models, datasets, seeds, **named, config_files=config_files, settings=settings)
    if command is None:
        options = {"models": models, "dataset": datasets, "seeds": seeds, **named}
        options |= {"config_files": " ".join(config_files), **(settings or {}), "out": out}
        command = command_line(options)
    name = Path(experiment).stem if experiment else "-".join(asked.datasets)
    store = CellStore(Path(out or Path("saved", "compare", name)))
    cells = asked.cells()
    _announce(asked, cells, store.folder)
    records = run_cells(cells, store, command)
    results = summary.variant_results(cells, records, store)
    if not results:
        print(f"Every cell failed. Their logs: {store.folder}/logs")
        return _record(asked, cells, records, command, {})
    figures = _figures(asked, cells, records, results)
    _show(asked, figures)
    return _write(store.folder, _record(asked, cells, records, command, figures), results)


def command_line(options: Mapping[str, Any]) -> str:
    """``recbole-llmd compare`` with the options that are set; lists with commas between their entries.

    >>> command_line({"models": ["SASRec", "BPR"], "dataset": "ml-100k", "seeds": 5, "baseline": None})
    'recbole-llmd compare --models=SASRec,BPR --dataset=ml-100k --seeds=5'
    """
    given = []
    for key, value in options.items():
        if value is None or value == "":
            continue
        if key in ("models", "dataset"):
            value = ",".join(list_names(value))
        elif key == "seeds" and not isinstance(value, (int, str)):
            value = ",".join(map(str, value)) + "," * (len(value) == 1)  # "2020," is one seed, "5" are five
        given.append(f"--{key}={value}")
    return shlex.join(["recbole-llmd", "compare", *given])


def _announce(experiment: Experiment, cells: Sequence[Cell], folder: Path) -> None:
    ranked = "all items but those of the user's history" if experiment.mask_history else "all items"
    print(
        f"{len(cells)} cells: {', '.join(experiment.datasets)}; {', '.join(experiment.variants)}; "
        f"seeds {', '.join(map(str, experiment.seeds))}. Leave-one-out by time; for every model {ranked} ranked. "
        f"Results: {folder}"
    )


def _figures(
    experiment: Experiment, cells: Sequence[Cell], records: Sequence[Record], results: Sequence[VariantResult]
) -> dict[str, Any]:
    metrics = experiment.metrics
    return {
        "rows": summary.result_rows(results, metrics),
        "differences": summary.differences(results, experiment.baseline, metrics, experiment.tests),
        "phases": summary.phase_rows(results),
        "by_history": summary.breakdown(results, metrics[0], "history"),
        "by_popularity": summary.breakdown(results, metrics[0], "popularity", summary.NEVER),
        "notes": summary.notes(cells, records, results, bool(experiment.mask_history)),
    }


def _record(
    experiment: Experiment, cells: Sequence[Cell], records: Sequence[Record], command: str, figures: Mapping[str, Any]
) -> Record:
    about = {
        "datasets": list(experiment.datasets),
        "variants": experiment.variants,
        "seeds": experiment.seeds,
        "baseline": experiment.baseline,
        "tests": experiment.tests,
        "metrics": experiment.metrics,
        "mask_history": experiment.mask_history,
    }
    statuses = [
        {"record": f"cells/{cell.name}.json", "status": record["status"]}
        for cell, record in zip(cells, records, strict=True)
    ]
    return {**provenance(command), "experiment": about, **figures, "cells": statuses}


def _write(folder: Path, record: Record, results: Sequence[VariantResult]) -> Record:
    """Write table, record and page; returns the record as it is read back."""
    write_csv(folder / "comparison.csv", tables.flat_rows(record))
    write_json(folder / "comparison.json", record)
    with atomic_write(folder / "comparison.md") as temporary:
        temporary.write_text(tables.markdown(record, record["experiment"]["metrics"]), encoding="utf-8")
    page.write(folder / "comparison.html", record, results)
    print(f"\n{folder}/comparison.html (.csv, .json, .md)")
    written: Record = json.loads((folder / "comparison.json").read_text(encoding="utf-8"))
    return written


def _show(experiment: Experiment, figures: Mapping[str, Any]) -> None:
    """Print the table of results, the differences in the first metric, and the notes."""
    metrics = experiment.metrics
    print(terminal_table(figures["rows"], present(figures["rows"], tables.row_columns(metrics))))
    if figures["differences"]:
        shown = [row for row in figures["differences"] if row["metric"] == metrics[0]]
        print("\n" + terminal_table(shown, tables.difference_columns()))
    print("".join(f"\nNote: {note}" for note in figures["notes"]))
