r"""Evidence of the next item in closed form: transitions, a linear model, likeness of texts, popularity; pooled.

What is known of item :math:`j` after the history :math:`i_1, \dots, i_t` is a sum of five kinds of evidence, none
scaled by user, so that much evidence of one kind outweighs little of another and the unknown backs off to the rest:

.. math::
    e_j = \sum_{s \le t} \rho^{t-s} \left(w_1 \tilde c^{\leftrightarrow}_{i_s j} + w_3 B_{i_s j}
        + w_4 x_{i_s}^\top x_j\right) + \sum_{s \le t} \rho_2^{t-s} w_2 \tilde c_{i_s j}
        + w_5 \frac{\log(1 + f_j)}{\max_k \log(1 + f_k)} + w_0, \qquad p_j \propto e_j^\gamma

:math:`c` are transition counts with decay, divided by powers of the popularities :math:`f` (:math:`\leftrightarrow`: in
both directions), :math:`x` TF-IDF vectors, and :math:`B = (P^\top P + \lambda I)^{-1} P^\top F`, negative entries cut
off, the regression of the items still to come, decayed, on those before, decayed (the linear transition model of Choi
et al., "Session-aware linear item-item models for session-based recommendation", WWW 2021, arXiv 2103.16104).
The weights and :math:`\gamma` are those of the greatest likelihood of validation samples, with a weak normal prior.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import cross_entropy

from recbole_llmd.data.transitions import (
    Samples,
    drawn_numbers,
    following,
    history_products,
    linear_model,
    transition_counts,
    weighted_histories,
)

KINDS = ("both ways", "next", "linear", "text", "popularity")
DECAY = 0.8  # of transitions and of the linear model, per item
RECENCY, RECENCY_OF_NEXT = 0.6, 0.3  # of a history's items
BACKWARD = 0.5  # what a transition counts in the other direction
NORMALISATION = 0.5  # exponent of the popularity of the item before; half of it for the one after
RIDGE = 100.0
PRIOR_SPREAD = 2.0  # of the logarithms of weights around those of USUAL
ROWS_AT_ONCE = 1024  # of a matrix of items by items
LINEAR_UP_TO = 20_000  # items: the linear model is a dense matrix of them


@dataclass(frozen=True, eq=False)
class Counts:
    r"""What is counted of training samples: exact sums, from which those of some samples can be taken off.

    Attributes:
        transitions: the transition counts :math:`c`, CSR ``[n_items, n_items]``.
        products, following: :math:`P^\top P` and :math:`P^\top F` of the linear model, CSR ``[n_items, n_items]``;
            None without it.

    >>> samples = Samples(np.array([[1, 0], [1, 2]]), np.array([1, 2]), np.array([2, 3]), np.array([1, 1]))
    >>> left = Counts.of(samples, 4, linear=True).exchanged(samples[:1], samples[:0])
    >>> left.transitions.nnz, left.products.nnz, left.following.nnz
    (2, 4, 2)
    """

    transitions: sp.csr_matrix
    products: sp.csr_matrix | None
    following: sp.csr_matrix | None

    @classmethod
    def of(cls, samples: Samples, n_items: int, linear: bool) -> Counts:
        """Those of training samples, in which every pair of a sequence is once (item of the history, target).

        Args:
            samples: the training samples.
            n_items: the number of items, with the padding.
            linear: whether a linear transition model is among the evidence, up to :data:`LINEAR_UP_TO` items.
        """
        transitions = transition_counts(samples, lambda distance: DECAY ** (distance - 1), n_items)
        if not linear or n_items > LINEAR_UP_TO:
            return cls(transitions, None, None)
        return cls(transitions, history_products(samples, DECAY, n_items), following(samples, DECAY, n_items))

    def exchanged(self, old: Samples, new: Samples) -> Counts:
        """Those of the samples with ``new`` ones in place of some that they had, ``old``."""
        mine, n_items = vars(self), self.transitions.shape[0]
        less, more = (vars(Counts.of(samples, n_items, self.products is not None)) for samples in (old, new))
        return Counts(**{key: None if mine[key] is None else _left(mine[key] - less[key] + more[key]) for key in mine})


def _left(counts: sp.csr_matrix) -> sp.csr_matrix:
    counts.eliminate_zeros()
    return counts


class Evidence:
    """The evidence of a set of training samples.

    Args:
        counts: what is counted of them.
        popularity: how often each item was chosen, ``[n_items]``.
        texts: TF-IDF vectors of the items, CSR ``[n_items, n_words]``, or None.

    >>> samples = Samples(np.array([[1, 0], [1, 2]]), np.array([1, 2]), np.array([2, 3]), np.array([1, 1]))
    >>> evidence = Evidence.of(samples, popularity=np.array([0, 1, 1, 1]), texts=None)
    >>> both_ways, following, linear, text, popularity = evidence.features(np.array([[2]]), np.array([1]))
    >>> [round(value, 3) for value in following[0].tolist()]  # after 2 came 3, divided by popularities
    [0.0, 0.0, 0.0, 0.595]
    """

    def __init__(
        self,
        counts: Counts,
        popularity: NDArray[np.floating] | NDArray[np.int64],
        texts: sp.csr_matrix | None,
    ) -> None:
        self.n_items, self.texts, transitions = len(popularity), texts, counts.transitions
        before = sp.diags((1.0 + popularity) ** -NORMALISATION)
        after = sp.diags((1.0 + popularity) ** (-NORMALISATION / 2))
        self.both_ways = (before @ (transitions + BACKWARD * transitions.T) @ after).tocsr().astype(np.float32)
        self.next = (before @ transitions @ after).tocsr().astype(np.float32)
        dense = counts.products is not None
        self.linear = linear_model(counts.products, counts.following, RIDGE) if dense else None
        logs = np.log1p(popularity, dtype=np.float32)
        self.popularity = torch.from_numpy(logs / max(logs.max(), 1e-9))

    @classmethod
    def of(
        cls,
        samples: Samples,
        popularity: NDArray[np.floating] | NDArray[np.int64],
        texts: sp.csr_matrix | None,
        linear: bool = True,
    ) -> Evidence:
        """That of training samples; ``linear`` as for :meth:`Counts.of`."""
        return cls(Counts.of(samples, len(popularity), linear), popularity, texts)

    def features(self, items: NDArray[np.int64], lengths: NDArray[np.int64]) -> tuple[Tensor, ...]:
        """Each of the :data:`KINDS` of evidence after histories ``[n, length]``, ``[n, n_items]``, before weighting."""
        history = weighted_histories(items, lengths, RECENCY, self.n_items)
        recent = weighted_histories(items, lengths, RECENCY_OF_NEXT, self.n_items)
        nothing = torch.zeros(1, 1).expand(len(items), self.n_items)
        return (
            torch.from_numpy((history @ self.both_ways).toarray()),
            torch.from_numpy((recent @ self.next).toarray()),
            nothing if self.linear is None else torch.from_numpy(history @ self.linear),
            nothing if self.texts is None else torch.from_numpy(((history @ self.texts) @ self.texts.T).toarray()),
            self.popularity.expand(len(items), -1),
        )


@dataclass(frozen=True)
class Weights:
    r"""The weights of the pooled evidence.

    Attributes:
        kinds: :math:`w_1, \dots, w_5` in the order of :data:`KINDS`.
        floor: :math:`w_0`, what an item has without any evidence.
        sharpness: :math:`\gamma`.
        model: the exponent of a model's probabilities, which are multiplied with the evidence; 0 without a model.

    >>> Weights((1.0, 1.0, 1.0, 1.0, 0.1), floor=0.1, sharpness=2.0).model
    0.0
    """

    kinds: tuple[float, ...]
    floor: float
    sharpness: float
    model: float = 0.0


# Where there is no validation data: about what it gives on several datasets.
USUAL = Weights((0.5, 1.0, 5.0, 0.5, 0.2), floor=0.1, sharpness=2.0, model=0.3)


def pooled(features: tuple[Tensor, ...], logs: Tensor) -> Tensor:
    """The log-evidence of all items from :meth:`Evidence.features`, not normalised, ``[n, n_items]``.

    Args:
        features: the evidence.
        logs: the logarithms of the five weights, of the floor, and the sharpness itself, ``[7]``.
    """
    *kinds, floor, sharpness = logs[:7]
    evidence = sum((kind.exp() * feature for kind, feature in zip(kinds, features)), floor.exp())
    logged: Tensor = sharpness * torch.as_tensor(evidence).log()
    return logged


class PooledEvidence:
    """Evidence with its weights: a closed-form sequential recommender of the whole catalogue.

    Args:
        evidence: of the training samples.
        weights: of its kinds.

    Attributes:
        matrix: what one item of a history says of the others, ``[n_items, n_items]``, dense up to
            :data:`LINEAR_UP_TO` items; without the evidence of what comes next, which decays faster.

    >>> samples = Samples(np.array([[1, 0], [1, 2]]), np.array([1, 2]), np.array([2, 3]), np.array([1, 1]))
    >>> evidence = Evidence.of(samples, popularity=np.array([0, 1, 1, 1]), texts=None)
    >>> weights = Weights((1.0, 1.0, 1.0, 0.0, 0.1), floor=0.1, sharpness=2.0)
    >>> PooledEvidence(evidence, weights).scores(np.array([[1, 2]]), np.array([2])).argmax().item()
    3
    """

    def __init__(self, evidence: Evidence, weights: Weights) -> None:
        self.weights, self.n_items = weights, evidence.n_items
        both_ways, following, linear, text, popularity = weights.kinds
        self.next = (following * evidence.next).tocsr().astype(np.float32)
        self.rest = popularity * evidence.popularity + weights.floor
        self.texts = None if evidence.texts is None else (evidence.texts * np.sqrt(text)).tocsr().astype(np.float32)
        self.matrix: NDArray[np.float32] | sp.csr_matrix = (both_ways * evidence.both_ways).tocsr()
        if evidence.linear is not None:
            self.matrix = linear * evidence.linear
            self.matrix += (both_ways * evidence.both_ways).toarray()
            if self.texts is not None:
                for first in range(0, self.n_items, ROWS_AT_ONCE):
                    rows = slice(first, first + ROWS_AT_ONCE)
                    self.matrix[rows] += (self.texts[rows] @ self.texts.T).toarray()
                self.texts = None

    def scores(self, items: NDArray[np.int64], lengths: NDArray[np.int64]) -> Tensor:
        """The log-evidence of all items after histories ``[n, length]``, not normalised, ``[n, n_items]``."""
        history = weighted_histories(items, lengths, RECENCY, self.n_items)
        recent = weighted_histories(items, lengths, RECENCY_OF_NEXT, self.n_items)
        evidence = torch.from_numpy((recent @ self.next).toarray()) + self.rest
        found = history @ self.matrix
        evidence += torch.from_numpy(found.toarray() if sp.issparse(found) else found)
        if self.texts is not None:
            evidence += torch.from_numpy(((history @ self.texts) @ self.texts.T).toarray())
        return evidence.log_().mul_(self.weights.sharpness)

    def neighbours(self, k: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Each item's ``k`` items of most evidence and that evidence, both ``[n_items, k]``, no item its own."""
        found, values = [], []
        for first in range(0, self.n_items, ROWS_AT_ONCE):
            items = np.arange(first, min(first + ROWS_AT_ONCE, self.n_items))
            evidence = self.scores(items[:, None], np.ones(len(items), np.int64)) / self.weights.sharpness
            evidence[:, 0] = -torch.inf
            evidence[torch.arange(len(items)), torch.from_numpy(items)] = -torch.inf
            best = evidence.topk(min(k, self.n_items - 2), dim=1)
            found.append(best.indices.numpy())
            values.append(best.values.exp().numpy())
        return np.concatenate(found), np.concatenate(values)


