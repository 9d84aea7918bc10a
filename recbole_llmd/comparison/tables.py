"""The tables of a comparison: their columns, and the flat rows of the CSV file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from recbole_llmd.comparison.summary import Row
from recbole_llmd.report.table import (
    Column,
    Spread,
    count,
    markdown_table,
    mebibytes,
    metric,
    number,
    present,
    seconds,
)


def row_columns(metrics: Sequence[str]) -> list[Column]:
    """The columns of the table of results; metrics as mean ± standard deviation over the seeds."""
    return [
        Column("dataset", "dataset"),
        Column("variant", "variant"),
        Column("seeds", "seeds", count),
        *(Column(name, label(name), metric) for name in metrics),
        Column("valid", f"valid {label(metrics[0])}", metric),
        Column("trainings", "trainings", count),
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
        Column("interval", "95% interval", interval),
        Column("users", "users", count),
        Column("p_users", "p over users", lambda value: number(value, 2)),
        Column("seeds", "seeds", count),
        Column("p_seeds", "p over seeds", lambda value: number(value, 2)),
    ]


def phase_columns() -> list[Column]:
    """The columns of the table of phases."""
    return [
        Column("dataset", "dataset"),
        Column("variant", "variant"),
        Column("label", "phase"),
        Column("counts", "counts", lambda value: "yes" if value else "no"),
        Column("valid", "best validation", metric),
        Column("epochs", "epochs", number),
        Column("seconds", "training", seconds),
    ]


def interval(ends: Sequence[float] | None) -> str:
    """Both ends of an interval of a relative difference.

    >>> interval((-0.0104, 0.0512))
    '-1.0% to +5.1%'
    """
    return "–" if ends is None else f"{ends[0]:+.1%} to {ends[1]:+.1%}"


def label(name: str) -> str:
    """RecBole's name of a metric as it is written.

    >>> label("ndcg@10"), label("recall@5")
    ('NDCG@10', 'Recall@5')
    """
    metric_name, _, k = name.partition("@")
    return f"{metric_name.upper() if metric_name in ('ndcg', 'mrr', 'map') else metric_name.title()}@{k}"


def flat_rows(figures: Mapping[str, Any]) -> list[Row]:
    """One row for each result, figure and what it is compared with; one of a figure that is compared with nothing."""
    compared: dict[tuple[str, str, str], list[Row]] = {}
    for row in figures["differences"]:
        low, high = row["interval"] or (None, None)
        more = {key: row[key] for key in row if key not in ("dataset", "variant", "metric", "interval")}
        compared.setdefault((row["dataset"], row["variant"], row["metric"]), []).append(
            {**more, "relative_low": low, "relative_high": high}
        )
    flat = []
    for row in figures["rows"]:
        for key, value in row.items():
            if not isinstance(value, Spread):
                continue
            names = {"dataset": row["dataset"], "variant": row["variant"], "figure": key}
            for difference in compared.get((row["dataset"], row["variant"], key), [{}]):
                flat.append({**names, "mean": value.mean, "sd": value.sd, "n": value.n, **difference})
    return flat


def markdown(figures: Mapping[str, Any], metrics: Sequence[str]) -> str:
    """The tables of a comparison in Markdown: results, differences, phases, notes."""
    parts = [markdown_table(figures["rows"], present(figures["rows"], row_columns(metrics)))]
    for key, columns in (("differences", difference_columns()), ("phases", phase_columns())):
        if figures[key]:
            parts.append(markdown_table(figures[key], columns))
    return "\n\n".join([*parts, *figures["notes"]]) + "\n"
