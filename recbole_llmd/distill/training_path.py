"""The two ways in which a side is trained: over windows, all positions at once, or one sample at a time.

Both train the same (history, next item) samples. What differs, their batches, how a loss is computed from them, and in
which form the model is asked for its scores, stands here and nowhere else.
"""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from recbole.config import Config
from recbole.data.dataloader import TrainDataLoader
from recbole.data.dataset import SequentialDataset
from recbole.data.interaction import Interaction
from recbole.model.abstract_recommender import SequentialRecommender
from torch import Tensor

from recbole_llmd.data.windows import SAMPLE, WindowLoader, build_windows, number_samples, positions_of
from recbole_llmd.distill import chunked_scores
from recbole_llmd.distill.picked_scores import PickedScores
from recbole_llmd.distill.scorers import CRMScorer, Factors, LLMScorer, WindowScorer, scored_by_length
from recbole_llmd.distill.scores import Scores


@dataclass(frozen=True)
class Distilled:
    """What is wanted of each sample's scores.

    Attributes:
        terms: ``terms(scores, chunk)`` gives tensors ``[n_chunk]`` of the samples in the slice ``chunk``.
        picked: item ids, ``[n, k]``: beside totals and the target's, ``terms`` asks for the scores of these alone, and
            is given :class:`~recbole_llmd.distill.picked_scores.PickedScores` where the model's scores are products.
            None: it asks for those of all items.

    >>> Distilled(lambda scores, chunk: (scores.logits.sum(1),)).picked is None
    True
    """

    terms: Callable[[Any, slice], tuple[Tensor, ...]]
    picked: Tensor | None = None


