"""The purge: which lines go, that all other bytes stay, that nothing is lost, and what is said of other files."""

import json
import os
import shutil
from pathlib import Path

import pytest
from recbole.config import Config
from recbole.data import create_dataset, data_preparation

from recbole_llmd.cli import main
from recbole_llmd.errors import DataError, OutputError
from recbole_llmd.unlearning.erasure.ledger import Ledger
from recbole_llmd.unlearning.erasure.leftovers import leftovers, remove
from recbole_llmd.unlearning.erasure.purge import Forgotten, confirm, purge
from recbole_llmd.unlearning.erasure.requests_queue import answer_queue
from tests.helpers.erasure_cases import make_data, save_checkpoint, settings_of, write_request


@pytest.fixture
def data(workdir):
    return make_data(workdir)


def config_of(workdir, **more):
    return Config(config_dict=settings_of(workdir, "Pop", **more))


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_users_go_with_their_rows_and_all_else_stays(workdir, data):
    config, folder = config_of(workdir), workdir / "small"
    before = contents(folder)
    counts = purge(Forgotten.of(["u1", "u10", "nobody"], None, config), config)
    assert counts == {folder / "small.inter": 8, folder / "small.user": 2}
    for name in ("small.inter", "small.user"):
        lines = before[Path(name)].splitlines(keepends=True)
        kept = [line for line in lines if line.split(b"\t")[0] not in (b"u1", b"u10")]
        assert (folder / name).read_bytes() == b"".join(kept) and len(kept) == len(lines) - counts[folder / name]
        assert (folder / f"{name}.before-purge").read_bytes() == before[Path(name)]


def test_pairs_go_alone_and_their_users_stay(workdir, data):
    config, folder = config_of(workdir), workdir / "small"
    users = (folder / "small.user").read_bytes()
    (user, item), other = data[5], next(pair for pair in data if pair[1] == data[5][1] and pair[0] != data[5][0])
    assert purge(Forgotten.of([user], [item], config), config) == {folder / "small.inter": 1, folder / "small.user": 0}
    rows = [tuple(line.split("\t")[:2]) for line in (folder / "small.inter").read_text().splitlines()[1:]]
    assert rows == [pair for pair in data if pair != (user, item)] and other in rows
    assert (folder / "small.user").read_bytes() == users and not (folder / "small.user.before-purge").exists()


@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
def test_the_bytes_of_other_lines_are_untouched(workdir, data, end):
    """Odd ends, blank lines, quotation marks, other columns' order and a last line without an end."""
    lines = [
        b"rating:float\titem_id:token\tuser_id:token",
        b"3\ti1\tu1",
        b" 3.50\ti\xc3\xa9\tu2 ",
        b"",
        b'1\ti1\t"u1"',
        b"1\tu1\tu11",
        b"2\ti2\tu1",
        b"2\ti9\tu3",
    ]
    file = workdir / "small" / "small.inter"
    file.write_bytes(end.join(lines))
    config = config_of(workdir)
    assert purge(Forgotten.of(["u1"], None, config), config)[file] == 3
    assert file.read_bytes() == end.join([*lines[:1], *lines[2:4], lines[5], lines[7]])


def test_the_file_behind_a_link_is_purged(workdir, data):
    """Or the data would stay where the link pointed."""
    stored, link = workdir / "stored.inter", workdir / "small" / "small.inter"
    os.rename(link, stored)
    os.symlink(stored, link)
    config = config_of(workdir)
    assert purge(Forgotten.of(["u1"], None, config), config)[stored] == 4
    assert link.is_symlink() and b"u1\t" not in stored.read_bytes()
    assert (workdir / "stored.inter.before-purge").exists()


def test_files_that_are_split_beforehand(workdir, data):
    head = "user_id:token\titem_id:token\n"
    for part in ("train", "test"):
        (workdir / "small" / f"small.{part}.inter").write_text(head + "u1\ti1\nu2\ti1\n")
    config = config_of(workdir, benchmark_filename=["train", "test"])
    counts = purge(Forgotten.of(["u1"], None, config), config)
    assert {path.name: count for path, count in counts.items()} == {
        "small.inter": 4,
        "small.train.inter": 1,
        "small.test.inter": 1,
        "small.user": 1,
    }
    assert (workdir / "small" / "small.test.inter").read_text() == head + "u2\ti1\n"


