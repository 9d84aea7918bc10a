"""LLMRec with other text vectors, without pretraining and without a backbone, alone and as a teacher."""

import numpy as np
import pytest
import torch
from recbole.quick_start import run_recbole
from sklearn.feature_extraction.text import TfidfVectorizer

from recbole_llmd.data.item_text import load_item_texts
from recbole_llmd.errors import ModelError, SettingsError
from recbole_llmd.llm import backbone as backbones
from recbole_llmd.llm import text_model
from recbole_llmd.llm.text_match import whitened
from tests.conftest import _save_model


@pytest.fixture
def settings(fast):
    return {**fast, "model": "LLMRec", "epochs": 2}


def test_auto_is_one_of_the_others(build, settings):
    (_, _, auto), (_, _, named) = build(settings), build(settings, llm_text_model=text_model.AUTO)
    assert torch.equal(auto.text, named.text)


def test_tfidf_vectors_are_as_like_as_the_texts_words(build, settings, workdir):
    """Of full rank, their products are those of centred TF-IDF vectors, up to one scale; no text is encoded."""
    config, (train, _, _), model = build(settings, llm_text_model="tfidf")
    texts = load_item_texts(config, train.dataset)
    with_text = [i for i, text in enumerate(texts) if text]
    tfidf = TfidfVectorizer(sublinear_tf=True, token_pattern=r"(?u)\b\w+\b").fit_transform(
        [texts[i] for i in with_text]
    )
    assert model.text.shape[1] == min(len(with_text), tfidf.shape[1]) - 1
    centred = tfidf.toarray() - tfidf.toarray().mean(0)
    expected, products = centred @ centred.T, (model.text[with_text] @ model.text[with_text].T).numpy()
    products *= np.trace(expected) / np.trace(products)
    assert np.abs(products - expected).max() < 0.1 and np.corrcoef(products.ravel(), expected.ravel())[0, 1] > 0.995
    assert not model.text[[i for i in range(len(texts)) if i not in with_text]].any()
    assert model.text.square().sum(1)[with_text].mean().item() == pytest.approx(1.0, rel=1e-4)
    assert not (workdir / "texts").exists()
    assert torch.equal(build(settings, llm_text_model="tfidf")[2].text, model.text)


def test_without_text_vectors_items_are_their_embeddings(build, settings):
    _, _, model = build(settings, llm_text_model="none")
    assert model.text is None and model.match is None and model.text_only_items is None
    assert torch.equal(model.item_vectors(), model.item_embedding.weight)


