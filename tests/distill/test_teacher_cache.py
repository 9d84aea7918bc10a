"""The cache of the teacher's distributions against a softmax in probability space."""

import math
import os
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from recbole_llmd.data.windows import SAMPLE, TARGETS
from recbole_llmd.distill import losses
from recbole_llmd.distill.teacher_cache import TeacherCache, resolve_topk
from recbole_llmd.distill.training_path import SampleBatches, SamplePath, WindowPath
from recbole_llmd.errors import SettingsError

SAMPLES, ITEMS = 23, 18  # items with the padding item
CASES = [(0, 1.0), (0, 2.5), (12, 1.0), (12, 0.5)]  # topk, temperature


def scores(seed=0):
    """Scores of all items, the padding item far ahead: counting it would show everywhere."""
    logits = 2 * torch.randn(SAMPLES, ITEMS, generator=torch.Generator().manual_seed(seed))
    logits[:, 0] = 9.0
    return logits


def targets_of(seed=1):
    return torch.randint(1, ITEMS, (SAMPLES,), generator=torch.Generator().manual_seed(seed))


def probabilities(logits, temperature=1.0):
    """Of the items alone, by item id (the padding item has none)."""
    out = []
    for _, *row in logits.double().tolist():
        powers = [math.exp(z / temperature) for z in row]
        out.append({item: power / sum(powers) for item, power in enumerate(powers, start=1)})
    return out


def filled(tmp_path, topk, temperature, logits, targets):
    """A cache written in random order, in batches of odd sizes."""
    cache = TeacherCache(SAMPLES, ITEMS, temperature, topk, str(tmp_path))
    order = torch.randperm(SAMPLES, generator=torch.Generator().manual_seed(2))
    for numbers in order.split(5):
        cache.write(numbers, logits[numbers], targets[numbers])
    return cache


@pytest.mark.parametrize("topk, temperature", CASES)
def test_what_was_written_is_read(tmp_path, topk, temperature):
    logits, targets = scores(), targets_of()
    cache = filled(tmp_path, topk, temperature, logits, targets)
    numbers = torch.tensor([22, 0, 7, 7, 13, *range(1, 22)])
    batch = cache.read(numbers, torch.device("cpu"))
    assert len(batch.logp) == len(numbers)
    plain, tempered = probabilities(logits), probabilities(logits, temperature)
    for i, number in enumerate(numbers.tolist()):
        p, p_tau = plain[number], tempered[number]
        assert batch.target_p[i].item() == pytest.approx(p[int(targets[number])], rel=1e-5)
        better = [item for item in plain[number] if plain[number][item] > p[int(targets[number])]]
        assert batch.target_rank[i].item() == len(better)
        assert batch.entropy[i].item() == pytest.approx(-sum(v * math.log(v) for v in p.values()), rel=1e-5)
        if topk:
            best = sorted(p_tau, key=p_tau.get, reverse=True)[:topk]
            assert batch.items[i].tolist() == [item - 1 for item in best]
            rest = sum(v for item, v in p_tau.items() if item not in best)
            assert batch.rest_logp[i].item() == pytest.approx(math.log(rest), rel=1e-5, abs=1e-5)
        else:
            best = sorted(p_tau)
        assert batch.logp[i].exp().tolist() == pytest.approx([p_tau[item] for item in best], rel=1e-5)
    if not topk:
        assert batch.items is None and batch.rest_logp is None


@pytest.mark.parametrize("topk", [0, 12])
def test_a_sample_written_twice_keeps_the_last(tmp_path, topk):
    cache = filled(tmp_path, topk, 1.0, scores(0), targets_of(1))
    cache.write(torch.tensor([4]), scores(50)[4:5], targets_of(51)[4:5])
    other = filled(tmp_path, topk, 1.0, scores(50), targets_of(51))
    for number, source in ((4, other), (5, filled(tmp_path, topk, 1.0, scores(0), targets_of(1)))):
        got, expected = (c.read(torch.tensor([number]), "cpu") for c in (cache, source))
        for name in ("logp", "items", "rest_logp", "target_p", "entropy", "target_rank"):
            assert getattr(got, name) is getattr(expected, name) is None or torch.equal(
                getattr(got, name), getattr(expected, name)
            )


