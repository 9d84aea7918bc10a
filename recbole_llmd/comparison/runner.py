"""Runs the cells of a comparison, one process each; what is finished is not run again."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from recbole_llmd.comparison.cell_store import CellStore, Record
from recbole_llmd.comparison.experiment import Cell
from recbole_llmd.report.provenance import provenance, without_paths
from recbole_llmd.report.table import write_json

PACKAGE_PARENT = Path(__file__).resolve().parents[2]
ERROR_LINES = 20
LOOKED_AT = 20_000  # bytes at the end of a log


def run_cells(cells: Sequence[Cell], store: CellStore, command: str) -> list[Record]:
    """Run every cell that has no finished record in ``store``; a failed one is recorded and left behind.

    Args:
        cells: in the order in which they run.
        store: the cells of the comparison's folder.
        command: what the records give as their command.

    Returns:
        The records, in the order of ``cells``.
    """
    records = {}
    for cell in cells:
        record = store.record(cell.name)
        if record and record["status"] == "finished":
            records[cell] = record
    left = [cell for cell in cells if cell not in records]
    if records:
        print(f"{len(records)} of {len(cells)} cells are finished already.")
    for number, cell in enumerate(left):
        print(
            f"[{len(cells) - len(left) + number + 1} of {len(cells)}] {cell.dataset}, {cell.variant}, seed {cell.seed}"
            f"{time_left(left[number:], records)}. Log: {_log_file(store.folder, cell)}",
            flush=True,
        )
        records[cell] = run_cell(cell, store, command)
        print("   " + _outcome(records[cell]), flush=True)
    return [records[cell] for cell in cells]


def run_cell(cell: Cell, store: CellStore, command: str) -> Record:
    """Run one cell; returns its record, also where it failed."""
    record_file, log = store.record_file(cell.name), _log_file(store.folder, cell)
    checkpoints = store.folder / "checkpoints" / cell.name
    for folder in (record_file.parent, log.parent, checkpoints):
        folder.mkdir(parents=True, exist_ok=True)
    settings = {**cell.settings, "checkpoint_dir": str(checkpoints)}
    if any(checkpoints.glob("*.resume.pth")):  # this cell was interrupted
        settings["resume"] = True
    task = {**dataclasses.asdict(cell), "settings": settings, "command": command}
    task |= {"record": str(record_file), "warmups": str(store.folder / "warmups"), "started": time.time()}
    status = in_own_process(task, log)
    finished = store.record(cell.name) if status == 0 else None
    if finished is not None:
        shutil.rmtree(checkpoints)
        return finished
    failed = {
        **{key: task[key] for key in ("dataset", "variant", "model", "seed", "key", "mask_history")},
        "status": "failed",
        **provenance(command),
        "exit_status": status,  # of a signal: minus its number
        "error": without_paths(_last_lines(log)),
        "seconds": time.time() - task["started"],
    }
    write_json(record_file, failed)
    return failed


def in_own_process(task: Mapping[str, object], log: Path) -> int:
    """Run a cell's task in a process of its own, which writes to the file ``log``; returns its exit status."""
    paths = [str(PACKAGE_PARENT), *filter(None, [os.environ.get("PYTHONPATH")])]
    with open(log, "w", encoding="utf-8") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "recbole_llmd.comparison.cell"],
            stdin=subprocess.PIPE,  # stays open: where this process ends, the cell's sees it and ends too
            stdout=file,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        )
        assert process.stdin is not None  # a pipe, as asked for above
        process.stdin.write(json.dumps(task) + "\n")
        process.stdin.flush()
        status = process.wait()
        process.stdin.close()
    return status


def _log_file(folder: Path, cell: Cell) -> Path:
    return folder / "logs" / f"{cell.name}.log"


def _last_lines(log: Path) -> list[str]:
    text = log.read_bytes()[-LOOKED_AT:].decode("utf-8", errors="replace")
    return [line.rstrip() for line in text.splitlines() if line.strip()][-ERROR_LINES:]


def _outcome(record: Record) -> str:
    if record["status"] == "failed":
        return f"failed: {failure(record)}"
    figures = ", ".join(f"{name} {value:.4f}" for name, value in record["test_result"].items())
    return f"{duration(record['seconds'])}: {figures}"


def failure(record: Record) -> str:
    """Why a cell failed: the last line of its log, or the exit status where it wrote none."""
    return str(record["error"][-1]) if record["error"] else f"exit status {record['exit_status']}"


def time_left(left: Sequence[Cell], records: Mapping[Cell, Record]) -> str:
    """What the cells ``left`` will take, as finished cells of the same dataset and variant took; empty if unknown."""
    known: dict[tuple[str, str], list[float]] = {}
    for cell, record in records.items():
        if record["status"] == "finished":
            known.setdefault((cell.dataset, cell.variant), []).append(record["seconds"])
    seconds = [known.get((cell.dataset, cell.variant)) for cell in left]
    total = sum(statistics.fmean(taken) for taken in seconds if taken)
    if not total:
        return ""
    return f"; {'at least' if None in seconds else 'about'} {duration(total)} left"


def duration(seconds: float) -> str:
    """Seconds as people say it.

    >>> duration(45), duration(720), duration(12000)
    ('45 s', '12 min', '3 h 20 min')
    """
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"
