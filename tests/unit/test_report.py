"""Reports: how figures are written, records, the page, and the evaluation of unlearning."""

import csv
import json
import math
import re
import statistics
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

from recbole_llmd.report import record as records
from recbole_llmd.report import table
from recbole_llmd.report.page import Section, Table, provenance_section, write_page
from recbole_llmd.report.style import axis, figure, floored, log_axis, styles
from recbole_llmd.report.table import Column, Spread
from recbole_llmd.unlearning import plots, report

ARMS = ("original", "no-op", "X only", "IMCorrect", "SISA", "retrained")
DISTANCE = {"original": 0.2, "no-op": 0.2, "X only": 0.1, "IMCorrect": 1e-14, "SISA": 0.3, "retrained": 0.0}


# --- a made-up evaluation ---------------------------------------------------------------------------------------------


def row(arm, seed, scenario="interactions", ratio=0.01, checkpoint=1.0, **more):
    """One row: distances by arm, NDCG 0.3 + seed / 1000; correcting takes 1 ms an interaction, retraining 10 s."""
    interactions = round(100_000 * ratio) if ratio else 40
    seconds = {"original": 0.0, "no-op": 0.0, "IMCorrect": 1e-3 * interactions, "retrained": 10.0}.get(arm, 2.0)
    distance = None if arm == "SISA" else DISTANCE[arm]
    return {
        **dict(model="EASE", dataset="toy", scenario=scenario, group=None, ratio=ratio, seed=seed),
        **dict(checkpoint=checkpoint, requests=1, users=7, interactions=interactions, phase="forget", arm=arm),
        **dict(method="refit" if arm == "retrained" else "none", B_frobenius=distance, B_max=distance),
        **dict(scores_frobenius=DISTANCE[arm], scores_max=DISTANCE[arm], js=0.0),
        **{"overlap@10": 1 - DISTANCE[arm], "overlap@20": 1.0, "forget_recall@10": 0.25, "forget_recall@20": 0.35},
        **dict(membership_auc_scores=0.75, membership_auc_mapping=0.625),
        **{"sensitive_exposure@10": 0.4 - 0.3 * checkpoint if scenario == "sensitive" else None},
        **{"spam_hit@10": DISTANCE[arm] * 2 if scenario == "spam" else None},
        **{"test_ndcg@10": 0.3 + seed / 1000, "ratio_ndcg@10": 0.9 if arm == "SISA" else 1.0},
        **{"test_mrr@10": 0.2, "ratio_mrr@10": 0.5},
        **dict(seconds_p50=seconds, seconds_p90=seconds, seconds_total=seconds, seconds_io=0.5),
        **dict(retraining_seconds=10.0, speedup=10 / seconds if seconds else None, peak_bytes=3 * 2**20),
        **more,
    }


def evaluation(rows, drift=()):
    return {
        "command": "recbole-llmd unlearn --evaluate --dataset=<toy>",
        "commit": "abc1234",
        "machine": {"cores": 2},
        "versions": {"recbole": "1.2.1"},
        "config": {"valid_metric": "MRR@10"},
        "datasets": {"users": 943, "items": 1682, "interactions": 80000},
        "rows": list(rows),
        "drift": list(drift),
        "learn": [],
    }


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