def test_half_precision_scores_are_cached_in_full(tmp_path):
    """A teacher may score in bfloat16; its softmax is taken in float32."""
    logits, targets = scores().bfloat16(), targets_of()
    batch = filled(tmp_path, 0, 1.0, logits, targets).read(torch.arange(SAMPLES), "cpu")
    assert batch.logp.dtype == torch.float32
    expected = [list(p.values()) for p in probabilities(logits)]
    np.testing.assert_allclose(batch.logp.exp(), expected, rtol=1e-5)


@pytest.mark.parametrize("topk, temperature", CASES)
def test_divergence_is_that_of_the_losses(tmp_path, topk, temperature):
    logits, student = scores(), scores(9)[:, 1:]
    batch = filled(tmp_path, topk, temperature, logits, targets_of()).read(torch.arange(SAMPLES), "cpu")
    logp = torch.log_softmax(logits[:, 1:] / temperature, dim=-1)
    if topk:
        top, items = logp.topk(topk)
        rest = (1 - top.double().exp().sum(-1)).log().float()
        expected = losses.kl_divergence_topk(items, top, rest, student, temperature)
    else:
        expected = losses.kl_divergence(logp, student, temperature)
    torch.testing.assert_close(batch.divergence(student, temperature), expected, rtol=1e-4, atol=1e-5)
    assert expected.min() > 0.1  # no test of zeros


@pytest.mark.parametrize("topk, temperature", CASES)
@pytest.mark.parametrize("weighting", losses.WEIGHTINGS)
def test_weights_are_those_of_the_losses(tmp_path, weighting, topk, temperature):
    """Weights are taken at temperature 1 whatever the cached temperature is."""
    logits, targets, student = scores(), targets_of(), scores(9)[:, 1:]
    batch = filled(tmp_path, topk, temperature, logits, targets).read(torch.arange(SAMPLES), "cpu")
    p = torch.softmax(logits[:, 1:], dim=-1)
    expected = losses.sample_weights(
        weighting,
        student,
        targets - 1,
        p[torch.arange(SAMPLES), targets - 1],
        -(p * p.log()).sum(-1),
        p.topk(10).indices,
        losses.target_ranks(p, targets - 1),
    )
    torch.testing.assert_close(batch.weights(weighting, student, targets - 1), expected, rtol=1e-4, atol=1e-5)


def test_rank_weights_of_a_catalogue_smaller_than_the_lists(tmp_path):
    """Six items: lists of six are compared, which always hold the same items."""
    cache = TeacherCache(2, 7, 1.0, 0, str(tmp_path))
    cache.write(torch.arange(2), scores()[:2, :7], torch.tensor([1, 2]))
    batch = cache.read(torch.arange(2), "cpu")
    assert batch.weights("rank", scores(3)[:2, 1:7], torch.tensor([0, 1])).tolist() == [1.0, 1.0]


@pytest.mark.parametrize("topk", [0, 12])
def test_the_folder_stays_empty(tmp_path, topk):
    """The file has no name even while it is in use, so that a killed process leaves nothing behind."""
    cache = filled(tmp_path, topk, 1.0, scores(), targets_of())
    assert os.listdir(tmp_path) == []
    assert isinstance(cache.logp, np.memmap)
    expected = topk or ITEMS - 1
    assert cache.logp.shape == (SAMPLES, expected)


@pytest.mark.parametrize(
    "setting, n_items, expected",
    [
        ("auto", 51, 0),
        ("auto", 5000, 0),
        ("auto", 5001, 256),
        ("auto", 100_000, 256),
        (0, 51, 0),
        (0, 100_000, 0),
        (10, 51, 10),
        (49, 51, 49),
        (50, 51, 0),
        (51, 51, 0),
        (1000, 51, 0),
        (1000, 100_000, 1000),
    ],
)
def test_resolve_topk(setting, n_items, expected):
    """All 50 real items of 51 are the whole catalogue: nothing is merged."""
    assert resolve_topk(setting, n_items) == expected


@pytest.mark.parametrize("setting", [1, 9])
def test_resolve_topk_refuses_lists_too_short_for_the_weights(setting):
    with pytest.raises(SettingsError, match=rf"distill_topk = {setting}: must be 0 \(all items\) or at least 10"):
        resolve_topk(setting, 1000)


