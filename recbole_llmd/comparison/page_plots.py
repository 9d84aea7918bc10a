"""The plots of a comparison's page: learning curves, cost, breakdowns, sample weights.

A plot takes the results on one dataset, the metric that is shown and the look of each variant, and gives figures: none
where the results have nothing to show.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from recbole_llmd.comparison.summary import Row, VariantResult
from recbole_llmd.comparison.tables import label
from recbole_llmd.report.plot_style import axis, figure, log_axis

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

Look = Mapping[str, Mapping[str, str]]  # by variant: colour, dash and symbol
Phase = tuple[int, str]  # the round (0 is the warm-up) and the side that is trained
Entry = dict[str, Any]  # what is recorded of one epoch of one side

PHASE = re.compile(r"(?:warm-up|round (\d+)), (CRM|LLM) phase")
SIDES = {"CRM": "solid", "LLM": "dot"}  # how their lines are drawn
SHADE = "rgba(128,128,128,0.12)"


def _phases(results: Sequence[VariantResult]) -> dict[Phase, tuple[int, int]]:
    """``{(round, side): (position, most epochs)}`` of the phases that the variants went through, in order."""
    epochs: dict[Phase, int] = {}
    for result in results:
        for record in result.records.values():
            for side in SIDES:
                for entry in record.get("distillation", {}).get(side, []):
                    key = _phase(entry)
                    epochs[key] = max(epochs.get(key, 0), entry["epoch"] + 1)
    # The warm-up begins with the LLM, a round with the CRM.
    ordered = sorted(epochs, key=lambda key: (key[0], (key[1] == "LLM") == (key[0] > 0)))
    return {key: (position, epochs[key]) for position, key in enumerate(ordered)}


def _phase(entry: Entry) -> Phase:
    label_parsed = PHASE.match(entry["label"])
    assert label_parsed is not None  # the labels are those of the trainer's phases
    number, side = label_parsed.groups()
    return int(number or 0), side


def _place(entry: Entry, phases: Mapping[Phase, tuple[int, int]]) -> float:
    position, epochs = phases[_phase(entry)]
    return position + (int(entry["epoch"]) + 0.5) / epochs


def _phase_axis(phases: Mapping[Phase, tuple[int, int]]) -> dict[str, Any]:
    """Layout: one tick a phase, the LLM's phases shaded."""
    names = [f"{f'round {number}' if number else 'warm-up'}<br>{side}" for number, side in phases]
    shades = [
        {"type": "rect", "xref": "x", "yref": "paper", "x0": place, "x1": place + 1, "y0": 0, "y1": 1}
        | {"fillcolor": SHADE, "line": {"width": 0}, "layer": "below"}
        for (_, side), (place, _) in phases.items()
        if side == "LLM"
    ]
    ticks = {"tickvals": [place + 0.5 for place, _ in phases.values()], "ticktext": names, "range": [0, len(phases)]}
    return {"xaxis": {**ticks, "showgrid": False}, "shapes": shades}


def _curve(entries: Sequence[Entry], phases: Mapping[Phase, tuple[int, int]]) -> dict[str, list[float | None]]:
    """The points of one side's validation curve, with a gap between phases."""
    x: list[float | None] = []
    y: list[float | None] = []
    for before, entry in zip([None, *entries], entries):
        if before is not None and _phase(before) != _phase(entry):
            x.append(None)
            y.append(None)
        x.append(_place(entry, phases))
        y.append(entry["valid"])
    return {"x": x, "y": y}


def learning_curves(results: Sequence[VariantResult], metric: str, look: Look) -> list[Figure]:
    """The validation curves of both sides over the phases, of the variants that have phases."""
    import plotly.graph_objects as go

    results = [result for result in results if any("distillation" in record for record in result.records.values())]
    phases = _phases(results)
    traces = []
    for result in results:
        side = "LLM" if result.llm else "CRM"
        for number, record in enumerate(result.records.values()):
            entries = [entry for entry in record["distillation"][side] if "valid" in entry]
            traces.append(
                go.Scatter(
                    **_curve(entries, phases),
                    name=result.name,
                    legendgroup=result.name,
                    showlegend=number == 0,
                    mode="lines+markers",
                    opacity=0.8,
                    line={"color": look[result.variant]["color"], "dash": SIDES[side], "width": 1.5},
                    marker={"size": 5, "symbol": look[result.variant]["symbol"]},
                )
            )
    valid = _valid_metric(results, metric)
    return [figure(traces, yaxis=axis(f"validation {label(valid)}"), **_phase_axis(phases))] if traces else []


def curves_alone(results: Sequence[VariantResult], metric: str, look: Look) -> list[Figure]:
    """The validation curves of the models that have no phases."""
    import plotly.graph_objects as go

    traces = [
        go.Scatter(
            x=[entry["epoch"] + 1 for entry in record["curve"]],
            y=[entry["valid"] for entry in record["curve"]],
            name=result.name,
            legendgroup=result.name,
            showlegend=number == 0,
            mode="lines+markers",
            line={"color": look[result.variant]["color"], "dash": look[result.variant]["dash"], "width": 1.5},
            marker={"size": 5, "symbol": look[result.variant]["symbol"]},
        )
        for result in results
        for number, record in enumerate(result.records.values())
        if len(record["curve"]) > 1
    ]
    valid = _valid_metric(results, metric)
    return [figure(traces, xaxis=axis("epoch"), yaxis=axis(f"validation {label(valid)}"))] if traces else []


def _valid_metric(results: Sequence[VariantResult], metric: str) -> str:
    """The metric that early stopping follows, which the curves show."""
    return next((r["config"]["valid_metric"].lower() for result in results for r in result.records.values()), metric)


