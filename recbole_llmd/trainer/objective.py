"""What one side minimises in one phase, and the figures of an epoch that the log shows."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from recbole.data.interaction import Interaction
from torch import Tensor

from recbole_llmd.distill.losses import rescale
from recbole_llmd.distill.teacher_cache import TeacherBatch, TeacherCache
from recbole_llmd.distill.training_path import TrainingPath

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
        return text


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
    figures: EpochFigures = field(default_factory=EpochFigures)

    def __call__(self, batch: Interaction) -> Tensor | tuple[Tensor, Tensor]:
        """The loss of a batch, or its own loss and the distillation term times alpha."""
        targets, numbers = self.path.samples(batch)
        if self.teacher is None or not self.alpha > 0:
            loss, _ = self.path.loss(batch, self.text_only_items, None)
            self.figures.add(len(targets), loss.detach())
            return loss
        teacher = self.teacher.read(numbers, targets.device)

        def distilled(logits: Tensor, chunk: slice) -> tuple[Tensor, Tensor]:
            return distillation_terms(logits, targets[chunk], teacher.at(chunk), self.temperature, self.weighting)

        loss, (divergences, weights) = self.path.loss(batch, self.text_only_items, distilled)
        weights = rescale(weights.detach()) if self.rescale_weights else weights.detach()
        term = torch.mean(weights * divergences)
        self.figures.add(len(targets), loss.detach(), term.detach(), weights)
        return loss, self.alpha * term


def distillation_terms(
    logits: Tensor, targets: Tensor, teacher: TeacherBatch, temperature: float, weighting: str
) -> tuple[Tensor, Tensor]:
    """Each sample's divergence, and its weight before the weights of the batch are rescaled.

    Args:
        logits: the student's scores of all items, ``[n, n_items]``.
        targets: item ids, ``[n]``.
        teacher: the teacher's distributions of the same samples.
        temperature: that of the distributions that are compared.
        weighting: one of :data:`~recbole_llmd.distill.losses.WEIGHTINGS`.

    Returns:
        tuple: two tensors ``[n]``.
    """
    student = logits[:, 1:]  # the padding item is no item
    return teacher.divergence(student, temperature), teacher.weights(weighting, student, targets - 1)