class Scorer:
    """A teacher whose scores are a table by target, so that a sample's cached values tell which one was asked."""

    def __init__(self, table):
        self.table = table
        self.model = torch.nn.Linear(1, 1)
        self.model.POS_ITEM_ID, self.model.device = "item_id", torch.device("cpu")
        self.modes = []

    def sample_logits(self, batch):
        self.modes.append((self.model.training, torch.is_grad_enabled()))
        return self.table[batch["item_id"]]

    def window_factors(self, batch):
        return self.sample_logits({"item_id": batch[TARGETS][batch[SAMPLE] >= 0]}), None


class Batch(dict):
    def to(self, device):
        return self


@pytest.mark.parametrize("windows", [True, False])
def test_fill_runs_the_teacher_once_over_all_samples(tmp_path, windows):
    table = torch.randn(ITEMS, ITEMS, generator=torch.Generator().manual_seed(3))
    targets = targets_of()
    order = [*torch.randperm(SAMPLES - 1, generator=torch.Generator().manual_seed(4)).tolist(), SAMPLES - 1]
    loader = [
        Batch(
            {
                SAMPLE: torch.tensor([[-1, *order[i : i + 3]]]),
                TARGETS: torch.tensor([[0, *targets[order[i : i + 3]].tolist()]]),
            }
        )
        for i in range(0, SAMPLES, 3)
    ]

    class Dataset:
        def __len__(self):
            return SAMPLES

        def __getitem__(self, index):
            return Batch({SAMPLE: torch.as_tensor(index), "item_id": targets[index]})

    scorer = Scorer(table)
    scorer.model.train()
    cache = TeacherCache(SAMPLES, ITEMS, 1.0, 0, str(tmp_path))
    if windows:
        path = WindowPath(scorer, SimpleNamespace(unshuffled=lambda: loader))
    else:
        path = SamplePath(scorer, SimpleNamespace(dataset=Dataset()), 5)
    cache.fill(path, "teacher")
    batch = cache.read(torch.arange(SAMPLES), "cpu")
    torch.testing.assert_close(batch.logp, torch.log_softmax(table[targets, 1:], dim=-1))
    assert scorer.modes == [(False, False)] * (8 if windows else 5)


def test_sample_batches_are_the_samples_in_order():
    class Dataset:
        def __len__(self):
            return 7

        def __getitem__(self, index):
            return list(index)

    dataset = Dataset()
    batches = SampleBatches(dataset, 3)
    assert len(batches) == 3
    assert list(batches) == [[0, 1, 2], [3, 4, 5], [6]]


@pytest.mark.parametrize("topk, temperature", CASES)
def test_divergence_leaves_items_known_by_text_alone_out(tmp_path, topk, temperature):
    """It is the divergence of a catalogue without them, and pulls the student's scores of them nowhere."""
    text_only_items = torch.zeros(ITEMS, dtype=torch.bool)
    text_only_items[[2, 11, 17]] = True
    kept = (~text_only_items).nonzero().squeeze(1)
    teacher, targets = scores(), kept[1:][torch.arange(SAMPLES) % (len(kept) - 1)]
    student, numbers = scores(seed=3)[:, 1:].requires_grad_(), torch.arange(SAMPLES)
    caches = [TeacherCache(SAMPLES, ITEMS, temperature, topk, str(tmp_path), text_only_items)]
    caches.append(TeacherCache(SAMPLES, len(kept), temperature, topk, str(tmp_path)))
    caches[0].write(numbers, teacher, targets)
    caches[1].write(numbers, teacher[:, kept], torch.searchsorted(kept, targets))
    batches = [cache.read(numbers, torch.device("cpu")) for cache in caches]
    divergence = batches[0].at(slice(0, SAMPLES)).divergence(student, temperature)
    torch.testing.assert_close(divergence, batches[1].divergence(student[:, kept[1:] - 1], temperature))
    torch.testing.assert_close(batches[0].target_p, batches[1].target_p)
    torch.testing.assert_close(batches[0].entropy, batches[1].entropy)
    assert torch.equal(batches[0].target_rank, batches[1].target_rank)
    ranked = batches[0].weights("target_rank", student, targets - 1)
    among_kept = torch.searchsorted(kept, targets) - 1
    assert torch.equal(ranked, batches[1].weights("target_rank", student[:, kept[1:] - 1], among_kept))
    (gradient,) = torch.autograd.grad(divergence.sum(), student)
    assert not gradient[:, text_only_items[1:]].any() and gradient[:, ~text_only_items[1:]].abs().max() > 0.1
