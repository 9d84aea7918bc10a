"""What one side minimises in one phase, and the figures of an epoch that the log shows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from recbole.data.interaction import Interaction
from torch import Tensor

from recbole_llmd.distill.losses import rescale
from recbole_llmd.distill.picked_scores import PickedScores
from recbole_llmd.distill.scores import Scores
from recbole_llmd.distill.teacher_cache import TeacherBatch, TeacherCache
from recbole_llmd.distill.training_path import Distilled, TrainingPath

WEIGHTINGS_OF_PICKED = ("adaptive", "uniform")  # ask for no student's score but the target's
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)  # of the sample weights


@dataclass
class EpochFigures:
    """Sums over an epoch: losses weighted by samples, and the sample weights of the distillation term.

    >>> figures = EpochFigures()
    >>> figures.add(3, torch.tensor(1.0))
    >>> figures.add(1, torch.tensor(5.0))
    >>> figures.as_dict()
    {'cross-entropy': 2.0}
    """

    samples: int = 0
    cross_entropy: float = 0.0
    distillation: float = 0.0
    weight_sum: float = 0.0
    weight_square_sum: float = 0.0
    taught: bool = False
    weights: list[npt.NDArray[np.float32]] = field(default_factory=list)
    synthetic_samples: int = 0
    synthetic: float = 0.0

    def add_synthetic(self, divergences: Tensor) -> None:
        """Add the divergences ``[n]`` of a batch of synthetic samples."""
        self.synthetic_samples += len(divergences)
        self.synthetic += float(divergences.sum())

    def add(
        self, n: int, cross_entropy: Tensor, distillation: Tensor | None = None, weights: Tensor | None = None
    ) -> None:
        """Add a batch of ``n`` samples: its mean losses, and with a teacher its sample weights ``[n]``."""
        self.samples += n
        self.cross_entropy += n * float(cross_entropy)
        if distillation is not None and weights is not None:
            self.taught = True
            self.distillation += n * float(distillation)
            self.weight_sum += float(weights.sum())
            self.weight_square_sum += float(weights.square().sum())
            self.weights.append(weights.float().cpu().numpy())

    def as_dict(self) -> dict[str, float]:
        """Means per sample; the distillation term without its factor alpha."""
        n = max(1, self.samples)
        figures = {"cross-entropy": self.cross_entropy / n}
        if self.taught:
            mean = self.weight_sum / n
            figures["distillation"] = self.distillation / n
            figures["weight mean"] = mean
            figures["weight std"] = max(0.0, self.weight_square_sum / n - mean**2) ** 0.5
        if self.synthetic_samples:
            figures["synthetic distillation"] = self.synthetic / self.synthetic_samples
        return figures

    def weight_quantiles(self) -> dict[str, list[float]]:
        """The :data:`QUANTILES` of the epoch's sample weights, where there were any."""
        if not self.taught:
            return {}
        return {"weight quantiles": np.quantile(np.concatenate(self.weights), QUANTILES).tolist()}

    def __str__(self) -> str:
        figures = self.as_dict()
        text = f"cross-entropy: {figures['cross-entropy']:.4f}"
        if self.taught:
            text += (
                f", distillation: {figures['distillation']:.4f}, "
                f"weights: {figures['weight mean']:.2f} ± {figures['weight std']:.2f}"
            )
        if self.synthetic_samples:
            text += f", on synthetic histories: {figures['synthetic distillation']:.4f}"
        return text


class SyntheticSamples:
    """Batches of synthetic histories with a teacher's distributions, drawn anew every few epochs.

    Args:
        drawn: ``drawn(seed)`` gives the student's training path over new histories and the teacher's distributions.
        epochs: for how many epochs histories are kept.

    >>> synthetic = SyntheticSamples(lambda seed: (print("drawn by", seed), None), epochs=2)
    >>> synthetic.begin_epoch(0, seed_of=lambda epoch: 100 + epoch)
    drawn by 100
    >>> synthetic.begin_epoch(1, seed_of=lambda epoch: 100 + epoch)
    >>> synthetic.begin_epoch(2, seed_of=lambda epoch: 100 + epoch)
    drawn by 102
    """

    def __init__(self, drawn: Callable[[int], tuple[TrainingPath, TeacherCache]], epochs: int) -> None:
        self.drawn, self.epochs = drawn, epochs
        self._seed: int | None = None
        self._epoch_seed = 0
        self._batches: Iterator[Interaction] | None = None

    def begin_epoch(self, epoch: int, seed_of: Callable[[int], int]) -> None:
        """Be ready for the batches of an epoch; what they are depends on its number and the seeds of epochs alone."""
        seed = seed_of(epoch - epoch % self.epochs)
        if seed != self._seed:
            self.path, self.teacher = self.drawn(seed)
            self._seed = seed
        self._epoch_seed, self._batches = seed_of(epoch), None

    def next(self) -> Interaction:
        """The next batch, from the first one again after the last."""
        while True:
            if self._batches is None:
                self._batches = iter(self.path.loader(self._epoch_seed))
            batch = next(self._batches, None)
            if batch is not None:
                return batch
            self._batches = None


