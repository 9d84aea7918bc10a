"""The match of item texts against loops over items."""

import math

import pytest
import torch

from recbole_llmd.llm.text_match import DECAY, FLOOR, OLDEST, SCALE, TextMatch, whitened

ITEMS, SIZE = 30, 6


@pytest.fixture
def text():
    """Correlated coordinates; the padding item and item 4 have no text."""
    generator = torch.Generator().manual_seed(0)
    vectors = torch.randn(ITEMS, SIZE, generator=generator) @ torch.randn(SIZE, SIZE, generator=generator)
    vectors[[0, 4]] = 0
    return vectors


def test_whitened_vectors(text):
    """Against the eigenvectors of the covariance matrix: every direction divided by its spread plus the floor."""
    known = [i for i in range(ITEMS) if i not in (0, 4)]
    rows = text[known].double()
    covariance = torch.cov(rows.t()) * (len(known) - 1)
    values, directions = torch.linalg.eigh(covariance)
    spread = values.sqrt()
    scaled = (rows - rows.mean(0)) @ (directions / (spread + FLOOR * spread.max())) @ directions.t()
    expected = scaled / scaled.norm(dim=1, keepdim=True)
    vectors = whitened(text)
    torch.testing.assert_close(vectors[known] @ vectors[known].t(), (expected @ expected.t()).float())
    assert not vectors[[0, 4]].any()


def test_match_is_the_weighted_likeness_of_the_texts(text):
    """z_j = s sum_k a_{t-k} (x_k + B A x_k) . x_j, at every position of right-padded histories."""
    match = TextMatch(text, rank=2, length=15)
    with torch.no_grad():
        torch.nn.init.normal_(match.up.weight, generator=torch.Generator().manual_seed(1))
        match.recency += 0.1 * torch.randn(15, generator=torch.Generator().manual_seed(2))
    histories = [[3, 9, 4, 3, 12], list(range(5, 20)), [7]]
    padded = torch.tensor([history + [0] * (15 - len(history)) for history in histories])
    x, scale = match.vectors, math.exp(match.scale.item())
    follow = torch.eye(SIZE) + match.up.weight.detach() @ match.down.weight.detach()
    with torch.no_grad():
        scores = match(padded) @ x.t()
    for row, history in enumerate(histories):
        for t in range(len(history)):
            expected = sum(math.exp(match.recency[t - k].item()) * (x @ (follow @ x[history[k]])) for k in range(t + 1))
            torch.testing.assert_close(scores[row, t], scale * expected, rtol=1e-4, atol=1e-4)


def test_match_starts_as_plain_likeness(text):
    """The last item itself scores highest, and older items count for less, down to the oldest."""
    match = TextMatch(text, rank=2, length=15)
    with torch.no_grad():
        alone = match(torch.tensor([[9]]))[0, 0] @ match.vectors.t()
        padding = match(torch.tensor([[9] + [0] * 14]))[0] @ match.vectors[9]
    assert alone.argmax() == 9 and alone[9] == pytest.approx(SCALE)
    expected = [SCALE * math.exp(-DECAY * min(back, OLDEST)) for back in range(15)]
    assert padding.tolist() == pytest.approx(expected)
