"""Cells in their folder and in an archive, and files that cannot be read."""

import json
import runpy
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from recbole_llmd.comparison.cell_store import CellStore, write_cell
from recbole_llmd.errors import DataError

REPO = Path(__file__).resolve().parents[2]
RECORD = {"status": "finished", "figure": 0.5}


def _write(name, number=1, status="finished"):
    store = CellStore(Path("x"))
    write_cell(store.record_file(name), {**RECORD, "status": status}, {"user": np.arange(number)})
    return store


@pytest.fixture
def pack(monkeypatch, capsys):
    """``pack()`` runs ``python benchmarks/pack_cells.py x``; returns what it prints."""
    script = REPO / "benchmarks" / "pack_cells.py"

    def run():
        monkeypatch.setattr(sys, "argv", [str(script), "x"])
        monkeypatch.syspath_prepend(str(script.parent))
        runpy.run_path(str(script), run_name="__main__")
        return capsys.readouterr().out

    return run


def test_a_packed_cell_is_what_was_written(pack):
    _write("a", 3)
    files = {path.name: path.read_bytes() for path in Path("x/cells").iterdir()}
    assert "1 cells packed" in pack() and not Path("x/cells").exists()
    store = CellStore(Path("x"))
    assert store.record("a") == RECORD and store.values("a")["user"].tolist() == [0, 1, 2]
    assert store.record("b") is None
    with zipfile.ZipFile("x/cells.zip") as archive:
        assert {name: archive.read(f"cells/{name}") for name in files} == files


def test_the_archive_is_the_same_whenever_and_in_whatever_order_it_is_made(pack):
    _write("a"), _write("b")
    pack()
    first = Path("x/cells.zip").read_bytes()
    with zipfile.ZipFile("x/cells.zip") as archive:
        archive.extractall("x")
    Path("x/cells.zip").unlink()
    for name in ("b.npz", "a.json", "b.json", "a.npz"):
        file = Path("x/cells", name)
        content = file.read_bytes()
        file.unlink()
        file.write_bytes(content)
    pack()
    assert Path("x/cells.zip").read_bytes() == first


def test_cells_are_added_to_the_archive_and_the_folders_count(pack):
    _write("a", 1), _write("b", 2)
    pack()
    _write("b", 5), _write("c", 3), _write("d", 1, status="failed")
    store = CellStore(Path("x"))
    assert [len(store.values(name)["user"]) for name in "abc"] == [1, 5, 3]
    assert "2 cells packed" in pack()
    assert [path.name for path in sorted(Path("x/cells").iterdir())] == ["d.json", "d.npz"]  # failed: not a result
    store = CellStore(Path("x"))
    assert [len(store.values(name)["user"]) for name in "abc"] == [1, 5, 3]


def test_a_folder_without_finished_cells_is_refused(pack):
    _write("a", status="failed")
    with pytest.raises(DataError, match="no finished cell in cells/"):
        pack()
    assert not Path("x/cells.zip").exists()


@pytest.mark.parametrize("damage", ["archive", "record", "values", "packed"])
def test_what_cannot_be_read_is_named(damage, pack):
    store = _write("a", 1000)
    archive = Path("x/cells.zip")
    if damage == "archive":
        archive.write_bytes(b"no zip file")
        with pytest.raises(DataError, match=r"x/cells.zip: cannot be read .* Restore the file, or delete it"):
            store.record("b")
        return
    if damage == "packed":
        pack()
        content = bytearray(archive.read_bytes())
        middle = content.index(b"cells/a.json") + 20
        content[middle : middle + 10] = bytes(10)
        archive.write_bytes(content)
        with pytest.raises(DataError, match=r"cells/a.json of cells.zip: cannot be read"):
            CellStore(Path("x")).record("a")
        return
    file = store.record_file("a").with_suffix(".json" if damage == "record" else ".npz")
    file.write_bytes(file.read_bytes()[:-30])
    with pytest.raises(DataError, match=rf"x/cells/a{file.suffix}: cannot be read"):
        store.record("a") if damage == "record" else store.values("a")


def test_a_finished_cell_without_its_values_is_told():
    store = _write("a")
    store.record_file("a").with_suffix(".npz").unlink()
    with pytest.raises(DataError, match=r"cells/a.npz is missing.*Delete its record"):
        store.values("a")


def test_a_record_is_json_that_others_can_read():
    store = _write("a")
    assert json.loads(store.record_file("a").read_text()) == RECORD
