"""What the benchmarks measure with: clocks, peak memory, and processes of their own to measure in."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from record import REPO

Result = TypeVar("Result")
Times = dict[str, float]  # "s": the clock's seconds; "processor s": those of all threads


def timed(call: Callable[[], Result]) -> tuple[Result, float, float]:
    """(result, seconds, processor seconds of all threads)."""
    started, processor = time.perf_counter(), time.process_time()
    result = call()
    return result, time.perf_counter() - started, time.process_time() - processor


def medians(calls: Iterable[Callable[[], object]]) -> Times:
    """Median seconds, and processor seconds, of the calls."""
    seconds, processor = zip(*(timed(call)[1:] for call in calls), strict=True)
    return {"s": statistics.median(seconds), "processor s": statistics.median(processor), "repetitions": len(seconds)}


def ratios(numerator: Mapping[str, float], denominator: Mapping[str, float]) -> Times:
    """The quotients of two figures' seconds and processor seconds."""
    return {key: numerator[key] / denominator[key] for key in ("s", "processor s")}


def peak_gib() -> float:
    """The most memory that this process held since the last call (Linux), or since it began, in GiB."""
    from recbole_llmd.process_memory import peak_bytes, reset_peak

    peak = peak_bytes() / 2**30
    reset_peak()
    return peak


def in_own_process(
    file: str, task: Mapping[str, Any], root: Path = REPO, environment: Mapping[str, str | None] | None = None
) -> Any:
    """The JSON that ``file``, run with ``task`` on the package in ``root``, prints last.

    Args:
        file: the script.
        task: what it is given, as one argument of JSON.
        root: the folder with the package.
        environment: variables to set, or, where None, to unset.
    """
    variables: dict[str, str | None] = {**os.environ, **(environment or {}), "PYTHONPATH": str(root)}
    kept = {key: value for key, value in variables.items() if value is not None}
    command = [sys.executable, file, json.dumps(task)]
    done = subprocess.run(command, env=kept, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])
