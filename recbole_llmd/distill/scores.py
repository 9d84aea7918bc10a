"""The scores of all items for some samples, with what several terms of a loss need of them computed once."""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor

NEARLY_ALL = -1e-6  # the logarithm of the largest share that is taken away from a total


class Scores:
    """Logits of all items, the padding item first.

    Args:
        logits: ``[n, n_items]``.

    >>> scores = Scores(torch.tensor([[0.0, 0.0, 1.0, 2.0]]))
    >>> bool(torch.isclose(scores.log_total, torch.tensor([[0.0, 0.0, 1.0, 2.0]]).logsumexp(1)))
    True
    >>> bool(torch.isclose(scores.log_total_of_items, torch.tensor([[0.0, 1.0, 2.0]]).logsumexp(1)))
    True
    """

    def __init__(self, logits: Tensor) -> None:
        self.logits = logits

    @property
    def without_padding(self) -> Tensor:
        """The logits of the items, ``[n, n_items - 1]``."""
        return self.logits[:, 1:]

    @cached_property
    def log_total(self) -> Tensor:
        """The logarithm of the sum of the exponentials, over all items and the padding, ``[n]``."""
        return torch.logsumexp(self.logits, dim=-1)

    @cached_property
    def log_total_of_items(self) -> Tensor:
        """:attr:`log_total` without the padding item, on whose score no gradient falls, ``[n]``."""
        return self.log_total + log1mexp(self.logits[:, 0] - self.log_total)

    def cross_entropy(self, targets: Tensor, left_out: Tensor | None = None) -> Tensor:
        """Per-sample cross-entropy, ``[n]``, over all items but some ``left_out``, bool, ``[n_items]``."""
        total = self.log_total
        if left_out is not None:  # masked, not subtracted: no gradient at all falls on these items
            total = torch.logsumexp(self.logits.masked_fill(left_out, -torch.inf), dim=-1)
        return total - self.logits.gather(1, targets.unsqueeze(1)).squeeze(1)


def log1mexp(values: Tensor) -> Tensor:
    """The logarithm of 1 - exp(values), for values below 0.

    >>> log1mexp(torch.tensor([0.25]).log()).exp()
    tensor([0.7500])
    """
    return torch.log1p(-torch.exp(values.clamp(max=NEARLY_ALL)))
