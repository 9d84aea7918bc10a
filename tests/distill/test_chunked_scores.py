"""Losses over chunks of samples against the same losses over all scores at once, gradients included."""

from types import SimpleNamespace

import pytest
import torch
from torch.nn.functional import cross_entropy

from recbole_llmd.data.windows import SAMPLE, TARGETS
from recbole_llmd.distill import chunked_scores, losses
from recbole_llmd.distill.teacher_cache import TeacherCache
from recbole_llmd.distill.training_path import WindowPath
from recbole_llmd.trainer.objective import Objective

N, ITEMS, SIZE = 11, 40, 5  # items with the padding item
SAMPLES_PER_CHUNK = 3


def random(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def small_chunks(monkeypatch):
    monkeypatch.setattr(chunked_scores, "UNCHUNKED_BYTES", 0)
    monkeypatch.setattr(chunked_scores, "CHUNK_BYTES", 4 * ITEMS * SAMPLES_PER_CHUNK + 1)


@pytest.fixture
def sides():
    """Outputs and item vectors of a student, and a batch in which every position ends a sample."""
    outputs, items = random(N, SIZE, seed=0).requires_grad_(), random(ITEMS, SIZE, seed=1).requires_grad_()
    targets = torch.randint(1, ITEMS, (N,), generator=torch.Generator().manual_seed(2))
    numbers = torch.randperm(N, generator=torch.Generator().manual_seed(3))
    return outputs, items, {TARGETS: targets[None], SAMPLE: numbers[None]}


@pytest.mark.parametrize("unchunked_bytes", [0, 2**25], ids=["in chunks", "at once"])
def test_fixed_coordinates_count_in_the_scores_and_get_no_gradient(small_chunks, monkeypatch, sides, unchunked_bytes):
    """The same loss and gradients as with item vectors of all coordinates."""
    monkeypatch.setattr(chunked_scores, "UNCHUNKED_BYTES", unchunked_bytes)
    all_outputs, items, batch = sides
    trained, fixed = items[:, :3].detach().requires_grad_(), items[:, 3:].detach()
    loss = Objective(path_of(all_outputs, trained, fixed))(batch)
    of_outputs, of_trained = torch.autograd.grad(loss, (all_outputs, trained))
    expected = cross_entropy(all_outputs @ items.t(), batch[TARGETS][0])
    of_all, of_items = torch.autograd.grad(expected, (all_outputs, items))
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(of_outputs, of_all)
    torch.testing.assert_close(of_trained, of_items[:, :3])


def path_of(*factors, windows=None):
    """A training path over windows of a model with these scores."""
    model = SimpleNamespace(eval=lambda: None, device="cpu")
    return WindowPath(SimpleNamespace(model=model, window_factors=lambda batch: factors), windows)


def teacher_cache(folder, topk, temperature=2.0):
    cache = TeacherCache(N, ITEMS, temperature, topk, str(folder))
    cache.write(torch.arange(N), random(N, ITEMS, seed=4), torch.arange(1, N + 1))
    return cache


@pytest.mark.parametrize("n, unchunked_bytes, expected", [(6, 240, [(0, 6)]), (7, 240, [(0, 3), (3, 6), (6, 7)])])
def test_chunks_hold_every_sample_once(monkeypatch, n, unchunked_bytes, expected):
    """Ten items are 40 bytes: 240 hold six samples; beyond, chunks of 120 hold three."""
    monkeypatch.setattr(chunked_scores, "UNCHUNKED_BYTES", unchunked_bytes)
    monkeypatch.setattr(chunked_scores, "CHUNK_BYTES", 120)
    assert [(chunk.start, chunk.stop) for chunk in chunked_scores.chunk_slices(n, 10)] == expected


def test_a_sample_larger_than_a_chunk_is_a_chunk():
    assert [(chunk.start, chunk.stop) for chunk in chunked_scores.chunk_slices(2, 2**24)] == [(0, 1), (1, 2)]


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("topk", [0, 12])
@pytest.mark.parametrize("weighting", losses.WEIGHTINGS)
def test_objective_in_chunks_is_that_of_all_scores(tmp_path, small_chunks, sides, weighting, topk, temperature):
    """Cross-entropy, distillation term, and weights of mean 1 over the batch (not over a chunk)."""
    outputs, items, batch = sides
    cache, alpha = teacher_cache(tmp_path, topk, temperature), 0.7
    objective = Objective(path_of(outputs, items), cache, alpha, temperature, weighting)
    both = objective(batch)
    gradients = torch.autograd.grad(sum(both), (outputs, items))

    scores, targets = outputs @ items.t(), batch[TARGETS][0]
    teacher, student = cache.read(batch[SAMPLE][0], "cpu"), scores[:, 1:]
    weights = losses.rescale(teacher.weights(weighting, student, targets - 1))
    own, term = cross_entropy(scores, targets), (weights * teacher.divergence(student, temperature)).mean()
    torch.testing.assert_close(torch.stack(both), torch.stack([own, alpha * term]))
    torch.testing.assert_close(gradients, torch.autograd.grad(own + alpha * term, (outputs, items)))
    torch.testing.assert_close(torch.from_numpy(objective.figures.weights[0]), weights)
    assert weighting == "uniform" or weights.std() > 0.02


@pytest.mark.parametrize("topk", [0, 12, 36])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_a_divergence_that_leaves_items_out_is_that_of_a_catalogue_without_them(
    tmp_path, small_chunks, sides, topk, temperature
):
    """Also where so many items are cached that some of those left out are among them (36 of the 35 that are kept)."""
    outputs, items, batch = sides
    left_out = torch.zeros(ITEMS, dtype=torch.bool)
    left_out[20:24] = True  # no sample's target in the cache; targets of the batch are others or none of the loss
    batch = {**batch, TARGETS: batch[TARGETS].clamp(max=19)}
    cache = TeacherCache(N, ITEMS, temperature, topk, str(tmp_path), left_out)
    cache.write(torch.arange(N), random(N, ITEMS, seed=4), torch.arange(1, N + 1))
    objective = Objective(path_of(outputs, items), cache, 0.7, temperature, "adaptive", text_only_items=left_out)
    both = objective(batch)
    gradients = torch.autograd.grad(sum(both), (outputs, items))

    scores, targets = outputs @ items.t(), batch[TARGETS][0]
    teacher, student = cache.read(batch[SAMPLE][0], "cpu"), scores[:, 1:]
    weights = losses.rescale(teacher.weights("adaptive", student, targets - 1))
    own = cross_entropy(scores.masked_fill(left_out, -torch.inf), targets)
    term = (weights * teacher.divergence(student, temperature)).mean()
    torch.testing.assert_close(torch.stack(both), torch.stack([own, 0.7 * term]))
    torch.testing.assert_close(gradients, torch.autograd.grad(own + 0.7 * term, (outputs, items)))


def test_own_loss_in_chunks_is_that_of_all_scores(small_chunks, sides):
    outputs, items, batch = sides
    loss = Objective(path_of(outputs, items))(batch)
    gradients = torch.autograd.grad(3 * loss, (outputs, items))
    expected = cross_entropy(outputs @ items.t(), batch[TARGETS][0])
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(gradients, torch.autograd.grad(3 * expected, (outputs, items)))


def test_items_known_by_text_alone_are_no_negatives(small_chunks, sides):
    """The own loss is that of a catalogue without them, and no gradient reaches their vectors."""
    outputs, items, batch = sides
    targets = batch[TARGETS][0]
    text_only_items = torch.zeros(ITEMS, dtype=torch.bool)
    text_only_items[[i for i in range(1, ITEMS) if i not in targets.tolist()][:4]] = True
    loss = Objective(path_of(outputs, items), text_only_items=text_only_items)(batch)
    kept = (~text_only_items).nonzero().squeeze(1)
    numbers = torch.searchsorted(kept, targets)
    torch.testing.assert_close(loss, cross_entropy(outputs @ items[kept].t(), numbers))
    (of_items,) = torch.autograd.grad(loss, items)
    assert text_only_items.sum() == 4 and not of_items[text_only_items].any() and of_items[kept].abs().sum(1).min() > 0


def test_no_scores_larger_than_a_chunk(small_chunks, sides):
    outputs, items, _ = sides
    seen = []

    def terms(scores, chunk):
        seen.append((chunk.start, tuple(scores.shape)))
        return (scores.sum(1),)

    (sums,) = chunked_scores.per_sample(terms, outputs, items)
    sums.sum().backward()
    once = [(0, (3, ITEMS)), (3, (3, ITEMS)), (6, (3, ITEMS)), (9, (2, ITEMS))]
    assert seen == once + once  # forward, then backward
    torch.testing.assert_close(outputs.grad, items.detach().sum(0).expand(N, SIZE))


@pytest.mark.parametrize("topk", [0, 12])
def test_teacher_pass_in_chunks_is_that_of_all_scores(tmp_path, small_chunks, sides, topk):
    outputs, items, batch = sides

    class Batch(dict):
        def to(self, device):
            return self

    expected, cache = (TeacherCache(N, ITEMS, 2.0, topk, str(tmp_path)) for _ in range(2))
    targets, numbers = batch[TARGETS][0], batch[SAMPLE][0]
    expected.write(numbers, (outputs @ items.t()).detach(), targets)
    windows = SimpleNamespace(unshuffled=lambda: [Batch(batch)])
    cache.fill(path_of(outputs, items, windows=windows), "teacher")
    for name in ("logp", "items", "rest_logp", "target_p", "entropy"):
        of_chunks, of_all = (getattr(c.read(torch.arange(N), "cpu"), name) for c in (cache, expected))
        assert of_chunks is of_all is None or torch.allclose(of_chunks, of_all, rtol=1e-5, atol=1e-6)
    assert expected.target_p.min() > 0
