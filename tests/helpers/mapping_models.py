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
    "DualEASE": {"reg_weight": 10.0},
}


def dense(B):
    if isinstance(B, CorrectedMatrix):
        B = B.folded()
    return B.toarray() if sp.issparse(B) or isinstance(B, ImplicitMatrix) else np.asarray(B)


def all_of(X, users):
    """The request to forget everything of these users."""
    owners, items = X.nonzero()
    chosen = np.isin(owners, users)
    return Request("forget", owners[chosen], items[chosen])


def retained(dataset, users, items):
    """The dataset without these pairs, as RecBole itself holds it."""
    gone = set(zip(users, items))
    pairs = zip(dataset.inter_feat[dataset.uid_field].tolist(), dataset.inter_feat[dataset.iid_field].tolist())
    return dataset.copy(dataset.inter_feat[torch.tensor([pair not in gone for pair in pairs])])


def evaluate(config, model, loader):
    torch.manual_seed(config["seed"])  # RecBole's ADMMSLIM adds noise to its scores
    return get_trainer(config["MODEL_TYPE"], config["model"])(config, model).evaluate(loader, load_best_model=False)
