"""What LLMD4Rec costs, as ratios within one run.

    python benchmarks/distillation.py BENCHMARK --dataset=ml-100k --out=benchmarks/records/... [--key=value ...]

BENCHMARK is one of

- ``crm_epoch``: an epoch of the CRM over windows against one of RecBole's own recipe, in plain RecBole and after
  ``import recbole_llmd``. ``--crm=SASRec`` (or GRU4Rec), ``--repeats=5`` of ours.
- ``crm_quality``: both recipes to their early stop: metrics, epochs and seconds. ``--crm``, and ``--repeats=5`` seeds
  of ours, of which RecBole's is the first. The same command goes on after an interruption: RecBole's recipe, which
  takes hours, from its last epoch.
- ``total``: a whole run against both sides trained alone for as many epochs, early stopping off.
- ``llm_epoch``: an epoch of LLMRec against one forward pass per prefix, of which ``--batches=2`` are timed, and against
  the first version of this package; and where the time goes. ``--repeats=1``, ``--arms`` (see ``llm_epoch.py``).
- ``llm_quality``: seconds of clock until LLMRec, alone, is as good on the validation data as the first version ever
  was; each trained with its own defaults. ``--repeats=3`` seeds.
- ``catalogue``: synthetic data, every combination of ``--items=1000,10000,100000``, ``--users=2000`` and
  ``--layers=4``, each in a process of its own. ``--windows=200`` trains so many windows instead of all.
- ``serving``: microseconds per user and bytes of the exported CRM against the CRM trained by RecBole. ``--crm``,
  ``--repeats=100``.

Any other argument is one of RecBole's Config. Seconds are the clock's; processor seconds, beside them, are what counts
on a machine that does other things.
"""

from __future__ import annotations

import contextlib
import functools
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING
from unittest import mock

from bench_setup import Figures, Settings, both_sides, build, crm_side, facts, recbole_trainer, train_alone
from catalogue import catalogue
from llm_epoch import llm_epoch, llm_quality
from record import read_arguments, write_record
from timing import Times, medians, ratios, timed

if TYPE_CHECKING:
    from recbole.config import Config
    from recbole.data.dataloader import AbstractDataLoader as Loader
    from recbole.data.interaction import Interaction
    from recbole.model.abstract_recommender import AbstractRecommender

    from recbole_llmd.distill.training_path import TrainingPath

NEVER = 10**6  # a stopping_step that no run reaches
BATCHES = (1, 256)  # users served together


def crm_epoch(settings: Settings) -> Figures:
    """An epoch of the CRM over windows against RecBole's own."""
    crm, repeats = settings.pop("crm", "SASRec"), int(settings.pop("repeats", 5))
    config, (train, _, _) = build(settings, crm)
    import torch

    theirs = recbole_trainer(config, train)
    with torch.autograd.set_detect_anomaly(True):  # as RecBole leaves it, see recbole_llmd.compat
        recbole = medians([functools.partial(theirs._train_epoch, train, 0)])
    mended = medians([functools.partial(theirs._train_epoch, train, 1)])
    side = crm_side(config, train)
    side._train_epoch(train, 0)  # the memory that later epochs find
    ours = medians([functools.partial(side._train_epoch, train, epoch) for epoch in range(1, repeats + 1)])
    path = side.path
    assert path is not None  # crm_side has prepared it
    steps = {"RecBole": len(train), "ours": len(path.loader(config["seed"]))}
    return {
        **facts(config, train),
        "steps": steps,
        "RecBole's epoch": recbole,
        "RecBole's epoch after import recbole_llmd": mended,
        "our epoch": ours,
        "times faster": ratios(recbole, ours),
        "times faster than the mended": ratios(mended, ours),
    }


def crm_quality(settings: Settings) -> Figures:
    """Metrics, epochs and seconds of RecBole's recipe and of ours, each to its early stop."""
    from recbole_llmd.trainer.llmd4rec import fingerprint

    crm, repeats = settings.pop("crm", "SASRec"), int(settings.pop("repeats", 5))
    config, (train, valid, test) = build(settings, crm)
    folder = Path(config["checkpoint_dir"]) / f"crm_quality-{crm}-{config['dataset']}-{fingerprint(config)}"
    folder.mkdir(parents=True, exist_ok=True)
    # What takes long first: only it is gone on with after an interruption.
    recbole = recbole_quality(config, train, valid, test, folder)
    ours = []
    for seed in range(config["seed"], config["seed"] + repeats):
        ours.append({"seed": seed, **our_quality(*build({**settings, "seed": seed}, crm))})
        print({"ours": ours[-1]}, flush=True)
    quotients = {key: recbole[key] / statistics.mean(run[key] for run in ours) for key in ("s", "s per epoch")}
    return {**facts(config, train), "RecBole": recbole, "ours": ours, "times faster": quotients}


