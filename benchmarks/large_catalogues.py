"""EASE for more items than users (DualEASE), and for many of both (SparseEASE): seconds and memory by number of items.

    python benchmarks/large_catalogues.py --items=10000,30000,100000 --users=10000 --sequence=80 \
        --out=benchmarks/records/unlearning/large-catalogues.json
    python benchmarks/large_catalogues.py --model=SparseEASE --items=100000 --users=100000 --sequence=0 --out=...

Synthetic data: so many users, log-normal activity with a mean of 20 interactions, items drawn by Zipf's law, each at
least once. Each number of items is measured in a process of its own: the fit, the first request on the model, and the
first one on its checkpoint (reading included), ``--sequence`` requests of one user each, in which corrections are
written into the dual where they are, users learned again, and scores of RecBole's full_sort_predict, of one user and of
256, while corrections wait and after they are written. Everything is as by default: hashes are on, and count. The peak
is the most memory that the process held, with Python, PyTorch and the data. ``--sequence=0`` measures the fit alone.

At ``--exact`` items (10,000), the scores of 256 users after all requests are compared with those of a dense fit in
float64 on what is left, by the module of EASE, which shares no array with the dual; of SparseEASE, what is left must be
its own fit to the bit. Any other argument is one of RecBole's Config.
"""

from __future__ import annotations

import json
import re
import statistics
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench_setup import Figures, Settings, build
from record import read_arguments, write_record
from timing import in_own_process, peak_gib, timed
from unlearning import one_by_one, whole

if TYPE_CHECKING:
    from recbole_llmd.unlearning import Unlearner

SEED = 2020
HISTORY = 20  # interactions per user on average
SCORED = 256  # users
REPEATS = 5


def synthetic_pairs(users: int, items: int) -> Any:
    """User and item of every interaction, [n, 2], numbered from 0; each item occurs."""
    import numpy as np

    rng = np.random.default_rng(SEED)
    activity = rng.lognormal(0, 1, users)
    lengths = np.maximum(5, activity / activity.mean() * HISTORY).astype(int)
    popularity = 1 / np.arange(1, items + 1)
    owners = np.append(np.repeat(np.arange(users), lengths), rng.integers(0, users, items))
    drawn = np.append(rng.choice(items, lengths.sum(), p=popularity / popularity.sum()), np.arange(items))
    return np.unique(np.column_stack([owners, drawn]), axis=0)


def write_synthetic(folder: Path, users: int, items: int) -> Settings:
    """Write an atomic file of so many users and items, each of which occurs; returns RecBole's settings."""
    import numpy as np

    name, pairs = f"synthetic-{users}-{items}", synthetic_pairs(users, items)
    (folder / name).mkdir()
    np.savetxt(folder / name / f"{name}.inter", pairs, "%d", "\t", header="user_id:token\titem_id:token", comments="")
    return {"dataset": name, "data_path": str(folder), "load_col": {"inter": ["user_id", "item_id"]}}


def cold(engine: Unlearner, user: int) -> Figures:
    """The first request on a checkpoint: reading the data and the model included."""
    from recbole_llmd.unlearning import Unlearner

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.pth"
        _, writing, _ = timed(lambda: engine.save(path))
        fresh, reading, _ = timed(lambda: Unlearner.from_checkpoint(path))
        receipt, request, _ = timed(lambda: fresh.forget_users([user], ids="internal"))
        size = path.stat().st_size / 2**30
    return {"writing s": writing, "reading s": reading, "request s": request, "file GiB": size, "how": receipt.method}


def sequence(engine: Unlearner, users: Any) -> Figures:
    """Users forgotten one by one, corrections written where they are."""
    (receipts, seconds, figures), _, processor = timed(lambda: one_by_one(engine, users))
    return {
        **figures,
        "mean s": seconds / len(receipts),
        "processor, mean s": processor / len(receipts),
        "methods": sorted({re.sub(r"\d+ of", "some of", receipt.method) for receipt in receipts}),
        "columns solved": [int(number) for receipt in receipts for number in re.findall(r"(\d+) of", receipt.method)],
        "backward error, largest": max(receipt.residual or 0.0 for receipt in receipts),
        "backward error allowed": receipts[0].tolerance,
    }


def scoring(engine: Unlearner) -> Figures:
    """Seconds of full_sort_predict, with corrections pending and written."""
    import torch

    model = engine.model

    def of(count: int) -> float:
        asked = {model.USER_ID: torch.arange(1, 1 + count)}
        return statistics.median(timed(lambda: model.full_sort_predict(asked))[1] for _ in range(REPEATS))

    def seconds() -> Figures:
        return {f"{count} users": of(count) for count in (1, SCORED)}

    figures: Figures = {"rank pending": getattr(engine.snapshot().item_similarity, "rank", 0), "pending s": seconds()}
    _, figures["writing s"], _ = timed(engine.fold)
    return {**figures, "written s": seconds()}


