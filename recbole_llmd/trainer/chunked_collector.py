"""RecBole's collection of rankings, in less memory."""

from __future__ import annotations

from recbole.data.interaction import Interaction
from recbole.evaluator import Collector
from torch import Tensor

USERS_AT_ONCE = 256  # whose rankings are collected in one pass


class ChunkedCollector(Collector):
    """RecBole's collector, over chunks of a batch of users.

    It makes tensors of the scores' shape ``[users, n_items]`` that take four times the scores' memory.

    >>> import torch
    >>> config, _, _ = build(small, model="SASRec")
    >>> collector = ChunkedCollector(config)
    >>> scores = torch.eye(1000)  # every user prefers the item of the same number
    >>> users = Interaction({"user_id": torch.arange(1000)})
    >>> collector.eval_batch_collect(scores, users, torch.arange(1000), torch.arange(1000))
    >>> collected = collector.get_data_struct().get("rec.topk")  # per user: hits of the ten places, relevant items
    >>> collected.shape, bool(collected[:, 0].all())
    (torch.Size([1000, 11]), True)
    """

    def eval_batch_collect(
        self, scores_tensor: Tensor, interaction: Interaction, positive_u: Tensor, positive_i: Tensor
    ) -> None:
        """As RecBole's: collects what the metrics need of a batch of users."""
        if scores_tensor.dim() != 2 or len(interaction) != len(scores_tensor):  # sampled evaluation
            super().eval_batch_collect(scores_tensor, interaction, positive_u, positive_i)
            return
        for first in range(0, len(scores_tensor), USERS_AT_ONCE):
            chunk = slice(first, first + USERS_AT_ONCE)
            inside = (positive_u >= first) & (positive_u < first + USERS_AT_ONCE)
            super().eval_batch_collect(
                scores_tensor[chunk], interaction[chunk], positive_u[inside] - first, positive_i[inside]
            )
