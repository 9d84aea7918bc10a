"""The figures of a comparison from its cells' records: means, differences to the baseline, breakdowns, notes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from recbole_llmd.comparison import statistics
from recbole_llmd.comparison.cell_store import CellStore, Record
from recbole_llmd.comparison.experiment import Cell, llm_row
from recbole_llmd.comparison.runner import failure
from recbole_llmd.comparison.statistics import Array, UserValues
from recbole_llmd.report.table import spread

Row = dict[str, Any]  # of a table: by column, a name, a count, a figure or a Spread of figures

GROUPS = 4
NEVER = "never in training"
LLM = "llm/"  # in front of the names of what the LLM at the side of a served model reached


@dataclass
class VariantResult:
    """What one variant serves on one dataset, or what the LLM reached that was trained at its side.

    Attributes:
        llm: whether it is the LLM's.
        records: the finished cell's record for each seed.
        users: for each seed what is known of every test user (arrays ``[n_users]``), metrics included.

    >>> users = {"user": np.array([1, 2]), "llm/ndcg@10": np.array([0.0, 1.0])}
    >>> result = VariantResult("ml-100k", "mutual", llm=True, users={2020: users})
    >>> result.name, result.means("ndcg@10")
    ('mutual · LLM', [0.5])
    """

    dataset: str
    variant: str
    llm: bool
    records: dict[int, Record] = field(default_factory=dict)
    users: dict[int, dict[str, Array]] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """How tables and plots call it."""
        return llm_row(self.variant) if self.llm else self.variant

    def tested(self, metric: str) -> dict[int, UserValues]:
        """For each seed the pair (user ids, values) of :mod:`.statistics`."""
        name = f"{LLM}{metric}" if self.llm else metric
        return {seed: (users["user"], users[name]) for seed, users in self.users.items()}

    def means(self, metric: str) -> list[float]:
        """The metric's mean over the users for each seed, in the order of the seeds."""
        return [float(np.mean(values, dtype=np.float64)) for _, values in self.tested(metric).values()]

    def valid(self, metric: str) -> list[float | None]:
        """The best validation result for each seed."""
        results = [record["llm"] if self.llm else record for record in self.records.values()]
        return [(result["best_valid_result"] or {}).get(metric) for result in results]

    def phases(self, record: Record) -> list[Record]:
        """What the phases of this side came to in one of the records; none where a model has no phases."""
        side = "LLM" if self.llm else "CRM"
        return [phase for phase in record.get("distillation", {}).get("phases", []) if phase["side"] == side]

    def trainings(self) -> list[float | None]:
        """For each seed, how many trainings the result is the best of, by validation."""
        phases = [self.phases(record) for record in self.records.values()]
        return [sum(phase["counts"] for phase in of_seed) if of_seed else 1 for of_seed in phases]

    def cost(self, key: str) -> list[float | None]:
        """A cost for each seed; the LLM's is contained in its variant's."""
        return [] if self.llm else [record["cost"][key] for record in self.records.values()]


def variant_results(cells: Sequence[Cell], records: Sequence[Record], store: CellStore) -> list[VariantResult]:
    """The results of the finished cells, in the order of the cells."""
    results: dict[tuple[str, str, bool], VariantResult] = {}
    for cell, record in zip(cells, records, strict=True):
        if record["status"] != "finished":
            continue
        users = store.values(cell.name)
        for llm in (False, True) if any(name.startswith(LLM) for name in users) else (False,):
            place = (cell.dataset, cell.variant, llm)
            result = results.setdefault(place, VariantResult(*place))
            result.records[cell.seed], result.users[cell.seed] = record, users
    return list(results.values())