def cost(results: Sequence[VariantResult], metric: str, look: Look) -> list[Figure]:
    """The metric against training seconds, a point a variant."""
    import plotly.graph_objects as go

    points = []
    for result in results:
        costs = [seconds for seconds in result.cost("train_seconds") if seconds is not None]
        if costs:
            points.append((result, float(np.mean(costs)), result.means(metric)))
    traces = [
        go.Scatter(
            x=[seconds],
            y=[np.mean(values)],
            error_y={"array": [np.std(values, ddof=1)] if len(values) > 1 else [None]},
            name=result.name,
            mode="markers",
            marker={"size": 11, "color": look[result.variant]["color"], "symbol": look[result.variant]["symbol"]},
        )
        for result, seconds, values in points
    ]
    if not traces:
        return []
    return [
        figure(
            traces,
            xaxis=log_axis("training", [seconds for _, seconds, _ in points], unit="s"),
            yaxis=axis(label(metric)),
        )
    ]


def groups_plot(
    rows: Sequence[Row], key: str, title: str
) -> Callable[[Sequence[VariantResult], str, Look], list[Figure]]:
    """The plot of the metric for groups of test users, from the ``rows`` of a breakdown by ``key``."""

    def draw(results: Sequence[VariantResult], metric: str, look: Look) -> list[Figure]:
        import plotly.graph_objects as go

        traces = []
        for result in results:
            own = [row for row in rows if row["dataset"] == result.dataset and row["variant"] == result.name]
            traces.append(
                go.Bar(
                    x=[f"{row[key]}<br>{row['users']} users" for row in own],
                    y=[row[metric].mean for row in own],
                    error_y={"array": [row[metric].sd for row in own], "thickness": 1},
                    name=result.name,
                    marker={"color": look[result.variant]["color"], "pattern": {"shape": "/" if result.llm else ""}},
                )
            )
        return [figure(traces, barmode="group", xaxis={**axis(title), "type": "category"}, yaxis=axis(label(metric)))]

    return draw


def rounds_plot(rows: Sequence[Row]) -> Callable[[Sequence[VariantResult], str, Look], list[Figure]]:
    """The plot of each result's best validation over the rounds, from the ``rows`` of the phases."""

    def draw(results: Sequence[VariantResult], metric: str, look: Look) -> list[Figure]:
        import plotly.graph_objects as go

        traces = []
        for result in results:
            own = [row for row in rows if row["dataset"] == result.dataset and row["variant"] == result.name]
            traces.append(
                go.Scatter(
                    x=[row["round"] for row in own],
                    y=[row["valid"].mean for row in own],
                    error_y={"array": [row["valid"].sd for row in own], "thickness": 1},
                    name=result.name,
                    mode="lines+markers",
                    line={"color": look[result.variant]["color"], "dash": SIDES["LLM" if result.llm else "CRM"]},
                    marker={"size": 7, "symbol": look[result.variant]["symbol"]},
                )
            )
        traces = [trace for trace in traces if trace.x]
        valid = _valid_metric(results, metric)
        layout = {"xaxis": {**axis("round"), "dtick": 1}, "yaxis": axis(f"best validation {label(valid)}")}
        return [figure(traces, **layout)] if traces else []

    return draw


def sample_weights(results: Sequence[VariantResult], metric: str, look: Look) -> list[Figure]:
    """One figure a result: the quantiles of the weights along the phases in which it is taught."""
    figures = []
    for result in results:
        quantiles: dict[tuple[Phase, int], list[list[float]]] = {}
        for record in result.records.values():
            for entry in record.get("distillation", {}).get("LLM" if result.llm else "CRM", []):
                if "weight quantiles" in entry:
                    quantiles.setdefault((_phase(entry), entry["epoch"]), []).append(entry["weight quantiles"])
        if quantiles:
            figures.append(_weight_figure(result, quantiles, look))
    return figures


def _weight_figure(
    result: VariantResult, quantiles: Mapping[tuple[Phase, int], list[list[float]]], look: Look
) -> Figure:
    import plotly.graph_objects as go

    epochs = sorted(quantiles)
    rounds = sorted({phase for phase, _ in epochs})
    places = {
        (phase, epoch): rounds.index(phase) + (epoch + 0.5) / (1 + max(e for p, e in epochs if p == phase))
        for phase, epoch in epochs
    }
    x = [places[key] for key in epochs]
    low, lower, middle, upper, high = np.array([np.mean(quantiles[key], axis=0) for key in epochs]).T
    colour = look[result.variant]["color"]
    band = {"mode": "lines", "line": {"width": 0}, "hoverinfo": "skip", "showlegend": False}
    traces = []
    for bottom, top, opacity in ((low, high, 0.15), (lower, upper, 0.3)):
        rgb = ",".join(str(int(colour[i : i + 2], 16)) for i in (1, 3, 5))
        traces += [
            go.Scatter(x=x, y=bottom, **band),
            go.Scatter(x=x, y=top, fill="tonexty", fillcolor=f"rgba({rgb},{opacity})", **band),
        ]
    traces.append(go.Scatter(x=x, y=middle, name=result.name, mode="lines+markers", line={"color": colour}))
    ticks = {"tickvals": [i + 0.5 for i in range(len(rounds))], "ticktext": [f"round {number}" for number, _ in rounds]}
    layout = {"xaxis": {**ticks, "range": [0, len(rounds)]}, "yaxis": {**axis("sample weight"), "rangemode": "tozero"}}
    return figure(traces, showlegend=True, height=300, **layout)
