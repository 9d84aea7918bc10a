"""Arguments of the benchmarks, and their records."""

import sys
from pathlib import Path

REPO = Path(__file__).resolve().parent.parent


def read_arguments():
    """The ``--key=value`` arguments as a dict; RecBole's Config is left none to read."""
    arguments = dict(argument.removeprefix("--").split("=", 1) for argument in sys.argv[1:])
    sys.argv = sys.argv[:1]
    sys.path.insert(0, str(REPO))
    return arguments


def write_record(path, settings, part="", **figures):
    """Write a record as JSON, whole or not at all; ``part`` is the first argument of a benchmark that has parts."""
    from recbole_llmd.report.provenance import provenance
    from recbole_llmd.report.table import write_json

    command = " ".join(
        ["python", f"benchmarks/{Path(sys.argv[0]).name}", *part.split(), *(f"--{k}={v}" for k, v in settings.items())]
    )
    write_json(path, {**provenance(command), **figures})
