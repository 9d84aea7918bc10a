"""How each side of a run is trained and asked for its scores: over windows, or one RecBole row at a time."""

import contextlib

import numpy as np
import torch
from recbole.data.interaction import Interaction
from recbole.model.abstract_recommender import AbstractRecommender

from recbole_llmd.data.windows import positions_of

PROBE_ROWS = 8
TOLERANCE = {"rtol": 1e-3, "atol": 1e-4}


class LLMScorer:
    """LLMRec over windows."""

    windows = True

    def __init__(self, llm):
        self.model = llm

    def logits(self, interaction):
        positions, _, _ = positions_of(interaction)
        return self.model.position_logits(interaction[self.model.ITEM_SEQ], positions)

    def loss_and_logits(self, interaction, need_logits=True):
        logits = self.logits(interaction)
        return self.model.loss_fct(logits, positions_of(interaction)[1]), logits


class CRMScorer:
    """Any RecBole sequential model that scores all items.

    Which path it takes is found out by asking the model itself, on a few real rows, in evaluation mode:

    - over windows, if its outputs before ``gather_indexes`` are those of every prefix (the model is causal) and its
      loss is plain cross-entropy over its scores;
    - by row with cross-entropy over its scores, if only the latter holds;
    - by row with its own ``calculate_loss`` (BPR, BERT4Rec's masked loss, a regulariser, ...) and a second forward pass
      for the distillation term otherwise.

    Args:
        crm: the model.
        dataset: the training dataset it was built for.
        loader: RecBole's training loader, which gives rows as the model's own loss expects them.

    Raises:
        ValueError: if the model cannot score all items for a history, with its name and the reason.
    """

    def __init__(self, crm, dataset, loader):
        self.model, self.name = crm, type(crm).__name__
        self.n_items, self.device = dataset.item_num, crm.device
        self.by_forward = type(crm).full_sort_predict is AbstractRecommender.full_sort_predict
        if self.by_forward and not hasattr(crm, "item_embedding"):
            raise ValueError(f"crm_model = {self.name!r}: {self.name} scores one (history, item) pair at a time; it has no "
                             "full_sort_predict, so it gives no distribution over the items to distil. Use a model that "
                             "has one, such as SASRec or GRU4Rec.")
        self.probabilities = False
        was_training = crm.training
        crm.eval()
        with torch.no_grad():
            self._probe(dataset, loader)
        crm.train(was_training)

    def _probe(self, dataset, loader):
        rows = self._longest_rows(dataset)
        batch = loader.collate_fn(rows).to(self.device)
        scores = self._scores(batch)
        if scores.shape != (len(batch), self.n_items):
            raise ValueError(f"crm_model = {self.name!r}: {self.name} returns scores of shape {tuple(scores.shape)} for "
                             f"{len(batch)} histories and {self.n_items} items; one score per item is needed.")
        totals = scores.sum(1)
        self.probabilities = bool((scores >= 0).all() and torch.allclose(totals, torch.ones_like(totals), atol=1e-2))
        targets = batch[self.model.POS_ITEM_ID]
        own = self.model.calculate_loss(batch)
        own = sum(own) if isinstance(own, tuple) else own
        plain = torch.nn.functional.cross_entropy(self.logits_of_rows(batch), targets)
        self.plain_cross_entropy = torch.allclose(own, plain, **TOLERANCE)
        self.windows = self.plain_cross_entropy and self._is_causal(batch)

    def _longest_rows(self, dataset):
        length = dataset.inter_feat[dataset.item_list_length_field].numpy()
        return np.argsort(-length, kind="stable")[:PROBE_ROWS]

    def _is_causal(self, batch):
        """Whether every position of a window gives the scores of its prefix; a model that fails on windows does not."""
        seq, length = batch[self.model.ITEM_SEQ], batch[self.model.ITEM_SEQ_LEN]
        longest = int(length.max())
        positions = torch.arange(longest, device=seq.device) < length.unsqueeze(1)
        window = {**batch.interaction, self.model.ITEM_SEQ: seq[:, :longest]}
        row, column = positions.nonzero(as_tuple=True)
        prefixes = torch.where(torch.arange(seq.shape[1], device=seq.device) <= column.unsqueeze(1), seq[row], 0)
        one_by_one = batch[row]
        one_by_one.update(Interaction({self.model.ITEM_SEQ: prefixes, self.model.ITEM_SEQ_LEN: column + 1}))
        try:
            together = self._window_scores(Interaction(window), positions)
        except Exception:  # noqa: BLE001  (any failure inside a model not made for this means: not by windows)
            return False
        apart = self._scores(one_by_one)
        return together.shape == apart.shape and torch.allclose(together, apart, **TOLERANCE)

    def _scores(self, interaction):
        if self.by_forward:
            output = self.model.forward(interaction[self.model.ITEM_SEQ], interaction[self.model.ITEM_SEQ_LEN])
            return output @ self.model.item_embedding.weight[: self.n_items].t()
        return self.model.full_sort_predict(interaction)

    def _window_scores(self, interaction, positions):
        with _outputs_at(self.model, positions):
            return self._scores(interaction)

    def _as_logits(self, scores):
        return scores.clamp(min=1e-12).log() if self.probabilities else scores

    def logits_of_rows(self, interaction):
        """Scores of all items for each row of a RecBole batch, ``[batch, n_items]``."""
        return self._as_logits(self._scores(interaction))

    def logits(self, interaction):
        """Scores of all items for each sample of a batch of this side's path, ``[n_samples, n_items]``."""
        if not self.windows:
            return self.logits_of_rows(interaction)
        return self._as_logits(self._window_scores(interaction, positions_of(interaction)[0]))

    def loss_and_logits(self, interaction, need_logits=True):
        """The side's own training loss, and its logits (None where they would cost a second pass nobody needs)."""
        if self.windows:
            logits = self.logits(interaction)
            return torch.nn.functional.cross_entropy(logits, positions_of(interaction)[1]), logits
        if self.plain_cross_entropy:
            logits = self.logits_of_rows(interaction)
            return torch.nn.functional.cross_entropy(logits, interaction[self.model.POS_ITEM_ID]), logits
        loss = self.model.calculate_loss(interaction)
        loss = sum(loss) if isinstance(loss, tuple) else loss
        return loss, self.logits_of_rows(interaction) if need_logits else None


@contextlib.contextmanager
def _outputs_at(model, positions):
    """Inside, the model's ``gather_indexes`` returns the outputs at all ``positions`` instead of the last one's."""
    model.gather_indexes = lambda output, index: output[positions]
    try:
        yield
    finally:
        del model.gather_indexes
