"""The forget sets of the scenarios: who withdraws what, drawn from the training interactions.

Each scenario has one function here, which reads what all its draws share, and returns ``draw(rng, count)``: the fields
``requests``, ``injected``, ``sensitive`` and ``targets`` of a
:class:`~recbole_llmd.unlearning.evaluation.scenarios.Scenario`.
"""

import os
from logging import getLogger

import numpy as np
import scipy.sparse as sp

from recbole_llmd.data.atomic_file import read_atomic_file
from recbole_llmd.data.item_text import item_file
from recbole_llmd.errors import SettingsError
from recbole_llmd.unlearning.forget_file import read_forget_file
from recbole_llmd.unlearning.identifiers import Identifiers

UNPOPULAR = 0.25  # share of the items, from the rarest on, that spam targets are drawn from


def active_users(X):
    """The users with interactions, ascending."""
    return np.flatnonzero(np.diff(X.indptr))


def _users(config, X, dataset, known):
    """Users leave: those with the most interactions (core), the fewest (edge), or any (CURE4Rec, arXiv 2408.14393)."""
    active, group = active_users(X), config["unlearn_group"]
    lengths = np.diff(X.indptr)

    def draw(rng, count):
        users = rng.permutation(active)
        if group != "random":  # a stable sort leaves ties in the order of the seed
            users = users[np.argsort(lengths[users] * (-1 if group == "core" else 1), kind="stable")]
        return {"requests": _whole_users(X, users[:count], config["unlearn_batch"])}

    return draw


def _interactions(config, X, dataset, known):
    """Single interactions are withdrawn, each equally likely."""
    owners = np.repeat(np.arange(X.shape[0]), np.diff(X.indptr))

    def draw(rng, count):
        chosen = rng.permutation(X.nnz)[:count]
        return {"requests": _split(owners[chosen], X.indices[chosen], _cuts(count, config["unlearn_batch"]))}

    return draw


def _sensitive(config, X, dataset, known):
    """Each user with sensitive items withdraws all of them, one user a request (ERASE, arXiv 2603.08341)."""
    items = _items_with(config, dataset)
    theirs = X @ sp.diags(np.isin(np.arange(X.shape[1]), items).astype(X.dtype), format="csr")
    theirs.eliminate_zeros()
    users = active_users(theirs)
    if not len(users):
        raise SettingsError(
            f"unlearn_sensitive = {config['unlearn_sensitive']}: no user has one of the {len(items)} items "
            "in the training interactions. Choose another value."
        )
    return lambda rng, count: {"requests": _whole_users(theirs, rng.permutation(users), 1), "sensitive": items}


def _items_with(config, dataset):
    """The items, ascending, that have the value of ``unlearn_sensitive`` in its field, whole or as a word."""
    ((name, value),) = config["unlearn_sensitive"].items()
    said, path = f"unlearn_sensitive = {config['unlearn_sensitive']}", item_file(config)
    if not os.path.isfile(path):
        raise SettingsError(f"{said}: needs the file {path}, which does not exist. Add it, or take another scenario.")
    frame, _ = read_atomic_file(path, config)
    for column in (config["ITEM_ID_FIELD"], name):
        if column not in frame.columns:
            raise SettingsError(f"{said}: {path} has no field {column!r}; it has {', '.join(frame.columns)}.")
    ids, value, items, words = dataset.field2token_id[config["ITEM_ID_FIELD"]], str(value), set(), set()
    for token, text in zip(frame[config["ITEM_ID_FIELD"]], frame[name]):
        has = {text, *text.split(config["seq_separator"])}
        words |= has
        if value in has and token in ids:
            items.add(ids[token])
    if not items:
        some = ", ".join(sorted(words - {""})[:20])
        raise SettingsError(f"{said}: no item of the dataset has it. Values of {name}: {some}, ...")
    return np.array(sorted(items), np.int64)