def result_rows(results: Iterable[VariantResult], metrics: Sequence[str]) -> list[Row]:
    """One row for each result: every figure a ``Spread`` over the seeds, the validation figure the first metric's."""
    return [
        {
            "dataset": result.dataset,
            "variant": result.name,
            "seeds": len(result.records),
            **{metric: spread(result.means(metric)) for metric in metrics},
            "valid": spread(result.valid(metrics[0])),
            "trainings": spread(result.trainings()).mean,
            "train_seconds": spread(result.cost("train_seconds")),
            "serving_seconds": spread(us * 1e-6 for us in result.cost("serving_microseconds") if us is not None),
            "peak_bytes": spread(result.cost("peak_bytes")),
        }
        for result in results
    ]


def reference_of(result: VariantResult, results: Iterable[VariantResult], baseline: str) -> VariantResult | None:
    """What ``result`` is compared with: the baseline's, an LLM with the baseline's LLM where there is one."""
    candidates = [other for other in results if other.dataset == result.dataset and other.variant == baseline]
    same_side = [other for other in candidates if other.llm == result.llm]
    return next(iter(same_side or candidates), None)


def compared_pairs(
    results: Sequence[VariantResult], baseline: str, tests: Iterable[Sequence[str]] = ()
) -> list[tuple[VariantResult, VariantResult]]:
    """Which result is compared with which, each pair once: every one with its reference, then those of ``tests``.

    Args:
        results: of all datasets.
        baseline: a variant.
        tests: pairs of names of results; those of which one is missing on a dataset are left out there.
    """
    references = [(result, reference_of(result, results, baseline)) for result in results]
    pairs = [(result, other) for result, other in references if other is not None and other is not result]
    known = {(result.dataset, result.name, other.name) for result, other in pairs}
    for dataset, on_dataset in by_dataset(results).items():
        named = {result.name: result for result in on_dataset}
        for name, other_name in tests:
            if name in named and other_name in named and (dataset, name, other_name) not in known:
                pairs.append((named[name], named[other_name]))
                known.add((dataset, name, other_name))
    return pairs


def differences(
    results: Sequence[VariantResult], baseline: str, metrics: Iterable[str], tests: Iterable[Sequence[str]] = ()
) -> list[Row]:
    """The differences of :func:`compared_pairs` in every metric, with tests and intervals of :mod:`.statistics`.

    ``p_users`` and ``p_seeds`` are corrected (Holm) for the number of pairs compared in the same metric.
    """
    rows, pairs = [], compared_pairs(results, baseline, list(tests))
    for metric in metrics:
        family = [_difference(result, reference, metric) for result, reference in pairs]
        for test in ("users", "seeds"):
            adjusted = statistics.holm([row[f"p_{test}_uncorrected"] for row in family])
            for row, p in zip(family, adjusted, strict=True):
                row[f"p_{test}"] = p
        rows += family
    return rows


def _difference(result: VariantResult, reference: VariantResult, metric: str) -> Row:
    ours, theirs = result.tested(metric), reference.tested(metric)
    if len(_vocabularies([result, reference])) > 1:  # one's user 7 is not the other's
        ours = {}
    values, base = statistics.user_pairs(ours, theirs)
    by_seed = statistics.seed_differences(ours, theirs)
    relative = float(values.mean() / base.mean() - 1) if base.any() else None
    return {
        "dataset": result.dataset,
        "variant": result.name,
        "reference": reference.name,
        "metric": metric,
        "difference": float(by_seed.mean()) if len(by_seed) else None,
        "relative": relative,
        "interval": statistics.relative_interval(values, base),
        "users": len(values),
        "seeds": len(by_seed),
        "p_users_uncorrected": statistics.paired_test(values - base),
        "p_seeds_uncorrected": statistics.paired_test(by_seed),
    }


def phase_rows(results: Sequence[VariantResult]) -> list[Row]:
    """What each phase of each result came to, over the seeds, in the order of the phases.

    ``counts``: whether the weights that the side ends with were chosen among this phase's; ``valid`` is the best
    validation score of the phase, and ``epochs`` how many it had until it stopped.
    """
    rows = []
    for result in results:
        by_label: dict[str, list[Record]] = {}
        for record in result.records.values():
            for phase in result.phases(record):
                by_label.setdefault(phase["label"], []).append(phase)
        for phases in by_label.values():
            rows.append(
                {
                    "dataset": result.dataset,
                    "variant": result.name,
                    **{key: phases[0][key] for key in ("round", "label", "taught", "counts")},
                    "valid": spread(phase["best_valid_score"] for phase in phases),
                    "epochs": spread(phase["epochs"] for phase in phases),
                    "seconds": spread(phase["seconds"] for phase in phases),
                }
            )
    return rows


