"""Arguments of the benchmarks, and their records."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

REPO = Path(__file__).resolve().parent.parent


def read_arguments() -> dict[str, Any]:
    """The ``--key=value`` arguments as a dict; RecBole's Config is left none to read."""
    arguments: dict[str, Any] = dict(argument.removeprefix("--").split("=", 1) for argument in sys.argv[1:])
    sys.argv = sys.argv[:1]
    sys.path.insert(0, str(REPO))
    return arguments


def write_record(path: Path, settings: Mapping[str, Any], benchmark: str = "", **figures: Any) -> None:
    """Write a record as JSON, whole or not at all.

    Args:
        path: the file.
        settings: the ``--key=value`` arguments.
        benchmark: the first argument of a script that has several benchmarks.
        figures: the record's content beside its command, commit, machine and versions.
    """
    from recbole_llmd.report.provenance import provenance
    from recbole_llmd.report.table import write_json

    options = (f"--{key}={value}" for key, value in settings.items())
    command = " ".join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *benchmark.split(), *options])
    write_json(path, {**provenance(command), **figures})
