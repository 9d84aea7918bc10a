"""The queue killed (SIGKILL) before each of its steps, and at random moments: nothing is lost, nothing done twice."""

import os
import re
import subprocess
import sys

import pytest

from tests.conftest import REPO
from tests.helpers.erasure_cases import make_data, save_checkpoint, write_request


@pytest.mark.parametrize("how, least", [(["steps"], 20), (["moments", "25"], 25)])
def test_killed_and_restarted(workdir, how, least):
    """The script asserts after every kill (steps), or whenever all is answered (moments); see its ``checked``."""
    folder = workdir / "work"
    folder.mkdir()
    make_data(folder)
    save_checkpoint(folder, folder / "m.pth")
    for number in range(6):
        write_request(folder / "q" / f"r{number}.forget", [f"u{number}"])
    environment = {**os.environ, "PYTHONPATH": str(REPO), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tests.helpers.killed_queue", str(folder), *how]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert int(re.fullmatch(r"killed (\d+)\n", done.stdout).group(1)) >= least
