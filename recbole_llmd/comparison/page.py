"""The HTML page of a comparison: tables, learning curves, cost, breakdowns, sample weights."""

import re

import numpy as np

from recbole_llmd.comparison.summary import NEVER
from recbole_llmd.comparison.tables import difference_columns, label, row_columns
from recbole_llmd.report.page import Section, Table, provenance_section, write_page
from recbole_llmd.report.plot_style import axis, figure, log_axis, styles
from recbole_llmd.report.table import present

PHASE = re.compile(r"(?:warm-up|round (\d+)), (CRM|LLM) phase")
SIDES = {"CRM": "solid", "LLM": "dot"}  # how their lines are drawn
SHADE = "rgba(128,128,128,0.12)"


def write(path, record, found):
    """Write the page of a comparison's ``record`` and its arms ``found``."""
    metric = record["experiment"]["metrics"][0]
    look = styles(arm.variant for arm in found)
    shown = label(metric)
    datasets = list(dict.fromkeys(arm.dataset for arm in found))
    sections = [_tables(record)]
    for heading, text, plot in (
        (
            "Learning curves",
            "Validation figure after every epoch, one line a seed. In the shaded phases the LLM is trained (dotted), "
            "in the others the CRM (solid). Every phase has the same width, however many epochs it had.",
            _learning_curves,
        ),
        (
            "Learning curves of models trained alone",
            "Validation figure over the epochs, one line a seed.",
            _curves_alone,
        ),
        (
            f"{shown} against training cost",
            "Mean over the seeds; the bars are one standard deviation. Training seconds contain building the model, "
            "validation and, where variants share a warm-up, the whole warm-up.",
            _cost,
        ),
        (
            f"{shown} by length of history",
            "Test users in groups of about like size by the number of interactions before the target.",
            lambda *a: _groups(record["by_history"], "history", "interactions in the history", *a),
        ),
        (
            f"{shown} by popularity of the target",
            f"Test users by the number of training interactions of their target; “{NEVER}”: a cold item.",
            lambda *a: _groups(record["by_popularity"], "popularity", "training interactions of the target", *a),
        ),
        (
            "Sample weights",
            "The weights of the distillation term in every epoch: median, quartiles (dark) and the middle 90% (light), "
            "averaged over the seeds. Their mean is 1 in every batch.",
            _weights,
        ),
    ):
        parts = [text]
        for dataset in datasets:
            plots = plot([arm for arm in found if arm.dataset == dataset], metric, look)
            parts += [f"Dataset {dataset}:", *plots] if plots and len(datasets) > 1 else plots
        if len(parts) > 1:
            sections.append(Section(heading, parts))
    experiment = record["experiment"]
    intro = [
        f"Leave-one-out by time, all items ranked, {len(experiment['seeds'])} seeds "
        f"({', '.join(map(str, experiment['seeds']))}), compared with {experiment['baseline']}.",
        *(f"Note: {note}" for note in record["notes"]),
    ]
    title = f"{', '.join(experiment['variants'])} on {', '.join(datasets)}"
    write_page(path, title, intro, [*sections, provenance_section(record)])


def _tables(record):
    parts = [
        "Test figures as mean ± standard deviation over the seeds. “· LLM” is the LLM that was trained beside the CRM; "
        "the CRM alone is served. Training is the whole variant's. Serving: time to score all items for one user.",
        Table(record["rows"], present(record["rows"], row_columns(record["experiment"]["metrics"]))),
    ]
    if record["differences"]:
        parts += [
            "Difference to the baseline on the users in common. p over users: paired t-test on each user's difference, "
            "averaged over the seeds first. p over seeds: paired t-test on the seeds' means. Both corrected (Holm) for "
            "the number of comparisons in the same metric.",
            Table(record["differences"], difference_columns()),
        ]
    return Section("Results", parts)


def _phases(arms):
    """``{(round, side): (position, most epochs)}`` of the phases that the arms went through, in order."""
    epochs = {}
    for arm in arms:
        for record in arm.records.values():
            for side in SIDES:
                for entry in record.get("distillation", {}).get(side, []):
                    key = _phase(entry)
                    epochs[key] = max(epochs.get(key, 0), entry["epoch"] + 1)
    # The warm-up begins with the LLM, a round with the CRM.
    ordered = sorted(epochs, key=lambda key: (key[0], (key[1] == "LLM") == (key[0] > 0)))
    return {key: (position, epochs[key]) for position, key in enumerate(ordered)}


def _phase(entry):
    number, side = PHASE.match(entry["label"]).groups()
    return int(number or 0), side


def _place(entry, phases):
    position, epochs = phases[_phase(entry)]
    return position + (entry["epoch"] + 0.5) / epochs


def _phase_axis(phases):
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


def _curve(entries, phases):
    """The points of one side's validation curve, with a gap between phases."""
    x, y = [], []
    for before, entry in zip([None, *entries], entries):
        if before is not None and _phase(before) != _phase(entry):
            x.append(None)
            y.append(None)
        x.append(_place(entry, phases))
        y.append(entry["valid"])
    return {"x": x, "y": y}


