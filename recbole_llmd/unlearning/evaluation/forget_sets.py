"""The forget sets of the scenarios: who withdraws what, drawn from the training interactions.

Each scenario has one function here, which reads what all its draws share, and returns ``draw(rng, count)``, which gives
a :class:`ForgetSet`.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from logging import getLogger
from typing import TypeAlias

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray
from recbole.config import Config
from recbole.data.dataset import Dataset

from recbole_llmd.data.atomic_file import read_atomic_file
from recbole_llmd.data.item_text import item_file
from recbole_llmd.errors import SettingsError
from recbole_llmd.unlearning.forget_file import read_forget_file
from recbole_llmd.unlearning.identifiers import Identifiers
from recbole_llmd.unlearning.request import Request

UNPOPULAR = 0.25  # share of the items, from the rarest on, that spam targets are drawn from


@dataclass(frozen=True, eq=False)
class ForgetSet:
    """One draw of a scenario; the fields are those of :class:`~recbole_llmd.unlearning.evaluation.scenarios.Scenario`.

    >>> forget_set = ForgetSet([Request("forget", np.array([3]), np.array([1]))])
    >>> forget_set.injected is forget_set.sensitive is forget_set.targets is None
    True
    """

    requests: list[Request]
    injected: Request | None = None
    sensitive: NDArray[np.int64] | None = None
    targets: NDArray[np.int64] | None = None


Draw: TypeAlias = Callable[[np.random.Generator, int], ForgetSet]


def active_users(X: sp.csr_matrix) -> NDArray[np.int64]:
    """The users with interactions, ascending.

    >>> active_users(sp.csr_matrix([[0, 0], [0, 1], [0, 0]]))
    array([1])
    """
    return np.flatnonzero(np.diff(X.indptr))


def _users(config: Config, X: sp.csr_matrix, dataset: Dataset, known: sp.csr_matrix) -> Draw:
    """Users leave: those with the most interactions (core), the fewest (edge), or any (CURE4Rec, arXiv 2408.14393)."""
    active, group = active_users(X), config["unlearn_group"]
    lengths = np.diff(X.indptr)

    def draw(rng: np.random.Generator, count: int) -> ForgetSet:
        users = rng.permutation(active)
        if group != "random":  # a stable sort leaves ties in the order of the seed
            users = users[np.argsort(lengths[users] * (-1 if group == "core" else 1), kind="stable")]
        return ForgetSet(_of_users(X, users[:count], config["unlearn_batch"]))

    return draw


def _interactions(config: Config, X: sp.csr_matrix, dataset: Dataset, known: sp.csr_matrix) -> Draw:
    """Single interactions are withdrawn, each equally likely."""
    owners = np.repeat(np.arange(X.shape[0]), np.diff(X.indptr))

    def draw(rng: np.random.Generator, count: int) -> ForgetSet:
        chosen = rng.permutation(X.nnz)[:count]
        return ForgetSet(_split(owners[chosen], X.indices[chosen], _cuts(count, config["unlearn_batch"])))

    return draw


def _sensitive(config: Config, X: sp.csr_matrix, dataset: Dataset, known: sp.csr_matrix) -> Draw:
    """Each user with sensitive items withdraws all of them, one user a request (ERASE, arXiv 2603.08341)."""
    items = _items_with(config, dataset)
    sensitive = X @ sp.diags(np.isin(np.arange(X.shape[1]), items).astype(X.dtype), format="csr")
    sensitive.eliminate_zeros()
    users = active_users(sensitive)
    if not len(users):
        raise SettingsError(
            f"unlearn_sensitive = {config['unlearn_sensitive']}: no user has one of the {len(items)} items "
            "in the training interactions. Choose another value."
        )
    return lambda rng, count: ForgetSet(_of_users(sensitive, rng.permutation(users), 1), sensitive=items)


def _items_with(config: Config, dataset: Dataset) -> NDArray[np.int64]:
    """The items, ascending, that have the value of ``unlearn_sensitive`` in its field: as all of it, or as a word."""
    ((name, given),) = config["unlearn_sensitive"].items()
    setting, path = f"unlearn_sensitive = {config['unlearn_sensitive']}", item_file(config)
    if not os.path.isfile(path):
        raise SettingsError(
            f"{setting}: needs the file {path}, which does not exist. Add it, or choose another scenario."
        )
    frame, _ = read_atomic_file(path, config)
    for column in (config["ITEM_ID_FIELD"], name):
        if column not in frame.columns:
            raise SettingsError(f"{setting}: {path} has no field {column!r}; it has {', '.join(frame.columns)}.")
    ids, value = dataset.field2token_id[config["ITEM_ID_FIELD"]], str(given)
    items: set[int] = set()
    values: set[str] = set()
    for token, text in zip(frame[config["ITEM_ID_FIELD"]], frame[name]):
        words = {text, *text.split(config["seq_separator"])}
        values |= words
        if value in words and token in ids:
            items.add(ids[token])
    if not items:
        examples = ", ".join(sorted(values - {""})[:20])
        raise SettingsError(f"{setting}: no item of the dataset has it. Values of {name}: {examples}, ...")
    return np.array(sorted(items), np.int64)


def _spam(config: Config, X: sp.csr_matrix, dataset: Dataset, known: sp.csr_matrix) -> Draw:
    """Fake users push unpopular items beside the most popular ones; then they are detected and forgotten.

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

    def draw(rng: np.random.Generator, count: int) -> ForgetSet:
        shuffled = rng.permutation(items)  # ties in popularity in the order of the seed
        rarest = shuffled[np.argsort(popularity[shuffled], kind="stable")][:rare]
        targets = np.sort(rng.choice(rarest, targets_of, replace=False))
        others = shuffled[np.isin(shuffled, targets, invert=True)]
        fillers = others[np.argsort(-popularity[others], kind="stable")][:fillers_of]
        each = targets_of + fillers_of
        users = np.repeat(X.shape[0] + np.arange(count), each)
        profiles = np.tile(np.append(targets, fillers), count)
        requests = _split(users, profiles, _cuts(count, config["unlearn_batch"]) * each)
        tokens = tuple(f"spam-{number}" for number in range(1, count + 1))
        return ForgetSet(requests, Request("learn", users, profiles, new_users=tokens), targets=targets)

    return draw


