"""Scenarios: how many of what withdraw, in which requests; and written as files. Against naive sets of pairs."""

import logging

import numpy as np
import pytest

from recbole_llmd.config import load_properties, side_config
from recbole_llmd.errors import LLMDError, SettingsError
from recbole_llmd.unlearning import Unlearner
from recbole_llmd.unlearning.evaluation.scenarios import Scenario, scenarios, write_forget_set
from recbole_llmd.unlearning.forget_file import read_forget_file
from recbole_llmd.unlearning.request import Request
from tests.conftest import REPO
from tests.helpers.scenario_cases import (
    EACH,
    WATCHED,
    all_pairs,
    case_of,
    drawn,
    matrix,
    pairs_in,
    pairs_of,
    same,
    sizes,
)

# --- what is common to all --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", EACH, ids=lambda s: s["scenario"])
def test_equal_settings_give_equal_sets_and_other_seeds_others(tiny_case, settings):
    first = tiny_case.draw(**settings, seeds=[2, 3], ratio=[0.2])
    assert [(s.name, s.seed) for s in first] == [(settings["scenario"], 2), (settings["scenario"], 3)]
    np.random.seed(1)  # no part of it
    assert same(first, tiny_case.draw(**settings, seeds=[2, 3], ratio=[0.2]))
    assert all_pairs(first[0]) != all_pairs(first[1])


def test_scenarios_of_a_seed_are_drawn_independently():
    """Each of 20 users has one item: an order of users and one of interactions, which would else be the same."""
    X = matrix([[], *[[1]] * 20], 2)
    users, interactions = (drawn(X, scenario=name, ratio=1.0)[0] for name in ("users", "interactions"))
    assert all_pairs(users) != all_pairs(interactions)


@pytest.mark.parametrize("settings", EACH, ids=lambda s: s["scenario"])
def test_requests_are_disjoint_int64_pairs(tiny_case, settings):
    for scenario in tiny_case.draw(**settings, ratio=[0.3]):
        pairs = all_pairs(scenario)
        assert len(set(pairs)) == len(pairs) == scenario.interactions > 0
        assert scenario.users.tolist() == sorted({user for user, _ in pairs})
        assert all(ids.dtype == np.int64 for request in scenario.requests for ids in (request.users, request.items))
        assert all(request.kind == "forget" and request.strict for request in scenario.requests)
        assert all(sizes(scenario)) and scenario.checkpoints[-1] == len(scenario.requests)
        if settings["scenario"] in ("users", "interactions", "sensitive"):
            assert set(pairs) <= pairs_in(tiny_case.X) and scenario.injected is None
        else:
            assert pairs_of(scenario.injected) == pairs  # what was injected is what is forgotten


def test_one_scenario_for_each_ratio_and_seed(tiny_case):
    made = tiny_case.draw(scenario="users", ratio=[0.1, 0.5], seeds=[7, 1])
    assert [(s.group, s.ratio, s.seed) for s in made] == [
        ("random", 0.1, 7),
        ("random", 0.1, 1),
        ("random", 0.5, 7),
        ("random", 0.5, 1),
    ]
    assert same(made[:1], tiny_case.draw(scenario="users", ratio=0.1, seeds=7))  # a number is a list of one


@pytest.mark.parametrize("name", ["users", "interactions"])
def test_sets_of_a_seed_are_nested(tiny_case, name):
    small, large = (set(all_pairs(s)) for s in tiny_case.draw(scenario=name, ratio=[0.1, 0.4]))
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


def test_a_millionth_of_the_interactions_is_at_least_one(caplog):
    """3,000 interactions: 0.003, 0.03 and 0.3 of one are one, counted once; then 3."""
    X = matrix([[], *[range(1, 501)] * 6], 501)
    made = drawn(X, scenario="interactions", ratio=[1e-6, 1e-5, 1e-4, 1e-3], seeds=[2, 3], batch=1)
    assert [(s.ratio, s.seed, sizes(s)) for s in made] == [
        *((1e-6, seed, [1]) for seed in (2, 3)),
        *((1e-3, seed, [1, 1, 1]) for seed in (2, 3)),
    ]
    assert all(set(all_pairs(s)) < pairs_in(X) for s in made)
    assert [record.message for record in caplog.records] == [
        "unlearn_ratio = 1e-06 of 3,000 interactions is 0.003: one is drawn",
        "unlearn_ratio = 1e-05 of 3,000 interactions is 0.03: one is drawn",
        "unlearn_ratio = 1e-05: the same number of interactions as 1e-06, skipped",
        "unlearn_ratio = 0.0001 of 3,000 interactions is 0.3: one is drawn",
        "unlearn_ratio = 0.0001: the same number of interactions as 1e-06, skipped",
    ]


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
def test_users_leave_whole(tiny_case, group):
    active = np.flatnonzero(tiny_case.X.sum(1).A1)
    (scenario,) = tiny_case.draw(scenario="users", group=group, ratio=[0.25], batch=4)
    assert len(scenario.users) == round(0.25 * len(active))
    asked = [list(dict.fromkeys(request.users.tolist())) for request in scenario.requests]
    assert {len(users) for users in asked[:-1]} == {4} and 1 <= len(asked[-1]) <= 4
    for users, request in zip(asked, scenario.requests):
        assert set(pairs_of(request)) == {pair for pair in pairs_in(tiny_case.X) if pair[0] in users}