# --- numbers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("way", "value", "written"),
    [
        (table.number, 0.0123456, "0.0123"),
        (table.number, 0.99999, "1.00"),
        (table.number, 1234.5, "1,230"),
        (table.number, 1.2345e-8, "1.23e-08"),
        (table.number, 2.5e6, "2.50e+06"),
        (table.number, 0.0, "0"),
        (table.number, math.inf, "∞"),
        (table.number, None, "–"),
        (table.number, math.nan, "–"),
        (table.number, Spread(0.0961, 0.0012, 3), "0.0961 ± 0.0012"),
        (table.number, Spread(8e-15, 3e-16, 3), "8.00e-15 ± 3.00e-16"),
        (table.number, Spread(0.5, None, 1), "0.500"),
        (table.number, Spread(None, None, 0), "–"),
        (table.metric, 0.0961234, "0.0961"),
        (table.metric, Spread(0.25, 0.001, 2), "0.2500 ± 0.0010"),
        (table.count, 80000, "80,000"),
        (table.seconds, 155.2, "155 s"),
        (table.seconds, 0.01314, "13.1 ms"),
        (table.seconds, 1.314e-5, "13.1 µs"),
        (table.seconds, Spread(0.010, 0.002, 3), "10.0 ± 2.0 ms"),
        (table.seconds, 0.0, "0 s"),
        (table.mebibytes, 3 * 2**20, "3.00 MiB"),
        (table.mebibytes, None, "–"),
        (table.times, 615.4, "615×"),
        (table.text, None, "–"),
        (table.mean_only(table.metric), Spread(0.25, 0.001, 2), "0.2500"),
    ],
)
def test_how_a_number_is_written(way, value, written):
    assert way(value) == written


def test_spread_is_the_mean_and_sample_deviation_of_what_is_there():
    assert table.spread([1, None, 3, math.nan, 5]) == Spread(3.0, 2.0, 3)
    assert table.spread([4.0]) == Spread(4.0, None, 1)
    assert table.spread([None]) == Spread(None, None, 0)
    assert table.spread([1.0, math.inf]) == Spread(math.inf, None, 2)


def test_terminal_table_aligns_names_left_and_figures_right():
    rows = [{"arm": "a", "x": 0.5, "y": None}, {"arm": "longer", "x": Spread(0.25, 0.125, 2), "y": None}]
    columns = [Column("arm", "arm"), Column("x", "x", table.number), Column("y", "y", table.number)]
    assert [column.key for column in table.present(rows, columns)] == ["arm", "x"]
    lines = table.terminal_table(rows, columns[:2]).splitlines()
    assert lines[2:] == ["a               0.500", "longer  0.250 ± 0.125"]


def test_csv_and_json_keep_every_digit(tmp_path):
    rows = [{"a": 0.1 + 0.2, "b": None}, {"a": np.float64(1e-15), "c": 'x,"y'}]
    table.write_csv(tmp_path / "t.csv", rows)
    with open(tmp_path / "t.csv", newline="") as file:
        read = list(csv.DictReader(file))
    assert read == [
        {"a": "0.30000000000000004", "b": "", "c": ""},
        {"a": "1e-15", "b": "", "c": 'x,"y'},
    ]
    odd = {
        "rows": rows,
        "nan": math.nan,
        "inf": [math.inf],
        "n": np.int64(3),
        "m": np.eye(2),
        "s": Spread(1.0, None, 1),
    }
    table.write_json(tmp_path / "t.json", odd)
    assert json.loads((tmp_path / "t.json").read_text(), parse_constant=pytest.fail) == {
        **{"rows": [{"a": 0.30000000000000004, "b": None}, {"a": 1e-15, "c": 'x,"y'}], "nan": None, "inf": [None]},
        **{"n": 3, "m": [[1.0, 0.0], [0.0, 1.0]], "s": {"mean": 1.0, "sd": None, "n": 1}},
    }


# --- records ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "kept"),
    [
        ("run --data_path=/home/me/data --out=records/a.json", "run --data_path=data --out=records/a.json"),
        ("--config_files=~/x.yaml ../up/y.yaml", "--config_files=x.yaml y.yaml"),
        ("https://huggingface.co/a/b 1/2 dataset/tiny", "https://huggingface.co/a/b 1/2 dataset/tiny"),
        (
            {"checkpoint_dir": "/srv/saved", "epochs": 3, "list": ["/a/b"]},
            {"checkpoint_dir": "saved", "epochs": 3, "list": ["b"]},
        ),
    ],
)
def test_records_keep_no_path_of_the_machine(value, kept):
    assert records.without_paths(value) == kept


