"""One cell of a comparison in a process of its own: ``python -m recbole_llmd.comparison.cell``.

Reads its task as one line of JSON, runs the model as ``run_recbole`` does, and writes the cell's record. In its own
process it has a peak memory of its own, and its death ends nothing else. When the comparison dies, so does the cell.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any, NamedTuple

from recbole.config import Config
from recbole.data import create_dataset, data_preparation
from recbole.data.dataloader import AbstractDataLoader as Loader
from recbole.trainer import Trainer
from recbole.utils import get_model, get_trainer, init_logger, init_seed

import recbole_llmd  # noqa: F401
from recbole_llmd.comparison import cell_metrics, warmup_sharing
from recbole_llmd.comparison.cell_metrics import Array
from recbole_llmd.comparison.cell_store import Record, write_cell
from recbole_llmd.process_memory import peak_bytes
from recbole_llmd.report.provenance import provenance, without_paths
from recbole_llmd.result_collector import collect_results
from recbole_llmd.trainer.llmd4rec import NOT_IN_FINGERPRINT

Task = dict[str, Any]


class _Build(NamedTuple):
    """What ``run_recbole`` builds before it trains."""

    config: Config
    loaders: tuple[Loader, Loader, Loader]  # train, valid, test
    trainer: Trainer
    seconds: float  # of building the model: all of the training of some models, such as EASE


def execute(task: Task) -> None:
    """Run a task; write its ``record`` (JSON) and beside it the values per user (npz), each complete or not at all."""
    record, per_user = run(task)
    about = {key: task[key] for key in ("dataset", "variant", "model", "seed", "key", "mask_history")}
    write_cell(Path(task["record"]), {**about, "status": "finished", **provenance(task["command"]), **record}, per_user)


def run(task: Task) -> tuple[Record, dict[str, Array]]:
    """Train and measure; returns the record and the values per test user.

    Args:
        task: a :class:`~recbole_llmd.comparison.experiment.Cell` as a dict; ``started`` (seconds since 1970) and
            ``warmups`` (the folder of shared warm-ups).
    """
    config, loaders, trainer, build_seconds = _build(task)
    train, valid, test = loaders
    warmup_seconds = warmup_sharing.share(trainer, task["warmups"], task["mask_history"])
    curve: list[dict[str, float]] = []
    fit_started = time.perf_counter()

    def validated(epoch: int, score: float) -> None:
        curve.append({"epoch": epoch, "seconds": time.perf_counter() - fit_started, "valid": score})

    show = config["show_progress"]
    with collect_results() as extra:
        _, best_valid = trainer.fit(train, valid, saved=True, show_progress=show, callback_fn=validated)
        fit_seconds = time.perf_counter() - fit_started
        # What a user of the served model has done since its training, which sequential models read from the history.
        knows_valid = test.is_sequential or cell_metrics.take_up_validation(trainer.model, config, valid)
        test_result, per_user = _evaluate(trainer, test, load_best=test.is_sequential or not knows_valid)
    train_seconds = None  # where not all of it was in this process or is known
    if not config["resume"] and warmup_seconds is not None:
        train_seconds = build_seconds + fit_seconds + warmup_seconds
    record = {
        "data": cell_metrics.data_facts(*loaders),
        "best_valid_result": best_valid,
        "test_result": test_result,
        "knows_validation_item": knows_valid,
        **extra,
        "curve": [] if "distillation" in extra else curve,  # there, every figure names its side and phase
        "cost": {
            "build_seconds": build_seconds,
            "train_seconds": train_seconds,
            "shared_warmup_seconds": warmup_seconds,
            "serving_microseconds": cell_metrics.serving_microseconds(trainer, test),
            "peak_bytes": peak_bytes(),
        },
        "seconds": time.time() - task["started"],
        "config": settings_of(config),
    }
    return record, {**cell_metrics.test_users(*loaders), **per_user}


def _build(task: Task) -> _Build:
    config = Config(
        model=task["model"], dataset=task["dataset"], config_file_list=task["files"], config_dict=task["settings"]
    )
    init_seed(config["seed"], config["reproducibility"])
    init_logger(config)
    loaders = data_preparation(config, create_dataset(config))
    train, _, test = loaders
    if task["mask_history"] and test.is_sequential:
        cell_metrics.hide_history(*loaders)
    elif not task["mask_history"] and not test.is_sequential:
        cell_metrics.show_history(*loaders)
    init_seed(config["seed"] + config["local_rank"], config["reproducibility"])
    model_class, trainer_class = get_model(config["model"]), get_trainer(config["MODEL_TYPE"], config["model"])
    started = time.perf_counter()
    model = model_class(config, train.dataset).to(config["device"])
    seconds = time.perf_counter() - started
    return _Build(config, loaders, trainer_class(config, model), seconds)


def _evaluate(trainer: Trainer, test: Loader, load_best: bool) -> tuple[dict[str, float], dict[str, Array]]:
    """RecBole's test result, and each user's values; those of an LLM at the model's side with ``llm/`` in front."""
    llm = trainer.sides["LLM"] if hasattr(trainer, "sides") else None
    with cell_metrics.values_per_user(trainer.evaluator) as values:
        if llm is None:
            return trainer.evaluate(test, load_best_model=load_best), values
        with cell_metrics.values_per_user(llm.evaluator) as llm_values:
            result = trainer.evaluate(test, load_best_model=load_best)
    if llm.figures:  # it was trained
        values.update({f"llm/{name}": value for name, value in llm_values.items()})
    return result, values


def settings_of(config: Config) -> dict[str, Any]:
    """Every setting that changes the result, as JSON holds it, without the paths of this machine."""
    kept = {key: value for key, value in config.final_config_dict.items() if key not in NOT_IN_FINGERPRINT}
    settings: dict[str, Any] = without_paths(json.loads(json.dumps(kept, default=str)))
    return settings


def _end_with_parent() -> None:
    """The parent holds the other end of the standard input for as long as it lives."""

    def wait() -> None:
        sys.stdin.read()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


if __name__ == "__main__":
    given = json.loads(sys.stdin.readline())
    _end_with_parent()
    execute(given)
