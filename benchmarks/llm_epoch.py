"""Cost of an epoch of LLMRec, and of reaching a quality: the parts ``llm_epoch`` and ``llm_quality``.

Each arm runs in a process of its own, which is what running this file does.

Arms: ``now``; ``float32``, the same in that precision; ``first``, the first version of this package, in a worktree of
its commit; ``rows``, one forward pass per prefix: LLMRec's own loss over RecBole's batches, of which a sample is timed.
"""

import contextlib
import json
import subprocess
import sys
import tempfile
import time
from itertools import islice
from pathlib import Path

from measure import REPO, build, facts, in_own_process, medians, ratios, recbole_trainer

FIRST = "baea5a4"  # the first version of LLMRec's training
ARMS = "now,float32,first,rows"


def llm_epoch(settings):
    repeats, batches = int(settings.pop("repeats", 1)), int(settings.pop("batches", 2))
    arms, found = settings.pop("arms", ARMS).split(","), {}
    for arm in arms:
        given = {**settings, "llm_dtype": "float32"} if arm == "float32" else settings
        found[arm] = measured(arm, {"settings": given, "repeats": repeats, "batches": batches if arm == "rows" else 0})
        print({arm: found[arm]}, flush=True)
    config, (train, _, _) = build(settings, "LLMRec")
    quotients = {f"{arm} / now": ratios(found[arm], found["now"]) for arm in arms if "now" in found}
    return {**facts(config, train), "arms": found, "first version": FIRST, "ratios": quotients}


def llm_quality(settings):
    """Seconds until LLMRec, alone, is as good on the validation data as the first version ever was."""
    repeats, runs = int(settings.pop("repeats", 3)), []
    config, (train, _, _) = build(settings, "LLMRec")
    for seed in range(config["seed"], config["seed"] + repeats):
        found = {name: measured(name, {"settings": {**settings, "seed": seed}}) for name in ("now", "first")}
        goal = max(epoch["valid"] for epoch in found["first"]["epochs"])
        seconds = {name: until(found[name]["epochs"], goal) for name in found}
        faster = seconds["first"] / seconds["now"] if seconds["now"] else None
        runs.append({"seed": seed, **found, "goal": goal, "s until the goal": seconds, "times faster": faster})
        print(runs[-1], flush=True)
    return {**facts(config, train), "first version": FIRST, "runs": runs}


def measured(arm, task):
    """What this file finds for ``task`` in a process of its own, with the package of the arm."""
    with worktree(FIRST) if arm == "first" else contextlib.nullcontext(REPO) as root:
        return in_own_process(__file__, task, root)


def until(epochs, goal):
    """The seconds after which a validation reached the goal, or None."""
    return next((epoch["s"] for epoch in epochs if epoch["valid"] >= goal), None)


@contextlib.contextmanager
def worktree(commit):
    """A folder with the package as it was at ``commit``, as long as the block lasts."""
    with tempfile.TemporaryDirectory() as folder:
        root, git = Path(folder) / "worktree", ["git", "-C", str(REPO), "worktree"]
        subprocess.run([*git, "add", "-q", "--detach", str(root), commit], check=True)
        try:
            yield root
        finally:
            subprocess.run([*git, "remove", "--force", str(root)], check=True)


def arm(settings, repeats, batches):
    """Seconds of one epoch of the package that is imported; of its rows if ``batches`` of them are to be timed."""
    config, (train, _, _) = build(settings, "LLMRec")
    from recbole.trainer import Trainer

    from recbole_llmd.data.windows import add_row_numbers
    from recbole_llmd.distill.scorers import LLMScorer

    trainer = recbole_trainer(config, train)
    add_row_numbers(train.dataset)
    trainer.prepare(LLMScorer(trainer.model), train)
    about = {"precision": str(trainer.model.input_dtype), "layers": config["llm_layers"]}
    if not batches:
        steps = {"steps": len(trainer.window_loader)}
        trainer._train_epoch(train, 0)  # the memory that later epochs find
        figures = medians([lambda: trainer._train_epoch(train, epoch) for epoch in range(1, repeats + 1)])
        return {**about, **steps, **figures, "shares": shares(trainer, train)}
    some = list(islice(train, batches))  # of a shuffled epoch: a random sample
    figures = medians([lambda: Trainer._train_epoch(trainer, some, 0)])
    factor = len(train) / len(some)
    figures.update({key: factor * figures[key] for key in ("s", "processor s")})
    return {**about, "steps": len(train), **figures, "extrapolated from steps": len(some)}


def fit(settings):
    """A run of the package that is imported, by its own defaults, to its early stop: the clock at each validation."""
    config, (train, valid, test) = build(settings, "LLMRec")
    trainer, epochs, start = recbole_trainer(config, train), [], time.perf_counter()

    def validated(epoch, score):
        epochs.append({"s": time.perf_counter() - start, "valid": score})

    with tempfile.TemporaryDirectory() as folder:
        trainer.saved_model_file = str(Path(folder) / "LLMRec.pth")
        trainer.fit(train, valid, verbose=False, callback_fn=validated)
        return {"epochs": epochs, "test": trainer.evaluate(test)}


def shares(trainer, train):
    """The shares of an epoch's time: the backbone and what comes before and after it, forward and backward."""
    backbone, optimizer = trainer.model.backbone, trainer.optimizer
    spent, state = {}, {"at": time.perf_counter(), "now": "batches"}

    def enter(name):
        now = time.perf_counter()
        spent[state["now"]] = spent.get(state["now"], 0.0) + now - state["at"]
        state.update(at=now, now=name)

    def watched_backbone(*args, **kwargs):
        enter("backbone forward")
        kwargs["inputs_embeds"].register_hook(lambda gradient: enter("input backward and clipping"))
        output = plain_backbone(*args, **kwargs)
        output.last_hidden_state.register_hook(lambda gradient: enter("backbone backward"))
        enter("output, softmax and loss")
        return output

    def watched_objective(interaction):
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
    print(json.dumps(arm(**task) if "batches" in task else fit(**task)))
