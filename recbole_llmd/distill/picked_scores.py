r"""Scores of which a loss needs totals and some items alone: their gradients without autograd's steps between them.

A cross-entropy, or a divergence from a distribution over few items and the mass of the others, is a function of
:math:`\ell_i = \log\sum_j e^{s_{ij}}` and of the scores of some items :math:`k`. With
:math:`s_{ij} = h_i^\top v_j` its gradient is

.. math::
    \frac{\partial L}{\partial s_{ij}} = \frac{\partial L}{\partial \ell_i} \frac{e^{s_{ij}}}{\sum_k e^{s_{ik}}}
        + \sum_k \frac{\partial L}{\partial s_{ik}} [j = k].

Both passes go through chunks of samples in one buffer that stays in the processor's cache; the scores ``[n, n_items]``
are never there at once.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import pad

from recbole_llmd.distill.scores import log1mexp

CHUNK_BYTES = {"cpu": 2**24, "cuda": 2**28}  # of scores in the buffer
FEWEST_SAMPLES = 64  # in a chunk: products with fewer are slow


class PickedScores:
    """The totals of the scores of all items, and the scores of the target and of some items, of each sample.

    Args:
        outputs: the samples' outputs, ``[n, size (+ fixed size)]``.
        items: the item vectors, ``[n_items, size]``.
        fixed: further coordinates of them that are not trained, ``[n_items, fixed size]``, or None.
        targets: item ids, ``[n]``.
        picked: item ids, ``[n, k]``, or None.
        left_out: items that :attr:`log_total_kept` leaves out, bool, ``[n_items]``, or None; no gradient at all falls
            on them from there.

    All is computed when the first of it is asked for.

    >>> scores = PickedScores(torch.tensor([[1.0, 2.0]]), torch.eye(2), None, torch.tensor([1]))
    >>> scores.of_targets.item(), bool(torch.isclose(scores.log_total, torch.tensor([1.0, 2.0]).logsumexp(0)))
    (2.0, True)
    """

    def __init__(
        self,
        outputs: Tensor,
        items: Tensor,
        fixed: Tensor | None,
        targets: Tensor,
        picked: Tensor | None = None,
        left_out: Tensor | None = None,
    ) -> None:
        self._outputs, self._items, self._fixed = outputs, items, fixed
        self._wanted = pad(targets.unsqueeze(1), (1, 0))  # the padding item's first
        if picked is not None:
            self._wanted = torch.cat([self._wanted, picked], dim=1)
        self._columns = None if left_out is None else left_out.to(items.device).nonzero().squeeze(1)

    def tempered(self, temperature: float) -> PickedScores:
        """The same of the scores divided by ``temperature``."""
        if temperature == 1:
            return self
        other = copy.copy(self)
        other.__dict__.pop("_computed", None)
        other._outputs = self._outputs / temperature
        return other

    @cached_property
    def _computed(self) -> tuple[Tensor, Tensor, Tensor]:
        applied: Callable[..., tuple[Tensor, Tensor, Tensor]] = _PickedScores.apply
        return applied(self._outputs, self._items, self._fixed, self._wanted, self._columns)

    @property
    def log_total(self) -> Tensor:
        """The logarithm of the sum of the exponentials, over all items and the padding, ``[n]``."""
        return self._computed[0]

    @property
    def log_total_kept(self) -> Tensor:
        """The same without the items that are left out, ``[n]``."""
        return self._computed[1]

    @property
    def of_targets(self) -> Tensor:
        """The targets' scores, ``[n]``."""
        return self._computed[2][:, 1]

    @property
    def picked(self) -> Tensor:
        """The scores of the items picked, ``[n, k]``."""
        return self._computed[2][:, 2:]

    def log_total_of_items(self, kept: bool = False) -> Tensor:
        """A total without the padding item, on whose score no gradient falls, ``[n]``.

        Args:
            kept: whether without the items that are left out, too.
        """
        total = self.log_total_kept if kept else self.log_total
        return total + log1mexp(self._computed[2][:, 0] - total)

    def cross_entropy(self) -> Tensor:
        """Per-sample cross-entropy over all items but those that are left out, ``[n]``."""
        return self.log_total_kept - self.of_targets


