"""The report of an evaluation of unlearning, on a made-up one."""

import csv
import json
import math
import re
import statistics

import pytest

from recbole_llmd.report.table import Spread
from recbole_llmd.unlearning.evaluation import plots, report
from recbole_llmd.unlearning.evaluation.record import EvaluationRecord
from tests.helpers.pages import data_of, loads, page_of

ARMS = ("original", "no-op", "X only", "one step", "corrected", "SISA", "RecEraser-mean", "retrained")
DISTANCE = dict(zip(ARMS, (0.2, 0.2, 0.1, 0.05, 1e-14, 0.3, 0.35, 0.0), strict=True))

FIT = {"model": "EASE", "dataset": "toy", "recbole_seconds": 3.0, "seconds": 0.5, "B_frobenius": 2e-6, "columns": 0}


def row(arm, seed, scenario="interactions", ratio=0.01, checkpoint=1.0, **more):
    """One row: distances by arm, NDCG 0.3 + seed / 1000; correcting takes 1 ms an interaction, retraining 10 s."""
    interactions = round(100_000 * ratio) if ratio else 40
    seconds = {"original": 0.0, "no-op": 0.0, "corrected": 1e-3 * interactions, "retrained": 10.0}.get(arm, 2.0)
    distance = None if arm in ("SISA", "RecEraser-mean") else DISTANCE[arm]
    return {
        **dict(model="EASE", dataset="toy", scenario=scenario, group=None, ratio=ratio, seed=seed),
        **dict(checkpoint=checkpoint, requests=1, users=7, interactions=interactions, phase="forget", arm=arm),
        **dict(method="refit" if arm == "retrained" else "none", B_frobenius=distance, B_max=distance),
        **dict(scores_frobenius=DISTANCE[arm], scores_max=DISTANCE[arm]),
        "overlap@10": 1 - DISTANCE[arm],
        "overlap@20": 1.0,
        "rbo@20": 1.0,
        **dict(users_compared=700, users_left_out=7, pairs_attacked=100, pairs_left_out=9),
        "forget_recall@10": 0.25,
        "forget_recall@20": 0.35,
        **dict(membership_auc_scores=0.75, membership_auc_mapping=0.625, shadow_auc=0.5625),
        **dict(difference_auc_users=0.875, difference_auc_items=0.5),
        "activity_gap_ndcg@10": 0.03125,
        "sensitive_exposure@10": 0.4 - 0.3 * checkpoint if scenario == "sensitive" else None,
        "spam_hit@10": DISTANCE[arm] * 2 if scenario == "spam" else None,
        "test_ndcg@10": 0.3 + seed / 1000,
        "ratio_ndcg@10": 0.9 if arm == "SISA" else 1.0,
        "test_mrr@10": 0.2,
        "ratio_mrr@10": 0.5,
        **dict(seconds_p50=seconds, seconds_p90=seconds, seconds_total=seconds, seconds_saving=0.5),
        **dict(seconds_cold=6 * seconds or None, seconds_warm=None, seconds_amortised=seconds),
        **dict(retraining_seconds=10.0, speedup=10 / seconds if seconds else None, peak_bytes=3 * 2**20),
        **more,
    }


def evaluation(rows, drift=()):
    return EvaluationRecord(
        provenance={
            "command": "recbole-llmd unlearn --evaluate --dataset=<toy>",
            "commit": "abc1234",
            "machine": {"cores": 2},
            "versions": {"recbole": "1.2.1"},
        },
        config={"valid_metric": "MRR@10"},
        datasets={"users": 943, "items": 1682, "interactions": 80000},
        fits=[FIT],
        rows=list(rows),
        drift=list(drift),
    )


def grid(seeds=(2, 3, 5), **more):
    return [row(arm, seed, **more) for seed in seeds for arm in ARMS]


