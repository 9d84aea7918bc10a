"""Scenarios: who withdraws what, how many of them, in which requests; against naive sets of pairs."""

import logging
from types import SimpleNamespace

import numpy as np
import pytest
import scipy.sparse as sp
from recbole.config import Config
from recbole.data import create_dataset, data_preparation

from recbole_llmd.config import load_properties, side_config
from recbole_llmd.settings import RULES, SettingsError
from recbole_llmd.unlearning import IMCorrect
from recbole_llmd.unlearning.forget_file import read_forget_file
from recbole_llmd.unlearning.forget_sets import BUILDERS
from recbole_llmd.unlearning.scenarios import Scenario, scenarios, write_forget_set
from tests.conftest import REPO


def pairs_of(part):
    return list(zip(part[0].tolist(), part[1].tolist()))


def all_pairs(scenario):
    return [pair for request in scenario.requests for pair in pairs_of(request)]


def pairs_in(X):
    return set(zip(*(index.tolist() for index in X.nonzero())))


def sizes(scenario):
    return [len(users) for users, _ in scenario.requests]


def same(one, other):
    return [all_pairs(s) for s in one] == [all_pairs(s) for s in other]


def case_of(folder, name, **settings):
    """``draw(**unlearn settings)`` on a dataset, and what it draws from."""
    config = Config(
        config_dict={
            **load_properties("IMCorrect"),
            "model": "EASE",
            "dataset": name,
            "data_path": str(folder),
            "state": "ERROR",
            "show_progress": False,
            "unlearn_seeds": [2],
            **settings,
        }
    )
    whole = create_dataset(config)
    dataset = data_preparation(config, whole)[0].dataset
    X, known = dataset.inter_matrix(form="csr").astype(np.float32), whole.inter_matrix(form="csr")

    def draw(**more):
        values = {f"unlearn_{key}": value for key, value in more.items()}
        return scenarios(side_config(config, **values), X, dataset, known)

    return SimpleNamespace(config=config, dataset=dataset, X=X, known=known, draw=draw)


@pytest.fixture
def tiny(workdir):
    return case_of(REPO / "dataset", "tiny")


@pytest.fixture
def hand(workdir):
    """``hand(pairs, item_file)``: a dataset written by hand, all of which is training data but what its users lack."""

    def _hand(pairs, item_file=None, **settings):
        folder = workdir / "hand"
        folder.mkdir()
        lines = [f"{user}\t{item}" for user, item in pairs]
        (folder / "hand.inter").write_text("\n".join(["user_id:token\titem_id:token", *lines]) + "\n")
        if item_file:
            (folder / "hand.item").write_text(item_file)
        everything = {"split": {"RS": [1, 0, 0]}, "order": "RO", "mode": "full", "group_by": None}
        return case_of(workdir, "hand", eval_args=everything, **settings)

    return _hand


def matrix(rows, n_items):
    """CSR from the items of each user; user 0 is the padding."""
    users = np.repeat(np.arange(len(rows)), [len(row) for row in rows])
    items = np.concatenate([np.array(row, int) for row in rows])
    return sp.csr_matrix((np.ones(len(items)), (users, items)), shape=(len(rows), n_items))


def drawn(X, seeds=(2,), known=None, **settings):
    """Scenarios of a matrix alone, for draws that need no tokens."""
    config = load_properties("IMCorrect") | {f"unlearn_{key}": value for key, value in settings.items()}
    return scenarios(config | {"unlearn_seeds": list(seeds)}, X, None, X if known is None else known)


# --- what is common to all --------------------------------------------------------------------------------------------

EACH = [
    {"scenario": "users"},
    {"scenario": "interactions"},
    {"scenario": "sensitive", "sensitive": {"genre": "Space"}},
    {"scenario": "spam"},
    {"scenario": "noise"},
]


def test_the_rule_knows_the_scenarios():
    rule = RULES["IMCorrect"]["unlearn_scenario"]
    assert rule.text == "one of " + ", ".join(map(repr, BUILDERS))


