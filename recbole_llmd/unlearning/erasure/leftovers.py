"""Other files that may hold what was forgotten: what was looked at, what was found in each, and what cannot be told.

Pickles (RecBole's saved datasets, dataloaders and checkpoints) are not loaded, since that runs what is in them: their
text is read without (:mod:`pickletools`).
"""

from __future__ import annotations

import contextlib
import json
import os
import pickletools
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from recbole.config import Config

from recbole_llmd.errors import DataError, OutputError
from recbole_llmd.unlearning.erasure.durable import durable_remove, file_sha256
from recbole_llmd.unlearning.erasure.ledger import Ledger
from recbole_llmd.unlearning.erasure.purge import BEFORE, Forgotten, atomic_files

NUMPY_LETTER = 4  # bytes of a letter of a NumPy text, which RecBole's tokens are
TEXTS = (".forget", ".inter", ".user", BEFORE)


@dataclass(frozen=True)
class Leftover:
    """A file that holds, or may hold, what was forgotten.

    >>> print(Leftover(Path("saved/toy-Dataset.pth"), "names 1 of the users"))
    saved/toy-Dataset.pth: names 1 of the users
    """

    path: Path
    why: str

    def __str__(self) -> str:
        return f"{self.path}: {self.why}"


def leftovers(forgotten: Forgotten, config: Config, ledger: Ledger | None = None) -> tuple[list[Leftover], list[Path]]:
    """The files that hold or may hold what was forgotten, and those that were looked at and do not.

    Looked at are the files in ``checkpoint_dir`` and the folders in it, those beside the dataset's atomic files that
    bear its name, and ``dataset_save_path`` and ``dataloaders_save_path``; the ledger and the suppression list, which
    name nobody, are passed over.

    Args:
        forgotten: what is to be gone.
        config: of the dataset.
        ledger: of a checkpoint: the one that its last entry left is said to be corrected.
    """
    corrected = ledger.last.checkpoint_after if ledger is not None and ledger.last else None
    found, clean = [], []
    ours = [name for name in (ledger and ledger.path, config["suppression_list"]) if name]
    own = {Path(name + suffix).resolve() for name in ours for suffix in ("", ".salt", ".intent", ".lock")}
    for path in sorted(path for path in _candidates(config) if path.resolve() not in own):
        why = _why(path, forgotten, config["dataset"], corrected)
        if why is None:
            clean.append(path)
        else:
            found.append(Leftover(path, why))
    return found, clean


def remove(paths: Sequence[str], found: Sequence[Leftover]) -> list[Path]:
    """Remove files, each of which is one of those found.

    Raises:
        OutputError: if one is not; nothing is removed then.
    """
    listed = {leftover.path.resolve(): leftover.path for leftover in found}
    chosen = []
    for path in paths:
        if os.path.isdir(path) or Path(path).resolve() not in listed:
            raise OutputError(
                f"remove = {path!r}: is not one of the files that --purge lists. Name those, one by one; nothing was "
                "removed."
            )
        chosen.append(listed[Path(path).resolve()])
    for file in chosen:
        durable_remove(file)
    return chosen


def _candidates(config: Config) -> set[Path]:
    folder, data, name = Path(config["checkpoint_dir"]), Path(config["data_path"]), config["dataset"]
    named = [Path(config[key]) for key in ("dataset_save_path", "dataloaders_save_path") if config[key]]
    own = {path.resolve() for path in atomic_files(config)}
    beside = (path for path in data.iterdir() if path.name.startswith(f"{name}.") and path.suffix != ".item")
    everything = [*named, *(folder.rglob("*") if folder.is_dir() else ()), *beside]
    return {path for path in everything if path.is_file() and path.resolve() not in own and path.suffix != ".lock"}


def _why(path: Path, forgotten: Forgotten, dataset: str, corrected: str | None) -> str | None:
    """Why a file may hold what was forgotten; None if it does not."""
    if path.name.endswith(TEXTS):
        try:
            lines = forgotten.lines_in(path)
        except DataError:
            return "cannot be read as an atomic file: look at it yourself"
        return f"{lines} of its lines hold what is to go" if lines else None
    if path.name.endswith(".receipt.json"):
        return "a receipt that lists pairs" if _lists_pairs(path) else None
    texts = _texts_of_pickle(path)
    if texts is None:
        return "neither an atomic file nor a pickle: cannot be told"
    users = {*forgotten.users, *(pair[0] for pair in forgotten.pairs)}
    named, mine = len(users & texts), dataset in texts
    if corrected is not None and file_sha256(path) == corrected:
        return f"the checkpoint that the ledger's last entry left: corrected; names {named} of the users, without data"
    if named:
        return f"a pickle that names {named} of the users"
    return f"a pickle made from {dataset}, before or after: cannot be told, since it holds numbers" if mine else None


def _lists_pairs(receipt: Path) -> bool:
    try:
        content = json.loads(receipt.read_text(encoding="utf-8"))
        return bool(content.get("pairs") or isinstance(content.get("users"), list))
    except (ValueError, AttributeError):
        return True  # as far as can be told


def _texts_of_pickle(path: Path) -> set[str] | None:
    """The texts in a pickle, or in those of a PyTorch file; None if it is neither."""
    texts: set[str] = set()
    try:
        with contextlib.ExitStack() as stack:
            for stream in _pickles(path, stack):
                for code, content, _ in pickletools.genops(stream):
                    if "UNICODE" in code.name:
                        texts.add(str(content))
                    elif (
                        isinstance(content, bytes) and len(content) % NUMPY_LETTER == 0
                    ):  # NumPy's texts: RecBole's tokens
                        with contextlib.suppress(UnicodeError):
                            texts.update(content.decode("utf-32-le").rstrip("\0").split("\0"))
    except (ValueError, EOFError, zipfile.BadZipFile, UnicodeError, IndexError):
        return texts or None
    return texts


def _pickles(path: Path, stack: contextlib.ExitStack) -> Iterator[BinaryIO]:
    if zipfile.is_zipfile(path):
        archive = stack.enter_context(zipfile.ZipFile(path))
        for name in archive.namelist():
            if name.endswith("data.pkl"):
                yield stack.enter_context(archive.open(name))  # type: ignore[misc]
    else:
        with open(path, "rb") as stream:
            yield stream
