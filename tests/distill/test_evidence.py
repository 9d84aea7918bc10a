"""Closed-form evidence against the equation, item by item; its weights against the likelihood they maximise."""

import numpy as np
import pytest
import scipy.sparse as sp
import torch

from recbole_llmd.data.transitions import following, history_products, linear_model, transition_counts
from recbole_llmd.distill import evidence as module
from recbole_llmd.distill.evidence import USUAL, Evidence, PooledEvidence, Weights, fit_weights, some_of
from tests.data.test_transitions import N_ITEMS, samples_of

WEIGHTS = Weights((0.7, 1.3, 2.0, 0.4, 0.2), floor=0.05, sharpness=1.7)
HISTORIES, LENGTHS = np.array([[3, 7, 3, 0], [5, 0, 0, 0]]), np.array([3, 1])


@pytest.fixture(scope="module")
def samples():
    generator = np.random.default_rng(5)
    steps = generator.integers(1, 4, size=(60, 6))  # items follow each other at short steps, in a circle
    return samples_of([(1 + (walk.cumsum() + first) % (N_ITEMS - 1)).tolist() for first, walk in enumerate(steps)])


@pytest.fixture(scope="module")
def popularity(samples):
    return np.bincount(samples.targets, minlength=N_ITEMS)


@pytest.fixture(scope="module")
def texts():
    return sp.random(N_ITEMS, 6, density=0.5, random_state=1, format="csr", dtype=np.float32)


def naive_features(samples, popularity, texts):
    counts = transition_counts(samples, lambda distance: 0.8 ** (distance - 1), N_ITEMS).toarray()
    linear = linear_model(history_products(samples, 0.8, N_ITEMS), following(samples, 0.8, N_ITEMS), 100.0)
    likeness = (texts @ texts.T).toarray()
    features = np.zeros((5, len(HISTORIES), N_ITEMS))
    for row, (history, length) in enumerate(zip(HISTORIES, LENGTHS)):
        for back, i in enumerate(reversed(history[:length])):
            for j in range(N_ITEMS):
                scale = (1 + popularity[i]) ** 0.5 * (1 + popularity[j]) ** 0.25
                features[0, row, j] += 0.6**back * (counts[i, j] + 0.5 * counts[j, i]) / scale
                features[1, row, j] += 0.3**back * counts[i, j] / scale
                features[2, row, j] += 0.6**back * linear[i, j]
                features[3, row, j] += 0.6**back * likeness[i, j]
    features[4] = np.log1p(popularity) / np.log1p(popularity).max()
    return features


def naive_scores(features, weights):
    pooled = sum(w * feature for w, feature in zip(weights.kinds, features)) + weights.floor
    return weights.sharpness * np.log(pooled)


@pytest.mark.parametrize("dense", [True, False])
@pytest.mark.parametrize("with_texts", [True, False])
def test_scores_are_the_logarithm_of_the_weighted_sum(samples, popularity, texts, monkeypatch, dense, with_texts):
    expected = naive_features(samples, popularity, texts)
    if not dense:
        monkeypatch.setattr(module, "LINEAR_UP_TO", 5)
        expected[2] = 0
    if not with_texts:
        expected[3] = 0
    evidence = Evidence.of(samples, popularity, texts if with_texts else None)
    for got, naive in zip(evidence.features(HISTORIES, LENGTHS), expected):
        np.testing.assert_allclose(got.numpy(), naive, rtol=1e-4, atol=1e-6)
    pooled = PooledEvidence(evidence, WEIGHTS)
    np.testing.assert_allclose(pooled.scores(HISTORIES, LENGTHS), naive_scores(expected, WEIGHTS), rtol=1e-4, atol=1e-5)


def test_neighbours_are_the_items_of_most_evidence_after_one_item(samples, popularity, texts):
    pooled = PooledEvidence(Evidence.of(samples, popularity, texts), WEIGHTS)
    items, values = pooled.neighbours(3)
    for item in range(1, N_ITEMS):
        scores = pooled.scores(np.array([[item]]), np.array([1]))[0].numpy()
        others = sorted((j for j in range(1, N_ITEMS) if j != item), key=lambda j: -scores[j])
        assert items[item].tolist() == others[:3]
        np.testing.assert_allclose(values[item], np.exp(scores[others[:3]] / WEIGHTS.sharpness), rtol=1e-4)


def _loss(weights, evidence, samples, of_model=None):
    features = [feature.numpy() for feature in evidence.features(samples.items, samples.lengths)]
    scores = torch.from_numpy(naive_scores(features, weights))
    if of_model is not None:
        scores = scores + weights.model * of_model
    return torch.nn.functional.cross_entropy(scores[:, 1:], torch.from_numpy(samples.targets) - 1).item()


def test_the_weights_are_likelier_than_others(samples, popularity, texts):
    known, new = samples[slice(0, 200)], samples[slice(200, None)]
    evidence = Evidence.of(known, popularity, texts)
    weights = fit_weights(evidence, new)
    best = _loss(weights, evidence, new)
    assert best < _loss(USUAL, evidence, new) - 0.02
    for factor in (0.3, 3.0):
        other = Weights(weights.kinds, weights.floor, weights.sharpness * factor)
        assert _loss(other, evidence, new) > best


def test_kinds_that_are_not_there_weigh_nothing(samples, popularity):
    weights = fit_weights(Evidence.of(samples, popularity, None, linear=False), samples)
    assert weights.kinds[2] == weights.kinds[3] == weights.model == 0
    assert min(weights.kinds[:2]) > 0


def test_a_model_counts_for_what_it_knows(samples, popularity, texts):
    evidence = Evidence.of(samples, popularity, texts)
    noise = torch.log_softmax(torch.randn(len(samples), N_ITEMS, generator=torch.Generator().manual_seed(1)), dim=-1)
    knows = noise.clone()
    knows[torch.arange(len(samples)), torch.from_numpy(samples.targets)] += 3
    of_noise, of_knowledge = (fit_weights(evidence, samples, values).model for values in (noise, knows))
    assert of_noise < 0.15 and of_knowledge > 0.8


def test_some_samples_are_drawn_by_the_seed(samples):
    first, again, other = (some_of(samples, 7, seed).targets.tolist() for seed in (1, 1, 2))
    assert first == again != other and len(first) == 7
    assert len(some_of(samples, 10_000, 1)) == len(samples)
