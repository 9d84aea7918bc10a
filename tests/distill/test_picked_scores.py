"""Totals and picked scores, and their gradients, against those of all scores by autograd."""

import pytest
import torch

from recbole_llmd.distill import picked_scores
from recbole_llmd.distill.picked_scores import PickedScores

N, ITEMS, SIZE, FIXED = 150, 40, 6, 3
LEFT_OUT = [3, 7, 39]


@pytest.fixture(params=["one chunk", "chunks"])
def chunks(request, monkeypatch):
    if request.param == "chunks":
        monkeypatch.setitem(picked_scores.CHUNK_BYTES, "cpu", 0)
    return request.param


def _factors(fixed, spread=1.0):
    generator = torch.Generator().manual_seed(1)

    def drawn(*shape):
        return torch.randn(*shape, dtype=torch.float64, generator=generator) * spread

    outputs, items = drawn(N, SIZE + (FIXED if fixed else 0)), drawn(ITEMS, SIZE)
    targets = torch.randint(1, ITEMS, (N,), generator=generator)
    picked = torch.randint(1, ITEMS, (N, 5), generator=generator)  # items picked twice and targets, too
    return outputs.requires_grad_(), items.requires_grad_(), drawn(ITEMS, FIXED) if fixed else None, targets, picked


def _mask(columns):
    return None if columns is None else torch.zeros(ITEMS, dtype=torch.bool).index_fill(0, torch.tensor(columns), True)


@pytest.mark.parametrize("fixed", [False, True])
@pytest.mark.parametrize("left_out", [None, LEFT_OUT])
def test_values_and_gradients_are_those_of_all_scores(chunks, fixed, left_out):
    outputs, items, fixed_vectors, targets, picked = _factors(fixed)
    found = PickedScores(outputs, items, fixed_vectors, targets, picked, _mask(left_out))
    scores = outputs[:, :SIZE] @ items.t()
    if fixed:
        scores = scores + outputs[:, SIZE:] @ fixed_vectors.t()
    kept = scores if left_out is None else scores.masked_fill(_mask(left_out), -torch.inf)
    expected = (
        scores.logsumexp(1),
        kept.logsumexp(1),
        scores.gather(1, targets.unsqueeze(1)).squeeze(1),
        scores.gather(1, picked),
        kept.logsumexp(1) - scores.gather(1, targets.unsqueeze(1)).squeeze(1),
        scores[:, 1:].logsumexp(1),
    )
    given = (
        found.log_total,
        found.log_total_kept,
        found.of_targets,
        found.picked,
        found.cross_entropy(),
        found.log_total_of_items(),
    )
    seeds = [torch.randn_like(value) for value in expected]
    for value, right in zip(given, expected):
        torch.testing.assert_close(value, right)
    losses = [sum((v * s).sum() for v, s in zip(values, seeds)) for values in (given, expected)]
    for gradient, right in zip(*(torch.autograd.grad(loss, (outputs, items)) for loss in losses)):
        torch.testing.assert_close(gradient, right)


def test_no_gradient_at_all_of_a_cross_entropy_falls_on_items_left_out():
    outputs, items, _, _, _ = _factors(False)
    targets = torch.full((N,), 5)
    PickedScores(outputs, items, None, targets, None, _mask(LEFT_OUT)).cross_entropy().sum().backward()
    assert not items.grad[LEFT_OUT].any()
    assert items.grad[1].any()


def test_large_scores_neither_overflow_nor_vanish():
    outputs, items, _, targets, _ = _factors(False, spread=40.0)
    assert (outputs @ items.t()).abs().max() > 10_000
    found = PickedScores(outputs, items, None, targets)
    torch.testing.assert_close(found.log_total, (outputs @ items.t()).logsumexp(1))
    found.cross_entropy().sum().backward()
    assert outputs.grad.isfinite().all()


def test_the_gradient_may_be_asked_for_twice():
    outputs, items, _, targets, _ = _factors(False)
    loss = PickedScores(outputs, items, None, targets).cross_entropy().sum()
    first, second = (torch.autograd.grad(loss, items, retain_graph=True)[0] for _ in range(2))
    torch.testing.assert_close(first, second, rtol=0, atol=0)


def test_half_precision_outputs_of_autocast_are_summed_in_the_items_precision():
    outputs, items, _, targets, _ = _factors(False)
    outputs, items = outputs.detach().bfloat16().requires_grad_(), items.detach().float().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = PickedScores(outputs, items, None, targets)
    torch.testing.assert_close(found.log_total, (outputs.float() @ items.t()).logsumexp(1))
    found.cross_entropy().sum().backward()
    assert outputs.grad.dtype == torch.bfloat16
