"""Two processes that hold one EASE: ``python -m tests.helpers.sharded_processes FOLDER RANK``.

Each carries out the functions of ``SCENARIOS`` in their order and writes what it saw to ``FOLDER/<rank>.pkl``; they
themselves assert nothing, and what they start from (:func:`data`) is made here.
"""

import os
import pickle
import sys
from datetime import timedelta
from pathlib import Path

import numpy as np
import scipy.sparse as sp

from tests.helpers.mapping_cases import interactions

WEIGHT = 3.0
SEEN = [3, 9, 20, 1]  # users whose scores are asked for


def data(users=160, items=90):
    """X whose last user alone has the items 1 and 2, beside common ones; user 1 has but item 3."""
    X = interactions(4, users, items, density=0.15, highest=2)
    X[:, 1:4] = 0
    X[-1, [1, 2, 3]] = X[1, 3] = 1
    X[1, 4:] = 0
    return X


def two_groups():
    """X of two groups of items that the last user alone connects."""
    X = np.zeros((60, 60))
    X[1:30, 1:31], X[30:59, 31:] = interactions(0, 30, 31)[1:, 1:], interactions(1, 30, 30)[1:, 1:]
    X[59, [2, 5, 12, 40, 55]] = 1
    return X


def all_of(X, user):
    """The pairs of a user."""
    items = np.flatnonzero(X[user])
    return np.full(len(items), user), items


def requests():
    """(kind, users, items, values) after each other: users, a popular item, a single pair, many users."""
    X = data()
    leaver, popular = all_of(X, len(X) - 1), 10
    holders = np.flatnonzero(X[:-1, popular])
    many = [all_of(np.delete(X, popular, 1), user)[0] for user in range(20, 60)]
    items = [np.setdiff1d(np.flatnonzero(X[user]), popular) for user in range(20, 60)]
    return [
        ("forget", *leaver, None),
        ("forget", holders, np.full(len(holders), popular), None),
        ("learn", np.array([7, 7]), np.array([1, popular]), np.array([2, 1])),
        ("forget", np.array([7]), np.array([1]), None),
        ("forget", np.concatenate(many), np.concatenate(items), None),
        ("learn", *leaver, X[leaver]),
    ]


def after_each(X):
    """The interactions after each request of :func:`requests`."""
    for kind, users, items, values in requests():
        X = X.copy()
        X[users, items] = 0 if kind == "forget" else values
        yield X


def state(model, receipt):
    """What is seen of a model."""
    return {
        "columns": model.columns(),
        "own": model.own_items,
        "method": receipt.method,
        "rank": receipt.estimates.get("rank"),
        "residual": receipt.residual,
        "tolerance": receipt.tolerance,
        "notes": receipt.notes,
        "X": model.X.toarray(),
        "scores": model.scores(SEEN),
        "topk": model.topk(SEEN, 7),
    }


def sequence(model):
    """The model after its fit and after each request."""
    states = [state(model, model.fit())]
    for kind, users, items, values in requests():
        receipt = model.forget(users, items) if kind == "forget" else model.learn(users, items, values)
        states.append(state(model, receipt))
    return states


def refusal(call):
    """The kind and the message of the error that a call raises."""
    try:
        call()
    except Exception as error:
        return type(error).__name__, str(error)
    return None


# --- what the two processes do ----------------------------------------------------------------------------------------


def float64(folder, rank):
    return sequence(sharded(data(), "float64"))


def float32(folder, rank):
    return sequence(sharded(data(), "float32"))


def in_files(folder, rank):
    """The same as float64 in files, in a group."""
    import torch.distributed as dist

    model = sharded(data(), "float64", folder=folder / "files", group=dist.new_group([0, 1]))
    before = sorted(path.name for path in (folder / "files").iterdir())
    states = sequence(model)
    dist.barrier()
    return before, states, sorted(path.name for path in (folder / "files").iterdir())


