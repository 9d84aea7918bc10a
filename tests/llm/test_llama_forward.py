"""The quick pass of Llama decoders against that of transformers."""

import pytest
import torch

from recbole_llmd.llm import backbone
from recbole_llmd.llm.llama_forward import LlamaForward, is_supported


def llama(dtype=torch.float32, **more):
    """A random Llama whose norms' weights and projections are no small numbers."""
    from transformers import LlamaConfig, LlamaModel

    torch.manual_seed(0)
    sizes = {"hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 6}
    config = LlamaConfig(vocab_size=99, **{**sizes, "num_key_value_heads": 2, "initializer_range": 0.2, **more})
    model = LlamaModel(config).eval()
    for name, parameter in model.named_parameters():
        if "norm" in name:
            torch.nn.init.uniform_(parameter, 0.5, 2.0)
    return model.to(dtype).requires_grad_(False)


def batch(lengths, vocabulary=99):
    torch.manual_seed(1)
    tokens = torch.zeros(len(lengths), max(lengths), dtype=torch.long)
    for row, length in zip(tokens, lengths):
        row[:length] = torch.randint(1, vocabulary, (length,))
    return tokens, torch.arange(max(lengths)) < torch.tensor(lengths).unsqueeze(1)


@pytest.mark.parametrize("lengths", [[1], [7, 7], [9, 5, 1]], ids=str)
@pytest.mark.parametrize(
    "more",
    [
        {},
        {"num_key_value_heads": 6},
        {"num_key_value_heads": 1, "head_dim": 10},
        {"rope_theta": 7.0},
        {"rms_norm_eps": 0.5},
    ],
    ids=str,
)
def test_states_are_those_of_transformers(lengths, more):
    model, (tokens, real) = llama(**more), batch(lengths)
    with torch.no_grad():
        expected = model(input_ids=tokens, attention_mask=real.long()).last_hidden_state
        states = LlamaForward(model)(tokens)
    torch.testing.assert_close(states[real], expected[real], rtol=1e-4, atol=1e-5)


def test_padding_is_no_matter():
    model, (tokens, real) = llama(), batch([9, 5, 1])
    with torch.no_grad():
        states = LlamaForward(model)(tokens)
        other = LlamaForward(model)(tokens.masked_fill(~real, 55))
    assert torch.equal(states[real], other[real])


def relative(states, expected):
    return ((states - expected).norm() / expected.norm()).item()


def check_rounding(exact, rounded, tokens, real):
    """In bfloat16 it is about as far from the float32 states as transformers' own pass in bfloat16 is."""
    with torch.no_grad():
        expected = exact(input_ids=tokens, attention_mask=real.long()).last_hidden_state[real]
        theirs = rounded(input_ids=tokens, attention_mask=real.long()).last_hidden_state[real].float()
        ours = LlamaForward(rounded)(tokens)[real]
    assert 0 < relative(ours, expected) < 1.5 * relative(theirs, expected) < 0.1


@pytest.mark.parametrize("fused", [True, False])
def test_bfloat16_is_rounded_about_as_by_transformers(fused, monkeypatch):
    if not fused:
        monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    rounded = llama(torch.bfloat16)
    exact = llama()
    exact.load_state_dict({name: weight.float() for name, weight in rounded.state_dict().items()})
    check_rounding(exact, rounded, *batch([30, 25, 25, 8]))


@pytest.mark.smollm2
def test_smollm2_is_rounded_about_as_by_transformers():
    pytest.importorskip("gguf")
    rounded, exact = (backbone.load_backbone("auto", dtype) for dtype in (torch.bfloat16, torch.float32))
    check_rounding(exact, rounded, *batch([40, 31, 30, 12], 49000))


@pytest.mark.parametrize("more", [{"hidden_act": "gelu"}, {"attention_bias": True}, {"mlp_bias": True}], ids=str)
def test_other_architectures_are_left_to_transformers(more, tiny_gpt2):
    assert is_supported(llama()) and is_supported(llama(torch.bfloat16))
    assert not is_supported(llama(**more)) and not is_supported(llama(torch.float16))
    assert not is_supported(backbone.load_backbone(tiny_gpt2))


def test_a_model_with_adapters_is_left_to_transformers():
    """Their part would be missing."""
    from peft import LoraConfig, inject_adapter_in_model

    assert not is_supported(inject_adapter_in_model(LoraConfig(target_modules=["down_proj"]), llama()))