def test_provenance_names_the_checkout_or_the_version(tmp_path, monkeypatch):
    found = records.provenance("run --out=/home/me/x.json")
    assert found["command"] == "run --out=x.json"
    assert found["versions"]["recbole"] == "1.2.1" and found["machine"]["cores"] >= 1

    def git(*arguments):
        identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
        return subprocess.run(["git", *identity, *arguments], cwd=tmp_path, check=True, capture_output=True, text=True)

    git("init", "-q")
    git("commit", "-q", "--allow-empty", "-m", "x")
    (tmp_path / "inside").mkdir()
    monkeypatch.setattr(records, "CHECKOUT", tmp_path.resolve())
    assert records.commit() == git("rev-parse", "--short", "HEAD").stdout.strip()
    monkeypatch.setattr(records, "CHECKOUT", tmp_path.resolve() / "inside")  # installed into somebody's checkout
    assert records.commit() == records.__version__


# --- the page ---------------------------------------------------------------------------------------------------------


def loads(page):
    """What a browser would fetch: sources and links of the markup, outside of scripts."""
    markup = re.sub(r"<script.*?</script>", "<script>", page, flags=re.S)
    return re.findall(r"""(?:src|href|action|data)\s*=\s*["'](?!#)[^"']*|url\([^)]*\)|@import[^;]*""", markup)


def data_of(page):
    """The traces of the page's figures, in order."""
    found = []
    for call in re.finditer(r"Plotly\.newPlot\(\s*\"[^\"]+\",\s*", page):
        found.append(json.JSONDecoder().raw_decode(page, call.end())[0])
    return found


def page_of(path):
    """A page's HTML without plotly's own script."""
    from plotly.offline import get_plotlyjs

    page = path.read_text(encoding="utf-8")
    assert page.count(get_plotlyjs()) <= 1
    return page.replace(get_plotlyjs(), "")


def test_page_is_self_contained_and_escaped(tmp_path):
    plot = figure([{"type": "scatter", "x": [1, 2], "y": [3, 4]}])
    rows = [{"name": "<i>a</i>", "n": 1200, "x": 0.5}]
    sections = [Section("A & B", ["<script>alert(1)</script>", Table(rows, caption="1 < 2"), plot, plot])]
    write_page(tmp_path / "page.html", "T<t>", "x > y", sections)
    whole = (tmp_path / "page.html").read_text(encoding="utf-8")
    page = page_of(tmp_path / "page.html")
    assert len(whole) - len(page) > 1e6  # plotly is inside, once
    assert loads(page) == [] and "<script src" not in whole
    assert "<h1>T&lt;t&gt;</h1>" in page and "<h2>A &amp; B</h2>" in page and "<p>x &gt; y</p>" in page
    assert "<p>&lt;script&gt;alert(1)&lt;/script&gt;</p>" in page and "<p>1 &lt; 2</p>" in page
    assert '<tr><td class="left">&lt;i&gt;a&lt;/i&gt;</td><td>1,200</td><td>0.500</td></tr>' in page
    assert [traces[0]["y"] for traces in data_of(page)] == [[3, 4], [3, 4]]
    assert "<nav>" not in page  # one section needs no contents


def test_page_with_many_sections_has_contents_and_without_plots_no_script(tmp_path):
    frame = pd.DataFrame({"name": ["a"], "x": [0.125]})
    sections = [Section(f"S{n}", [Table(frame)]) for n in range(3)] + [provenance_section(evaluation([]))]
    write_page(tmp_path / "page.html", "T", ["one", "two"], sections)
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    for n in range(3):
        assert f'<a href="#s{n}">S{n}</a>' in page and f'<section id="s{n}"><h2>S{n}</h2>' in page
    assert page.count('<td class="left">a</td><td>0.125</td>') == 3
    assert "<script" not in page and "<p>one</p><p>two</p>" in page
    assert "<p>Command: recbole-llmd unlearn --evaluate --dataset=&lt;toy&gt;</p>" in page
    assert "<p>Commit: abc1234</p>" in page and "<p>Machine: cores 2</p>" in page


