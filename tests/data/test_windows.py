"""Windows cover RecBole's training samples exactly once; batches of windows keep within the batch size."""

import itertools
import math
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from recbole_llmd.data.windows import SAMPLE, TARGETS, WindowLoader, build_windows, number_samples, positions_of

OVERLAPS = (0, 0.3, 0.5, 0.9)
FIELDS = {
    "USER_ID_FIELD": "user_id",
    "ITEM_ID_FIELD": "item_id",
    "LIST_SUFFIX": "_list",
    "ITEM_LIST_LENGTH_FIELD": "item_length",
    "seed": 5,
}


def recbole_samples(sequences, max_len):
    """RecBole's training samples of some users' sequences: (user, history, target)."""
    return [
        (user, sequence[max(0, i - max_len) : i], sequence[i])
        for user, sequence in sequences.items()
        for i in range(1, len(sequence))
    ]


def dataset_of(samples, max_len):
    """A built dataset with these samples, in this order."""
    history = torch.zeros(len(samples), max_len, dtype=torch.long)
    for i, (_, items, _) in enumerate(samples):
        history[i, : len(items)] = torch.tensor(items)
    feat = {
        "user_id": torch.tensor([sample[0] for sample in samples], dtype=torch.long),
        "item_id_list": history,
        "item_length": torch.tensor([len(sample[1]) for sample in samples], dtype=torch.long),
        "item_id": torch.tensor([sample[2] for sample in samples], dtype=torch.long),
    }
    return SimpleNamespace(
        inter_feat=feat,
        uid_field="user_id",
        iid_field="item_id",
        item_id_list_field="item_id_list",
        item_list_length_field="item_length",
    )


def sequences_of(lengths, seed=0, n_items=9):
    """Sequences with repetitions: few items, so that items alone do not tell positions apart."""
    draw = np.random.default_rng(seed)
    return {user: draw.integers(1, n_items, size=n).tolist() for user, n in enumerate(lengths, start=1)}


def samples_of(dataset):
    """The samples back from a dataset, RecBole's or ours, as (user, history, target)."""
    feat = dataset.inter_feat
    columns = zip(
        feat[dataset.uid_field].tolist(),
        feat[dataset.item_id_list_field].tolist(),
        feat[dataset.item_list_length_field].tolist(),
        feat[dataset.iid_field].tolist(),
    )
    return [(user, history[:length], target) for user, history, length, target in columns]


def check(windows, samples, max_len):
    """Every sample stands once, at the end of (a suffix of) its own history; returns (sample, window, history kept)."""
    assert windows.items.shape == windows.samples.shape == windows.targets.shape == (len(windows.lengths), max_len)
    assert len(windows.users) == len(windows.lengths)
    kept = []
    for w in range(len(windows.lengths)):
        length = int(windows.lengths[w])
        assert 1 <= length <= max_len
        assert windows.items[w, :length].all() and not windows.items[w, length:].any()
        assert windows.samples[w, length - 1] >= 0, "a window must end with a position that is trained"
        for position in range(max_len):
            sample = int(windows.samples[w, position])
            if sample == -1:
                assert windows.targets[w, position] == 0
                continue
            user, history, target = samples[sample]
            prefix = windows.items[w, : position + 1].tolist()
            assert prefix == history[len(history) - len(prefix) :]
            assert windows.targets[w, position] == target
            assert windows.users[w] == user
            kept.append((sample, w, len(prefix)))
    assert sorted(sample for sample, _, _ in kept) == list(range(len(samples)))
    return kept


@pytest.mark.parametrize("overlap", OVERLAPS)
def test_users_longer_than_several_windows(overlap):
    max_len = 10
    lengths = [2, 3, 10, 11, 12, 13, 20, 21, 22, 47, 101]
    samples = recbole_samples(sequences_of(lengths), max_len)
    windows = build_windows(dataset_of(samples, max_len), overlap)
    kept = check(windows, samples, max_len)

    stride = {0: 10, 0.3: 7, 0.5: 5, 0.9: 1}[overlap]
    per_user = Counter(windows.users.tolist())
    assert per_user == {u: 1 + max(0, math.ceil((n - 1 - max_len) / stride)) for u, n in enumerate(lengths, start=1)}

    oldest = {user: w for w, user in enumerate(windows.users.tolist())}  # windows are cut from the end
    trained = Counter(w for _, w, _ in kept)
    for sample, w, n_history in kept:
        user, history, _ = samples[sample]
        if w == oldest[user]:
            assert n_history == len(history)
        else:  # a more recent window is full, and trains a stride of positions
            assert windows.lengths[w] == max_len and trained[w] == stride
            assert n_history > max_len - trained[w]
    ends = {user: max(i for i, sample in enumerate(samples) if sample[0] == user) for user in per_user}
    for user, last_sample in ends.items():
        newest = np.flatnonzero(windows.users == user)[0]
        assert windows.samples[newest, windows.lengths[newest] - 1] == last_sample