def _learning_curves(arms, metric, look):
    import plotly.graph_objects as go

    arms = [arm for arm in arms if any("distillation" in record for record in arm.records.values())]
    phases = _phases(arms)
    traces = []
    for arm in arms:
        side = "LLM" if arm.llm else "CRM"
        for number, record in enumerate(arm.records.values()):
            entries = [entry for entry in record["distillation"][side] if "valid" in entry]
            traces.append(
                go.Scatter(
                    **_curve(entries, phases),
                    name=arm.name,
                    legendgroup=arm.name,
                    showlegend=number == 0,
                    mode="lines+markers",
                    opacity=0.8,
                    line={"color": look[arm.variant]["color"], "dash": SIDES[side], "width": 1.5},
                    marker={"size": 5, "symbol": look[arm.variant]["symbol"]},
                )
            )
    valid = _valid_metric(arms, metric)
    return [figure(traces, yaxis=axis(f"validation {label(valid)}"), **_phase_axis(phases))] if traces else []


def _curves_alone(arms, metric, look):
    import plotly.graph_objects as go

    traces = [
        go.Scatter(
            x=[entry["epoch"] + 1 for entry in record["curve"]],
            y=[entry["valid"] for entry in record["curve"]],
            name=arm.name,
            legendgroup=arm.name,
            showlegend=number == 0,
            mode="lines+markers",
            line={"color": look[arm.variant]["color"], "dash": look[arm.variant]["dash"], "width": 1.5},
            marker={"size": 5, "symbol": look[arm.variant]["symbol"]},
        )
        for arm in arms
        for number, record in enumerate(arm.records.values())
        if len(record["curve"]) > 1
    ]
    valid = _valid_metric(arms, metric)
    return [figure(traces, xaxis=axis("epoch"), yaxis=axis(f"validation {label(valid)}"))] if traces else []


def _valid_metric(arms, metric):
    """The metric that early stopping follows, which the curves show."""
    return next((r["config"]["valid_metric"].lower() for arm in arms for r in arm.records.values()), metric)


def _cost(arms, metric, look):
    import plotly.graph_objects as go

    points = []
    for arm in arms:
        costs = [cost for cost in arm.cost("train_seconds") if cost is not None]
        if costs:
            points.append((arm, np.mean(costs), arm.means(metric)))
    traces = [
        go.Scatter(
            x=[cost],
            y=[np.mean(values)],
            error_y={"array": [np.std(values, ddof=1)] if len(values) > 1 else [None]},
            name=arm.name,
            mode="markers",
            marker={"size": 11, "color": look[arm.variant]["color"], "symbol": look[arm.variant]["symbol"]},
        )
        for arm, cost, values in points
    ]
    if not traces:
        return []
    return [
        figure(traces, xaxis=log_axis("training", [cost for _, cost, _ in points], unit="s"), yaxis=axis(label(metric)))
    ]


def _groups(rows, key, title, arms, metric, look):
    import plotly.graph_objects as go

    traces = []
    for arm in arms:
        own = [row for row in rows if row["dataset"] == arm.dataset and row["variant"] == arm.name]
        traces.append(
            go.Bar(
                x=[f"{row[key]}<br>{row['users']} users" for row in own],
                y=[row[metric].mean for row in own],
                error_y={"array": [row[metric].sd for row in own], "thickness": 1},
                name=arm.name,
                marker={"color": look[arm.variant]["color"], "pattern": {"shape": "/" if arm.llm else ""}},
            )
        )
    return [figure(traces, barmode="group", xaxis={**axis(title), "type": "category"}, yaxis=axis(label(metric)))]


def _weights(arms, metric, look):
    """One figure an arm: the quantiles of the weights along the phases in which it is taught."""
    figures = []
    for arm in arms:
        quantiles = {}
        for record in arm.records.values():
            for entry in record.get("distillation", {}).get("LLM" if arm.llm else "CRM", []):
                if "weight quantiles" in entry:
                    quantiles.setdefault((_phase(entry), entry["epoch"]), []).append(entry["weight quantiles"])
        if quantiles:
            figures.append(_weight_figure(arm, quantiles, look))
    return figures


def _weight_figure(arm, quantiles, look):
    import plotly.graph_objects as go

    epochs = sorted(quantiles)
    rounds = sorted({phase for phase, _ in epochs})
    places = {
        (phase, epoch): rounds.index(phase) + (epoch + 0.5) / (1 + max(e for p, e in epochs if p == phase))
        for phase, epoch in epochs
    }
    x = [places[key] for key in epochs]
    low, lower, middle, upper, high = np.array([np.mean(quantiles[key], axis=0) for key in epochs]).T
    colour = look[arm.variant]["color"]
    band = {"mode": "lines", "line": {"width": 0}, "hoverinfo": "skip", "showlegend": False}
    traces = []
    for bottom, top, opacity in ((low, high, 0.15), (lower, upper, 0.3)):
        rgb = ",".join(str(int(colour[i : i + 2], 16)) for i in (1, 3, 5))
        traces += [
            go.Scatter(x=x, y=bottom, **band),
            go.Scatter(x=x, y=top, fill="tonexty", fillcolor=f"rgba({rgb},{opacity})", **band),
        ]
    traces.append(go.Scatter(x=x, y=middle, name=arm.name, mode="lines+markers", line={"color": colour}))
    ticks = {"tickvals": [i + 0.5 for i in range(len(rounds))], "ticktext": [f"round {number}" for number, _ in rounds]}
    layout = {"xaxis": {**ticks, "range": [0, len(rounds)]}, "yaxis": {**axis("sample weight"), "rangemode": "tozero"}}
    return figure(traces, showlegend=True, height=300, **layout)