@pytest.mark.parametrize("settings", EACH, ids=lambda s: s["scenario"])
def test_equal_settings_give_equal_sets_and_other_seeds_others(tiny, settings):
    first = tiny.draw(**settings, seeds=[2, 3], ratio=[0.2])
    assert [(s.name, s.seed) for s in first] == [(settings["scenario"], 2), (settings["scenario"], 3)]
    np.random.seed(1)  # no part of it
    assert same(first, tiny.draw(**settings, seeds=[2, 3], ratio=[0.2]))
    assert all_pairs(first[0]) != all_pairs(first[1])


def test_scenarios_of_a_seed_are_drawn_independently():
    """Each of 20 users has one item: an order of users and one of interactions, which would else be the same."""
    X = matrix([[], *[[1]] * 20], 2)
    users, interactions = (drawn(X, scenario=name, ratio=1.0)[0] for name in ("users", "interactions"))
    assert all_pairs(users) != all_pairs(interactions)


@pytest.mark.parametrize("settings", EACH, ids=lambda s: s["scenario"])
def test_requests_are_disjoint_int64_pairs(tiny, settings):
    for scenario in tiny.draw(**settings, ratio=[0.3]):
        pairs = all_pairs(scenario)
        assert len(set(pairs)) == len(pairs) == scenario.interactions > 0
        assert scenario.users.tolist() == sorted({user for user, _ in pairs})
        assert all(part.dtype == np.int64 for request in scenario.requests for part in request)
        assert all(sizes(scenario)) and scenario.checkpoints[-1] == len(scenario.requests)
        if settings["scenario"] in ("users", "interactions", "sensitive"):
            assert set(pairs) <= pairs_in(tiny.X) and scenario.injected is None
        else:
            assert pairs_of(scenario.injected) == pairs  # what was injected is what is forgotten


def test_one_scenario_for_each_ratio_and_seed(tiny):
    made = tiny.draw(scenario="users", ratio=[0.1, 0.5], seeds=[7, 1])
    assert [(s.group, s.ratio, s.seed) for s in made] == [
        ("random", 0.1, 7),
        ("random", 0.1, 1),
        ("random", 0.5, 7),
        ("random", 0.5, 1),
    ]
    assert same(made[:1], tiny.draw(scenario="users", ratio=0.1, seeds=7))  # a number is a list of one


@pytest.mark.parametrize("name", ["users", "interactions"])
def test_sets_of_a_seed_are_nested(tiny, name):
    small, large = (set(all_pairs(s)) for s in tiny.draw(scenario=name, ratio=[0.1, 0.4]))
    assert small < large


def test_the_log_has_the_absolute_counts(caplog):
    caplog.set_level(logging.INFO)
    drawn(matrix([[], [1, 2], [1, 2], [2, 3], [1], [1], [2]], 4), ratio=[0.5], group="core", batch=2)
    drawn(matrix([[], *[[1]] * 10], 2), scenario="interactions", ratio=[0.3], batch=2, seeds=[5])
    assert [record.message for record in caplog.records] == [
        "unlearning scenario users (core), ratio 0.5, seed 2: 3 users, 6 interactions, 2 requests",
        "unlearning scenario interactions, ratio 0.3, seed 5: 3 users, 3 interactions, 2 requests",
    ]


@pytest.mark.parametrize(
    "name, ratio, message",
    [
        ("users", 0.01, "unlearn_ratio = 0.01 of 6 users is 0.06: skipped"),
        ("spam", 0.01, "unlearn_ratio = 0.01 of 6 users is 0.06: skipped"),
        ("interactions", 1e-6, "unlearn_ratio = 1e-06 of 3,000 interactions is 0.003: skipped"),
        ("noise", 1e-6, "unlearn_ratio = 1e-06 of 3,000 interactions is 0.003: skipped"),
    ],
)
def test_a_ratio_of_less_than_one_is_skipped(caplog, name, ratio, message):
    X = matrix([[], *[range(1, 501)] * 6], 1001)  # 6 users have 500 items each
    made = drawn(X, scenario=name, ratio=[ratio, 0.5], seeds=[2, 3])
    assert [s.ratio for s in made] == [0.5, 0.5]
    assert [record.message for record in caplog.records] == [message]
    with pytest.raises(SettingsError, match=rf"^unlearn_ratio = \[{ratio}\]: gives less than one of .* at least 1/"):
        drawn(X, scenario=name, ratio=[ratio])


