"""A run that is killed, in each kind of phase and while it writes, ends as if it had never been interrupted."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[2]

# Runs a model once for each job, in a child that is forked when all is imported. A child dies by SIGKILL in the middle
# of one epoch (phase, epoch), or half through writing a file, or ends well.
SCRIPT = """
import json, os, signal, sys
jobs = json.loads(sys.argv[1])
sys.argv = sys.argv[:1]
import recbole.trainer, torch, recbole_llmd
from recbole.quick_start import run_recbole
from recbole_llmd.trainer.llmd4rec import LLMD4RecTrainer
from recbole_llmd.trainer.objective import Objective

current = {}
call, save = Objective.__call__, torch.save

def die():
    os.kill(os.getpid(), signal.SIGKILL)

class Watched(LLMD4RecTrainer):
    def __init__(self, *args):
        super().__init__(*args)
        self.on_epoch_begin.append(lambda side, epoch: current.update(at=[side.phase_index, epoch], batches=0))

def watched_call(self, batch):
    current["batches"] += 1
    if current["at"] == current["death"] and current["batches"] == 2:
        die()
    return call(self, batch)

def watched_save(state, path, **kwargs):
    if current["death"] == "writing" and state.get("phase") == 3 and state.get("epoch") == 1:
        open(path, "wb").write(b"half a checkpoint")
        die()
    return save(state, path, **kwargs)

recbole.trainer.LLMD4RecTrainer, Objective.__call__, torch.save = Watched, watched_call, watched_save
for folder, settings, death in jobs:
    os.makedirs(folder, exist_ok=True)
    child = os.fork()
    if child == 0:
        os.chdir(folder)
        current.update(death=death)
        result = run_recbole(config_dict=settings)
        with open("result.json", "w") as file:
            json.dump(result, file, default=float)
        os._exit(0)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    print(json.dumps([status, sorted(os.listdir(os.path.join(folder, "saved")))]), flush=True)
"""


def _run(jobs):
    """For each job (folder, settings, death) its exit status and what is then in the folder of checkpoints."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", SCRIPT, json.dumps(jobs)],
        env={**os.environ, "PYTHONPATH": str(REPO), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    ends = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("[")]
    assert len(ends) == len(jobs), done.stdout + done.stderr
    return ends


def _result(folder):
    return _without_seconds(json.loads((folder / "result.json").read_text()))


def _without_seconds(result):
    for side in ("LLM", "CRM"):
        for figures in result["distillation"][side]:
            del figures["seconds"]
    for phase in result["distillation"]["phases"]:
        del phase["seconds"]
    return result


PUBLISHED = {  # phases: 0 warm-up CRM, 1 round 1 LLM, 2 CRM, 3 round 2 LLM, 4 CRM
    "llm_item_vectors": "crm",
    "llm_warmup_epochs": 0,
    "distill_first": "LLM",
    "distill_rounds": 2,
    "distill_weighting": "target_rank",
    "distill_rescale_weights": False,
}


@pytest.mark.parametrize(
    "crm, restart, deaths, more",
    [
        # phases: 0 warm-up LLM, 1 warm-up CRM, 2 round CRM, 3 round LLM
        ("SASRec", False, [[0, 1], [1, 2], [2, 0], [3, 1], "writing"], {}),
        ("SASRec", True, [[2, 0], [2, 1], [3, 1]], {}),
        ("SASRec", False, [[1, 1], [2, 1], [3, 0], [3, 1], [4, 1]], PUBLISHED),
        ("SASRec", True, [[1, 1], [3, 1]], {**PUBLISHED, "distill_refresh_vectors": False}),
        ("BERT4Rec", False, [[1, 1], [2, 2]], {}),  # by samples, drawing from Python's and RecBole's generators too
    ],
)
def test_killed_and_resumed_ends_like_uninterrupted(fast_distill, workdir, crm, restart, deaths, more):
    settings = {
        **fast_distill,
        "crm_model": crm,
        "distill_restart": restart,
        "crm_warmup_epochs": 3,
        "epochs": 3,
        "llm_train_batch_size": 128,
        "train_batch_size": 128,
        **more,
    }
    uninterrupted, killed = workdir / "uninterrupted", workdir / "killed"
    jobs = [(str(uninterrupted), settings, None)]
    jobs += [(str(killed), {**settings, "resume": number > 0}, death) for number, death in enumerate(deaths)]
    jobs += [(str(killed), {**settings, "resume": True}, None)]
    first, *interrupted, last = _run(jobs)
    assert first[0] == last[0] == 0
    for death, (status, files) in zip(deaths, interrupted, strict=True):
        assert status == -signal.SIGKILL, f"was not killed at {death}"
        assert len([name for name in files if name.endswith(".resume.pth")]) == 1
    assert _result(killed) == _result(uninterrupted)
    left = [path.name for path in (killed / "saved").iterdir()]
    assert len(left) == 2 and not any(".resume." in name for name in left)


def test_resume_without_an_interrupted_run_starts_over(fast_distill, workdir, caplog):
    from recbole.quick_start import run_recbole

    first = run_recbole(config_dict=dict(fast_distill))
    again = run_recbole(config_dict={**fast_distill, "resume": True})
    assert first["test_result"] == again["test_result"]
    assert any("no interrupted run with these settings" in record.getMessage() for record in caplog.records)