def test_plotly_is_imported_by_the_page_alone():
    code = "import sys, recbole_llmd.unlearning.report; assert 'plotly' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=records.CHECKOUT)


def test_log_axis_has_plain_ticks_and_a_place_for_zero():
    ticks = log_axis("time", [0.01, 20.0, 900.0], unit="s")
    assert ticks["title"]["text"] == "time (s)" and ticks["type"] == "log"
    assert ticks["tickvals"] == pytest.approx([0.01, 0.1, 1, 10, 100, 1000])
    assert ticks["ticktext"] == ["0.01", "0.1", "1", "10", "100", "1,000"]
    assert ticks["range"][0] < -2 and ticks["range"][1] > math.log10(900)

    heights, zero = floored([1e-12, 0.0, 1e-3])
    assert heights == pytest.approx([1e-12, 1e-13, 1e-3], rel=1e-9, abs=0) and zero == heights[1]
    ticks = log_axis("distance", heights, zero=zero)
    assert ticks["tickvals"][0] == zero and ticks["ticktext"][0] == "0"
    assert ticks["ticktext"][1:] == [f"10<sup>{round(math.log10(tick))}</sup>" for tick in ticks["tickvals"][1:]]
    assert floored([1.0, 2.0]) == ([1.0, 2.0], None)

    for values in ([3.1, 3.4], [7.0], [1000.0, 1001.0]):  # a short axis: still two labels in its range
        ticks = log_axis("x", values)
        low, high = (10**end for end in ticks["range"])
        assert low < min(values) and high > max(values)
        assert sum(low <= tick <= high for tick in ticks["tickvals"]) >= 2, values


def test_styles_differ_and_stay():
    names = [f"m{n}" for n in range(14)]
    found = styles(names)
    assert len({(look["color"], look["dash"]) for look in found.values()}) == 14
    assert styles([*names, *names]) == found
    assert axis("x")["title"]["text"] == "x" and axis("x", "s")["title"]["text"] == "x (s)"


# --- the evaluation of unlearning -------------------------------------------------------------------------------------


def test_summary_over_seeds_by_hand():
    found = report.summary([*grid(seeds=(2, 3, 7)), *grid(seeds=(2,), ratio=0.02), *grid(seeds=(2,), phase="learn")])
    assert len(found) == 3 * len(ARMS)
    entry = found[ARMS.index("IMCorrect")]
    assert (entry["arm"], entry["ratio"], entry["phase"], entry["seeds"]) == ("IMCorrect", 0.01, "forget", 3)
    assert entry["test_ndcg@10"].mean == pytest.approx(0.304)
    assert entry["test_ndcg@10"].sd == pytest.approx(math.sqrt((2**2 + 1**2 + 3**2) / 2) / 1000)
    assert entry["interactions"] == Spread(1000.0, 0.0, 3) and entry["method"] == "none"
    sisa = found[ARMS.index("SISA")]
    assert sisa["B_frobenius"] == Spread(None, None, 0) and sisa["scores_frobenius"].mean == pytest.approx(0.3)
    single = found[len(ARMS)]
    assert (single["ratio"], single["seeds"], single["test_ndcg@10"]) == (0.02, 1, Spread(0.302, None, 1))


