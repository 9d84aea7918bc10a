"""A checkpoint of ours is not read with data in which its ids mean others."""

import logging
import shutil
from pathlib import Path

import pytest
import torch
from recbole.quick_start import load_data_and_model, run_recbole

from recbole_llmd import export
from recbole_llmd.errors import CheckpointError

SHORT = {"epochs": 1, "crm_warmup_epochs": 0, "llm_epochs": 0, "llm_warmup_epochs": 1}


@pytest.fixture
def data(fast, workdir):
    """A copy of the tiny dataset, and how to change its interactions."""
    shutil.copytree(Path(fast["data_path"]) / "tiny", workdir / "data" / "tiny")
    file = workdir / "data" / "tiny" / "tiny.inter"

    def change(how):
        head, *lines = file.read_text().splitlines()
        file.write_text("\n".join([head, *how(lines)]) + "\n")

    return change


@pytest.fixture(params=["LLMD4Rec", "LLMRec", "IMCorrect", "exported"])
def checkpoint(request, fast_distill, workdir, data):
    """A trained model of each of our trainers, and the CRM alone."""
    settings = {**fast_distill, **SHORT, "data_path": str(workdir / "data")}
    model = {"exported": "LLMD4Rec"}.get(request.param, request.param)
    if model != "LLMD4Rec":
        keep = ("dataset", "data_path", "show_progress", "state", "metrics", "valid_metric", "MAX_ITEM_LIST_LENGTH")
        of_llm = ("llm_model", "llm_dtype", "llm_layers", "llm_embedding_size", "llm_cache_dir")
        keep += of_llm if model == "LLMRec" else ()
        settings = {key: settings[key] for key in keep}
        settings |= {"epochs": 1} if model == "LLMRec" else {"unlearn_seeds": 2, "unlearn_ratio": 0.1}
    run_recbole(config_dict={**settings, "model": model})
    (file,) = Path("saved").glob("*.pth")
    if request.param == "exported":
        export(file, "crm.pth")
        return "crm.pth"
    return str(file)


def test_other_ids_are_refused_and_another_interaction_is_said(checkpoint, data, caplog):
    """Without an interaction the ids mean the same: the model may serve newer data. In another order they do not."""
    assert torch.load(checkpoint, weights_only=False)["data_identity"]["users"][0] == "[PAD]"
    load_data_and_model(checkpoint)
    changed = "its data have changed since its training: "
    assert changed not in caplog.text
    data(lambda lines: lines[:-1])
    with caplog.at_level(logging.WARNING):
        load_data_and_model(checkpoint)
    assert f"{changed}the training interactions are others" in caplog.text
    data(sorted)
    with pytest.raises(CheckpointError, match=rf"{changed}user 1 .* was .* and is"):
        load_data_and_model(checkpoint)
