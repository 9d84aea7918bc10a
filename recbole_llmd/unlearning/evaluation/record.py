"""The record of an evaluation of unlearning: what ``evaluation.json`` holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, TypeAlias

Row: TypeAlias = dict[str, Any]  # a column's name to a text, a number, or None where nothing could be measured


@dataclass(frozen=True)
class EvaluationRecord:
    """Everything that an evaluation measured, and where it comes from.

    Attributes:
        provenance: command, commit, machine and versions (:func:`recbole_llmd.report.provenance.provenance`).
        config: the settings of the run, without the paths of the machine.
        datasets: the numbers of ``users``, ``items`` and training ``interactions``.
        fits: for each model, RecBole's own fit beside the one that all arms begin with.
        rows: one for each arm at each checkpoint of each scenario, as ``docs/unlearning.md`` describes them.
        drift: the distance of B to a float64 fit over sequential requests; empty where it was not asked for.

    >>> record = EvaluationRecord({"command": "unlearn"}, {"seed": 1}, {"users": 9}, [], [{"arm": "SISA"}], [])
    >>> record.as_dict()["rows"], EvaluationRecord.from_dict(record.as_dict()) == record
    ([{'arm': 'SISA'}], True)
    """

    provenance: Mapping[str, Any]
    config: Mapping[str, Any]
    datasets: Mapping[str, int]
    fits: Sequence[Row]
    rows: Sequence[Row]
    drift: Sequence[Row]

    def as_dict(self) -> dict[str, Any]:
        """The content of ``evaluation.json``."""
        return {
            **self.provenance,
            "config": dict(self.config),
            "datasets": dict(self.datasets),
            "fits": list(self.fits),
            "rows": list(self.rows),
            "drift": list(self.drift),
        }

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> EvaluationRecord:
        """The record whose :meth:`as_dict` is ``content``."""
        named = {field.name: content[field.name] for field in fields(cls) if field.name != "provenance"}
        return cls({key: value for key, value in content.items() if key not in named}, **named)
