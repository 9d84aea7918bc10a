"""How each side of a run is trained and asked for its scores: over windows, or one RecBole row at a time."""

import contextlib
import copy

import numpy as np
import torch
from recbole.data.interaction import Interaction
from recbole.model.abstract_recommender import AbstractRecommender
from torch import nn
from torch.nn.functional import cross_entropy

from recbole_llmd.data.windows import positions_of
from recbole_llmd.errors import SettingsError
from recbole_llmd.random_state import isolated_random_state

PROBE_ROWS = 8
PROBE_SEED = 2020
PROBE_SPREAD = 0.3  # of the random weights
TOLERANCE = 1e-3  # relative to the spread of the scores
LOSS_TOLERANCE = 1e-5


class LLMScorer:
    """LLMRec over windows."""

    windows = True

    def __init__(self, llm):
        self.model = llm

    def factors(self, interaction):
        """As :meth:`CRMScorer.factors`."""
        vectors = self.model.item_vectors()
        positions = positions_of(interaction)[0]
        outputs = self.model.position_outputs(interaction[self.model.ITEM_SEQ], positions, vectors)
        return outputs, vectors, self.model.fixed_vectors


class CRMScorer:
    """Any RecBole sequential model that scores all items.

    Which path it takes is found out by asking copies of the model, on a few real rows, in evaluation mode:

    - over windows, if its outputs before ``gather_indexes`` are those of every prefix (the model is causal) and its
      loss is plain cross-entropy over its scores;
    - otherwise by row with its own ``calculate_loss`` (BPR, BERT4Rec's masked loss, regularisers, ...). The
      distillation term then takes the logits that the loss was computed from, or those of a second forward pass.

    Args:
        crm: the model.
        dataset: the training dataset it was built for.
        loader: RecBole's training loader, which gives rows as the model's own loss expects them.

    Raises:
        SettingsError: if the model cannot score all items for a history, with its name and the reason.
    """

    def __init__(self, crm, dataset, loader):
        self.model, self.name = crm, type(crm).__name__
        self.n_items, self.device = dataset.item_num, crm.device
        self.by_forward = type(crm).full_sort_predict is AbstractRecommender.full_sort_predict
        if self.by_forward and not hasattr(crm, "item_embedding"):
            raise SettingsError(
                f"crm_model = {self.name!r}: {self.name} scores one (history, item) pair at a time; it has no "
                "full_sort_predict, so it gives no distribution over the items to distil. Use a model that "
                "has one, such as SASRec or GRU4Rec."
            )
        with isolated_random_state(PROBE_SEED), torch.no_grad():
            batch = loader.collate_fn(self._longest_rows(dataset)).to(self.device)
            # Near-zero initial weights make different losses and scores look alike, large ones hide contrastive terms.
            probes = copy.deepcopy(crm).eval(), _with_large_random_weights(crm)
            self.windows = all([self._is_plain_and_causal(probe, batch) for probe in probes])
            self.by_product = all([self._is_product(probe, batch) for probe in probes])

    def _is_plain_and_causal(self, crm, batch):
        self.probabilities = False
        scores = self._scores(crm, batch)
        if scores.shape != (len(batch), self.n_items):
            raise SettingsError(
                f"crm_model = {self.name!r}: {self.name} returns scores of shape {tuple(scores.shape)} for "
                f"{len(batch)} histories and {self.n_items} items; one score per item is needed."
            )
        totals = scores.sum(1)
        self.probabilities = bool((scores >= 0).all() and torch.allclose(totals, torch.ones_like(totals), atol=1e-2))
        own = _total(crm.calculate_loss(batch))
        plain = cross_entropy(self._as_logits(scores), batch[crm.POS_ITEM_ID])
        return torch.allclose(own, plain, rtol=LOSS_TOLERANCE) and self._is_causal(crm, batch)

    def _longest_rows(self, dataset):
        length = dataset.inter_feat[dataset.item_list_length_field].numpy()
        return np.argsort(-length, kind="stable")[:PROBE_ROWS]

    def _is_causal(self, crm, batch):
        """Whether every position of a window gives the scores of its prefix; a model that fails on windows does not."""
        seq, length = batch[crm.ITEM_SEQ], batch[crm.ITEM_SEQ_LEN]
        longest = int(length.max())
        positions = torch.arange(longest, device=seq.device) < length.unsqueeze(1)
        window = {**batch.interaction, crm.ITEM_SEQ: seq[:, :longest]}
        row, column = positions.nonzero(as_tuple=True)
        prefixes = torch.where(torch.arange(seq.shape[1], device=seq.device) <= column.unsqueeze(1), seq[row], 0)
        one_by_one = batch[row]
        one_by_one.update(Interaction({crm.ITEM_SEQ: prefixes, crm.ITEM_SEQ_LEN: column + 1}))
        try:
            together = self._window_scores(crm, Interaction(window), positions)
        except Exception:  # noqa: BLE001  (any failure inside a model not made for this means: not by windows)
            return False
        apart = self._scores(crm, one_by_one)
        spread = apart.std().item()
        return together.shape == apart.shape and torch.allclose(together, apart, rtol=0, atol=TOLERANCE * spread)

    def _scores(self, crm, interaction):
        if self.by_forward:
            return self._outputs(crm, interaction) @ self._item_vectors(crm).t()
        return crm.full_sort_predict(interaction)

    def _outputs(self, crm, interaction):
        return crm.forward(interaction[crm.ITEM_SEQ], interaction[crm.ITEM_SEQ_LEN])

    def _item_vectors(self, crm):
        weight = crm.item_embedding.weight
        return weight if len(weight) == self.n_items else weight[: self.n_items]

    def _is_product(self, crm, batch):
        """Whether the model's scores are the products of ``forward``'s outputs and its item embeddings."""
        scores = self._scores(crm, batch)
        try:
            products = self._outputs(crm, batch) @ self._item_vectors(crm).t()
        except Exception:  # noqa: BLE001  (any failure inside a model not made for this means: it scores otherwise)
            return False
        return torch.allclose(products, scores, rtol=0, atol=LOSS_TOLERANCE * scores.std().item())

    def _window_scores(self, crm, interaction, positions):
        with _outputs_at(crm, positions):
            return self._scores(crm, interaction)

    def _as_logits(self, scores):
        return scores.clamp(min=1e-12).log() if self.probabilities else scores

    def logits_of_rows(self, interaction):
        """Scores of all items for each row of a RecBole batch, ``[batch, n_items]``."""
        return self._as_logits(self._scores(self.model, interaction))

    def factors(self, interaction):
        """The scores of all items for each sample of a batch of this side's path, as factors.

        Returns:
            tuple: what :func:`~recbole_llmd.distill.chunked_scores.product` makes the logits of: the samples' outputs
            ``[n_samples, size]`` and the item vectors ``[n_items, size]``; or the logits ``[n_samples, n_items]`` and
            None for a model that scores otherwise.
        """
        if not self.windows:
            return self.logits_of_rows(interaction), None
        positions = positions_of(interaction)[0]
        if not self.by_product:
            return self._as_logits(self._window_scores(self.model, interaction, positions)), None
        with _outputs_at(self.model, positions):
            return self._outputs(self.model, interaction), self._item_vectors(self.model)

    def loss_and_logits(self, interaction, need_logits=True):
        """A row batch's own loss, and its logits (None where they would cost a second pass nobody needs)."""
        with _arguments_of(getattr(self.model, "loss_fct", None)) as seen:
            loss = _total(self.model.calculate_loss(interaction))
        if not need_logits:
            return loss, None
        shape = (len(interaction), self.n_items)
        logits = next((arg for arg in seen if isinstance(arg, torch.Tensor) and arg.shape == shape), None)
        return loss, self.logits_of_rows(interaction) if logits is None else logits


def _total(loss):
    return sum(loss) if isinstance(loss, tuple) else loss


@contextlib.contextmanager
def _arguments_of(module):
    """A list that the arguments of ``module``'s calls are added to inside the block."""
    seen = []
    hook = (
        module.register_forward_pre_hook(lambda _, args: seen.extend(args)) if isinstance(module, nn.Module) else None
    )
    try:
        yield seen
    finally:
        if hook is not None:
            hook.remove()


@contextlib.contextmanager
def _outputs_at(model, positions):
    """Inside, the model's ``gather_indexes`` returns the outputs at all ``positions`` instead of the last one's."""
    model.gather_indexes = lambda output, index: output[positions]
    try:
        yield
    finally:
        del model.gather_indexes


def _with_large_random_weights(model):
    probe = copy.deepcopy(model).eval()
    for parameter in probe.parameters():
        parameter.normal_(0, PROBE_SPREAD)
    return probe
