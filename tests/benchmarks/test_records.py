"""The records of the benchmarks: each is in the index with its command, and whatever mentions one leads somewhere."""

import json
import re
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[2]
RECORDS = REPO / "benchmarks" / "records"
ENTRY = re.compile(r"^- \[(.+?)\]\((.+?)\): (.+)\n\n {6}(\S.*)$", re.MULTILINE)
NOT_KEPT = ("cells", "checkpoints", "logs", "warmups")  # folders of a comparison that has run here
WRITTEN_ANEW = (".html", ".md")  # by the command, from the record; the index is one too
PLACES = ("out", "show_progress", "state")  # options that change no figure
INDEX = {path: command for path, _, _, command in ENTRY.findall((RECORDS / "README.md").read_text(encoding="utf-8"))}


def _files():
    """The files of the records, without what a comparison that has run here left beside them."""
    files = {
        path.relative_to(RECORDS) for path in RECORDS.rglob("*") if path.is_file() and path.suffix not in WRITTEN_ANEW
    }
    return {path.as_posix() for path in files if not set(path.parts) & set(NOT_KEPT)}


def _options(command):
    """The words of a command, without quotes and spaces, which a shell needs and a record does not."""
    words = [re.sub(r"['\s]", "", word) for word in re.split(r" (?=--)", command.replace('"', ""))]
    return {
        re.sub(r"^--experiment=.*/", "--experiment=", word)
        for word in words
        if not word.removeprefix("--").startswith(tuple(f"{place}=" for place in PLACES))
    }


def test_the_index_names_every_record_and_no_other():
    assert len(INDEX) == (RECORDS / "README.md").read_text(encoding="utf-8").count("\n- [") > 20
    files = _files()
    assert all((RECORDS / path).exists() for path in INDEX)
    assert [
        file for file in sorted(files) if not any(file == path or file.startswith(f"{path}/") for path in INDEX)
    ] == []
    for path in INDEX:
        if path.startswith("compare/"):
            own = {"cells.zip", "comparison.csv", "comparison.json"}
            assert {file.removeprefix(f"{path}/") for file in files if file.startswith(f"{path}/")} == own


@pytest.mark.parametrize("path", INDEX)
def test_the_command_in_the_index_is_the_records(path):
    file = RECORDS / path
    record = json.loads((file / "comparison.json" if file.is_dir() else file).read_text(encoding="utf-8"))
    assert _options(INDEX[path]) == _options(record["command"]) and record["commit"] and record["versions"]["recbole"]
    if not path.startswith("unlearning/evaluation"):  # the command writes a folder
        assert INDEX[path].endswith(f"--out=benchmarks/records/{path}")
    script = re.match(r"python (\S+)", INDEX[path])
    assert script is None or (REPO / script[1]).is_file()


@pytest.mark.parametrize(
    "path", [REPO / "README.md", *sorted((REPO / "docs").glob("*.md"))], ids=lambda path: path.name
)
def test_every_record_that_a_page_names_is_there(path):
    named = re.findall(r"benchmarks/records[\w./*-]*", path.read_text(encoding="utf-8"))
    assert [name for name in named if not list(REPO.glob(name.rstrip("./")))] == []


def test_pages_that_show_figures_name_their_records():
    """What the test above would not see: a page whose mentions of records were lost."""
    for name, least in (("docs/results.md", 20), ("docs/unlearning.md", 2), ("README.md", 1)):
        assert (REPO / name).read_text(encoding="utf-8").count("benchmarks/records") >= least


def test_the_demo_that_is_recorded_is_that_of_the_makefile():
    options = re.search(r"^DEMO = (\{.*?\})", (REPO / "benchmarks" / "demo.py").read_text(), re.MULTILINE)
    given = " ".join(f"--{key}={value}" for key, value in json.loads(options[1]).items())
    assert f"run_recbole_llmd.py {given}\n" in (REPO / "Makefile").read_text()
