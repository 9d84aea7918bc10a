"""What one side minimises in one phase, and the figures of an epoch that the log shows."""

from dataclasses import dataclass, field

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from recbole_llmd.data.windows import samples_of
from recbole_llmd.distill import chunked_scores
from recbole_llmd.distill.losses import rescale

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)  # of the sample weights


@dataclass
class EpochFigures:
    """Sums over an epoch: losses weighted by samples, and the sample weights of the distillation term."""

    samples: int = 0
    cross_entropy: float = 0.0
    distillation: float = 0.0
    weight_sum: float = 0.0
    weight_square_sum: float = 0.0
    taught: bool = False
    weights: list = field(default_factory=list)

    def add(self, n, cross_entropy, distillation=None, weights=None):
        self.samples += n
        self.cross_entropy += n * float(cross_entropy)
        if weights is not None:
            self.taught = True
            self.distillation += n * float(distillation)
            self.weight_sum += float(weights.sum())
            self.weight_square_sum += float(weights.square().sum())
            self.weights.append(weights.float().cpu().numpy())

    def as_dict(self):
        """Means per sample; the distillation term without its factor alpha."""
        n = max(1, self.samples)
        figures = {"cross-entropy": self.cross_entropy / n}
        if self.taught:
            mean = self.weight_sum / n
            figures["distillation"] = self.distillation / n
            figures["weight mean"] = mean
            figures["weight std"] = max(0.0, self.weight_square_sum / n - mean**2) ** 0.5
        return figures

    def weight_quantiles(self):
        """The :data:`QUANTILES` of the epoch's sample weights, where there were any."""
        if not self.taught:
            return {}
        return {"weight quantiles": np.quantile(np.concatenate(self.weights), QUANTILES).tolist()}

    def __str__(self):
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
    Over windows, ``left_out`` (bool, ``[n_items]``) are items that the cross-entropy does not count among those that
    were not chosen.
    """

    scorer: object
    teacher: object = None
    alpha: float = 0.0
    temperature: float = 1.0
    weighting: str = "uniform"
    left_out: object = None
    figures: EpochFigures = field(default_factory=EpochFigures)

    def __call__(self, interaction):
        taught = self.teacher is not None and self.alpha > 0
        targets, rows = samples_of(self.scorer, interaction)
        teacher = self.teacher.read(rows, targets.device) if taught else None

        def distilled(logits, part):
            if not taught:
                return ()
            return distillation_terms(logits, targets[part], teacher.at(part), self.temperature, self.weighting)

        def both(logits, part):
            chosen_from = logits if self.left_out is None else logits.masked_fill(self.left_out, -torch.inf)
            return cross_entropy(chosen_from, targets[part], reduction="none"), *distilled(logits, part)

        if self.scorer.windows:
            losses, *found = chunked_scores.per_sample(both, *self.scorer.factors(interaction))
            loss = losses.mean()
        else:
            loss, logits = self.scorer.loss_and_logits(interaction, need_logits=taught)
            found = distilled(logits, slice(None))
        if not taught:
            self.figures.add(len(targets), loss.detach())
            return loss
        divergences, weights = found
        weights = rescale(weights.detach())
        term = torch.mean(weights * divergences)
        self.figures.add(len(targets), loss.detach(), term.detach(), weights)
        return loss, self.alpha * term


def distillation_terms(logits, targets, teacher, temperature, weighting):
    """Each sample's divergence, and its weight before the weights of the batch are rescaled.

    Args:
        logits: the student's scores of all items, ``[n, n_items]``.
        targets: item ids, ``[n]``.
        teacher (TeacherBatch): the teacher's distributions of the same samples.

    Returns:
        tuple: two tensors ``[n]``.
    """
    student = logits[:, 1:]  # the padding item is no item
    return teacher.divergence(student, temperature), teacher.weights(weighting, student, targets - 1)
