"""What every benchmark record says beside its figures: machine, versions, commit."""

import json
import os
import platform
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

REPO = Path(__file__).resolve().parent.parent
PACKAGES = ("recbole", "torch", "transformers", "peft", "numpy", "pandas", "scipy", "scikit-learn")


def read_arguments():
    """The ``--key=value`` arguments as a dict; RecBole's Config is left none to read."""
    arguments = dict(argument.removeprefix("--").split("=", 1) for argument in sys.argv[1:])
    sys.argv = sys.argv[:1]
    sys.path.insert(0, str(REPO))
    return arguments


def write_record(path, settings, **figures):
    """Write a record as JSON, whole or not at all."""
    from recbole_llmd.files import whole

    processor = platform.processor()
    if os.path.exists("/proc/cpuinfo"):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        processor = next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    shown = {key: value for key, value in settings.items() if key not in ("out", "data_path")}  # no paths of a machine
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=REPO, capture_output=True, text=True)
    record = {
        "command": " ".join([f"python benchmarks/{Path(sys.argv[0]).name}", *(f"--{k}={v}" for k, v in shown.items())]),
        "commit": commit.stdout.strip() or "unknown",
        "machine": {
            "cores": os.cpu_count(),
            "memory GiB": round(memory, 1),
            "processor": processor,
            "system": platform.system(),
            "python": platform.python_version(),
        },
        "versions": {name: version(name) for name in PACKAGES},
        **figures,
    }
    with whole(path) as temporary:
        temporary.write_text(json.dumps(record, indent=1, default=float) + "\n")
