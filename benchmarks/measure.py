"""What the benchmarks measure with: clocks, peak memory, processes of their own, and RecBole's objects built once."""

import json
import os
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


def peak_gib():
    """The most memory that this process held since the last call (Linux), or since it began, in GiB."""
    from recbole_llmd.compare.measure import peak_bytes

    peak = peak_bytes() / 2**30
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        pass
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


def prepared_sides(config, train):
    """A new LLMD4Rec's trainer with its sides ready to train, as its ``fit`` makes them."""
    from recbole.utils import get_model, get_trainer

    from recbole_llmd.data.windows import add_row_numbers
    from recbole_llmd.distill.scorers import CRMScorer, LLMScorer

    model = get_model("LLMD4Rec")(config, train.dataset).to(config["device"])
    trainer = get_trainer(config["MODEL_TYPE"], "LLMD4Rec")(config, model)
    add_row_numbers(train.dataset)
    trainer.sides["CRM"].prepare(CRMScorer(model.crm, train.dataset, train), train)
    trainer.sides["LLM"].prepare(LLMScorer(model.llm), train)
    return trainer
