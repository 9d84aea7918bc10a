"""Encoding item texts once, and caching the result on disk."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from collections.abc import Sequence
from logging import getLogger
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm

from recbole_llmd.atomic_write import atomic_write
from recbole_llmd.llm import backbone as backbones

VERSION = 2  # of the encoding below: raise it with every change that alters the vectors
LONGEST_TEXT = 256  # tokens; longer texts are cut
LIBRARIES = ("torch", "transformers", "tokenizers", "gguf")  # whose versions can alter the vectors


class TextEncoder:
    """Encodes the texts of items by a language model before any of its layers are cut, and caches the vectors.

    A text's vector is the mean of the model's last hidden states over its tokens (all layers), each token weighted by
    its inverse document frequency over the texts, so that a rare word counts for more than a brand of a thousand
    items; then each coordinate is standardised over the items that have text.

    Args:
        name: the setting ``llm_model``.
        model: the loaded model; it is moved to ``device`` when texts are encoded.
        device: where texts are encoded.
        batch_size: texts in one pass.

    >>> import tempfile
    >>> from types import SimpleNamespace
    >>> model = SimpleNamespace(dtype=torch.float32, config=SimpleNamespace(max_position_embeddings=128))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = (Path(folder) / "config.json").write_text("{}")
    ...     encoder = TextEncoder(folder, model, torch.device("cpu"), batch_size=8)
    ...     encoder.ingredients()["longest text"], encoder.cache_key(["The Comet"]) == encoder.cache_key(["Clue"])
    (128, False)
    """

    def __init__(self, name: str, model: Any, device: torch.device, batch_size: int) -> None:
        self.name, self.model = name, model
        self.device, self.batch_size = device, batch_size
        self.longest_text = min(LONGEST_TEXT, max_positions(model))

    def ingredients(self) -> dict[str, Any]:
        """Everything but the texts that can change the vectors, rounding included."""
        return {
            "code": VERSION,
            "model": backbones.identity(self.name),
            "dtype": str(self.model.dtype),
            "device": self.device.type,
            "batch size": self.batch_size,
            "longest text": self.longest_text,
            "libraries": {name: _version(name) for name in LIBRARIES},
        }

    def cache_key(self, texts: Sequence[str]) -> str:
        """The name under which the vectors of ``texts`` are cached: a hash of the texts and the ingredients."""
        content = json.dumps([self.ingredients(), list(texts)], sort_keys=True)
        return hashlib.sha256(content.encode("utf-8")).hexdigest()[:24]

    def cache_file(self, texts: Sequence[str], cache_dir: str | Path) -> Path:
        """Where in ``cache_dir`` the vectors of ``texts`` are cached."""
        return Path(cache_dir) / f"{self.cache_key(texts)}.safetensors"

    def encode(self, texts: Sequence[str], cache_dir: str | Path, show_progress: bool = False) -> Tensor:
        """The standardised text vector of every item, from the cache if they are there.

        Args:
            texts: one text per item id; an empty text gives a zero vector.
            cache_dir: the folder of cached vectors.
            show_progress: whether there is a progress bar.

        Returns:
            torch.Tensor: ``[n_items, hidden]``, float32, on the CPU.
        """
        path = self.cache_file(texts, cache_dir)
        if path.is_file():
            getLogger().info(f"Item texts: the encoded vectors are in {path}")
            return load_file(path)["vectors"]
        vectors = _standardise(self._encode(texts, show_progress))
        with atomic_write(path) as temporary:
            save_file({"vectors": vectors}, temporary)
        return vectors

    @torch.no_grad()
    def _encode(self, texts: Sequence[str], show_progress: bool) -> Tensor:
        model, size = self.model.to(self.device), self.batch_size
        tokenizer = backbones.load_tokenizer(self.name)
        vectors = torch.zeros(len(texts), model.config.hidden_size)
        with_text = sorted((i for i, text in enumerate(texts) if text), key=lambda i: len(texts[i]))
        encoded = tokenizer([texts[i] for i in with_text], truncation=True, max_length=self.longest_text)
        tokens = [torch.tensor(ids, dtype=torch.long) for ids in encoded["input_ids"]]
        weights = inverse_document_frequencies(tokens)
        firsts = range(0, len(tokens), size)
        for first in tqdm(firsts, desc="Encode item texts", ncols=100, disable=not show_progress):
            batch = pad_sequence(tokens[first : first + size], batch_first=True, padding_value=-1)
            mask = batch >= 0
            batch = batch.clamp(min=0)
            hidden = model(
                input_ids=batch.to(self.device), attention_mask=mask.long().to(self.device), use_cache=False
            ).last_hidden_state
            weight = (weights[batch] * mask).unsqueeze(-1)
            vectors[with_text[first : first + size]] = (hidden.float().cpu() * weight).sum(1) / weight.sum(1)
        return vectors


def inverse_document_frequencies(texts: Sequence[Tensor]) -> Tensor:
    r"""The weight of every token, :math:`\log((1 + N) / N_t)` for a token in :math:`N_t` of :math:`N` texts.

    Args:
        texts: the token ids of each text.

    Returns:
        torch.Tensor: ``[largest token id + 1]``, above zero for every token that occurs.

    >>> weights = inverse_document_frequencies([torch.tensor([0, 1]), torch.tensor([1, 1])])
    >>> [round(weight, 4) for weight in weights.exp().tolist()]
    [3.0, 1.5]
    """
    n_texts_with = torch.bincount(torch.cat([torch.from_numpy(np.unique(ids.numpy())) for ids in texts]))
    return torch.log((1 + len(texts)) / n_texts_with.clamp(min=1))


def max_positions(model: Any) -> int:
    """The longest input of the model, in tokens."""
    config = model.config
    return getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None) or 2048


def _version(library: str) -> str | None:
    try:
        return importlib.metadata.version(library)
    except importlib.metadata.PackageNotFoundError:
        return None


def _standardise(vectors: Tensor) -> Tensor:
    """Zero mean and unit variance per coordinate over the rows that are not zero; zero rows stay zero."""
    with_text = vectors.abs().sum(1) > 0
    if with_text.sum() < 2:
        return vectors
    known = vectors[with_text]
    vectors[with_text] = (known - known.mean(0)) / known.std(0).clamp(min=1e-6)
    return vectors
