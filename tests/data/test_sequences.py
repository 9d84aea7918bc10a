"""Training sequences from RecBole's samples, and validation histories that close up."""

import numpy as np
import pytest

from recbole_llmd.data.sequences import TrainingSequences, closed_up
from recbole_llmd.data.transitions import Samples
from tests.helpers.sequence_cases import samples_of, settings_of, train, write_dataset

LISTS = [[], [1, 2, 3, 1, 2], [], [4, 4, 4, 4, 4, 4], [2, 1]]


def pairs_of(lists):
    return [(user, items[:k], items[k]) for user, items in enumerate(lists) for k in range(1, len(items))]


def listed(sequences):
    return [sequences.of_user(user).tolist() for user in range(sequences.n_users)]


def same(one, other):
    return all(np.array_equal(vars(one)[name], vars(other)[name]) for name in vars(one))


@pytest.mark.parametrize("window", [1, 3, 9])
def test_samples_of_sequences_and_back(window):
    samples = samples_of(pairs_of(LISTS), window)
    sequences = TrainingSequences.of(samples, n_users=5)
    assert listed(sequences) == LISTS and same(sequences.samples(), samples)
    assert same(sequences.samples(np.array([3, 4])), samples[samples.users > 2])
    by_place = np.argsort([len(history) for _, history, _ in pairs_of(LISTS)], kind="stable")  # users in turn
    assert listed(TrainingSequences.of(samples[by_place], n_users=5)) == LISTS


@pytest.mark.parametrize("left_out", [0, 2])
def test_samples_that_are_not_all_beginnings_have_no_sequences(left_out):
    samples = samples_of(pairs_of(LISTS), 3)
    kept = np.arange(len(samples)) != left_out
    assert TrainingSequences.of(samples[kept], n_users=5) is None


def test_nobody_has_sequences():
    none = samples_of([], 3)
    sequences = TrainingSequences.of(none, n_users=3)
    assert listed(sequences) == [[], [], []] and len(sequences.samples()) == 0 and sequences.matrix(4).nnz == 0


def test_pairs_go_wherever_they_occur():
    sequences = TrainingSequences.from_lists(LISTS, 3)
    left = sequences.without(np.array([1, 3, 4]), np.array([1, 4, 9]))
    assert listed(left) == [[], [2, 3, 2], [], [], [2, 1]]
    assert left.matrix(5).toarray()[1].tolist() == [0, 0, 2, 1, 0] and left.matrix(5)[3].nnz == 0
    assert listed(sequences) == LISTS


@pytest.mark.parametrize("window", [3, 20])
def test_histories_close_up_and_keep_what_is_beyond_training(window):
    training, beyond = [1, 2, 3, 4, 5], [6, 3, 7]
    before = TrainingSequences.from_lists([[], training, [8, 9]], window)

    def validation(left):
        return samples_of([*((1, left + beyond[:k], beyond[k]) for k in range(3)), (2, [8, 9], 1)], window)

    samples, user = validation(training), np.array([1])
    after = before.without(np.array([1, 1]), np.array([3, 5]))
    assert same(closed_up(samples, before, after, user), validation([1, 2, 4]))
    emptied = before.without(np.array([1] * 5), np.array(training))
    assert closed_up(samples, before, emptied, user).users.tolist() == [2]
    assert same(samples, validation(training))


@pytest.mark.parametrize(
    ("split", "group_by"),
    [({"LS": "valid_and_test"}, "user"), ({"RS": [0.8, 0.1, 0.1]}, "user"), ({"RS": [0.8, 0.1, 0.1]}, None)],
)
def test_recboles_splits_by_time_give_sequences(build, workdir, split, group_by):
    """Interactions at the same time, too: many stand at the same second."""
    draw = np.random.default_rng(1)
    lists = {f"u{n}": [f"i{item}" for item in draw.integers(1, 9, size=size)] for n, size in enumerate([5, 9, 14, 8])}
    write_dataset(workdir, lists)
    path = workdir / "hand" / "hand.inter"
    head, *lines = path.read_text().splitlines()
    rows = [line.split("\t") for line in lines]
    path.write_text("\n".join([head, *(f"{user}\t{item}\t{int(time) // 4}" for user, item, time in rows)]) + "\n")
    settings = settings_of(workdir, eval_args={"split": split, "order": "TO", "mode": "full", "group_by": group_by})
    (train_data, *_), model = train(build, settings)
    samples = Samples.of(train_data.dataset)
    assert len(model.sequences.samples()) == len(samples)
    for user, items in lists.items():
        number = train_data.dataset.token2id("user_id", user)
        tokens = [train_data.dataset.id2token("item_id", item) for item in model.sequences.of_user(number)]
        assert tokens == items[: len(tokens)]
