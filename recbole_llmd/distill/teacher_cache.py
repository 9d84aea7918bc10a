"""The teacher's distributions over the training samples: computed once per phase, kept in a memory-mapped file."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from tqdm import tqdm

from recbole_llmd.distill import chunked_scores, losses
from recbole_llmd.distill.picked_scores import PickedScores
from recbole_llmd.distill.scores import log1mexp
from recbole_llmd.distill.training_path import TrainingPath
from recbole_llmd.errors import SettingsError

EXACT_UP_TO = 5000  # items; larger catalogues keep AUTO_TOPK items and the mass of the rest
AUTO_TOPK = 256
NEVER = -1e4  # the logit of an item that a distribution leaves out: finite, so that 0 times its logarithm is 0


def resolve_topk(setting: int | str, n_items: int) -> int:
    """The number of items to cache per sample from ``distill_topk``; 0 keeps all.

    Raises:
        SettingsError: if the number is too small for the lists that sample weights compare.

    >>> resolve_topk("auto", n_items=100), resolve_topk("auto", n_items=100_000), resolve_topk(50, n_items=100)
    (0, 256, 50)
    """
    if setting == "auto":
        return 0 if n_items <= EXACT_UP_TO else AUTO_TOPK
    topk = int(setting)
    if 0 < topk < losses.RANK_TOP:
        raise SettingsError(f"distill_topk = {topk}: must be 0 (all items) or at least {losses.RANK_TOP}.")
    return 0 if topk >= n_items - 1 else topk


@dataclass(frozen=True)
class TeacherBatch:
    """What the cache holds of some samples; items are counted without the padding item (item id - 1).

    Attributes:
        logp: log-probabilities at the run's temperature, of all items ``[n, n_items - 1]`` or the top ``[n, k]``.
        items: the top items in falling order, ``[n, k]``; None if ``logp`` holds all items.
        rest_logp: the log-mass of the other items, ``[n]``; None if ``logp`` holds all items.
        target_p: probability of the sample's target at temperature 1, ``[n]``.
        entropy: entropy at temperature 1, ``[n]``.
        target_rank: how many items stand above the target, of all items, ``[n]``.
        text_only_items: items that the divergence leaves out, bool, ``[n_items - 1]``, or None.

    >>> p = torch.tensor([[0.75, 0.25]])
    >>> batch = TeacherBatch(p.log(), None, None, target_p=p[:, 0], entropy=-(p * p.log()).sum(1),
    ...                      target_rank=torch.tensor([0]))
    >>> student = torch.zeros(1, 2)
    >>> round(batch.divergence(student, temperature=1.0).item(), 4)
    0.1308
    >>> round(batch.weights("adaptive", student, torch.tensor([0])).item(), 4)  # 0.75 / (0.75 + 0.5)
    0.6
    """

    logp: Tensor
    items: Tensor | None
    rest_logp: Tensor | None
    target_p: Tensor
    entropy: Tensor
    target_rank: Tensor
    text_only_items: Tensor | None = None

    def divergence(self, student_logits: Tensor, temperature: float, log_total: Tensor | None = None) -> Tensor:
        """Per-sample distillation term, ``[n]``.

        Args:
            student_logits: without the padding item, ``[n, n_items - 1]``.
            temperature: that of the distributions.
            log_total: ``logsumexp(student_logits)`` if it is known already, ``[n]``.
        """
        if self.text_only_items is not None or temperature != 1:
            log_total = None  # it is another one
        student_logits = self._compared(student_logits)
        if self.items is None or self.rest_logp is None:
            return losses.kl_divergence(self.logp, student_logits, temperature)
        return losses.kl_divergence_topk(self.items, self.logp, self.rest_logp, student_logits, temperature, log_total)

    def divergence_of_picked(self, scores: PickedScores, temperature: float) -> Tensor:
        """:meth:`divergence` from the scores of the top ``items`` and a total alone, ``[n]``."""
        if self.items is None or self.rest_logp is None:
            raise ValueError("divergence_of_picked: this cache holds all items, and needs the scores of all.")
        scores, left_out = scores.tempered(temperature), self.text_only_items
        picked = scores.picked
        if left_out is not None:
            picked = picked.masked_fill(left_out[self.items], NEVER)
        student_top = picked - scores.log_total_of_items(kept=left_out is not None).unsqueeze(1)
        student_rest = log1mexp(torch.logsumexp(student_top, dim=-1))
        return temperature**2 * losses.merged_divergence(self.logp, self.rest_logp, student_top, student_rest)

    def _compared(self, student_logits: Tensor) -> Tensor:
        """The student's logits without the items that the divergence leaves out."""
        if self.text_only_items is None:
            return student_logits
        return student_logits.masked_fill(self.text_only_items, NEVER)

    def at(self, chunk: slice) -> TeacherBatch:
        """The samples in a slice."""
        return TeacherBatch(
            self.logp[chunk],
            None if self.items is None else self.items[chunk],
            None if self.rest_logp is None else self.rest_logp[chunk],
            self.target_p[chunk],
            self.entropy[chunk],
            self.target_rank[chunk],
            self.text_only_items,
        )

    def weights(
        self, weighting: str, student_logits: Tensor, targets: Tensor, log_total: Tensor | None = None
    ) -> Tensor:
        """Sample weights before they are rescaled, ``[n]``; the arguments are those of :meth:`divergence`, and the
        targets, counted without the padding item, ``[n]``.
        """
        top = None
        if weighting == "rank":
            n = min(losses.RANK_TOP, student_logits.shape[1])
            top = self.items[:, :n] if self.items is not None else self.logp.topk(n, dim=-1).indices
        if weighting == "target_rank":
            student_logits = self._compared(student_logits)  # both sides rank the same items
        return losses.sample_weights(
            weighting, student_logits, targets, self.target_p, self.entropy, top, self.target_rank, log_total
        )