def our_quality(config: Config, loaders: tuple[Loader, Loader, Loader]) -> Figures:
    """Our recipe until its early stop."""
    train, valid, test = loaders
    side = crm_side(config, train)
    _, seconds, _ = timed(lambda: train_alone(side, config["epochs"], train, valid))
    results = [side.evaluate(loader, load_best_model=False) for loader in (valid, test)]
    return quality(seconds, len(side.figures), *results)


def quality(seconds: float, epochs: int, valid: Mapping[str, float], test: Mapping[str, float]) -> Figures:
    """What a record says of a training to its early stop."""
    return {"s": seconds, "epochs": epochs, "s per epoch": seconds / epochs, "valid": valid, "test": test}


def recbole_quality(config: Config, train: Loader, valid: Loader, test: Loader, folder: Path) -> Figures:
    """RecBole's recipe until its early stop; a run that was killed goes on from what is in ``folder``.

    RecBole's own ``resume_checkpoint`` reads the checkpoint that is written after every epoch. It restores neither the
    random generators nor the order of the batches: an interrupted run draws others than one that was not.
    """
    from recbole.utils import init_seed

    from recbole_llmd.report.table import write_json
    from recbole_llmd.trainer.checkpoint_file import save_renamed

    log, last = folder / "epochs.json", folder / "last.pth"
    trainer = recbole_trainer(config, train)
    epochs: list[dict[str, float]] = []
    if last.exists():
        trainer.resume_checkpoint(last)
        first = trainer.start_epoch
        epochs = [epoch for epoch in json.loads(log.read_text())["epochs"] if epoch["epoch"] < first]
        init_seed(config["seed"] + first, config["reproducibility"])
        train.generator.manual_seed(config["seed"] + first)
    trainer.saved_model_file = str(folder / "best.pth")
    save, started = trainer._save_checkpoint, time.perf_counter()
    trainer._save_checkpoint = lambda *args, **kwargs: save_renamed(save, trainer, *args, **kwargs)

    def validated(epoch: int, score: float) -> None:
        nonlocal started
        now = time.perf_counter()
        epochs.append({"epoch": epoch, "s": now - started, "valid": score})
        print({"RecBole": epochs[-1]}, flush=True)
        write_json(log, {"epochs": epochs})
        trainer._save_checkpoint(epoch, verbose=False, saved_model_file=str(last))
        started = time.perf_counter()

    if trainer.cur_step <= trainer.stopping_step and trainer.start_epoch < trainer.epochs:
        trainer.fit(train, valid, verbose=False, callback_fn=validated)
    trainer.eval_collector.data_collect(train)
    results = [trainer.evaluate(loader) for loader in (valid, test)]
    return quality(sum(epoch["s"] for epoch in epochs), len(epochs), *results)


def total(settings: Settings) -> Figures:
    """A complete run against both sides trained alone for as many epochs."""
    with tempfile.TemporaryDirectory() as folder:
        fixed = {**settings, "stopping_step": NEVER, "llm_stopping_step": NEVER, "checkpoint_dir": folder}
        config, loaders = build(fixed, "LLMD4Rec")
        alone = sides_alone(config, loaders)
        print({"alone": alone}, flush=True)
        config, (train, valid, _) = build(fixed, "LLMD4Rec")
        trainer = recbole_trainer(config, train)
        with teacher_passes() as passes:
            _, seconds, processor = timed(lambda: trainer.fit(train, valid, verbose=False))
        epochs = {name: len(side.figures) for name, side in trainer.sides.items()}
    both = {key: sum(side[key] for side in alone.values()) for key in ("s", "processor s")}
    run = {"s": seconds, "processor s": processor}
    return {
        **facts(config, train),
        "epochs": epochs,
        "sides alone": alone,
        "whole run": run,
        "teacher passes s": passes,
        "whole run / sides alone": ratios(run, both),
    }


def sides_alone(config: Config, loaders: tuple[Loader, Loader, Loader]) -> dict[str, Times]:
    """The seconds of each side trained alone, for the epochs that a whole run trains it."""
    train, valid, _ = loaders
    rounds = config["distill_rounds"]
    alone: dict[str, Times] = {}
    epochs = {
        "LLM": config["llm_warmup_epochs"] + rounds * config["llm_epochs"],
        "CRM": config["crm_warmup_epochs"] + rounds * config["epochs"],
    }
    for name, side in both_sides(config, train).sides.items():
        _, seconds, processor = timed(functools.partial(train_alone, side, epochs[name], train, valid))
        alone[name] = {"epochs": epochs[name], "s": seconds, "processor s": processor}
    return alone