def test_terminal_summary(capsys):
    report.print_summary(everything())
    printed = capsys.readouterr().out
    assert max(map(len, printed.splitlines())) <= 140
    assert "EASE · toy · interactions, 0.1% · forgotten: 100 interactions of 7 users in 1 request; 3 seeds" in printed
    assert "Completeness is measured against the retrained arm" in printed
    assert printed.count(" seeds") == 5 + 1  # three sizes, the sensitive items' last checkpoint, spam; the notes
    block = printed[printed.index("interactions, 0.1%") :].split("\n\n")[0].splitlines()
    lines = {line[:10].strip(): line for line in block}
    figures = re.split(r"  +", lines["IMCorrect"])
    utility = f"{statistics.mean([0.302, 0.303, 0.305]):.4f} ± {statistics.stdev([0.302, 0.303, 0.305]):.4f}"
    expected = ["1.00e-14", "1.0000", "0.2500", "0.7500", "0.6250", utility, "1.0000", "100 ms", "100 ms", "600 ms"]
    assert figures == ["IMCorrect", *expected, "100×"]
    assert re.split(r"  +", lines["SISA"])[:3] == ["SISA", "–", "0.7000"]
    assert list(lines)[-6:] == list(ARMS)
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
    assert json.loads((tmp_path / "out/evaluation.json").read_text()) == record
    with open(tmp_path / "out/evaluation.csv", newline="") as file:
        read = list(csv.DictReader(file))
    assert len(read) == len(record["rows"])
    for line, entry in zip(read, record["rows"], strict=True):
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
    drift = evaluation(grid(scenario="noise"), everything()["drift"])
    assert headings(tmp_path, drift) - some == {"Drift over sequential requests"}
    sizes = evaluation([*grid(scenario="noise", ratio=0.01), *grid(scenario="noise", ratio=0.02)])
    assert headings(tmp_path, sizes) - some == {"Time against request size"}


def traces(section):
    """``{name: [(x, y), ...]}`` of a section's figure."""
    return {trace.name: list(zip(trace.x, trace.y, strict=True)) for trace in section.parts[-1].data}


def test_plot_of_completeness_shows_zero_at_the_floor():
    section = plots.completeness_against_utility(report.summary(grid()), "ndcg@10")
    found = traces(section)
    assert found["SISA"] == [(pytest.approx(0.9), pytest.approx(0.3))]
    assert found["IMCorrect"] == [(1.0, pytest.approx(1e-14, rel=1e-6, abs=0))]
    floor = found["retrained"][0][1]
    axis = section.parts[-1].layout.yaxis
    assert 0 < floor < 1e-14 and axis.ticktext[axis.tickvals.index(floor)] == "0"


def test_plot_of_time_marks_the_break_even():
    """1 ms an interaction against 10 s: 10,000 interactions, between the sizes 1,000 and 50,000."""
    section = plots.seconds_against_size(everything()["rows"])
    found = traces(section)
    assert found["IMCorrect"] == [(100, pytest.approx(0.1)), (1000, pytest.approx(1.0)), (50_000, pytest.approx(50.0))]
    assert [y for _, y in found["retrained"]] == [10.0] * 3 and "original" not in found
    assert [x for x, _ in found["break-even"]] == pytest.approx([10_000] * 2)
    assert section.parts[1] == "Break-even of IMCorrect: EASE 10,000 interactions."
    small = [entry for ratio in (0.001, 0.002) for entry in grid(ratio=ratio)]
    section = plots.seconds_against_size(small)
    assert "break-even" not in traces(section) and "none within these sizes" in section.parts[1]


def test_time_of_several_requests_is_for_each():
    rows = [row("IMCorrect", 2, ratio=ratio, requests=4) for ratio in (0.004, 0.04)]
    assert traces(plots.seconds_against_size(rows))["IMCorrect"] == [
        (100, pytest.approx(0.1)),
        (1000, pytest.approx(1.0)),
    ]


def test_plots_of_drift_sensitive_items_and_spam():
    record = everything()
    found = traces(plots.drift(record["drift"]))
    assert found["EASE float32"] == [(1, pytest.approx(1e-8)), (10, pytest.approx(1e-7))]
    assert [y for _, y in found["EASE float64"]] == pytest.approx([1e-9] * 2, abs=0)  # zeros, a decade below the rest
    summary = report.summary(record["rows"])
    assert traces(plots.sensitive_exposure(summary))["IMCorrect"] == [
        (0.5, pytest.approx(0.25)),
        (1.0, pytest.approx(0.1)),
    ]
    found = traces(plots.spam_hits(summary))
    assert found["original"] == [("EASE", pytest.approx(0.4))] and found["retrained"] == [("EASE", 0.0)]
