"""Files and folders appear whole or not at all."""

import os

import pytest

from recbole_llmd.atomic_write import atomic_write


class Interrupted(Exception):
    pass


def write(path, content, folder):
    """A file with this content, or a folder with such a file in it."""
    if folder:
        path.mkdir()
        path = path / "part"
    path.write_text(content)


def content_of(path):
    return (path / "part" if path.is_dir() else path).read_text()


@pytest.mark.parametrize("folder", [False, True], ids=["file", "folder"])
@pytest.mark.parametrize("before", [None, "old"])
def test_content_appears_at_the_end(tmp_path, before, folder):
    path = tmp_path / "target"
    if before:
        write(path, before, folder)
        if folder:
            (path / "left over").write_text("of the old one")
    with atomic_write(path) as temporary:
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
    with pytest.raises(error):
        with atomic_write(path) as temporary:
            write(temporary, "half of the n", folder)
            raise error
    assert os.listdir(tmp_path) == (["target"] if before else [])
    if before:
        assert content_of(path) == "old"


def test_an_exception_before_anything_was_written(tmp_path):
    with pytest.raises(Interrupted):
        with atomic_write(tmp_path / "target"):
            raise Interrupted
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("kind", [str, lambda path: path], ids=["str", "Path"])
def test_folders_on_the_way_are_made(tmp_path, kind):
    path = tmp_path / "a" / "b" / "target"
    with atomic_write(kind(path)) as temporary:
        temporary.write_text("new")
    assert path.read_text() == "new"