def _spam(config, X, dataset, known):
    """Fake users push unpopular items beside the most popular ones; then they are found and forgotten.

    The bandwagon attack of Mobasher et al., Toward trustworthy recommender systems (2007): all spam users have the
    same fillers, the most popular items, whose many real users then seem to be close to the targets. Targets come
    from the rarest quarter of the items that somebody has in X: an item that nobody has, has no scores that could
    change, and a choice by the test set would let the test set into the training data.
    """
    popularity = np.bincount(X.indices, minlength=X.shape[1])
    items = np.flatnonzero(popularity)
    targets_of, fillers_of = config["unlearn_spam_targets"], config["unlearn_spam_fillers"]
    rare = int(UNPOPULAR * len(items))
    for key, most in (("unlearn_spam_targets", rare), ("unlearn_spam_fillers", len(items) - targets_of)):
        if config[key] > most:
            raise SettingsError(
                f"{key} = {config[key]}: at most {max(most, 0)} here: {len(items)} items occur in the training "
                f"interactions, and targets are among the rarest {rare}."
            )

    def draw(rng, count):
        shuffled = rng.permutation(items)  # ties in popularity in the order of the seed
        rarest = shuffled[np.argsort(popularity[shuffled], kind="stable")][:rare]
        targets = np.sort(rng.choice(rarest, targets_of, replace=False))
        others = shuffled[np.isin(shuffled, targets, invert=True)]
        fillers = others[np.argsort(-popularity[others], kind="stable")][:fillers_of]
        each = targets_of + fillers_of
        pairs = np.repeat(X.shape[0] + np.arange(count), each), np.tile(np.append(targets, fillers), count)
        requests = _split(*pairs, _cuts(count, config["unlearn_batch"]) * each)
        return {"requests": requests, "injected": pairs, "targets": targets}

    return draw


def _noise(config, X, dataset, known):
    """Interactions that nobody had are injected, any such pair equally likely; then they are found and forgotten."""
    n_users, n_items = X.shape[0] - 1, X.shape[1] - 1  # without the padding
    users, items = known.nonzero()
    taken = np.unique((users.astype(np.int64) - 1) * n_items + items - 1)
    free_before = taken - np.arange(len(taken))  # the number of free pairs below each taken one
    free = n_users * n_items - len(taken)

    def draw(rng, count):
        if count > free:
            raise SettingsError(
                f"unlearn_ratio = {config['unlearn_ratio']}: {count:,} interactions to inject, but only {free:,} "
                "pairs of a user and an item are not in the data. Give a smaller ratio."
            )
        ranks = rng.choice(free, count, replace=False)
        pairs = ranks + np.searchsorted(free_before, ranks, side="right")
        pairs = pairs // n_items + 1, pairs % n_items + 1
        return {"requests": _split(*pairs, _cuts(count, config["unlearn_batch"])), "injected": pairs}

    return draw


def _file(config, X, dataset, known):
    """The users or interactions that a file names, in its order; those that X does not have are left out."""
    path, batch = config["unlearn_forget_file"], config["unlearn_batch"]
    users, items = read_forget_file(path, config)
    users = Identifiers("user", X.shape[0], dataset, config["USER_ID_FIELD"]).to_internal(users)[0]
    if items is None:
        users = _first_of_each(users)
        there = np.diff(X.indptr)[users] > 0
        requests = _whole_users(X, users[there], batch)
    else:
        items = Identifiers("item", X.shape[1], dataset, config["ITEM_ID_FIELD"]).to_internal(items)[0]
        pairs = _first_of_each(users * X.shape[1] + items)
        users, items = pairs // X.shape[1], pairs % X.shape[1]
        there = np.asarray(X[users, items]).ravel() != 0
        requests = _split(users[there], items[there], _cuts(int(there.sum()), batch))
    unit = "users" if items is None else "pairs"
    said = f"unlearn_forget_file = {path!r}: {(~there).sum():,} of {len(there):,} {unit}"
    if not there.any():
        raise SettingsError(f"{said} have nothing to forget in the training interactions. Name others.")
    if not there.all():
        getLogger().warning(f"{said} have nothing to forget in the training interactions: skipped")
    return lambda rng, count: {"requests": requests}


BUILDERS = {
    "users": _users,
    "interactions": _interactions,
    "sensitive": _sensitive,
    "spam": _spam,
    "noise": _noise,
    "file": _file,
}


# --- requests ---------------------------------------------------------------------------------------------------------


def _cuts(number, batch):
    """Where requests of ``batch`` each begin among ``number``, the first left out."""
    return np.arange(batch or number, number, batch or number)


def _split(users, items, cuts):
    return list(zip(np.split(users.astype(np.int64), cuts), np.split(items.astype(np.int64), cuts)))


def _whole_users(X, users, batch):
    """Requests of ``batch`` users each, in this order, with all that they have in X."""
    rows = X[users]
    cuts = rows.indptr[_cuts(len(users), batch)]
    return _split(np.repeat(users, np.diff(rows.indptr)), rows.indices, cuts)


def _first_of_each(values):
    return values[np.sort(np.unique(values, return_index=True)[1])]
