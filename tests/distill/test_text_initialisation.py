"""The item embeddings that the texts give a CRM, against loops over items."""

import pytest
import torch

from recbole_llmd.distill.text_initialisation import initial_embeddings_from_text

ITEMS, SIZE = 30, 6


@pytest.fixture
def text():
    """Correlated coordinates; the padding item and item 4 have no text."""
    generator = torch.Generator().manual_seed(0)
    vectors = torch.randn(ITEMS, SIZE, generator=generator) @ torch.randn(SIZE, SIZE, generator=generator)
    vectors[[0, 4]] = 0
    return vectors


@pytest.fixture
def state():
    generator = torch.Generator().manual_seed(3)
    return {
        "item_embedding.weight": 0.02 * torch.randn(ITEMS + 1, 8, generator=generator),  # and one mask item
        "other.weight": torch.ones(2),
    }


def test_embeddings_lie_as_the_texts_do(text, state):
    """Eight coordinates hold all six directions of the texts: the distances are theirs, but for one factor."""
    before = {name: value.clone() for name, value in state.items()}
    replaced = initial_embeddings_from_text(state, text, 4.0, seed=1)
    assert set(replaced) == {"item_embedding.weight"}
    known = [i for i in range(ITEMS) if i not in (0, 4)]
    weight, own = replaced["item_embedding.weight"], before["item_embedding.weight"]
    ratios = torch.pdist(weight[known]) / torch.pdist(text[known])
    torch.testing.assert_close(ratios, ratios.mean().expand_as(ratios), rtol=1e-4, atol=0)
    assert weight[known].std() == pytest.approx(4 * own[known].std().item())
    assert torch.equal(weight[[0, 4, ITEMS]], own[[0, 4, ITEMS]])
    assert all(torch.equal(state[name], before[name]) for name in state)


def test_a_smaller_embedding_keeps_the_widest_directions(text, state):
    """What is kept of the texts' variance is what the two largest eigenvalues of their covariance hold."""
    state["item_embedding.weight"] = state["item_embedding.weight"][:, :2]
    known = [i for i in range(ITEMS) if i not in (0, 4)]
    weight = initial_embeddings_from_text(state, text, 1.0, seed=1)["item_embedding.weight"][known]
    eigenvalues = torch.linalg.eigvalsh(torch.cov(text[known].t()))
    kept = torch.linalg.eigvalsh(torch.cov(weight.t()))
    torch.testing.assert_close(kept / kept.sum(), eigenvalues[-2:] / eigenvalues[-2:].sum(), rtol=1e-4, atol=0)
    wide = torch.linalg.lstsq(text[known] - text[known].mean(0), weight).solution
    torch.testing.assert_close((text[known] - text[known].mean(0)) @ wide, weight, rtol=1e-3, atol=1e-4)


def test_a_crm_without_item_embedding_starts_on_its_own(text):
    assert initial_embeddings_from_text({"items.weight": torch.ones(ITEMS, 3)}, text, 4.0, seed=1) == {}
