"""Tables of figures: how a number is written, rows on the terminal, CSV and JSON files."""

import csv
import json
import math
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from recbole_llmd.atomic_write import atomic_write

MISSING = "–"


class Spread(NamedTuple):
    """Mean and sample standard deviation over ``n`` values; None where there are too few."""

    mean: float
    sd: float
    n: int


def spread(values):
    """The :class:`Spread` of the values that are neither None nor NaN."""
    values = [float(value) for value in values if value is not None and not math.isnan(value)]
    if not values:
        return Spread(None, None, 0)
    several = len(values) > 1 and all(map(math.isfinite, values))
    return Spread(statistics.fmean(values), statistics.stdev(values) if several else None, len(values))


def text(value):
    """A name."""
    return MISSING if value is None else str(value)


def count(value):
    """A whole number with separators between thousands; the mean of several rounded."""
    return _write(value, lambda mean: 0)


def number(value, digits=3):
    """A figure with ``digits`` significant digits: 0.0123, 1,230, 1.23e-08, and 0 for what is exactly zero."""
    return _write(value, lambda mean: digits - 1 - int(f"{mean:.{digits - 1}e}".partition("e")[2]), digits)


def metric(value):
    """A metric with four decimals, as RecBole writes them."""
    return _write(value, lambda mean: 4)


def seconds(value):
    """Seconds with three significant digits: 131 µs, 1.31 ms, 13.1 s, 1,310 s."""
    mean, _ = _parts(value)
    if mean is None:
        return MISSING
    unit, factor = next((pair for pair in (("s", 1), ("ms", 1e3)) if abs(mean) * pair[1] >= 0.9995), ("µs", 1e6))
    return f"{number(_scaled(value, factor))} {unit if mean else 's'}"


def mebibytes(value):
    """Bytes as MiB with three significant digits."""
    return MISSING if _parts(value)[0] is None else f"{number(_scaled(value, 2**-20))} MiB"


def times(value):
    """A ratio of costs: 615×."""
    return MISSING if _parts(value)[0] is None else f"{number(value)}×"


def mean_only(form):
    """The same way of writing (:func:`number` or another), without the standard deviation: for narrow tables."""
    return lambda value: form(value.mean if isinstance(value, Spread) else value)


def _parts(value):
    mean, sd = value[:2] if isinstance(value, Spread) else (value, None)
    return (None, None) if mean is None or math.isnan(mean) else (mean, sd)


def _scaled(value, factor):
    mean, sd = _parts(value)
    return Spread(mean * factor, None if sd is None else sd * factor, 0)


def _write(value, decimals, digits=None):
    """``mean ± sd``, both with the decimals that fit the mean; very small or large ones with exponents."""
    mean, sd = _parts(value)
    if mean is None:
        return MISSING

    def one(figure):
        if math.isinf(figure):
            return "∞" if figure > 0 else "-∞"
        if figure == 0 and digits:
            return "0"
        if digits and not 1e-4 <= abs(mean) < 1e6:
            return f"{figure:.{digits - 1}e}"
        places = decimals(mean)
        return f"{round(figure, places):,.{max(0, places)}f}"

    return one(mean) if sd is None else f"{one(mean)} ± {one(sd)}"


@dataclass(frozen=True)
class Column:
    """A column of a table: the key of the rows, the heading, and how a value is written (a function to str).

    Line breaks in the heading hold on the terminal alone, and so does a hyphen before one.
    """

    key: str
    heading: str
    format: Any = text

    @property
    def left(self):
        """Whether the values are names, which stand at the left; figures stand at the right."""
        return self.format is text


def present(rows, columns):
    """The columns for which at least one row has a value."""
    return [column for column in columns if any(_parts_of(row.get(column.key)) is not None for row in rows)]


def _parts_of(value):
    return value.mean if isinstance(value, Spread) else value


def columns_of(rows):
    """Columns for rows without a description: every key, figures with three significant digits."""
    keys = dict.fromkeys(key for row in rows for key in row)

    def form(key):
        values = [_parts_of(row.get(key)) for row in rows]
        kinds = {type(value) for value in values if value is not None}
        return count if kinds == {int} else number if kinds and kinds <= {int, float} else text

    return [Column(key, str(key), form(key)) for key in keys]


def terminal_table(rows, columns):
    """The rows as a table for the terminal."""
    from tabulate import tabulate

    return tabulate(
        [[column.format(row.get(column.key)) for column in columns] for row in rows],
        [column.heading for column in columns],
        colalign=["left" if column.left else "right" for column in columns],
        disable_numparse=True,
    )


def write_csv(path, rows):
    """Write rows with full precision; one column for every key, in the order of first sight; None is empty."""
    with atomic_write(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(dict.fromkeys(key for row in rows for key in row)))
        writer.writeheader()
        writer.writerows(rows)


def write_json(path, record):
    """Write a record as JSON; what JSON does not know becomes the nearest it does (NaN and infinity: null)."""
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(_plain(record), indent=1, allow_nan=False) + "\n", encoding="utf-8")


def _plain(value):
    if isinstance(value, Spread):
        return _plain(value._asdict())
    if isinstance(value, dict):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "tolist"):  # NumPy's and PyTorch's
        return _plain(value.tolist())
    return None if isinstance(value, float) and not math.isfinite(value) else value
