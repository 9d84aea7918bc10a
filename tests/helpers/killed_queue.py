"""Runs a queue in processes that are killed, until all is answered: a script, so that nothing but them is forked.

``python -m tests.helpers.killed_queue FOLDER steps`` kills before every step that reaches the disk, one after the
other; ``... moments N`` kills at N random moments. Prints how many processes were killed, and their steps.
"""

import builtins
import functools
import os
import random
import signal
import sys
import time
import traceback
from pathlib import Path

from recbole_llmd.unlearning.erasure.requests_queue import answer_queue

QUEUE = {"queue": "q", "checkpoint": "m.pth", "ledger": "l", "suppression_list": "s", "batch_size": 2}
ONE_BATCH = {**QUEUE, "batch_size": 100}
STEPS = ("fsync", "replace", "unlink", "remove", "rename")  # of os; and whatever is written to a file


def forked(work):
    """The process id of a child that does the work and nothing else."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            work()
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    return child


def kill_at(number):
    """Let this process be killed at its ``number``-th step, half of a write done."""
    steps = iter(range(10**9))

    def step(half=None):
        if next(steps) == number:
            if half is not None:
                half()
            os.kill(os.getpid(), signal.SIGKILL)

    def wrapped(function):
        def with_steps(*args, **keywords):
            step()
            return function(*args, **keywords)

        return with_steps

    for name in STEPS:
        setattr(os, name, wrapped(getattr(os, name)))
    plain_open = builtins.open

    def opened(file, mode="r", *args, **keywords):
        stream = plain_open(file, mode, *args, **keywords)
        if mode == "ab" and str(file).endswith("l"):  # the ledger's append

            class Torn:
                def __enter__(self):
                    return self

                def __exit__(self, *error):
                    stream.close()

                def __getattr__(self, name):
                    return getattr(stream, name)

                def write(self, content):
                    def half():
                        stream.write(content[: len(content) // 2])
                        stream.flush()

                    step(half)
                    return stream.write(content)

            return Torn()
        return stream

    builtins.open = opened


def begin(first):
    """The folder as it was at first, with its untouched checkpoint."""
    for path in Path(".").glob("[lms]*"):
        if path.is_file():
            path.unlink()
    Path("m.pth").write_bytes(first)


def ended(work):
    """Whether a child that does the work ends well; False if it was killed."""
    status = os.waitpid(forked(work), 0)[1]
    assert os.WIFSIGNALED(status) or status == 0, "see above"
    return status == 0


def kill_at_every_step():
    """Each process begins on the same start and is killed one step later than the one before, until one ends."""
    first, killed = Path("m.pth").read_bytes(), 0

    def until_killed():
        kill_at(killed)
        answer_queue(**ONE_BATCH)

    def restarted():
        answer_queue(**ONE_BATCH)
        checked(f"killed at step {killed}")

    begin(first)
    while not ended(until_killed):
        ended(restarted)
        begin(first)
        killed += 1
    return killed


def checked(moment):
    """That all is answered once, the model is a refit's, the ledger verifies, and nothing is left over."""
    import numpy as np

    from recbole_llmd.unlearning import Unlearner
    from recbole_llmd.unlearning.erasure.ledger import Ledger
    from recbole_llmd.unlearning.erasure.suppression import SuppressionList
    from recbole_llmd.unlearning.erasure.verify import verify
    from tests.helpers.erasure_cases import pairs_in

    ids = sorted(path.stem for path in Path("q").iterdir())
    ledger = Ledger("l")
    assert sorted(done.id for entry in ledger.entries for done in entry.requests) == ids, moment
    data = [tuple(line.split("\t")[:2]) for line in Path("small/small.inter").read_text().splitlines()[1:]]
    gone = {user for path in Path("q").iterdir() for user in path.read_text().splitlines()[1:]}
    engine = Unlearner.from_checkpoint("m.pth")
    assert pairs_in(engine) == {pair for pair in data if pair[0] not in gone}, moment
    np.testing.assert_allclose(engine.B, engine.mapping.fit(engine.X, engine.params), atol=1e-6)
    assert sum(done.interactions for done in ledger.done.values()) == sum(user in gone for user, _ in data), moment
    listed = SuppressionList("s")
    assert sorted(listed.entries) == sorted(listed.lines(sorted(gone), None)), moment
    verify("l", "m.pth", forget_file=f"q/{ids[-1]}.forget", refit=True)
    left = {path.name for path in Path(".").iterdir() if path.is_file()}
    assert left == {"m.pth", "l", "l.lock", "l.salt", "s", "s.lock", "s.salt"}, f"{moment}: {left}"


def kill_at_moments(count):
    """Kills at random moments; whenever all is answered, it begins anew on the first checkpoint."""
    draw, first, killed = random.Random(11), Path("m.pth").read_bytes(), 0
    began = time.monotonic()
    ended(lambda: answer_queue(**QUEUE))
    whole = time.monotonic() - began
    while killed < count:
        begin(first)
        done = False
        while not done and killed < count:
            child = forked(lambda: answer_queue(**QUEUE))
            time.sleep(draw.random() * whole * 0.8)
            os.kill(child, signal.SIGKILL)
            done = not os.WIFSIGNALED(os.waitpid(child, 0)[1])
            killed += not done
        ended(lambda: answer_queue(**QUEUE))
        ended(functools.partial(checked, f"{killed} were killed"))
    return killed


if __name__ == "__main__":
    folder, how, *number = sys.argv[1:]
    sys.argv = sys.argv[:1]
    os.chdir(folder)
    print("killed", kill_at_every_step() if how == "steps" else kill_at_moments(int(number[0])))
