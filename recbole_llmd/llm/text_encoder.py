"""Encoding item texts by a language model, each text once, with the result cached on disk."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import time
from collections.abc import Callable, Iterator, Sequence
from logging import getLogger
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm

from recbole_llmd.llm import backbone as backbones
from recbole_llmd.llm import llama_forward
from recbole_llmd.llm.text_cache import TextCache

VERSION = 3  # of the encoding below: raise it with every change that alters the vectors
LONGEST_TEXT = 256  # tokens; longer texts are cut
LIBRARIES = ("torch", "transformers", "tokenizers", "gguf")  # whose versions can alter the vectors
SECONDS_UNWRITTEN = 20.0  # of encoding are lost at most when it is interrupted
ROUNDING = 0.01  # of a hidden state in bfloat16
STEP = 4  # document frequencies and the number of texts are rounded up to powers of it


class TextEncoder:
    """Encodes the texts of items by a language model before any of its layers are cut, and caches the vectors.

    A text's vector is the mean of the model's last hidden states over its tokens (all layers). Of a causal model each
    token is weighted by its inverse document frequency over the texts, so that a rare word counts for more than a brand
    of a thousand items; a model that reads in both directions (a sentence encoder) is taken with equal weights. Then
    each coordinate is standardised over the items that have text.

    Frequencies are rounded (:func:`inverse_document_frequencies`), so that a new item changes the weights of few other
    texts: those alone, and its own, are encoded.

    Args:
        name: the value of the setting that names the model.
        model: the loaded model; it is moved to ``device`` when texts are encoded.
        device: where texts are encoded.
        batch_tokens: the most tokens in one pass, if a text alone has not more.
        setting: the setting that names the model, for messages.

    >>> import tempfile
    >>> from types import SimpleNamespace
    >>> model = SimpleNamespace(dtype=torch.float32, config=SimpleNamespace(max_position_embeddings=128))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = (Path(folder) / "config.json").write_text("{}")
    ...     encoder = TextEncoder(folder, model, torch.device("cpu"), batch_tokens=64)
    ...     encoder.ingredients()["longest text"], encoder.cache_file(folder).suffix
    (128, '.sqlite')
    """

    def __init__(
        self, name: str, model: Any, device: torch.device, batch_tokens: int, setting: str = "llm_model"
    ) -> None:
        self.name, self.model, self.setting = name, model, setting
        self.device, self.batch_tokens = device, batch_tokens
        self.longest_text = min(LONGEST_TEXT, max_positions(model))

    def ingredients(self) -> dict[str, Any]:
        """Everything but a text and its tokens' weights that can change its vector, rounding included."""
        return {
            "code": VERSION,
            "model": backbones.identity(self.name, self.setting),
            "dtype": str(self.model.dtype),
            "device": self.device.type,
            "batch tokens": self.batch_tokens,
            "longest text": self.longest_text,
            "libraries": {name: _version(name) for name in LIBRARIES},
        }

    def cache_file(self, cache_dir: str | Path) -> Path:
        """Where in ``cache_dir`` the vectors are cached: a file for all that has the same ingredients."""
        content = json.dumps(self.ingredients(), sort_keys=True)
        return Path(cache_dir) / f"{hashlib.sha256(content.encode('utf-8')).hexdigest()[:24]}.sqlite"

    def encode(self, texts: Sequence[str], cache_dir: str | Path, show_progress: bool = False) -> Tensor:
        """The standardised text vector of every item, from the cache where it is there.

        An encoding that was interrupted goes on where it was, with the result of an uninterrupted one.

        Args:
            texts: one text per item id; an empty text gives a zero vector.
            cache_dir: the folder of cached vectors.
            show_progress: whether there is a progress bar.

        Returns:
            torch.Tensor: ``[n_items, hidden]``, float32, on the CPU.
        """
        cache, with_text = TextCache(self.cache_file(cache_dir)), [i for i, text in enumerate(texts) if text]
        tokens, weights = self.tokens_and_weights([texts[i] for i in with_text])
        keys = [_key(texts[i], weight) for i, weight in zip(with_text, weights)]
        found = cache.get(keys)
        missing = {key: i for i, key in enumerate(keys) if key not in found}  # a text of several items once
        getLogger().info(
            f"Item texts: {len(keys) - len(missing)} encoded vectors are in {cache.path}, {len(missing)} are to be made"
        )
        with tqdm(total=len(missing), desc="Encode item texts", ncols=100, disable=not show_progress) as bar:
            found.update(self._encode(list(missing.values()), keys, (tokens, weights), cache, bar))
        vectors = torch.zeros(len(texts), self.model.config.hidden_size)
        vectors[with_text] = torch.from_numpy(np.stack([found[key] for key in keys]))
        return _standardise(vectors)

    def tokens_and_weights(self, texts: Sequence[str]) -> tuple[list[Tensor], list[Tensor]]:
        """The token ids of each text, ``[n_tokens]``, and their weights in its mean, ``[n_tokens]``, float32."""
        tokenizer = backbones.load_tokenizer(self.name, self.setting)
        encoded = tokenizer(list(texts), truncation=True, max_length=self.longest_text)["input_ids"]
        tokens = [torch.tensor(ids, dtype=torch.long) for ids in encoded]
        if not is_causal(self.model):
            return tokens, [torch.ones(len(ids)) for ids in tokens]
        weights = inverse_document_frequencies(tokens)
        return tokens, [weights[ids] for ids in tokens]

    def _encode(
        self,
        numbers: list[int],
        keys: Sequence[bytes],
        tokens_and_weights: tuple[Sequence[Tensor], Sequence[Tensor]],
        cache: TextCache,
        bar: tqdm[Any],
    ) -> dict[bytes, NDArray[np.float32]]:
        """The vectors of the texts with these numbers, by key; what is encoded is written as it goes."""
        encoded: dict[bytes, NDArray[np.float32]] = {}
        unwritten: dict[bytes, NDArray[np.float32]] = {}
        written = time.monotonic()
        try:
            for batch, vectors in self._batches(numbers, *tokens_and_weights):
                unwritten.update({keys[i]: vector for i, vector in zip(batch, vectors.numpy())})
                bar.update(len(batch))
                if time.monotonic() - written > SECONDS_UNWRITTEN:
                    cache.put(unwritten)
                    encoded, unwritten, written = {**encoded, **unwritten}, {}, time.monotonic()
        finally:
            if unwritten:
                cache.put(unwritten)
        return {**encoded, **unwritten}

    def batches(self, numbers: Sequence[int], tokens: Sequence[Tensor]) -> Iterator[list[int]]:
        """The numbers of the texts of each batch: texts of like length, the longest first.

        What is left after an interruption makes the same batches again, for batches are cut from the front.

        Args:
            numbers: those of the texts to be encoded.
            tokens: the token ids of each text, ``[n_tokens]``.
        """
        left = sorted(numbers, key=lambda i: (-len(tokens[i]), tokens[i].tolist()))
        while left:
            size = max(1, self.batch_tokens // max(1, len(tokens[left[0]])))
            yield left[:size]
            left = left[size:]

    @torch.no_grad()
    def _batches(
        self, numbers: list[int], tokens: Sequence[Tensor], weights: Sequence[Tensor]
    ) -> Iterator[tuple[list[int], Tensor]]:
        """Batches of text numbers with their vectors ``[batch, hidden]``."""
        if not numbers:
            return
        forward = self._forward()
        for batch in self.batches(numbers, tokens):
            ids, weight = (pad_sequence([part[i] for i in batch], batch_first=True) for part in (tokens, weights))
            lengths = torch.tensor([len(tokens[i]) for i in batch])
            hidden = forward(ids.to(self.device), lengths.to(self.device)).float().cpu()
            yield batch, torch.bmm(weight.unsqueeze(1), hidden).squeeze(1) / weight.sum(1, keepdim=True)

    def _forward(self) -> Callable[[Tensor, Tensor], Tensor]:
        """The last hidden states ``[batch, length, hidden]`` by right-padded token ids and their lengths."""
        model = self.model.to(self.device)
        if llama_forward.is_supported(model):
            quick = llama_forward.LlamaForward(model)
            return lambda ids, _: quick(ids)

        given = {"use_cache": False} if is_causal(model) else {}

        def forward(ids: Tensor, lengths: Tensor) -> Tensor:
            mask = (torch.arange(ids.shape[1], device=ids.device) < lengths.unsqueeze(1)).long()
            hidden: Tensor = model(input_ids=ids, attention_mask=mask, **given).last_hidden_state
            return hidden

        return forward


def _key(text: str, weights: Tensor) -> bytes:
    return hashlib.sha256(text.encode("utf-8") + b"\0" + weights.numpy().astype("<f4").tobytes()).digest()


@torch.no_grad()
def is_causal(model: Any) -> bool:
    """Whether the model reads from left to right: what comes after a token does not change its hidden state."""
    device = next(model.parameters()).device
    tokens = torch.tensor([[1, 2], [1, 3]], device=device)
    first = model(input_ids=tokens, attention_mask=torch.ones_like(tokens)).last_hidden_state[:, 0].float()
    return bool((first[0] - first[1]).norm() < ROUNDING * first[0].norm())


def inverse_document_frequencies(texts: Sequence[Tensor]) -> Tensor:
    r"""The weight of every token, :math:`\log((1 + \lceil N \rceil) / \lceil N_t \rceil)`.

    The token is in :math:`N_t` of :math:`N` texts, and :math:`\lceil\cdot\rceil` rounds up to a power of four: one text
    more changes the weights of few tokens.

    Args:
        texts: the token ids of each text.

    Returns:
        torch.Tensor: ``[largest token id + 1]``, above zero for every token that occurs.

    >>> weights = inverse_document_frequencies([torch.tensor([0, 1]), torch.tensor([1, 1]), torch.tensor([1])])
    >>> [round(weight, 4) for weight in weights.exp().tolist()]
    [5.0, 1.25]
    """
    n_texts_with = torch.bincount(torch.cat([torch.from_numpy(np.unique(ids.numpy())) for ids in texts]))
    return torch.log((1 + _rounded(torch.tensor([len(texts)]))) / _rounded(n_texts_with.clamp(min=1)))


def _rounded(counts: Tensor) -> Tensor:
    rounded = torch.ones(counts.shape)
    while (below := rounded < counts).any():
        rounded = torch.where(below, STEP * rounded, rounded)
    return rounded


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