@pytest.mark.parametrize(
    "max_len, overlap, trained",
    [
        (4, 0.0, [[6, 7, 8, 9], [2, 3, 4, 5], [0, 1, -1, -1]]),
        (4, 0.5, [[-1, -1, 8, 9], [-1, -1, 6, 7], [-1, -1, 4, 5], [0, 1, 2, 3]]),
        (4, 0.9, [*([-1, -1, -1, i] for i in range(9, 3, -1)), [0, 1, 2, 3]]),
    ],
)
def test_windows_by_hand(max_len, overlap, trained):
    """One user of eleven items, ten samples; written out."""
    samples = recbole_samples({3: list(range(1, 12))}, max_len)
    windows = build_windows(dataset_of(samples, max_len), overlap)
    assert windows.samples.tolist() == trained
    assert windows.items.tolist() == [
        [last - 3, last - 2, last - 1, last] if last > 2 else [1, 2, 0, 0] for last in (max(w) + 1 for w in trained)
    ]
    assert windows.targets.tolist() == [[0 if sample < 0 else sample + 2 for sample in w] for w in trained]
    assert set(windows.users.tolist()) == {3}


@pytest.mark.parametrize("overlap", OVERLAPS)
@pytest.mark.parametrize("max_len", [1, 2, 3])
def test_short_windows(max_len, overlap):
    samples = recbole_samples(sequences_of([2, 3, 4, 9, 17]), max_len)
    check(build_windows(dataset_of(samples, max_len), overlap), samples, max_len)


@pytest.mark.parametrize("overlap", OVERLAPS)
def test_interleaved_users_make_the_same_windows(overlap):
    """Samples in the order of time, not of users: no window is torn."""
    max_len = 6
    samples = recbole_samples(sequences_of([14, 14, 5, 30]), max_len)
    draw = np.random.default_rng(1)
    users = draw.permutation([sample[0] for sample in samples]).tolist()
    waiting = {user: iter([sample for sample in samples if sample[0] == user]) for user in set(users)}
    mixed = [next(waiting[user]) for user in users]
    windows = build_windows(dataset_of(mixed, max_len), overlap)
    check(windows, mixed, max_len)
    plain = build_windows(dataset_of(samples, max_len), overlap)

    def content(w):
        return sorted(map(repr, zip(w.users.tolist(), w.items.tolist(), w.targets.tolist(), w.lengths.tolist())))

    assert content(windows) == content(plain)


@pytest.mark.parametrize("overlap", OVERLAPS)
@pytest.mark.parametrize("seed", range(5))
def test_shuffled_samples(seed, overlap):
    max_len = 6
    samples = recbole_samples(sequences_of([14, 3, 5, 30], seed, n_items=4), max_len)
    shuffled = [samples[i] for i in np.random.default_rng(seed).permutation(len(samples))]
    check(build_windows(dataset_of(shuffled, max_len), overlap), shuffled, max_len)


@pytest.mark.parametrize("overlap", OVERLAPS)
@pytest.mark.parametrize("seed", range(5))
def test_samples_that_do_not_continue_each_other(seed, overlap):
    """Split files of others: samples left out, histories of their own, a first sample with a long history."""
    max_len = 5
    draw = np.random.default_rng(seed)
    samples = recbole_samples(sequences_of([12, 9, 20], seed, n_items=4), max_len)
    samples = [sample for sample in samples if draw.random() < 0.7]
    for _ in range(8):  # histories from nowhere, between the others
        user, target, place = (int(draw.integers(low, high)) for low, high in ((1, 4), (1, 4), (0, len(samples) + 1)))
        samples.insert(place, (user, draw.integers(1, 4, size=draw.integers(1, 6)).tolist(), target))
    samples.insert(0, (1, [3, 3, 2, 1, 2], 3))
    check(build_windows(dataset_of(samples, max_len), overlap), samples, max_len)


