"""The HTML page of a comparison: tables, and for each dataset its plots."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from recbole_llmd.comparison import page_plots
from recbole_llmd.comparison.cell_store import Record
from recbole_llmd.comparison.page_plots import Look
from recbole_llmd.comparison.summary import NEVER, VariantResult, by_dataset
from recbole_llmd.comparison.tables import difference_columns, label, phase_columns, row_columns
from recbole_llmd.report.page import Section, Table, provenance_section, write_page
from recbole_llmd.report.plot_style import styles
from recbole_llmd.report.table import present

if TYPE_CHECKING:
    from plotly.graph_objects import Figure


class _Plot(NamedTuple):
    """A section of the page that shows the same plot for every dataset."""

    heading: str
    text: str
    draw: Callable[[Sequence[VariantResult], str, Look], list[Figure]]


def write(path: Path, record: Record, results: Sequence[VariantResult]) -> None:
    """Write the page of a comparison's ``record`` and its results."""
    experiment = record["experiment"]
    metric, look = experiment["metrics"][0], styles(result.variant for result in results)
    on_dataset = by_dataset(results)
    sections = [_tables(record), *_phases(record)]
    for plot in _plots(record, label(metric)):
        content: list[str | Figure] = []
        for dataset, own in on_dataset.items():
            figures = plot.draw(own, metric, look)
            content += [f"Dataset {dataset}:", *figures] if figures and len(on_dataset) > 1 else figures
        if content:
            sections.append(Section(plot.heading, [plot.text, *content]))
    intro = [
        f"Leave-one-out by time, all items ranked, {len(experiment['seeds'])} seeds "
        f"({', '.join(map(str, experiment['seeds']))}), compared with {experiment['baseline']}.",
        *(f"Note: {note}" for note in record["notes"]),
    ]
    title = f"{', '.join(experiment['variants'])} on {', '.join(on_dataset)}"
    write_page(path, title, intro, [*sections, provenance_section(record)])


def _tables(record: Record) -> Section:
    content = [
        "Test figures as mean ± standard deviation over the seeds. “· LLM” is the LLM that was trained beside the CRM; "
        "the CRM alone is served. Trainings: among how many the validation chose the row's weights. Training is the "
        "whole variant's. Serving: time to score all items for one user.",
        Table(record["rows"], present(record["rows"], row_columns(record["experiment"]["metrics"]))),
    ]
    if record["differences"]:
        content += [
            "Difference to the baseline, and of the pairs that the experiment names, on the users in common. 95% "
            "interval: of the relative difference, by 10,000 draws of the users with replacement. p over users: paired "
            "t-test on each user's difference. For both a user's values are averaged over the seeds first. p over "
            "seeds: paired t-test on the seeds' means. Both p are corrected (Holm) for the number of comparisons in "
            "the same metric.",
            Table(record["differences"], difference_columns()),
        ]
    return Section("Results", content)


def _phases(record: Record) -> list[Section]:
    if not record["phases"]:
        return []
    text = (
        "The best validation of every phase, mean ± standard deviation over the seeds. A side ends with the best of "
        "the phases that count: those in which it is taught, or, where nobody teaches it, its phases in the rounds. "
        "Any phase may give the teacher. Training is without validation."
    )
    return [Section("Phases", [text, Table(record["phases"], phase_columns())])]


def _plots(record: Record, shown: str) -> list[_Plot]:
    return [
        _Plot(
            "Learning curves",
            "Validation figure after every epoch, one line a seed. In the shaded phases the LLM is trained (dotted), "
            "in the others the CRM (solid). Every phase has the same width, however many epochs it had.",
            page_plots.learning_curves,
        ),
        _Plot(
            "Rounds",
            "The best validation figure of each round's phases, mean over the seeds; the bars are one standard "
            "deviation. Round 0 is the warm-up.",
            page_plots.rounds_plot(record["phases"]),
        ),
        _Plot(
            "Learning curves of models trained alone",
            "Validation figure over the epochs, one line a seed.",
            page_plots.curves_alone,
        ),
        _Plot(
            f"{shown} against training cost",
            "Mean over the seeds; the bars are one standard deviation. Training seconds contain building the model, "
            "validation and, where variants share a warm-up, the whole warm-up.",
            page_plots.cost,
        ),
        _Plot(
            f"{shown} by length of history",
            "Test users in groups of about like size by the number of interactions before the target.",
            page_plots.groups_plot(record["by_history"], "history", "interactions in the history"),
        ),
        _Plot(
            f"{shown} by popularity of the target",
            f"Test users by the number of training interactions of their target; “{NEVER}”: a cold item.",
            page_plots.groups_plot(record["by_popularity"], "popularity", "training interactions of the target"),
        ),
        _Plot(
            "Sample weights",
            "The weights of the distillation term in every epoch: median, quartiles (dark) and the middle 90% (light), "
            "averaged over the seeds. Their mean is 1 in every batch.",
            page_plots.sample_weights,
        ),
    ]