def everything():
    rows = [entry for ratio in (0.001, 0.01, 0.5) for entry in grid(ratio=ratio)]
    rows += [entry for share in (0.5, 1.0) for entry in grid(scenario="sensitive", ratio=None, checkpoint=share)]
    rows += grid(scenario="spam", ratio=0.02)
    drift = [
        {"model": "EASE", "dataset": "toy", "dtype": dtype, "seed": 2, "requests": n, "B_frobenius": n * unit}
        for dtype, unit in (("float32", 1e-8), ("float64", 0.0))
        for n in (1, 10)
    ]
    return evaluation(rows, drift)


def test_summary_over_seeds_by_hand():
    entries = report.summary([*grid(seeds=(2, 3, 7)), *grid(seeds=(2,), ratio=0.02), *grid(seeds=(2,), phase="learn")])
    assert len(entries) == 3 * len(ARMS)
    entry = entries[ARMS.index("corrected")]
    assert (entry["arm"], entry["ratio"], entry["phase"], entry["seeds"]) == ("corrected", 0.01, "forget", 3)
    assert entry["test_ndcg@10"].mean == pytest.approx(0.304)
    assert entry["test_ndcg@10"].sd == pytest.approx(math.sqrt((2**2 + 1**2 + 3**2) / 2) / 1000)
    assert entry["interactions"] == Spread(1000.0, 0.0, 3) and entry["method"] == "none"
    sisa = entries[ARMS.index("SISA")]
    assert sisa["B_frobenius"] == Spread(None, None, 0) and sisa["scores_frobenius"].mean == pytest.approx(0.3)
    single = entries[len(ARMS)]
    assert (single["ratio"], single["seeds"], single["test_ndcg@10"]) == (0.02, 1, Spread(0.302, None, 1))


def test_terminal_summary(capsys):
    report.print_summary(everything())
    printed = capsys.readouterr().out
    assert max(map(len, printed.splitlines())) <= 140
    assert "EASE · toy · interactions, 0.1% · forgotten: 100 interactions of 7 users in 1 request; 3 seeds" in printed
    assert "Completeness is measured against the retrained arm" in printed
    assert printed.count(" seeds") == 5 + 1  # three sizes, the sensitive items' last checkpoint, spam; the notes
    block = printed[printed.index("interactions, 0.1%") :].split("\n\n")[0].splitlines()
    lines = {line[:14].strip(): line for line in block}
    figures = re.split(r"  +", lines["corrected"])
    utility = f"{statistics.mean([0.302, 0.303, 0.305]):.4f} ± {statistics.stdev([0.302, 0.303, 0.305]):.4f}"
    expected = ["1.00e-14", "1.0000", "0.2500", "0.7500", "0.6250", "0.5625", "0.8750", utility]
    assert figures == ["corrected", *expected, "600 ms", "100 ms", "100×"]  # nothing is warm here
    assert re.split(r"  +", lines["SISA"])[:3] == ["SISA", "–", "0.7000"]
    assert list(lines)[-len(ARMS) :] == list(ARMS)
    sensitive = printed[printed.index("sensitive ·") :].split("\n\n")[0]
    assert re.search(r"retrained .* 0\.1000 ", sensitive)  # the exposure of the last checkpoint


def test_utility_is_ndcg_or_the_configured_metric(capsys):
    assert report.utility_metric(everything()) == "ndcg@10"
    rows = [{key: value for key, value in entry.items() if "ndcg" not in key} for entry in grid()]
    report.print_summary(evaluation(rows))
    assert report.utility_metric(evaluation(rows)) == "mrr@10" and "MRR@10" in capsys.readouterr().out


def test_csv_and_json_are_the_record(tmp_path):
    record = everything()
    report.write(tmp_path / "out", record)
    assert json.loads((tmp_path / "out/evaluation.json").read_text()) == record.as_dict()
    with open(tmp_path / "out/evaluation.csv", newline="") as file:
        read = list(csv.DictReader(file))
    assert len(read) == len(record.rows)
    for line, entry in zip(read, record.rows, strict=True):
        assert line == {key: "" if value is None else str(value) for key, value in entry.items()}


PLOTS = {
    "Completeness against utility",
    "Time against request size",
    "Drift over sequential requests",
    "Sensitive items recommended",
    "Spam targets recommended",
}


def headings(folder, record):
    report.write(folder, record)
    return set(re.findall(r"<h2>(.*?)</h2>", page_of(folder / "evaluation.html")))


