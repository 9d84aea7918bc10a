"""The report of an evaluation of unlearning: tables on the terminal, evaluation.csv, .json and .html.

A row is one arm at one checkpoint of one seed; the record holds them under ``"rows"``, the drift over sequential
requests under ``"drift"``, and what :func:`recbole_llmd.report.provenance.provenance` says.
"""

import textwrap
from pathlib import Path

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

WIDTH = 132  # of the notes on the terminal
BLOCK = ("model", "dataset", "scenario", "group", "ratio", "checkpoint", "phase")
COMPLETENESS = (
    "Completeness is measured against the retrained arm: the same model fitted from scratch on the retained "
    "interactions. Distances of 0, an overlap of 1 and the retrained arm's recall and membership AUC are the aim."
)
ARMS = (
    "Arms: original is the model before any request; no-op ignores the requests; X only corrects the interactions and "
    "not the mapping; IMCorrect corrects both; SISA retrains the shard of users that a request touches and averages "
    "the shards; retrained fits anew after every request."
)
ABBREVIATIONS = (
    "B dist.: relative Frobenius distance of the mapping matrix; AUC: of membership inference on the forgotten pairs, "
    "by the served scores and by the mapping alone; request p50, total: update only."
)
LEFT_OUT = "The CSV file has the earlier checkpoints and all other figures."


def summary(rows):
    """Mean and standard deviation over seeds of every figure, per block and arm.

    Returns:
        list: rows with the keys of ``BLOCK``, ``arm``, ``seeds`` (how many) and, of every figure, a
        :class:`~recbole_llmd.report.table.Spread`; texts are joined. In the order of the rows.
    """
    groups = {}
    for row in rows:
        groups.setdefault(tuple(row.get(key) for key in (*BLOCK, "arm")), []).append(row)
    found = []
    for key, members in groups.items():
        entry = dict(zip((*BLOCK, "arm"), key, strict=True))
        entry["seeds"] = len({member["seed"] for member in members})
        for field in dict.fromkeys(field for member in members for field in member):
            if field not in entry and field != "seed":
                values = [member.get(field) for member in members]
                texts = dict.fromkeys(value for value in values if isinstance(value, str))
                entry[field] = ", ".join(texts) if texts else spread(values)
        found.append(entry)
    return found


def utility_metric(record):
    """The metric that stands for utility: NDCG@10 where it was measured, else the configured ``valid_metric``."""
    if any("test_ndcg@10" in row for row in record["rows"]):
        return "ndcg@10"
    return str(record["config"].get("valid_metric", "ndcg@10")).lower()


def columns(utility, form=lambda way: way):
    """The columns of a block; ``form`` changes how figures other than utility are written."""
    return [
        Column("arm", "arm"),
        Column("B_frobenius", "B\ndist.", form(number)),
        Column("overlap@10", "over-\nlap\n@10", form(metric)),
        Column("forget_recall@10", "forget\nrecall\n@10", form(metric)),
        Column("membership_auc_scores", "AUC\nscores", form(metric)),
        Column("membership_auc_mapping", "AUC\nmap.", form(metric)),
        Column("sensitive_exposure@10", "sensi-\ntive\n@10", form(metric)),
        Column("spam_hit@10", "spam\nhit\n@10", form(metric)),
        Column(f"test_{utility}", f"test\n{utility.upper()}", metric),
        Column(f"ratio_{utility}", "÷ re-\ntrained", form(metric)),
        Column("seconds_p50", "request\np50", form(seconds)),
        Column("seconds_total", "total", form(seconds)),
        Column("seconds_with_io", "with\nI/O", form(seconds)),
        Column("speedup", "speed-\nup", form(times)),
    ]


