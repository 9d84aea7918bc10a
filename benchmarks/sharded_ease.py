"""EASE divided among processes: seconds, memory of each process, and distance to one process.

    python benchmarks/sharded_ease.py --items=4000 --users=4000 --processes=1,2 \
        --out=benchmarks/records/unlearning/sharded-ease.json

Synthetic data as of ``large_catalogues.py``. For each number of processes ShardedEASE is fitted, forgets ``--requests``
(20) users one by one and lists ten items for 256 users, with its rows in memory and in files; every process has one
thread. The opponent is the module of EASE in one process, also with one thread, and the same requests. Memory is the
most that a process held beyond what it held with the packages and X. The distances are those of B after all requests to
a float64 fit of that module on what is left.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from bench_setup import Figures
from large_catalogues import SEED, synthetic_pairs
from record import REPO, read_arguments, write_record
from timing import in_own_process, peak_gib, timed

WEIGHT = 250.0
LISTED = 256  # users
ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


def interactions(users: int, items: int) -> Any:
    """X, with RecBole's padding."""
    import numpy as np
    import scipy.sparse as sp

    pairs = synthetic_pairs(users, items) + 1
    return sp.csr_matrix((np.ones(len(pairs), np.float32), pairs.T), shape=(users + 1, items + 1))


def leavers(X: Any, requests: int) -> list[int]:
    """Users who have something, drawn at random."""
    import numpy as np

    drawn: list[int] = np.random.default_rng(SEED).choice(np.arange(1, X.shape[0]), requests, replace=False).tolist()
    return drawn


def opponent(task: Figures) -> Figures:
    """The module of EASE in one process; B after all requests is kept in the folder."""
    import numpy as np

    from recbole_llmd.unlearning.mapping import ease
    from recbole_llmd.unlearning.mapping.correction import FittedMapping
    from recbole_llmd.unlearning.request import Request, pairs_of

    X, params, cache = interactions(task["users"], task["items"]), {"reg_weight": WEIGHT}, {}
    before, seconds = held(), []
    B, fit, _ = timed(lambda: ease.fit(X, params))
    peak, cache = peak_gib() - before, {"exact_for": X.shape}
    for user in leavers(X, task["requests"]):
        change = Request("forget", *pairs_of(X, np.array([user]))).distinct().change(X)
        fitted = FittedMapping(X, B, params, cache)
        result, spent, _ = timed(lambda: ease.correct(fitted, change, ease.TOLERANCE["float32"]))  # noqa: B023
        X, B, cache = change.X, result.B, result.cache
        seconds.append(spent)
    folded = B if isinstance(B, np.ndarray) else B.folded()
    np.save(Path(task["folder"]) / "exact.npy", ease.fit(X, params, np.float64))
    return {
        "fit s": fit,
        "request, median s": statistics.median(seconds),
        "fit, peak GiB": peak,
        "distance": distance(folded, Path(task["folder"]), 0, len(folded)),
    }


def held() -> float:
    """What this process holds now, in GiB."""
    peak_gib()
    return peak_gib()


def distance(columns: Any, folder: Path, first: int, stop: int) -> Figures:
    """How far these columns of B are from the exact ones."""
    import numpy as np

    exact = np.load(folder / "exact.npy", mmap_mode="r")[:, first:stop]
    return {
        "relative Frobenius": float(np.linalg.norm(columns - exact) / np.linalg.norm(exact)),
        "largest": float(np.abs(columns - exact).max()),
    }


def part(task: Figures) -> Figures:
    """One process of several."""
    import numpy as np
    import torch.distributed as dist

    import recbole_llmd  # noqa: F401  (before RecBole, which it mends)
    from recbole_llmd.unlearning.request import pairs_of
    from recbole_llmd.unlearning.sharded.sharded_ease import ShardedEASE

    rank, size, folder = task["rank"], task["size"], Path(task["folder"])
    store = f"file://{folder / task['store']}"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=size)
    X = interactions(task["users"], task["items"])
    before = held()
    model = ShardedEASE(X, WEIGHT, folder=folder / f"{task['store']}-rows" if task["files"] else None)
    fit, fitting, _ = timed(model.fit)
    peaks = {"fit": peak_gib() - before}
    answered = [
        timed(lambda: model.forget(*pairs_of(model.X, np.array([user]))))[:2]  # noqa: B023
        for user in leavers(X, task["requests"])
    ]
    peaks["requests"] = peak_gib() - before
    receipts, seconds = zip(*answered, strict=True)
    users = [user for user in range(1, X.shape[0]) if model.X[user].nnz][:LISTED]
    _, listing, _ = timed(lambda: model.topk(users, 10))
    dist.destroy_process_group()
    own = model.own_items
    return {
        "columns": len(own),
        "GiB of the columns": 4 * len(own) * X.shape[1] / 2**30,
        "peak GiB": peaks,
        "fit s": fitting,
        "request, median s": statistics.median(seconds),
        f"lists of {LISTED} users s": listing,
        "methods": sorted({receipt.method for receipt in receipts}),
        "backward error, largest": max([fit.residual, *(receipt.residual for receipt in receipts)]),
        "backward error allowed": fit.tolerance,
        "distance": distance(model.columns(), folder, own.start, own.stop),
    }


def together(size: int, task: Figures) -> list[Figures]:
    """What the processes of one model print, in the order of their ranks."""
    environment = {**os.environ, **ONE_THREAD, "PYTHONPATH": str(REPO)}
    tasks = [json.dumps({**task, "rank": rank, "size": size}) for rank in range(size)]
    started = [
        subprocess.Popen([sys.executable, __file__, text], env=environment, stdout=subprocess.PIPE, text=True)
        for text in tasks
    ]
    printed = [process.communicate()[0] for process in started]
    if any(process.returncode for process in started):
        raise SystemExit("a process failed: its error is above.")
    return [json.loads(text.splitlines()[-1]) for text in printed]


def main() -> None:
    """Measure, and write the record."""
    settings = read_arguments()
    arguments = dict(settings)
    out = Path(settings.pop("out")).resolve()
    sizes = [int(size) for size in settings.pop("processes", "1,2").split(",")]
    sizes_of = {"items": 4000, "users": 4000, "requests": 20}
    task: Figures = {key: int(settings.pop(key, default)) for key, default in sizes_of.items()}
    if settings:
        raise SystemExit(f"unknown: {', '.join(settings)}")
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        task["folder"] = folder
        one = in_own_process(__file__, {**task, "rank": None}, environment=ONE_THREAD)
        for size in sizes:
            for files in (False, True):
                parts = together(size, {**task, "files": files, "store": f"{size}-{files}"})
                row: Figures = {"processes": size, "rows in files": files, "each": parts}
                for figure in ("fit s", "request, median s"):
                    row[figure] = max(part[figure] for part in parts)
                    row[f"{figure}, times one process's"] = row[figure] / one[figure]
                rows.append(row)
                print(json.dumps(row), flush=True)
    import recbole_llmd  # noqa: F401  (before RecBole, which it mends)

    facts = {key: value for key, value in task.items() if key != "folder"}
    write_record(out, arguments, seed=SEED, threads=1, reg_weight=WEIGHT, data=facts, one_process=one, rows=rows)


if __name__ == "__main__":
    if len(sys.argv) == 2 and sys.argv[1].startswith("{"):
        given = json.loads(sys.argv.pop())
        print(json.dumps(opponent(given) if given["rank"] is None else part(given)))
    else:
        main()
