"""The scenarios of an evaluation: what is to be forgotten, in which requests, by settings and seed."""

import zlib
from dataclasses import dataclass, field
from logging import getLogger

import numpy as np

from recbole_llmd.atomic_write import atomic_write
from recbole_llmd.errors import SettingsError
from recbole_llmd.unlearning.evaluation.forget_sets import BUILDERS, active_users


@dataclass(frozen=True, eq=False)
class Scenario:
    """Requests to forget, in order, and what they are about. All ids are internal.

    Attributes:
        name: ``unlearn_scenario``.
        group: ``unlearn_group`` in ``"users"``, else None.
        ratio: the share of ``unlearn_ratio`` it was drawn by, or None where no share decides.
        seed: the seed of its draws.
        requests: pairs (users [n], items [n]), int64, for each request.
        checkpoints: numbers of requests done at which the arms are compared; ascending, the last is all.
        injected: pairs (users [n], items [n]) that the original model is trained on beside the dataset, or None.
            Spam users have the ids that follow the dataset's.
        sensitive: the sensitive items [n], or None.
        targets: the items [n] that spam pushes, or None.
    """

    name: str
    group: str | None
    ratio: float | None
    seed: int
    requests: list = field(repr=False)
    checkpoints: list
    injected: tuple | None = field(default=None, repr=False)
    sensitive: np.ndarray | None = field(default=None, repr=False)
    targets: np.ndarray | None = field(default=None, repr=False)

    @property
    def users(self):
        """The users concerned, ascending [n]."""
        return np.unique(np.concatenate([users for users, _ in self.requests]))

    @property
    def pairs(self):
        """All pairs to forget, in order: (users [n], items [n])."""
        return tuple(np.concatenate(part) for part in zip(*self.requests))

    @property
    def label(self):
        """Name for files, such as ``users-random-0.05-seed2``."""
        parts = [self.name, self.group, self.ratio, f"seed{self.seed}"]
        return "-".join(str(part) for part in parts if part is not None)

    @property
    def interactions(self):
        """The number of pairs to forget."""
        return sum(len(users) for users, _ in self.requests)


def scenarios(config, X, dataset, known):
    """The scenarios of a run, one for each ratio and seed. Equal settings and data give equal ones.

    The sets of one seed in ``users`` and ``interactions`` are nested: a larger ratio's has all of a smaller one's.

    Args:
        config: the run's Config, whose keys ``unlearn_...`` are described in ``properties/model/IMCorrect.yaml``.
        X: the training interactions, canonical CSR [n_users, n_items], by internal ids.
        dataset: the RecBole dataset that knows the tokens.
        known: the interactions of all splits, CSR [n_users, n_items]; injected noise is none of them.

    Returns:
        list of Scenario: ratios that give less than one user or interaction are left out, with a warning.

    Raises:
        SettingsError: if no ratio gives one, or the data lack what the scenario needs.
    """
    name = config["unlearn_scenario"]
    draw = BUILDERS[name](config, X, dataset, known)
    group = config["unlearn_group"] if name == "users" else None
    shares = config["unlearn_checkpoints"] or ([0.25, 0.5, 0.75, 1.0] if name == "sensitive" else [1.0])
    made = []
    for ratio, count in _counts(config, X):
        for seed in _listed(config["unlearn_seeds"]):
            parts = draw(np.random.default_rng([seed, zlib.crc32(name.encode())]), count)
            at = _checkpoints(_listed(shares), len(parts["requests"]))
            made.append(Scenario(name=name, group=group, ratio=ratio, seed=seed, checkpoints=at, **parts))
            _log(made[-1])
    return made


def write_forget_set(path, scenario, dataset):
    """Write a scenario's pairs, in order, as an atomic file that ``unlearn_forget_file`` and ``--forget-file`` take.

    Spam users, whom the dataset does not know, are ``spam-1``, ``spam-2``, ...
    """
    config = dataset.config
    fields = config["USER_ID_FIELD"], config["ITEM_ID_FIELD"]
    names, items = (dataset.field2id_token[field] for field in fields)
    lines = [config["field_separator"].join(f"{field}:token" for field in fields)]
    for users_of, items_of in scenario.requests:
        for user, item in zip(users_of.tolist(), items_of.tolist()):
            name = names[user] if user < len(names) else f"spam-{user - len(names) + 1}"
            lines.append(f"{name}{config['field_separator']}{items[item]}")
    with atomic_write(path) as temporary:
        temporary.write_text("\n".join(lines) + "\n", encoding=config["encoding"])


# --- counts -----------------------------------------------------------------------------------------------------------


def _listed(value):
    return value if isinstance(value, (list, tuple)) else [value]


def _counts(config, X):
    """Each ratio, and the number of users or interactions that it stands for; (None, None) where no ratio decides."""
    name = config["unlearn_scenario"]
    if name in ("sensitive", "file"):
        return [(None, None)]
    total, unit = (len(active_users(X)), "users") if name in ("users", "spam") else (X.nnz, "interactions")
    counts = [(ratio, round(ratio * total, 6)) for ratio in _listed(config["unlearn_ratio"])]
    for ratio, count in counts:
        if count < 1:
            getLogger().warning(f"unlearn_ratio = {ratio} of {total:,} {unit} is {count:.2g}: skipped")
    counts = [(ratio, round(count)) for ratio, count in counts if count >= 1]
    if not counts:
        raise SettingsError(
            f"unlearn_ratio = {config['unlearn_ratio']}: gives less than one of {total:,} {unit}. "
            f"Give at least 1/{total}."
        )
    return counts


def _checkpoints(shares, requests):
    return sorted({requests, *(max(1, round(share * requests)) for share in shares)})


def _log(scenario):
    what = scenario.name + (f" ({scenario.group})" if scenario.group else "")
    ratio = "" if scenario.ratio is None else f", ratio {scenario.ratio}"
    getLogger().info(
        f"unlearning scenario {what}{ratio}, seed {scenario.seed}: {len(scenario.users):,} users, "
        f"{scenario.interactions:,} interactions, {len(scenario.requests):,} requests"
    )
