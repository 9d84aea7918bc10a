"""Tables of figures: how a number is written, rows on the terminal, CSV and JSON files."""

from __future__ import annotations

import csv
import json
import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from recbole_llmd.atomic_write import atomic_write

MISSING = "–"


class Spread(NamedTuple):
    """Mean and sample standard deviation over ``n`` values; None where there are too few.

    >>> number(Spread(mean=0.0961, sd=0.0012, n=3))
    '0.0961 ± 0.0012'
    """

    mean: float | None
    sd: float | None
    n: int


Figure: TypeAlias = float | Spread | None
Row: TypeAlias = Mapping[str, Any]


def spread(values: Iterable[float | None]) -> Spread:
    """The :class:`Spread` of the values that are neither None nor NaN.

    >>> spread([1.0, None, 3.0])
    Spread(mean=2.0, sd=1.4142135623730951, n=2)
    """
    given = [float(value) for value in values if value is not None and not math.isnan(value)]
    if not given:
        return Spread(None, None, 0)
    several = len(given) > 1 and all(map(math.isfinite, given))
    return Spread(statistics.fmean(given), statistics.stdev(given) if several else None, len(given))


def text(value: object) -> str:
    """A name."""
    return MISSING if value is None else str(value)


def count(value: Figure) -> str:
    """A whole number with separators between thousands; the mean of several rounded.

    >>> count(80000)
    '80,000'
    """
    return _write(value, lambda mean: 0)


def number(value: Figure, digits: int = 3) -> str:
    """A figure with ``digits`` significant digits; 0 is what is exactly zero.

    >>> number(0.01234), number(1234.5), number(1.2345e-8), number(0.0)
    ('0.0123', '1,230', '1.23e-08', '0')
    """
    return _write(value, lambda mean: digits - 1 - int(f"{mean:.{digits - 1}e}".partition("e")[2]), digits)


def metric(value: Figure) -> str:
    """A metric with four decimals, as RecBole writes them.

    >>> metric(0.09612)
    '0.0961'
    """
    return _write(value, lambda mean: 4)


def seconds(value: Figure) -> str:
    """Seconds with three significant digits, in the unit that fits the mean.

    >>> seconds(0.000131), seconds(Spread(0.010, 0.002, 3)), seconds(1310)
    ('131 µs', '10.0 ± 2.0 ms', '1,310 s')
    """
    mean, _ = _mean_and_sd(value)
    if mean is None:
        return MISSING
    unit, factor = next((pair for pair in (("s", 1), ("ms", 1e3)) if abs(mean) * pair[1] >= 0.9995), ("µs", 1e6))
    return f"{number(_scaled(value, factor))} {unit if mean else 's'}"


def mebibytes(value: Figure) -> str:
    """Bytes as MiB with three significant digits.

    >>> mebibytes(3 * 2**20)
    '3.00 MiB'
    """
    return MISSING if _mean_and_sd(value)[0] is None else f"{number(_scaled(value, 2**-20))} MiB"


def times(value: Figure) -> str:
    """A ratio of costs.

    >>> times(615.4)
    '615×'
    """
    return MISSING if _mean_and_sd(value)[0] is None else f"{number(value)}×"


def mean_only(form: Callable[[Figure], str]) -> Callable[[Figure], str]:
    """The same way of writing (:func:`number` or another), without the standard deviation: for narrow tables."""
    return lambda value: form(value.mean if isinstance(value, Spread) else value)


def _mean_and_sd(value: Figure) -> tuple[float, float | None] | tuple[None, None]:
    mean, sd = value[:2] if isinstance(value, Spread) else (value, None)
    return (None, None) if mean is None or math.isnan(mean) else (mean, sd)


def _scaled(value: Figure, factor: float) -> Spread:
    mean, sd = _mean_and_sd(value)
    return Spread(None if mean is None else mean * factor, None if sd is None else sd * factor, 0)


def _write(value: Figure, decimals: Callable[[float], int], digits: int | None = None) -> str:
    """``mean ± sd``, both with the decimals that fit the mean; very small or large ones with exponents."""
    mean, sd = _mean_and_sd(value)
    if mean is None:
        return MISSING

    def one(figure: float) -> str:
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

    >>> print(terminal_table([{"arm": "retrained", "s": 13.14}], [Column("arm", "arm"), Column("s", "time", seconds)]))
    arm          time
    ---------  ------
    retrained  13.1 s
    """

    key: str
    heading: str
    format: Callable[[Any], str] = text

    @property
    def left(self) -> bool:
        """Whether the values are names, which stand at the left; figures stand at the right."""
        return self.format is text


def present(rows: Sequence[Row], columns: Iterable[Column]) -> list[Column]:
    """The columns for which at least one row has a value."""
    return [column for column in columns if any(_mean(row.get(column.key)) is not None for row in rows)]


def _mean(value: Any) -> Any:
    return value.mean if isinstance(value, Spread) else value


def columns_of(rows: Sequence[Row]) -> list[Column]:
    """Columns for rows without a description: every key, figures with three significant digits."""
    keys = dict.fromkeys(key for row in rows for key in row)

    def form(key: str) -> Callable[[Any], str]:
        values = [_mean(row.get(key)) for row in rows]
        kinds = {type(value) for value in values if value is not None}
        return count if kinds == {int} else number if kinds and kinds <= {int, float} else text

    return [Column(key, str(key), form(key)) for key in keys]


def terminal_table(rows: Iterable[Row], columns: Sequence[Column]) -> str:
    """The rows as a table for the terminal."""
    from tabulate import tabulate

    return tabulate(
        [[column.format(row.get(column.key)) for column in columns] for row in rows],
        [column.heading for column in columns],
        colalign=["left" if column.left else "right" for column in columns],
        disable_numparse=True,
    )


def markdown_table(rows: Iterable[Row], columns: Sequence[Column]) -> str:
    r"""The rows as a table in Markdown.

    >>> print(markdown_table([{"arm": "a|b", "s": 13.14}], [Column("arm", "arm"), Column("s", "time", seconds)]))
    | arm | time |
    |:---|---:|
    | a\|b | 13.1 s |
    """
    lines = [[column.heading.replace("-\n", "") for column in columns]]
    lines += [[column.format(row.get(column.key)) for column in columns] for row in rows]
    head, *body = ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines]
    rule = "|" + "|".join(":---" if column.left else "---:" for column in columns) + "|"
    return "\n".join([head, rule, *body])


def write_csv(path: str | Path, rows: Sequence[Row]) -> None:
    """Write rows with full precision; one column for every key, in the order of first sight; None is empty."""
    with atomic_write(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(dict.fromkeys(key for row in rows for key in row)))
        writer.writeheader()
        writer.writerows(rows)


def write_json(path: str | Path, record: Row) -> None:
    """Write a record as JSON; what JSON does not know becomes the nearest it does (NaN and infinity: null)."""
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(_plain(record), indent=1, allow_nan=False) + "\n", encoding="utf-8")


def _plain(value: Any) -> Any:
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
