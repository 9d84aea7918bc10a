"""What the tests of unlearning share: small settings of the mapping models, and comparisons."""

import numpy as np
import scipy.sparse as sp
import torch
from recbole.utils import get_trainer

from recbole_llmd.unlearning.mapping.corrected_matrix import CorrectedMatrix, ImplicitMatrix
from recbole_llmd.unlearning.request import Request

MODELS = {
    "EASE": {"reg_weight": 10.0},
    "ItemKNN": {"k": 8},
    "SLIMElastic": {"alpha": 0.05, "l1_ratio": 0.1},
    "ADMMSLIM": {"lambda1": 1.0, "lambda2": 10.0, "rho": 50.0, "k": 400},
    "AsymKNN": {"k": 8, "q": 2},
    "DualEASE": {"reg_weight": 10.0},
    "SparseEASE": {"k": 8, "reg_weight": 10.0},
    "NCEPLRec": {"rank": 12, "reg_weight": 2.0},
}
BY_USERS = {  # neighbours of users: corrected, but with no item-item mapping that could be evaluated as such
    "ItemKNN by users": {"model": "ItemKNN", "k": 8, "knn_method": "user"},
    "AsymKNN by users": {"model": "AsymKNN", "k": 8, "beta": 0.3, "knn_method": "user"},
}
ALL = MODELS | BY_USERS


def dense(B):
    if isinstance(B, CorrectedMatrix):
        B = B.folded()
    return B.toarray() if sp.issparse(B) or isinstance(B, ImplicitMatrix) else np.asarray(B)


def all_of(X, users):
    """The request to forget everything of these users."""
    owners, items = X.nonzero()
    chosen = np.isin(owners, users)
    return Request("forget", owners[chosen], items[chosen])


def scores_by_hand(X, B, config):
    """All scores of RecBole's model with the mapping matrix B, of dense arrays."""
    by_users = config["knn_method"] == "user"
    scores = B @ X if by_users else X @ B
    if config["model"] == "AsymKNN":
        of_users = np.linalg.norm(B if by_users else X, axis=1) ** (2 * config["beta"])
        of_items = (np.linalg.norm(X, axis=0) if by_users else np.linalg.norm(B, axis=1)) ** (2 * (1 - config["beta"]))
        scores = (scores / (np.outer(of_users, of_items) + 1e-6)) ** config["q"]
    return scores


def retained(dataset, users, items):
    """The dataset without these pairs, as RecBole itself holds it."""
    gone = set(zip(users, items))
    pairs = zip(dataset.inter_feat[dataset.uid_field].tolist(), dataset.inter_feat[dataset.iid_field].tolist())
    return dataset.copy(dataset.inter_feat[torch.tensor([pair not in gone for pair in pairs])])


def evaluate(config, model, loader):
    torch.manual_seed(config["seed"])  # RecBole's ADMMSLIM adds noise to its scores
    return get_trainer(config["MODEL_TYPE"], config["model"])(config, model).evaluate(loader, load_best_model=False)
