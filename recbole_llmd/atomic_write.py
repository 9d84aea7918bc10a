"""Writing files and folders so that they are complete or not there, and nothing else is lost."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from recbole_llmd.errors import OutputError


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside ``path`` to write a file to, and rename it when the block ends well.

    A file that is already there is replaced then, and stays as it was if the block fails.

    Raises:
        OutputError: if ``path`` is a folder, or lies where no file can be written; before anything is written.
    """
    path = Path(path)
    refuse_unwritable(path)
    with _beside(path) as temporary:
        yield temporary
        os.replace(temporary, path)


@contextlib.contextmanager
def atomic_folder(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside ``path`` to make a folder at, and rename it when the block ends well.

    A folder that is already there is replaced if the new one has every file of it.

    Raises:
        OutputError: if there is a file called ``path``, or a folder with content that the new one does not have; it
            stays as it was.
    """
    path = Path(path)
    if path.is_file():
        raise OutputError(f"{path} is a file: a folder is to be written there. Move it away, or give another name.")
    with _beside(path) as temporary:
        yield temporary
        if not path.exists():
            os.replace(temporary, path)
            return
        kept = sorted(set(_content_of(path)) - set(_content_of(temporary)))
        if kept:
            raise OutputError(
                f"{path} is a folder that holds {kept[0]}{' and more' if kept[1:] else ''}, which would be lost. "
                "Move it away, or give another name."
            )
        before = temporary.with_suffix(".old")
        os.replace(path, before)
        os.replace(temporary, path)
        shutil.rmtree(before)


def refuse_unwritable(path: str | os.PathLike[str], key: str = "path") -> None:
    """Refuse a path that no file can be written to: an existing folder, or one in a folder that takes no files.

    Args:
        path: the file to be written.
        key: what the user gave it as, for the message.

    Raises:
        OutputError: naming the path, and what to give instead.
    """
    path = os.fspath(path)
    if os.path.isdir(path) or not os.path.basename(path):
        raise OutputError(f"{key} = {path!r}: this is a folder. Give the name of a file, such as model.pth.")
    folder = Path(path).absolute().parent
    while not folder.exists():
        folder = folder.parent
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise OutputError(f"{key} = {path!r}: no file can be written in {folder}. Give a path in a folder of yours.")


@contextlib.contextmanager
def _beside(path: Path) -> Iterator[Path]:
    """A temporary path in the folder of ``path``, which is made; what is left at it afterwards is removed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary)
        else:
            temporary.unlink(missing_ok=True)


def _content_of(folder: Path) -> Iterator[str]:
    return (str(entry.relative_to(folder)) for entry in folder.rglob("*"))
