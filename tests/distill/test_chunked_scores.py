"""Losses over chunks of samples against the same losses over all scores at once, gradients included."""

from types import SimpleNamespace

import pytest
import torch
from torch.nn.functional import cross_entropy

from recbole_llmd.data.windows import ROW, TARGETS
from recbole_llmd.distill import chunked_scores, losses
from recbole_llmd.distill.teacher_cache import TeacherCache
from recbole_llmd.trainer.objective import Objective

N, ITEMS, SIZE = 11, 40, 5  # items with the padding item
SAMPLES_PER_CHUNK = 3


def random(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def small_chunks(monkeypatch):
    monkeypatch.setattr(chunked_scores, "WHOLE", 0)
    monkeypatch.setattr(chunked_scores, "CHUNK", 4 * ITEMS * SAMPLES_PER_CHUNK + 1)


@pytest.fixture
def sides():
    """Outputs and item vectors of a student, and a batch in which every position ends a row."""
    outputs, items = random(N, SIZE, seed=0).requires_grad_(), random(ITEMS, SIZE, seed=1).requires_grad_()
    targets = torch.randint(1, ITEMS, (N,), generator=torch.Generator().manual_seed(2))
    rows = torch.randperm(N, generator=torch.Generator().manual_seed(3))
    return outputs, items, {TARGETS: targets[None], ROW: rows[None]}


@pytest.mark.parametrize("whole", [0, 2**25], ids=["in chunks", "in one piece"])
def test_fixed_coordinates_count_in_the_scores_and_get_no_gradient(small_chunks, monkeypatch, sides, whole):
    """The same loss and gradients as with item vectors of all coordinates."""
    monkeypatch.setattr(chunked_scores, "WHOLE", whole)
    all_outputs, items, batch = sides
    trained, fixed = items[:, :3].detach().requires_grad_(), items[:, 3:].detach()
    loss = Objective(Scorer(all_outputs, trained, fixed))(batch)
    of_outputs, of_trained = torch.autograd.grad(loss, (all_outputs, trained))
    expected = cross_entropy(all_outputs @ items.t(), batch[TARGETS][0])
    of_all, of_items = torch.autograd.grad(expected, (all_outputs, items))
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(of_outputs, of_all)
    torch.testing.assert_close(of_trained, of_items[:, :3])


class Scorer:
    windows = True

    def __init__(self, *factors):
        self.given = factors
        self.model = SimpleNamespace(eval=lambda: None, device="cpu")

    def factors(self, interaction):
        return self.given


def teacher_cache(folder, topk, temperature=2.0):
    cache = TeacherCache(N, ITEMS, temperature, topk, str(folder))
    cache.write(torch.arange(N), random(N, ITEMS, seed=4), torch.arange(1, N + 1))
    return cache


@pytest.mark.parametrize("n, whole, expected", [(6, 240, [(0, 6)]), (7, 240, [(0, 3), (3, 6), (6, 7)])])
def test_parts_hold_every_sample_once(monkeypatch, n, whole, expected):
    """Ten items are 40 bytes: 240 hold six samples; beyond, chunks of 120 hold three."""
    monkeypatch.setattr(chunked_scores, "WHOLE", whole)
    monkeypatch.setattr(chunked_scores, "CHUNK", 120)
    assert [(part.start, part.stop) for part in chunked_scores.parts(n, 10)] == expected


def test_a_sample_larger_than_a_chunk_is_a_chunk():
    assert [(part.start, part.stop) for part in chunked_scores.parts(2, 2**24)] == [(0, 1), (1, 2)]


@pytest.mark.parametrize("topk", [0, 12])
@pytest.mark.parametrize("weighting", losses.WEIGHTINGS)
def test_objective_in_chunks_is_that_of_all_scores(tmp_path, small_chunks, sides, weighting, topk):
    """Cross-entropy, distillation term, and weights of mean 1 over the batch (not over a chunk)."""
    outputs, items, batch = sides
    cache, alpha, temperature = teacher_cache(tmp_path, topk), 0.7, 2.0
    objective = Objective(Scorer(outputs, items), cache, alpha, temperature, weighting)
    parts = objective(batch)
    gradients = torch.autograd.grad(sum(parts), (outputs, items))

    scores, targets = outputs @ items.t(), batch[TARGETS][0]
    teacher, student = cache.read(batch[ROW][0], "cpu"), scores[:, 1:]
    weights = losses.rescale(teacher.weights(weighting, student, targets - 1))
    own, term = cross_entropy(scores, targets), (weights * teacher.divergence(student, temperature)).mean()
    torch.testing.assert_close(torch.stack(parts), torch.stack([own, alpha * term]))
    torch.testing.assert_close(gradients, torch.autograd.grad(own + alpha * term, (outputs, items)))
    torch.testing.assert_close(torch.from_numpy(objective.figures.weights[0]), weights)
    assert weighting == "uniform" or weights.std() > 0.02


def test_own_loss_in_chunks_is_that_of_all_scores(small_chunks, sides):
    outputs, items, batch = sides
    loss = Objective(Scorer(outputs, items))(batch)
    gradients = torch.autograd.grad(3 * loss, (outputs, items))
    expected = cross_entropy(outputs @ items.t(), batch[TARGETS][0])
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(gradients, torch.autograd.grad(3 * expected, (outputs, items)))


def test_items_left_out_are_no_negatives(small_chunks, sides):
    """The own loss is that of a catalogue without them, and no gradient reaches their vectors."""
    outputs, items, batch = sides
    targets = batch[TARGETS][0]
    left_out = torch.zeros(ITEMS, dtype=torch.bool)
    left_out[[i for i in range(1, ITEMS) if i not in targets.tolist()][:4]] = True
    loss = Objective(Scorer(outputs, items), left_out=left_out)(batch)
    kept = (~left_out).nonzero().squeeze(1)
    numbers = torch.searchsorted(kept, targets)
    torch.testing.assert_close(loss, cross_entropy(outputs @ items[kept].t(), numbers))
    (of_items,) = torch.autograd.grad(loss, items)
    assert left_out.sum() == 4 and not of_items[left_out].any() and of_items[kept].abs().sum(1).min() > 0


def test_no_scores_larger_than_a_chunk(small_chunks, sides):
    outputs, items, _ = sides
    seen = []

    def terms(scores, part):
        seen.append((part.start, tuple(scores.shape)))
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
    targets, rows = batch[TARGETS][0], batch[ROW][0]
    expected.write(rows, (outputs @ items.t()).detach(), targets)
    cache.fill(Scorer(outputs, items), [Batch(batch)], None, 1, "teacher")
    for name in ("logp", "items", "rest_logp", "target_p", "entropy"):
        of_chunks, of_all = (getattr(c.read(torch.arange(N), "cpu"), name) for c in (cache, expected))
        assert of_chunks is of_all is None or torch.allclose(of_chunks, of_all, rtol=1e-5, atol=1e-6)
    assert expected.target_p.min() > 0
