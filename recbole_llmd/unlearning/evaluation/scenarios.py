"""The scenarios of an evaluation: what is to be forgotten, in which requests, by settings and seed."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from logging import getLogger
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray
from recbole.config import Config
from recbole.data.dataset import Dataset

from recbole_llmd.atomic_write import atomic_write
from recbole_llmd.errors import SettingsError
from recbole_llmd.unlearning.evaluation.forget_sets import BUILDERS, active_users
from recbole_llmd.unlearning.evaluation.metrics import Pairs
from recbole_llmd.unlearning.request import Request


@dataclass(frozen=True, eq=False)
class Scenario:
    """Requests to forget, in order, and what they are about. All ids are internal.

    Attributes:
        name: ``unlearn_scenario``.
        group: ``unlearn_group`` in ``"users"``, else None.
        ratio: the share of ``unlearn_ratio`` it was drawn by, or None where no share decides.
        seed: the seed of its draws.
        requests: to forget, in the order in which they are answered.
        checkpoints: numbers of requests done at which the arms are compared; ascending, the last is all.
        injected: what the original model is trained on beside the dataset, a request to learn, or None. Spam users
            have the ids that follow the dataset's.
        sensitive: the sensitive items [n], or None.
        targets: the items [n] that spam pushes, or None.

    >>> request = Request("forget", np.array([3, 2, 3]), np.array([1, 1, 2]))
    >>> scenario = Scenario("users", "core", 0.05, 2, [request], [1])
    >>> scenario.label, scenario.interactions, scenario.users.tolist()
    ('users-core-0.05-seed2', 3, [2, 3])
    """

    name: str
    group: str | None
    ratio: float | None
    seed: int
    requests: list[Request] = field(repr=False)
    checkpoints: list[int]
    injected: Request | None = field(default=None, repr=False)
    sensitive: NDArray[np.int64] | None = field(default=None, repr=False)
    targets: NDArray[np.int64] | None = field(default=None, repr=False)

    @property
    def users(self) -> NDArray[np.int64]:
        """The users concerned, ascending [n]."""
        return np.unique(self.pairs[0])

    @property
    def pairs(self) -> Pairs:
        """All pairs to forget, in order: (users [n], items [n])."""
        return (
            np.concatenate([request.users for request in self.requests]),
            np.concatenate([request.items for request in self.requests]),
        )

    @property
    def label(self) -> str:
        """Name for files, such as ``users-random-0.05-seed2``."""
        words = [self.name, self.group, self.ratio, f"seed{self.seed}"]
        return "-".join(str(word) for word in words if word is not None)

    @property
    def interactions(self) -> int:
        """The number of pairs to forget."""
        return sum(map(len, self.requests))


def scenarios(config: Config, X: sp.csr_matrix, dataset: Dataset, known: sp.csr_matrix) -> list[Scenario]:
    """The scenarios of a run, one for each ratio and seed. Equal settings and data give equal ones.

    The sets of one seed in ``users`` and ``interactions`` are nested: a larger ratio's has all of a smaller one's.

    Args:
        config: the run's Config, whose keys ``unlearn_...`` are described in ``properties/model/IMCorrect.yaml``.
        X: the training interactions, canonical CSR [n_users, n_items], by internal ids.
        dataset: the RecBole dataset that knows the tokens.
        known: the interactions of all splits, CSR [n_users, n_items]; injected noise is none of them.

    Returns:
        list of Scenario: ratios that give less than one user (in ``noise``, interaction) are left out with a warning;
            in ``interactions`` they give one.

    Raises:
        SettingsError: if no ratio gives one.
        LLMDError: if the data lack what the scenario needs.
    """
    name = config["unlearn_scenario"]
    draw = BUILDERS[name](config, X, dataset, known)
    group = config["unlearn_group"] if name == "users" else None
    shares = config["unlearn_checkpoints"] or ([0.25, 0.5, 0.75, 1.0] if name == "sensitive" else [1.0])
    drawn = []
    for ratio, count in _counts(config, X):
        for seed in _listed(config["unlearn_seeds"]):
            forget_set = draw(np.random.default_rng([seed, zlib.crc32(name.encode())]), count)
            checkpoints = _checkpoints(_listed(shares), len(forget_set.requests))
            drawn.append(Scenario(name, group, ratio, seed, checkpoints=checkpoints, **vars(forget_set)))
            _log(drawn[-1])
    return drawn


def write_forget_set(path: str | Path, scenario: Scenario, dataset: Dataset) -> None:
    """Write a scenario's pairs, in order, as an atomic file that ``unlearn_forget_file`` and ``--forget-file`` take.

    Spam users, whom the dataset does not know, have the tokens of the scenario's ``injected``: ``spam-1``, ...
    """
    config = dataset.config
    fields, separator = (config["USER_ID_FIELD"], config["ITEM_ID_FIELD"]), config["field_separator"]
    names, items = (dataset.field2id_token[field] for field in fields)
    injected = scenario.injected.new_users if scenario.injected is not None else ()
    lines = [separator.join(f"{field}:token" for field in fields)]
    for user, item in zip(*(ids.tolist() for ids in scenario.pairs)):
        name = names[user] if user < len(names) else injected[user - len(names)]
        lines.append(f"{name}{separator}{items[item]}")
    with atomic_write(path) as temporary:
        temporary.write_text("\n".join(lines) + "\n", encoding=config["encoding"])


# --- counts -----------------------------------------------------------------------------------------------------------


def _listed(value: Any) -> Sequence[Any]:
    return value if isinstance(value, (list, tuple)) else [value]


def _counts(config: Config, X: sp.csr_matrix) -> list[tuple[float | None, int]]:
    """Each ratio, and the number of users or interactions that it stands for; (None, 0) where no ratio decides."""
    name = config["unlearn_scenario"]
    if name in ("sensitive", "file"):
        return [(None, 0)]
    total, unit = (len(active_users(X)), "users") if name in ("users", "spam") else (X.nnz, "interactions")
    shares = [(ratio, round(ratio * total, 6)) for ratio in _listed(config["unlearn_ratio"])]
    if name == "interactions":
        return _at_least_one(shares, total)
    for ratio, count in shares:
        if count < 1:
            getLogger().warning(f"unlearn_ratio = {ratio} of {total:,} {unit} is {count:.2g}: skipped")
    counts = [(ratio, round(count)) for ratio, count in shares if count >= 1]
    if not counts:
        raise SettingsError(
            f"unlearn_ratio = {config['unlearn_ratio']}: gives less than one of {total:,} {unit}. "
            f"Give at least 1/{total}."
        )
    return counts


def _at_least_one(shares: Sequence[tuple[float, float]], total: int) -> list[tuple[float | None, int]]:
    """The counts of shares of the interactions, none below 1; shares that come to the same count are one, the first."""
    counts: dict[int, float] = {}
    for ratio, share in shares:
        if share < 1:
            getLogger().warning(f"unlearn_ratio = {ratio} of {total:,} interactions is {share:.2g}: one is drawn")
        count = max(1, round(share))
        if count in counts:
            getLogger().warning(f"unlearn_ratio = {ratio}: the same number of interactions as {counts[count]}, skipped")
        counts.setdefault(count, ratio)
    return [(ratio, count) for count, ratio in counts.items()]


def _checkpoints(shares: Sequence[float], requests: int) -> list[int]:
    return sorted({requests, *(max(1, round(share * requests)) for share in shares)})


def _log(scenario: Scenario) -> None:
    what = scenario.name + (f" ({scenario.group})" if scenario.group else "")
    ratio = "" if scenario.ratio is None else f", ratio {scenario.ratio}"
    getLogger().info(
        f"unlearning scenario {what}{ratio}, seed {scenario.seed}: {len(scenario.users):,} users, "
        f"{scenario.interactions:,} interactions, {len(scenario.requests):,} requests"
    )
