"""What every record says beside its figures: command, commit, machine, versions. No record holds a machine's paths."""

from __future__ import annotations

import contextlib
import os
import platform
import re
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from recbole_llmd.version import __version__

CHECKOUT = Path(__file__).resolve().parent.parent.parent
PACKAGES = ("recbole", "torch", "transformers", "peft", "numpy", "pandas", "scipy", "scikit-learn")
# The folders of a path that starts at the root, at a home or above the current folder.
_FOLDERS = re.compile(r"""(?<![^\s=,'"\[(])(?:/|~/|(?:\./)*\.\./)(?:[^\s,'"]*/)?""")


def provenance(command: str) -> dict[str, Any]:
    """``{"command", "commit", "machine", "versions"}`` of a record that ``command`` makes on this machine."""
    return {"command": without_paths(command), "commit": commit(), "machine": machine(), "versions": versions()}


def without_paths(value: Any) -> Any:
    """A setting, or a dict or list of them, with only the last name of every path that leads out of the folder.

    >>> without_paths({"data_path": "/srv/data/atomic", "epochs": 3, "files": ["../mine.yaml", "dataset/tiny"]})
    {'data_path': 'atomic', 'epochs': 3, 'files': ['mine.yaml', 'dataset/tiny']}
    """
    if isinstance(value, dict):
        return {key: without_paths(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_paths(entry) for entry in value]
    if isinstance(value, Path):
        value = str(value)
    return _FOLDERS.sub("", value) if isinstance(value, str) else value


def commit() -> str:
    """``git describe`` of the package's own checkout; the package's version where it is installed without one."""

    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=CHECKOUT, capture_output=True, text=True).stdout.strip()

    try:
        # An environment inside somebody else's checkout is not ours.
        if git("rev-parse", "--show-toplevel") == str(CHECKOUT):
            return git("describe", "--always", "--dirty") or __version__
    except OSError:  # no git
        pass
    return __version__


def machine() -> dict[str, Any]:
    """Cores, memory, processor, system and Python of this machine."""
    facts: dict[str, Any] = {"cores": os.cpu_count()}
    if hasattr(os, "sysconf"):
        facts["memory GiB"] = round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    return {**facts, "processor": _processor(), "system": platform.system(), "python": platform.python_version()}


def _processor() -> str:
    """The processor's name: that which Linux gives, else that of the system."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = (line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor())


def versions() -> dict[str, str]:
    """The installed versions of what the figures depend on."""
    installed = {}
    for name in PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            installed[name] = version(name)
    return installed
