"""The encoding of texts against plain passes of transformers, and its cache: what is encoded again, and what is not."""

import importlib.metadata
import math
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from recbole_llmd.errors import ModelError
from recbole_llmd.llm import backbone, text_encoder
from recbole_llmd.llm.text_encoder import TextEncoder
from tests.conftest import _save_model

CPU = torch.device("cpu")


@pytest.fixture
def folder(tiny_llama, workdir):
    """A copy of the tiny Llama whose files a test may change."""
    return Path(shutil.copytree(tiny_llama, workdir / "llama"))


def encoder_of(folder, dtype=torch.float32, device=CPU, batch_tokens=64):
    return TextEncoder(str(folder), backbone.load_backbone(str(folder), dtype), device, batch_tokens)


def file_of(encoder):
    """The name of the cache's file: everything but texts that can change the vectors."""
    return encoder.cache_file("texts").name


def test_equal_ingredients_have_one_file(folder):
    assert file_of(encoder_of(folder)) == file_of(encoder_of(folder))


@pytest.mark.parametrize(
    "change",
    [{"dtype": torch.bfloat16}, {"device": torch.device("meta")}, {"batch_tokens": 9}],
    ids=["dtype", "device", "batch tokens"],
)
def test_how_texts_are_encoded_changes_the_file(folder, change):
    assert encoder_of(folder, **change).cache_file("texts") != encoder_of(folder).cache_file("texts")


def test_the_number_of_the_device_does_not(folder):
    keys = {encoder_of(folder, device=torch.device("cuda", number)).cache_file("texts") for number in (0, 1)}
    assert len(keys) == 1


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json"])
def test_every_file_of_the_model_changes_the_file(folder, name):
    before = encoder_of(folder).cache_file("texts")
    stamp = (folder / name).stat()
    os.utime(folder / name, ns=(stamp.st_atime_ns, stamp.st_mtime_ns + 1))
    assert encoder_of(folder).cache_file("texts") != before


def test_another_tokenizer_changes_the_file(folder):
    before = encoder_of(folder).cache_file("texts")
    (folder / "added_tokens.json").write_text("{}")
    assert encoder_of(folder).cache_file("texts") != before


def test_where_texts_are_cut_changes_the_file(folder, monkeypatch):
    before = encoder_of(folder).cache_file("texts")
    monkeypatch.setattr(text_encoder, "LONGEST_TEXT", 255)
    assert encoder_of(folder).cache_file("texts") != before


def test_a_model_that_reads_less_cuts_earlier(folder):
    model = SimpleNamespace(dtype=torch.float32, config=SimpleNamespace(max_position_embeddings=100))
    assert TextEncoder(str(folder), model, CPU, 64).ingredients()["longest text"] == 100


@pytest.mark.parametrize("library", text_encoder.LIBRARIES)
def test_versions_of_libraries_change_the_file(folder, monkeypatch, library):
    before, version = encoder_of(folder).cache_file("texts"), importlib.metadata.version
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "0.0.1" if name == library else version(name))
    assert encoder_of(folder).cache_file("texts") != before


def test_a_library_that_is_not_installed_is_an_ingredient_too(folder, monkeypatch):
    monkeypatch.setattr(text_encoder, "LIBRARIES", ("torch", "no-such-library"))
    versions = encoder_of(folder).ingredients()["libraries"]
    assert versions == {"torch": importlib.metadata.version("torch"), "no-such-library": None}


def test_the_version_of_the_encoding_changes_the_file(folder, monkeypatch):
    before = encoder_of(folder).cache_file("texts")
    monkeypatch.setattr(text_encoder, "VERSION", text_encoder.VERSION + 1)
    assert encoder_of(folder).cache_file("texts") != before


# --- the vectors ------------------------------------------------------------------------------------------------------

WORDS = ["Comet", "Orbit", "Butter", "Pepper", "Garlic", "Clue", "Shadow", "Detective", "Tulip"]
MANY = ["", *(" ".join((WORDS * 3)[i % 9 : i % 9 + 1 + i % 7]) + f" {i}" for i in range(30)), ""]


def naive(folder, texts, weighted=True):
    """One unpadded pass of transformers per text, and document frequencies by counting; float64."""
    from transformers import AutoModel, AutoTokenizer

    model, tokenizer = AutoModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    tokens = {i: tokenizer(text)["input_ids"] for i, text in enumerate(texts) if text}

    def rounded(count):
        return next(4**power for power in range(20) if 4**power >= count)

    means = torch.zeros(len(texts), model.config.hidden_size, dtype=torch.float64)
    for i, ids in tokens.items():
        with torch.no_grad():
            hidden = model(input_ids=torch.tensor([ids])).last_hidden_state[0].double()
        among = [sum(token in other for other in tokens.values()) for token in ids]
        weights = torch.tensor([math.log((1 + rounded(len(tokens))) / rounded(n)) if weighted else 1.0 for n in among])
        means[i] = (weights.unsqueeze(1) * hidden).sum(0) / weights.sum()
    known = means[list(tokens)]
    means[list(tokens)] = (known - known.mean(0)) / known.std(0)
    return means


@pytest.mark.parametrize("batch_tokens", [1, 40, 10**6])
@pytest.mark.parametrize("name", ["tiny_llama", "tiny_gpt2"])
def test_vectors_are_standardised_weighted_means(name, batch_tokens, request, workdir):
    folder = request.getfixturevalue(name)
    vectors = encoder_of(folder, batch_tokens=batch_tokens).encode(MANY, workdir / "texts")
    torch.testing.assert_close(vectors.double(), naive(folder, MANY), rtol=1e-3, atol=1e-3)


