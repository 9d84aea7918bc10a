"""How PyTorch's threads wait for each other: shortly busy, then asleep.

On Linux PyTorch's threads (GNU OpenMP) wait for work by spinning for up to seconds. Where other processes want the same
cores, the thread that is waited for does not get one: an epoch takes many times its fair share. Here a waiting thread
goes to sleep after ten thousand turns. Fewer turns are better still beside other processes, but slow a quiet machine
down (``benchmarks/busy_machine.py`` measures both). The user's own choice comes first.
"""

from __future__ import annotations

import os
import sys

VARIABLE, SPINS = "GOMP_SPINCOUNT", "10000"
USERS_CHOICE = (VARIABLE, "OMP_WAIT_POLICY")  # variables by which a user says it otherwise


def set_default() -> None:
    """Let threads spin shortly, in this process and those it starts, unless the environment says how they wait.

    Without effect where PyTorch is loaded already: its threads have read the environment.
    """
    if "torch" not in sys.modules and not any(name in os.environ for name in USERS_CHOICE):
        os.environ[VARIABLE] = SPINS
