"""Initial item embeddings of a CRM, made of the text vectors of the items."""

from __future__ import annotations

import torch
from torch import Tensor

from recbole_llmd.random_state import isolated_random_state

EMBEDDING = "item_embedding.weight"  # where RecBole's sequential models keep their items


def initial_embeddings_from_text(
    initial_state: dict[str, Tensor], text: Tensor, spread: float, seed: int
) -> dict[str, Tensor]:
    """Item embeddings that lie to each other as the texts do, for the items that have a text.

    The vectors are projected on their principal directions, as many as the embedding has coordinates, turned at random
    (no coordinate is then wider than another) and brought to ``spread`` times the spread of what they replace.

    Args:
        initial_state: the initial ``state_dict`` of the CRM.
        text: text vectors of the items, ``[n_items, size]``; zero rows have no text.
        spread: see above.
        seed: of the random turn.

    Returns:
        dict: the entry of ``initial_state`` to replace; empty for a CRM that has no ``item_embedding``.

    >>> text = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.1]])
    >>> state = {"item_embedding.weight": 0.02 * torch.arange(12.0).reshape(4, 3)}
    >>> weight = initial_embeddings_from_text(state, text, spread=2.0, seed=1)["item_embedding.weight"]
    >>> distances = torch.cdist(weight[1:], weight[1:])
    >>> bool(distances[1, 2] < 0.1 * distances[0, 1])  # the last two texts are alike
    True
    """
    if EMBEDDING not in initial_state:
        return {}
    weight, known = initial_state[EMBEDDING].clone(), (text != 0).any(1).nonzero().squeeze(1)
    size, own_spread = weight.shape[1], weight[known].std()
    centred = text[known] - text[known].mean(0)
    _, _, directions = torch.linalg.svd(centred, full_matrices=False)
    projected = centred @ directions[:size].t()
    with isolated_random_state(seed):
        turn, _ = torch.linalg.qr(torch.randn(size, projected.shape[1]))
    vectors = projected @ turn.t().to(text.device)
    weight[known] = vectors * (spread * own_spread / vectors.std())
    return {EMBEDDING: weight}
