"""What the tests of the scenarios share: drawing them from a dataset or a matrix, and looking at their pairs."""

from types import SimpleNamespace

import numpy as np
import scipy.sparse as sp
from recbole.config import Config
from recbole.data import create_dataset, data_preparation
from recbole.utils import init_seed

from recbole_llmd.config import load_properties, side_config
from recbole_llmd.unlearning.evaluation.scenarios import scenarios

EACH = [
    {"scenario": "users"},
    {"scenario": "interactions"},
    {"scenario": "sensitive", "sensitive": {"genre": "Space"}},
    {"scenario": "spam"},
    {"scenario": "noise"},
]

WATCHED = [("u", "a"), ("u", "b"), ("u", "c"), ("v", "c"), ("w", "a"), ("w", "d"), ("x", "b"), ("y", "e"), ("z", "c")]


def pairs_of(request):
    return list(zip(request.users.tolist(), request.items.tolist()))


def all_pairs(scenario):
    return [pair for request in scenario.requests for pair in pairs_of(request)]


def pairs_in(X):
    return set(zip(*(index.tolist() for index in X.nonzero())))


def sizes(scenario):
    return [len(request) for request in scenario.requests]


def same(one, other):
    return [all_pairs(s) for s in one] == [all_pairs(s) for s in other]


def case_of(folder, name, **settings):
    """``draw(**unlearn settings)`` on a dataset, and what it draws from."""
    config = Config(
        config_dict={
            **load_properties("IMCorrect"),
            "model": "EASE",
            "dataset": name,
            "data_path": str(folder),
            "state": "ERROR",
            "show_progress": False,
            "unlearn_seeds": [2],
            **settings,
        }
    )
    init_seed(config["seed"], config["reproducibility"])
    all_splits = create_dataset(config)
    dataset = data_preparation(config, all_splits)[0].dataset
    X, known = dataset.inter_matrix(form="csr").astype(np.float32), all_splits.inter_matrix(form="csr")

    def draw(**more):
        values = {f"unlearn_{key}": value for key, value in more.items()}
        return scenarios(side_config(config, **values), X, dataset, known)

    return SimpleNamespace(config=config, dataset=dataset, X=X, known=known, draw=draw)


def matrix(profiles, n_items):
    """CSR from the items of each user; user 0 is the padding."""
    users = np.repeat(np.arange(len(profiles)), [len(profile) for profile in profiles])
    items = np.concatenate([np.array(profile, int) for profile in profiles])
    return sp.csr_matrix((np.ones(len(items)), (users, items)), shape=(len(profiles), n_items))


def drawn(X, seeds=(2,), known=None, **settings):
    """Scenarios of a matrix alone, for draws that need no tokens."""
    config = load_properties("IMCorrect") | {f"unlearn_{key}": value for key, value in settings.items()}
    return scenarios(config | {"unlearn_seeds": list(seeds)}, X, None, X if known is None else known)