def print_summary(record):
    """Print one table a model, scenario and size, at the last checkpoint, with the arms as rows."""
    for fit in record["fits"]:
        print("\n" + textwrap.fill(fit_line(fit), WIDTH))
    found = _with_io(record["rows"])
    shown = columns(utility_metric(record), mean_only)
    for block, arms in _blocks(_last(found)).items():
        print(f"\n{block[0]} · {_heading(arms[0])}")
        print(terminal_table(arms, present(arms, shown)))
    print()
    for note in (COMPLETENESS, ABBREVIATIONS, f"Means over seeds (±: sample standard deviation). {LEFT_OUT}"):
        print(textwrap.fill(note, WIDTH))


def fit_line(fit):
    """A sentence on RecBole's own fit of the model beside ours, from which all arms start."""
    columns = f"{count(fit['columns'])} of its columns" if fit["columns"] else "no column"
    return (
        f"{fit['model']} on {fit['dataset']}: RecBole's own fit took {seconds(fit['recbole_seconds'])}, ours "
        f"{seconds(fit['seconds'])}; B differs by {number(fit['B_frobenius'])} (relative Frobenius), {columns} by more "
        "than rounding. All arms start from ours."
    )


def write(folder, record):
    """Write ``evaluation.csv`` (the rows), ``evaluation.json`` (the record) and ``evaluation.html`` (tables, plots)."""
    folder = Path(folder)
    write_csv(folder / "evaluation.csv", record["rows"])
    write_json(folder / "evaluation.json", record)
    found, utility = _with_io(record["rows"]), utility_metric(record)
    last = _last(found)
    sections = [
        plots.completeness_against_utility(last, utility),
        plots.seconds_against_size(record["rows"]),
        plots.drift(record.get("drift", [])),
        plots.sensitive_exposure(found),
        plots.spam_hits(last),
        *_tables(last, utility),
        provenance_section(record),
    ]
    size = record["datasets"]
    intro = [
        f"{', '.join(dict.fromkeys(row['dataset'] for row in record['rows']))}: {count(size['users'])} users, "
        f"{count(size['items'])} items, {count(size['interactions'])} training interactions.",
        *map(fit_line, record["fits"]),
        COMPLETENESS,
        ARMS,
    ]
    title = "Unlearning: completeness, utility, efficiency"
    write_page(folder / "evaluation.html", title, intro, [section for section in sections if section])


def _with_io(rows):
    """The summary, with the seconds that include reading and writing the model."""
    rows = [
        {**row, "seconds_with_io": row["seconds_total"] + row["seconds_io"]}
        if row.get("seconds_total") is not None and row.get("seconds_io") is not None
        else row
        for row in rows
    ]
    return summary(rows)


def _last(found):
    """The entries of the last checkpoint of each run."""

    def run(entry):
        return tuple(entry[key] for key in BLOCK if key != "checkpoint")

    ends = {}
    for entry in found:
        ends[run(entry)] = max(entry["checkpoint"], ends.get(run(entry), 0))
    return [entry for entry in found if entry["checkpoint"] == ends[run(entry)]]


def _blocks(found):
    """``{block: entries}``, the arms of each from the untouched model to the retrained one."""
    blocks = {}
    for entry in found:
        blocks.setdefault(tuple(entry[key] for key in BLOCK), []).append(entry)
    order = plots.ARMS.index
    return {block: sorted(entries, key=lambda entry: order(entry["arm"])) for block, entries in blocks.items()}


def _heading(entry):
    """What was forgotten or learned, in absolute numbers."""
    users, interactions, requests = (_several(entry[key], key) for key in ("users", "interactions", "requests"))
    done = "learned again" if entry["phase"] == "learn" else "forgotten"
    name = f"{entry['dataset']} · {plots.size_label(entry)}"
    seeds = _several(spread([entry["seeds"]]), "seeds")
    return f"{name} · {done}: {interactions} of {users} in {requests}; {seeds}"


def _several(value, plural):
    return f"{_counted(value)} {plural.removesuffix('s') if _counted(value) == '1' else plural}"


def _counted(value):
    return count(value.mean if isinstance(value, Spread) and not value.sd else value)


def _tables(last, utility):
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
    sections = {}
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
