"""Which model makes the vectors of item texts: the setting ``llm_text_model``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from recbole_llmd.data.tfidf import dense_tfidf
from recbole_llmd.llm import backbone as backbones
from recbole_llmd.llm.text_encoder import TextEncoder

AUTO = "tfidf"  # what 'auto' stands for: better in validation than the backbone on two datasets, and cheaper
TFIDF_SIZE = 576  # the most dimensions of reduced TF-IDF vectors: as many as SmolLM2-135M's hidden states have


def chosen_text_model(config: Mapping[str, Any]) -> str:
    """What makes the text vectors of a run: 'backbone', 'tfidf', 'none', or the model that is named.

    >>> chosen_text_model({"llm_text_model": "org/encoder"}), chosen_text_model({"llm_text_model": "auto"}) == AUTO
    ('org/encoder', True)
    """
    setting: str = config["llm_text_model"]
    return AUTO if setting == "auto" else setting


def text_vectors(config: Mapping[str, Any], texts: Sequence[str], load_backbone: Callable[[], Any]) -> Tensor | None:
    """The vectors of the items' texts by ``llm_text_model``.

    Args:
        config: the run's Config.
        texts: one text per item id; empty for items without text.
        load_backbone: gives the uncut model of ``llm_model``; called only where that encodes the texts.

    Returns:
        torch.Tensor: ``[n_items, size]``, float32, on the CPU: centred, and of mean square one over the items with
        text, zero for the others. None where no item has a text, or none are wanted.

    Raises:
        ModelError: if the model cannot be loaded.
    """
    chosen, device = chosen_text_model(config), config["device"]
    if chosen == "none" or not any(texts):
        return None
    if chosen == "tfidf":
        return _scaled(torch.from_numpy(dense_tfidf(texts, TFIDF_SIZE, config["seed"])))
    if chosen == "backbone":
        name, setting, model = config["llm_model"], "llm_model", load_backbone()
    else:
        name, setting = chosen, "llm_text_model"
        model = backbones.load_backbone(name, backbones.dtype_of(config["llm_dtype"], device), setting)
    encoder = TextEncoder(name, model, device, config["llm_text_batch_tokens"], setting)
    return encoder.encode(texts, config["llm_cache_dir"], config["show_progress"])


def _scaled(vectors: Tensor) -> Tensor:
    """Centred, and divided by one number, over the rows that are not zero: directions keep their unequal spreads."""
    with_text = vectors.abs().sum(1) > 0
    centred = vectors[with_text] - vectors[with_text].mean(0)
    vectors[with_text] = centred / centred.square().mean().sqrt().clamp(min=1e-6)
    return vectors
