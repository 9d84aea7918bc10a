"""What a side is taught by in a phase: the frozen other side, closed-form evidence, and on which histories."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from recbole.config import Config
from recbole.data.dataloader import AbstractDataLoader
from recbole.data.dataset import SequentialDataset
from torch import Tensor

from recbole_llmd.data.item_text import load_item_texts
from recbole_llmd.data.tfidf import tfidf_vectors
from recbole_llmd.data.transitions import Samples, drawn_numbers, item_popularity
from recbole_llmd.data.windows import SAMPLE
from recbole_llmd.distill import evidence as closed_form
from recbole_llmd.distill.evidence import Evidence, PooledEvidence, Weights
from recbole_llmd.distill.synthetic_histories import Neighbours, as_dataset, draw_histories, training_sequences
from recbole_llmd.distill.teacher_cache import TeacherCache, resolve_topk
from recbole_llmd.distill.training_path import SampleBatches, TrainingPath
from recbole_llmd.random_state import isolated_random_state
from recbole_llmd.trainer.objective import SyntheticSamples

VALIDATION_SAMPLES = 2048  # that the weights of a pooled teacher are fitted on
NEIGHBOURS = 20  # of an item, that take its place in synthetic histories
HISTORIES_AT_ONCE = 512


@dataclass(frozen=True)
class PooledTeacher:
    r"""A frozen model and closed-form evidence as one teacher: :math:`\log p = \gamma \log e + g \log p_M + c`.

    Attributes:
        evidence: with its weights.
        share: :math:`g`, the exponent of the model's probabilities.
        samples: the samples whose numbers the teacher is asked by.

    >>> from recbole_llmd.distill.evidence import USUAL
    >>> samples = Samples(np.array([[1, 0], [1, 2]]), np.array([1, 2]), np.array([2, 3]), np.array([1, 1]))
    >>> evidence = Evidence.of(samples, popularity=np.array([0, 1, 1, 1]), texts=None)
    >>> teacher = PooledTeacher(PooledEvidence(evidence, USUAL), 0.0, samples)
    >>> teacher(torch.zeros(1, 4), torch.tensor([1]))[0, 1:].argmax().item() + 1  # of a model that knows nothing
    3
    """

    evidence: PooledEvidence
    share: float
    samples: Samples

    def __call__(self, logits: Tensor, numbers: Tensor) -> Tensor:
        """The teacher's logits of the samples ``numbers`` from those of its model, ``[n, n_items]``."""
        chosen = self.samples[numbers.cpu().numpy()]
        of_evidence = self.evidence.scores(chosen.items, chosen.lengths).to(logits.device)
        return of_evidence.add_(torch.log_softmax(logits.float(), dim=-1), alpha=self.share)


class Teaching:
    """Makes teachers of the sides of a run.

    Args:
        config: the run's Config.
        dataset: the training dataset.
        valid_data: by whose samples the weights of pooled teachers are fitted, or None: then they have usual ones.
        folder: where the teachers' distributions lie.
        show_progress: whether a teacher's pass has a progress bar.

    >>> config, (train, valid, _), _ = build(small, model="LLMD4Rec")  # small: a tiny dataset
    >>> teaching = Teaching(config, train.dataset, valid, folder=".")
    >>> len(teaching.samples) == len(train.dataset), teaching.evidence.n_items == train.dataset.item_num
    (True, True)
    """

    def __init__(
        self,
        config: Config,
        dataset: SequentialDataset,
        valid_data: AbstractDataLoader | None,
        folder: str,
        show_progress: bool = False,
    ) -> None:
        self.config, self.dataset, self.valid_data = config, dataset, valid_data
        self.folder, self.show_progress = folder, show_progress

    @cached_property
    def samples(self) -> Samples:
        """The training samples."""
        return Samples.of(self.dataset)

    @cached_property
    def evidence(self) -> Evidence:
        """That of the training samples and the items' texts."""
        texts = tfidf_vectors(load_item_texts(self.config, self.dataset))
        return Evidence.of(self.samples, item_popularity(self.dataset), texts)

    def weights(self, path: TrainingPath) -> Weights:
        """The weights of the evidence and of the model of ``path`` by which they are pooled."""
        if not self.valid_data:
            return closed_form.USUAL
        dataset, log_probabilities = self.valid_data.dataset, []
        numbers = drawn_numbers(len(dataset), VALIDATION_SAMPLES, self.config["seed"])
        with torch.no_grad(), path.evaluation():
            path.model.eval()
            for batch in SampleBatches(dataset[numbers], HISTORIES_AT_ONCE):
                logits = path.model.full_sort_predict(batch.to(path.model.device)).view(len(batch), -1).float().cpu()
                log_probabilities.append(torch.log_softmax(logits, dim=-1))
        chosen = Samples.of(dataset)[numbers]
        return closed_form.fit_weights(self.evidence, chosen, torch.cat(log_probabilities))

    def teachers(
        self, teacher: TrainingPath, student: TrainingPath, label: str, temperature: float, left_out: Tensor | None
    ) -> tuple[TeacherCache, SyntheticSamples | None]:
        """The teacher's distributions over the training samples, and over synthetic histories if there are any.

        Args:
            teacher: the training path of the teaching side.
            student: that of the side that is taught.
            label: what the progress bar says.
            temperature: of the distributions.
            left_out: items that the teacher knows nothing of, bool, ``[n_items]``, or None.
        """
        pool = None
        if self.config["distill_evidence"] or self.config["distill_synthetic"]:
            pool = PooledEvidence(self.evidence, self.weights(teacher))

        n_items = self.dataset.item_num
        topk = resolve_topk(self.config["distill_topk"], n_items)

        def filled(path: TrainingPath, samples: Samples, weighted: bool) -> TeacherCache:
            joined = None
            if pool is not None and self.config["distill_evidence"]:
                joined = PooledTeacher(pool, pool.weights.model, samples)
            cache = TeacherCache(len(samples), n_items, temperature, topk, self.folder, left_out, weighted)
            cache.fill(path, label, self.show_progress and weighted, joined)
            return cache

        cache = filled(teacher, self.samples, weighted=True)
        if pool is None or not self.config["distill_synthetic"]:
            return cache, None
        rate, neighbours = self.config["distill_synthetic"], Neighbours(*pool.neighbours(NEIGHBOURS))
        items, lengths = training_sequences(self.samples)
        n = max(1, round(rate * len(items)))

        def drawn(seed: int) -> tuple[TrainingPath, TeacherCache]:
            histories = draw_histories(items, lengths, neighbours, n, np.random.default_rng(seed))
            dataset, samples = as_dataset(self.dataset, *histories, SAMPLE)
            with isolated_random_state(seed):
                return student.over(dataset, rate), filled(teacher.over(dataset), samples, weighted=False)

        return cache, SyntheticSamples(drawn, self.config["distill_synthetic_epochs"])
