"""Scores by the likeness of item texts, which need no training interaction of the item that is scored."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

FLOOR = 0.1  # of a direction's spread when texts are whitened, relative to the widest direction's
SCALE = 5.0  # of the likeness at the start: that of a text with itself is one
DECAY = 0.5  # the first weight of an item in a history is exp(-DECAY) times that of the item after it
OLDEST = 10  # items further back start with the same weight


def whitened(text: Tensor) -> Tensor:
    """Unit vectors of item texts in which frequent directions count for less.

    Args:
        text: standardised text vectors, ``[n_items, hidden]``; an item without text has a zero row.

    Returns:
        torch.Tensor: ``[n_items, hidden]``; rows of length one, those without text zero.

    >>> text = torch.tensor([[0.0, 0.0], [2.0, 1.0], [-2.0, 0.0], [0.0, -1.0]])
    >>> [round(length, 4) for length in whitened(text).norm(dim=1).tolist()]
    [0.0, 1.0, 1.0, 1.0]
    """
    known = text.abs().sum(1) > 0
    centred = text[known] - text[known].mean(0)
    _, spread, directions = torch.linalg.svd(centred, full_matrices=False)
    vectors = text.new_zeros(len(text), len(spread))
    vectors[known] = nn.functional.normalize(centred @ directions.t() / (spread + FLOOR * spread[0]))
    return vectors


class TextMatch(nn.Module):
    r"""How well the text of every item goes with the texts of a history.

    With unit text vectors :math:`x_i` and a history :math:`i_1, \dots, i_t`, the match of item :math:`j` is

    .. math:: s \sum_{k \le t} a_{t-k}\, (x_{i_k} + B A\, x_{i_k})^\top x_j .

    Learned are the scale :math:`s`, the weights :math:`a` of an item that lies so many steps back, and the map
    :math:`BA` of low rank, zero at the start, that says which texts follow which.

    Args:
        text: standardised text vectors, ``[n_items, hidden]``.
        rank: the rank of the learned map.
        length: the longest history.

    Before it is trained, a history of one item goes best with that item's own text:

    >>> text_match = TextMatch(torch.tensor([[0.0, 0.0], [2.0, 1.0], [-2.0, 0.0], [0.0, -1.0]]), rank=1, length=4)
    >>> scores = text_match(torch.tensor([[2]])) @ text_match.vectors.t()
    >>> scores.argmax().item(), round(scores.max().item(), 4)
    (2, 5.0)
    """

    vectors: Tensor

    def __init__(self, text: Tensor, rank: int, length: int) -> None:
        super().__init__()
        self.register_buffer("vectors", whitened(text), persistent=False)
        size = self.vectors.shape[1]
        self.scale = nn.Parameter(torch.tensor(math.log(SCALE)))
        self.recency = nn.Parameter(-DECAY * torch.arange(length).clamp(max=OLDEST).float())
        self.down = nn.Linear(size, rank, bias=False)
        self.up = nn.Linear(rank, size, bias=False)
        nn.init.normal_(self.down.weight, std=size**-0.5)
        nn.init.zeros_(self.up.weight)

    def forward(self, item_seq: Tensor) -> Tensor:
        """What to multiply the ``vectors`` with after every position, ``[batch, length, size]``.

        Args:
            item_seq: item ids, right-padded, ``[batch, length]``.
        """
        steps = torch.arange(item_seq.shape[1], device=item_seq.device)
        back = steps.unsqueeze(1) - steps
        weights = torch.where(back >= 0, self.recency[back.clamp(min=0)].exp(), 0.0)
        texts = self.vectors[item_seq]  # zero for padding
        matched: Tensor = self.scale.exp() * (weights @ (texts + self.up(self.down(texts))))
        return matched
