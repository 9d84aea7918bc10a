"""The report of an evaluation of unlearning: tables on the terminal, evaluation.csv, .json and .html.

A row is one arm at one checkpoint of one seed; an entry sums up the rows of all seeds.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from recbole_llmd.report.page import Section, Table, provenance_section, write_page
from recbole_llmd.report.table import (
    Column,
    Spread,
    count,
    mean_only,
    mebibytes,
    metric,
    number,
    present,
    seconds,
    spread,
    terminal_table,
    times,
    write_csv,
    write_json,
)
from recbole_llmd.unlearning.evaluation import plots
from recbole_llmd.unlearning.evaluation.arms import ARMS
from recbole_llmd.unlearning.evaluation.record import EvaluationRecord, Row

WIDTH = 132  # of the notes on the terminal
BLOCK = ("model", "dataset", "scenario", "group", "ratio", "checkpoint", "phase")
COMPLETENESS = (
    "Completeness is measured against the retrained arm: the same model fitted from scratch on the retained "
    "interactions. Distances of 0, an overlap of 1 and the retrained arm's recall and membership AUC are the aim."
)
ARMS_EXPLAINED = (
    "Arms: original is the model before any request; no-op ignores the requests; X only corrects the interactions and "
    "not the mapping; one step corrects the mapping to first order (where it is made of an inverse); corrected has "
    "both corrected; SISA retrains the shard of users that a request touches and averages the shards; RecEraser-mean "
    "does so with shards of similar users; retrained fits anew after every request."
)
ABBREVIATIONS = (
    "B dist.: relative Frobenius distance of the mapping matrix; overlap, forget recall, AUC scores: over users who "
    "keep some interaction; AUC: of membership inference on the forgotten pairs, by the served scores, by the mapping "
    "alone, by shadow models, by the change of the mapping (diff.); activity gap: utility of the more active half of "
    "the users less that of the other; cold: the first request with loading the checkpoint, warm: a later request, "
    "amortised: the total divided by the requests."
)
LEFT_OUT = "The CSV file has the earlier checkpoints and all other figures, the page the gap and the ratios of utility."

Form = Callable[[Any], str]  # how a value is written


def summary(rows: Iterable[Row]) -> list[Row]:
    """Mean and standard deviation over seeds of every figure, per block and arm.

    Returns:
        list: entries with the keys of ``BLOCK``, ``arm``, ``seeds`` (how many) and, of every figure, a
        :class:`~recbole_llmd.report.table.Spread`; texts are joined. In the order of the rows.

    >>> [entry] = summary([{"arm": "SISA", "seed": 2, "js": 0.25}, {"arm": "SISA", "seed": 3, "js": 0.75}])
    >>> entry["arm"], entry["seeds"], entry["js"].mean
    ('SISA', 2, 0.5)
    """
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(row.get(key) for key in (*BLOCK, "arm")), []).append(row)
    return [{**dict(zip((*BLOCK, "arm"), key, strict=True)), **_over_seeds(members)} for key, members in groups.items()]


def _over_seeds(rows: Sequence[Row]) -> Row:
    """The entry of the rows of one block and arm, without their common keys."""
    entry: Row = {"seeds": len({row["seed"] for row in rows})}
    for field in dict.fromkeys(field for row in rows for field in row):
        if field not in (*BLOCK, "arm", "seed"):
            values = [row.get(field) for row in rows]
            texts = dict.fromkeys(value for value in values if isinstance(value, str))
            entry[field] = ", ".join(texts) if texts else spread(values)
    return entry


def utility_metric(record: EvaluationRecord) -> str:
    """The metric that stands for utility: NDCG@10 where it was measured, else the configured ``valid_metric``."""
    if any("test_ndcg@10" in row for row in record.rows):
        return "ndcg@10"
    return str(record.config.get("valid_metric", "ndcg@10")).lower()


def columns(utility: str, form: Callable[[Form], Form] = lambda way: way) -> list[Column]:
    """The columns of a block; ``form`` changes how figures other than utility are written."""
    return [
        Column("arm", "arm"),
        Column("B_frobenius", "B\ndist.", form(number)),
        Column("overlap@10", "over-\nlap\n@10", form(metric)),
        Column("forget_recall@10", "forget\nrecall\n@10", form(metric)),
        Column("membership_auc_scores", "AUC\nscores", form(metric)),
        Column("membership_auc_mapping", "AUC\nmap.", form(metric)),
        Column("shadow_auc", "AUC\nsha-\ndow", form(metric)),
        Column("difference_auc_users", "AUC\ndiff.", form(metric)),
        Column("sensitive_exposure@10", "sensi-\ntive\n@10", form(metric)),
        Column("spam_hit@10", "spam\nhit\n@10", form(metric)),
        Column(f"test_{utility}", f"test\n{utility.upper()}", metric),
        Column(f"ratio_{utility}", "÷ re-\ntrained", form(metric)),
        Column(f"activity_gap_{utility}", "acti-\nvity\ngap", form(metric)),
        Column("seconds_cold", "cold", form(seconds)),
        Column("seconds_warm", "warm", form(seconds)),
        Column("seconds_amortised", "amor-\ntised", form(seconds)),
        Column("speedup", "speed-\nup", form(times)),
    ]


def _wide(utility: str) -> tuple[str, ...]:
    """The columns for which a terminal has no room."""
    return f"ratio_{utility}", f"activity_gap_{utility}"


def print_summary(record: EvaluationRecord) -> None:
    """Print one table a model, scenario and size, at the last checkpoint, with the arms as rows."""
    for fit in record.fits:
        print("\n" + textwrap.fill(fit_line(fit), WIDTH))
    utility = utility_metric(record)
    shown = [column for column in columns(utility, mean_only) if column.key not in _wide(utility)]
    for block, entries in _blocks(_last(summary(record.rows))).items():
        print(f"\n{block[0]} · {_heading(entries[0])}")
        print(terminal_table(entries, present(entries, shown)))
    print()
    for note in (COMPLETENESS, ABBREVIATIONS, f"Means over seeds (±: sample standard deviation). {LEFT_OUT}"):
        print(textwrap.fill(note, WIDTH))


def fit_line(fit: Mapping[str, Any]) -> str:
    """A sentence on RecBole's own fit of the model beside ours, which all arms begin with."""
    columns = f"{count(fit['columns'])} of its columns" if fit["columns"] else "no column"
    return (
        f"{fit['model']} on {fit['dataset']}: RecBole's own fit took {seconds(fit['recbole_seconds'])}, ours "
        f"{seconds(fit['seconds'])}; B differs by {number(fit['B_frobenius'])} (relative Frobenius), {columns} by more "
        "than rounding. All arms start from ours."
    )


