"""Windows cover RecBole's training rows exactly once; batches of windows keep within the batch size."""

import math
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from recbole_llmd.data.windows import ROW, TARGETS, WindowLoader, add_row_numbers, build_windows, positions_of

OVERLAPS = (0, 0.3, 0.5, 0.9)
FIELDS = {
    "USER_ID_FIELD": "user_id",
    "ITEM_ID_FIELD": "item_id",
    "LIST_SUFFIX": "_list",
    "ITEM_LIST_LENGTH_FIELD": "item_length",
    "seed": 5,
}


def recbole_rows(sequences, max_len):
    """RecBole's training rows of some users' sequences: (user, history, target)."""
    return [
        (user, sequence[max(0, i - max_len) : i], sequence[i])
        for user, sequence in sequences.items()
        for i in range(1, len(sequence))
    ]


def dataset_of(rows, max_len):
    """A built dataset with these rows, in this order."""
    history = torch.zeros(len(rows), max_len, dtype=torch.long)
    for i, (_, items, _) in enumerate(rows):
        history[i, : len(items)] = torch.tensor(items)
    feat = {
        "user_id": torch.tensor([row[0] for row in rows], dtype=torch.long),
        "item_id_list": history,
        "item_length": torch.tensor([len(row[1]) for row in rows], dtype=torch.long),
        "item_id": torch.tensor([row[2] for row in rows], dtype=torch.long),
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


def rows_of(dataset):
    """The rows back from a dataset, RecBole's or ours, as (user, history, target)."""
    feat = dataset.inter_feat
    parts = zip(
        feat[dataset.uid_field].tolist(),
        feat[dataset.item_id_list_field].tolist(),
        feat[dataset.item_list_length_field].tolist(),
        feat[dataset.iid_field].tolist(),
    )
    return [(user, history[:length], target) for user, history, length, target in parts]


def check(windows, rows, max_len):
    """Every row stands once, at the end of (a suffix of) its own history; returns (row, window, history kept)."""
    assert windows.items.shape == windows.rows.shape == windows.targets.shape == (len(windows.lengths), max_len)
    assert len(windows.users) == len(windows.lengths)
    kept = []
    for w in range(len(windows.lengths)):
        length = int(windows.lengths[w])
        assert 1 <= length <= max_len
        assert windows.items[w, :length].all() and not windows.items[w, length:].any()
        assert windows.rows[w, length - 1] >= 0, "a window must end with a position that is trained"
        for position in range(max_len):
            row = int(windows.rows[w, position])
            if row == -1:
                assert windows.targets[w, position] == 0
                continue
            user, history, target = rows[row]
            prefix = windows.items[w, : position + 1].tolist()
            assert prefix == history[len(history) - len(prefix) :]
            assert windows.targets[w, position] == target
            assert windows.users[w] == user
            kept.append((row, w, len(prefix)))
    assert sorted(row for row, _, _ in kept) == list(range(len(rows)))
    return kept


@pytest.mark.parametrize("overlap", OVERLAPS)
def test_users_longer_than_several_windows(overlap):
    max_len = 10
    lengths = [2, 3, 10, 11, 12, 13, 20, 21, 22, 47, 101]
    rows = recbole_rows(sequences_of(lengths), max_len)
    windows = build_windows(dataset_of(rows, max_len), overlap)
    kept = check(windows, rows, max_len)

    stride = {0: 10, 0.3: 7, 0.5: 5, 0.9: 1}[overlap]
    per_user = Counter(windows.users.tolist())
    assert per_user == {u: 1 + max(0, math.ceil((n - 1 - max_len) / stride)) for u, n in enumerate(lengths, start=1)}

    oldest = {user: w for w, user in enumerate(windows.users.tolist())}  # windows are cut from the end
    trained = Counter(w for _, w, _ in kept)
    for row, w, n_history in kept:
        user, history, _ = rows[row]
        if w == oldest[user]:
            assert n_history == len(history)
        else:  # a more recent window is full, and trains a stride of positions
            assert windows.lengths[w] == max_len and trained[w] == stride
            assert n_history > max_len - trained[w]
    ends = {user: max(i for i, row in enumerate(rows) if row[0] == user) for user in per_user}
    for user, last_row in ends.items():
        newest = np.flatnonzero(windows.users == user)[0]
        assert windows.rows[newest, windows.lengths[newest] - 1] == last_row


@pytest.mark.parametrize(
    "max_len, overlap, trained",
    [
        (4, 0.0, [[6, 7, 8, 9], [2, 3, 4, 5], [0, 1, -1, -1]]),
        (4, 0.5, [[-1, -1, 8, 9], [-1, -1, 6, 7], [-1, -1, 4, 5], [0, 1, 2, 3]]),
        (4, 0.9, [*([-1, -1, -1, i] for i in range(9, 3, -1)), [0, 1, 2, 3]]),
    ],
)
def test_windows_by_hand(max_len, overlap, trained):
    """One user of eleven items, ten rows; written out."""
    rows = recbole_rows({3: list(range(1, 12))}, max_len)
    windows = build_windows(dataset_of(rows, max_len), overlap)
    assert windows.rows.tolist() == trained
    assert windows.items.tolist() == [
        [last - 3, last - 2, last - 1, last] if last > 2 else [1, 2, 0, 0] for last in (max(w) + 1 for w in trained)
    ]
    assert windows.targets.tolist() == [[0 if row < 0 else row + 2 for row in w] for w in trained]
    assert set(windows.users.tolist()) == {3}


@pytest.mark.parametrize("overlap", OVERLAPS)
@pytest.mark.parametrize("max_len", [1, 2, 3])
def test_short_windows(max_len, overlap):
    rows = recbole_rows(sequences_of([2, 3, 4, 9, 17]), max_len)
    check(build_windows(dataset_of(rows, max_len), overlap), rows, max_len)


@pytest.mark.parametrize("overlap", OVERLAPS)
def test_interleaved_users_make_the_same_windows(overlap):
    """Rows in the order of time, not of users: no window is torn."""
    max_len = 6
    rows = recbole_rows(sequences_of([14, 14, 5, 30]), max_len)
    draw = np.random.default_rng(1)
    users = draw.permutation([row[0] for row in rows]).tolist()
    waiting = {user: iter([row for row in rows if row[0] == user]) for user in set(users)}
    mixed = [next(waiting[user]) for user in users]
    windows = build_windows(dataset_of(mixed, max_len), overlap)
    check(windows, mixed, max_len)
    plain = build_windows(dataset_of(rows, max_len), overlap)

    def content(w):
        return sorted(map(repr, zip(w.users.tolist(), w.items.tolist(), w.targets.tolist(), w.lengths.tolist())))

    assert content(windows) == content(plain)


@pytest.mark.parametrize("overlap", OVERLAPS)
@pytest.mark.parametrize("seed", range(5))
def test_shuffled_rows(seed, overlap):
    max_len = 6
    rows = recbole_rows(sequences_of([14, 3, 5, 30], seed, n_items=4), max_len)
    shuffled = [rows[i] for i in np.random.default_rng(seed).permutation(len(rows))]
    check(build_windows(dataset_of(shuffled, max_len), overlap), shuffled, max_len)


@pytest.mark.parametrize("overlap", OVERLAPS)
@pytest.mark.parametrize("seed", range(5))
def test_rows_that_do_not_continue_each_other(seed, overlap):
    """Split files of others: rows left out, histories of their own, a first row with a long history."""
    max_len = 5
    draw = np.random.default_rng(seed)
    rows = recbole_rows(sequences_of([12, 9, 20], seed, n_items=4), max_len)
    rows = [row for row in rows if draw.random() < 0.7]
    for _ in range(8):  # histories from nowhere, between the others
        user, target, place = (int(draw.integers(low, high)) for low, high in ((1, 4), (1, 4), (0, len(rows) + 1)))
        rows.insert(place, (user, draw.integers(1, 4, size=draw.integers(1, 6)).tolist(), target))
    rows.insert(0, (1, [3, 3, 2, 1, 2], 3))
    check(build_windows(dataset_of(rows, max_len), overlap), rows, max_len)


@pytest.mark.parametrize(
    "first, trained",
    [(3, [[1, 2, 3, 4, 5], [-1, -1, 0, -1, -1]]), (4, [[0, 1, 2, 3, 4]]), (5, [[-1, 0, 1, 2, 3]])],
)
def test_a_long_first_history_is_not_trained_on(first, trained):
    """Only rows are samples: the positions inside the first row's history belong to none."""
    max_len, sequence = 5, [1, 2, 3, 4, 5, 6, 7, 8, 9]
    rows = [(1, sequence[max(0, i - max_len) : i], sequence[i]) for i in range(first, len(sequence))]
    windows = build_windows(dataset_of(rows, max_len), 0.0)
    check(windows, rows, max_len)
    assert windows.rows.tolist() == trained


def test_two_users_with_the_same_items_are_two_windows():
    """The second user's first row looks like the continuation of the first user's last."""
    rows = [(1, [4], 5), (2, [4, 5], 6)]
    windows = build_windows(dataset_of(rows, 4), 0.0)
    check(windows, rows, 4)
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
    rows = rows_of(loader.dataset)
    assert max(Counter(row[0] for row in rows).values()) > 12  # longer than two windows
    windows = build_windows(loader.dataset, overlap)
    kept = check(windows, rows, 6)
    oldest = {user: w for w, user in enumerate(windows.users.tolist())}
    in_oldest = [(row, n) for row, w, n in kept if oldest[rows[row][0]] == w]
    stride = {0: 6, 0.3: 4, 0.5: 3, 0.9: 1}[overlap]
    per_user = Counter(row[0] for row in rows)
    assert len(in_oldest) == sum(n - stride * max(0, math.ceil((n - 6) / stride)) for n in per_user.values())
    assert all(len(rows[row][1]) == n for row, n in in_oldest)


@pytest.mark.parametrize(
    "settings, rows_in_batch",
    [
        ({}, 1),
        ({"loss_type": "BPR"}, 1),
        ({"loss_type": "BPR", "train_neg_sample_args": {"distribution": "uniform", "sample_num": 3}}, 3),
    ],
    ids=["CE", "BPR", "BPR, three negatives"],
)
def test_row_numbers_survive_the_training_loader(tiny_dataset, settings, rows_in_batch):
    _, loader = tiny_dataset(**settings)
    rows = rows_of(loader.dataset)
    add_row_numbers(loader.dataset)
    seen, batches = Counter(), []
    for batch in loader:
        batches.append(batch[ROW].tolist())
        parts = zip(
            batch[ROW].tolist(),
            batch["user_id"].tolist(),
            batch["item_id_list"].tolist(),
            batch["item_length"].tolist(),
            batch["item_id"].tolist(),
        )
        for row, user, history, length, target in parts:
            assert rows[row] == (user, history[:length], target)
            seen[row] += 1
        assert ("neg_item_id" in batch.interaction) == bool(settings)
    assert seen == {row: rows_in_batch for row in range(len(rows))}
    assert batches[0] != sorted(batches[0])  # shuffled: the number came along, it is not the place in the epoch


# --- batches of windows -----------------------------------------------------------------------------------------------


@pytest.fixture
def many():
    """Windows of many lengths."""
    draw = np.random.default_rng(3)
    return build_windows(dataset_of(recbole_rows(sequences_of(draw.integers(2, 40, size=60)), 12), 12), 0.3)


def config(**more):
    return {**FIELDS, **more}


def as_rows(batch):
    return [tuple(row) for row in batch[ROW].tolist()]


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("batch_size", [1, 12, 40, 100, 10_000])
def test_every_window_once_an_epoch(many, batch_size, shuffle):
    loader = WindowLoader(many, config(), batch_size, shuffle)
    expected = Counter(tuple(r for r in row if r >= 0) for row in many.rows.tolist())
    for _ in range(4):  # any shuffle gives the same number of batches
        batches = list(loader)
        assert len(batches) == len(loader)
        assert Counter(tuple(r for r in row if r >= 0) for batch in batches for row in as_rows(batch)) == expected
        for batch in batches:
            n, longest = batch["item_id_list"].shape
            assert n == 1 or n * longest <= batch_size
            assert longest == batch["item_length"].max()
            assert batch[TARGETS].shape == batch[ROW].shape == (n, longest)
    assert len(loader) > 1 or batch_size == 10_000


def test_batches_hold_the_windows_they_name(many):
    """The fields of a batch belong together, and models find them under RecBole's names."""
    window_of = {int(row): w for w, rows in enumerate(many.rows) for row in rows if row >= 0}
    for batch in WindowLoader(many, config(), 60):
        for i, rows in enumerate(as_rows(batch)):
            w, longest = window_of[max(rows)], len(rows)
            assert batch["user_id"][i] == many.users[w] and batch["item_length"][i] == many.lengths[w]
            assert batch["item_id_list"][i].tolist() == many.items[w, :longest].tolist()
            assert batch[TARGETS][i].tolist() == many.targets[w, :longest].tolist()
            assert list(rows) == many.rows[w, :longest].tolist()


def test_batches_are_filled_and_waste_little(many):
    """Windows of like length share a batch; each batch takes as many as fit."""
    loader = WindowLoader(many, config(), 60, shuffle=False)
    batches = list(loader)
    lengths = [length for batch in batches for length in batch["item_length"].tolist()]
    assert lengths == sorted(lengths)
    for batch, following in zip(batches, batches[1:]):
        assert (len(batch) + 1) * int(following["item_length"][0]) > 60


def order(loader):
    return [row for batch in loader for row in as_rows(batch)]


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
    epochs = [[sorted(as_rows(batch)) for batch in loader] for _ in range(2)]
    assert [len(batch[0]) for batch in epochs[0]] != sorted(len(batch[0]) for batch in epochs[0])
    assert sorted(epochs[0]) != sorted(epochs[1])  # not the same batches in another order


def test_positions_of_a_batch():
    interaction = {ROW: torch.tensor([[-1, 7, 0], [2, -1, -1]]), TARGETS: torch.tensor([[0, 5, 4], [6, 0, 0]])}
    positions, targets, rows = positions_of(interaction)
    assert positions.tolist() == [[False, True, True], [True, False, False]]
    assert targets.tolist() == [5, 4, 6] and rows.tolist() == [7, 0, 2]


def test_positions_of_an_epoch_are_all_rows(many):
    found = {}
    for batch in WindowLoader(many, config(), 60):
        positions, targets, rows = positions_of(batch)
        assert positions.sum() == len(rows) == len(targets)
        found.update(zip(rows.tolist(), targets.tolist()))
    assert found == {int(r): int(t) for r, t in zip(many.rows.ravel(), many.targets.ravel()) if r >= 0}


@pytest.mark.parametrize("shuffle", [True, False])
def test_no_rows_no_batches(shuffle):
    windows = build_windows(dataset_of([], 5), 0.0)
    assert windows.items.shape == (0, 5)
    loader = WindowLoader(windows, config(), 100, shuffle)
    assert len(loader) == 0 and list(loader) == []
