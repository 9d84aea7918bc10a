"""Measures the arms of unlearning at a checkpoint: the figures of one row each."""

import copy
import tempfile
from pathlib import Path
from time import perf_counter

import numpy as np
import scipy.sparse as sp
import torch
from recbole.data.interaction import Interaction

from recbole_llmd.random_state import isolated_random_state
from recbole_llmd.unlearning.evaluation import metrics
from recbole_llmd.unlearning.evaluation.arms import Sisa
from recbole_llmd.unlearning.mapping.correction import interactions

USERS = 2000  # whose scores are compared: a sample of those tested and those who forget
PAIRS = 20000  # forgotten pairs that the membership attacks look at: a sample
TOP = 20
BLOCK = 256  # users scored at a time


def retained_loader(eval_data, users, items, only=None):
    """RecBole's full-sort loader with these interactions taken out of the histories that it masks.

    Args:
        eval_data: a full-sort loader.
        users, items: pairs of internal ids [n].
        only: internal ids of the users to evaluate, or None for all.

    Returns:
        the loader, or None if it would be empty.
    """
    dataset, sampler = eval_data._dataset, copy.copy(eval_data._sampler)
    if only is not None:
        chosen = torch.from_numpy(np.isin(dataset.inter_feat[dataset.uid_field].numpy(), only))
        if not chosen.any():
            return None
        dataset = dataset.copy(dataset.inter_feat[chosen])
    sampler.used_ids = sampler.used_ids.copy()
    for user in np.unique(users):
        if user < len(sampler.used_ids):  # injected users are in no loader
            sampler.used_ids[user] = sampler.used_ids[user] - set(items[users == user].tolist())
    return type(eval_data)(eval_data.config, dataset, sampler)


class Judge:
    """Measures arms of one scenario at its checkpoints."""

    def __init__(self, study, scenario, model):
        self.study, self.scenario = study, scenario
        dataset, sampler = study.eval_data._dataset, study.eval_data._sampler
        self.real, self.X = dataset.user_num, sp.csr_matrix(model.interaction_matrix)
        everything = interactions(sampler.datasets, self.X.shape)
        self.known = ((everything + self.X) != 0).astype(np.float32).tocsr()
        self.tested = study.eval_data.uid_list.numpy()
        self.history = _history(study.eval_data, self.X.shape)
        rng = np.random.default_rng(scenario.seed)
        self.pairs = users, items = scenario.pairs
        self.negatives = metrics.matched_negatives(self.known, users, items, rng)
        self.attacked = rng.permutation(np.flatnonzero(self.negatives >= 0))
        candidates = np.union1d(self.tested, users[users < self.real])
        self.users = np.sort(rng.choice(candidates, min(USERS, len(candidates)), replace=False))

    def rows(self, arms, done, phase):
        """A row for each arm, after ``done`` requests; in the phase ``"learn"`` they are learned again by now."""
        for arm in arms.values():
            arm.settle()
        until = sum(len(users) for users, _ in self.scenario.requests[:done])
        users, items = (part[:until] for part in self.pairs)
        concerned = np.unique(users)
        gone = (users, items) if phase == "forget" else (users[:0], items[:0])
        mask, loaders = self._mask(*gone), self._loaders(gone, concerned)
        about = {
            "model": arms["retrained"].engine.name,
            "dataset": self.study.config["dataset"],
            "scenario": self.scenario.name,
            "group": self.scenario.group,
            "ratio": self.scenario.ratio,
            "seed": self.scenario.seed,
            "checkpoint": done / len(self.scenario.requests),
            "requests": done,
            "users": len(concerned),
            "interactions": len(users),
            "phase": phase,
        }
        reference = self._view(arms["retrained"], mask)
        utility = {name: self._utility(arm, loaders) for name, arm in arms.items()}
        return [
            {
                **about,
                "arm": name,
                "method": arm.method,
                **self._completeness(arm, view, arms["retrained"], reference, mask),
                **self._remembered(arm, view[1], users, items, mask),
                **utility[name],
                **_ratios(utility[name], utility["retrained"]),
                **_efficiency(arm, arms["retrained"]),
            }
            for name, arm in arms.items()
            for view in [reference if arm is arms["retrained"] else self._view(arm, mask)]
        ]

    def _mask(self, users, items):
        """What may not be recommended to the judged users [users, items]: their history but for these pairs."""
        mask = self.history[self.users].toarray() > 0
        mask[_rows_of(self.users, users, items)] = False
        mask[:, 0] = True
        return mask

    def _loaders(self, gone, concerned):
        groups = {"test": None, "forgetting": concerned, "others": np.setdiff1d(self.tested, concerned)}
        return {name: retained_loader(self.study.eval_data, *gone, only=only) for name, only in groups.items()}

    def _view(self, arm, mask):
        """The arm's scores of the judged users [users, items] and their top items."""
        model, blocks = arm.model, []
        with isolated_random_state(0):  # RecBole's ADMMSLIM adds noise to its scores: the same for all arms
            for start in range(0, len(self.users), BLOCK):
                users = torch.from_numpy(self.users[start : start + BLOCK])
                scores = model.full_sort_predict(Interaction({model.USER_ID: users}))
                blocks.append(np.asarray(scores).reshape(len(users), -1))
        scores = np.concatenate(blocks)
        return scores, metrics.top_k(scores, TOP, mask)

    def _completeness(self, arm, view, retrained, reference, mask):
        scores, top = view
        same_model = not isinstance(arm, Sisa)  # its B is the mean of other models'
        B, other = arm.engine.B, retrained.engine.B
        return {
            "B_frobenius": metrics.relative_frobenius(B, other) if same_model else None,
            "B_max": metrics.max_abs(B, other) if same_model else None,
            "scores_frobenius": metrics.relative_frobenius(scores, reference[0]),
            "scores_max": metrics.max_abs(scores, reference[0]),
            "overlap@10": metrics.overlap(top[:, :10], reference[1][:, :10]),
            "overlap@20": metrics.overlap(top, reference[1]),
            "js": metrics.js_divergence(scores, reference[0], mask),
        }

    def _remembered(self, arm, top, users, items, mask):
        """What the arm still shows of the forgotten pairs."""
        rows, columns = _rows_of(self.users, users, items)
        attacked = self.attacked[self.attacked < len(users)][:PAIRS]
        X, B = arm.engine.X, arm.engine.B
        auc = {}
        for name, function, given in (
            ("scores", metrics.served_scores, X),
            ("mapping", metrics.probe_scores, self.X),
        ):
            pairs = (users[attacked], items[attacked]), (users[attacked], self.negatives[attacked])
            auc[name] = metrics.membership_auc(*(function(given, B, *pair) for pair in pairs))
        targets, sensitive = self.scenario.targets, self.scenario.sensitive
        return {
            "forget_recall@10": metrics.forget_recall(top[:, :10], rows, columns),
            "forget_recall@20": metrics.forget_recall(top, rows, columns),
            "membership_auc_scores": auc["scores"],
            "membership_auc_mapping": auc["mapping"],
            "sensitive_exposure@10": None
            if sensitive is None
            else metrics.exposure(top[np.isin(self.users, users), :10], sensitive),
            "spam_hit@10": None if targets is None else metrics.target_hit_rate(top[:, :10], targets, ~mask),
        }

    def _utility(self, arm, loaders):
        """RecBole's metrics of all users, those who forget, and the others."""
        results = {
            name: self.study.evaluate(arm.model, loader) for name, loader in loaders.items() if loader is not None
        }
        return {f"{name}_{key}": float(value) for name, result in results.items() for key, value in result.items()}


