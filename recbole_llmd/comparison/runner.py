"""Runs the cells of a comparison, one process each; what is finished is not run again."""

import dataclasses
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

from recbole_llmd.report.provenance import provenance, without_paths
from recbole_llmd.report.table import write_json

PACKAGE_PARENT = Path(__file__).resolve().parents[2]
ERROR_LINES = 20
LOOKED_AT = 20_000  # bytes at the end of a log


def run_cells(cells, out, command):
    """Run every cell that has no finished record in ``out/cells``; a failed one is recorded and left behind.

    Args:
        cells (list of Cell): in the order in which they run.
        out (Path): the folder of the comparison.
        command (str): what the records give as their command.

    Returns:
        list of dict: the records, in the order of ``cells``.
    """
    records = {}
    for cell in cells:
        found = _read(_record_file(out, cell))
        if found and found["status"] == "finished":
            records[cell] = found
    left = [cell for cell in cells if cell not in records]
    if records:
        print(f"{len(records)} of {len(cells)} cells are finished already.")
    for number, cell in enumerate(left):
        print(
            f"[{len(cells) - len(left) + number + 1} of {len(cells)}] {cell.dataset}, {cell.variant}, seed {cell.seed}"
            f"{_time_left(left[number:], records)}. Log: {_log_file(out, cell)}",
            flush=True,
        )
        records[cell] = run_cell(cell, out, command)
        print("   " + _outcome(records[cell]), flush=True)
    return [records[cell] for cell in cells]


def run_cell(cell, out, command):
    """Run one cell; returns its record, also where it failed."""
    record, log = _record_file(out, cell), _log_file(out, cell)
    checkpoints = out / "checkpoints" / cell.name
    for folder in (record.parent, log.parent, checkpoints):
        folder.mkdir(parents=True, exist_ok=True)
    settings = {**cell.settings, "checkpoint_dir": str(checkpoints)}
    if any(checkpoints.glob("*.resume.pth")):  # this cell was interrupted
        settings["resume"] = True
    task = {**dataclasses.asdict(cell), "settings": settings, "command": command}
    task |= {"record": str(record), "warmups": str(out / "warmups"), "started": time.time()}
    status = in_own_process(task, log)
    if status == 0:
        shutil.rmtree(checkpoints)
        return _read(record)
    failed = {
        **{key: task[key] for key in ("dataset", "variant", "model", "seed", "key", "mask_history")},
        "status": "failed",
        **provenance(command),
        "exit_status": status,  # of a signal: minus its number
        "error": without_paths(_last_lines(log)),
        "seconds": time.time() - task["started"],
    }
    write_json(record, failed)
    return failed


def in_own_process(task, log):
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
        process.stdin.write(json.dumps(task) + "\n")
        process.stdin.flush()
        status = process.wait()
        process.stdin.close()
    return status


def values_per_user(out, cell):
    """What a finished cell kept of each test user, ``{name: array [n_users]}``."""
    import numpy as np

    with np.load(_record_file(out, cell).with_suffix(".npz")) as file:
        return dict(file)


def _record_file(out, cell):
    return out / "cells" / f"{cell.name}.json"


def _log_file(out, cell):
    return out / "logs" / f"{cell.name}.log"


def _read(path):
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def _last_lines(log):
    text = log.read_bytes()[-LOOKED_AT:].decode("utf-8", errors="replace")
    return [line.rstrip() for line in text.splitlines() if line.strip()][-ERROR_LINES:]


def _outcome(record):
    if record["status"] == "failed":
        reason = record["error"][-1] if record["error"] else f"exit status {record['exit_status']}"
        return f"failed: {reason}"
    figures = ", ".join(f"{name} {value:.4f}" for name, value in record["test_result"].items())
    return f"{duration(record['seconds'])}: {figures}"


def _time_left(left, records):
    """What the cells ``left`` will take, as finished cells of the same dataset and variant took."""
    known = {}
    for cell, record in records.items():
        if record["status"] == "finished":
            known.setdefault((cell.dataset, cell.variant), []).append(record["seconds"])
    seconds = [known.get((cell.dataset, cell.variant)) for cell in left]
    total = sum(statistics.fmean(found) for found in seconds if found)
    if not total:
        return ""
    return f"; {'at least' if None in seconds else 'about'} {duration(total)} left"


def duration(seconds):
    """Seconds as people say it: 45 s, 12 min, 3 h 20 min."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"
