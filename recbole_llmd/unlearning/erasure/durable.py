"""Files that are still there after a crash of the machine, and a lock so that one process at a time writes them."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator
from os import PathLike
from pathlib import Path

from recbole_llmd.atomic_write import refuse_unwritable
from recbole_llmd.errors import OutputError

BLOCK = 1 << 20


def sync(path: str | PathLike[str]) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def folder_of(path: str | PathLike[str]) -> Path:
    """The folder that a file is in."""
    return Path(path).absolute().parent


def durable_write(path: str | PathLike[str], content: bytes, mode: int = 0o644) -> None:
    """Write a file whole or not at all; it is on the disk when this returns.

    The temporary name is the same for every process, so that what a killed one left is gone with the next write; who
    writes must hold a lock.
    """
    refuse_unwritable(path)
    folder_of(path).mkdir(parents=True, exist_ok=True)
    temporary = f"{os.fspath(path)}.tmp"
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    with os.fdopen(descriptor, "wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(descriptor)
    durable_replace(temporary, path)


def durable_replace(source: str | PathLike[str], target: str | PathLike[str]) -> None:
    """Rename a file, in place of the target if there is one; on the disk when this returns."""
    os.replace(source, target)
    sync(folder_of(target))


def durable_remove(path: str | PathLike[str]) -> None:
    """Remove a file, if it is there; gone from the disk's folder when this returns."""
    Path(path).unlink(missing_ok=True)
    sync(folder_of(path))


def file_sha256(path: str | PathLike[str]) -> str:
    """SHA-256 of a file's bytes, as hexadecimal digits."""
    hashed = hashlib.sha256()
    with open(path, "rb") as stream:
        while block := stream.read(BLOCK):
            hashed.update(block)
    return hashed.hexdigest()


@contextlib.contextmanager
def locked(path: str | PathLike[str], wait: bool = False) -> Iterator[None]:
    """Hold the lock that goes with a file: an empty file ``<path>.lock``, which stays.

    The system gives the lock back when the process ends, however it ends.

    Args:
        path: the file.
        wait: whether to wait for another process that holds it, instead of refusing.

    Raises:
        OutputError: if another process holds it, or no file can be written there.
    """
    import fcntl  # Windows has none: the rest of the package works there

    refuse_unwritable(path)
    folder_of(path).mkdir(parents=True, exist_ok=True)
    with open(f"{os.fspath(path)}.lock", "ab") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            raise OutputError(
                f"{os.fspath(path)}: another process is working with it. Wait until that has ended."
            ) from None
        yield
