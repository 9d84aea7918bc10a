"""The text vectors of the items as a start for the item embeddings of a taught CRM."""

import torch

from recbole_llmd.random_state import isolated_random_state

EMBEDDING = "item_embedding.weight"  # where RecBole's sequential models keep their items


def text_start(state, text, spread, seed):
    """Item embeddings that lie to each other as the texts do, for the items that have a text.

    The vectors are projected on their principal directions, as many as the embedding has coordinates, turned at random
    (no coordinate is then wider than another) and brought to ``spread`` times the spread of what they replace.

    Args:
        state (dict): the initial ``state_dict`` of the CRM.
        text: text vectors of the items, ``[n_items, size]``; zero rows have no text.
        spread (float): see above.
        seed (int): of the random turn.

    Returns:
        dict: the entry of ``state`` to replace; empty for a CRM that has no ``item_embedding``.
    """
    if EMBEDDING not in state:
        return {}
    weight, known = state[EMBEDDING].clone(), (text != 0).any(1).nonzero().squeeze(1)
    size, own_spread = weight.shape[1], weight[known].std()
    centred = text[known] - text[known].mean(0)
    _, _, directions = torch.linalg.svd(centred, full_matrices=False)
    projected = centred @ directions[:size].t()
    with isolated_random_state(seed):
        turn, _ = torch.linalg.qr(torch.randn(size, projected.shape[1]))
    vectors = projected @ turn.t().to(text.device)
    weight[known] = vectors * (spread * own_spread / vectors.std())
    return {EMBEDDING: weight}