def breakdown(results: Sequence[VariantResult], metric: str, key: str, zeros: str | None = None) -> list[Row]:
    """The metric for groups of test users, by ``history`` or ``popularity``: one row per dataset, result and group."""
    rows = []
    for on_dataset in by_dataset(results).values():
        known = next(iter(on_dataset[0].users.values()))  # the same users are grouped in every result
        for group, members in statistics.groups_of_like_size(known[key], GROUPS, zeros):
            ids = known["user"][members]
            for result in on_dataset:
                values_of_group = [values[np.isin(users, ids)] for users, values in result.tested(metric).values()]
                rows.append(
                    {
                        "dataset": result.dataset,
                        "variant": result.name,
                        key: group,
                        "users": len(ids),
                        metric: spread(float(np.mean(values)) for values in values_of_group if len(values)),
                    }
                )
    return rows


def notes(
    cells: Sequence[Cell], records: Sequence[Record], results: Sequence[VariantResult], mask_history: bool
) -> list[str]:
    """What a reader must know to read the figures: failures, and where the variants were not measured alike."""
    sentences = []
    if mask_history:
        sentences.append(
            "The items of a user's history were left out of the ranking of every model, as RecBole does for general "
            "models alone."
        )
    for cell, record in zip(cells, records, strict=True):
        if record["status"] == "failed":
            sentences.append(f"Failed: {cell.dataset}, {cell.variant}, seed {cell.seed}: {failure(record)}")
    sentences += filter(None, (_note_on_users(*entry) for entry in by_dataset(results).items()))
    finished = [record for result in results for record in result.records.values()]
    without = dict.fromkeys(r["variant"] for r in finished if not r.get("knows_validation_item", True))
    if without:
        sentences.append(
            f"Without the user's validation item at test, which the other models have in the history: "
            f"{', '.join(without)}. Such a model can take up no interaction after its training."
        )
    if any(record["cost"]["train_seconds"] is None for record in finished):
        sentences.append("Training seconds leave out the cells that were interrupted and went on later.")
    commits = {record["commit"] for record in finished}
    if len(commits) > 1:
        sentences.append(f"The cells were run at different commits: {', '.join(sorted(commits))}.")
    return sentences


def _note_on_users(dataset: str, results: Sequence[VariantResult]) -> str:
    if len(_vocabularies(results)) > 1:
        return (
            f"{dataset}: the variants do not have the same users and items (load_col or filters differ); those "
            "that differ are not compared."
        )
    if len({_test_pairs(users) for result in results for users in result.users.values()}) > 1:
        return (
            f"{dataset}: not all variants are tested on the same users (sequential models have no test for users "
            "with fewer than three interactions). Differences and tests are those of the users in common; set "
            'user_inter_num_interval: "[3,inf)" to make the means comparable too.'
        )
    return ""


def by_dataset(results: Iterable[VariantResult]) -> dict[str, list[VariantResult]]:
    """The results on each dataset, in their order."""
    datasets: dict[str, list[VariantResult]] = {}
    for result in results:
        datasets.setdefault(result.dataset, []).append(result)
    return datasets


def _vocabularies(results: Iterable[VariantResult]) -> set[str]:
    return {record["data"]["vocabulary"] for result in results for record in result.records.values()}


def _test_pairs(users: dict[str, Array]) -> tuple[bytes, bytes]:
    """The users and their targets as something that can be compared."""
    order = np.argsort(users["user"])
    return users["user"][order].tobytes(), users["target"][order].tobytes()
