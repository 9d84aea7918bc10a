"""The plots of an evaluation of unlearning; each function gives a section of the page, or None without data.

A row is one arm at one checkpoint of one seed; an entry sums up the rows of all seeds
(:func:`recbole_llmd.unlearning.evaluation.report.summary`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from recbole_llmd.report.page import Section
from recbole_llmd.report.plot_style import axis, facets, figure, floored, log_axis, place, styles
from recbole_llmd.report.table import number, seconds, spread
from recbole_llmd.unlearning.evaluation.arms import ARMS
from recbole_llmd.unlearning.evaluation.efficiency import break_even
from recbole_llmd.unlearning.evaluation.record import Row

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

STYLES = styles(("corrected", "retrained", "SISA", "X only", "original", "one step", "RecEraser-mean"))
STYLES["no-op"] = {**STYLES["original"], "symbol": "triangle-down"}  # there are seven colours, and it is the same model
DTYPES = {"float32": "solid", "float64": "dot"}


def size_label(entry: Mapping[str, Any]) -> str:
    """Scenario, group and ratio, such as ``users (core), 5%``."""
    group = f" ({entry['group']})" if entry["group"] else ""
    ratio = f", {100 * entry['ratio']:.6g}%" if entry["ratio"] is not None else ""
    return f"{entry['scenario']}{group}{ratio}"


def utility_section(last: Sequence[Row], utility: str) -> Section | None:
    """Relative Frobenius distance of the scores against utility relative to the retrained model."""
    x, y = f"ratio_{utility}", "scores_frobenius"
    entries = [entry for entry in last if entry["phase"] == "forget" and _measured(entry, x, y)]
    if not entries:
        return None
    floored_heights, zero = floored([entry[y].mean for entry in entries])
    heights = dict(zip(map(id, entries), floored_heights, strict=True))
    models = _names(entries, "model")
    fig = facets(models)
    span = [entry[x].mean for entry in entries]
    pad = 0.06 * max(max(span) - min(span), 0.02)
    for index, model in enumerate(models):
        for arm in ARMS:
            of_arm = [entry for entry in entries if (entry["model"], entry["arm"]) == (model, arm)]
            points = [(entry[x].mean, heights[id(entry)]) for entry in of_arm]
            hover = [
                f"{size_label(entry)}<br>utility ÷ retrained {number(entry[x], 4)}<br>distance {number(entry[y])}"
                for entry in of_arm
            ]
            _add(fig, index, arm, points, mode="markers", hovertext=hover, hoverinfo="text+name")
        fig.update_xaxes(
            {**axis(f"test {utility.upper()} ÷ retrained"), "range": [min(span) - pad, max(span) + pad]}, **place(index)
        )
        fig.update_yaxes(log_axis("distance of scores", list(heights.values()), zero=zero), **place(index))
    note = (
        "Each point is one scenario and size, the mean over seeds. Right at the bottom is best: the scores are the "
        "retrained model's (relative Frobenius distance, 0 at the floor of the axis), and so is the utility (1). A "
        "high point has not forgotten; one at the left of 1 pays with quality."
    )
    return Section("Completeness against utility", [note, fig])


def time_section(rows: Sequence[Row]) -> Section | None:
    """Seconds a request against interactions a request, with retraining and the break-even."""
    rows = _sized(rows)
    if not rows:
        return None
    points: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        points.setdefault((row["model"], row["arm"], row["group"], row["ratio"]), []).append(row)
    means = {
        key: tuple(_mean(row[column] for row in same) for column in ("size", "each")) for key, same in points.items()
    }
    sizes, times = [size for size, _ in means.values()], [each for _, each in means.values()]
    models = _names(rows, "model")
    fig, break_evens = facets(models), []
    for index, model in enumerate(models):
        for arm in ARMS:
            line = sorted(point for key, point in means.items() if key[:2] == (model, arm))
            _add(fig, index, arm, line, mode="lines+markers", text=[seconds(point[1]) for point in line])
        of_arm = [row for row in rows if (row["model"], row["arm"]) == (model, "corrected")]
        even = break_even(*([row[key] for row in of_arm] for key in ("size", "each", "refit")))
        if even:
            _mark(fig, index, even, times)
        break_evens.append(f"{model} {f'{number(even)} interactions' if even else 'none within these sizes'}")
        fig.update_xaxes(log_axis("interactions per request", sizes), **place(index))
        fig.update_yaxes(log_axis("time per request", times, unit="s"), **place(index))
    note = (
        "Time of one request against its size, without loading, mean over seeds. Below the line of the retrained arm, "
        "correcting is cheaper than retraining; where the corrected arm's line reaches it is the break-even."
    )
    return Section(
        "Time against request size", [note, f"Break-even of the corrected arm: {'; '.join(break_evens)}.", fig]
    )


def _sized(rows: Iterable[Row]) -> list[Row]:
    """Finished forgetting of one scenario that has several sizes, with size and seconds per request."""
    by_scenario: dict[str, list[Row]] = {}
    for row in rows:
        ended = row["phase"] == "forget" and row["checkpoint"] == 1 and row["arm"] not in ("original", "no-op")
        if ended and row["requests"] and row["interactions"] and row.get("seconds_total"):
            per_request = {
                "size": row["interactions"] / row["requests"],
                "each": row["seconds_total"] / row["requests"],
                "refit": row["retraining_seconds"] / row["requests"],
            }
            by_scenario.setdefault(row["scenario"], []).append({**row, **per_request})
    several = [name for name, rows in by_scenario.items() if len({row["ratio"] for row in rows}) > 1]
    if not several:
        return []
    return by_scenario["interactions" if "interactions" in several else several[0]]


def _mark(fig: Figure, index: int, size: float, times: Sequence[float]) -> None:
    fig.add_scatter(
        x=[size, size],
        y=[min(times), max(times)],
        name="break-even",
        legendgroup="break-even",
        showlegend=not any(other.name == "break-even" for other in fig.data),
        mode="lines",
        line={"color": "#999", "dash": "dot"},
        **place(index),
    )


def drift_section(rows: Iterable[Row]) -> Section | None:
    """Distance of B to a fit from scratch over sequential requests, in float32 and float64."""
    rows = [row for row in rows if row["requests"] > 0 and row["B_frobenius"] is not None]
    if not rows:
        return None
    points: dict[tuple[Any, ...], list[float]] = {}
    for row in rows:
        points.setdefault((row["model"], row["dtype"], row["requests"]), []).append(row["B_frobenius"])
    heights, zero = floored([_mean(values) for values in points.values()])
    means = dict(zip(points, heights, strict=True))
    style = styles(_names(rows, "model"))
    fig = figure(
        xaxis=log_axis("requests done", [key[2] for key in means]),
        yaxis=log_axis("distance of B", heights, zero=zero),
    )
    for model, dtype in dict.fromkeys(key[:2] for key in means):
        line = sorted((key[2], height) for key, height in means.items() if key[:2] == (model, dtype))
        color = style[model]["color"]
        fig.add_scatter(
            x=[point[0] for point in line],
            y=[point[1] for point in line],
            name=f"{model} {dtype}",
            mode="lines+markers",
            line={"color": color, "dash": DTYPES[dtype]},
            marker={"symbol": style[model]["symbol"], "size": 7},
        )
    note = (
        "Relative Frobenius distance of the mapping matrix B to a fit from scratch in float64, after so many requests "
        "one after the other, mean over seeds. A level line does not drift; 0 stands at the floor of the axis."
    )
    return Section("Drift over sequential requests", [note, fig])


def sensitive_section(entries: Iterable[Row]) -> Section | None:
    """Share of sensitive items in the top 10 over the checkpoints."""
    entries = [entry for entry in entries if entry["phase"] == "forget" and _measured(entry, "sensitive_exposure@10")]
    if not entries:
        return None
    panels = _panels(entries)
    fig = facets(list(panels))
    top = max(entry["sensitive_exposure@10"].mean for entry in entries)
    for index, members in enumerate(panels.values()):
        for arm in ARMS:
            of_arm = sorted((one for one in members if one["arm"] == arm), key=lambda entry: entry["checkpoint"])
            points = [(entry["checkpoint"], entry["sensitive_exposure@10"].mean) for entry in of_arm]
            _add(fig, index, arm, points, mode="lines+markers")
        ticks = sorted({entry["checkpoint"] for entry in members})
        fig.update_xaxes(
            {**axis("requests done"), "tickvals": ticks, "tickformat": ".0%", "range": [ticks[0] - 0.05, 1.05]},
            **place(index),
        )
        fig.update_yaxes({**axis("sensitive share of top 10"), "range": [-0.05 * top, 1.1 * top]}, **place(index))
    note = (
        "Share of sensitive items among the ten recommended, mean over users and seeds, after so many of the requests. "
        "The original arm is the exposure before; the retrained arm is what remains when the data were never there: "
        "its line is the aim, not 0."
    )
    return Section("Sensitive items recommended", [note, fig])


def spam_section(last: Iterable[Row]) -> Section | None:
    """Spam-target hit rate of every arm."""
    entries = [entry for entry in last if entry["phase"] == "forget" and _measured(entry, "spam_hit@10")]
    if not entries:
        return None
    panels = _panels(entries)
    fig = figure(barmode="group", xaxis=axis(""), yaxis=axis("target hit rate @10"))
    for arm in ARMS:
        of_arm = {name: entry for name, members in panels.items() for entry in members if entry["arm"] == arm}
        if of_arm:
            figures = [entry["spam_hit@10"] for entry in of_arm.values()]
            fig.add_bar(
                x=list(of_arm),
                y=[value.mean for value in figures],
                error_y={"array": [value.sd or 0 for value in figures], "thickness": 1, "color": "#999"},
                name=arm,
                marker={"color": STYLES[arm]["color"]},
            )
    note = (
        "Share of pairs of user and target in which the target is among the ten recommended; the whiskers are standard "
        "deviations over seeds. The original arm is before forgetting the spam users, the others after; the retrained "
        "arm never saw them."
    )
    return Section("Spam targets recommended", [note, fig])


def _mean(values: Iterable[float]) -> float:
    mean = spread(values).mean
    return math.nan if mean is None else mean


def _measured(entry: Row, *keys: str) -> bool:
    return all(entry.get(key) and entry[key].mean is not None and math.isfinite(entry[key].mean) for key in keys)


def _names(entries: Iterable[Row], key: str) -> list[str]:
    return list(dict.fromkeys(entry[key] for entry in entries))


def _panels(entries: Sequence[Row]) -> dict[str, list[Row]]:
    """``{title: entries}``: one panel a model, or a model and size where there are several sizes."""
    several = len({(entry["group"], entry["ratio"]) for entry in entries}) > 1
    panels: dict[str, list[Row]] = {}
    for entry in entries:
        panels.setdefault(f"{entry['model']}: {size_label(entry)}" if several else entry["model"], []).append(entry)
    return panels


def _add(fig: Figure, index: int, arm: str, points: Sequence[tuple[Any, ...]], **trace: Any) -> None:
    """Add the points of an arm to a panel, once to the legend. The reference is hollow: others show through."""
    if not points:
        return
    style, reference = STYLES[arm], arm == "retrained"
    fig.add_scatter(
        x=[point[0] for point in points],
        y=[point[1] for point in points],
        name=arm,
        legendgroup=arm,
        showlegend=not any(other.name == arm for other in fig.data),
        marker={
            "color": style["color"],
            "symbol": style["symbol"] + "-open" * reference,
            "size": 12 if reference else 8,
            "line": {"width": 2 if reference else 0},
        },
        line={"color": style["color"], "dash": "dash" if reference else "solid"},
        **place(index),
        **trace,
    )
