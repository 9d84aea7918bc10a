"""Run what `make demo` runs and write the record of it: results, seconds, epochs, peak memory.

    python benchmarks/demo.py --out=benchmarks/records/demo-ml-100k.json

`make demo` installs first; the seconds here are those of the run alone.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from record import read_arguments, write_record

DEMO = {"model": "LLMD4Rec", "dataset": "ml-100k", "distill_rounds": "1"}  # the options in the Makefile


def main() -> None:
    """Run, and write the record; any setting can be given above those of the demo."""
    arguments = read_arguments()
    out = Path(arguments["out"]).resolve()
    settings = {**DEMO, **{key: value for key, value in arguments.items() if key != "out"}}
    import recbole_llmd  # noqa: F401  (before RecBole, which it mends)

    # isort: split
    from recbole.config import Config
    from recbole.quick_start import run_recbole

    from recbole_llmd.comparison.cell import settings_of
    from recbole_llmd.process_memory import peak_bytes

    started = time.perf_counter()
    result = run_recbole(config_dict=dict(settings))
    seconds = time.perf_counter() - started
    write_record(
        out,
        arguments,
        config=settings_of(Config(config_dict=dict(settings))),
        seconds=round(seconds, 1),
        phases=phases(result["distillation"]),
        peak_gib=round(peak_bytes() / 2**30, 2),
        result={key: result[key] for key in ("best_valid_result", "test_result", "llm")},
    )


def phases(distillation: Mapping[str, Sequence[Any]]) -> dict[str, dict[str, float]]:
    """The epochs of each phase, and the median of their seconds, which are without validation."""
    seconds: dict[str, list[float]] = {phase["label"]: [] for phase in distillation["phases"]}
    for side in ("CRM", "LLM"):
        for epoch in distillation[side]:
            seconds[epoch["label"]].append(epoch["seconds"])
    return {
        label: {"epochs": len(times), "median s": round(statistics.median(times), 3)}
        for label, times in seconds.items()
        if times
    }


if __name__ == "__main__":
    main()