@pytest.mark.parametrize(
    "first, trained",
    [(3, [[1, 2, 3, 4, 5], [-1, -1, 0, -1, -1]]), (4, [[0, 1, 2, 3, 4]]), (5, [[-1, 0, 1, 2, 3]])],
)
def test_a_long_first_history_is_not_trained_on(first, trained):
    """Only RecBole's samples are trained: the positions inside the first sample's history belong to none."""
    max_len, sequence = 5, [1, 2, 3, 4, 5, 6, 7, 8, 9]
    samples = [(1, sequence[max(0, i - max_len) : i], sequence[i]) for i in range(first, len(sequence))]
    windows = build_windows(dataset_of(samples, max_len), 0.0)
    check(windows, samples, max_len)
    assert windows.samples.tolist() == trained


def test_two_users_with_the_same_items_are_two_windows():
    """The second user's first sample looks like the continuation of the first user's last."""
    samples = [(1, [4], 5), (2, [4, 5], 6)]
    windows = build_windows(dataset_of(samples, 4), 0.0)
    check(windows, samples, 4)
    assert windows.users.tolist() == [1, 2]


@pytest.fixture
def tiny_dataset(fast, build):
    """The training loader's dataset of the tiny data, as RecBole builds it, and the loader."""

    def _tiny(**settings):
        settings = {"load_col": {"inter": ["user_id", "item_id", "timestamp"]}, "MAX_ITEM_LIST_LENGTH": 6, **settings}
        config, loaders, _ = build({**fast, **settings}, model="SASRec")
        return config, loaders[0]

    return _tiny


@pytest.mark.parametrize("overlap", OVERLAPS)
def test_windows_of_a_dataset_built_by_recbole(tiny_dataset, overlap):
    _, loader = tiny_dataset()
    samples = samples_of(loader.dataset)
    assert max(Counter(sample[0] for sample in samples).values()) > 12  # longer than two windows
    windows = build_windows(loader.dataset, overlap)
    kept = check(windows, samples, 6)
    oldest = {user: w for w, user in enumerate(windows.users.tolist())}
    in_oldest = [(sample, n) for sample, w, n in kept if oldest[samples[sample][0]] == w]
    stride = {0: 6, 0.3: 4, 0.5: 3, 0.9: 1}[overlap]
    per_user = Counter(sample[0] for sample in samples)
    assert len(in_oldest) == sum(n - stride * max(0, math.ceil((n - 6) / stride)) for n in per_user.values())
    assert all(len(samples[sample][1]) == n for sample, n in in_oldest)


@pytest.mark.parametrize(
    "settings, occurrences",
    [
        ({}, 1),
        ({"loss_type": "BPR"}, 1),
        ({"loss_type": "BPR", "train_neg_sample_args": {"distribution": "uniform", "sample_num": 3}}, 3),
    ],
    ids=["CE", "BPR", "BPR, three negatives"],
)
def test_sample_numbers_survive_the_training_loader(tiny_dataset, settings, occurrences):
    _, loader = tiny_dataset(**settings)
    samples = samples_of(loader.dataset)
    number_samples(loader.dataset)
    seen, batches = Counter(), []
    for batch in loader:
        batches.append(batch[SAMPLE].tolist())
        columns = zip(
            batch[SAMPLE].tolist(),
            batch["user_id"].tolist(),
            batch["item_id_list"].tolist(),
            batch["item_length"].tolist(),
            batch["item_id"].tolist(),
        )
        for sample, user, history, length, target in columns:
            assert samples[sample] == (user, history[:length], target)
            seen[sample] += 1
        assert ("neg_item_id" in batch.interaction) == bool(settings)
    assert seen == dict.fromkeys(range(len(samples)), occurrences)
    assert batches[0] != sorted(batches[0])  # shuffled: the number came along, it is not the place in the epoch


# --- batches of windows -----------------------------------------------------------------------------------------------


@pytest.fixture
def many():
    """Windows of many lengths."""
    draw = np.random.default_rng(3)
    return build_windows(dataset_of(recbole_samples(sequences_of(draw.integers(2, 40, size=60)), 12), 12), 0.3)


def config(**more):
    return {**FIELDS, **more}