class TeacherCache:
    """The frozen teacher's distribution for every training sample, on disk (``[n_samples, n_items - 1]`` or
    ``[n_samples, k]``).

    The file has no name in the folder: it is gone when the process ends, however it ends.

    Args:
        n_samples: the number of training samples.
        n_items: the number of items with the padding item.
        temperature: the temperature of the cached log-probabilities.
        topk: how many top items to keep; 0 keeps all.
        folder: where the file lies.
        text_only_items: items known by their text alone, of which the teacher (a CRM) knows nothing, bool,
            ``[n_items]``: the distributions of teacher and student are compared over the others. None if there are
            none, or the teacher knows them.
        weighted: whether the samples have targets, by which they are weighted; else no facts of these are kept.

    >>> cache = TeacherCache(n_samples=2, n_items=4, temperature=1.0, topk=0, folder=".")
    >>> logits = torch.tensor([[9.0, 1.0, 0.0, 0.0], [9.0, 0.0, 2.0, 0.0]])  # of the padding item and three others
    >>> cache.write(torch.tensor([0, 1]), logits, targets=torch.tensor([1, 2]))
    >>> [round(p, 4) for p in cache.read(torch.tensor([1]), "cpu").logp.exp()[0].tolist()]
    [0.1065, 0.787, 0.1065]
    """

    def __init__(
        self,
        n_samples: int,
        n_items: int,
        temperature: float,
        topk: int,
        folder: str,
        text_only_items: Tensor | None = None,
        weighted: bool = True,
    ) -> None:
        self.weighted = weighted
        self.text_only_items = None if text_only_items is None else text_only_items[1:]
        self.n_items, self.temperature, self.topk = n_items, temperature, topk
        width = topk or n_items - 1
        self.logp = self._map(folder, np.float32, (n_samples, width))
        self.items = self._map(folder, np.int32, (n_samples, width)) if topk else None
        self.rest_logp = np.zeros(n_samples, dtype=np.float32)
        self.target_p = np.zeros(n_samples, dtype=np.float32)
        self.entropy = np.zeros(n_samples, dtype=np.float32)
        self.target_rank = np.zeros(n_samples, dtype=np.int32)

    @staticmethod
    def _map(folder: str, dtype: type, shape: tuple[int, int]) -> np.memmap[Any, Any]:
        with tempfile.TemporaryFile(dir=folder) as file:
            return np.memmap(file, dtype=dtype, mode="w+", shape=shape)

    def write(self, numbers: Tensor, logits: Tensor, targets: Tensor) -> None:
        """Keep the distributions of some samples.

        Args:
            numbers: the numbers of the samples, ``[n]``.
            logits: the teacher's scores of all items, ``[n, n_items]``.
            targets: item ids, ``[n]``.
        """
        logits, places = logits[:, 1:].float(), numbers.cpu().numpy()
        if self.text_only_items is not None:
            logits = logits.masked_fill(self.text_only_items, NEVER)
        logp = torch.log_softmax(logits, dim=-1)
        if self.weighted:
            self.target_rank[places] = losses.target_ranks(logits, targets - 1).cpu().numpy()
            self.target_p[places] = logp.gather(1, (targets - 1).unsqueeze(1)).exp().squeeze(1).cpu().numpy()
            self.entropy[places] = -(logp.exp() * logp).sum(-1).cpu().numpy()
        if self.temperature != 1:
            logp = torch.log_softmax(logits / self.temperature, dim=-1)
        if self.items is not None:
            top, items = top_of(logp, self.topk)
            self.rest_logp[places] = logp.scatter_(1, items, -torch.inf).exp_().sum(-1).log_().cpu().numpy()
            self.items[places] = items.cpu().numpy()
            logp = top
        self.logp[places] = logp.cpu().numpy()

    def read(self, numbers: Tensor, device: torch.device | str) -> TeacherBatch:
        """The :class:`TeacherBatch` of the samples with these ``numbers`` ``[n]``."""
        places = numbers.cpu().numpy()

        def of_samples(array: npt.NDArray[Any]) -> Tensor:
            return torch.from_numpy(np.asarray(array[places])).to(device)

        return TeacherBatch(
            of_samples(self.logp),
            None if self.items is None else of_samples(self.items).long(),
            None if self.items is None else of_samples(self.rest_logp),
            of_samples(self.target_p),
            of_samples(self.entropy),
            of_samples(self.target_rank),
            self.text_only_items,
        )

    @torch.no_grad()
    def fill(
        self,
        teacher: TrainingPath,
        label: str,
        show_progress: bool = False,
        joined: Callable[[Tensor, Tensor], Tensor] | None = None,
    ) -> None:
        """Run the teacher once over all training samples, in evaluation mode.

        Args:
            teacher: the training path of the teacher's side.
            label: what the progress bar says.
            show_progress: whether there is a progress bar.
            joined: ``joined(logits, numbers)`` gives the teacher's logits ``[n, n_items]`` from those of its model.
        """
        model = teacher.model
        model.eval()
        for batch in tqdm(teacher.teacher_batches(), desc=label, ncols=100, disable=not show_progress):
            batch = batch.to(model.device)
            targets, numbers = teacher.samples(batch)
            outputs, *items = teacher.factors(batch)
            for chunk in chunked_scores.chunk_slices(len(numbers), self.n_items):
                logits = chunked_scores.scores_of_all_items(outputs[chunk], *items)
                if joined is not None:
                    logits = joined(logits, numbers[chunk])
                self.write(numbers[chunk], logits, targets[chunk])


def top_of(values: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The ``k`` largest values of each row and their columns, in falling order, both ``[n, k]``: ``topk``, which takes
    four times as long on a processor where rows are long.

    >>> [found.tolist() for found in top_of(torch.tensor([[3.0, 9.0, 5.0, 1.0]]), 2)]
    [[[9.0, 5.0]], [[1, 2]]]
    """
    if values.device.type != "cpu" or k >= values.shape[1]:
        found = values.topk(k, dim=-1)
        return found.values, found.indices
    columns = torch.from_numpy(np.argpartition(values.numpy(), values.shape[1] - k, axis=1)[:, -k:])
    top, order = values.gather(1, columns).sort(dim=-1, descending=True)
    return top, columns.gather(1, order)
