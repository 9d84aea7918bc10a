"""Cost of LLMD4Rec by catalogue size, users and LLM layers, on synthetic data: the benchmark ``catalogue``.

Each point runs in a process of its own, which is what running this file does.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

from bench_setup import Figures, Settings, both_sides, build
from timing import in_own_process, peak_gib, timed

if TYPE_CHECKING:
    from recbole.config import Config
    from recbole.data.dataloader import AbstractDataLoader as Loader

    from recbole_llmd.distill.training_path import WindowPath
    from recbole_llmd.trainer.llmd4rec import LLMD4RecTrainer

SEED = 2020
HISTORY = 20  # interactions per user on average


def catalogue(settings: Settings) -> Figures:
    """A row for each combination of ``items``, ``users`` and ``layers`` (comma-separated lists)."""
    items, users, layers = (
        [int(n) for n in settings.pop(key, default).split(",")]
        for key, default in (("items", "1000,10000,100000"), ("users", "2000"), ("layers", "4"))
    )
    rows = []
    for n_items, n_users, n_layers in ((i, u, n) for i in items for u in users for n in layers):
        point = {"items": n_items, "users": n_users, "layers": n_layers}
        rows.append({**point, **in_own_process(__file__, {**point, "settings": settings})})
        print(rows[-1], flush=True)
    return {"rows": rows}


def write_synthetic(folder: Path, users: int, items: int) -> Settings:
    """Write atomic files in which all ``items`` have a text and occur; returns RecBole's settings.

    Log-normal activity, items drawn by Zipf's law; the items that nobody drew are handed out to random users.
    """
    import numpy as np

    rng, name = np.random.default_rng(SEED), "synthetic"
    activity = rng.lognormal(0, 1, users)
    lengths = np.maximum(5, activity / activity.mean() * HISTORY).astype(int)
    popularity = 1 / np.arange(1, items + 1)
    drawn = rng.choice(items, lengths.sum(), p=popularity / popularity.sum())
    user = np.repeat(np.arange(users), lengths)
    columns = np.column_stack([user, drawn, rng.permutation(len(user))])
    (folder / name).mkdir()
    head = "user_id:token\titem_id:token\ttimestamp:float"
    np.savetxt(folder / name / f"{name}.inter", columns, "%d", "\t", header=head, comments="")
    lines = ["item_id:token\ttitle:token_seq", *(f"{item}\titem {item}" for item in range(items))]
    (folder / name / f"{name}.item").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return {
        "dataset": name,
        "data_path": str(folder),
        "load_col": {"inter": ["user_id", "item_id", "timestamp"], "item": ["item_id", "title"]},
        "checkpoint_dir": str(folder / "saved"),
        "distill_evidence": False,  # the model's pass is measured
        "distill_synthetic": 0,
        "llm_cache_dir": str(folder / "texts"),
    }


@contextlib.contextmanager
def drawn_text_vectors() -> Iterator[None]:
    """Inside, texts have random vectors instead of encoded ones.

    The cost of training does not depend on the vectors' values, and encoding is done once for a catalogue.
    """
    import torch

    from recbole_llmd.llm.text_encoder import TextEncoder

    def drawn(encoder: TextEncoder, texts: Sequence[str], *_: object) -> torch.Tensor:
        return torch.randn(len(texts), encoder.model.config.hidden_size)

    with mock.patch.object(TextEncoder, "encode", drawn):
        yield


def few_windows(path: WindowPath, count: int, config: Config) -> WindowPath:
    """A training path over ``count`` of the windows at random."""
    import numpy as np

    from recbole_llmd.data.windows import WindowLoader
    from recbole_llmd.distill.training_path import WindowPath

    windows = path.windows.windows
    chosen = np.random.default_rng(SEED).permutation(len(windows.lengths))[:count]
    few = dataclasses.replace(windows, **{name: value[chosen] for name, value in vars(windows).items()})
    return WindowPath(path.scorer, WindowLoader(few, config, config["train_batch_size"]))


def point(items: int, users: int, layers: int, settings: Settings) -> Figures:
    """Seconds, bytes and peak memory of every step of a run, at one point of the curve."""
    with tempfile.TemporaryDirectory() as folder:
        data = write_synthetic(Path(folder), users, items)
        windows = settings.pop("windows", None)
        config, (train, valid, _) = build({**data, "llm_layers": layers, **settings}, "LLMD4Rec")
        figures: Figures = {
            "items with padding": train.dataset.item_num,
            "samples": len(train.dataset),
            "teacher's items kept": None,
            "peak GiB": {},
        }
        with drawn_text_vectors():
            trainer = both_sides(config, train)
        for side in trainer.sides.values():
            side.eval_collector.data_collect(train)
        peak_gib()
        for student in ("CRM", "LLM"):
            steps_of(trainer, student, train, valid, windows and int(windows), figures)
        figures["peak GiB"]["all"] = max(figures["peak GiB"].values())
        return figures


def steps_of(
    trainer: LLMD4RecTrainer, student: str, train: Loader, valid: Loader, windows: int | None, figures: Figures
) -> None:
    """Add to ``figures`` what one side's epochs, its teacher's pass and its validation cost."""
    from recbole_llmd.distill.training_path import WindowPath
    from recbole_llmd.trainer.llmd4rec import Phase

    def step(name: str, call: Callable[[], Any]) -> Any:
        result, seconds, _ = timed(call)
        figures[f"{name} s"] = seconds
        figures["peak GiB"][name] = peak_gib()
        return result

    side, phase = trainer.sides[student], Phase(1, student, 1, True)
    complete = side.path
    assert isinstance(complete, WindowPath)  # a causal CRM, and the LLM
    if windows:
        few = few_windows(complete, windows, side.config)
        side.prepare(few)
        figures["share of samples trained"] = few.windows.windows.n_samples / complete.windows.windows.n_samples
    step(f"{student} epoch", functools.partial(side._train_epoch, train, 0))
    objective = side.objective = step(f"{phase.teacher} teacher pass", functools.partial(trainer.objective_for, phase))
    step(f"{student} epoch, taught", functools.partial(side._train_epoch, train, 1))
    cache = objective.teacher
    figures["teacher's items kept"] = cache.logp.shape[1]
    figures["teacher cache bytes"] = cache.logp.nbytes + (0 if cache.items is None else cache.items.nbytes)
    step(f"{student} validation", functools.partial(side.evaluate, valid, load_best_model=False))
    side.prepare(complete)  # all of it, for the other side to be taught


if __name__ == "__main__":
    task = json.loads(sys.argv.pop())
    print(json.dumps(point(**task)))
