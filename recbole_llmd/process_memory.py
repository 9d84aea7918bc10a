"""The most memory that this process has held: the one reader for receipts, comparisons and benchmarks."""

from __future__ import annotations

import resource
import sys
from pathlib import Path
from types import TracebackType

STATUS = Path("/proc/self/status")
CLEAR_REFS = Path("/proc/self/clear_refs")


def peak_bytes() -> int:
    """The most bytes that this process has held since it began, or since :func:`reset_peak`.

    >>> peak_bytes() > 2**20
    True
    """
    if STATUS.exists():  # Linux's getrusage gives a new process the peak of the one that started it
        return _status_bytes("VmHWM")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def reset_peak() -> bool:
    """Let the peak begin anew at what the process holds now; returns False where the system cannot (all but Linux)."""
    try:
        CLEAR_REFS.write_text("5")
    except OSError:
        return False
    return True


class PeakMemory:
    """The highest memory of the process inside a ``with`` block.

    Attributes:
        bytes (int): above what the process held when the block began; None inside the block, and where the system does
            not tell (all but Linux).

    >>> with PeakMemory() as memory:
    ...     block = bytearray(2**26)
    >>> memory.bytes is None or memory.bytes >= 2**25
    True
    """

    def __init__(self) -> None:
        self.bytes: int | None = None
        self._held_before: int | None = None

    def __enter__(self) -> PeakMemory:
        self.bytes = None
        self._held_before = _status_bytes("VmRSS") if reset_peak() else None
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._held_before is not None:
            self.bytes = max(0, _status_bytes("VmHWM") - self._held_before)


def _status_bytes(entry: str) -> int:
    """An entry of Linux's process status, such as VmRSS (held now) or VmHWM (the most held)."""
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(f"{entry}:"))
    return int(line.split()[1]) * 1024
