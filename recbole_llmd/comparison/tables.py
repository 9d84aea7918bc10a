"""The tables of a comparison: their columns, and the flat rows of the CSV file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from recbole_llmd.comparison.summary import Row
from recbole_llmd.report.table import Column, Spread, count, mebibytes, metric, number, seconds


def row_columns(metrics: Sequence[str]) -> list[Column]:
    """The columns of the table of results; metrics as mean ± standard deviation over the seeds."""
    return [
        Column("dataset", "dataset"),
        Column("variant", "variant"),
        Column("seeds", "seeds", count),
        *(Column(name, label(name), metric) for name in metrics),
        Column("valid", f"valid {label(metrics[0])}", metric),
        Column("train_seconds", "training", seconds),
        Column("serving_seconds", "serving a user", seconds),
        Column("peak_bytes", "peak memory", mebibytes),
    ]


def difference_columns() -> list[Column]:
    """The columns of the table of differences."""
    return [
        Column("dataset", "dataset"),
        Column("variant", "variant"),
        Column("reference", "against"),
        Column("metric", "metric", label),
        Column("difference", "difference", lambda value: "–" if value is None else f"{value:+.4f}"),
        Column("relative", "relative", lambda value: "–" if value is None else f"{value:+.1%}"),
        Column("users", "users", count),
        Column("p_users", "p over users", lambda value: number(value, 2)),
        Column("seeds", "seeds", count),
        Column("p_seeds", "p over seeds", lambda value: number(value, 2)),
    ]


def label(name: str) -> str:
    """RecBole's name of a metric as it is written.

    >>> label("ndcg@10"), label("recall@5")
    ('NDCG@10', 'Recall@5')
    """
    metric_name, _, k = name.partition("@")
    return f"{metric_name.upper() if metric_name in ('ndcg', 'mrr', 'map') else metric_name.title()}@{k}"


def flat_rows(figures: Mapping[str, Any]) -> list[Row]:
    """One row for each result and figure, with the difference to the baseline where there is one."""
    compared = {(row["dataset"], row["variant"], row["metric"]): row for row in figures["differences"]}
    flat = []
    for row in figures["rows"]:
        for key, value in row.items():
            if not isinstance(value, Spread):
                continue
            difference = compared.get((row["dataset"], row["variant"], key), {})
            more = {name: entry for name, entry in difference.items() if name not in ("dataset", "variant", "metric")}
            names = {"dataset": row["dataset"], "variant": row["variant"], "figure": key}
            flat.append({**names, "mean": value.mean, "sd": value.sd, "n": value.n, **more})
    return flat
