"""Encoding item texts once, and caching the result on disk."""

import hashlib
import json
from logging import getLogger
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm

from recbole_llmd.atomic_write import atomic_write
from recbole_llmd.llm import backbone as backbones

VERSION = 2  # of the encoding below: raise it with every change that alters the vectors


def cache_key(model_name, texts, dtype):
    """The key of the cached vectors: model, texts, precision and version of this code."""
    content = json.dumps([VERSION, backbones.identity(model_name), str(dtype), texts])
    return hashlib.sha256(content.encode("utf-8")).hexdigest()[:24]


def encode_texts(texts, model_name, dtype, device, cache_dir, batch_size, show_progress, load):
    """The standardised text vector of every item.

    A text's vector is the mean of the backbone's last hidden states over its tokens (all layers), each token weighted
    by its inverse document frequency over the texts, so that a rare word counts for more than a brand of a thousand
    items; then each coordinate is standardised over the items that have text.

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
    vectors = _standardise(_encode(texts, load, model_name, device, batch_size, show_progress))
    with atomic_write(path) as temporary:
        save_file({"vectors": vectors}, temporary)
    return vectors


@torch.no_grad()
def _encode(texts, load, model_name, device, batch_size, show_progress):
    model = load().to(device)
    tokenizer = backbones.load_tokenizer(model_name)
    vectors = torch.zeros(len(texts), model.config.hidden_size)
    with_text = sorted((i for i, text in enumerate(texts) if text), key=lambda i: len(texts[i]))
    tokens = tokenizer([texts[i] for i in with_text], truncation=True, max_length=min(256, max_positions(model)))
    tokens = [torch.tensor(ids, dtype=torch.long) for ids in tokens["input_ids"]]
    weights = inverse_document_frequencies(tokens)
    for start in tqdm(
        range(0, len(tokens), batch_size), desc="Encode item texts", ncols=100, disable=not show_progress
    ):
        batch = pad_sequence(tokens[start : start + batch_size], batch_first=True, padding_value=-1)
        mask = batch >= 0
        batch = batch.clamp(min=0)
        hidden = model(
            input_ids=batch.to(device), attention_mask=mask.long().to(device), use_cache=False
        ).last_hidden_state
        weight = (weights[batch] * mask).unsqueeze(-1)
        vectors[with_text[start : start + batch_size]] = (hidden.float().cpu() * weight).sum(1) / weight.sum(1)
    return vectors


def inverse_document_frequencies(texts):
    """The weight of every token, :math:`\\log((1 + N) / N_t)` for a token in :math:`N_t` of :math:`N` texts.

    Args:
        texts (list of Tensor): the token ids of each text.

    Returns:
        torch.Tensor: ``[largest token id + 1]``, above zero for every token that occurs.
    """
    found = torch.bincount(torch.cat([ids.unique() for ids in texts]))
    return torch.log((1 + len(texts)) / found.clamp(min=1))


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
