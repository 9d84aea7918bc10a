"""Forgetting and learning users against refitting, in one run: EASE, ItemKNN, SLIMElastic, ADMMSLIM.

    python benchmarks/unlearning.py --dataset=ml-100k --models=EASE,ItemKNN --users=1,10,100 \
        --out=benchmarks/records/unlearning/ml-100k.json [--data_path=... of datasets that RecBole does not carry]
    python benchmarks/unlearning.py --curve=1000,2000,4000,8000,16000 --models=EASE,ItemKNN --users=1 --out=...

The opponents are RecBole's own class fitted on all interactions, and our own fit of the same model. Each row forgets
randomly chosen users together in one request and learns them again; requests are repeated with other users and the
median is reported. Everything is as by default: hashes are on, and count. Beside these warm requests stand the first
one of an engine read from a checkpoint, reading included (cold), and ``--sequence`` (200) requests of one user each,
the mean of which has the share of each in writing corrections into B (amortised). Scores of one user and of 256 are
timed while corrections wait beside B, and after they are written.

``--curve`` repeats this on synthetic data with so many items, and fits the exponents b of seconds = a·items^b: as many
users as items, log-normal activity with a mean of 20 interactions, items drawn by Zipf's law. ``--repeats`` (5) is the
number of requests of a size; any other argument is one of RecBole's Config.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench_setup import Figures, Settings
from record import read_arguments, write_record
from timing import timed

if TYPE_CHECKING:
    import numpy as np

    from recbole_llmd.unlearning import Receipt, Unlearner

SEED = 2020
HISTORY = 20  # interactions per user of the synthetic data


def requests(
    engine: Unlearner, count: int, repeats: int, rng: np.random.Generator
) -> tuple[list[Receipt], list[Receipt]]:
    """Receipts of requests that forget ``count`` users, and of those that learn them again."""
    import numpy as np

    active = np.flatnonzero(np.diff(engine.X.indptr))
    forgotten, learned = [], []
    for _ in range(repeats):
        gone = engine.forget_users(np.sort(rng.choice(active, count, replace=False)), ids="internal")
        forgotten.append(gone)
        assert gone.pairs is not None
        learned.append(engine.learn(*gone.pairs, ids="internal"))
    return forgotten, learned


def whole(receipt: Receipt) -> float:
    """Seconds of a request with its hashes."""
    return receipt.seconds + receipt.hash_seconds


def cold(engine: Unlearner, user: int, recbole: float) -> Figures:
    """The first request on a checkpoint, where imports are done: reading the data and the model included."""
    from recbole_llmd.unlearning import Unlearner

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.pth"
        engine.save(path)
        fresh, loading, _ = timed(lambda: Unlearner.from_checkpoint(path))
        _, request, _ = timed(lambda: fresh.forget_users([user], ids="internal"))
        _, saving, _ = timed(lambda: fresh.save(Path(folder) / "corrected.pth"))
    seconds = loading + request
    return {
        "reading s": loading,
        "request s": request,
        "writing s": saving,
        "times faster than RecBole's fit": recbole / seconds,
        "with writing": recbole / (seconds + saving),
    }


def one_by_one(engine: Unlearner, users: Sequence[int]) -> tuple[list[Receipt], float, Figures]:
    """Users forgotten in a request each: the receipts, the seconds of all, and what both benchmarks say of them."""
    receipts, seconds, _ = timed(lambda: [engine.forget_users([user], ids="internal") for user in users])
    of_each = [whole(receipt) for receipt in receipts]
    figures = {"requests": len(receipts), "median s": statistics.median(of_each), "longest s": max(of_each)}
    return receipts, seconds, figures


def amortised(engine: Unlearner, count: int, rng: np.random.Generator, recbole: float) -> Figures:
    """So many users forgotten one by one, corrections written into B where they are."""
    import numpy as np

    active = np.flatnonzero(np.diff(engine.X.indptr))
    users = rng.choice(active, min(count, len(active) // 2), replace=False)
    receipts, seconds, figures = one_by_one(engine, users)
    return {
        **figures,
        "s a request": seconds / len(receipts),
        "median: times faster than RecBole's fit": recbole / figures["median s"],
        "mean: times faster than RecBole's fit": recbole * len(receipts) / seconds,
    }


def scoring(engine: Unlearner, repeats: int) -> Figures:
    """Seconds of RecBole's full_sort_predict, median of ``repeats``, with corrections pending and written."""
    import torch

    def seconds(users: range) -> float:
        model, asked = engine.model, {engine.model.USER_ID: torch.tensor(list(users))}
        return statistics.median(timed(lambda: model.full_sort_predict(asked))[1] for _ in range(repeats))

    sizes = {f"{count} users": range(1, 1 + count) for count in (1, 256)}
    figures: Figures = {"rank pending": int(getattr(engine.snapshot().item_similarity, "rank", 0))}
    pending = {name: seconds(users) for name, users in sizes.items()}
    engine.fold()
    written = {name: seconds(users) for name, users in sizes.items()}
    for name in sizes:
        figures[name] = {
            "pending s": pending[name],
            "written s": written[name],
            "ratio": pending[name] / written[name],
        }
    return figures


