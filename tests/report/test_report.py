"""Reports: how figures are written, records, the page."""

import csv
import json
import math
import re
import subprocess

import numpy as np
import pandas as pd
import pytest

from recbole_llmd.report import provenance, table
from recbole_llmd.report.page import Section, Table, provenance_section, write_page
from recbole_llmd.report.plot_style import axis, figure, floored, log_axis, styles
from recbole_llmd.report.table import Column, Spread
from tests.helpers.pages import data_of, loads, page_of

ORIGIN = {
    "command": "recbole-llmd run --dataset=<toy>",
    "commit": "abc1234",
    "machine": {"cores": 2},
    "versions": {"recbole": "1.2.1"},
}


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
        "rows": [{"a": 0.30000000000000004, "b": None}, {"a": 1e-15, "c": 'x,"y'}],
        "nan": None,
        "inf": [None],
        "n": 3,
        "m": [[1.0, 0.0], [0.0, 1.0]],
        "s": {"mean": 1.0, "sd": None, "n": 1},
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
    assert provenance.without_paths(value) == kept


def test_provenance_names_the_checkout_or_the_version(tmp_path, monkeypatch):
    record = provenance.provenance("run --out=/home/me/x.json")
    assert record["command"] == "run --out=x.json"
    assert record["versions"]["recbole"] == "1.2.1" and record["machine"]["cores"] >= 1

    def git(*arguments):
        identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
        return subprocess.run(["git", *identity, *arguments], cwd=tmp_path, check=True, capture_output=True, text=True)

    git("init", "-q")
    git("commit", "-q", "--allow-empty", "-m", "x")
    (tmp_path / "inside").mkdir()
    monkeypatch.setattr(provenance, "CHECKOUT", tmp_path.resolve())
    assert provenance.commit() == git("rev-parse", "--short", "HEAD").stdout.strip()
    monkeypatch.setattr(provenance, "CHECKOUT", tmp_path.resolve() / "inside")  # installed into somebody's checkout
    assert provenance.commit() == provenance.__version__


# --- the page ---------------------------------------------------------------------------------------------------------


def test_page_is_self_contained_and_escaped(tmp_path):
    plot = figure([{"type": "scatter", "x": [1, 2], "y": [3, 4]}])
    rows = [{"name": "<i>a</i>", "n": 1200, "x": 0.5}]
    sections = [Section("A & B", ["<script>alert(1)</script>", Table(rows, caption="1 < 2"), plot, plot])]
    write_page(tmp_path / "page.html", "T<t>", "x > y", sections)
    with_script = (tmp_path / "page.html").read_text(encoding="utf-8")
    page = page_of(tmp_path / "page.html")
    assert len(with_script) - len(page) > 1e6  # plotly is inside, once
    assert loads(page) == [] and "<script src" not in with_script
    assert "<h1>T&lt;t&gt;</h1>" in page and "<h2>A &amp; B</h2>" in page and "<p>x &gt; y</p>" in page
    assert "<p>&lt;script&gt;alert(1)&lt;/script&gt;</p>" in page and "<p>1 &lt; 2</p>" in page
    assert '<tr><td class="left">&lt;i&gt;a&lt;/i&gt;</td><td>1,200</td><td>0.500</td></tr>' in page
    assert [traces[0]["y"] for traces in data_of(page)] == [[3, 4], [3, 4]]
    assert "<nav>" not in page  # one section needs no contents


def test_page_with_many_sections_has_contents_and_without_plots_no_script(tmp_path):
    frame = pd.DataFrame({"name": ["a"], "x": [0.125]})
    sections = [Section(f"S{n}", [Table(frame)]) for n in range(3)] + [provenance_section(ORIGIN)]
    write_page(tmp_path / "page.html", "T", ["one", "two"], sections)
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    for n in range(3):
        assert f'<a href="#s{n}">S{n}</a>' in page and f'<section id="s{n}"><h2>S{n}</h2>' in page
    assert page.count('<td class="left">a</td><td>0.125</td>') == 3
    assert "<script" not in page and "<p>one</p><p>two</p>" in page
    assert "<p>Command: recbole-llmd run --dataset=&lt;toy&gt;</p>" in page
    assert "<p>Commit: abc1234</p>" in page and "<p>Machine: cores 2</p>" in page


def test_plotly_is_imported_when_a_page_is_written():
    for path in (provenance.CHECKOUT / "recbole_llmd").rglob("*.py"):
        lines = path.read_text(encoding="utf-8").splitlines()
        assert not [line for line in lines if re.match(r"(import|from) plotly", line)], path


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
    looks = styles(names)
    assert len({(look["color"], look["dash"]) for look in looks.values()}) == 14
    assert styles([*names, *names]) == looks
    assert axis("x")["title"]["text"] == "x" and axis("x", "s")["title"]["text"] == "x (s)"
