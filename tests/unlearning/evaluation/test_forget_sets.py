"""The forget sets of sensitive items, spam and noise, against naive sets of pairs and the expected frequencies."""

import numpy as np
import pytest

from recbole_llmd.errors import SettingsError
from tests.helpers.scenario_cases import WATCHED, all_pairs, drawn, matrix, pairs_in, sizes

# --- sensitive items --------------------------------------------------------------------------------------------------

ITEMS = """item_id:token\ttitle:token_seq\tclass:token_seq\tstudio:token\tyear:float
a\tHorror for "one\tDrama\tBig Cat\t1990
b\tB\tHorror\tBig\t1990
c\tC\tDrama Horror War\tCat\t1991
d\tD\tHorrorful\tBig Cat\t1992
e\tE\t\tnone\t1993
unseen\tF\tHorror\tBig\t1990
"""


@pytest.mark.parametrize(
    "sensitive, items",
    [
        ({"class": "Horror"}, "bc"),  # a word: neither a part of one, nor another field's, nor another item's
        ({"class": "Drama Horror War"}, "c"),
        ({"studio": "Big Cat"}, "ad"),
        ({"studio": "Big"}, "abd"),
        ({"year": 1990}, "ab"),
        ({"item_id": "e"}, "e"),
    ],
)
def test_sensitive_pairs_are_exactly_those(hand_case, sensitive, items):
    case = hand_case(WATCHED, ITEMS)
    scenario, other = case.draw(scenario="sensitive", sensitive=sensitive, seeds=[2, 3])
    user, item = case.dataset.field2token_id["user_id"], case.dataset.field2token_id["item_id"]
    assert scenario.sensitive.tolist() == sorted(item[token] for token in items)
    expected = {(user[u], item[i]) for u, i in WATCHED if i in items}
    assert set(all_pairs(scenario)) == expected == set(all_pairs(other))
    assert scenario.ratio is None and scenario.group is None
    assert all(len(set(request.users.tolist())) == 1 for request in scenario.requests)  # one user a request, once
    assert len(scenario.requests) == len(scenario.users) == len({u for u, _ in expected})


@pytest.mark.parametrize("batch", [0, 1, 7])
def test_a_sensitive_request_is_one_users_also_of_a_single_interaction(hand_case, batch):
    """Whatever the batch, as the property file says: u, w, x and z have one or two of the items."""
    case = hand_case(WATCHED, ITEMS)
    (scenario,) = case.draw(scenario="sensitive", sensitive={"class": "Horror"}, batch=batch)
    user = case.dataset.field2token_id["user_id"]
    asked = {request.users[0]: len(request) for request in scenario.requests}
    assert asked == {user["u"]: 2, user["v"]: 1, user["x"]: 1, user["z"]: 1}
    assert all(len(set(request.users.tolist())) == 1 for request in scenario.requests)


def test_sensitive_requests_are_compared_at_each_quarter(hand_case):
    """Four users have horror, whatever the batch; u keeps an item, x none."""
    case = hand_case(WATCHED, ITEMS)
    made = case.draw(scenario="sensitive", sensitive={"class": "Horror"}, batch=0, seeds=list(range(8)))
    assert all(s.checkpoints == [1, 2, 3, 4] for s in made)
    assert len({tuple(request.users[0] for request in s.requests) for s in made}) > 4  # random orders
    (scenario,) = case.draw(scenario="sensitive", sensitive={"class": "Horror"}, checkpoints=[1.0])
    assert scenario.checkpoints == [4]


@pytest.mark.parametrize(
    "sensitive, message",
    [
        ({"genre": "Horror"}, "hand.item has no field 'genre'; it has item_id, title, class, studio, year."),
        ({"class": "Comedy"}, "no item of the dataset has it. Values of class: Drama, Drama Horror War, Horror, "),
        ({"title": "F"}, "no item of the dataset has it."),  # an item that nobody ever had
    ],
)
def test_sensitive_items_that_are_not_there(hand_case, sensitive, message):
    with pytest.raises(SettingsError) as caught:
        hand_case(WATCHED, ITEMS).draw(scenario="sensitive", sensitive=sensitive)
    assert str(caught.value).startswith(f"unlearn_sensitive = {sensitive}: ") and message in str(caught.value)


def test_sensitive_needs_the_item_file_and_somebody_who_has_the_items(hand_case, workdir):
    case = hand_case(WATCHED)
    with pytest.raises(SettingsError, match=r"needs the file .*hand\.item, which does not exist"):
        case.draw(scenario="sensitive", sensitive={"class": "Horror"})
    (workdir / "hand" / "hand.item").write_text(ITEMS)
    case.X.data[case.X.indices == case.dataset.field2token_id["item_id"]["e"]] = 0
    case.X.eliminate_zeros()  # as if the pair were in the test set
    with pytest.raises(SettingsError, match=r"{'item_id': 'e'}: no user has one of the 1 items"):
        case.draw(scenario="sensitive", sensitive={"item_id": "e"})


# --- spam and noise ---------------------------------------------------------------------------------------------------


