"""Our commands let PyTorch's threads wait asleep, the user's own choice first."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[1]
SHOW = "import os; print(os.environ.get('GOMP_SPINCOUNT'), os.environ.get('OMP_WAIT_POLICY'))"


def shown(code, **environment):
    clean = {name: value for name, value in os.environ.items() if name not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**clean, "PYTHONPATH": str(REPO), **environment},
        text=True,
        capture_output=True,
        check=True,
    )
    return done.stdout.split()


@pytest.mark.parametrize(
    "imported, environment, expected",
    [
        ("recbole_llmd.cli", {}, ["10000", "None"]),
        ("recbole_llmd.comparison.cell", {}, ["10000", "None"]),
        ("recbole_llmd", {"GOMP_SPINCOUNT": "7"}, ["7", "None"]),
        ("recbole_llmd", {"OMP_WAIT_POLICY": "ACTIVE"}, ["None", "ACTIVE"]),
    ],
)
def test_every_entry_sets_it_before_torch_is_loaded(imported, environment, expected):
    """PyTorch's library reads the environment when it is loaded: what its loading would see is printed."""
    code = (
        "import sys\n"
        "class Watch:\n"
        "    def find_spec(self, name, *rest):\n"
        f"        if name == 'torch': {SHOW}; sys.stdout.flush(); os._exit(0)\n"
        "sys.meta_path.insert(0, Watch())\n"
        f"import {imported}"
    )
    assert shown(code, **environment) == expected


def test_it_is_left_alone_where_torch_is_loaded_already():
    assert shown(f"import torch, recbole_llmd\n{SHOW}") == ["None", "None"]