def _ratios(utility, reference):
    """Each metric of all users, divided by the retrained model's."""
    return {
        f"ratio_{key.removeprefix('test_')}": value / reference[key] if reference[key] else None
        for key, value in utility.items()
        if key.startswith("test_")
    }


def _efficiency(arm, retrained):
    figures = metrics.request_seconds(arm.seconds) if arm.seconds else {}
    fit = np.mean(retrained.seconds)
    total = figures.get("total")
    return {
        "seconds_p50": figures.get("p50"),
        "seconds_p90": figures.get("p90"),
        "seconds_total": total,
        "seconds_io": _io_seconds(arm),
        "retraining_seconds": fit * len(arm.seconds),
        "speedup": fit * len(arm.seconds) / total if total else None,
        "peak_bytes": arm.peak_bytes,
    }


def _rows_of(some_users, users, items):
    """Of pairs (user, item) those of ``some_users`` (ascending): places of the users there, and the items."""
    place = np.minimum(np.searchsorted(some_users, users), len(some_users) - 1)
    there = some_users[place] == users
    return place[there], items[there]


def _history(eval_data, shape):
    """What RecBole masks, CSR [n_users, n_items]: items of this part and those before, but for the positives."""
    used, positives = eval_data._sampler.used_ids, eval_data.uid2positive_item
    rows = [
        list(items if positives[user] is None else items - set(positives[user].tolist()))
        for user, items in enumerate(used)
    ]
    indptr = np.append(0, np.cumsum([len(row) for row in rows]))
    indptr = np.append(indptr, np.full(shape[0] - len(rows), indptr[-1]))
    indices = np.array([item for row in rows for item in row], np.int64)
    return sp.csr_matrix((np.ones(len(indices), np.float32), indices, indptr), shape=shape)


def _io_seconds(arm):
    """Seconds of reading the arm's model from a file and writing it back, once."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.pth"
        started = perf_counter()
        arm.engine.save(path)
        torch.load(path, map_location="cpu", weights_only=False)
        return perf_counter() - started
