r"""The losses of mutual distillation, as pure functions of logits and log-probabilities.

For a sample i with target :math:`y_i`, teacher T and student S over the same items, temperature :math:`\tau` and
:math:`p^\tau = \mathrm{softmax}(z/\tau)`:

.. math::
    L_S = \frac{1}{n}\sum_i \mathrm{CE}(z_{S,i}, y_i)
        + \alpha\, w_i\, \tau^2\, \mathrm{KL}(p_{T,i}^\tau \| p_{S,i}^\tau)

The factor :math:`\tau^2` keeps the gradient's size independent of the temperature (Hinton et al., arXiv
1503.02531). Teacher and weights carry no gradient.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from recbole_llmd.distill.scores import log1mexp

WEIGHTINGS = ("adaptive", "confidence", "rank", "target_rank", "uniform")
SURE = math.log(0.99)  # a student's share in the teacher's top items from which the share of others is summed
RANK_TOP = 10  # the lists that the 'rank' weighting compares


def target_ranks(logits: Tensor, targets: Tensor) -> Tensor:
    """How many items stand above each sample's target, 0 for the best; items of equal score stand above it, so that
    scores that tell no items apart rank the target last.

    Args:
        logits: scores of all items, ``[n, n_items]``.
        targets: ``[n]``.

    Returns:
        torch.Tensor: whole numbers, ``[n]``.

    >>> target_ranks(torch.tensor([[1.0, 3.0, 2.0], [0.0, 0.0, 0.0]]), torch.tensor([2, 0])).tolist()
    [1, 2]
    """
    return (logits >= logits.gather(1, targets.unsqueeze(1))).sum(-1) - 1


def target_rank_weights(student_rank: Tensor, teacher_rank: Tensor) -> Tensor:
    r"""The sample weights of LLMD4Rec (arXiv 2505.18120, as a reader's public notes report them), in [0, 2].

    With the target's rank :math:`r_S` on the student's and :math:`r_T` on the teacher's side, counted from 0:
    :math:`1 + (r_S - r_T)/\max(r_T, 1)` where :math:`r_S > r_T`, else :math:`1 - (r_T - r_S)/\max(r_S, 1)`, cut to
    [0, 2]. A teacher that ranks the target as the student does counts once, one that ranks it half as far down or less
    twice, one that ranks it twice as far down or more not at all.

    Args:
        student_rank: whole numbers, ``[n]``.
        teacher_rank: whole numbers, ``[n]``.

    Returns:
        torch.Tensor: ``[n]``.

    >>> target_rank_weights(torch.tensor([8, 5, 4, 4]), torch.tensor([2, 4, 5, 8])).tolist()
    [2.0, 1.25, 0.75, 0.0]
    """
    student, teacher = student_rank.float(), teacher_rank.float()
    better = (student - teacher) / teacher.clamp(min=1)
    worse = (student - teacher) / student.clamp(min=1)
    return (1 + torch.where(student > teacher, better, worse)).clamp(0, 2)


def kl_divergence(teacher_logp: Tensor, student_logits: Tensor, temperature: float) -> Tensor:
    r"""Per-sample :math:`\tau^2\,\mathrm{KL}(p_T^\tau \| p_S^\tau)` over all items.

    Args:
        teacher_logp: the teacher's log-probabilities at this temperature, ``[n, n_items]``; no gradient flows back.
        student_logits: the student's logits, ``[n, n_items]``.
        temperature: :math:`\tau`.

    Returns:
        torch.Tensor: ``[n]``.

    >>> teacher = torch.tensor([[0.75, 0.25], [0.5, 0.5]]).log()
    >>> student = torch.zeros(2, 2)  # logits of (1/2, 1/2)
    >>> [round(value, 4) for value in kl_divergence(teacher, student, 1.0).tolist()]
    [0.1308, 0.0]
    """
    teacher_logp = teacher_logp.detach()
    student_logp = torch.log_softmax(student_logits / temperature, dim=-1)
    return temperature**2 * (teacher_logp.exp() * (teacher_logp - student_logp)).sum(-1)


def kl_divergence_topk(
    top_items: Tensor,
    top_logp: Tensor,
    rest_logp: Tensor,
    student_logits: Tensor,
    temperature: float,
    log_total: Tensor | None = None,
) -> Tensor:
    r"""Per-sample :math:`\tau^2\,\mathrm{KL}` between the distributions over the teacher's top k items and "any other".

    Merging the other items into one outcome gives a lower bound of the full divergence, which it equals when k is the
    whole catalogue.

    Args:
        top_items: the teacher's top items, ``[n, k]``.
        top_logp: their log-probabilities at this temperature, ``[n, k]``.
        rest_logp: the log-mass of all other items, ``[n]``; ``-inf`` if there is none.
        student_logits: the student's logits, ``[n, n_items]``.
        temperature: :math:`\tau`.
        log_total: the student's ``logsumexp(student_logits / temperature)`` if it is known already, ``[n]``.

    Returns:
        torch.Tensor: ``[n]``.

    >>> student = torch.zeros(1, 4)  # (1/4, 3/4) after merging
    >>> top_logp, rest_logp = torch.tensor([[0.5]]).log(), torch.tensor([0.5]).log()
    >>> round(kl_divergence_topk(torch.tensor([[0]]), top_logp, rest_logp, student, 1.0).item(), 4)
    0.1438
    """
    if log_total is None:
        log_total = torch.logsumexp(student_logits / temperature, dim=-1)
    student_top = student_logits.gather(1, top_items) / temperature - log_total.unsqueeze(1)
    if top_items.shape[1] == student_logits.shape[1]:  # nothing is left over
        return temperature**2 * (top_logp.exp() * (top_logp - student_top)).sum(-1)
    inside_total = torch.logsumexp(student_top, dim=-1)
    student_rest, sure = log1mexp(inside_total), inside_total.detach() > SURE
    if sure.any():  # the difference of nearly equal numbers: the others are summed
        others = (student_logits[sure] / temperature).scatter(1, top_items[sure], -torch.inf)
        student_rest = student_rest.index_put((sure,), torch.logsumexp(others, dim=-1) - log_total[sure])
    return temperature**2 * merged_divergence(top_logp, rest_logp, student_top, student_rest)


def merged_divergence(top_logp: Tensor, rest_logp: Tensor, student_top: Tensor, student_rest: Tensor) -> Tensor:
    """Per-sample divergence between two distributions over k items and "any other", ``[n]``.

    Args:
        top_logp: the teacher's log-probabilities, ``[n, k]``; no gradient flows back.
        rest_logp: the log-mass of the others, ``[n]``; ``-inf`` if there is none.
        student_top: the student's, ``[n, k]``.
        student_rest: the student's, ``[n]``.

    >>> half, quarter = torch.tensor([[0.5]]).log(), torch.tensor([[0.25]]).log()
    >>> round(merged_divergence(half, half[:, 0], quarter, torch.tensor([0.75]).log()).item(), 4)
    0.1438
    """
    top_logp, rest_logp = top_logp.detach(), rest_logp.detach()
    inside = (top_logp.exp() * (top_logp - student_top)).sum(-1)
    rest = rest_logp.exp()
    outside = torch.where(rest > 0, rest * (rest_logp.clamp(min=-1e4) - student_rest), torch.zeros_like(rest))
    return inside + outside


def sample_weights(
    weighting: str,
    student_logits: Tensor,
    targets: Tensor,
    teacher_target_p: Tensor,
    teacher_entropy: Tensor | None = None,
    teacher_top: Tensor | None = None,
    teacher_rank: Tensor | None = None,
    log_total: Tensor | None = None,
) -> Tensor:
    r"""The per-sample weights of the distillation term, without gradient and before any :func:`rescale`.

    - ``adaptive``: :math:`p_T(y) / (p_T(y) + p_S(y))`, large where the teacher knows the sample better.
    - ``confidence``: :math:`1 - H(p_T)/\log n`, large where the teacher's distribution is sharp.
    - ``rank``: the share of the teacher's top 10 items that are in the student's, the rank consistency of DLLM2Rec
      (arXiv 2405.00338) taken per sample; one is added to both counts, so that no sample is left out.
    - ``target_rank``: by the target's rank on both sides, see :func:`target_rank_weights`.
    - ``uniform``: 1.

    Args:
        weighting: one of :data:`WEIGHTINGS`.
        student_logits: ``[n, n_items]``.
        targets: ``[n]``.
        teacher_target_p: the teacher's probability of the target at temperature 1, ``[n]``.
        teacher_entropy: the entropy of the teacher's distribution at temperature 1, ``[n]``; for ``confidence``.
        teacher_top: the teacher's top 10 items, ``[n, 10]``; for ``rank``.
        teacher_rank: the teacher's :func:`target_ranks`, ``[n]``; for ``target_rank``.
        log_total: ``logsumexp(student_logits)`` if it is known already, ``[n]``.

    Returns:
        torch.Tensor: ``[n]``.

    >>> student, targets = torch.zeros(2, 4), torch.tensor([0, 1])  # the student gives each item 1/4
    >>> sample_weights("adaptive", student, targets, torch.tensor([0.75, 0.25])).tolist()
    [0.75, 0.5]
    """
    student_logits = student_logits.detach()
    if weighting == "uniform":
        return torch.ones_like(teacher_target_p)
    if weighting == "adaptive":
        log_total = torch.logsumexp(student_logits, dim=-1) if log_total is None else log_total.detach()
        student_p = (student_logits.gather(1, targets.unsqueeze(1)).squeeze(1) - log_total).exp()
        return teacher_target_p / (teacher_target_p + student_p).clamp(min=1e-12)
    if weighting == "confidence":
        if teacher_entropy is None:
            raise ValueError("weighting = 'confidence': needs the teacher's entropy; give teacher_entropy.")
        return (1 - teacher_entropy / math.log(student_logits.shape[1])).clamp(min=0)
    if weighting == "target_rank":
        if teacher_rank is None:
            raise ValueError("weighting = 'target_rank': needs the teacher's ranks of the targets; give teacher_rank.")
        return target_rank_weights(target_ranks(student_logits, targets), teacher_rank)
    if teacher_top is None:
        raise ValueError("weighting = 'rank': needs the teacher's top items; give teacher_top.")
    student_top = student_logits.topk(teacher_top.shape[1], dim=-1).indices
    common = (teacher_top.unsqueeze(2) == student_top.unsqueeze(1)).sum((1, 2))
    return (common + 1) / (teacher_top.shape[1] + 1)


def rescale(weights: Tensor) -> Tensor:
    """The sample weights of a batch ``[n]``, brought to mean 1.

    >>> rescale(torch.tensor([1.0, 3.0])).tolist()
    [0.5, 1.5]
    """
    return weights / weights.mean().clamp(min=1e-12)
