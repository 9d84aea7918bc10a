"""What the benchmarks measure with: clocks, peak memory, processes of their own, and RecBole's objects built once."""

import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

REPO = Path(__file__).resolve().parent.parent


def timed(call):
    """(result, seconds, processor seconds of all threads)."""
    start, processor = time.perf_counter(), time.process_time()
    result = call()
    return result, time.perf_counter() - start, time.process_time() - processor


def medians(calls):
    """Median seconds, and processor seconds, of the calls."""
    seconds, processor = zip(*(timed(call)[1:] for call in calls))
    return {"s": statistics.median(seconds), "processor s": statistics.median(processor), "repetitions": len(seconds)}


def ratios(numerator, denominator):
    """The quotients of two figures' seconds and processor seconds."""
    return {key: numerator[key] / denominator[key] for key in ("s", "processor s")}


def peak_gib():
    """The most memory that this process held since the last call (Linux), or since it began, in GiB."""
    from recbole_llmd.process_memory import peak_bytes, reset_peak

    peak = peak_bytes() / 2**30
    reset_peak()
    return peak


def in_own_process(file, task, root=REPO):
    """The JSON that ``file``, run with ``task`` on the package in ``root``, prints last."""
    env = {**os.environ, "PYTHONPATH": str(root)}
    command = [sys.executable, str(file), json.dumps(task)]
    done = subprocess.run(command, env=env, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def build(settings, model):
    """Config and RecBole's loaders ``(train, valid, test)``, as ``run_recbole`` makes them."""
    import recbole_llmd  # noqa: F401  (before RecBole, which it mends)

    # isort: split
    from recbole.config import Config
    from recbole.data import create_dataset, data_preparation
    from recbole.utils import init_seed

    config = Config(config_dict={"show_progress": False, **settings, "model": model, "state": "ERROR"})
    init_seed(config["seed"], config["reproducibility"])
    loaders = data_preparation(config, create_dataset(config))
    init_seed(config["seed"], config["reproducibility"])
    return config, loaders


def facts(config, train):
    """What a record says of the data and the settings."""
    from recbole_llmd.comparison.cell import settings_of

    sizes = {"users": train.dataset.user_num - 1, "items": train.dataset.item_num - 1, "samples": len(train.dataset)}
    return {"data": sizes, "seed": config["seed"], "config": settings_of(config)}


def recbole_trainer(config, train):
    """RecBole's own trainer of a new model."""
    from recbole.utils import get_model, get_trainer

    model = get_model(config["model"])(config, train.dataset).to(config["device"])
    return get_trainer(config["MODEL_TYPE"], config["model"])(config, model)


def crm_side(config, train):
    """A new CRM as one side of LLMD4Rec, ready to be trained alone over windows."""
    from recbole_llmd.config import load_properties
    from recbole_llmd.data.windows import add_row_numbers
    from recbole_llmd.distill.scorers import CRMScorer
    from recbole_llmd.trainer.side_trainer import SideTrainer

    model = recbole_trainer(config, train).model
    side = SideTrainer(config, model, "CRM", load_properties("LLMD4Rec")["crm_window_overlap"])
    add_row_numbers(train.dataset)
    side.prepare(CRMScorer(model, train.dataset, train), train)
    return side


def sides(config, train):
    """A new LLMD4Rec's trainer with its sides ready to be trained, as its ``fit`` makes them."""
    from recbole_llmd.data.windows import add_row_numbers
    from recbole_llmd.distill.scorers import CRMScorer, LLMScorer

    trainer = recbole_trainer(config, train)
    add_row_numbers(train.dataset)
    crm, llm = trainer.model.crm, trainer.model.llm
    trainer.sides["CRM"].prepare(CRMScorer(crm, train.dataset, train), train)
    trainer.sides["LLM"].prepare(LLMScorer(llm), train)
    return trainer