def test_the_smallest_ratio_is_one():
    """1/49·49 is less than 1 in floating point."""
    assert 1 / 49 * 49 < 1
    (scenario,) = drawn(matrix([[], *[[1]] * 49], 2), ratio=1 / 49)
    assert scenario.interactions == 1


@pytest.mark.parametrize(
    "shares, requests, expected",
    [
        (None, 7, [7]),
        ([1.0], 7, [7]),
        ([0.5], 8, [4, 8]),  # the end is always compared
        ([0.75, 0.25], 8, [2, 6, 8]),
        ([0.01, 0.7], 10, [1, 7, 10]),
        ([0.25, 0.5, 0.75, 1.0], 1, [1]),
        (0.5, 6, [3, 6]),
    ],
)
def test_checkpoints(shares, requests, expected):
    (scenario,) = drawn(matrix([[], *[[1]] * requests], 2), ratio=1.0, batch=1, checkpoints=shares)
    assert len(scenario.requests) == requests and scenario.checkpoints == expected


# --- users and interactions -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("group", ["core", "edge", "random"])
def test_users_leave_whole(tiny, group):
    active = np.flatnonzero(tiny.X.sum(1).A1)
    (scenario,) = tiny.draw(scenario="users", group=group, ratio=[0.25], batch=4)
    assert len(scenario.users) == round(0.25 * len(active))
    asked = [list(dict.fromkeys(users.tolist())) for users, _ in scenario.requests]
    assert {len(users) for users in asked[:-1]} == {4} and 1 <= len(asked[-1]) <= 4
    for users, request in zip(asked, scenario.requests):
        assert set(pairs_of(request)) == {pair for pair in pairs_in(tiny.X) if pair[0] in users}


def test_core_users_have_the_most_and_edge_users_the_fewest(tiny):
    lengths = np.bincount([user for user, _ in pairs_in(tiny.X)], minlength=tiny.X.shape[0])
    chosen = {}
    for group in ("core", "edge", "random"):
        (scenario,) = tiny.draw(scenario="users", group=group, ratio=[0.25])
        chosen[group] = lengths[scenario.users]
        others = lengths[np.setdiff1d(np.flatnonzero(lengths), scenario.users)]
        if group == "core":
            assert chosen[group].min() >= others.max()
        elif group == "edge":
            assert 0 < chosen[group].max() <= others.min()
    assert chosen["core"].mean() > chosen["random"].mean() > chosen["edge"].mean()


def test_the_seed_breaks_ties_alone():
    rows = [[], *[[1, 2, 3]] * 2, *[[1, 2]] * 8, *[[1]] * 2]  # users 1 and 2, 3 to 10, 11 and 12
    core = [s.users.tolist() for s in drawn(matrix(rows, 4), seeds=range(20), group="core", ratio=[0.5])]
    assert all(users[:2] == [1, 2] and len(users) == 6 and users[-1] <= 10 for users in core)
    assert set().union(*core) == set(range(1, 11)) and len(set(map(tuple, core))) > 10
    edge = [s.users.tolist() for s in drawn(matrix(rows, 4), seeds=range(5), group="edge", ratio=[1 / 6])]
    assert edge == [[11, 12]] * 5


def test_users_without_interactions_do_not_leave():
    """They are no part of the share either: 4 users are active here."""
    X = matrix([[], [1], [], [2], [], [], [1, 2], [], [2]], 3)
    (scenario,) = drawn(X, ratio=[1.0], batch=0)
    assert scenario.users.tolist() == [1, 3, 6, 8] and len(scenario.requests) == 1
    (scenario,) = drawn(X, group="edge", ratio=[0.5])
    assert len(scenario.users) == 2 and 6 not in scenario.users


@pytest.mark.parametrize("batch, expected", [(10, [10, 10, 5]), (25, [25]), (30, [25]), (0, [25]), (1, [1] * 25)])
def test_interactions_are_requested_in_batches(batch, expected):
    X = matrix([[], *[range(1, 11)] * 5], 11)
    (scenario,) = drawn(X, scenario="interactions", ratio=[0.5], batch=batch)
    assert sizes(scenario) == expected
    assert set(all_pairs(scenario)) < pairs_in(X)


