"""Files and folders appear whole or not at all."""

import os

import pytest

from recbole_llmd.atomic_write import atomic_folder, atomic_write
from recbole_llmd.errors import OutputError


class Interrupted(Exception):
    pass


def write(path, content, folder):
    """A file with this content, or a folder with such a file in it."""
    if folder:
        path.mkdir()
        path = path / "part"
    path.write_text(content)


def writer(folder):
    return atomic_folder if folder else atomic_write


def content_of(path):
    return (path / "part" if path.is_dir() else path).read_text()


@pytest.mark.parametrize("folder", [False, True], ids=["file", "folder"])
@pytest.mark.parametrize("before", [None, "old"])
def test_content_appears_at_the_end(tmp_path, before, folder):
    path = tmp_path / "target"
    if before:
        write(path, before, folder)
    with writer(folder)(path) as temporary:
        assert temporary != path and temporary.parent == path.parent  # the same disk: a rename is enough
        write(temporary, "new", folder)
        assert content_of(path) == "old" if before else not path.exists()
    assert content_of(path) == "new"
    assert os.listdir(tmp_path) == ["target"]
    if folder:
        assert os.listdir(path) == ["part"]


@pytest.mark.parametrize("folder", [False, True], ids=["file", "folder"])
@pytest.mark.parametrize("before", [None, "old"])
@pytest.mark.parametrize("error", [Interrupted, KeyboardInterrupt])
def test_an_exception_leaves_what_was_there(tmp_path, error, before, folder):
    path = tmp_path / "target"
    if before:
        write(path, before, folder)
    with pytest.raises(error), writer(folder)(path) as temporary:
        write(temporary, "half of the n", folder)
        raise error
    assert os.listdir(tmp_path) == (["target"] if before else [])
    if before:
        assert content_of(path) == "old"


def test_an_exception_before_anything_was_written(tmp_path):
    with pytest.raises(Interrupted), atomic_write(tmp_path / "target"):
        raise Interrupted
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("kind", [str, lambda path: path], ids=["str", "Path"])
def test_folders_on_the_way_are_made(tmp_path, kind):
    path = tmp_path / "a" / "b" / "target"
    with atomic_write(kind(path)) as temporary:
        temporary.write_text("new")
    assert path.read_text() == "new"


@pytest.mark.parametrize("content", [[], ["EASE.pth", "sub/other.pth"]], ids=["empty", "with other checkpoints"])
def test_a_file_never_takes_the_place_of_a_folder(tmp_path, content):
    path = tmp_path / "saved"
    path.mkdir()
    for name in content:
        (path / name).parent.mkdir(exist_ok=True)
        (path / name).write_text("kept")
    with pytest.raises(OutputError, match=r"saved': this is a folder. Give the name of a file"), atomic_write(path):
        pytest.fail("the block is not entered")
    assert os.listdir(tmp_path) == ["saved"]
    assert [(path / name).read_text() for name in content] == ["kept"] * len(content)


def test_a_folder_takes_the_place_of_none_that_has_more(tmp_path):
    path = tmp_path / "adapter"
    (path / "deep").mkdir(parents=True)
    (path / "part").write_text("old")
    (path / "deep" / "notes.txt").write_text("kept")
    message = "holds deep and more, which would be lost"
    with pytest.raises(OutputError, match=message), atomic_folder(path) as temporary:
        write(temporary, "new", True)
    assert (path / "deep" / "notes.txt").read_text() == "kept" and (path / "part").read_text() == "old"
    assert os.listdir(tmp_path) == ["adapter"]


def test_a_folder_takes_the_place_of_no_file(tmp_path):
    (tmp_path / "adapter").write_text("kept")
    with pytest.raises(OutputError, match="adapter is a file"), atomic_folder(tmp_path / "adapter"):
        pytest.fail("the block is not entered")
    assert (tmp_path / "adapter").read_text() == "kept"


def test_a_folder_that_cannot_be_made_is_an_error_with_the_path(tmp_path):
    (tmp_path / "file").write_text("")
    message = r"file/target': no file can be written in .*/file. Give a path"
    with pytest.raises(OutputError, match=message), atomic_write(tmp_path / "file" / "target"):
        pytest.fail("the block is not entered")
