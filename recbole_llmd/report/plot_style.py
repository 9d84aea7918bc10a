"""How plots look: one template, one colour and symbol a name, axes with units and plain ticks."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import plotly.graph_objects as go

# Paul Tol's "bright" scheme: distinct for all kinds of colour vision, on white and on dark ground.
COLOURS = ("#4477AA", "#EE6677", "#228833", "#CCBB44", "#66CCEE", "#AA3377", "#999999")
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "cross", "star", "x", "triangle-down", "pentagon")
DASHES = ("solid", "dash", "dot", "dashdot")
GRID = "rgba(128,128,128,0.25)"


def styles(names: Iterable[str]) -> dict[str, dict[str, str]]:
    """``{name: {"color", "symbol", "dash"}}``: ask once for all names of a page and use it in every plot of it.

    >>> styles(["retrained", "corrected"])["corrected"]
    {'color': '#EE6677', 'symbol': 'square', 'dash': 'solid'}
    """
    return {
        name: {
            "color": COLOURS[index % len(COLOURS)],
            "symbol": SYMBOLS[index % len(SYMBOLS)],
            "dash": DASHES[index // len(COLOURS) % len(DASHES)],
        }
        for index, name in enumerate(dict.fromkeys(names))
    }


def template() -> go.layout.Template:
    """The plotly template of the pages: no ground of its own, so that it stands on a light and on a dark page."""
    import plotly.graph_objects as go

    axis = {
        "gridcolor": GRID,
        "linecolor": "rgba(128,128,128,0.6)",
        "zeroline": False,
        "showline": True,
        "ticks": "outside",
        "tickcolor": "rgba(128,128,128,0.6)",
        "automargin": True,
        "title": {"standoff": 10},
        "exponentformat": "power",
    }
    return go.layout.Template(
        layout={
            "font": {"family": "system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif", "size": 13, "color": "#222"},
            "paper_bgcolor": "rgba(0,0,0,0)",
            "plot_bgcolor": "rgba(0,0,0,0)",
            "colorway": list(COLOURS),
            "xaxis": axis,
            "yaxis": axis,
            "legend": {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom", "bgcolor": "rgba(0,0,0,0)"},
            "margin": {"l": 70, "r": 20, "t": 90, "b": 60},
            "height": 470,
            "hoverlabel": {"namelength": -1},
            "modebar": {"bgcolor": "rgba(0,0,0,0)", "color": "#999"},
        }
    )


def figure(traces: Iterable[Any] = (), **layout: Any) -> go.Figure:
    """A plotly figure in the template; ``layout`` as for ``Figure.update_layout``."""
    import plotly.graph_objects as go

    return go.Figure(list(traces), {"template": template(), **layout})


def facets(titles: Sequence[str], columns: int = 2, height: int = 330) -> go.Figure:
    """A figure of one panel a title: ``add_scatter(..., **place(n))`` and ``update_xaxes(axis, **place(n))``.

    ``height`` is that of a panel, in pixels.
    """
    from plotly.subplots import make_subplots

    columns = min(columns, len(titles))
    rows = math.ceil(len(titles) / columns)
    height = height * rows + 130
    spacing = {"vertical_spacing": 115 / height, "horizontal_spacing": 0.1} if len(titles) > 1 else {}
    fig = make_subplots(rows, columns, subplot_titles=list(titles), **spacing)
    fig.update_layout(template=template(), height=height, margin={"t": 100})
    fig.update_layout(legend={"y": 1 + 30 / (height - 150)})  # above the titles of the panels
    return fig


def place(index: int, columns: int = 2) -> dict[str, int]:
    """Row and column of the panel ``index`` of :func:`facets`, as plotly's methods take them.

    >>> place(3)
    {'row': 2, 'col': 2}
    """
    return {"row": index // columns + 1, "col": index % columns + 1}


def axis(title: str, unit: str | None = None) -> dict[str, Any]:
    """A linear axis: its title with the unit.

    >>> axis("time", "s")
    {'title': {'text': 'time (s)'}}
    """
    return {"title": {"text": f"{title} ({unit})" if unit else title}}


def log_axis(title: str, values: Sequence[float], unit: str | None = None, zero: float | None = None) -> dict[str, Any]:
    """A logarithmic axis around the positive ``values``, with ticks such as 0.01, 1, 1,000 and 10⁻¹².

    ``zero``: the position that stands for 0 (of :func:`floored`); its tick says so.
    """
    low, high = min(values), max(values)
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    if last - first <= 2:
        ticks = [factor * 10.0**exponent for exponent in range(first, last + 1) for factor in (1, 2, 5)]
    else:
        ticks = [10.0**exponent for exponent in range(first, last + 1, math.ceil((last - first) / 8))]
    if sum(low <= tick <= high for tick in ticks) < 2:  # a short axis would go without labels
        low = max((tick for tick in ticks if tick <= low), default=low)
        high = min((tick for tick in ticks if tick >= high), default=high)
    plain = ticks[0] >= 1e-4 and ticks[-1] < 1e7
    if zero is not None:
        ticks = [zero, *(tick for tick in ticks if tick > zero * 1.5)]
    pad = 0.05 * max(math.log10(high / low), 0.3)
    return {
        **axis(title, unit),
        "type": "log",
        "range": [math.log10(low) - pad, math.log10(high) + pad],
        "tickvals": ticks,
        "ticktext": ["0" if tick == zero else _tick(tick, plain) for tick in ticks],
    }


def floored(values: Sequence[float]) -> tuple[list[float], float | None]:
    """``(values with zeros raised to a floor, floor)`` for a log axis; the floor is None where no value is zero.

    >>> floored([0.1, 0.0, 1.0])
    ([0.1, 0.01, 1.0], 0.01)
    """
    positive = [value for value in values if value > 0]
    if len(positive) == len(values):
        return list(values), None
    floor = 10.0 ** (math.floor(math.log10(min(positive))) - 1) if positive else 1e-16
    return [value if value > 0 else floor for value in values], floor


def _tick(value: float, plain: bool) -> str:
    if plain:
        return f"{value:,.10g}"
    factor, _, exponent = f"{value:.0e}".partition("e")
    return f"{'' if factor == '1' else factor + '·'}10<sup>{int(exponent)}</sup>"