def test_every_interaction_is_equally_likely():
    """1,000 draws of 2 of 8 pairs, of a user with one item and others with many: 250 ± 5 standard deviations."""
    X = matrix([[], [3], [1, 2, 3, 4], [2, 5, 6]], 7)
    made = drawn(X, scenario="interactions", ratio=[0.25], seeds=range(1000))
    counts = {pair: 0 for pair in pairs_in(X)}
    for pair in (pair for scenario in made for pair in all_pairs(scenario)):
        counts[pair] += 1
    assert all(abs(count - 250) < 5 * 13.7 for count in counts.values()) and sum(counts.values()) == 2000


# --- sensitive items --------------------------------------------------------------------------------------------------

ITEMS = """item_id:token\ttitle:token_seq\tclass:token_seq\tstudio:token\tyear:float
a\tHorror for "one\tDrama\tBig Cat\t1990
b\tB\tHorror\tBig\t1990
c\tC\tDrama Horror War\tCat\t1991
d\tD\tHorrorful\tBig Cat\t1992
e\tE\t\tnone\t1993
unseen\tF\tHorror\tBig\t1990
"""
WATCHED = [("u", "a"), ("u", "b"), ("u", "c"), ("v", "c"), ("w", "a"), ("w", "d"), ("x", "b"), ("y", "e"), ("z", "c")]


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
def test_sensitive_pairs_are_exactly_those(hand, sensitive, items):
    case = hand(WATCHED, ITEMS)
    scenario, other = case.draw(scenario="sensitive", sensitive=sensitive, seeds=[2, 3])
    user, item = case.dataset.field2token_id["user_id"], case.dataset.field2token_id["item_id"]
    assert scenario.sensitive.tolist() == sorted(item[token] for token in items)
    expected = {(user[u], item[i]) for u, i in WATCHED if i in items}
    assert set(all_pairs(scenario)) == expected == set(all_pairs(other))
    assert scenario.ratio is None and scenario.group is None
    assert all(len(set(users.tolist())) == 1 for users, _ in scenario.requests)  # one user a request, once
    assert len(scenario.requests) == len(scenario.users) == len({u for u, _ in expected})


def test_sensitive_requests_are_compared_at_each_quarter(hand):
    """Four users have horror, whatever the batch; u keeps an item, x none."""
    case = hand(WATCHED, ITEMS)
    made = case.draw(scenario="sensitive", sensitive={"class": "Horror"}, batch=0, seeds=list(range(8)))
    assert all(s.checkpoints == [1, 2, 3, 4] for s in made)
    assert len({tuple(users[0] for users, _ in s.requests) for s in made}) > 4  # random orders
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
def test_sensitive_items_that_are_not_there(hand, sensitive, message):
    with pytest.raises(SettingsError) as caught:
        hand(WATCHED, ITEMS).draw(scenario="sensitive", sensitive=sensitive)
    assert str(caught.value).startswith(f"unlearn_sensitive = {sensitive}: ") and message in str(caught.value)


def test_sensitive_needs_the_item_file_and_somebody_who_has_the_items(hand, workdir):
    case = hand(WATCHED)
    with pytest.raises(SettingsError, match=r"needs the file .*hand\.item, which does not exist"):
        case.draw(scenario="sensitive", sensitive={"class": "Horror"})
    (workdir / "hand" / "hand.item").write_text(ITEMS)
    case.X.data[case.X.indices == case.dataset.field2token_id["item_id"]["e"]] = 0
    case.X.eliminate_zeros()  # as if the pair were in the test set
    with pytest.raises(SettingsError, match=r"{'item_id': 'e'}: no user has one of the 1 items"):
        case.draw(scenario="sensitive", sensitive={"item_id": "e"})


# --- spam and noise ---------------------------------------------------------------------------------------------------


def test_spam_users_push_the_targets(tiny):
    X = tiny.X
    popularity = np.bincount([item for _, item in pairs_in(X)], minlength=X.shape[1])
    real = len({user for user, _ in pairs_in(X)})
    (scenario,) = tiny.draw(scenario="spam", ratio=[0.3], batch=5, spam_targets=3, spam_fillers=7)
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
    other = tiny.draw(scenario="spam", seeds=[3], spam_targets=3)[0].targets.tolist()
    assert other != targets