@pytest.fixture(scope="session")
def tiny_bert(tmp_path_factory):
    """A folder with a random encoder that reads in both directions."""
    from transformers import BertConfig

    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = BertConfig(vocab_size=320, max_position_embeddings=128, initializer_range=0.5, **sizes)
    return _save_model(tmp_path_factory.mktemp("bert"), config)


def test_an_encoder_that_reads_both_ways_is_taken_by_plain_means(tiny_bert, workdir):
    """Padding is masked: the company of longer texts changes nothing."""
    assert not text_encoder.is_causal(backbone.load_backbone(tiny_bert))
    vectors = encoder_of(tiny_bert).encode(MANY, workdir / "texts")
    torch.testing.assert_close(vectors.double(), naive(tiny_bert, MANY, weighted=False), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", ["tiny_llama", "tiny_gpt2"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_decoders_are_causal(name, dtype, request):
    assert text_encoder.is_causal(backbone.load_backbone(request.getfixturevalue(name), dtype))


# --- what is encoded again --------------------------------------------------------------------------------------------


@pytest.fixture
def encoded(monkeypatch):
    """The numbers of texts of the batches that were encoded."""
    sizes, batches = [], TextEncoder._batches

    def _batches(self, *given):
        for batch, vectors in batches(self, *given):
            sizes.append(len(batch))
            yield batch, vectors

    monkeypatch.setattr(TextEncoder, "_batches", _batches)
    return sizes


def test_what_is_known_is_not_encoded_again(folder, workdir, encoded):
    first = encoder_of(folder).encode(MANY, workdir / "texts")
    assert sum(encoded) == 30
    again = encoder_of(folder).encode(MANY[::-1], workdir / "texts", show_progress=True)
    torch.testing.assert_close(again.flip(0), first, rtol=1e-5, atol=1e-5)  # sums over items in another order
    assert sum(encoded) == 30
    assert [path.name for path in (workdir / "texts").iterdir()] == [file_of(encoder_of(folder))]


def test_a_text_of_several_items_is_encoded_once(folder, workdir, encoded):
    vectors = encoder_of(folder).encode(["Clue", "The Comet", "Clue", "Clue"], workdir / "texts")
    assert sum(encoded) == 2 and torch.equal(vectors[0], vectors[2])


def test_a_new_item_costs_itself_and_the_texts_whose_weights_change(folder, workdir, encoded):
    """Known words in as many texts as before, rounded: one text. The result is that of an encoding from scratch."""
    texts = ["Comet", "Comet Orbit", "Comet Orbit Clue", "Orbit Tulip", "Garlic", "Orbit"] * 2
    texts = [f"{text} {word}" for text, word in zip(texts, [*["Pepper"] * 6, *["Shadow"] * 6])]
    encoder_of(folder).encode(texts, workdir / "texts")
    before = sum(encoded)
    more = encoder_of(folder).encode([*texts, "Orbit Comet Pepper"], workdir / "texts")
    assert sum(encoded) - before == 1
    torch.testing.assert_close(more.double(), naive(folder, [*texts, "Orbit Comet Pepper"]), rtol=1e-3, atol=1e-3)


def test_an_interrupted_encoding_goes_on_where_it_was(folder, workdir, encoded, monkeypatch):
    """With the vectors, to the bit, of one that was not interrupted."""
    whole = encoder_of(folder).encode(MANY, workdir / "whole")
    n_batches, batches = len(encoded), TextEncoder._batches
    encoded.clear()

    def interrupted(self, *given):
        for number, batch in enumerate(batches(self, *given)):
            if number == 4:
                raise KeyboardInterrupt
            yield batch

    monkeypatch.setattr(TextEncoder, "_batches", interrupted)
    with pytest.raises(KeyboardInterrupt):
        encoder_of(folder).encode(MANY, workdir / "texts")
    monkeypatch.setattr(TextEncoder, "_batches", batches)
    assert torch.equal(encoder_of(folder).encode(MANY, workdir / "texts"), whole)
    assert sum(encoded) - encoded[4] == 30 and len(encoded) == n_batches + 1  # the fifth was begun twice


def test_what_is_encoded_is_written_as_it_goes(folder, workdir, monkeypatch):
    """A process that is killed loses the last seconds, not all."""
    monkeypatch.setattr(text_encoder, "SECONDS_UNWRITTEN", -1.0)
    written, put = [], text_encoder.TextCache.put
    monkeypatch.setattr(
        text_encoder.TextCache, "put", lambda cache, vectors: [written.append(len(vectors)), put(cache, vectors)]
    )
    encoder_of(folder).encode(MANY, workdir / "texts")
    assert sum(written) == 30 and len(written) > 4


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


def test_the_commit_of_a_hub_model_changes_the_file(hub):
    """A repository of the hub changes under its name: its files of another commit are another model."""
    identities, keys = [], set()
    for commit in ("a" * 40, "b" * 40):
        hub(commit)
        encoder = encoder_of("org/model")
        identities.append(encoder.ingredients()["model"])
        keys.add(encoder.cache_file("texts"))
    assert identities == [f"hub:org/model@{'a' * 40}", f"hub:org/model@{'b' * 40}"]
    assert len(keys) == 2


def test_a_hub_model_that_is_not_in_the_cache_has_no_file(hub):
    """Its vectors could be those of other files of that name."""
    model = SimpleNamespace(dtype=torch.float32, config=SimpleNamespace(max_position_embeddings=100))
    with pytest.raises(ModelError, match=r"llm_model = 'org/other': no version .* Give the model's folder"):
        TextEncoder("org/other", model, CPU, 8).cache_file("texts")
