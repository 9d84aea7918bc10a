"""Histories as text: the tokens of the items' texts, one item a line."""

import torch

from recbole_llmd.errors import SettingsError

PREFIX = "A user's history, one item a line:\n"


class Prompt:
    """Turns histories of item ids into token ids.

    Args:
        texts (list of str): one text per item id; an item without text is written as its number.
        tokenizer: the model's tokenizer.
        item_tokens (int): the longest item in tokens, the line break included.

    Raises:
        SettingsError: if no item has a text.
    """

    def __init__(self, texts, tokenizer, item_tokens, config):
        if not any(texts):
            raise SettingsError(
                f"llm_input = 'prompt': the dataset {config['dataset']!r} has no item text. Set llm_input: item, "
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
        self.pad = tokenizer.pad_token_id or 0

    def longest(self, n_items):
        """The most tokens that a history of ``n_items`` can take."""
        return len(self.prefix) + n_items * self.tokens.shape[1]

    def __call__(self, item_seq):
        """Token ids ``[batch, n_tokens]``, and for each item the position of its last token ``[batch, length]``."""
        device = item_seq.device
        lengths = self.lengths.to(device)[item_seq]
        ends = (len(self.prefix) + lengths.cumsum(1) - 1).clamp(min=0)
        tokens = self.tokens.to(device)[item_seq]  # [batch, length, item tokens]
        offset = torch.arange(tokens.shape[2], device=device)
        real = offset < lengths.unsqueeze(-1)
        where = (ends - lengths + 1).unsqueeze(-1) + offset
        out = torch.full((len(item_seq), int(ends.max()) + 1), self.pad, dtype=torch.long, device=device)
        out[:, : len(self.prefix)] = self.prefix.to(device)
        row = torch.arange(len(item_seq), device=device)[:, None, None].expand_as(tokens)
        out[row[real], where[real]] = tokens[real]
        return out, ends
