"""Scores of all items for many samples, computed in chunks of samples and not kept.

The scores of a batch, ``[n, n_items]``, their gradients and the steps between them take gigabytes where the catalogue
is large, and most of the time goes into getting that memory. In chunks they are computed again in the backward pass.
"""

import torch

WHOLE = 2**25  # bytes of scores that are computed in one piece
CHUNK = 2**24  # bytes of scores in a chunk where they are more


def parts(n, n_items):
    """The chunks of ``n`` samples, as slices."""
    bytes_per_sample = 4 * n_items
    if n * bytes_per_sample <= WHOLE:
        return [slice(0, n)]
    size = max(1, CHUNK // bytes_per_sample)
    return [slice(start, min(start + size, n)) for start in range(0, n, size)]


def product(outputs, items=None, fixed=None):
    """The scores of all items; ``outputs`` are these already where there are no item vectors.

    Args:
        outputs: the samples' outputs, ``[n, size (+ fixed size)]``.
        items: the item vectors, ``[n_items, size]``.
        fixed: further coordinates of them that are not trained, ``[n_items, fixed size]``: the backward pass computes
            no gradient of these.
    """
    if items is None:
        return outputs
    if fixed is None:
        return outputs @ items.t()
    size = items.shape[1]
    return torch.addmm(outputs[:, :size] @ items.t(), outputs[:, size:], fixed.t())


def per_sample(terms, outputs, items=None, fixed=None):
    """What ``terms`` gives for each sample from its scores, without keeping the scores.

    Args:
        terms (callable): ``terms(scores, part)`` returns a tuple of tensors ``[n_part]``, for the scores
            ``[n_part, n_items]`` of the samples in the slice ``part``. It is called again in the backward pass.
        outputs, items, fixed: as for :func:`product`; without item vectors the scores are taken in one piece.

    Returns:
        tuple of tensors ``[n]``.
    """
    slices = [slice(0, len(outputs))] if items is None else parts(len(outputs), len(items))
    if len(slices) == 1:
        return terms(product(outputs, items, fixed), slices[0])
    return _Chunked.apply(terms, slices, outputs, items, fixed)


class _Chunked(torch.autograd.Function):
    @staticmethod
    def forward(ctx, terms, slices, outputs, items, fixed):
        ctx.terms, ctx.slices = terms, slices
        ctx.autocast = torch.is_autocast_enabled(outputs.device.type)
        ctx.save_for_backward(outputs, items, fixed)
        found = [terms(product(outputs[part], items, fixed), part) for part in slices]
        return tuple(map(torch.cat, zip(*found)))

    @staticmethod
    def backward(ctx, *gradients):
        outputs, items, fixed = ctx.saved_tensors
        size = items.shape[1]
        of_outputs, of_items = torch.empty_like(outputs), torch.zeros_like(items)
        for part in ctx.slices:
            with torch.enable_grad(), torch.autocast(outputs.device.type, enabled=ctx.autocast):
                scores = product(outputs[part].detach(), items.detach(), fixed).requires_grad_()
                found = ctx.terms(scores, part)
            values, seeds = zip(*((v, g[part]) for v, g in zip(found, gradients) if v.requires_grad))
            (of_scores,) = torch.autograd.grad(values, scores, seeds)
            of_scores = of_scores.to(items.dtype)
            of_outputs[part, :size] = of_scores @ items
            if fixed is not None:
                of_outputs[part, size:] = of_scores @ fixed
            of_items.addmm_(of_scores.t(), outputs[part, :size])
        return None, None, of_outputs, of_items, None
