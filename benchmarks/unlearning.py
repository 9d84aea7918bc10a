"""Forgetting and learning users against refitting, in one run: EASE, ItemKNN, SLIMElastic, ADMMSLIM.

    python benchmarks/unlearning.py --dataset=ml-100k --models=EASE,ItemKNN --users=1,10,100 \
        --out=benchmarks/records/unlearning-ml-100k.json [--data_path=... of datasets that RecBole does not carry]

The opponents are RecBole's own class fitted on all interactions, and our own fit of the same model. Each row forgets
randomly chosen users together in one request and learns them again; requests are repeated with other users and the
median is reported, the first request on a model (which reads what later ones remember) apart. Hashes are off.
"""

import statistics
import time
from pathlib import Path

from record import read_arguments, write_record

REPEATS = 3
SEED = 2020


def requests(engine, n, rng):
    """Seconds of ``REPEATS`` requests that forget ``n`` users and learn them again: (forget, learn, methods)."""
    import numpy as np

    active = np.flatnonzero(np.diff(engine.X.indptr))
    forgotten, learned, methods = [], [], set()
    for _ in range(REPEATS):
        gone = engine.forget_users(np.sort(rng.choice(active, n, replace=False)))
        back = engine.learn(gone.users, gone.items, gone.values)
        forgotten.append(gone.seconds)
        learned.append(back.seconds)
        methods |= {gone.method.split(":")[0], back.method.split(":")[0]}
    return forgotten, learned, sorted(methods)


def measure(name, settings, sizes):
    """Rows of one model: its fits, and its requests by number of users."""
    import numpy as np
    from recbole.config import Config
    from recbole.data import create_dataset, data_preparation
    from recbole.utils import get_model, init_seed

    from recbole_llmd.unlearning import IMCorrect

    config = Config(config_dict={**settings, "model": name, "state": "ERROR", "show_progress": False})
    init_seed(config["seed"], config["reproducibility"])
    dataset = data_preparation(config, create_dataset(config))[0].dataset
    start = time.perf_counter()
    model = get_model(name)(config, dataset)
    recbole = time.perf_counter() - start
    engine = IMCorrect(model, dataset, hashes=False)
    start = time.perf_counter()
    engine.refit()
    ours = time.perf_counter() - start
    row = {
        "model": name,
        "users": dataset.user_num - 1,
        "items": dataset.item_num - 1,
        "interactions": int(engine.X.nnz),
        "RecBole's fit s": recbole,
        "our fit s": ours,
        "fit ratio": recbole / ours,
    }
    print({key: round(value, 3) if isinstance(value, float) else value for key, value in row.items()}, flush=True)
    rng = np.random.default_rng(SEED)
    first = requests(engine, 1, rng)[0][0]
    row.update({"first request s": first, "requests": []})
    for n in (size for size in sizes if size < dataset.user_num):
        forgotten, learned, methods = requests(engine, n, rng)
        seconds = statistics.median(forgotten)
        row["requests"].append(
            {
                "users": n,
                "forget s": seconds,
                "learn s": statistics.median(learned),
                "methods": methods,
                "times faster than RecBole's fit": recbole / seconds,
                "times faster than our fit": ours / seconds,
            }
        )
        print(row["requests"][-1], flush=True)
    return row


def main():
    settings = read_arguments()
    arguments = dict(settings)
    out = Path(settings.pop("out")).resolve()
    models, sizes = settings.pop("models").split(","), [int(n) for n in settings.pop("users").split(",")]
    import recbole_llmd  # noqa: F401  (before RecBole, which it mends)

    write_record(out, arguments, seed=SEED, rows=[measure(name, settings, sizes) for name in models])


if __name__ == "__main__":
    main()
