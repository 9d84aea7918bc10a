"""Encoding item texts once, and caching the result on disk."""

import hashlib
import json
from logging import getLogger
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from tqdm import tqdm

from recbole_llmd.files import whole
from recbole_llmd.llm import backbone as backbones

VERSION = 1  # of the encoding below: raise it with every change that alters the vectors


def cache_key(model_name, texts, dtype):
    """The key of the cached vectors: model, texts, precision and version of this code."""
    content = json.dumps([VERSION, backbones.identity(model_name), str(dtype), texts])
    return hashlib.sha256(content.encode("utf-8")).hexdigest()[:24]


def encode_texts(texts, model_name, dtype, device, cache_dir, batch_size, show_progress=False, load=None):
    """The standardised text vector of every item.

    A text's vector is the masked mean of the backbone's last hidden states over its tokens (all layers), then
    each coordinate is standardised over the items that have text.

    Args:
        texts (list of str): one text per item id; an empty text gives a zero vector.
        model_name (str): the setting ``llm_model``.
        load (callable): returns the loaded backbone; called only if the cache does not have the vectors.

    Returns:
        torch.Tensor: ``[n_items, hidden]``, float32, on the CPU.
    """
    path = Path(cache_dir) / f"{cache_key(model_name, texts, dtype)}.safetensors"
    if path.is_file():
        getLogger().info(f"Item texts: encoded vectors found in {path}")
        return load_file(path)["vectors"]
    vectors = _standardise(
        _encode(
            texts,
            load or (lambda: backbones.load_backbone(model_name, dtype)),
            model_name,
            device,
            batch_size,
            show_progress,
        )
    )
    with whole(path) as temporary:
        save_file({"vectors": vectors}, temporary)
    return vectors


@torch.no_grad()
def _encode(texts, load, model_name, device, batch_size, show_progress):
    model = load().to(device)
    tokenizer = backbones.load_tokenizer(model_name)
    vectors = torch.zeros(len(texts), model.config.hidden_size)
    with_text = sorted((i for i, text in enumerate(texts) if text), key=lambda i: len(texts[i]))
    batches = [with_text[i : i + batch_size] for i in range(0, len(with_text), batch_size)]
    for batch in tqdm(batches, desc="Encode item texts", ncols=100, disable=not show_progress):
        tokens = tokenizer(
            [texts[i] for i in batch],
            return_tensors="pt",
            padding=True,
            truncation=True,
            max_length=min(256, max_positions(model)),
        ).to(device)
        mask = tokens["attention_mask"]
        hidden = model(input_ids=tokens["input_ids"], attention_mask=mask, use_cache=False).last_hidden_state
        mask = mask.unsqueeze(-1)
        vectors[batch] = ((hidden.float() * mask).sum(1) / mask.sum(1)).cpu()
    return vectors


def max_positions(model):
    """The longest input of the model, in tokens."""
    return getattr(model.config, "max_position_embeddings", None) or getattr(model.config, "n_positions", None) or 2048


def _standardise(vectors):
    """Zero mean and unit variance per coordinate over the rows that are not zero; zero rows stay zero."""
    rows = vectors.abs().sum(1) > 0
    if rows.sum() < 2:
        return vectors
    known = vectors[rows]
    vectors[rows] = (known - known.mean(0)) / known.std(0).clamp(min=1e-6)
    return vectors
