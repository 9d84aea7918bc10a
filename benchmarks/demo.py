"""Run LLMD4Rec as `make demo` does and write a record: results, seconds, peak memory, versions, machine, commit.

python benchmarks/demo.py --dataset=ml-100k --out=benchmarks/records/demo-ml-100k.json [--key=value ...]
"""

import json
import os
import platform
import resource
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

REPO = Path(__file__).resolve().parent.parent
PACKAGES = ("recbole", "torch", "transformers", "peft", "numpy", "pandas", "scipy")


def machine():
    """What a record says about the machine: cores, memory, processor, operating system."""
    models = (
        [
            line.split(":")[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ]
        if os.path.exists("/proc/cpuinfo")
        else [platform.processor()]
    )
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {
        "cores": os.cpu_count(),
        "memory GiB": round(memory, 1),
        "processor": models[0],
        "system": platform.system(),
        "python": platform.python_version(),
    }


def commit():
    """The commit of the checkout, with a mark if it has changes."""
    text = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=REPO, capture_output=True, text=True)
    return text.stdout.strip() or "unknown"


def main():
    settings = dict(argument.removeprefix("--").split("=", 1) for argument in sys.argv[1:])
    out = Path(settings.pop("out")).resolve()
    sys.argv = sys.argv[:1]
    sys.path.insert(0, str(REPO))
    start = time.time()
    import recbole_llmd  # noqa: F401  (before RecBole, which it mends)

    # isort: split
    from recbole.quick_start import run_recbole
    from recbole_llmd.files import whole

    result = run_recbole(config_dict={"model": "LLMD4Rec", **settings})
    record = {
        "settings": settings,
        "seconds": round(time.time() - start, 1),
        "peak memory GiB": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2),
        "commit": commit(),
        "machine": machine(),
        "versions": {name: version(name) for name in PACKAGES},
        "result": result,
    }
    with whole(out) as temporary:
        temporary.write_text(json.dumps(record, indent=1, default=float) + "\n")


if __name__ == "__main__":
    main()