def _noise(config: Config, X: sp.csr_matrix, dataset: Dataset, known: sp.csr_matrix) -> Draw:
    """Interactions that nobody had are injected, any such pair equally likely; then they are detected and forgotten."""
    n_users, n_items = X.shape[0] - 1, X.shape[1] - 1  # without the padding
    known_users, known_items = known.nonzero()
    taken = np.unique((known_users.astype(np.int64) - 1) * n_items + known_items - 1)
    free_before = taken - np.arange(len(taken))  # the number of free pairs below each taken one
    free = n_users * n_items - len(taken)

    def draw(rng: np.random.Generator, count: int) -> ForgetSet:
        if count > free:
            raise SettingsError(
                f"unlearn_ratio = {config['unlearn_ratio']}: {count:,} interactions to inject, but only {free:,} "
                "pairs of a user and an item are not in the data. Give a smaller ratio."
            )
        ranks = rng.choice(free, count, replace=False)
        pairs = ranks + np.searchsorted(free_before, ranks, side="right")
        users, items = pairs // n_items + 1, pairs % n_items + 1
        requests = _split(users, items, _cuts(count, config["unlearn_batch"]))
        return ForgetSet(requests, Request("learn", users, items))

    return draw


def _file(config: Config, X: sp.csr_matrix, dataset: Dataset, known: sp.csr_matrix) -> Draw:
    """The users or interactions that a file names, in its order; those that X does not have are left out."""
    path, batch = config["unlearn_forget_file"], config["unlearn_batch"]
    user_tokens, item_tokens = read_forget_file(path, config)
    users = Identifiers("user", X.shape[0], dataset, config["USER_ID_FIELD"]).to_internal(user_tokens)[0]
    if item_tokens is None:
        users = _first_of_each(users)
        present = np.diff(X.indptr)[users] > 0
        requests = _of_users(X, users[present], batch)
    else:
        items = Identifiers("item", X.shape[1], dataset, config["ITEM_ID_FIELD"]).to_internal(item_tokens)[0]
        pairs = _first_of_each(users * X.shape[1] + items)
        users, items = pairs // X.shape[1], pairs % X.shape[1]
        present = np.asarray(X[users, items]).ravel() != 0
        requests = _split(users[present], items[present], _cuts(int(present.sum()), batch))
    unit = "users" if item_tokens is None else "pairs"
    missing = f"unlearn_forget_file = {path!r}: {(~present).sum():,} of {len(present):,} {unit}"
    problem = f"{missing} have nothing to forget in the training interactions"
    if not present.any():
        raise SettingsError(f"{problem}. Name others.")
    if not present.all():
        getLogger().warning(f"{problem}: skipped")
    return lambda rng, count: ForgetSet(requests)


BUILDERS: dict[str, Callable[[Config, sp.csr_matrix, Dataset, sp.csr_matrix], Draw]] = {
    "users": _users,
    "interactions": _interactions,
    "sensitive": _sensitive,
    "spam": _spam,
    "noise": _noise,
    "file": _file,
}


# --- requests ---------------------------------------------------------------------------------------------------------


def _cuts(number: int, batch: int) -> NDArray[np.int64]:
    """Where requests of ``batch`` each begin among ``number``, the first left out."""
    return np.arange(batch or number, number, batch or number)


def _split(users: NDArray[np.int64], items: NDArray[np.int64], cuts: NDArray[np.int64]) -> list[Request]:
    """Requests to forget these pairs, each up to the next cut."""
    pairs = zip(np.split(users.astype(np.int64), cuts), np.split(items.astype(np.int64), cuts))
    return [Request("forget", *pair) for pair in pairs]


def _of_users(X: sp.csr_matrix, users: NDArray[np.int64], batch: int) -> list[Request]:
    """Requests of ``batch`` users each, in this order, with all that they have in X."""
    profiles = X[users]
    cuts = profiles.indptr[_cuts(len(users), batch)]
    return _split(np.repeat(users, np.diff(profiles.indptr)), profiles.indices, cuts)


def _first_of_each(values: NDArray[np.int64]) -> NDArray[np.int64]:
    return values[np.sort(np.unique(values, return_index=True)[1])]