def test_texts_can_be_encoded_by_another_model(build, settings, tiny_gpt2, tmp_path_factory):
    """A decoder, and an encoder with vectors of another size; the backbone stays."""
    from transformers import BertConfig

    sizes = {"hidden_size": 24, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    bert = _save_model(tmp_path_factory.mktemp("bert"), BertConfig(vocab_size=320, initializer_range=0.5, **sizes))
    _, _, usual = build(settings)
    _, _, gpt2 = build(settings, llm_model=tiny_gpt2, llm_text_model="backbone")
    for folder, size in ((tiny_gpt2, 32), (bert, 24)):
        _, _, model = build(settings, llm_text_model=folder)
        assert model.text.shape[1] == size and type(model.backbone) is type(usual.backbone)
        assert torch.equal(model.text, gpt2.text) == (folder == tiny_gpt2)
        assert torch.equal(model.match.vectors, whitened(model.text))


@pytest.mark.parametrize(
    "name, message",
    [
        ("/no/such/folder", "llm_text_model = '/no/such/folder': there is no such folder"),
        ("no_such.gguf", "llm_text_model = 'no_such.gguf': there is no such file"),
    ],
)
def test_a_text_model_that_is_not_there_is_named(build, settings, name, message):
    with pytest.raises(ModelError, match=message):
        build(settings, llm_text_model=name)


def test_shuffled_texts_are_those_of_other_items(build, settings):
    config, (train, _, _), _ = build(settings, llm_text_model="none")
    texts = load_item_texts(config, train.dataset)
    config["item_text_shuffle"] = True
    dealt = load_item_texts(config, train.dataset)
    assert sorted(dealt) == sorted(texts) and [bool(text) for text in dealt] == [bool(text) for text in texts]
    assert dealt != texts and load_item_texts(config, train.dataset) == dealt
    config["seed"] += 1
    assert load_item_texts(config, train.dataset) != dealt


def test_a_random_backbone_is_the_architecture_alone(build, settings):
    """Other weights, the same texts' vectors; drawn by the seed."""
    (_, _, usual), (_, _, model), (_, _, again) = (
        build(settings, llm_backbone=kind) for kind in ("pretrained", "random", "random")
    )
    assert torch.equal(model.text, usual.text)
    ours, theirs, same = (dict(m.backbone.named_parameters()) for m in (model, usual, again))
    assert {name: weight.shape for name, weight in ours.items()} == {name: w.shape for name, w in theirs.items()}
    drawn = [name for name in ours if name.endswith(("_proj.weight", "base_layer.weight"))]
    assert len(drawn) == 14  # two layers
    assert not any(torch.equal(ours[name], theirs[name]) or ours[name].requires_grad for name in drawn)
    assert all(torch.equal(ours[name], same[name]) for name in drawn)


def test_without_a_backbone_a_history_is_its_running_mean(build, settings, monkeypatch):
    """No language model is loaded where none makes the texts' vectors either."""
    loaded = []
    monkeypatch.setattr(backbones, "load_backbone", lambda *given: loaded.append(given))
    _, (train, _, _), model = build(settings, llm_backbone="none", llm_text_model="tfidf", llm_match_rank=0)
    assert loaded == [] and not list(model.backbone.parameters())
    with torch.no_grad():
        scores = model.eval().full_sort_predict(train.dataset[torch.arange(20)])
        vectors = model.item_vectors()
        for row in range(20):
            sample = train.dataset[torch.tensor([row])]
            history = sample["item_id_list"][0, : sample["item_length"][0]]
            mean = model.input_projection(model.input_norm(vectors[history])).mean(0)
            output = model.output_norm(model.output_projection(mean) + model.input_norm(vectors[history[-1]]))
            torch.testing.assert_close(scores[row], vectors @ output, rtol=1e-4, atol=1e-5)


def test_prompts_need_a_backbone(build, settings):
    with pytest.raises(SettingsError, match=r"llm_backbone = 'none': llm_input = 'prompt'.*Set llm_input: item"):
        build(settings, llm_backbone="none", llm_input="prompt")


@pytest.mark.parametrize(
    "more", [{"llm_backbone": "random"}, {"llm_backbone": "none"}, {"llm_text_model": "tfidf"}], ids=str
)
def test_saved_and_read_back(build, settings, more, workdir):
    """The adapter's folder holds all that is trained, whatever stands in the backbone's place."""
    _, (train, _, _), model = build(settings, **more)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1)
        model.save_adapter(workdir / "adapter")
        _, _, other = build(settings, **more)
        other.load_adapter(workdir / "adapter")
        samples = train.dataset[torch.arange(10)]
        assert torch.equal(other.eval().full_sort_predict(samples), model.eval().full_sort_predict(samples))


@pytest.mark.parametrize(
    "more",
    [
        {"llm_text_model": "tfidf"},
        {"llm_text_model": "none"},
        {"llm_backbone": "random", "item_text_shuffle": True},
        {"llm_backbone": "none"},
    ],
    ids=str,
)
def test_a_run_goes_to_its_end(settings, fast_distill, more):
    """Alone, and as one side of a distillation."""
    assert 0 <= run_recbole(config_dict={**settings, **more})["test_result"]["ndcg@10"] <= 1
    result = run_recbole(config_dict={**fast_distill, **more})
    assert all(0 <= side["test_result"]["ndcg@10"] <= 1 for side in (result, result["llm"]))
