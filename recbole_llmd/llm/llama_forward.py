"""A forward pass of Llama decoders that keeps a processor's matrix units busy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


def is_supported(model: Any) -> bool:
    """Whether :class:`LlamaForward` can compute what ``model`` does: a plain Llama decoder on a processor.

    >>> is_supported(torch.nn.Linear(1, 1))
    False
    """
    from transformers.models.llama.modeling_llama import LlamaModel

    if type(model) is not LlamaModel:
        return False
    config = model.config
    plain = config.hidden_act == "silu" and not config.attention_bias and not config.mlp_bias
    matrices = (module for module in model.modules() if getattr(module, "weight", torch.empty(0)).dim() == 2)
    linear = all(type(module) in (torch.nn.Linear, torch.nn.Embedding) for module in matrices)  # no adapters
    dtype = model.norm.weight.dtype
    on_processor = model.norm.weight.device.type == "cpu" and dtype in (torch.float32, torch.bfloat16)
    return bool(plain and linear and on_processor)


@dataclass(frozen=True)
class _Layer:
    """The weights of one layer; the norms' weights are multiplied into those of the products that follow them."""

    attention_in: Tensor  # queries, keys, values
    attention_out: Tensor
    gate: Tensor
    up: Tensor
    down: Tensor


class LlamaForward:
    """The last hidden states of a Llama decoder, equal to those of transformers up to the rounding of its dtype.

    What differs is the cost. Texts are padded on the right, so that a causal model needs no mask of the padding; the
    norms' weights and the scale of the attention are multiplied into the projections once, in float32; queries, keys
    and values are one product; nothing is cast to float32 but a norm per token; and where oneDNN multiplies bfloat16,
    SwiGLU and the residual sums are computed inside the products, before they are rounded.

    Args:
        model: a decoder for which :func:`is_supported` is true; it is read, not kept.

    >>> from transformers import LlamaConfig, LlamaModel
    >>> sizes = dict(hidden_size=8, intermediate_size=8, num_attention_heads=2, num_key_value_heads=1)
    >>> model = LlamaModel(LlamaConfig(vocab_size=9, num_hidden_layers=2, **sizes)).eval()
    >>> tokens = torch.tensor([[1, 2, 3], [4, 5, 0]])
    >>> with torch.inference_mode():
    ...     torch.allclose(LlamaForward(model)(tokens), model(tokens).last_hidden_state, atol=1e-5)
    True
    """

    def __init__(self, model: Any) -> None:
        config, attention = model.config, model.layers[0].self_attn
        self.heads, self.key_heads, self.size = (
            config.num_attention_heads,
            config.num_key_value_heads,
            attention.head_dim,
        )
        self.scaling, self.eps = float(attention.scaling), float(config.rms_norm_eps)
        self.embedding, self.rotary = model.embed_tokens, model.rotary_emb
        self.norm: Tensor = model.norm.weight.float()
        self.products = _Products(self.norm.new_empty(0, dtype=model.norm.weight.dtype))
        with torch.inference_mode():
            self.layers = [self._layer(layer) for layer in model.layers]

    def _layer(self, layer: Any) -> _Layer:
        attention, mlp = layer.self_attn, layer.mlp
        first, second = layer.input_layernorm.weight.float(), layer.post_attention_layernorm.weight.float()
        # Rows of queries and keys: the first halves of all heads, then the second ones, for the rotation in one go.
        turned = torch.cat([attention.q_proj.weight.float() * self.scaling, attention.k_proj.weight.float()])
        halves = turned.view(self.heads + self.key_heads, 2, self.size // 2, -1).transpose(0, 1).reshape(turned.shape)
        pack = self.products.pack
        return _Layer(
            attention_in=pack(torch.cat([halves, attention.v_proj.weight.float()]) * first),
            attention_out=pack(attention.o_proj.weight),
            gate=pack(mlp.gate_proj.weight.float() * second),
            up=pack(mlp.up_proj.weight.float() * second),
            down=pack(mlp.down_proj.weight),
        )

    def __call__(self, tokens: Tensor) -> Tensor:
        """The last hidden states, ``[batch, length, hidden]``, float32.

        Args:
            tokens: token ids, ``[batch, length]``, right-padded; what stands at the padding is no matter, and its
                hidden states mean nothing.
        """
        n_texts, length = tokens.shape
        states = self.embedding(tokens).flatten(0, 1)
        cos, sin = self.rotary(states, torch.arange(length).unsqueeze(0))
        turns = self.heads + self.key_heads
        cos, sin = (part[0, :, : self.size // 2].repeat(1, turns) for part in (cos, sin))
        later = torch.full((length, length), -torch.inf, dtype=states.dtype).triu(1)
        later = later.repeat(self.heads // self.key_heads, 1)  # query heads that share keys, one after the other
        products = self.products
        for layer in self.layers:
            inputs = products.plain(self._normalised(states), layer.attention_in).view(n_texts, length, -1)
            states = products.added(self._attention(inputs, cos, sin, later), layer.attention_out, states)
            inputs = self._normalised(states)
            gated = products.multiplied(inputs, layer.up, products.swish(inputs, layer.gate))
            states = products.added(gated, layer.down, states)
        exact = states.float()
        scale = (exact.square().mean(1, keepdim=True) + self.eps).rsqrt()
        return (exact * scale * self.norm).view(n_texts, length, -1)

    def _normalised(self, states: Tensor) -> Tensor:
        squares = torch.linalg.vector_norm(states, dim=1, keepdim=True).float().square()
        return states * (squares / states.shape[1] + self.eps).rsqrt().to(states.dtype)

    def _attention(self, inputs: Tensor, cos: Tensor, sin: Tensor, later: Tensor) -> Tensor:
        """The mixed values, ``[batch · length, heads · size]``, of the joint product of a layer."""
        n_texts, length, _ = inputs.shape
        turned = cos.shape[1]
        first, second, values = inputs.split([turned, turned, self.key_heads * self.size], dim=2)
        rotated = inputs.new_empty(2, n_texts, length, turned)
        torch.mul(first, cos, out=rotated[0]).addcmul_(second, sin, value=-1)
        torch.mul(second, cos, out=rotated[1]).addcmul_(first, sin)
        # [batch, heads, length, halves, half]
        rotated = rotated.view(2, n_texts, length, self.heads + self.key_heads, -1).permute(1, 3, 2, 0, 4)
        queries = rotated[:, : self.heads].reshape(n_texts * self.key_heads, -1, self.size)
        keys = rotated[:, self.heads :].reshape(n_texts * self.key_heads, length, self.size)
        values = values.view(n_texts, length, self.key_heads, self.size).transpose(1, 2).reshape(keys.shape)
        weights = torch.bmm(queries, keys.transpose(1, 2)).add_(later).softmax(2)
        mixed = torch.bmm(weights, values).view(n_texts, self.heads, length, self.size)
        return mixed.transpose(1, 2).reshape(n_texts * length, -1)


class _Products:
    """Products with weights, and what is computed in the same go where oneDNN can."""

    def __init__(self, like: Tensor) -> None:
        self.dtype = like.dtype
        ops = torch.ops.mkldnn
        names = ("_linear_pointwise", "_reorder_linear_weight", "_is_mkldnn_bf16_supported")
        there = torch.backends.mkldnn.is_available() and all(hasattr(ops, name) for name in names)
        self.fused = there and self.dtype == torch.bfloat16 and bool(ops._is_mkldnn_bf16_supported())

    def pack(self, weight: Tensor) -> Tensor:
        weight = weight.to(self.dtype).contiguous()
        return torch.ops.mkldnn._reorder_linear_weight(weight) if self.fused else weight

    def plain(self, inputs: Tensor, weight: Tensor) -> Tensor:
        return self._unary(inputs, weight, "none") if self.fused else F.linear(inputs, weight)

    def swish(self, inputs: Tensor, weight: Tensor) -> Tensor:
        return self._unary(inputs, weight, "swish") if self.fused else F.silu(F.linear(inputs, weight), inplace=True)

    def multiplied(self, inputs: Tensor, weight: Tensor, factor: Tensor) -> Tensor:
        return self._binary(inputs, weight, factor, "mul") if self.fused else F.linear(inputs, weight).mul_(factor)

    def added(self, inputs: Tensor, weight: Tensor, summand: Tensor) -> Tensor:
        return self._binary(inputs, weight, summand, "add") if self.fused else F.linear(inputs, weight).add_(summand)

    def _unary(self, inputs: Tensor, weight: Tensor, what: str) -> Tensor:
        product: Tensor = torch.ops.mkldnn._linear_pointwise(inputs, weight, None, what, [], "")
        return product

    def _binary(self, inputs: Tensor, weight: Tensor, other: Tensor, what: str) -> Tensor:
        product: Tensor = torch.ops.mkldnn._linear_pointwise(inputs, other, weight, None, what)
        return product
