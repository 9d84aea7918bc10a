"""What every record says beside its figures: command, commit, machine, versions. No record holds a machine's paths."""

import os
import platform
import re
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from recbole_llmd.version import __version__

CHECKOUT = Path(__file__).resolve().parent.parent.parent
PACKAGES = ("recbole", "torch", "transformers", "peft", "numpy", "pandas", "scipy", "scikit-learn")
# The folders of a path that starts at the root, at a home or above the current folder.
_FOLDERS = re.compile(r"""(?<![^\s=,'"\[(])(?:/|~/|(?:\./)*\.\./)(?:[^\s,'"]*/)?""")


def provenance(command):
    """``{"command", "commit", "machine", "versions"}`` of a record that ``command`` makes on this machine."""
    return {"command": without_paths(command), "commit": commit(), "machine": machine(), "versions": versions()}


def without_paths(value):
    """A setting, or a dict or list of them, with only the last name of every path that leads out of the folder."""
    if isinstance(value, dict):
        return {key: without_paths(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_paths(entry) for entry in value]
    if isinstance(value, Path):
        value = str(value)
    return _FOLDERS.sub("", value) if isinstance(value, str) else value


def commit():
    """``git describe`` of the package's own checkout; the package's version where it is installed without one."""

    def git(*arguments):
        return subprocess.run(["git", *arguments], cwd=CHECKOUT, capture_output=True, text=True).stdout.strip()

    try:
        # An environment inside somebody else's checkout is not ours.
        if git("rev-parse", "--show-toplevel") == str(CHECKOUT):
            return git("describe", "--always", "--dirty") or __version__
    except OSError:  # no git
        pass
    return __version__


def machine():
    """Cores, memory, processor, system and Python of this machine."""
    processor = platform.processor()
    if os.path.exists("/proc/cpuinfo"):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        processor = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), processor)
    found = {"cores": os.cpu_count()}
    if hasattr(os, "sysconf"):
        found["memory GiB"] = round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    return {**found, "processor": processor, "system": platform.system(), "python": platform.python_version()}


def versions():
    """The installed versions of what the figures depend on."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            pass
    return found