@contextlib.contextmanager
def teacher_passes() -> Iterator[dict[str, float]]:
    """A dict that the seconds of the teacher passes are added to inside the block."""
    from recbole_llmd.distill.teacher_cache import TeacherCache

    seconds: dict[str, float] = {}
    fill = TeacherCache.fill

    def timed_fill(cache: TeacherCache, teacher: TrainingPath, label: str, show_progress: bool = False) -> None:
        _, seconds[f"{label} ({len(seconds) + 1})"], _ = timed(lambda: fill(cache, teacher, label, show_progress))

    with mock.patch.object(TeacherCache, "fill", timed_fill):
        yield seconds


def serving(settings: Settings) -> Figures:
    """Latency and size of the exported CRM against the CRM that RecBole trained."""
    import torch

    import recbole_llmd  # noqa: F401

    # isort: split
    from recbole.quick_start import load_data_and_model, run_recbole

    from recbole_llmd import export

    crm, repeats = settings.pop("crm", "SASRec"), int(settings.pop("repeats", 100))
    short = {
        "show_progress": False,
        "epochs": 1,
        "crm_warmup_epochs": 0,
        "llm_warmup_epochs": 1,
        "llm_epochs": 0,
        **settings,
    }
    plain = {key: value for key, value in short.items() if not key.startswith(("llm_", "crm_", "distill_"))}
    with tempfile.TemporaryDirectory() as folder:
        files = {}
        for name, model, given in (("RecBole", crm, plain), ("exported", "LLMD4Rec", {**short, "crm_model": crm})):
            own = Path(folder) / name
            run_recbole(config_dict={**given, "model": model, "checkpoint_dir": str(own), "state": "ERROR"})
            (files[name],) = own.glob("*.pth")
        export(str(files["exported"]), str(Path(folder) / "crm.pth"))
        files["exported"] = Path(folder) / "crm.pth"
        files["RecBole again"] = files["RecBole"]  # what the ratio of a model to itself is in this run
        loaded = {name: load_data_and_model(str(file)) for name, file in files.items()}
        bytes_of_files = {name: file.stat().st_size for name, file in files.items()}
    config, _, _, train, _, test = loaded["RecBole"]
    models = {name: contents[1].eval() for name, contents in loaded.items()}
    sizes = {
        name: sum(value.numel() * value.element_size() for value in model.state_dict().values())
        for name, model in models.items()
    }
    with torch.no_grad():
        latency = {f"batches of {size}": latencies(models, test, size, repeats) for size in BATCHES}
    return {
        **facts(config, train),
        "parameter bytes": sizes,
        "file bytes": bytes_of_files,
        "microseconds per user": latency,
    }


def latencies(models: Mapping[str, AbstractRecommender], test: Loader, size: int, repeats: int) -> Figures:
    """Median microseconds per user of each model, the models taking turns, and the ratios to RecBole's."""
    import numpy as np

    rng = np.random.default_rng(0)
    times: dict[str, list[float]] = {name: [] for name in models}
    names = list(models)
    for number in range(repeats + 3):  # the first three warm up
        users = rng.choice(len(test.dataset), min(size, len(test.dataset)), replace=False)
        batch = test.collate_fn(users)[0]
        for name in names[number % len(names) :] + names[: number % len(names)]:
            model = models[name]
            _, seconds, _ = timed(functools.partial(_first_score, model, batch.to(model.device)))
            times[name].append(seconds / len(users) * 1e6)
    latency = {name: statistics.median(values[3:]) for name, values in times.items()}
    return {**latency, "ratios to RecBole": {name: value / latency["RecBole"] for name, value in latency.items()}}


def _first_score(model: AbstractRecommender, interaction: Interaction) -> float:
    """Score all items, and wait for an accelerator."""
    return float(model.full_sort_predict(interaction)[0, 0])


BENCHMARKS: dict[str, Callable[[Settings], Figures]] = {
    benchmark.__name__: benchmark
    for benchmark in (crm_epoch, crm_quality, total, llm_epoch, llm_quality, catalogue, serving)
}


def main() -> None:
    """Run a benchmark, and write the record."""
    if len(sys.argv) < 2 or sys.argv[1] not in BENCHMARKS:
        sys.exit(f"benchmark = {sys.argv[1:2]}: must be one of {', '.join(BENCHMARKS)}. {__doc__}")
    name = sys.argv.pop(1)
    settings = read_arguments()
    arguments = dict(settings)
    out = Path(settings.pop("out")).resolve()
    import torch

    figures = BENCHMARKS[name](settings)
    print(json.dumps({key: value for key, value in figures.items() if key != "config"}, indent=1, default=str))
    write_record(out, arguments, name, threads=torch.get_num_threads(), **figures)


if __name__ == "__main__":
    main()