class _Context(Protocol):
    """What autograd keeps of the forward pass for the backward pass."""

    columns: Tensor | None
    saved_tensors: tuple[Tensor, ...]

    def save_for_backward(self, *tensors: Tensor | None) -> None: ...


def _exponentials(
    outputs: Tensor, items: Tensor, fixed: Tensor | None
) -> Iterator[tuple[slice, Tensor, Callable[[Tensor | None], tuple[Tensor, Tensor]]]]:
    """For each chunk of samples: its slice, its scores in a buffer, and what turns these in place into exponentials
    of their differences from ``largest`` (their own maxima if None), returned with it.
    """
    n, n_items = len(outputs), len(items)
    at_once = CHUNK_BYTES.get(outputs.device.type, CHUNK_BYTES["cuda"]) // (outputs.element_size() * n_items)
    at_once = min(n, max(FEWEST_SAMPLES, at_once))
    buffer, size = outputs.new_empty(at_once, n_items), items.shape[1]
    for first in range(0, n, at_once):
        chunk = slice(first, min(first + at_once, n))
        scores = buffer[: chunk.stop - first]
        torch.mm(outputs[chunk, :size], items.t(), out=scores)
        if fixed is not None:
            scores.addmm_(outputs[chunk, size:], fixed.t())

        def exponentials(largest: Tensor | None, scores: Tensor = scores) -> tuple[Tensor, Tensor]:
            largest = scores.amax(1, keepdim=True) if largest is None else largest
            return scores.sub_(largest).exp_(), largest

        yield chunk, scores, exponentials


class _PickedScores(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: _Context,
        outputs: Tensor,
        items: Tensor,
        fixed: Tensor | None,
        wanted: Tensor,
        columns: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        with torch.autocast(outputs.device.type, enabled=False):
            outputs = outputs.to(items.dtype)
            sums, sums_kept = outputs.new_empty(len(outputs), 1), outputs.new_empty(len(outputs), 1)
            largest, picked = torch.empty_like(sums), outputs.new_empty(wanted.shape)
            for chunk, scores, exponentials in _exponentials(outputs, items, fixed):
                torch.gather(scores, 1, wanted[chunk], out=picked[chunk])
                of_chunk, largest[chunk] = exponentials(None)
                torch.sum(of_chunk, 1, keepdim=True, out=sums[chunk])
                if columns is None:
                    sums_kept[chunk] = sums[chunk]
                else:
                    sums_kept[chunk] = of_chunk.index_fill_(1, columns, 0).sum(1, keepdim=True)
        sums_kept.clamp_(min=torch.finfo(sums.dtype).tiny)
        ctx.columns = columns
        ctx.save_for_backward(outputs, items, fixed, wanted, largest, sums, sums_kept)
        return (sums.log() + largest).squeeze(1), (sums_kept.log() + largest).squeeze(1), picked

    @staticmethod
    def backward(ctx: _Context, of_total: Tensor, of_kept: Tensor, of_picked: Tensor) -> tuple[Tensor | None, ...]:
        outputs, items, fixed, wanted, largest, sums, sums_kept = ctx.saved_tensors
        columns, size = ctx.columns, items.shape[1]
        of_outputs, of_items = torch.empty_like(outputs), torch.zeros_like(items)
        everywhere, inside = of_total.unsqueeze(1) / sums, of_kept.unsqueeze(1) / sums_kept
        with torch.autocast(outputs.device.type, enabled=False):
            for chunk, _, exponentials in _exponentials(outputs, items, fixed):
                of_scores, _ = exponentials(largest[chunk])
                left_out = None if columns is None else of_scores[:, columns] * everywhere[chunk]
                of_scores.mul_(everywhere[chunk] + inside[chunk])
                if columns is not None and left_out is not None:
                    of_scores.index_copy_(1, columns, left_out)
                of_scores.scatter_add_(1, wanted[chunk], of_picked[chunk])
                torch.mm(of_scores, items, out=of_outputs[chunk, :size])
                if fixed is not None:
                    torch.mm(of_scores, fixed, out=of_outputs[chunk, size:])
                of_items.addmm_(of_scores.t(), outputs[chunk, :size])
        return of_outputs, of_items, None, None, None