@pytest.mark.parametrize("line", [b"u5\ti1\n", b"u5\ti1\t2\t3\n", b"u5\t\xff\t2\n"])
def test_a_line_that_cannot_be_told_stops_all(workdir, data, line):
    with open(workdir / "small" / "small.user", "ab") as stream:
        stream.write(b"u5\n" if line.count(b"\t") == 1 else line)
    before = contents(workdir / "small")
    config = config_of(workdir)
    with pytest.raises(DataError, match=r"small.user: line 14 .*cannot be told.*No file was changed\."):
        purge(Forgotten.of(["u1"], None, config), config)
    assert {k: v for k, v in contents(workdir / "small").items() if k.suffix != ".lock"} == before


def test_the_old_files_stay_until_confirmed(workdir, data):
    config, folder = config_of(workdir), workdir / "small"
    forgotten = Forgotten.of(["u1"], None, config)
    before = contents(folder)
    with pytest.raises(DataError, match=r"small.inter: 4 lines still hold what is to go\. Purge first"):
        confirm(forgotten, config)
    purge(forgotten, config)
    with pytest.raises(DataError, match=r"small.inter.before-purge is there, from an earlier purge\. Let it go"):
        purge(Forgotten.of(["u2"], None, config), config)
    assert (folder / "small.inter.before-purge").read_bytes() == before[Path("small.inter")]
    (folder / "small.item.before-purge").write_text("not of a purge")
    assert confirm(forgotten, config) == [folder / "small.inter.before-purge", folder / "small.user.before-purge"]
    assert sorted(path.name for path in folder.iterdir()) == [
        "small.inter",
        "small.inter.lock",
        "small.item.before-purge",
        "small.user",
    ]
    assert confirm(forgotten, config) == []
    assert purge(forgotten, config) == {folder / "small.inter": 0, folder / "small.user": 0}


def test_a_failed_write_loses_nothing(workdir, data, monkeypatch):
    before = contents(workdir / "small")
    config = config_of(workdir)

    def fail(*arguments):
        raise OSError("no space left")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="no space left"):
        purge(Forgotten.of(["u1"], None, config), config)
    after = contents(workdir / "small")
    assert {path: after[path] for path in before} == before


def test_other_files_are_found_and_those_without_are_told_apart(workdir, data):
    """A saved dataset and dataloaders, checkpoints before and after, forget sets, receipts, others."""
    saved = workdir / "saved"
    settings = settings_of(workdir, "EASE", save_dataset=True, save_dataloaders=True)
    config = Config(config_dict=settings)
    data_preparation(config, create_dataset(config))
    save_checkpoint(workdir, saved / "m.pth")
    shutil.copy(saved / "m.pth", saved / "old.pth")
    queue = write_request(workdir / "q" / "1.forget", ["u1"]).parent
    answer_queue(queue, saved / "m.pth", saved / "l")
    write_request(saved / "unlearning" / "mine.forget", ["u1", "u4"])
    write_request(saved / "unlearning" / "other.forget", ["u4"])
    for name, content in [("new", {"users": 1, "pairs": None}), ("old", {"users": [1], "items": [2]})]:
        (saved / f"{name}.receipt.json").write_text(json.dumps(content))
    (saved / "notes.txt").write_text("u1 was here")
    config = config_of(workdir)
    forgotten = Forgotten.of(["u1"], None, config)
    purge(forgotten, config)
    found, clean = leftovers(forgotten, config, Ledger(saved / "l"))
    names = "names 1 of the users"
    assert {item.path.name: item.why for item in found} == {
        "small-Dataset.pth": f"a pickle that {names}",
        "small-for-EASE-dataloader.pth": f"a pickle that {names}",
        "m.pth": f"the checkpoint that the ledger's last entry left: corrected; {names}, without data",
        "old.pth": f"a pickle that {names}",
        "mine.forget": "1 of its lines hold what is to go",
        "old.receipt.json": "a receipt that lists pairs",
        "notes.txt": "neither an atomic file nor a pickle: cannot be told",
        "small.inter.before-purge": "4 of its lines hold what is to go",
        "small.user.before-purge": "1 of its lines hold what is to go",
    }
    assert {path.name for path in clean} == {"other.forget", "new.receipt.json"}