def sample_numbers(batch):
    return [tuple(sample) for sample in batch[SAMPLE].tolist()]


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("batch_size", [1, 12, 40, 100, 10_000])
def test_every_window_once_an_epoch(many, batch_size, shuffle):
    loader = WindowLoader(many, config(), batch_size, shuffle)
    expected = Counter(tuple(r for r in sample if r >= 0) for sample in many.samples.tolist())
    for _ in range(4):  # any shuffle gives the same number of batches
        batches = list(loader)
        assert len(batches) == len(loader)
        assert (
            Counter(tuple(r for r in sample if r >= 0) for batch in batches for sample in sample_numbers(batch))
            == expected
        )
        for batch in batches:
            n, longest = batch["item_id_list"].shape
            assert n == 1 or n * longest <= batch_size
            assert longest == batch["item_length"].max()
            assert batch[TARGETS].shape == batch[SAMPLE].shape == (n, longest)
    assert len(loader) > 1 or batch_size == 10_000


def test_batches_hold_the_windows_they_name(many):
    """The fields of a batch belong together, and models find them under RecBole's names."""
    window_of = {int(sample): w for w, samples in enumerate(many.samples) for sample in samples if sample >= 0}
    for batch in WindowLoader(many, config(), 60):
        for i, samples in enumerate(sample_numbers(batch)):
            w, longest = window_of[max(samples)], len(samples)
            assert batch["user_id"][i] == many.users[w] and batch["item_length"][i] == many.lengths[w]
            assert batch["item_id_list"][i].tolist() == many.items[w, :longest].tolist()
            assert batch[TARGETS][i].tolist() == many.targets[w, :longest].tolist()
            assert list(samples) == many.samples[w, :longest].tolist()


def test_batches_are_filled_and_waste_little(many):
    """Windows of like length share a batch; each batch takes as many as fit."""
    loader = WindowLoader(many, config(), 60, shuffle=False)
    batches = list(loader)
    lengths = [length for batch in batches for length in batch["item_length"].tolist()]
    assert lengths == sorted(lengths)
    for batch, following in itertools.pairwise(batches):
        assert (len(batch) + 1) * int(following["item_length"][0]) > 60


def order(loader):
    return [sample for batch in loader for sample in sample_numbers(batch)]


def test_the_seed_decides_the_order(many):
    first, again, other = (WindowLoader(many, config(seed=seed), 60) for seed in (5, 5, 6))
    epochs = [order(first) for _ in range(2)]
    assert epochs == [order(again) for _ in range(2)]
    assert epochs[0] != epochs[1]
    assert order(other) not in epochs
    again.seed(5)
    assert order(again) == epochs[0]
    again.seed(99)
    assert order(again) not in epochs
    assert order(WindowLoader(many, config(seed=1), 60, False)) == order(WindowLoader(many, config(seed=2), 60, False))


def test_shuffling_moves_batches_and_windows(many):
    loader = WindowLoader(many, config(), 60)
    epochs = [[sorted(sample_numbers(batch)) for batch in loader] for _ in range(2)]
    assert [len(batch[0]) for batch in epochs[0]] != sorted(len(batch[0]) for batch in epochs[0])
    assert sorted(epochs[0]) != sorted(epochs[1])  # not the same batches in another order


def test_positions_of_a_batch():
    interaction = {SAMPLE: torch.tensor([[-1, 7, 0], [2, -1, -1]]), TARGETS: torch.tensor([[0, 5, 4], [6, 0, 0]])}
    positions, targets, samples = positions_of(interaction)
    assert positions.tolist() == [[False, True, True], [True, False, False]]
    assert targets.tolist() == [5, 4, 6] and samples.tolist() == [7, 0, 2]


def test_positions_of_an_epoch_are_all_samples(many):
    targets_of = {}
    for batch in WindowLoader(many, config(), 60):
        positions, targets, samples = positions_of(batch)
        assert positions.sum() == len(samples) == len(targets)
        targets_of.update(zip(samples.tolist(), targets.tolist()))
    assert targets_of == {int(r): int(t) for r, t in zip(many.samples.ravel(), many.targets.ravel()) if r >= 0}


@pytest.mark.parametrize("shuffle", [True, False])
def test_no_samples_no_batches(shuffle):
    windows = build_windows(dataset_of([], 5), 0.0)
    assert windows.items.shape == (0, 5)
    loader = WindowLoader(windows, config(), 100, shuffle)
    assert len(loader) == 0 and list(loader) == []
