"""The figures of a comparison from its cells' records: means, differences to the baseline, breakdowns, notes."""

from dataclasses import dataclass, field

import numpy as np

from recbole_llmd.comparison import statistics
from recbole_llmd.comparison.runner import values_per_user
from recbole_llmd.report.table import spread

GROUPS = 4
NEVER = "never in training"
LLM = "llm/"  # in front of the names of what the LLM of LLMD4Rec reached


@dataclass
class Arm:
    """A line of the tables: what one variant serves on one dataset, or the LLM at its side.

    Attributes:
        records (dict): the finished cell's record for each seed.
        users (dict): for each seed what is known of every test user (arrays ``[n_users]``), metrics included.
    """

    dataset: str
    variant: str
    llm: bool
    records: dict = field(default_factory=dict)
    users: dict = field(default_factory=dict)

    @property
    def name(self):
        return f"{self.variant} · LLM" if self.llm else self.variant

    def tested(self, metric):
        """For each seed the pair (user ids, values) of :mod:`.statistics`."""
        name = f"{LLM}{metric}" if self.llm else metric
        return {seed: (users["user"], users[name]) for seed, users in self.users.items()}

    def means(self, metric):
        """The metric's mean over the users for each seed, in the order of the seeds."""
        return [float(np.mean(values, dtype=np.float64)) for _, values in self.tested(metric).values()]

    def valid(self, metric):
        """The best validation result for each seed."""
        results = [record["llm"] if self.llm else record for record in self.records.values()]
        return [(result["best_valid_result"] or {}).get(metric) for result in results]

    def cost(self, key):
        """A cost for each seed; the LLM's is contained in its variant's."""
        return [] if self.llm else [record["cost"][key] for record in self.records.values()]


def arms(cells, records, out):
    """The arms of the finished cells, in the order of the cells."""
    found = {}
    for cell, record in zip(cells, records, strict=True):
        if record["status"] != "finished":
            continue
        users = values_per_user(out, cell)
        for llm in (False, True) if any(name.startswith(LLM) for name in users) else (False,):
            arm = found.setdefault((cell.dataset, cell.variant, llm), Arm(cell.dataset, cell.variant, llm))
            arm.records[cell.seed], arm.users[cell.seed] = record, users
    return list(found.values())


def rows(found, metrics):
    """One row for each arm, every figure a ``Spread`` over the seeds; the validation figure is the first metric's."""
    return [
        {
            "dataset": arm.dataset,
            "variant": arm.name,
            "seeds": len(arm.records),
            **{metric: spread(arm.means(metric)) for metric in metrics},
            "valid": spread(arm.valid(metrics[0])),
            "train_seconds": spread(arm.cost("train_seconds")),
            "serving_seconds": spread(value * 1e-6 for value in arm.cost("serving_microseconds")),
            "peak_bytes": spread(arm.cost("peak_bytes")),
        }
        for arm in found
    ]


def reference(arm, found, baseline):
    """The arm that ``arm`` is compared with: the baseline's, an LLM with the baseline's LLM where there is one."""
    on_side = [other for other in found if other.dataset == arm.dataset and other.variant == baseline]
    same = [other for other in on_side if other.llm == arm.llm]
    return next(iter(same or on_side), None)


def differences(found, baseline, metrics):
    """The difference of every arm to its reference in every metric, with the tests of :mod:`.statistics`.

    ``p_users`` and ``p_seeds`` are corrected (Holm) for the number of arms compared in the same metric.
    """
    rows = []
    for metric in metrics:
        family = [
            _difference(arm, other, metric)
            for arm in found
            if (other := reference(arm, found, baseline)) not in (None, arm)
        ]
        for test in ("users", "seeds"):
            adjusted = statistics.holm([row[f"p_{test}_uncorrected"] for row in family])
            for row, p in zip(family, adjusted, strict=True):
                row[f"p_{test}"] = p
        rows += family
    return rows


def _difference(arm, other, metric):
    ours, theirs = arm.tested(metric), other.tested(metric)
    if len(_vocabularies([arm, other])) > 1:  # one's user 7 is not the other's
        ours = {}
    by_user = statistics.user_differences(ours, theirs)
    by_seed = statistics.seed_differences(ours, theirs)
    base = np.mean([other.means(metric)[list(theirs).index(seed)] for seed in theirs if seed in ours] or [np.nan])
    return {
        "dataset": arm.dataset,
        "variant": arm.name,
        "reference": other.name,
        "metric": metric,
        "difference": float(by_seed.mean()) if len(by_seed) else None,
        "relative": float(by_seed.mean() / base) if len(by_seed) and base else None,
        "users": len(by_user),
        "seeds": len(by_seed),
        "p_users_uncorrected": statistics.paired_test(by_user),
        "p_seeds_uncorrected": statistics.paired_test(by_seed),
    }


def breakdown(found, metric, key, zero=None):
    """The metric for groups of test users, by ``history`` or ``popularity``: one dict per dataset, arm and group."""
    rows = []
    for dataset in dict.fromkeys(arm.dataset for arm in found):
        on_it = [arm for arm in found if arm.dataset == dataset]
        known = next(iter(on_it[0].users.values()))  # the same users are grouped in every arm
        for group, members in statistics.groups(known[key], GROUPS, zero):
            ids = known["user"][members]
            for arm in on_it:
                inside = [values[np.isin(users, ids)] for users, values in arm.tested(metric).values()]
                rows.append(
                    {
                        "dataset": dataset,
                        "variant": arm.name,
                        key: group,
                        "users": len(ids),
                        metric: spread(float(np.mean(values)) for values in inside if len(values)),
                    }
                )
    return rows


def notes(cells, records, found, mask_history):
    """What a reader must know to judge the figures: failures, and where the arms were not measured alike."""
    said = []
    if mask_history:
        said.append(
            "There are models in the list that are no sequential ones: the items of a user's history were left out of "
            "the ranking of every model, as RecBole does for general models alone."
        )
    for cell, record in zip(cells, records, strict=True):
        if record["status"] == "failed":
            reason = record["error"][-1] if record["error"] else f"exit status {record['exit_status']}"
            said.append(f"Failed: {cell.dataset}, {cell.variant}, seed {cell.seed}: {reason}")
    for dataset in dict.fromkeys(arm.dataset for arm in found):
        on_it = [arm for arm in found if arm.dataset == dataset]
        if len(_vocabularies(on_it)) > 1:
            said.append(
                f"{dataset}: the variants do not have the same users and items (load_col or filters differ); those "
                "that differ are not compared."
            )
        elif len({_split(users) for arm in on_it for users in arm.users.values()}) > 1:
            said.append(
                f"{dataset}: not all variants are tested on the same users (sequential models have no test for users "
                "with fewer than three interactions). Differences and tests are those of the users in common; set "
                'user_inter_num_interval: "[3,inf)" to make the means comparable too.'
            )
    if any(record["cost"]["train_seconds"] is None for arm in found for record in arm.records.values()):
        said.append("Training seconds leave out the cells that were interrupted and went on later.")
    commits = {record["commit"] for arm in found for record in arm.records.values()}
    if len(commits) > 1:
        said.append(f"The cells were run at different commits: {', '.join(sorted(commits))}.")
    return said


def _vocabularies(arms):
    return {record["data"]["vocabulary"] for arm in arms for record in arm.records.values()}


def _split(users):
    order = np.argsort(users["user"])
    return users["user"][order].tobytes(), users["target"][order].tobytes()