def groups(folder, rank):
    states = []
    for dtype in ("float32", "float64"):
        model = sharded(two_groups(), dtype)
        model.fit()
        states.append(state(model, model.forget(*all_of(two_groups(), 59))))
    return states


def refused(folder, rank):
    """Bad requests of all and of one process, and a good one after them."""
    X = data()
    model = sharded(X, "float64")
    unfitted = refusal(lambda: model.forget(*all_of(X, 5)))
    model.fit()
    before = model.columns()
    seen = {
        "unfitted": unfitted,
        "unknown item": refusal(lambda: model.forget([5], [len(X[0])])),
        "padding": refusal(lambda: model.learn([0], [4])),
        "not there": refusal(lambda: model.forget([1], [10])),
        "one of them bad": refusal(lambda: model.forget([1], [3] if rank else [10])),
        "different": refusal(lambda: model.forget([1 + rank], [3 if not rank else int(all_of(X, 2)[1][0])])),
        "different users": refusal(lambda: model.scores([1 + rank])),
        "k": refusal(lambda: model.topk([1], 0)),
        "other X": refusal(lambda: sharded(X * (1 + rank), "float64")),
        "one has no folder": refusal(lambda: sharded(X, "float64", folder=__file__ if rank else folder / "unused")),
        "model there": refusal(lambda: sharded(X, "float64", folder=folder / "files")),
    }
    unchanged = np.array_equal(before, model.columns())
    return seen, unchanged, state(model, model.forget(*all_of(X, 5)))


def unsolvable(folder, rank):
    """A Gram matrix that is singular to rounding."""
    model = sharded(np.repeat(two_groups(), 2, axis=1) * 1000, "float32", weight=1e-6)
    return refusal(model.fit), refusal(lambda: model.scores([1]))


def wrong_update(folder, rank):
    """An update that is no solution, seen by its backward error."""
    import pytest

    from recbole_llmd.unlearning.mapping import ease

    model, woodbury = sharded(data(), "float64"), ease.woodbury
    model.fit()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ease, "woodbury", lambda *a: [part * by for part, by in zip(woodbury(*a), (1, 1.5, 1))])
        receipt = model.forget(*all_of(data(), 5))
    return state(model, receipt)


def from_one(folder, rank):
    """A model that one process saved, continued by two, and saved by them."""
    from recbole_llmd.unlearning.sharded.sharded_ease import ShardedEASE

    other = refusal(lambda: ShardedEASE.load(folder / "one", sp.csr_matrix(data() * 2)))
    model = ShardedEASE.load(folder / "one", sp.csr_matrix(data()), folder=folder / "two-files")
    loaded = model.columns()
    receipt = model.forget(*all_of(data(), 5))
    model.save(folder / "two")
    return other, loaded, state(model, receipt)


def left_alone(folder, rank):
    """The other process ends while this one fits: it must not wait for ever."""
    model = sharded(data(), "float64")
    model.fit()
    X = model.X.toarray()
    if rank == 1:
        return None
    error = refusal(lambda: model.forget(*all_of(data(), 5)))
    return error, np.array_equal(model.X.toarray(), X)


SCENARIOS = (float64, float32, in_files, groups, refused, unsolvable, wrong_update, from_one, left_alone)


def sharded(X, dtype, weight=WEIGHT, **settings):
    from recbole_llmd.unlearning.sharded.sharded_ease import ShardedEASE

    return ShardedEASE(sp.csr_matrix(X), weight, dtype=dtype, **settings)


def main(folder, rank):
    import torch.distributed as dist

    import recbole_llmd  # noqa: F401
    from recbole_llmd.unlearning.sharded import inverse

    inverse.PANEL, inverse.GRAM_ROWS, inverse.COLUMNS = 16, 7, 40  # several of each
    store = f"file://{folder / 'store'}"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=2, timeout=timedelta(seconds=120))
    seen = {scenario.__name__: scenario(folder, rank) for scenario in SCENARIOS}
    (folder / f"{rank}.pkl").write_bytes(pickle.dumps(seen))
    os._exit(0)  # without a word to the other


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