def some_of(samples: Samples, most: int, seed: int) -> Samples:
    """At most ``most`` of the samples, drawn by ``seed``."""
    return samples[drawn_numbers(len(samples), most, seed)]


def fit_weights(evidence: Evidence, samples: Samples, log_probabilities: Tensor | None = None) -> Weights:
    """The likeliest weights after ``samples`` that the evidence was not made of; :data:`USUAL` where there are none.

    Args:
        evidence: of the training samples.
        samples: validation samples.
        log_probabilities: those of a model for the same samples, ``[n_samples, n_items]``, to be pooled with the
            evidence; or None.
    """
    if not len(samples):
        return USUAL
    features, targets = evidence.features(samples.items, samples.lengths), torch.from_numpy(samples.targets)
    usual = [*np.log(USUAL.kinds), math.log(USUAL.floor), USUAL.sharpness, USUAL.model]
    centre = torch.tensor(usual if log_probabilities is not None else usual[:7], dtype=torch.float32)
    logs = centre.clone().requires_grad_()

    def negative_log_likelihood() -> Tensor:
        scores = pooled(features, logs)
        if log_probabilities is not None:
            scores = scores + logs[7] * log_probabilities
        prior = (logs - centre).square().sum() / (2 * PRIOR_SPREAD**2 * len(samples))
        return prior + cross_entropy(scores[:, 1:], targets - 1)  # the padding item is no item

    _minimise(logs, negative_log_likelihood)
    values = logs.detach()
    present = (True, True, evidence.linear is not None, evidence.texts is not None, True)
    kinds = tuple(w if there else 0.0 for w, there in zip(values[:5].exp().tolist(), present))
    model = 0.0 if log_probabilities is None else max(0.0, values[7].item())
    return Weights(kinds, values[5].exp().item(), values[6].item(), model)


def _minimise(parameters: Tensor, loss: Callable[[], Tensor], iterations: int = 40) -> None:
    """Move ``parameters`` in place to a minimum of the smooth function ``loss()`` of them (L-BFGS)."""
    optimizer = torch.optim.LBFGS([parameters], max_iter=iterations, line_search_fn="strong_wolfe")

    def closure() -> float:
        optimizer.zero_grad()
        value = loss()
        torch.autograd.backward(value)
        return value.item()

    optimizer.step(closure)  # type: ignore[no-untyped-call]