def test_page_has_the_sections_with_data_and_only_those(tmp_path):
    last = "Where the figures come from"
    full = headings(tmp_path, everything())
    assert full == {*PLOTS, "Figures: interactions", "Figures: sensitive", "Figures: spam", last}
    page = page_of(tmp_path / "evaluation.html")
    assert loads(page) == [] and "toy: 943 users, 1,682 items, 80,000 training interactions." in page
    assert len(data_of(page)) == 5
    some = headings(tmp_path, evaluation(grid(scenario="noise")))
    assert some == {"Completeness against utility", "Figures: noise", last}
    assert headings(tmp_path, evaluation(grid(scenario="spam"))) - some == {"Spam targets recommended", "Figures: spam"}
    sensitive = evaluation(grid(scenario="sensitive", ratio=None))
    assert headings(tmp_path, sensitive) - some == {"Sensitive items recommended", "Figures: sensitive"}
    drift = evaluation(grid(scenario="noise"), everything().drift)
    assert headings(tmp_path, drift) - some == {"Drift over sequential requests"}
    sizes = evaluation([*grid(scenario="noise", ratio=0.01), *grid(scenario="noise", ratio=0.02)])
    assert headings(tmp_path, sizes) - some == {"Time against request size"}


def traces(section):
    """``{name: [(x, y), ...]}`` of a section's figure."""
    return {trace.name: list(zip(trace.x, trace.y, strict=True)) for trace in section.blocks[-1].data}


def test_plot_of_completeness_shows_zero_at_the_floor():
    section = plots.utility_section(report.summary(grid()), "ndcg@10")
    lines = traces(section)
    assert lines["SISA"] == [(pytest.approx(0.9), pytest.approx(0.3))]
    assert lines["corrected"] == [(1.0, pytest.approx(1e-14, rel=1e-6, abs=0))]
    floor = lines["retrained"][0][1]
    axis = section.blocks[-1].layout.yaxis
    assert 0 < floor < 1e-14 and axis.ticktext[axis.tickvals.index(floor)] == "0"


def test_plot_of_time_marks_the_break_even():
    """1 ms an interaction against 10 s: 10,000 interactions, between the sizes 1,000 and 50,000."""
    section = plots.time_section(everything().rows)
    lines = traces(section)
    assert lines["corrected"] == [(100, pytest.approx(0.1)), (1000, pytest.approx(1.0)), (50_000, pytest.approx(50.0))]
    assert [y for _, y in lines["retrained"]] == [10.0] * 3 and "original" not in lines
    assert [x for x, _ in lines["break-even"]] == pytest.approx([10_000] * 2)
    assert section.blocks[1] == "Break-even of the corrected arm: EASE 10,000 interactions."
    small = [entry for ratio in (0.001, 0.002) for entry in grid(ratio=ratio)]
    section = plots.time_section(small)
    assert "break-even" not in traces(section) and "none within these sizes" in section.blocks[1]


def test_time_of_several_requests_is_for_each():
    rows = [row("corrected", 2, ratio=ratio, requests=4) for ratio in (0.004, 0.04)]
    assert traces(plots.time_section(rows))["corrected"] == [
        (100, pytest.approx(0.1)),
        (1000, pytest.approx(1.0)),
    ]


def test_plots_of_drift_sensitive_items_and_spam():
    record = everything()
    lines = traces(plots.drift_section(record.drift))
    assert lines["EASE float32"] == [(1, pytest.approx(1e-8)), (10, pytest.approx(1e-7))]
    assert [y for _, y in lines["EASE float64"]] == pytest.approx([1e-9] * 2, abs=0)  # zeros, a decade below the rest
    summary = report.summary(record.rows)
    assert traces(plots.sensitive_section(summary))["corrected"] == [
        (0.5, pytest.approx(0.25)),
        (1.0, pytest.approx(0.1)),
    ]
    lines = traces(plots.spam_section(summary))
    assert lines["original"] == [("EASE", pytest.approx(0.4))] and lines["retrained"] == [("EASE", 0.0)]