def summary(count: int, forgotten: list[Receipt], learned: list[Receipt], recbole: float, ours: float) -> Figures:
    """A row of the record: medians, ratios, and what the cost model expected."""
    receipts = forgotten + learned
    row: Figures = {"users": count, "interactions": statistics.median(receipt.interactions for receipt in forgotten)}
    for name, of_kind in (("forget", forgotten), ("learn", learned)):
        seconds = statistics.median(whole(receipt) for receipt in of_kind)
        row.update({f"{name} s": seconds, f"{name}: times faster than RecBole's fit": recbole / seconds})
        row[f"{name}: times faster than our fit"] = ours / seconds
    row["methods"] = sorted({receipt.method.split(":")[0] for receipt in receipts})
    row["example"] = receipts[0].method
    row["memory MiB"] = max(receipt.peak_bytes or 0 for receipt in receipts) / 2**20
    return row


def show(row: Mapping[str, Any]) -> None:
    """Print a row, rounded."""
    print({key: round(value, 3) if isinstance(value, float) else value for key, value in row.items()}, flush=True)


def measure(name: str, settings: Settings, sizes: Sequence[int], repeats: int, sequence: int) -> Figures:
    """Rows of one model: its fits, and its requests by number of users."""
    import numpy as np
    from recbole.config import Config
    from recbole.data import create_dataset, data_preparation
    from recbole.utils import get_model, init_seed

    from recbole_llmd.unlearning import Unlearner

    config = Config(config_dict={**settings, "model": name, "state": "ERROR", "show_progress": False})
    init_seed(config["seed"], config["reproducibility"])
    dataset = data_preparation(config, create_dataset(config))[0].dataset
    model, recbole, recbole_processor = timed(lambda: get_model(name)(config, dataset))
    engine = Unlearner(model, dataset, keep_pairs=True)
    _, ours, our_processor = timed(engine.refit)
    row: Figures = {
        "model": name,
        "parameters": engine.params,
        "users": dataset.user_num - 1,
        "items": dataset.item_num - 1,
        "interactions": int(engine.X.nnz),
        "RecBole's fit s": recbole,
        "RecBole's fit, processor s": recbole_processor,
        "our fit s": ours,
        "our fit, processor s": our_processor,
        "fit ratio": recbole / ours,
    }
    show(row)
    rng = np.random.default_rng(SEED)
    row.update({"first request s": whole(requests(engine, 1, 1, rng)[0][0]), "requests": []})
    for count in (size for size in sizes if size < dataset.user_num):
        row["requests"].append(summary(count, *requests(engine, count, repeats, rng), recbole, ours))
        show(row["requests"][-1])
    row["cold"] = cold(engine, int(engine.X.nonzero()[0][0]), recbole)
    show(row["cold"])
    row["amortised"] = amortised(engine, sequence, rng, recbole)
    show(row["amortised"])
    if name == "EASE":
        row["scoring"] = scoring(engine, 20)
        show(row["scoring"])
    return row


def write_synthetic(folder: Path, items: int) -> Settings:
    """Write an atomic file of ``items`` users and items, each of which occurs; returns RecBole's settings."""
    import numpy as np

    rng, name = np.random.default_rng(SEED), f"synthetic-{items}"
    activity = rng.lognormal(0, 1, items)
    lengths = np.maximum(5, activity / activity.mean() * HISTORY).astype(int)
    popularity = 1 / np.arange(1, items + 1)
    users = np.append(np.repeat(np.arange(items), lengths), rng.permutation(items))
    drawn = np.append(rng.choice(items, lengths.sum(), p=popularity / popularity.sum()), np.arange(items))
    pairs = np.unique(np.column_stack([users, drawn]), axis=0)
    (folder / name).mkdir()
    np.savetxt(folder / name / f"{name}.inter", pairs, "%d", "\t", header="user_id:token\titem_id:token", comments="")
    return {"dataset": name, "data_path": str(folder), "load_col": {"inter": ["user_id", "item_id"]}}


def curve(
    names: Sequence[str],
    settings: Settings,
    counts: Sequence[int],
    sizes: Sequence[int],
    repeats: int,
    sequence: int,
) -> Figures:
    """Rows of each model by number of items, and the exponents over them."""
    import numpy as np

    rows = []
    for items in counts:
        with tempfile.TemporaryDirectory() as folder:
            data = write_synthetic(Path(folder), items)
            rows += [measure(name, {**settings, **data}, sizes, repeats, sequence) for name in names]
    exponents = {}
    for name in names:
        of_model = [row for row in rows if row["model"] == name]
        seconds = {
            "forget s": [row["requests"][0]["forget s"] for row in of_model],
            **{key: [row[key] for row in of_model] for key in ("our fit s", "RecBole's fit s")},
        }
        log_items = np.log([row["items"] for row in of_model])
        exponents[name] = {key: np.polyfit(log_items, np.log(values), 1)[0] for key, values in seconds.items()}
    show(exponents)
    return {"exponents": exponents, "rows": rows}


def main() -> None:
    """Measure every model, and write the record."""
    settings = read_arguments()
    arguments = dict(settings)
    out = Path(settings.pop("out")).resolve()
    models, sizes = settings.pop("models").split(","), [int(n) for n in settings.pop("users").split(",")]
    repeats, counts = int(settings.pop("repeats", 5)), settings.pop("curve", None)
    sequence = int(settings.pop("sequence", 200))
    import recbole_llmd  # noqa: F401  (before RecBole, which it mends)

    if counts:
        figures = curve(models, settings, [int(n) for n in counts.split(",")], sizes, repeats, sequence)
    else:
        figures = {"rows": [measure(name, settings, sizes, repeats, sequence) for name in models]}
    write_record(out, arguments, seed=SEED, threads=threads(), **figures)


def threads() -> int:
    """PyTorch's."""
    import torch

    return torch.get_num_threads()


if __name__ == "__main__":
    main()