def test_core_users_have_the_most_and_edge_users_the_fewest(tiny_case):
    lengths = np.bincount([user for user, _ in pairs_in(tiny_case.X)], minlength=tiny_case.X.shape[0])
    chosen = {}
    for group in ("core", "edge", "random"):
        (scenario,) = tiny_case.draw(scenario="users", group=group, ratio=[0.25])
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
    counts = dict.fromkeys(pairs_in(X), 0)
    for pair in (pair for scenario in made for pair in all_pairs(scenario)):
        counts[pair] += 1
    assert all(abs(count - 250) < 5 * 13.7 for count in counts.values()) and sum(counts.values()) == 2000


# --- files ------------------------------------------------------------------------------------------------------------


def test_a_file_of_pairs_in_its_order(hand_case, workdir, caplog):
    case = hand_case(WATCHED)
    (workdir / "f").write_text("item_id:token\tuser_id:token\nc\tz\na\tu\nc\tz\nb\tu\nd\ty\n")
    (scenario,) = case.draw(scenario="file", forget_file="f", batch=2)
    user, item = case.dataset.field2token_id["user_id"], case.dataset.field2token_id["item_id"]
    assert all_pairs(scenario) == [(user["z"], item["c"]), (user["u"], item["a"]), (user["u"], item["b"])]
    assert sizes(scenario) == [2, 1] and scenario.ratio is None
    assert [record.message for record in caplog.records] == [
        "unlearn_forget_file = 'f': 1 of 4 pairs have nothing to forget in the training interactions: skipped"
    ]


def test_a_file_of_users(hand_case, workdir):
    case = hand_case(WATCHED)
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
def test_files_that_forget_nothing(hand_case, workdir, content, message):
    if content:
        (workdir / "f").write_text(content)
    with pytest.raises(LLMDError, match=message):
        hand_case(WATCHED).draw(scenario="file", forget_file="f")


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
    tiny_case = case_of(REPO / "dataset", "tiny", **names)
    (scenario,) = tiny_case.draw(**settings, ratio=[0.1])
    path = workdir / "sets" / "tiny.forget"
    write_forget_set(path, scenario, tiny_case.dataset)
    assert path.read_text().splitlines()[0] == "user_id:token\titem_id:token"
    users, items = read_forget_file(path, tiny_case.config)
    ids = tiny_case.dataset.field2token_id
    read = [(ids["user_id"][user], ids["item_id"][item]) for user, item in zip(users, items)]
    assert read == all_pairs(scenario)
    if scenario.injected is None:
        assert all_pairs(tiny_case.draw(scenario="file", forget_file=str(path))[0]) == all_pairs(scenario)


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


def test_spam_users_are_named_in_the_file(tiny_case, workdir):
    (scenario,) = tiny_case.draw(scenario="spam", ratio=[0.05], spam_targets=2, spam_fillers=1)
    write_forget_set("spam.forget", scenario, tiny_case.dataset)
    users, items = read_forget_file("spam.forget", tiny_case.config)
    number = len(scenario.users)
    assert number > 1 and users == [f"spam-{n + 1}" for n in range(number) for _ in range(3)]
    assert [tiny_case.dataset.field2token_id["item_id"][item] for item in items] == [i for _, i in all_pairs(scenario)]


def test_a_set_is_written_whole_or_not_at_all(tiny_case, workdir):
    (workdir / "f").write_text("before")
    bad = Scenario("file", None, None, 2, [Request("forget", np.array([1, 2]), np.array([1, 10**6]))], [1])
    with pytest.raises(IndexError):
        write_forget_set("f", bad, tiny_case.dataset)
    assert (workdir / "f").read_text() == "before" and [p.name for p in workdir.glob("f*")] == ["f"]


# --- with the engine --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", EACH, ids=lambda s: s["scenario"])
def test_the_engine_takes_the_requests(trained, settings):
    """Injecting grows the model without a gap; forgetting every request leaves what was asked for."""
    config, (train, _, _), model = trained("ItemKNN")
    engine = Unlearner(model, train.dataset, hashes=False)
    values = load_properties("IMCorrect") | {f"unlearn_{key}": value for key, value in settings.items()}
    before = engine.X.copy()
    values = values | {"unlearn_seeds": [2], "unlearn_batch": 0, "unlearn_ratio": 0.1}
    (scenario,) = scenarios(side_config(config, **values), before, train.dataset, before)
    if scenario.injected:
        engine.apply(scenario.injected)
        assert engine.X.nnz == before.nnz + scenario.interactions
    held = engine.X.nnz
    for request in scenario.requests:
        engine.apply(request)
    assert held - engine.X.nnz == scenario.interactions
    rest = pairs_in(before) if scenario.injected else pairs_in(before) - set(all_pairs(scenario))
    assert pairs_in(engine.X) == rest
