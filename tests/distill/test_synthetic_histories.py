import numpy as np
import pytest

from recbole_llmd.data.transitions import Samples
from recbole_llmd.data.windows import SAMPLE, build_windows
from recbole_llmd.distill.synthetic_histories import (
    Neighbours,
    as_dataset,
    draw_histories,
    training_sequences,
)

ITEMS = np.array([[1, 2, 3, 4, 0], [5, 6, 0, 0, 0]])
LENGTHS = np.array([4, 2])


@pytest.fixture(scope="module")
def drawn():
    """Many histories; what an item is replaced by, or goes on with, is ten more than itself."""
    items = np.arange(27)[:, None] + 10
    neighbours = Neighbours(items, np.ones_like(items, dtype=float))
    histories, lengths = draw_histories(ITEMS, LENGTHS, neighbours, 6000, np.random.default_rng(1))
    return [tuple(row[:length]) for row, length in zip(histories, lengths)]


def test_histories_are_padded_on_the_right_and_never_empty(drawn):
    assert all(len(history) > 0 and 0 not in history for history in drawn)


def test_a_history_with_replaced_items_keeps_length_and_order(drawn):
    replaced = [history for history in drawn if len(history) == 4 and max(history) > 10 and history[0] % 10 == 1]
    assert len(replaced) > 400
    assert all([item % 10 for item in history] == [1, 2, 3, 4] for history in replaced)
    share = np.mean([[item > 10 for item in history] for history in replaced])
    assert 0.35 < share < 0.5  # a third, given that at least one is: 0.333 / (1 - 0.667 ** 4) = 0.415


def test_a_continued_history_ends_with_neighbours_and_keeps_the_latest_items(drawn):
    counts = {history: drawn.count(history) for history in ((5, 6, 16), (5, 6, 16, 26), (2, 3, 4, 14, 24))}
    # a quarter of 6000, half of it by each sequence, half of that with two items more
    assert all(300 < count < 450 for count in counts.values()), counts


def test_a_history_with_dropped_items_is_a_part_of_a_sequence_in_order(drawn):
    shorter = [history for history in drawn if 1 < len(history) < 4 and max(history) <= 4]
    assert len(shorter) > 400
    assert all(list(history) == sorted(history) for history in shorter)


def test_single_items_are_any_items(drawn):
    singles = {history[0] for history in drawn if len(history) == 1}
    assert singles >= set(range(7, 11)) | {27 - 1}  # items that stand in no sequence and replace none


def test_draws_depend_on_the_generator_alone():
    neighbours = Neighbours(np.zeros((7, 1), int) + 3, np.ones((7, 1)))
    first, again = (draw_histories(ITEMS, LENGTHS, neighbours, 50, np.random.default_rng(3))[0] for _ in range(2))
    assert (first == again).all()


def test_neighbours_are_drawn_by_their_weights():
    neighbours = Neighbours(np.array([[0, 0, 0], [4, 5, 6]]), np.array([[1.0, 0, 0], [1.0, 0.0, 3.0]]))
    items = neighbours.drawn(np.ones(20_000, int), np.random.default_rng(1))
    assert np.bincount(items, minlength=7)[4:] / 20_000 == pytest.approx([0.25, 0, 0.75], abs=0.02)


def test_training_sequences_are_whole_and_cut_to_the_latest():
    samples = Samples(
        items=np.array([[1, 0, 0], [4, 0, 0], [1, 2, 0], [1, 2, 3]]),
        lengths=np.array([1, 1, 2, 3]),
        targets=np.array([2, 5, 3, 9]),
        users=np.array([7, 8, 7, 7]),
    )
    items, lengths = training_sequences(samples)
    assert items.tolist() == [[2, 3, 9], [4, 5, 0]]
    assert lengths.tolist() == [3, 2]


def test_every_prefix_is_a_sample_and_windows_hold_them_all(build, fast):
    _, (train, _, _), _ = build(fast, model="LLMRec")
    items = np.zeros((2, train.dataset.inter_feat[train.dataset.item_id_list_field].shape[1]), int)
    items[0, :3], items[1, :1] = [3, 4, 5], [6]
    dataset, samples = as_dataset(train.dataset, items, np.array([3, 1]), SAMPLE)
    assert [tuple(row[row > 0]) for row in samples.items] == [(3,), (3, 4), (3, 4, 5), (6,)]
    assert samples.targets.tolist()[:2] == [4, 5]
    windows = build_windows(dataset)
    assert sorted(windows.samples[windows.samples >= 0].tolist()) == [0, 1, 2, 3]
    assert {tuple(row[row > 0]) for row in windows.items} == {(3, 4, 5), (6,)}
    assert len(train.dataset) != len(dataset)  # the training dataset is as it was
