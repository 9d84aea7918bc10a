"""What the tests of erasure share: a checkpoint on data made on the spot, and requests."""

import random

from recbole.config import Config
from recbole.data import create_dataset, data_preparation
from recbole.utils import get_model, init_seed

from recbole_llmd.unlearning import Unlearner
from tests.helpers.mapping_models import MODELS

EVERYTHING = {"split": {"RS": [1, 0, 0]}, "order": "RO", "mode": "full", "group_by": None}


def make_data(folder, users=12, items=9, seed=3):
    """Write ``small/small.inter`` and ``.user``; gives the pairs of tokens."""
    draw = random.Random(seed)
    pairs = [(f"u{u}", f"i{i}") for u in range(users) for i in sorted(draw.sample(range(items), 4))]
    (folder / "small").mkdir()
    lines = [f"{user}\t{item}\t{draw.randint(1, 5)}" for user, item in pairs]
    (folder / "small" / "small.inter").write_text(
        "\n".join(["user_id:token\titem_id:token\trating:float", *lines]) + "\n"
    )
    ages = [f"u{u}\t{20 + u}" for u in range(users)]
    (folder / "small" / "small.user").write_text("\n".join(["user_id:token\tage:float", *ages]) + "\n")
    return pairs


def settings_of(folder, model="EASE", **more):
    return {
        "model": model,
        "dataset": "small",
        "data_path": str(folder),
        "checkpoint_dir": str(folder / "saved"),
        "state": "WARNING",
        "show_progress": False,
        "eval_args": EVERYTHING,
        **MODELS.get(model, {}),
        **more,
    }


def save_checkpoint(folder, path, model="EASE", **more):
    """Train the model on all of the data and save it, at the optimum; gives the engine."""
    config = Config(config_dict=settings_of(folder, model, **more))
    init_seed(config["seed"], config["reproducibility"])
    dataset = data_preparation(config, create_dataset(config))[0].dataset
    engine = Unlearner(get_model(model)(config, dataset), dataset)
    if model != "EASE":
        engine.refit()
    engine.save(path)
    return engine


def write_request(path, users, items=None):
    head = "user_id:token" if items is None else "user_id:token\titem_id:token"
    lines = users if items is None else [f"{user}\t{item}" for user, item in zip(users, items)]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join([head, *lines]) + "\n")
    return path


def pairs_in(engine):
    """The pairs of tokens in the model's X."""
    rows, columns = engine.X.nonzero()
    names = engine.dataset.field2id_token
    return {(str(names["user_id"][u]), str(names["item_id"][i])) for u, i in zip(rows, columns)}
