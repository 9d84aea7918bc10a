"""Scores of all items for many samples, computed in chunks of samples and not kept.

The scores of a batch, ``[n, n_items]``, their gradients and the steps between them take gigabytes where the catalogue
is large, and most of the time goes into getting that memory. In chunks they are computed again in the backward pass.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

UNCHUNKED_BYTES = 2**25  # of scores that are computed at once
CHUNK_BYTES = 2**24  # of scores in a chunk where they are more

SampleTerms = Callable[[Tensor, slice], tuple[Tensor, ...]]


def chunk_slices(n: int, n_items: int) -> list[slice]:
    """The chunks of ``n`` samples, as slices.

    >>> chunk_slices(3, n_items=10)
    [slice(0, 3, None)]
    >>> chunk_slices(3, n_items=3_000_000)
    [slice(0, 1, None), slice(1, 2, None), slice(2, 3, None)]
    """
    bytes_per_sample = 4 * n_items
    if n * bytes_per_sample <= UNCHUNKED_BYTES:
        return [slice(0, n)]
    size = max(1, CHUNK_BYTES // bytes_per_sample)
    return [slice(first, min(first + size, n)) for first in range(0, n, size)]


def scores_of_all_items(outputs: Tensor, items: Tensor | None = None, fixed: Tensor | None = None) -> Tensor:
    """The scores of all items, ``[n, n_items]``; ``outputs`` are these already where there are no item vectors.

    Args:
        outputs: the samples' outputs, ``[n, size (+ fixed size)]``.
        items: the item vectors, ``[n_items, size]``.
        fixed: further coordinates of them that are not trained, ``[n_items, fixed size]``: the backward pass computes
            no gradient of these.

    >>> scores_of_all_items(torch.tensor([[1.0, 2.0]]), torch.eye(2), torch.zeros(2, 0)).tolist()
    [[1.0, 2.0]]
    """
    if items is None:
        return outputs
    if fixed is None:
        return outputs @ items.t()
    size = items.shape[1]
    return torch.addmm(outputs[:, :size] @ items.t(), outputs[:, size:], fixed.t())


def per_sample(
    terms: SampleTerms, outputs: Tensor, items: Tensor | None = None, fixed: Tensor | None = None
) -> tuple[Tensor, ...]:
    """What ``terms`` gives for each sample from its scores, without keeping the scores.

    Args:
        terms: ``terms(scores, chunk)`` returns a tuple of tensors ``[n_chunk]``, for the scores ``[n_chunk, n_items]``
            of the samples in the slice ``chunk``. It is called again in the backward pass.
        outputs: as for :func:`scores_of_all_items`; without ``items`` the scores are not cut into chunks.
        items: as there.
        fixed: as there.

    Returns:
        tuple of tensors ``[n]``.

    >>> outputs, items = torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.eye(2)
    >>> [sums.tolist() for sums in per_sample(lambda scores, chunk: (scores.sum(1),), outputs, items)]
    [[1.0, 2.0]]
    """
    slices = [slice(0, len(outputs))] if items is None else chunk_slices(len(outputs), len(items))
    if len(slices) == 1:
        return terms(scores_of_all_items(outputs, items, fixed), slices[0])
    chunked: Callable[..., tuple[Tensor, ...]] = _Chunked.apply
    return chunked(terms, slices, outputs, items, fixed)


class _Context(Protocol):
    """What autograd keeps of the forward pass for the backward pass."""

    terms: SampleTerms
    slices: list[slice]
    autocast: bool
    saved_tensors: tuple[Tensor, Tensor, Tensor | None]

    def save_for_backward(self, *tensors: Tensor | None) -> None: ...


class _Chunked(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: _Context, terms: SampleTerms, slices: list[slice], outputs: Tensor, items: Tensor, fixed: Tensor | None
    ) -> tuple[Tensor, ...]:
        ctx.terms, ctx.slices = terms, slices
        ctx.autocast = torch.is_autocast_enabled(outputs.device.type)
        ctx.save_for_backward(outputs, items, fixed)
        values = [terms(scores_of_all_items(outputs[chunk], items, fixed), chunk) for chunk in slices]
        return tuple(map(torch.cat, zip(*values)))

    @staticmethod
    def backward(ctx: _Context, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        outputs, items, fixed = ctx.saved_tensors
        size = items.shape[1]
        of_outputs, of_items = torch.empty_like(outputs), torch.zeros_like(items)
        for chunk in ctx.slices:
            with torch.enable_grad(), torch.autocast(outputs.device.type, enabled=ctx.autocast):
                scores = scores_of_all_items(outputs[chunk].detach(), items.detach(), fixed).requires_grad_()
                terms = ctx.terms(scores, chunk)
            values, seeds = zip(*((v, g[chunk]) for v, g in zip(terms, gradients) if v.requires_grad))
            (of_scores,) = torch.autograd.grad(values, scores, seeds)
            of_scores = of_scores.to(items.dtype)
            of_outputs[chunk, :size] = of_scores @ items
            if fixed is not None:
                of_outputs[chunk, size:] = of_scores @ fixed
            of_items.addmm_(of_scores.t(), outputs[chunk, :size])
        return None, None, of_outputs, of_items, None
