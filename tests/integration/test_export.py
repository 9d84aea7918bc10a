"""The CRM of a distillation as a checkpoint of its own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from recbole.quick_start import load_data_and_model, run_recbole
from recbole.utils import get_trainer

from recbole_llmd import export
from recbole_llmd.errors import CheckpointError, OutputError

REPO = Path(__file__).resolve().parents[2]


PLAIN = """
import sys, types
sys.modules["recbole_llmd"] = None  # this package is not there
import numpy, torch
tune = types.ModuleType("ray.tune"); ray = types.ModuleType("ray"); ray.tune = tune
sys.modules.update({"ray": ray, "ray.tune": tune})
for name, kind in dict(float_=float, complex_=complex, unicode_=str, bool=bool, int=int, float=float, object=object,
                       str=str, long=int, unicode=str).items():
    if name not in vars(numpy):
        setattr(numpy, name, kind)
load = torch.load
torch.load = lambda *args, **kwargs: load(*args, **{"weights_only": False, **kwargs})
from recbole.quick_start import load_data_and_model
from recbole.utils import get_trainer
config, model, dataset, train, valid, test = load_data_and_model(sys.argv.pop())
assert config["model"] == type(model).__name__ == "SASRec", config["model"]
trainer = get_trainer(config["MODEL_TYPE"], config["model"])(config, model)
trainer.resume_checkpoint
result = trainer.evaluate(test, load_best_model=False)
torch.save({key: float(value) for key, value in result.items()}, "plain.pth")
"""


def test_export_is_read_by_plain_recbole(fast_distill, workdir):
    """In a process where this package cannot be imported, on RecBole with the least shims that a new stack needs."""
    result = run_recbole(config_dict=dict(fast_distill))
    checkpoint = next(Path("saved").glob("LLMD4Rec*.pth"))
    export(str(checkpoint), "crm.pth")
    subprocess.run(
        [sys.executable, "-W", "ignore", "-c", PLAIN, "crm.pth"], check=True, cwd=workdir, stdout=subprocess.DEVNULL
    )
    assert torch.load("plain.pth") == dict(result["test_result"])
    config, model, *_ = load_data_and_model("crm.pth")
    assert not [key for key in config.final_config_dict if key.startswith(("llm_", "crm_", "distill_", "item_text_"))]
    trainer = get_trainer(config["MODEL_TYPE"], "SASRec")(config, model)
    trainer.resume_checkpoint("crm.pth")  # its optimizer state fits the model


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: "nowhere.pth", "checkpoint = 'nowhere.pth': there is no such file"),
        (lambda: torch.save({"state_dict": {}}, "other.pth") or "other.pth", "takes a checkpoint that LLMD4Rec wrote"),
    ],
)
def test_export_refuses_other_files(make, message):
    with pytest.raises(CheckpointError, match=message):
        export(make(), "out.pth")
    assert not os.path.exists("out.pth")


@pytest.mark.parametrize("out", ["saved", "saved/", "new/"])
def test_export_never_replaces_a_folder(fast_distill, workdir, out):
    run_recbole(config_dict={**fast_distill, "epochs": 1, "crm_warmup_epochs": 0, "llm_epochs": 0})
    (checkpoint,) = Path("saved").glob("LLMD4Rec*.pth")
    before = sorted(workdir.rglob("*"))
    with pytest.raises(OutputError, match=f"out = '{out}': this is a folder. Give the name of a file"):
        export(checkpoint, out)
    assert sorted(workdir.rglob("*")) == before
