"""The evaluation of unlearning for several models and scenarios: ``recbole-llmd unlearn --evaluate``."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import recbole.quick_start

from recbole_llmd.config import existing_files
from recbole_llmd.model.imcorrect import IMCorrect
from recbole_llmd.report.provenance import without_paths
from recbole_llmd.unlearning.evaluation import report
from recbole_llmd.unlearning.evaluation.record import EvaluationRecord, Row


def compare_unlearning(
    models: str | Sequence[str],
    scenarios: str | Sequence[str],
    dataset: str | None,
    out: str | Path,
    *,
    config_files: Sequence[str] = (),
    settings: Mapping[str, Any] | None = None,
    command: str | None = None,
) -> EvaluationRecord:
    """Train each model, let it forget by each scenario, compare with retraining, and write one report.

    Args:
        models: names of mapping models, as a list or with commas between them.
        scenarios: the same of values of ``unlearn_scenario``.
        dataset: the name of RecBole's dataset, or None where ``config_files`` or ``settings`` name it.
        out: the folder of the report, with a folder for each model and scenario.
        config_files: RecBole's property files.
        settings: any settings of RecBole or of the package, which count more than the files.
        command: what the record gives as its command; the command line for the same evaluation if None.

    Returns:
        The record, as ``evaluation.json`` holds it (see ``docs/unlearning.md``).

    Raises:
        LLMDError: if something given is wrong.
    """
    models, scenarios, settings = _names(models), _names(scenarios), dict(settings or {})
    config_files = existing_files(config_files)
    records: list[EvaluationRecord] = []
    fits: list[Row] = []
    for model in models:
        for scenario in scenarios:
            records.append(_run(model, scenario, dataset, out, config_files, settings))
        fits += records[-1].fits  # the model's last: each scenario fits it again
    if command is None:
        command = _command(models, scenarios, dataset, config_files, settings)
    record = replace(
        records[0],
        provenance={**records[0].provenance, "command": without_paths(command)},
        fits=fits,
        rows=[row for record in records for row in record.rows],
        drift=[row for record in records for row in record.drift],
    )
    report.write(out, record)
    print(f"The report is in {os.path.join(out, 'evaluation.html')}")
    return record


def _names(given: str | Sequence[str]) -> list[str]:
    return given.split(",") if isinstance(given, str) else list(given)


def _run(
    model: str,
    scenario: str,
    dataset: str | None,
    out: str | Path,
    config_files: Sequence[str],
    settings: Mapping[str, Any],
) -> EvaluationRecord:
    """Run the model flag once; its own report goes into the folder of this model and scenario."""
    chosen = {
        "mapping_model": model,
        "unlearn_scenario": scenario,
        "unlearn_dir": os.path.join(out, f"{model}-{scenario}"),
    }
    result = recbole.quick_start.run_recbole(
        IMCorrect.__name__,
        dataset,
        config_file_list=list(config_files),
        config_dict={**settings, **chosen},
        saved=False,
    )
    return EvaluationRecord.from_dict(result["unlearning"])


def _command(
    models: Sequence[str],
    scenarios: Sequence[str],
    dataset: str | None,
    config_files: Sequence[str],
    settings: Mapping[str, Any],
) -> str:
    options = {
        "models": ",".join(models),
        "scenarios": ",".join(scenarios),
        "dataset": dataset,
        "config_files": " ".join(config_files),
    }
    given = [f"--{key}={value}" for key, value in {**options, **settings}.items() if value]
    return shlex.join(["recbole-llmd", "unlearn", "--evaluate", *given])
