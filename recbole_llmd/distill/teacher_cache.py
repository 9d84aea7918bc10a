"""The teacher's distributions over the training samples: computed once per phase, kept in a memory-mapped file."""

import tempfile
from dataclasses import dataclass

import numpy as np
import torch
from tqdm import tqdm

from recbole_llmd.data.windows import samples_of
from recbole_llmd.distill import chunked_scores, losses
from recbole_llmd.errors import SettingsError

EXACT_UP_TO = 5000  # items; larger catalogues keep AUTO_TOPK items and the mass of the rest
AUTO_TOPK = 512
NEVER = -1e4  # the logit of an item that is left out of a distribution: finite, so that 0 times its logarithm is 0


def resolve_topk(setting, n_items):
    """The number of items to cache per sample from ``distill_topk``; 0 keeps all.

    Raises:
        SettingsError: if the number is too small for the lists that sample weights compare.
    """
    if setting == "auto":
        return 0 if n_items <= EXACT_UP_TO else AUTO_TOPK
    if 0 < setting < losses.RANK_TOP:
        raise SettingsError(f"distill_topk = {setting}: must be 0 (all items) or at least {losses.RANK_TOP}.")
    return 0 if setting >= n_items - 1 else setting


@dataclass(frozen=True)
class TeacherBatch:
    """What the cache holds of some samples; items are counted without the padding item (item id - 1).

    Attributes:
        logp: log-probabilities at the run's temperature, of all items ``[n, n_items - 1]`` or the top ``[n, k]``.
        items: the top items in falling order, ``[n, k]``; None if ``logp`` holds all items.
        rest_logp: the log-mass of the other items, ``[n]``; None if ``logp`` holds all items.
        target_p: probability of the sample's target at temperature 1, ``[n]``.
        entropy: entropy at temperature 1, ``[n]``.
        unknown: items that the divergence leaves out, bool, ``[n_items - 1]``, or None.
    """

    logp: torch.Tensor
    items: torch.Tensor | None
    rest_logp: torch.Tensor | None
    target_p: torch.Tensor
    entropy: torch.Tensor
    unknown: torch.Tensor | None = None

    def divergence(self, student_logits, temperature):
        """Per-sample distillation term for student logits without the padding item, ``[n]``."""
        if self.unknown is not None:
            student_logits = student_logits.masked_fill(self.unknown, NEVER)
        if self.items is None:
            return losses.kl_divergence(self.logp, student_logits, temperature)
        return losses.kl_divergence_topk(self.items, self.logp, self.rest_logp, student_logits, temperature)

    def at(self, part):
        """The samples in a slice."""
        arrays = (self.logp, self.items, self.rest_logp, self.target_p, self.entropy)
        return TeacherBatch(*(array if array is None else array[part] for array in arrays), self.unknown)

    def weights(self, weighting, student_logits, targets):
        """Sample weights for student logits without the padding item, before they are rescaled, ``[n]``."""
        top = None
        if weighting == "rank":
            n = min(losses.RANK_TOP, student_logits.shape[1])
            top = self.items[:, :n] if self.items is not None else self.logp.topk(n, dim=-1).indices
        return losses.sample_weights(weighting, student_logits, targets, self.target_p, self.entropy, top)


class TeacherCache:
    """The frozen teacher's distribution for every training row, on disk (``[n_rows, n_items - 1]`` or ``[n_rows, k]``).

    The file has no name in the folder: it is gone when the process ends, however it ends.

    Args:
        n_rows (int): the number of training rows.
        n_items (int): the number of items with the padding item.
        temperature (float): the temperature of the cached log-probabilities.
        topk (int): how many top items to keep; 0 keeps all.
        folder (str): where the file lies.
        unknown: items of which the teacher knows nothing, bool, ``[n_items]``: the distributions of teacher and student
            are compared over the others. None if there are none.
    """

    def __init__(self, n_rows, n_items, temperature, topk, folder, unknown=None):
        self.unknown = None if unknown is None else unknown[1:]
        self.n_items, self.temperature, self.topk = n_items, temperature, topk
        width = topk or n_items - 1
        self.logp = self._map(folder, np.float32, (n_rows, width))
        self.items = self._map(folder, np.int32, (n_rows, width)) if topk else None
        self.rest_logp = np.zeros(n_rows, dtype=np.float32)
        self.target_p = np.zeros(n_rows, dtype=np.float32)
        self.entropy = np.zeros(n_rows, dtype=np.float32)

    @staticmethod
    def _map(folder, dtype, shape):
        with tempfile.TemporaryFile(dir=folder) as file:
            return np.memmap(file, dtype=dtype, mode="w+", shape=shape)

    def write(self, rows, logits, targets):
        """Keep the distributions of some samples.

        Args:
            rows: training rows, ``[n]``.
            logits: the teacher's scores of all items, ``[n, n_items]``.
            targets: item ids, ``[n]``.
        """
        logits, rows = logits[:, 1:].float(), rows.cpu().numpy()
        if self.unknown is not None:
            logits = logits.masked_fill(self.unknown, NEVER)
        logp = torch.log_softmax(logits, dim=-1)
        self.target_p[rows] = logp.gather(1, (targets - 1).unsqueeze(1)).exp().squeeze(1).cpu().numpy()
        self.entropy[rows] = -(logp.exp() * logp).sum(-1).cpu().numpy()
        if self.temperature != 1:
            logp = torch.log_softmax(logits / self.temperature, dim=-1)
        if self.topk:
            top, items = logp.topk(self.topk, dim=-1)
            others = logp.scatter(1, items, -torch.inf)
            self.rest_logp[rows] = torch.logsumexp(others, dim=-1).cpu().numpy()
            self.items[rows] = items.cpu().numpy()
            logp = top
        self.logp[rows] = logp.cpu().numpy()

    def read(self, rows, device):
        """The :class:`TeacherBatch` of some training rows ``[n]``."""
        rows = rows.cpu().numpy()

        def part(array):
            return torch.from_numpy(np.asarray(array[rows])).to(device)

        return TeacherBatch(
            part(self.logp),
            part(self.items).long() if self.topk else None,
            part(self.rest_logp) if self.topk else None,
            part(self.target_p),
            part(self.entropy),
            self.unknown,
        )

    @torch.no_grad()
    def fill(self, scorer, window_loader, dataset, batch_size, label, show_progress=False):
        """Run the teacher once over all training rows, in evaluation mode.

        Args:
            scorer: the teacher's scorer.
            window_loader: an unshuffled ``WindowLoader``, for a teacher that scores windows.
            dataset: the training dataset, for a teacher that scores rows.
            batch_size (int): rows in a batch.
            label (str): what the progress bar says.
        """
        model = scorer.model
        model.eval()
        batches = window_loader if scorer.windows else RowBatches(dataset, batch_size)
        for interaction in tqdm(batches, desc=label, ncols=100, disable=not show_progress):
            interaction = interaction.to(model.device)
            targets, rows = samples_of(scorer, interaction)
            outputs, *items = scorer.factors(interaction)
            for part in chunked_scores.parts(len(rows), self.n_items):
                self.write(rows[part], chunked_scores.product(outputs[part], *items), targets[part])


class RowBatches:
    """The rows of a dataset in order, in batches."""

    def __init__(self, dataset, batch_size):
        self.dataset, self.batch_size = dataset, batch_size

    def __len__(self):
        return -(-len(self.dataset) // self.batch_size)

    def __iter__(self):
        for start in range(0, len(self.dataset), self.batch_size):
            yield self.dataset[np.arange(start, min(start + self.batch_size, len(self.dataset)))]
