"""The match of item texts, and the start that it gives a CRM's item embeddings, against loops over items."""

import math

import pytest
import torch

from recbole_llmd.distill.text_start import text_start
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
    found = whitened(text)
    torch.testing.assert_close(found[known] @ found[known].t(), (expected @ expected.t()).float())
    assert not found[[0, 4]].any()


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


@pytest.fixture
def state():
    generator = torch.Generator().manual_seed(3)
    return {
        "item_embedding.weight": 0.02 * torch.randn(ITEMS + 1, 8, generator=generator),  # and one mask item
        "other.weight": torch.ones(2),
    }


def test_embeddings_start_as_the_texts_lie(text, state):
    """Eight coordinates hold all six directions of the texts: the distances are theirs, but for one factor."""
    before = {name: value.clone() for name, value in state.items()}
    start = text_start(state, text, 4.0, seed=1)
    assert set(start) == {"item_embedding.weight"}
    known = [i for i in range(ITEMS) if i not in (0, 4)]
    weight, own = start["item_embedding.weight"], before["item_embedding.weight"]
    ratios = torch.pdist(weight[known]) / torch.pdist(text[known])
    torch.testing.assert_close(ratios, ratios.mean().expand_as(ratios), rtol=1e-4, atol=0)
    assert weight[known].std() == pytest.approx(4 * own[known].std().item())
    assert torch.equal(weight[[0, 4, ITEMS]], own[[0, 4, ITEMS]])
    assert all(torch.equal(state[name], before[name]) for name in state)


def test_a_smaller_embedding_keeps_the_widest_directions(text, state):
    """What is kept of the texts' variance is what the two largest eigenvalues of their covariance hold."""
    state["item_embedding.weight"] = state["item_embedding.weight"][:, :2]
    known = [i for i in range(ITEMS) if i not in (0, 4)]
    weight = text_start(state, text, 1.0, seed=1)["item_embedding.weight"][known]
    eigenvalues = torch.linalg.eigvalsh(torch.cov(text[known].t()))
    found = torch.linalg.eigvalsh(torch.cov(weight.t()))
    torch.testing.assert_close(found / found.sum(), eigenvalues[-2:] / eigenvalues[-2:].sum(), rtol=1e-4, atol=0)
    wide = torch.linalg.lstsq(text[known] - text[known].mean(0), weight).solution
    torch.testing.assert_close((text[known] - text[known].mean(0)) @ wide, weight, rtol=1e-3, atol=1e-4)


def test_a_crm_without_item_embedding_starts_on_its_own(text):
    assert text_start({"items.weight": torch.ones(ITEMS, 3)}, text, 4.0, seed=1) == {}
