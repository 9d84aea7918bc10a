"""How the models of both sides are asked for their scores: of samples one by one, or of all positions of windows."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from recbole.data.dataloader import TrainDataLoader
from recbole.data.dataset import SequentialDataset
from recbole.data.interaction import Interaction
from recbole.model.abstract_recommender import AbstractRecommender, SequentialRecommender
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from recbole_llmd.data.windows import positions_of
from recbole_llmd.errors import ModelError
from recbole_llmd.random_state import isolated_random_state

PROBE_SAMPLES = 8
PROBE_SEED = 2020
PROBE_SPREAD = 0.3  # of the random weights
TOLERANCE = 1e-3  # relative to the spread of the scores
LOSS_TOLERANCE = 1e-5
HISTORIES_AT_ONCE = 256  # scored in one pass when a causal model is evaluated

# The scores of all items as factors, for ``chunked_scores.scores_of_all_items``: the samples' outputs
# ``[n_samples, size]``, the item vectors ``[n_items, size]``, further fixed ones; or the scores alone.
Factors = tuple[Tensor, "Tensor | None"] | tuple[Tensor, "Tensor | None", "Tensor | None"]


class WindowScorer(Protocol):
    """A model that scores all positions of windows in one pass."""

    model: Any

    def window_factors(self, batch: Interaction) -> Factors:
        """The scores of all items for each sample of a window batch, as factors."""


class LLMScorer:
    """The LLM recommender, which scores windows.

    >>> from recbole_llmd.data.windows import WindowLoader, build_windows, number_samples
    >>> config, (train, _, _), llm = build(small, model="LLMRec")
    >>> number_samples(train.dataset)
    >>> batch = next(iter(WindowLoader(build_windows(train.dataset), config, 64)))
    >>> outputs, items, _ = LLMScorer(llm).window_factors(batch)
    >>> len(outputs) == int(positions_of(batch)[0].sum()), len(items) == train.dataset.item_num
    (True, True)
    """

    def __init__(self, llm: Any) -> None:
        self.model = llm

    def window_factors(self, batch: Interaction) -> Factors:
        """As :meth:`CRMScorer.window_factors`."""
        vectors = self.model.item_vectors()
        positions = positions_of(batch)[0]
        outputs = self.model.position_outputs(batch[self.model.ITEM_SEQ], positions, vectors)
        return outputs, vectors, self.model.fixed_vectors


class CRMScorer:
    """Any RecBole sequential model that scores all items.

    What the model can do is found out by asking copies of it, on a few real samples, in evaluation mode.

    Args:
        crm: the model.
        dataset: the training dataset it was built for.
        loader: RecBole's training loader, which gives samples as the model's own loss expects them.

    Attributes:
        causal: whether the model can be trained over windows: its outputs before ``gather_indexes`` are those of every
            prefix, and its loss is plain cross-entropy over its scores. Else it is trained on samples with its own
            ``calculate_loss`` (BPR, BERT4Rec's masked loss, regularisers, ...); the distillation term then uses the
            logits that the loss was computed from, or those of a second forward pass.
        by_product: whether its scores are products of outputs and item vectors.
        probabilities: whether its scores are probabilities.

    Raises:
        ModelError: if the model cannot score all items for a history, with its name and the reason.

    >>> for name in ("SASRec", "BERT4Rec"):  # build makes Config, loaders and model; small: a tiny dataset
    ...     _, (train, _, _), crm = build(small, model=name)
    ...     scorer = CRMScorer(crm, train.dataset, train)
    ...     print(name, scorer.causal, scorer.by_product)
    SASRec True True
    BERT4Rec False False
    """

    def __init__(self, crm: SequentialRecommender, dataset: SequentialDataset, loader: TrainDataLoader) -> None:
        self.model, self.name = crm, type(crm).__name__
        self.n_items, self.device = dataset.item_num, crm.device
        self.by_forward = type(crm).full_sort_predict is AbstractRecommender.full_sort_predict
        if self.by_forward and not hasattr(crm, "item_embedding"):
            raise ModelError(
                f"crm_model = {self.name!r}: {self.name} scores one (history, item) pair at a time; it has no "
                "full_sort_predict, so it gives no distribution over the items to distil. Use a model that "
                "has one, such as SASRec or GRU4Rec."
            )
        with isolated_random_state(PROBE_SEED), torch.no_grad():
            batch = loader.collate_fn(self._longest_samples(dataset)).to(self.device)
            # Near-zero initial weights make different losses and scores look alike, large ones hide contrastive terms.
            probes = copy.deepcopy(crm).eval(), _with_large_random_weights(crm)
            causal = [self._is_plain_and_causal(probe, batch) for probe in probes]
            by_product = [self._is_product(probe, batch) for probe in probes]
        self.causal, self.by_product = all(causal), all(by_product)

    def _is_plain_and_causal(self, crm: SequentialRecommender, batch: Interaction) -> bool:
        self.probabilities = False
        scores = self._scores(crm, batch)
        if scores.shape != (len(batch), self.n_items):
            raise ModelError(
                f"crm_model = {self.name!r}: {self.name} returns scores of shape {tuple(scores.shape)} for "
                f"{len(batch)} histories and {self.n_items} items; one score per item is needed."
            )
        totals = scores.sum(1)
        self.probabilities = bool((scores >= 0).all() and torch.allclose(totals, torch.ones_like(totals), atol=1e-2))
        own = _total(crm.calculate_loss(batch))
        plain = cross_entropy(self._as_logits(scores), batch[crm.POS_ITEM_ID])
        return torch.allclose(own, plain, rtol=LOSS_TOLERANCE) and self._is_causal(crm, batch)

    def _longest_samples(self, dataset: SequentialDataset) -> npt.NDArray[np.int64]:
        length = dataset.inter_feat[dataset.item_list_length_field].numpy()
        return np.argsort(-length, kind="stable")[:PROBE_SAMPLES]

    def _is_causal(self, crm: SequentialRecommender, batch: Interaction) -> bool:
        """Whether every position of a window gives the scores of its prefix; a model that fails on windows does not."""
        seq, length = batch[crm.ITEM_SEQ], batch[crm.ITEM_SEQ_LEN]
        longest = int(length.max())
        positions = torch.arange(longest, device=seq.device) < length.unsqueeze(1)
        window = {**batch.interaction, crm.ITEM_SEQ: seq[:, :longest]}
        history, column = positions.nonzero(as_tuple=True)
        prefixes = torch.where(torch.arange(seq.shape[1], device=seq.device) <= column.unsqueeze(1), seq[history], 0)
        one_by_one = batch[history]
        one_by_one.update(Interaction({crm.ITEM_SEQ: prefixes, crm.ITEM_SEQ_LEN: column + 1}))
        try:
            together = self._window_scores(crm, Interaction(window), positions)
        except Exception:  # any failure inside a model not made for this means: not by windows
            return False
        apart = self._scores(crm, one_by_one)
        spread = apart.std().item()
        return together.shape == apart.shape and torch.allclose(together, apart, rtol=0, atol=TOLERANCE * spread)

    def _scores(self, crm: SequentialRecommender, batch: Interaction) -> Tensor:
        if self.by_forward:
            return self._outputs(crm, batch) @ self._item_vectors(crm).t()
        scores: Tensor = crm.full_sort_predict(batch)
        return scores

    def _outputs(self, crm: SequentialRecommender, batch: Interaction) -> Tensor:
        outputs: Tensor = crm.forward(batch[crm.ITEM_SEQ], batch[crm.ITEM_SEQ_LEN])
        return outputs

    def _item_vectors(self, crm: SequentialRecommender) -> Tensor:
        weight: Tensor = crm.item_embedding.weight
        return weight if len(weight) == self.n_items else weight[: self.n_items]

    def _is_product(self, crm: SequentialRecommender, batch: Interaction) -> bool:
        """Whether the model's scores are the products of ``forward``'s outputs and its item embeddings."""
        scores = self._scores(crm, batch)
        try:
            products = self._outputs(crm, batch) @ self._item_vectors(crm).t()
        except Exception:  # any failure inside a model not made for this means: it scores otherwise
            return False
        return torch.allclose(products, scores, rtol=0, atol=LOSS_TOLERANCE * scores.std().item())

    def _window_scores(self, crm: SequentialRecommender, batch: Interaction, positions: Tensor) -> Tensor:
        with _outputs_at(crm, positions):
            return self._scores(crm, batch)

    def _as_logits(self, scores: Tensor) -> Tensor:
        return scores.clamp(min=1e-12).log() if self.probabilities else scores

    def sample_logits(self, batch: Interaction) -> Tensor:
        """Scores of all items for each sample of a RecBole batch, ``[n_samples, n_items]``."""
        return self._as_logits(self._scores(self.model, batch))

    def window_factors(self, batch: Interaction) -> Factors:
        """The scores of all items for each sample of a window batch, as factors; only of a causal model.

        Returns:
            tuple: what :func:`~recbole_llmd.distill.chunked_scores.scores_of_all_items` makes the logits of: the
            samples' outputs ``[n_samples, size]`` and the item vectors ``[n_items, size]``; or the logits
            ``[n_samples, n_items]`` and None for a model that scores otherwise.
        """
        positions = positions_of(batch)[0]
        if not self.by_product:
            return self._as_logits(self._window_scores(self.model, batch, positions)), None
        with _outputs_at(self.model, positions):
            return self._outputs(self.model, batch), self._item_vectors(self.model)

    def own_loss_and_logits(self, batch: Interaction) -> tuple[Tensor, Tensor]:
        """The model's own loss of a RecBole batch, and its logits ``[n_samples, n_items]``.

        They are those that the loss was computed from where it shows them, else those of a second forward pass.
        """
        with _arguments_of(getattr(self.model, "loss_fct", None)) as arguments:
            loss = self.own_loss(batch)
        shape = (len(batch), self.n_items)
        logits = next((arg for arg in arguments if isinstance(arg, Tensor) and arg.shape == shape), None)
        return loss, self.sample_logits(batch) if logits is None else logits

    def own_loss(self, batch: Interaction) -> Tensor:
        """The model's own loss of a RecBole batch."""
        return _total(self.model.calculate_loss(batch))


def _total(loss: Tensor | tuple[Tensor, ...]) -> Tensor:
    return sum(loss[1:], loss[0]) if isinstance(loss, tuple) else loss


@contextlib.contextmanager
def _arguments_of(module: nn.Module | None) -> Iterator[list[Any]]:
    """A list that the arguments of ``module``'s calls are added to inside the block."""
    arguments: list[Any] = []
    if not isinstance(module, nn.Module):
        yield arguments
        return
    hook = module.register_forward_pre_hook(lambda _, args: arguments.extend(args))
    try:
        yield arguments
    finally:
        hook.remove()


@contextlib.contextmanager
def _outputs_at(model: SequentialRecommender, positions: Tensor) -> Iterator[None]:
    """Inside, the model's ``gather_indexes`` returns the outputs at all ``positions`` instead of the last one's."""
    model.gather_indexes = lambda output, index: output[positions]
    try:
        yield
    finally:
        del model.gather_indexes


def _with_large_random_weights(model: SequentialRecommender) -> SequentialRecommender:
    probe = copy.deepcopy(model).eval()
    for parameter in probe.parameters():
        parameter.normal_(0, PROBE_SPREAD)
    return probe


@contextlib.contextmanager
def scored_by_length(model: Any) -> Iterator[None]:
    """Inside, a causal ``model`` scores histories of like length together, without the padding beyond the longest.

    RecBole pads every history to ``MAX_ITEM_LIST_LENGTH``; on sparse data most of a validation pass is padding.
    """
    plain = model.full_sort_predict

    def by_length(batch: Interaction) -> Tensor | None:
        length, scores = batch[model.ITEM_SEQ_LEN], None
        for chosen in length.argsort().split(HISTORIES_AT_ONCE):
            histories = batch[chosen]
            histories.update(Interaction({model.ITEM_SEQ: histories[model.ITEM_SEQ][:, : int(length[chosen].max())]}))
            of_chosen = plain(histories)
            if scores is None:
                scores = of_chosen.new_empty(len(length), *of_chosen.shape[1:])
            scores[chosen] = of_chosen
        return scores

    model.full_sort_predict = by_length
    try:
        yield
    finally:
        del model.full_sort_predict