def test_spam_users_push_the_targets(tiny_case):
    X = tiny_case.X
    popularity = np.bincount([item for _, item in pairs_in(X)], minlength=X.shape[1])
    real = len({user for user, _ in pairs_in(X)})
    (scenario,) = tiny_case.draw(scenario="spam", ratio=[0.3], batch=5, spam_targets=3, spam_fillers=7)
    number = round(0.3 * real)
    assert scenario.users.tolist() == list(range(X.shape[0], X.shape[0] + number))
    assert number == 24 and sizes(scenario) == [50] * 4 + [40]
    targets = scenario.targets.tolist()
    assert len(set(targets)) == 3
    ranked = sorted(popularity[popularity > 0])
    assert all(0 < popularity[target] <= ranked[len(ranked) // 4 - 1] for target in targets)
    for user in scenario.users:
        items = [item for owner, item in all_pairs(scenario) if owner == user]
        assert len(items) == len(set(items)) == 10 and set(targets) < set(items)
        assert all(popularity[item] > 0 for item in items)
    others = tiny_case.draw(scenario="spam", seeds=[3, 5, 7], spam_targets=3)
    assert len({tuple(other.targets.tolist()) for other in others}) > 1


def test_targets_of_equal_popularity_are_equally_likely():
    X = matrix([[], *[range(1, 9)] * 3], 9)
    made = drawn(X, scenario="spam", ratio=1.0, seeds=range(100), spam_targets=1, spam_fillers=0)
    assert {item for scenario in made for item in scenario.targets.tolist()} == set(range(1, 9))


def test_fillers_are_the_most_popular_items_of_all_spam_users():
    """Items 1 to 5 have 1, 2, 8, 4 and 4 users; the target is among the rarest quarter, item 1."""
    rows = [[], [1], *[[2]] * 2, *[[3]] * 8, *[[4]] * 4, *[[5]] * 4]
    made = drawn(matrix(rows, 7), scenario="spam", ratio=[0.2], seeds=range(20), spam_targets=1, spam_fillers=2)
    sets = [{frozenset(i.tolist()) for i in np.split(s.pairs[1], len(s.users))} for s in made]
    assert set().union(*sets) == {frozenset({1, 3, 4}), frozenset({1, 3, 5})}  # ties by the seed
    assert all(len(profiles) == 1 for profiles in sets)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"spam_targets": 3}, "unlearn_spam_targets = 3: at most 2 here: 8 items occur"),
        ({"spam_targets": 2, "spam_fillers": 7}, "unlearn_spam_fillers = 7: at most 6 here"),
    ],
)
def test_too_few_items_for_spam(settings, message):
    X = matrix([[], range(1, 9), range(1, 9)], 20)
    with pytest.raises(SettingsError, match=message):
        drawn(X, scenario="spam", ratio=[1.0], **settings)
    (scenario,) = drawn(X, scenario="spam", ratio=[0.5], spam_targets=2, spam_fillers=6)
    assert sorted(item for _, item in all_pairs(scenario)) == list(range(1, 9))


def test_noise_is_in_no_split(tiny_case):
    known = pairs_in(tiny_case.known)
    assert pairs_in(tiny_case.X) < known  # something is in the other splits
    (scenario,) = tiny_case.draw(scenario="noise", ratio=[0.9], batch=100)
    pairs = all_pairs(scenario)
    assert len(pairs) == round(0.9 * tiny_case.X.nnz) and not known & set(pairs)
    assert sizes(scenario)[:-1] == [100] * (len(pairs) // 100)
    users, items = map(set, zip(*pairs))
    assert users <= set(range(1, tiny_case.X.shape[0])) and items <= set(range(1, tiny_case.X.shape[1]))


def test_every_free_pair_is_equally_likely_noise():
    """3 users, 4 items, 6 pairs known (the first and the last of the grid too): 3 of 6 free pairs, 400 times."""
    X = matrix([[], [1, 2], [3], [2, 3, 4]], 5)
    free = {(user, item) for user in range(1, 4) for item in range(1, 5)} - pairs_in(X)
    counts = dict.fromkeys(free, 0)
    for scenario in drawn(X, scenario="noise", ratio=[0.5], seeds=range(400)):
        assert scenario.interactions == 3
        for pair in all_pairs(scenario):
            counts[pair] += 1  # a KeyError: a known pair, or the padding
    assert sum(counts.values()) == 1200 and all(abs(count - 200) < 50 for count in counts.values())


def test_noise_to_the_last_free_pair():
    X = matrix([[], [1, 2], [3], [2, 3, 4]], 5)
    (scenario,) = drawn(X, scenario="noise", ratio=[1.0])
    everything = {(user, item) for user in range(1, 4) for item in range(1, 5)}
    assert set(all_pairs(scenario)) | pairs_in(X) == everything
    known = X + matrix([[], [], [1], []], 5)  # one more pair in another split
    with pytest.raises(SettingsError, match=r"unlearn_ratio = \[1.0\]: 6 interactions to inject, but only 5 pairs"):
        drawn(X, scenario="noise", ratio=[1.0], known=known)
