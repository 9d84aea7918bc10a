"""The encoding of item texts: its rate against that of plain matrix products, and against the model's own forward pass.

    python benchmarks/text_encoding.py --dataset=amazon-beauty --data_path=datasets --out=benchmarks/records/cost/...

Of ``--texts=1000`` of the dataset's item texts, drawn at random, every ``--every``-th batch is measured, interleaved:

- the products alone: F.linear in the model's dtype, of the shapes of each layer (queries, keys and values; output; gate
  and up; down), with weights of their own for each layer and as many rows as the batch has real tokens;
- the encoder's forward pass of the batch;
- transformers' pass of the same batch with a mask of the padding, of which ``--plain=2`` batches are timed.

A rate is the operations of the products on real tokens, those on padding not counted, by second of the process's
processor time, which other processes disturb less than the clock; the record has the clock's seconds too. The ratio is
the median over batches. OMP_NUM_THREADS says how many threads. Any other argument is one of RecBole's Config.
"""

from __future__ import annotations

import functools
import os
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench_setup import Figures, build
from record import read_arguments, write_record
from timing import timed

if TYPE_CHECKING:
    from torch import Tensor

    from recbole_llmd.llm.text_encoder import TextEncoder


def main() -> None:
    """Measure, and write the record."""
    settings = read_arguments()
    arguments = dict(settings)
    out = Path(settings.pop("out")).resolve()
    n_texts, every, plain = (int(settings.pop(key, n)) for key, n in (("texts", 1000), ("every", 4), ("plain", 2)))
    config, (train, _, _) = build(settings, "LLMRec")

    import numpy as np
    import torch

    from recbole_llmd.data.item_text import load_item_texts
    from recbole_llmd.llm import backbone
    from recbole_llmd.llm.text_encoder import TextEncoder

    texts = [text for text in load_item_texts(config, train.dataset) if text]
    texts = [texts[i] for i in np.random.default_rng(config["seed"]).permutation(len(texts))[:n_texts]]
    name, device = config["llm_model"], config["device"]
    model = backbone.load_backbone(name, backbone.dtype_of(config["llm_dtype"], device))
    encoder = TextEncoder(name, model, device, config["llm_text_batch_tokens"])
    with torch.inference_mode():
        figures = measure(encoder, texts, every, plain)
    print(figures)
    about = {
        "texts": len(texts),
        "threads": torch.get_num_threads(),
        "load average": os.getloadavg(),
        "precision": str(model.dtype),
        "batch tokens": encoder.batch_tokens,
    }
    write_record(out, arguments, **about, **figures)


def measure(encoder: TextEncoder, texts: Sequence[str], every: int, plain: int) -> Figures:
    """Rates in GFLOP/s and their ratios, over every ``every``-th batch."""
    import torch

    tokens, _ = encoder.tokens_and_weights(texts)
    forward, batches = encoder._forward(), list(batches_of(encoder, tokens))
    weights = [[torch.randn_like(weight) for weight in layer] for layer in layer_weights(encoder.model)]
    per_token = 2 * sum(weight.numel() for layer in weights for weight in layer)
    forward(*batches[0])  # the memory that later batches find
    rows = []
    for number, (ids, lengths) in enumerate(batches[every // 2 :: every]):
        n_tokens = int(lengths.sum())
        row: Figures = {"texts": len(ids), "tokens": n_tokens, "tokens with padding": ids.numel()}
        products = products_of(weights, n_tokens)
        calls: dict[str, Callable[[], Any]] = {
            "products": products,
            "encoder": functools.partial(forward, ids, lengths),
        }
        if number < plain:
            mask = (torch.arange(ids.shape[1]) < lengths.unsqueeze(1)).long()
            given = {"input_ids": ids, "attention_mask": mask, "use_cache": False}
            calls["transformers"] = functools.partial(encoder.model, **given)
        for name, call in calls.items():
            _, seconds, processor = timed(call)
            row[name] = {"s": seconds, "processor s": processor, "GFLOP/s": n_tokens * per_token / processor / 1e9}
        rows.append(row)
    rate = {
        name: statistics.median(row[name]["GFLOP/s"] for row in rows if name in row)
        for name in ("products", "encoder", "transformers")
    }
    ratios = [row["encoder"]["GFLOP/s"] / row["products"]["GFLOP/s"] for row in rows]
    return {
        "GFLOP/s": rate,
        "encoder / products": {"median": statistics.median(ratios), "least": min(ratios), "most": max(ratios)},
        "encoder / transformers": rate["encoder"] / rate["transformers"],
        "whole encoding": whole(encoder, texts),
        "batches": rows,
    }


def whole(encoder: TextEncoder, texts: Sequence[str]) -> Figures:
    """Seconds of encoding the texts into an empty cache, of reading them from it, and with one new text."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        steps = {"all": texts, "again": texts, "one more": [*texts, "A text that nobody knows yet"]}
        figures = {}
        for name, given in steps.items():
            _, seconds, processor = timed(functools.partial(encoder.encode, given, folder))
            figures[name] = {"s": seconds, "processor s": processor}
    return figures


def batches_of(encoder: TextEncoder, tokens: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
    """The batches that the encoder makes of texts: right-padded token ids, and lengths."""
    import torch
    from torch.nn.utils.rnn import pad_sequence

    return [
        (pad_sequence([tokens[i] for i in batch], batch_first=True), torch.tensor([len(tokens[i]) for i in batch]))
        for batch in encoder.batches(range(len(tokens)), tokens)
    ]


def layer_weights(model: Any) -> list[list[Tensor]]:
    """The weights of each layer of a Llama decoder; those of products with the same input as one."""
    import torch

    return [
        [
            torch.cat([layer.self_attn.q_proj.weight, layer.self_attn.k_proj.weight, layer.self_attn.v_proj.weight]),
            layer.self_attn.o_proj.weight,
            torch.cat([layer.mlp.gate_proj.weight, layer.mlp.up_proj.weight]),
            layer.mlp.down_proj.weight,
        ]
        for layer in model.layers
    ]


def products_of(weights: Sequence[Sequence[Tensor]], n_tokens: int) -> Callable[[], None]:
    """A function that multiplies inputs of so many rows with all weights, and does nothing else."""
    import torch

    inputs = {weight.shape[1]: torch.randn(n_tokens, weight.shape[1]).to(weight.dtype) for weight in weights[0]}

    def products() -> None:
        for layer in weights:
            for weight in layer:
                torch.nn.functional.linear(inputs[weight.shape[1]], weight)

    return products


if __name__ == "__main__":
    main()
