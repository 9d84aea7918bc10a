"""The cache key of encoded texts: everything that can change the vectors changes it, and nothing else."""

import importlib.metadata
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from recbole_llmd.errors import ModelError
from recbole_llmd.llm import backbone, text_encoder
from recbole_llmd.llm.text_encoder import TextEncoder

TEXTS = ["", "The Comet", "Clue"]
CPU = torch.device("cpu")


@pytest.fixture
def folder(tiny_llama, workdir):
    """A copy of the tiny Llama whose files a test may change."""
    return Path(shutil.copytree(tiny_llama, workdir / "llama"))


def encoder_of(folder, dtype=torch.float32, device=CPU, batch_size=8):
    return TextEncoder(str(folder), backbone.load_backbone(str(folder), dtype), device, batch_size)


def test_equal_ingredients_have_one_key(folder):
    assert encoder_of(folder).cache_key(TEXTS) == encoder_of(folder).cache_key(list(TEXTS))


@pytest.mark.parametrize(
    "texts", [["", "The Comet", "Clues"], ["", "Clue", "The Comet"], ["", "The Comet", "Clue", ""]], ids=str
)
def test_texts_and_their_order_change_the_key(folder, texts):
    encoder = encoder_of(folder)
    assert encoder.cache_key(texts) != encoder.cache_key(TEXTS)


@pytest.mark.parametrize(
    "change",
    [{"dtype": torch.bfloat16}, {"device": torch.device("meta")}, {"batch_size": 9}],
    ids=["dtype", "device", "batch size"],
)
def test_how_texts_are_encoded_changes_the_key(folder, change):
    assert encoder_of(folder, **change).cache_key(TEXTS) != encoder_of(folder).cache_key(TEXTS)


def test_the_number_of_the_device_does_not(folder):
    keys = {encoder_of(folder, device=torch.device("cuda", number)).cache_key(TEXTS) for number in (0, 1)}
    assert len(keys) == 1


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json"])
def test_every_file_of_the_model_changes_the_key(folder, name):
    before = encoder_of(folder).cache_key(TEXTS)
    stamp = (folder / name).stat()
    os.utime(folder / name, ns=(stamp.st_atime_ns, stamp.st_mtime_ns + 1))
    assert encoder_of(folder).cache_key(TEXTS) != before


def test_another_tokenizer_changes_the_key(folder):
    before = encoder_of(folder).cache_key(TEXTS)
    (folder / "added_tokens.json").write_text("{}")
    assert encoder_of(folder).cache_key(TEXTS) != before


def test_where_texts_are_cut_changes_the_key(folder, monkeypatch):
    before = encoder_of(folder).cache_key(TEXTS)
    monkeypatch.setattr(text_encoder, "LONGEST_TEXT", 255)
    assert encoder_of(folder).cache_key(TEXTS) != before


def test_a_model_that_reads_less_cuts_earlier(folder):
    model = SimpleNamespace(dtype=torch.float32, config=SimpleNamespace(max_position_embeddings=100))
    assert TextEncoder(str(folder), model, CPU, 8).ingredients()["longest text"] == 100


@pytest.mark.parametrize("library", text_encoder.LIBRARIES)
def test_versions_of_libraries_change_the_key(folder, monkeypatch, library):
    before, version = encoder_of(folder).cache_key(TEXTS), importlib.metadata.version
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "0.0.1" if name == library else version(name))
    assert encoder_of(folder).cache_key(TEXTS) != before


def test_a_library_that_is_not_installed_is_an_ingredient_too(folder, monkeypatch):
    monkeypatch.setattr(text_encoder, "LIBRARIES", ("torch", "no-such-library"))
    versions = encoder_of(folder).ingredients()["libraries"]
    assert versions == {"torch": importlib.metadata.version("torch"), "no-such-library": None}


def test_the_version_of_the_encoding_changes_the_key(folder, monkeypatch):
    before = encoder_of(folder).cache_key(TEXTS)
    monkeypatch.setattr(text_encoder, "VERSION", text_encoder.VERSION + 1)
    assert encoder_of(folder).cache_key(TEXTS) != before


def test_a_progress_bar_does_not_change_the_vectors_found(folder, workdir):
    encoder = encoder_of(folder)
    vectors = encoder.encode(TEXTS, workdir / "texts", show_progress=False)
    (file,) = (workdir / "texts").iterdir()
    written = file.stat().st_mtime_ns
    assert torch.equal(encoder.encode(TEXTS, workdir / "texts", show_progress=True), vectors)
    assert [path.stat().st_mtime_ns for path in (workdir / "texts").iterdir()] == [written]
    assert file == encoder.cache_file(TEXTS, workdir / "texts")


@pytest.fixture
def hub(tiny_llama, workdir, monkeypatch):
    """``hub(commit)`` puts a snapshot of org/model into a local hub cache; the hub is out of reach."""
    import huggingface_hub.constants
    import transformers.utils.hub

    cache = workdir / "hub"
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    for name in ("TRANSFORMERS_CACHE", "HF_HUB_CACHE"):
        monkeypatch.setattr(transformers.utils.hub, name, str(cache), raising=False)

    def _hub(commit):
        shutil.copytree(tiny_llama, cache / "models--org--model" / "snapshots" / commit)
        (cache / "models--org--model" / "refs").mkdir(exist_ok=True)
        (cache / "models--org--model" / "refs" / "main").write_text(commit)

    return _hub


def test_the_commit_of_a_hub_model_changes_the_key(hub):
    """A repository of the hub changes under its name: its files of another commit are another model."""
    identities, keys = [], set()
    for commit in ("a" * 40, "b" * 40):
        hub(commit)
        encoder = encoder_of("org/model")
        identities.append(encoder.ingredients()["model"])
        keys.add(encoder.cache_key(TEXTS))
    assert identities == [f"hub:org/model@{'a' * 40}", f"hub:org/model@{'b' * 40}"]
    assert len(keys) == 2


def test_a_hub_model_that_is_not_in_the_cache_has_no_key(hub):
    """Its vectors could be those of other files of that name."""
    model = SimpleNamespace(dtype=torch.float32, config=SimpleNamespace(max_position_embeddings=100))
    with pytest.raises(ModelError, match=r"llm_model = 'org/other': no version .* Give the model's folder"):
        TextEncoder("org/other", model, CPU, 8).cache_key(TEXTS)