def write(folder: str | Path, record: EvaluationRecord) -> None:
    """Write ``evaluation.csv`` (the rows), ``evaluation.json`` (the record) and ``evaluation.html`` (tables, plots)."""
    folder = Path(folder)
    write_csv(folder / "evaluation.csv", record.rows)
    write_json(folder / "evaluation.json", record.as_dict())
    entries, utility = summary(record.rows), utility_metric(record)
    last = _last(entries)
    sections = [
        plots.utility_section(last, utility),
        plots.time_section(record.rows),
        plots.drift_section(record.drift),
        plots.sensitive_section(entries),
        plots.spam_section(last),
        *_tables(last, utility),
        provenance_section(record.provenance),
    ]
    size = record.datasets
    intro = [
        f"{', '.join(dict.fromkeys(row['dataset'] for row in record.rows))}: {count(size['users'])} users, "
        f"{count(size['items'])} items, {count(size['interactions'])} training interactions.",
        *map(fit_line, record.fits),
        COMPLETENESS,
        ARMS_EXPLAINED,
    ]
    title = "Unlearning: completeness, utility, efficiency"
    write_page(folder / "evaluation.html", title, intro, [section for section in sections if section])


def _last(entries: Sequence[Row]) -> list[Row]:
    """The entries of the last checkpoint of each run."""

    def run(entry: Row) -> tuple[Any, ...]:
        return tuple(entry[key] for key in BLOCK if key != "checkpoint")

    ends: dict[tuple[Any, ...], float] = {}
    for entry in entries:
        ends[run(entry)] = max(entry["checkpoint"], ends.get(run(entry), 0))
    return [entry for entry in entries if entry["checkpoint"] == ends[run(entry)]]


def _blocks(entries: Sequence[Row]) -> dict[tuple[Any, ...], list[Row]]:
    """``{block: entries}``, the arms of each from the untouched model to the retrained one."""
    blocks: dict[tuple[Any, ...], list[Row]] = {}
    for entry in entries:
        blocks.setdefault(tuple(entry[key] for key in BLOCK), []).append(entry)
    return {block: sorted(arms, key=lambda entry: ARMS.index(entry["arm"])) for block, arms in blocks.items()}


def _heading(entry: Row) -> str:
    """What was forgotten or learned, in absolute numbers."""
    users, interactions, requests = (_several(entry[key], key) for key in ("users", "interactions", "requests"))
    done = "learned again" if entry["phase"] == "learn" else "forgotten"
    name = f"{entry['dataset']} · {plots.size_label(entry)}"
    seeds = _several(spread([entry["seeds"]]), "seeds")
    return f"{name} · {done}: {interactions} of {users} in {requests}; {seeds}"


def _several(value: Any, plural: str) -> str:
    return f"{_counted(value)} {plural.removesuffix('s') if _counted(value) == '1' else plural}"


def _counted(value: Any) -> str:
    return count(value.mean if isinstance(value, Spread) and not value.sd else value)


def _tables(last: Sequence[Row], utility: str) -> list[Section]:
    """One section a scenario, with one table a model."""
    shown = [
        Column("what", "forgotten"),
        Column("users", "users", _counted),
        Column("interactions", "interactions", _counted),
        Column("requests", "requests", _counted),
        *columns(utility)[:2],
        Column("scores_frobenius", "scores\ndist.", number),
        *columns(utility)[2:],
        Column("peak_bytes", "peak\nmemory", mebibytes),
        Column("method", "method"),
    ]
    sections: dict[str, dict[str, list[Row]]] = {}
    for entries in _blocks(last).values():
        for entry in entries:
            learned = " · learned again" if entry["phase"] == "learn" else ""
            row = {**entry, "what": f"{plots.size_label(entry)}{learned}"}
            sections.setdefault(entry["scenario"], {}).setdefault(entry["model"], []).append(row)
    return [
        Section(
            f"Figures: {scenario}",
            [
                f"Mean ± sample standard deviation over seeds, at the last checkpoint. {ABBREVIATIONS} {LEFT_OUT}",
                *(Table(rows, present(rows, shown), model) for model, rows in models.items()),
            ],
        )
        for scenario, models in sections.items()
    ]
