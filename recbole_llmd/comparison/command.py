"""``recbole-llmd compare``: runs what is missing and writes the comparison."""

from pathlib import Path

from recbole_llmd.comparison import page, summary, tables
from recbole_llmd.comparison.experiment import from_arguments
from recbole_llmd.comparison.runner import run_cells
from recbole_llmd.report.provenance import provenance
from recbole_llmd.report.table import present, terminal_table, write_csv, write_json


def compare(args, settings, command):
    """Run the comparison of the command line; returns the exit status: 1 if a cell failed, 130 if interrupted."""
    experiment = from_arguments(args, settings)
    out = Path(args.out or _default_folder(args, experiment))
    cells = experiment.cells()
    if experiment.mask_history:
        print("Not all models are sequential: the users' histories are left out of the ranking of all models.")
    print(
        f"{len(cells)} cells: {', '.join(experiment.datasets)}; {', '.join(experiment.variants)}; "
        f"seeds {', '.join(map(str, experiment.seeds))}. Leave-one-out by time, all items ranked. Results: {out}"
    )
    try:
        records = run_cells(cells, out, command)
    except KeyboardInterrupt:
        print("Interrupted. The same command goes on from here.")
        return 130
    found = summary.arms(cells, records, out)
    if not found:
        print(f"Every cell failed. Their logs: {out}/logs")
        return 1
    report(experiment, cells, records, found, out, command)
    return int(any(record["status"] == "failed" for record in records))


def report(experiment, cells, records, found, out, command):
    """Print the tables and write ``comparison.csv``, ``.json`` and ``.html`` into ``out``."""
    metrics = experiment.metrics
    figures = {
        "rows": summary.rows(found, metrics),
        "differences": summary.differences(found, experiment.baseline, metrics),
        "by_history": summary.breakdown(found, metrics[0], "history"),
        "by_popularity": summary.breakdown(found, metrics[0], "popularity", summary.NEVER),
        "notes": summary.notes(cells, records, found, experiment.mask_history),
    }
    print(terminal_table(figures["rows"], present(figures["rows"], tables.row_columns(metrics))))
    if figures["differences"]:
        shown = [row for row in figures["differences"] if row["metric"] == metrics[0]]
        print("\n" + terminal_table(shown, tables.difference_columns()))
    print("".join(f"\nNote: {note}" for note in figures["notes"]))
    about = {
        "datasets": list(experiment.datasets),
        "variants": experiment.variants,
        "seeds": experiment.seeds,
        "baseline": experiment.baseline,
        "metrics": metrics,
        "mask_history": experiment.mask_history,
    }
    record = {**provenance(command), "experiment": about, **figures}
    record["cells"] = [
        {"record": f"cells/{cell.name}.json", "status": r["status"]} for cell, r in zip(cells, records, strict=True)
    ]
    write_csv(out / "comparison.csv", tables.flat_rows(figures))
    write_json(out / "comparison.json", record)
    page.write(out / "comparison.html", record, found)
    print(f"\n{out}/comparison.html (.csv, .json)")


def _default_folder(args, experiment):
    return Path("saved", "compare", Path(args.experiment).stem if args.experiment else "-".join(experiment.datasets))
