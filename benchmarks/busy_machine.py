"""An epoch of a CRM quiet and beside busy processes, by how long PyTorch's idle threads spin before they sleep.

    python benchmarks/busy_machine.py --dataset=ml-100k --out=benchmarks/records/cost/busy-machine-sasrec.json

Beside other processes a thread that spins takes a core from one that works. Each of the environments below is measured
in a process of its own: an epoch of the CRM over windows, first alone and then beside ``--busy=3`` processes that
multiply matrices on one core each; medians of ``--repeats=3`` epochs after a first one. ``--crm=SASRec`` (or GRU4Rec);
any other argument is one of RecBole's Config. Nothing else may run meanwhile.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from bench_setup import Figures, Settings, build, crm_side, facts
from record import read_arguments, write_record
from timing import in_own_process, medians, ratios

UNSET = {"GOMP_SPINCOUNT": None, "OMP_WAIT_POLICY": None}
ENVIRONMENTS: dict[str, dict[str, str]] = {  # read by OpenMP when PyTorch is loaded
    "default": {},
    "GOMP_SPINCOUNT=1000": {"GOMP_SPINCOUNT": "1000"},
    "GOMP_SPINCOUNT=10000": {"GOMP_SPINCOUNT": "10000"},
    "OMP_WAIT_POLICY=PASSIVE": {"OMP_WAIT_POLICY": "PASSIVE"},
}
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
BUSY_LOOP = """
import os
import numpy
matrix, parent = numpy.ones((200, 200)), os.getppid()
print("working", flush=True)
while os.getppid() == parent:  # ends with the process that started it
    matrix @ matrix
"""


def main() -> None:
    """Measure every environment, and write the record."""
    settings = read_arguments()
    arguments = dict(settings)
    out = Path(settings.pop("out")).resolve()
    task = {
        "crm": settings.pop("crm", "SASRec"),
        "busy": int(settings.pop("busy", 3)),
        "repeats": int(settings.pop("repeats", 3)),
        "settings": settings,
    }
    epochs: dict[str, Figures] = {}
    for name, environment in ENVIRONMENTS.items():
        epochs[name] = in_own_process(__file__, task, environment={**UNSET, **environment})
        print({name: epochs[name]}, flush=True)
    config, (train, _, _) = build(settings, task["crm"])
    quotients = {
        name: {
            "busy / quiet": ratios(epoch["busy"], epoch["quiet"]),
            "quiet / default's quiet": ratios(epoch["quiet"], epochs["default"]["quiet"]),
            "busy / default's busy": ratios(epoch["busy"], epochs["default"]["busy"]),
        }
        for name, epoch in epochs.items()
    }
    busy = {"busy processes": task["busy"]}
    write_record(out, arguments, **facts(config, train), **busy, epochs=epochs, ratios=quotients)


def measure(crm: str, busy: int, repeats: int, settings: Settings) -> Figures:
    """Medians of an epoch, alone and beside ``busy`` processes."""
    import torch  # before this package, which may set how long threads spin: what the environment says is measured

    config, (train, _, _) = build(settings, crm)
    side = crm_side(config, train)
    side._train_epoch(train, 0)  # the memory that later epochs find
    epochs = [functools.partial(side._train_epoch, train, number) for number in range(1, repeats + 1)]
    quiet = medians(epochs)
    with busy_processes(busy):
        return {"quiet": quiet, "busy": medians(epochs), "threads": torch.get_num_threads()}


@contextlib.contextmanager
def busy_processes(count: int) -> Iterator[None]:
    """So many processes inside the block that do nothing but multiply matrices, on one core each."""
    environment = {**os.environ, **ONE_THREAD}
    command = [sys.executable, "-c", BUSY_LOOP]
    processes = [subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) for _ in range(count)]
    try:
        for process in processes:
            assert process.stdout is not None  # a pipe, as asked for above
            process.stdout.readline()  # it works from here on
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


if __name__ == "__main__":
    if len(sys.argv) == 2 and sys.argv[1].startswith("{"):
        print(json.dumps(measure(**json.loads(sys.argv.pop()))))
    else:
        main()
