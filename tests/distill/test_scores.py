import pytest
import torch

from recbole_llmd.distill.scores import Scores, log1mexp


def _logits(n=5, n_items=9):
    return torch.randn(n, n_items, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) * 3


def test_totals_are_those_of_all_and_of_all_items_but_the_padding():
    logits = _logits()
    scores = Scores(logits)
    torch.testing.assert_close(scores.log_total, logits.exp().sum(1).log())
    torch.testing.assert_close(scores.log_total_of_items, logits[:, 1:].exp().sum(1).log())


@pytest.mark.parametrize("left_out", [None, [2, 5]])
def test_cross_entropy_and_its_gradient_are_pytorchs(left_out):
    logits, targets = _logits().requires_grad_(), torch.tensor([1, 3, 8, 4, 6])
    mask = None if left_out is None else torch.zeros(9, dtype=torch.bool).index_fill(0, torch.tensor(left_out), True)
    Scores(logits).cross_entropy(targets, mask).sum().backward()
    other = logits.detach().clone().requires_grad_()
    masked = other if mask is None else other.masked_fill(mask, -torch.inf)
    expected = torch.nn.functional.cross_entropy(masked, targets, reduction="none")
    torch.testing.assert_close(Scores(logits).cross_entropy(targets, mask), expected)
    expected.sum().backward()
    torch.testing.assert_close(logits.grad, other.grad)
    if mask is not None:
        assert not logits.grad[:, mask].any()  # exactly none: optimizers that scale gradients would enlarge a rest


def test_the_gradient_of_the_total_without_padding_is_the_softmax_of_the_items():
    logits = _logits().requires_grad_()
    Scores(logits).log_total_of_items.sum().backward()
    torch.testing.assert_close(logits.grad[:, 1:], torch.softmax(logits.detach()[:, 1:], dim=1))
    torch.testing.assert_close(logits.grad[:, 0], torch.zeros(5, dtype=torch.float64))


def test_log1mexp_stays_finite_where_everything_is_taken_away():
    values = torch.tensor([0.0, -1e-12, -1.0], requires_grad=True)
    result = log1mexp(values)
    result.sum().backward()
    assert torch.isfinite(result).all() and torch.isfinite(values.grad).all()
    assert result[2].item() == pytest.approx(-0.4586751)