def test_pickles_are_not_loaded(workdir, data):
    """What is in a pickle would be run: here, the making of a folder."""
    (workdir / "saved").mkdir()
    (workdir / "saved" / "evil.pth").write_bytes(b"cos\nmkdir\n(V" + b"made\ntR.")
    (workdir / "saved" / "names.pth").write_bytes(b"(Vu1\nVu2\nt.")
    config = config_of(workdir)
    found, clean = leftovers(Forgotten.of(["u1"], None, config), config)
    assert [item.path.name for item in found] == ["names.pth"] and [path.name for path in clean] == ["evil.pth"]
    assert not (workdir / "made").exists()


def test_a_checkpoint_that_plain_recbole_wrote_cannot_be_told(workdir, data):
    from recbole.utils import get_model, get_trainer

    config = Config(config_dict=settings_of(workdir, "BPR"))
    train = data_preparation(config, create_dataset(config))[0]
    trainer = get_trainer(config["MODEL_TYPE"], "BPR")(config, get_model("BPR")(config, train.dataset))
    trainer._save_checkpoint(0, verbose=False)
    (found,), _ = leftovers(Forgotten.of(["u1"], None, config), config_of(workdir))
    assert found.path.name.startswith("BPR-small-")
    assert found.why == "a pickle made from small, before or after: cannot be told, since it holds numbers"


def test_only_listed_files_are_removed(workdir, data):
    saved = workdir / "saved"
    mine = write_request(saved / "unlearning" / "mine.forget", ["u1"])
    other = write_request(saved / "unlearning" / "other.forget", ["u4"])
    config = config_of(workdir)
    found, _ = leftovers(Forgotten.of(["u1"], None, config), config)
    for path in (other, saved, saved / "unlearning", workdir / "small" / "small.inter", saved / "none"):
        with pytest.raises(OutputError, match=r"is not one of the files that --purge lists. Name those, one by one"):
            remove([str(mine), str(path)], found)
    assert mine.exists() and other.exists()
    assert remove(["saved/unlearning/mine.forget"], found) == [mine]
    assert not mine.exists() and other.exists()


def test_the_command(workdir, data, capsys):
    write_request(workdir / "f", ["u1"])
    write_request(workdir / "saved" / "mine.forget", ["u1"])
    arguments = ["unlearn", "--purge", "--forget-file=f", "--dataset=small", f"--data_path={workdir}"]
    assert main(arguments) == 0
    out = capsys.readouterr().out
    assert "small.inter: 4 lines taken out; the old file is kept as small.inter.before-purge, until --confirm" in out
    assert (
        "3 other files hold, or may hold, what was forgotten:\n" in out and "saved/mine.forget: 1 of its lines" in out
    )
    assert (workdir / "saved" / "mine.forget").exists()
    assert main([*arguments, "--remove=saved/mine.forget"]) == 0
    assert "removed: saved/mine.forget\n2 other files hold" in capsys.readouterr().out
    assert (workdir / "small" / "small.inter.before-purge").exists()
    assert main([*arguments, "--confirm"]) == 0
    assert "small.inter.before-purge\n" in (out := capsys.readouterr().out) and "\n0 other files hold" in out
    assert not list((workdir / "small").glob("*.before-purge"))
    assert main([*arguments, "--remove=small/small.inter"]) == 2
    assert "remove = 'small/small.inter': is not one of the files" in capsys.readouterr().err
    assert main(["unlearn", "--purge", "--dataset=small"]) == 2
    assert "--forget-file is missing: --purge needs it." in capsys.readouterr().err
    assert main([*arguments[:-1], "--data_path=elsewhere"]) == 2
    assert "dataset = 'small': there is no small.inter in elsewhere/small" in capsys.readouterr().err
