"""Histories as text: the tokens of the items' texts, one item a line."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from recbole_llmd.errors import DataError

PREFIX = "A user's history, one item a line:\n"


class Prompt:
    r"""Turns histories of item ids into token ids.

    Args:
        texts: one text per item id; an item without text is written as its number.
        tokenizer: the model's tokenizer.
        item_tokens: the longest item in tokens, the line break included.
        dataset: the name of the dataset, for the error.

    Raises:
        DataError: if no item has a text.

    With a tokenizer that makes a token of every character:

    >>> class Characters:
    ...     pad_token_id = 0
    ...
    ...     def __call__(self, text, add_special_tokens):
    ...         one = isinstance(text, str)
    ...         return {"input_ids": [*map(ord, text)] if one else [[*map(ord, line)] for line in text]}
    >>> prompt = Prompt(["", "The Comet", "Clue"], Characters(), item_tokens=6, dataset="toy")
    >>> tokens, ends = prompt(torch.tensor([[1, 2]]))
    >>> "".join(map(chr, tokens[0].tolist()))
    "A user's history, one item a line:\nThe C\nClue\n"
    >>> [chr(tokens[0, end]) for end in ends[0]]
    ['\n', '\n']
    """

    def __init__(self, texts: Sequence[str], tokenizer: Any, item_tokens: int, dataset: str) -> None:
        if not any(texts):
            raise DataError(
                f"llm_input = 'prompt': the dataset {dataset!r} has no item text. Set llm_input: item, "
                "or give item_text_fields."
            )
        lines = [f"{text or f'item {i}'}\n" for i, text in enumerate(texts)]
        ids = [
            line[: item_tokens - 1] + line[-1:] if len(line) > item_tokens else line
            for line in tokenizer(lines, add_special_tokens=False)["input_ids"]
        ]
        self.prefix = torch.tensor(tokenizer(PREFIX, add_special_tokens=False)["input_ids"], dtype=torch.long)
        self.lengths = torch.tensor([len(line) for line in ids])
        self.lengths[0] = 0  # padding
        self.tokens = torch.zeros(len(ids), max(map(len, ids)), dtype=torch.long)
        for i, line in enumerate(ids[1:], start=1):
            self.tokens[i, : len(line)] = torch.tensor(line)
        self.pad: int = tokenizer.pad_token_id or 0

    def longest(self, n_items: int) -> int:
        """The most tokens that a history of ``n_items`` can fill."""
        return len(self.prefix) + n_items * self.tokens.shape[1]

    def __call__(self, item_seq: Tensor) -> tuple[Tensor, Tensor]:
        """Token ids ``[batch, n_tokens]``, and for each item the position of its last token ``[batch, length]``."""
        device = item_seq.device
        lengths = self.lengths.to(device)[item_seq]
        ends = (len(self.prefix) + lengths.cumsum(1) - 1).clamp(min=0)
        tokens = self.tokens.to(device)[item_seq]  # [batch, length, item tokens]
        offset = torch.arange(tokens.shape[2], device=device)
        real = offset < lengths.unsqueeze(-1)
        position = (ends - lengths + 1).unsqueeze(-1) + offset
        prompts = torch.full((len(item_seq), int(ends.max()) + 1), self.pad, dtype=torch.long, device=device)
        prompts[:, : len(self.prefix)] = self.prefix.to(device)
        history = torch.arange(len(item_seq), device=device)[:, None, None].expand_as(tokens)
        prompts[history[real], position[real]] = tokens[real]
        return prompts, ends
