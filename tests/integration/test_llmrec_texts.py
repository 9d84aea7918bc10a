"""LLMRec: item texts, their vectors and the cache of these."""

import contextlib
import math
import sqlite3
from pathlib import Path

import numpy as np
import pytest
import torch
from recbole.quick_start import run_recbole

from recbole_llmd.data.item_text import load_item_texts
from recbole_llmd.errors import DataError
from recbole_llmd.llm import text_encoder


@pytest.fixture
def settings(fast):
    return {**fast, "model": "LLMRec", "epochs": 2, "llm_text_model": "backbone"}


def _check_result(result):
    assert set(result) == {"best_valid_score", "valid_score_bigger", "best_valid_result", "test_result"}
    assert 0 <= result["test_result"]["ndcg@10"] <= 1


def test_text_cache_is_found_again_and_not_used_wrongly(build, settings, tiny_gpt2, monkeypatch, workdir):
    def cached():
        return {path.name: path.stat().st_mtime_ns for path in (workdir / "texts").iterdir()}

    _, _, first = build(settings)
    written = cached()
    _, _, again = build(settings)
    assert len(written) == 1 and cached() == written and torch.equal(first.text, again.text)
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in first.state_dict().items())
    build(settings, llm_layers=1, show_progress=True)  # texts are encoded by all layers
    assert cached() == written
    build(settings, item_text_fields=["genre"])  # other texts, in the same file
    assert set(cached()) == set(written) and cached() != written
    build(settings, llm_model=tiny_gpt2)  # another model
    assert len(cached()) == 2
    monkeypatch.setattr(text_encoder, "VERSION", text_encoder.VERSION + 1)  # other code
    build(settings)
    assert len(cached()) == 3


def test_cached_text_vectors_are_those_that_are_used(build, settings, workdir):
    """What stands in the cache is the model's text: it is read, not encoded again beside it."""
    _, _, first = build(settings)
    (file,) = (workdir / "texts").iterdir()
    with contextlib.closing(sqlite3.connect(file)) as database, database:
        rows = database.execute("SELECT key, vector FROM vectors").fetchall()
        turned = [(np.frombuffer(vector, "<f4")[::-1].tobytes(), key) for key, vector in rows]
        database.executemany("UPDATE vectors SET vector = ? WHERE key = ?", turned)
    _, _, again = build(settings)
    assert torch.equal(again.text, first.text.flip(1)) and not torch.equal(again.text, first.text)


def test_texts_are_encoded_by_the_uncut_model(build, settings):
    """The text vectors do not depend on how many layers are kept afterwards."""
    texts = [build(settings, llm_layers=layers, llm_cache_dir=f"texts-{layers}")[2].text for layers in (0, 1)]
    assert torch.equal(*texts)


def test_text_vectors_are_standardised_weighted_means(build, settings, tiny_llama):
    """Against one unpadded forward pass per text, and counts of the texts that a token stands in."""
    from transformers import AutoModel, AutoTokenizer

    config, (train, _, _), model = build(settings)
    texts = load_item_texts(config, train.dataset)
    llama, tokenizer = AutoModel.from_pretrained(tiny_llama).eval(), AutoTokenizer.from_pretrained(tiny_llama)
    tokens = {i: tokenizer(text)["input_ids"] for i, text in enumerate(texts) if text}
    means = {}

    def rounded(count):
        return next(4**power for power in range(20) if 4**power >= count)

    for i, ids in tokens.items():
        with torch.no_grad():
            hidden = llama(input_ids=torch.tensor([ids])).last_hidden_state[0].double()
        among = [sum(token in other for other in tokens.values()) for token in ids]
        weights = [math.log((1 + rounded(len(tokens))) / rounded(n)) for n in among]
        means[i] = sum(weight * row for weight, row in zip(weights, hidden)) / sum(weights)
    stacked = torch.stack(list(means.values()))
    expected = (stacked - stacked.mean(0)) / stacked.std(0) / 32**0.5
    torch.testing.assert_close(model.text[list(means)].double(), expected, rtol=1e-3, atol=1e-4)
    assert len(means) == 48 and not model.text[[i for i in range(51) if i not in means]].any()


def test_dataset_without_item_file(build, settings, workdir, caplog):
    """Works on the item embedding alone, with one warning; prompts have nothing to say and are refused."""
    source = Path(settings["data_path"]) / "tiny" / "tiny.inter"
    (workdir / "data" / "tiny").mkdir(parents=True)
    (workdir / "data" / "tiny" / "tiny.inter").write_text(source.read_text())
    bare = {**settings, "data_path": str(workdir / "data")}
    _, (train, _, _), model = build(bare)
    warnings = [record.getMessage() for record in caplog.records if "no text" in record.getMessage()]
    assert len(warnings) == 1 and "50 of 50 items" in warnings[0] and "does not exist" in warnings[0]
    assert model.text is None and not hasattr(model, "text_projection")
    names = list(model.state_dict())
    with torch.no_grad():
        assert model.eval().full_sort_predict(train.dataset[torch.arange(4)]).shape == (4, 51)
    assert list(model.state_dict()) == names
    run_recbole(config_dict=bare)
    with pytest.raises(DataError, match=r"llm_input = 'prompt'.*no item text.*llm_input: item"):
        build(bare, llm_input="prompt")