class Batches(Protocol):
    """Batches of one pass over the training samples, and how many there are."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Interaction]: ...


class TrainingPath(ABC):
    """How one side's model meets the training samples.

    Attributes:
        model: the side's model.
    """

    model: Any

    @abstractmethod
    def loader(self, seed: int) -> Batches:
        """The batches of one epoch, in an order that depends on ``seed`` alone."""

    @abstractmethod
    def teacher_batches(self) -> Batches:
        """Batches that hold every training sample once, in one order: for a pass that trains nothing."""

    @abstractmethod
    def samples(self, batch: Interaction) -> tuple[Tensor, Tensor]:
        """Targets (item ids) and numbers of the samples in a batch, both ``[n_samples]``."""

    @abstractmethod
    def factors(self, batch: Interaction) -> Factors:
        """The scores of all items for each sample of a batch, as factors: what
        :func:`~recbole_llmd.distill.chunked_scores.scores_of_all_items` makes the logits ``[n_samples, n_items]`` of.
        """

    @abstractmethod
    def loss(
        self, batch: Interaction, text_only_items: Tensor | None, distilled: Distilled | None
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The side's own loss of a batch, and what ``distilled`` makes of the same forward pass.

        Args:
            batch: a batch of :meth:`loader`.
            text_only_items: items known by their text alone, bool, ``[n_items]``, or None.
            distilled: what is wanted of each sample's scores besides, or None.

        Returns:
            tuple: the loss (a scalar) and the tensors ``[n_samples]`` of ``distilled`` (none without it).
        """

    @abstractmethod
    def over(self, dataset: SequentialDataset, size: float = 1.0) -> TrainingPath:
        """The path of the same model over the samples of another dataset, which have no targets to be trained on.

        Args:
            dataset: the samples, in RecBole's form.
            size: of a batch, by that of this path.
        """

    def distilled(
        self, batch: Interaction, distilled: Distilled, text_only_items: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        """What ``distilled`` makes of each sample's scores of a batch, without any loss of the side's own.

        Args:
            batch: as for :meth:`loss`.
            distilled: what is wanted.
            text_only_items: what the scores' ``log_total_kept`` leaves out.
        """
        outputs, items, fixed = (*self.factors(batch), None)[:3]
        if items is None or distilled.picked is None:
            return chunked_scores.per_sample(
                lambda logits, chunk: distilled.terms(Scores(logits), chunk), outputs, items, fixed
            )
        targets = self.samples(batch)[0]
        scores = PickedScores(outputs, items, fixed, targets, distilled.picked, text_only_items)
        return distilled.terms(scores, slice(None))

    @abstractmethod
    def evaluation(self) -> contextlib.AbstractContextManager[None]:
        """Inside, the model's ``full_sort_predict`` computes no more than this path allows it to leave out."""


class WindowPath(TrainingPath):
    """All-position training: one pass over a window gives the loss of every sample that ends in it.

    The loss is plain cross-entropy; items known by text alone do not count among those that were not chosen.

    Args:
        scorer: gives the model's scores at all positions of windows.
        windows: shuffled batches of windows.

    A model that gives both samples of a window the scores (0, 0, ln 2) of three items:

    >>> import math, torch
    >>> from types import SimpleNamespace
    >>> scores = torch.tensor([[0.0, 0.0, math.log(2)]]).repeat(2, 1)
    >>> scorer = SimpleNamespace(model=None, window_factors=lambda batch: (scores, None))
    >>> batch = {"llmd_sample": torch.tensor([[0, 1]]), "llmd_targets": torch.tensor([[2, 1]])}
    >>> loss, _ = WindowPath(scorer, windows=None).loss(batch, text_only_items=None, distilled=None)
    >>> round(loss.item(), 4)  # the mean of -ln(1/2) and -ln(1/4)
    1.0397
    """

    def __init__(self, scorer: WindowScorer, windows: WindowLoader) -> None:
        self.scorer, self.windows = scorer, windows
        self.model = scorer.model

    def loader(self, seed: int) -> Batches:
        """As :meth:`TrainingPath.loader`."""
        self.windows.seed(seed)
        return self.windows

    def teacher_batches(self) -> Batches:
        """As :meth:`TrainingPath.teacher_batches`."""
        return self.windows.unshuffled()

    def samples(self, batch: Interaction) -> tuple[Tensor, Tensor]:
        """As :meth:`TrainingPath.samples`."""
        return positions_of(batch)[1:]

    def factors(self, batch: Interaction) -> Factors:
        """As :meth:`TrainingPath.factors`."""
        return self.scorer.window_factors(batch)

    def loss(
        self, batch: Interaction, text_only_items: Tensor | None, distilled: Distilled | None
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """As :meth:`TrainingPath.loss`; the scores are computed in chunks and not kept."""
        targets, _ = self.samples(batch)

        def terms(scores: Scores | PickedScores, chunk: slice) -> tuple[Tensor, ...]:
            if isinstance(scores, PickedScores):
                own = scores.cross_entropy()
            else:
                own = scores.cross_entropy(targets[chunk], text_only_items)
            return (own,) if distilled is None else (own, *distilled.terms(scores, chunk))

        wanted = Distilled(terms, targets.new_empty(len(targets), 0) if distilled is None else distilled.picked)
        own, *of_samples = self.distilled(batch, wanted, text_only_items)
        return own.mean(), tuple(of_samples)

    def over(self, dataset: SequentialDataset, size: float = 1.0) -> TrainingPath:
        """As :meth:`TrainingPath.over`."""
        batch_size = max(1, round(size * self.windows.batch_size))
        return WindowPath(self.scorer, self.windows.over(build_windows(dataset), batch_size))

    def evaluation(self) -> contextlib.AbstractContextManager[None]:
        """Histories of like length are scored together: a causal model needs no padding."""
        return scored_by_length(self.model)


class SamplePath(TrainingPath):
    """One RecBole training sample at a time, with the model's own loss.

    Args:
        scorer: gives the model's own loss and its scores of samples.
        train_data: RecBole's training loader; its samples are numbered.
        batch_size: samples in a batch of a pass that trains nothing.

    >>> import torch
    >>> from types import SimpleNamespace
    >>> scorer = SimpleNamespace(model=None, own_loss=lambda batch: batch["item_id"].float().mean())
    >>> path = SamplePath(scorer, train_data=None, batch_size=2)
    >>> path.loss({"item_id": torch.tensor([1, 2])}, text_only_items=None, distilled=None)
    (tensor(1.5000), ())
    """

    def __init__(self, scorer: CRMScorer, train_data: TrainDataLoader, batch_size: int) -> None:
        self.scorer, self.train_data, self.batch_size = scorer, train_data, batch_size
        self.model = scorer.model

    def loader(self, seed: int) -> Batches:
        """As :meth:`TrainingPath.loader`: RecBole's own, with its negative samples and transforms."""
        self.train_data.generator.manual_seed(seed)
        batches: Batches = self.train_data
        return batches

    def teacher_batches(self) -> Batches:
        """As :meth:`TrainingPath.teacher_batches`."""
        return SampleBatches(self.train_data.dataset, self.batch_size)

    def samples(self, batch: Interaction) -> tuple[Tensor, Tensor]:
        """As :meth:`TrainingPath.samples`."""
        return batch[self.model.POS_ITEM_ID], batch[SAMPLE]

    def factors(self, batch: Interaction) -> Factors:
        """As :meth:`TrainingPath.factors`; the scores are not taken apart."""
        return self.scorer.sample_logits(batch), None

    def loss(
        self, batch: Interaction, text_only_items: Tensor | None, distilled: Distilled | None
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """As :meth:`TrainingPath.loss`; the model's own loss knows nothing of items known by text alone."""
        if distilled is None:
            return self.scorer.own_loss(batch), ()
        loss, logits = self.scorer.own_loss_and_logits(batch)
        return loss, distilled.terms(Scores(logits), slice(None))

    def over(self, dataset: SequentialDataset, size: float = 1.0) -> TrainingPath:
        """As :meth:`TrainingPath.over`."""
        return _LooseSamplePath(self.scorer, dataset, max(1, round(size * self.batch_size)))

    def evaluation(self) -> contextlib.AbstractContextManager[None]:
        """As RecBole does it: of these models nothing is known."""
        return contextlib.nullcontext()


class _LooseSamplePath(SamplePath):
    """Samples that RecBole's loader does not have."""

    def __init__(self, scorer: CRMScorer, dataset: SequentialDataset, batch_size: int) -> None:
        self.scorer, self.dataset, self.batch_size = scorer, dataset, batch_size
        self.model = scorer.model

    def loader(self, seed: int) -> Batches:
        """As :meth:`TrainingPath.loader`."""
        return SampleBatches(self.dataset, self.batch_size, np.random.default_rng(seed))

    def teacher_batches(self) -> Batches:
        """As :meth:`TrainingPath.teacher_batches`."""
        return SampleBatches(self.dataset, self.batch_size)


class SampleBatches:
    """The samples of a dataset, in batches: in order, or shuffled by a generator.

    >>> import torch
    >>> batches = SampleBatches(torch.arange(5), batch_size=2)
    >>> len(batches), [batch.tolist() for batch in batches]
    (3, [[0, 1], [2, 3], [4]])
    """

    def __init__(
        self, dataset: SequentialDataset, batch_size: int, generator: np.random.Generator | None = None
    ) -> None:
        self.dataset, self.batch_size, self.generator = dataset, batch_size, generator

    def __len__(self) -> int:
        return -(-len(self.dataset) // self.batch_size)

    def __iter__(self) -> Iterator[Interaction]:
        order = np.arange(len(self.dataset))
        if self.generator is not None:
            order = self.generator.permutation(order)
        for first in range(0, len(self.dataset), self.batch_size):
            yield self.dataset[order[first : first + self.batch_size]]


def llm_path(llm: Any, config: Config, train_data: TrainDataLoader, overlap: float) -> TrainingPath:
    """The training path of the LLM recommender.

    Args:
        llm: the LLMRec model.
        config: the Config of its side.
        train_data: RecBole's training loader.
        overlap: of the windows (see :func:`~recbole_llmd.data.windows.build_windows`).
    """
    return WindowPath(LLMScorer(llm), _window_loader(config, train_data, overlap))


def crm_path(crm: SequentialRecommender, config: Config, train_data: TrainDataLoader, overlap: float) -> TrainingPath:
    """The training path of a CRM, by what :class:`~recbole_llmd.distill.scorers.CRMScorer` finds out about it.

    Args:
        crm: any RecBole sequential model.
        config: the Config of its side.
        train_data: RecBole's training loader.
        overlap: as for :func:`llm_path`.

    Raises:
        ModelError: if the model cannot score all items for a history.
    """
    scorer = CRMScorer(crm, train_data.dataset, train_data)
    if scorer.causal:
        return WindowPath(scorer, _window_loader(config, train_data, overlap))
    number_samples(train_data.dataset)
    return SamplePath(scorer, train_data, config["train_batch_size"])


def _window_loader(config: Config, train_data: TrainDataLoader, overlap: float) -> WindowLoader:
    return WindowLoader(build_windows(train_data.dataset, overlap), config, config["train_batch_size"])
