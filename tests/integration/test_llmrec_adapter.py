"""LLMRec: what is trained and saved, and read back."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from recbole.utils import get_trainer

from recbole_llmd.errors import CheckpointError


@pytest.fixture
def settings(fast):
    return {**fast, "model": "LLMRec", "epochs": 2}


def test_only_adapters_and_head_are_trained_and_saved(build, settings):
    config, (train, valid, _), model = build(settings, epochs=1)
    frozen = {name: parameter.clone() for name, parameter in model.backbone.named_parameters() if "lora_" not in name}
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert set(model.state_dict()) == trained and any("lora_" in name for name in trained)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    get_trainer(config["MODEL_TYPE"], "LLMRec")(config, model).fit(train, valid, saved=False)
    after = dict(model.backbone.named_parameters())
    assert all(torch.equal(after[name], tensor) for name, tensor in frozen.items())
    unchanged = [name for name, tensor in model.state_dict().items() if torch.equal(tensor, before[name])]
    assert not unchanged


RELOAD = """
import json, sys, torch, recbole_llmd
from recbole.config import Config
from recbole.data import create_dataset, data_preparation
from recbole.utils import get_model
settings, folder = json.loads(sys.argv[1]), sys.argv[2]
sys.argv = sys.argv[:1]
config = Config(config_dict=settings)
train, _, _ = data_preparation(config, create_dataset(config))
torch.manual_seed(99)
model = get_model("LLMRec")(config, train.dataset).eval()
with torch.no_grad():
    for tensor in model.state_dict().values():
        tensor.add_(1.0)
    model.load_adapter(folder)
    torch.save(model.full_sort_predict(train.dataset[torch.arange(30)]), "scores.pth")
"""


def test_adapter_in_peft_format_reloads_in_a_fresh_process(build, settings, tiny_llama, workdir):
    config, (train, valid, _), model = build(settings, epochs=1)
    get_trainer(config["MODEL_TYPE"], "LLMRec")(config, model).fit(train, valid)
    folder = next(Path("saved").glob("*-adapter"))
    assert sorted(path.name for path in folder.iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
        "head.safetensors",
    ]
    model.load_adapter(folder)
    with torch.no_grad():
        expected = model.eval().full_sort_predict(train.dataset[torch.arange(30)])
    repo = Path(__file__).resolve().parents[2]
    subprocess.run(
        [sys.executable, "-c", RELOAD, json.dumps(settings), str(folder)],
        check=True,
        cwd=workdir,
        env={**__import__("os").environ, "PYTHONPATH": str(repo)},
        stdout=subprocess.DEVNULL,
    )
    assert torch.equal(torch.load("scores.pth"), expected)

    from peft import PeftModel
    from transformers import AutoModel

    plain = AutoModel.from_pretrained(tiny_llama)
    del plain.layers[2:]
    plain.config.num_hidden_layers = 2
    theirs = PeftModel.from_pretrained(plain, str(folder))
    x = torch.randn(2, 5, 32)
    with torch.no_grad():
        torch.testing.assert_close(
            theirs(inputs_embeds=x).last_hidden_state, model.backbone(inputs_embeds=x).last_hidden_state
        )


def test_adapter_of_another_shape_is_refused(build, settings):
    _, _, model = build(settings)
    model.save_adapter("a")
    _, _, other = build(settings, llm_embedding_size=8)
    with pytest.raises(CheckpointError, match="other items or other llm_"):
        other.load_adapter("a")
