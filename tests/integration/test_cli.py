"""The command line: its entry points, its errors, and the package as it is installed."""

import logging
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from recbole_llmd.cli import main

REPO = Path(__file__).resolve().parents[2]


def _arguments(settings):
    return [f"--{key}={value}" for key, value in settings.items()]


@pytest.fixture
def small(fast_distill):
    return {
        **fast_distill,
        "epochs": 1,
        "crm_warmup_epochs": 1,
        "llm_epochs": 1,
        "llm_warmup_epochs": 1,
        "state": "INFO",
    }


@pytest.fixture
def installed(tmp_path):
    """The files that a wheel would install."""
    target = tmp_path / "site"
    subprocess.run(
        [
            sys.executable,
            "setup.py",
            "-q",
            "build",
            "--build-base",
            str(tmp_path / "base"),
            "--build-lib",
            str(target),
            "egg_info",
            "--egg-base",
            str(tmp_path),
        ],
        cwd=REPO,
        check=True,
        capture_output=True,
    )
    return target


@pytest.mark.parametrize("entry", ["script", "module", "installed"])
def test_entry_points_train_and_print_both_results(entry, small, workdir, request):
    path, command = str(REPO), ["-m", "recbole_llmd"]
    if entry == "script":
        command = [str(REPO / "run_recbole_llmd.py")]
    elif entry == "installed":  # away from the checkout, with the properties inside the package
        path = str(request.getfixturevalue("installed"))
        assert os.path.isfile(f"{path}/recbole_llmd/properties/model/LLMD4Rec.yaml")
    (workdir / "empty").mkdir()
    done = subprocess.run(
        [sys.executable, *command, *_arguments(small)],
        cwd=workdir / "empty",
        text=True,
        capture_output=True,
        env={**os.environ, "PYTHONPATH": path},
    )
    assert done.returncode == 0, done.stderr
    printed = done.stdout + done.stderr
    assert "test result" in printed and "LLM test result" in printed
    assert "np.float64" not in printed and "Warning:" not in printed


def test_property_files_and_command_line(small, workdir, caplog):
    """A user's file gives settings, the command line has the last word, and --resume is a flag."""
    caplog.set_level(logging.INFO)
    (workdir / "my.yaml").write_text("crm_model: GRU4Rec\nembedding_size: 16\nepochs: 7\n")
    settings = {key: value for key, value in small.items() if key not in ("epochs", "model")}
    assert (
        main(["--model", "LLMD4Rec", "--config_files", "my.yaml", "--resume", "--epochs=1", *_arguments(settings)]) == 0
    )
    log = re.sub(r"\x1b\[[0-9;]*m", "", "\n".join(record.getMessage() for record in caplog.records))
    assert "(crm): GRU4Rec" in log and "round 1, CRM phase (LLM teaches): at most 1 epochs" in log
    assert "no interrupted run" in log


@pytest.mark.parametrize("model, more", [("EASE", {}), ("GRU4Rec", {"embedding_size": 8, "hidden_size": 8})])
def test_recbole_models_run_too(model, more, workdir):
    settings = {
        "epochs": 1,
        "user_inter_num_interval": "[20,24)",
        "MAX_ITEM_LIST_LENGTH": 10,
        "show_progress": False,
        **more,
    }
    assert main([f"--model={model}", "--dataset=ml-100k", *_arguments(settings)]) == 0
    assert list((workdir / "saved").glob(f"{model}-*.pth"))


def test_export_command(small, workdir, capsys):
    assert main(_arguments(small)) == 0
    checkpoint = next((workdir / "saved").glob("LLMD4Rec-*.pth"))
    assert main(["export", f"--checkpoint={checkpoint}", "--out=models/crm.pth"]) == 0
    assert (workdir / "models" / "crm.pth").is_file() and "SASRec written to models/crm.pth" in capsys.readouterr().out


@pytest.mark.parametrize(
    "argv, message",
    [
        (
            ["--model=LLMD4Re", "--dataset=tiny"],
            "model = 'LLMD4Re': there is no model of that name. The nearest name is 'LLMD4Rec'",
        ),
        (
            ["--model=LLMD4Rec", "--dataset=ml-100k", "--llm_layer=3"],
            "llm_layer is not a setting.*nearest valid name is llm_layers",
        ),
        (
            ["--model=LLMD4Rec", "--dataset=ml-100k", "--distill_temperature_llm_to_crm=0"],
            "distill_temperature_llm_to_crm = 0: must be a number above 0",
        ),
        (["--model=LLMD4Rec", "--dataset=ml-100k", "--crm_model=SASRek"], "nearest name is 'SASRec'"),
        (["--model=LLMD4Rec", "--dataset=ml-100k", "--config_files=no.yaml"], "there is no file 'no.yaml'"),
        (["unlearn", "--evaluate", "--out=x", "--config_files=no.yaml"], "config_files: there is no file 'no.yaml'"),
        (["compare", "--models=Pop", "--dataset=x", "--config_files=no.yaml"], "there is no file 'no.yaml'"),
        (["--dataset=ml-100k"], "model need to be specified.*--model="),
        (["export", "--checkpoint=no.pth", "--out=x"], "there is no such file"),
    ],
)
def test_bad_settings_exit_with_a_message(argv, message, capsys):
    assert main(argv) == 2
    assert re.search(message, capsys.readouterr().err)


@pytest.mark.parametrize(
    "argv, message",
    [
        (["--model=LLMRec", "--epochs", "5"], "'--epochs': a setting is written --key=value"),
        (["--model=LLMRec", "--epochs=5", "--epochs=6"], "--epochs is given twice"),
        (["export", "--checkpoint=x", "--out=y", "--epochs=5"], "--epochs is not an option of export"),
    ],
)
def test_malformed_arguments(argv, message, capsys):
    with pytest.raises(SystemExit) as error:
        main(argv)
    assert error.value.code == 2 and message in capsys.readouterr().err
