"""Pack the finished cells of a comparison into one archive, ``cells.zip``, which ``recbole-llmd compare`` reads too.

    python benchmarks/pack_cells.py benchmarks/records/compare/ml-100k-sasrec

Failed cells stay in ``cells/``. The archive is the same to the byte wherever it is made of the same cells: its members
are sorted and bear no time of their own. Cells that it holds already are kept; those in the folder take their place.
To run a cell again, unpack (``unzip cells.zip && rm cells.zip``) and delete its record.
"""

from __future__ import annotations

import sys
import zipfile
from pathlib import Path

from record import REPO

PACKED_TIME = (1980, 1, 1, 0, 0, 0)  # the earliest that a zip file knows
SUFFIXES = (".json", ".npz")  # of a cell's record and its values


def pack(experiment: Path) -> list[str]:
    """Move the finished cells in the folder of an experiment into its archive; returns their names.

    Raises:
        DataError: if a cell or the archive cannot be read, or there is no finished cell.
    """
    from recbole_llmd.atomic_write import atomic_write
    from recbole_llmd.comparison.cell_store import CellStore
    from recbole_llmd.errors import DataError

    cells, archive, store = experiment / "cells", experiment / "cells.zip", CellStore(experiment)
    names = sorted(path.stem for path in cells.glob("*.json"))
    finished = [name for name in names if (store.record(name) or {})["status"] == "finished"]
    if not finished:
        raise DataError(f"{experiment}: there is no finished cell in cells/. Give the folder of a comparison.")
    members = _members(archive)
    for name in finished:
        store.values(name)  # what cannot be read is not packed
        members |= {f"cells/{name}{suffix}": (cells / f"{name}{suffix}").read_bytes() for suffix in SUFFIXES}
    with atomic_write(archive) as temporary, zipfile.ZipFile(temporary, "w") as file:
        for member in sorted(members):
            entry = zipfile.ZipInfo(member, PACKED_TIME)
            entry.external_attr = 0o644 << 16  # readable where it is unpacked
            file.writestr(entry, members[member], zipfile.ZIP_DEFLATED, 9)
    for name in finished:
        for suffix in SUFFIXES:
            (cells / f"{name}{suffix}").unlink()
    if not any(cells.iterdir()):
        cells.rmdir()
    return finished


def _members(archive: Path) -> dict[str, bytes]:
    if not archive.exists():
        return {}
    with zipfile.ZipFile(archive) as file:
        return {member: file.read(member) for member in file.namelist()}


if __name__ == "__main__":
    sys.path.insert(0, str(REPO))
    for folder in sys.argv[1:]:
        print(f"{folder}: {len(pack(Path(folder)))} cells packed")