def test_targets_of_equal_popularity_are_equally_likely():
    X = matrix([[], *[range(1, 9)] * 3], 9)
    made = drawn(X, scenario="spam", ratio=1.0, seeds=range(100), spam_targets=1, spam_fillers=0)
    assert {item for scenario in made for item in scenario.targets.tolist()} == set(range(1, 9))


def test_fillers_are_drawn_by_popularity():
    """Items 1 to 4 have 1, 2, 4 and 8 of the 15 users. The rarest quarter is item 1, the target; of 1,500 fillers the
    others get 2, 4 and 8 in 14, within 97 (5 standard deviations of the last).
    """
    rows = [[], *([[1]] * 1 + [[2]] * 2 + [[3]] * 4 + [[4]] * 8)]
    made = drawn(matrix(rows, 6), scenario="spam", ratio=[1.0], seeds=range(100), spam_targets=1, spam_fillers=1)
    assert all(scenario.targets.tolist() == [1] for scenario in made)
    items = np.concatenate([np.concatenate([i for _, i in s.requests]) for s in made])
    counts = np.bincount(items, minlength=6)
    assert counts[[0, 1, 5]].tolist() == [0, 1500, 0]
    assert abs(counts[2:5] - 1500 * np.array([2, 4, 8]) / 14).max() < 97


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


