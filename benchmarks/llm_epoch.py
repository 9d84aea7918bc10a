"""Cost of an epoch of LLMRec, and of reaching a quality: the benchmarks ``llm_epoch`` and ``llm_quality``.

Each arm runs in a process of its own, which is what running this file does.

Arms: ``now``; ``float32``, the same in that precision; ``first``, the first version of this package, in a worktree of
its commit; ``rows``, one forward pass per prefix: LLMRec's own loss over RecBole's batches, of which a sample is timed.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench_setup import Figures, Settings, build, facts, recbole_trainer
from record import REPO
from timing import in_own_process, medians, ratios

if TYPE_CHECKING:
    import torch
    from recbole.config import Config
    from recbole.data.dataloader import AbstractDataLoader as Loader
    from recbole.data.interaction import Interaction

    from recbole_llmd.trainer.llmrec import LLMRecTrainer

FIRST = "baea5a4"  # the first version of LLMRec's training
ARMS = "now,float32,first,rows"


def llm_epoch(settings: Settings) -> Figures:
    """An epoch of LLMRec, of its opponents, and the ratios to it."""
    repeats, batches = int(settings.pop("repeats", 1)), int(settings.pop("batches", 2))
    arms = settings.pop("arms", ARMS).split(",")
    epochs: dict[str, Figures] = {}
    for arm in arms:
        given = {**settings, "llm_dtype": "float32"} if arm == "float32" else settings
        epochs[arm] = measured(arm, {"settings": given, "repeats": repeats, "batches": batches if arm == "rows" else 0})
        print({arm: epochs[arm]}, flush=True)
    config, (train, _, _) = build(settings, "LLMRec")
    quotients = {f"{arm} / now": ratios(epochs[arm], epochs["now"]) for arm in arms if "now" in epochs}
    return {**facts(config, train), "arms": epochs, "first version": FIRST, "ratios": quotients}


def llm_quality(settings: Settings) -> Figures:
    """Seconds until LLMRec, alone, is as good on the validation data as the first version ever was."""
    repeats, runs = int(settings.pop("repeats", 3)), []
    config, (train, _, _) = build(settings, "LLMRec")
    for seed in range(config["seed"], config["seed"] + repeats):
        trained = {name: measured(name, {"settings": {**settings, "seed": seed}}) for name in ("now", "first")}
        goal = max(epoch["valid"] for epoch in trained["first"]["epochs"])
        seconds = {name: until(trained[name]["epochs"], goal) for name in trained}
        first, now = seconds["first"], seconds["now"]
        faster = first / now if first and now else None
        runs.append({"seed": seed, **trained, "goal": goal, "s until the goal": seconds, "times faster": faster})
        print(runs[-1], flush=True)
    return {**facts(config, train), "first version": FIRST, "runs": runs}


def measured(arm: str, task: Mapping[str, Any]) -> Figures:
    """What this file measures for ``task`` in a process of its own, with the package of the arm."""
    with worktree(FIRST) if arm == "first" else contextlib.nullcontext(REPO) as root:
        return in_own_process(__file__, task, root)


def until(epochs: Sequence[Mapping[str, float]], goal: float) -> float | None:
    """The seconds after which a validation reached the goal, or None."""
    return next((epoch["s"] for epoch in epochs if epoch["valid"] >= goal), None)


@contextlib.contextmanager
def worktree(commit: str) -> Iterator[Path]:
    """A folder with the package as it was at ``commit``, as long as the block lasts."""
    with tempfile.TemporaryDirectory() as folder:
        root, git = Path(folder) / "worktree", ["git", "-C", str(REPO), "worktree"]
        subprocess.run([*git, "add", "-q", "--detach", str(root), commit], check=True)
        try:
            yield root
        finally:
            subprocess.run([*git, "remove", "--force", str(root)], check=True)


def epoch_seconds(settings: Settings, repeats: int, batches: int) -> Figures:
    """Seconds of one epoch of the package that is imported.

    With one forward pass per prefix if so many ``batches`` of them are to be timed.
    """
    config, (train, _, _) = build(settings, "LLMRec")
    from recbole.trainer import Trainer

    trainer = recbole_trainer(config, train)
    steps = prepare(trainer, config, train)
    about = {"precision": str(trainer.model.input_dtype), "layers": config["llm_layers"]}
    if not batches:
        trainer._train_epoch(train, 0)  # the memory that later epochs find
        figures = medians([functools.partial(trainer._train_epoch, train, epoch) for epoch in range(1, repeats + 1)])
        return {**about, "steps": steps, **figures, "shares": shares(trainer, train)}
    timed_batches = list(islice(train, batches))  # of a shuffled epoch: a random sample
    figures = medians([functools.partial(Trainer._train_epoch, trainer, timed_batches, 0)])
    factor = len(train) / len(timed_batches)
    figures.update({key: factor * figures[key] for key in ("s", "processor s")})
    return {**about, "steps": len(train), **figures, "extrapolated from steps": len(timed_batches)}


def prepare(trainer: LLMRecTrainer, config: Config, train: Loader) -> int:
    """Let the trainer make its windows, as its ``fit`` does; returns how many steps an epoch has."""
    try:
        from recbole_llmd.distill.training_path import llm_path
    except ImportError:  # the first version
        return _prepare_first_version(trainer, train)
    path = llm_path(trainer.model, config, train, config["llm_window_overlap"])
    trainer.prepare(path)
    return len(path.loader(config["seed"]))


def _prepare_first_version(trainer: Any, train: Loader) -> int:
    from recbole_llmd.distill.scorers import LLMScorer

    windows: Any = importlib.import_module("recbole_llmd.data.windows")
    windows.add_row_numbers(train.dataset)
    trainer.prepare(LLMScorer(trainer.model), train)
    return len(trainer.window_loader)


def fit(settings: Settings) -> Figures:
    """A run of the package that is imported, by its own defaults, to its early stop: the clock at each validation."""
    config, (train, valid, test) = build(settings, "LLMRec")
    trainer = recbole_trainer(config, train)
    epochs: list[dict[str, float]] = []
    started = time.perf_counter()

    def validated(epoch: int, score: float) -> None:
        epochs.append({"s": time.perf_counter() - started, "valid": score})

    with tempfile.TemporaryDirectory() as folder:
        trainer.saved_model_file = str(Path(folder) / "LLMRec.pth")
        trainer.fit(train, valid, verbose=False, callback_fn=validated)
        return {"epochs": epochs, "test": trainer.evaluate(test)}


def shares(trainer: Any, train: Loader) -> dict[str, float]:
    """The shares of an epoch's time: the backbone and what comes before and after it, forward and backward."""
    backbone, optimizer = trainer.model.backbone, trainer.optimizer
    spent: dict[str, float] = {}
    stage, entered = "batches", time.perf_counter()

    def enter(name: str) -> None:
        nonlocal stage, entered
        now = time.perf_counter()
        spent[stage] = spent.get(stage, 0.0) + now - entered
        stage, entered = name, now

    def watched_backbone(*args: Any, **kwargs: Any) -> Any:
        enter("backbone forward")
        kwargs["inputs_embeds"].register_hook(lambda gradient: enter("input backward and clipping"))
        output = plain_backbone(*args, **kwargs)
        output.last_hidden_state.register_hook(lambda gradient: enter("backbone backward"))
        enter("output, softmax and loss")
        return output

    def watched_objective(interaction: Interaction) -> torch.Tensor:
        enter("input forward")
        loss = trainer.objective(interaction)
        enter("output backward")
        return loss

    plain_backbone, backbone.forward = backbone.forward, watched_backbone
    optimizer.register_step_pre_hook(lambda *_: enter("optimizer"))
    optimizer.register_step_post_hook(lambda *_: enter("batches"))
    trainer._train_epoch(train, 1, loss_func=watched_objective)
    enter("")
    return {name: seconds / sum(spent.values()) for name, seconds in spent.items()}


if __name__ == "__main__":
    task = json.loads(sys.argv.pop())
    print(json.dumps(epoch_seconds(**task) if "batches" in task else fit(**task)))
