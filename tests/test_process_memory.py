"""Peak memory of the process against allocations of known size, and where the system does not tell."""

import subprocess
import sys

import numpy as np
import pytest

from recbole_llmd import process_memory
from recbole_llmd.process_memory import PeakMemory, peak_bytes, reset_peak

SIZE = 2**27


def _fill():
    return np.ones(SIZE // 8).sum()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux resets a process's peak")
def test_the_peak_is_that_of_the_block_alone():
    _fill()  # a peak before the block is none of its own
    with PeakMemory() as nothing:
        pass
    with PeakMemory() as filled:
        assert filled.bytes is None
        _fill()
    assert nothing.bytes < SIZE // 8 and SIZE * 0.9 < filled.bytes < SIZE * 1.5


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux resets a process's peak")
def test_a_reset_forgets_the_peak_before_it():
    _fill()
    before = peak_bytes()
    assert reset_peak() and peak_bytes() < before - SIZE // 2


def test_a_process_has_a_peak_of_its_own_not_that_of_the_one_that_started_it():
    large = np.ones(2**28 // 8)
    # The module alone: the package would import RecBole, whose memory is not what is tested.
    code = f"import runpy; print(runpy.run_path({process_memory.__file__!r})['peak_bytes']())"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert 2**20 < int(shown) < large.nbytes


def test_where_the_system_does_not_tell_the_block_has_no_figure(monkeypatch, tmp_path):
    monkeypatch.setattr(process_memory, "CLEAR_REFS", tmp_path / "no" / "clear_refs")
    with PeakMemory() as memory:
        _fill()
    assert memory.bytes is None and not reset_peak()


@pytest.mark.parametrize("platform, factor", [("darwin", 1), ("other", 1024)])
def test_without_linux_it_is_getrusages_in_its_unit(monkeypatch, tmp_path, platform, factor):
    monkeypatch.setattr(process_memory, "STATUS", tmp_path / "none")
    monkeypatch.setattr(process_memory.sys, "platform", platform)
    usage = process_memory.resource.getrusage(process_memory.resource.RUSAGE_SELF).ru_maxrss
    assert usage * factor <= peak_bytes() <= usage * factor * 1.1