def distance(engine: Unlearner) -> Figures:
    """The scores of some users against a dense float64 fit on the interactions that are left."""
    import numpy as np

    from recbole_llmd.unlearning.mapping import ease

    if engine.name == "SparseEASE":
        left = engine.fingerprint()
        engine.refit()
        return {"a fit of what is left has the same bits": engine.fingerprint() == left}
    X = engine.X
    users = np.flatnonzero(np.diff(X.indptr))[:SCORED]
    B, seconds, _ = timed(lambda: ease.fit(X, engine.params, np.float64))
    exact, scores = X[users].astype(np.float64) @ B, X[users] @ engine.B
    return {
        "dense float64 fit s": seconds,
        "relative Frobenius distance of scores": float(np.linalg.norm(scores - exact) / np.linalg.norm(exact)),
        "largest difference": float(np.abs(scores - exact).max()),
        "largest score": float(np.abs(exact).max()),
    }


def point(name: str, items: int, users: int, requests: int, exact: bool, settings: Settings) -> Figures:
    """Everything at one number of items."""
    import numpy as np
    import scipy.sparse as sp

    peaks: Figures = {}

    def step(what: str, call: Callable[[], Any]) -> Any:
        result = call()
        peaks[what] = peak_gib()
        return result

    with tempfile.TemporaryDirectory() as folder:
        config, (train, _, _) = build({**write_synthetic(Path(folder), users, items), **settings}, name)
        from recbole.utils import get_model

        from recbole_llmd.unlearning import Unlearner

        peaks["data"] = peak_gib()
        dataset = train.dataset
        model, fit, processor = step("fit", lambda: timed(lambda: get_model(name)(config, dataset)))
        engine = Unlearner(model, dataset, keep_pairs=True)
        row: Figures = {
            "users": dataset.user_num - 1,
            "items": dataset.item_num - 1,
            "interactions": int(engine.X.nnz),
            "parameters": engine.params,
            "fit s": fit,
            "fit, processor s": processor,
            "GiB of a dense float32 B": 4 * dataset.item_num**2 / 2**30,
        }
        if sp.issparse(model.item_similarity):
            row["entries of B"] = int(model.item_similarity.nnz)
        if not requests:
            row["scoring"] = scoring(engine)
            return {**row, "peak GiB": {**peaks, "all": max(peaks.values())}}
        rng = np.random.default_rng(SEED)
        chosen = rng.permutation(np.arange(SCORED + 1, dataset.user_num))[: requests + REPEATS + 2]
        row["cold"] = step("cold", lambda: cold(engine, int(chosen[0])))
        first = step("first request", lambda: timed(lambda: engine.forget_users(chosen[1], ids="internal")))
        row["first request s"], row["first request, processor s"] = whole(first[0]), first[2]
        row["sequence"] = step("sequence", lambda: sequence(engine, chosen[2 : 2 + requests].tolist()))
        gone = [engine.forget_users([user], ids="internal") for user in chosen[2 + requests :].tolist()]
        learned = [engine.learn(*receipt.pairs, ids="internal") for receipt in gone if receipt.pairs]
        row["learn, median s"] = statistics.median(map(whole, learned))
        row["times faster than its fit, warm"] = fit / row["sequence"]["median s"]
        row["times faster than its fit, amortised"] = fit / row["sequence"]["mean s"]
        row["scoring"] = step("scoring", lambda: scoring(engine))
        if exact:
            row["exactness"] = distance(engine)  # its dense B is no part of the peak
        return {**row, "peak GiB": {**peaks, "all": max(peaks.values())}}


def main() -> None:
    """Measure every number of items, and write the record."""
    settings = read_arguments()
    arguments = dict(settings)
    out = Path(settings.pop("out")).resolve()
    counts, users = [int(n) for n in settings.pop("items").split(",")], int(settings.pop("users"))
    requests, exact = int(settings.pop("sequence", 80)), int(settings.pop("exact", 10000))
    name = settings.pop("model", "DualEASE")
    rows = []
    for items in counts:
        task = {"name": name, "items": items, "users": users, "requests": requests, "exact": items == exact}
        rows.append(in_own_process(__file__, {**task, "settings": settings}))
        print(json.dumps(rows[-1]), flush=True)
    import recbole_llmd  # noqa: F401  (before RecBole, which it mends)

    # isort: split
    import torch

    write_record(out, arguments, seed=SEED, threads=torch.get_num_threads(), rows=rows)


if __name__ == "__main__":
    if len(sys.argv) == 2 and sys.argv[1].startswith("{"):
        print(json.dumps(point(**json.loads(sys.argv.pop()))))
    else:
        main()