def test_noise_is_in_no_split(tiny):
    known = pairs_in(tiny.known)
    assert pairs_in(tiny.X) < known  # something is in the other splits
    (scenario,) = tiny.draw(scenario="noise", ratio=[0.9], batch=100)
    pairs = all_pairs(scenario)
    assert len(pairs) == round(0.9 * tiny.X.nnz) and not known & set(pairs)
    assert sizes(scenario)[:-1] == [100] * (len(pairs) // 100)
    users, items = map(set, zip(*pairs))
    assert users <= set(range(1, tiny.X.shape[0])) and items <= set(range(1, tiny.X.shape[1]))


def test_every_free_pair_is_equally_likely_noise():
    """3 users, 4 items, 6 pairs known (the first and the last of the grid too): 3 of 6 free pairs, 400 times."""
    X = matrix([[], [1, 2], [3], [2, 3, 4]], 5)
    free = {(user, item) for user in range(1, 4) for item in range(1, 5)} - pairs_in(X)
    counts = {pair: 0 for pair in free}
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


# --- files ------------------------------------------------------------------------------------------------------------


def test_a_file_of_pairs_in_its_order(hand, workdir, caplog):
    case = hand(WATCHED)
    (workdir / "f").write_text("item_id:token\tuser_id:token\nc\tz\na\tu\nc\tz\nb\tu\nd\ty\n")
    (scenario,) = case.draw(scenario="file", forget_file="f", batch=2)
    user, item = case.dataset.field2token_id["user_id"], case.dataset.field2token_id["item_id"]
    assert all_pairs(scenario) == [(user["z"], item["c"]), (user["u"], item["a"]), (user["u"], item["b"])]
    assert sizes(scenario) == [2, 1] and scenario.ratio is None
    assert [record.message for record in caplog.records] == [
        "unlearn_forget_file = 'f': 1 of 4 pairs have nothing to forget in the training interactions: skipped"
    ]


def test_a_file_of_users(hand, workdir):
    case = hand(WATCHED)
    (workdir / "f").write_text("user_id:token\nx\nu\nx\nw\n")
    (scenario,) = case.draw(scenario="file", forget_file="f", batch=2)
    user, item = case.dataset.field2token_id["user_id"], case.dataset.field2token_id["item_id"]
    first, second = ({(user[u], item[i]) for u, i in WATCHED if u in users} for users in ("xu", "w"))
    assert [set(pairs_of(request)) for request in scenario.requests] == [first, second]


@pytest.mark.parametrize(
    "content, message",
    [
        (None, "'f': there is no such file"),
        ("user_id:token\nnobody\n", "user = 'nobody': the model does not know it"),
        ("user_id:token\titem_id:token\nu\tunseen\n", "item = 'unseen': the model does not know it"),
        (
            "user_id:token\titem_id:token\nu\td\nv\ta\n",
            "unlearn_forget_file = 'f': 2 of 2 pairs have nothing to forget",
        ),
    ],
)
def test_files_that_forget_nothing(hand, workdir, content, message):
    if content:
        (workdir / "f").write_text(content)
    with pytest.raises(SettingsError, match=message):
        hand(WATCHED).draw(scenario="file", forget_file="f")


@pytest.mark.parametrize(
    "settings, names",
    [
        (EACH[1], {}),
        (EACH[2], {"USER_ID_FIELD": "user_id", "field_separator": "\t"}),
        (EACH[4], {}),
    ],
    ids=["interactions", "sensitive", "noise"],
)
def test_a_written_set_is_read_again(workdir, settings, names):
    tiny = case_of(REPO / "dataset", "tiny", **names)
    (scenario,) = tiny.draw(**settings, ratio=[0.1])
    path = workdir / "sets" / "tiny.forget"
    write_forget_set(path, scenario, tiny.dataset)
    assert path.read_text().splitlines()[0] == "user_id:token\titem_id:token"
    users, items = read_forget_file(path, tiny.config)
    ids = tiny.dataset.field2token_id
    read = [(ids["user_id"][user], ids["item_id"][item]) for user, item in zip(users, items)]
    assert read == all_pairs(scenario)
    if scenario.injected is None:
        assert all_pairs(tiny.draw(scenario="file", forget_file=str(path))[0]) == all_pairs(scenario)


def test_other_names_and_separators(workdir):
    """The file has the fields and the separator of the dataset."""
    folder = workdir / "named"
    folder.mkdir()
    lines = ["who:token;what:token", *(f"{user};{item}" for user, item in WATCHED)]
    (folder / "named.inter").write_text("\n".join(lines) + "\n")
    names = {"USER_ID_FIELD": "who", "ITEM_ID_FIELD": "what", "field_separator": ";"}
    case = case_of(workdir, "named", load_col={"inter": ["who", "what"]}, **names)
    (scenario,) = case.draw(scenario="users", ratio=[1.0], batch=0)
    write_forget_set("sets", scenario, case.dataset)
    written = (workdir / "sets").read_text().splitlines()
    assert written[0] == lines[0] and set(written[1:]) <= set(lines[1:]) and len(written) == case.X.nnz + 1
    assert all_pairs(case.draw(scenario="file", forget_file="sets")[0]) == all_pairs(scenario)


def test_spam_users_are_named_in_the_file(tiny, workdir):
    (scenario,) = tiny.draw(scenario="spam", ratio=[0.05], spam_targets=2, spam_fillers=1)
    write_forget_set("spam.forget", scenario, tiny.dataset)
    users, items = read_forget_file("spam.forget", tiny.config)
    number = len(scenario.users)
    assert number > 1 and users == [f"spam-{n + 1}" for n in range(number) for _ in range(3)]
    assert [tiny.dataset.field2token_id["item_id"][item] for item in items] == [i for _, i in all_pairs(scenario)]


def test_a_set_is_written_whole_or_not_at_all(tiny, workdir):
    (workdir / "f").write_text("before")
    bad = Scenario("file", None, None, 2, [(np.array([1, 2]), np.array([1, 10**6]))], [1])
    with pytest.raises(IndexError):
        write_forget_set("f", bad, tiny.dataset)
    assert (workdir / "f").read_text() == "before" and [p.name for p in workdir.glob("f*")] == ["f"]


# --- with the engine --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", EACH, ids=lambda s: s["scenario"])
def test_the_engine_takes_the_requests(trained, settings):
    """Injecting grows the model without a gap; forgetting every request leaves what was asked for."""
    config, (train, _, _), model = trained("ItemKNN")
    engine = IMCorrect(model, train.dataset, hashes=False)
    values = load_properties("IMCorrect") | {f"unlearn_{key}": value for key, value in settings.items()}
    before = engine.X.copy()
    values = values | {"unlearn_seeds": [2], "unlearn_batch": 0, "unlearn_ratio": 0.1}
    (scenario,) = scenarios(side_config(config, **values), before, train.dataset, before)
    if scenario.injected:
        engine.learn(*scenario.injected, grow=True)
        assert engine.X.nnz == before.nnz + scenario.interactions
    removed = [engine.forget(*request).users for request in scenario.requests]
    assert sum(map(len, removed)) == scenario.interactions
    rest = pairs_in(before) if scenario.injected else pairs_in(before) - set(all_pairs(scenario))
    assert pairs_in(engine.X) == rest