@dataclass
class Objective:
    """The side's own loss plus, with a teacher, the weighted distillation term (see :mod:`..distill.losses`).

    Called with a batch, as RecBole's ``loss_func``: returns the loss, or the pair (own loss, distillation term).

    Attributes:
        path: how the side is trained.
        teacher: the teacher's distributions over the training samples, or None.
        alpha: the factor of the distillation term; with 0 the teacher is not asked.
        temperature: that of the distributions that are compared.
        weighting: one of :data:`~recbole_llmd.distill.losses.WEIGHTINGS`.
        rescale_weights: whether the weights of a batch are brought to mean 1.
        text_only_items: items known by their text alone, bool, ``[n_items]``, or None; over windows the cross-entropy
            does not count them among those that were not chosen.
        synthetic: synthetic histories that the teacher is asked about, too, or None: with each batch comes one of them,
            whose mean divergence is added to the distillation term.
        figures: those of the running epoch.

    >>> from types import SimpleNamespace
    >>> path = SimpleNamespace(
    ...     samples=lambda batch: (batch["item_id"], None), loss=lambda *_: (torch.tensor(0.5), ())
    ... )
    >>> objective = Objective(path)
    >>> objective({"item_id": torch.tensor([1, 2])})
    tensor(0.5000)
    >>> str(objective.figures)
    'cross-entropy: 0.5000'
    """

    path: TrainingPath
    teacher: TeacherCache | None = None
    alpha: float = 0.0
    temperature: float = 1.0
    weighting: str = "uniform"
    rescale_weights: bool = True
    text_only_items: Tensor | None = None
    synthetic: SyntheticSamples | None = None
    figures: EpochFigures = field(default_factory=EpochFigures)

    def begin_epoch(self, epoch: int, seed_of: Callable[[int], int]) -> None:
        """Fresh figures and synthetic histories; ``seed_of`` gives the seed of an epoch of this phase."""
        self.figures = EpochFigures()
        if self.synthetic is not None and self.alpha > 0:
            self.synthetic.begin_epoch(epoch, seed_of)

    def __call__(self, batch: Interaction) -> Tensor | tuple[Tensor, Tensor]:
        """The loss of a batch, or its own loss and the distillation term times alpha."""
        targets, numbers = self.path.samples(batch)
        if self.teacher is None or not self.alpha > 0:
            loss, _ = self.path.loss(batch, self.text_only_items, None)
            self.figures.add(len(targets), loss.detach())
            return loss
        teacher = self.teacher.read(numbers, targets.device)

        def terms(scores: Scores | PickedScores, chunk: slice) -> tuple[Tensor, Tensor]:
            return distillation_terms(scores, targets[chunk], teacher.at(chunk), self.temperature, self.weighting)

        picked = picked_by(teacher) if self.weighting in WEIGHTINGS_OF_PICKED else None
        loss, (divergences, weights) = self.path.loss(batch, self.text_only_items, Distilled(terms, picked))
        weights = rescale(weights.detach()) if self.rescale_weights else weights.detach()
        term = torch.mean(weights * divergences)
        self.figures.add(len(targets), loss.detach(), term.detach(), weights)
        if self.synthetic is not None:
            term = term + self._synthetic_term(self.synthetic)
        return loss, self.alpha * term

    def _synthetic_term(self, synthetic: SyntheticSamples) -> Tensor:
        """The mean divergence of the next batch of synthetic histories: they have no target to be weighted by."""
        path = synthetic.path
        batch = synthetic.next().to(path.model.device)
        teacher = synthetic.teacher.read(path.samples(batch)[1], path.model.device)

        def terms(scores: Scores | PickedScores, chunk: slice) -> tuple[Tensor]:
            return (divergence(scores, teacher.at(chunk), self.temperature),)

        left_out = None if teacher.text_only_items is None else self.text_only_items
        (divergences,) = path.distilled(batch, Distilled(terms, picked_by(teacher)), left_out)
        self.figures.add_synthetic(divergences.detach())
        return divergences.mean()


def distillation_terms(
    scores: Scores | PickedScores, targets: Tensor, teacher: TeacherBatch, temperature: float, weighting: str
) -> tuple[Tensor, Tensor]:
    """Each sample's divergence, and its weight before the weights of the batch are rescaled.

    Args:
        scores: the student's of all items.
        targets: item ids, ``[n]``.
        teacher: the teacher's distributions of the same samples.
        temperature: that of the distributions that are compared.
        weighting: one of :data:`~recbole_llmd.distill.losses.WEIGHTINGS`.

    Returns:
        tuple: two tensors ``[n]``.
    """
    divergences = divergence(scores, teacher, temperature)
    if isinstance(scores, PickedScores):
        student, places, total = scores.of_targets.unsqueeze(1), torch.zeros_like(targets), scores.log_total_of_items()
    else:
        student, places, total = scores.without_padding, targets - 1, scores.log_total_of_items
    return divergences, teacher.weights(weighting, student, places, total)


def picked_by(teacher: TeacherBatch) -> Tensor | None:
    """The items whose scores a divergence from the teacher asks for, item ids ``[n, k]``, or None: all."""
    return None if teacher.items is None else teacher.items + 1


def divergence(scores: Scores | PickedScores, teacher: TeacherBatch, temperature: float) -> Tensor:
    """Each sample's divergence from the teacher, ``[n]``; the arguments are those of :func:`distillation_terms`."""
    if isinstance(scores, PickedScores):
        return teacher.divergence_of_picked(scores, temperature)
    total = None if teacher.items is None else scores.log_total_of_items  # all items need none
    return teacher.divergence(scores.without_padding, temperature, total)  # the padding item is no item
