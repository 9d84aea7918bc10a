"""ShardedEASE against the inverse by NumPy: in one process, and in two real ones that carry out all scenarios once."""

import json
import pickle
import subprocess
import sys
import tracemalloc

import numpy as np
import pytest
import scipy.sparse as sp

from recbole_llmd.errors import CheckpointError, DataError, ModelError, OutputError, RequestError, SettingsError
from recbole_llmd.unlearning.mapping import ease
from recbole_llmd.unlearning.sharded import inverse
from recbole_llmd.unlearning.sharded.sharded_ease import ShardedEASE
from tests.conftest import REPO
from tests.helpers import sharded_processes as cases
from tests.helpers.mapping_cases import EASE, corrected
from tests.helpers.mapping_models import dense

ALLOWED = {"float32": 1e-5, "float64": 1e-12}
METHODS = ["refit", *["low-rank update"] * 4, "refit", "low-rank update"]


def by_inverse(X, weight=cases.WEIGHT):
    P = np.linalg.inv(X.T @ X + weight * np.eye(X.shape[1]))
    B = -P / np.diag(P)
    np.fill_diagonal(B, 0)
    return B


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """What the two processes saw: a pair for each scenario; and their folder."""
    folder = tmp_path_factory.mktemp("two")
    one = cases.sharded(cases.data(), "float64")
    one.fit()
    one.save(folder / "one")
    command = [sys.executable, "-m", "tests.helpers.sharded_processes", str(folder)]
    started = [subprocess.Popen([*command, str(rank)], cwd=REPO, stderr=subprocess.PIPE, text=True) for rank in (0, 1)]
    errors = [process.communicate(timeout=300)[1] for process in started]
    assert [process.returncode for process in started] == [0, 0], "\n".join(errors)
    seen = [pickle.loads((folder / f"{rank}.pkl").read_bytes()) for rank in (0, 1)]
    return {name: (seen[0][name], seen[1][name]) for name in seen[0]}, folder


def assert_is_the_inverse(states, X, dtype):
    """The processes' states of one moment, together, are EASE of X."""
    expected, allowed = by_inverse(X), ALLOWED[dtype]
    assert [item for state in states for item in state["own"]] == list(range(X.shape[1]))
    B = np.hstack([state["columns"] for state in states])
    assert B.dtype == dtype and np.abs(B - expected).max() < allowed
    scores = X[cases.SEEN] @ expected
    assert np.abs(np.hstack([state["scores"] for state in states]) - scores).max() < 10 * allowed
    scores[:, 0] = scores[X[cases.SEEN] > 0] = -np.inf
    best = np.argsort(-scores, axis=1, kind="stable")[:, :7]
    for state in states:
        assert np.array_equal(state["X"], X)
        assert np.isnan(state["residual"]) == False and state["residual"] <= state["tolerance"]  # noqa: E712
        items, found = state["topk"]
        assert np.abs(np.take_along_axis(scores, items, axis=1) - found).max() < 10 * allowed
        if dtype == "float64":
            assert np.array_equal(items[:3], best[:3])
    if len(states) == 2:
        for part in (0, 1):
            assert np.array_equal(states[0]["topk"][part], states[1]["topk"][part])


@pytest.mark.parametrize("dtype", ALLOWED)
def test_two_processes_follow_the_inverse(two, dtype):
    runs = two[0][dtype]
    history = [cases.data(), *cases.after_each(cases.data())]
    assert [[state["method"] for state in run] for run in runs] == [METHODS] * 2
    for X, *states in zip(history, *runs, strict=True):
        assert_is_the_inverse(states, X, dtype)
    assert runs[0][2]["rank"] == 2  # an item of many users
    assert "rank" in runs[0][5]["notes"][0] and runs[0][0]["notes"] == ()
    gone = [1, 2]  # items that nobody has after the first request
    for moment in (1, 2, 4, 5):
        B = np.hstack([run[moment]["columns"] for run in runs])
        assert not B[gone].any() and not B[:, gone].any() and not B[3].any() and not B[:, 3].any()
    assert np.hstack([run[6]["columns"] for run in runs])[gone].any()


def test_files_hold_what_memory_holds(two):
    (files, folder), memory = two, two[0]["float64"]
    for rank in (0, 1):
        before, states, after = files["in_files"][rank]
        for state, other in zip(states, memory[rank], strict=True):
            assert np.array_equal(state["columns"], other["columns"]) and state["residual"] == other["residual"]
        assert {name.split(".")[1] for name in before} == {"partial"}  # nothing is whole before the fit
        assert after == ["rows-0-45.npy", "rows-45-90.npy", "sharded-ease.json"]
    *_, X = cases.after_each(cases.data())
    P = np.vstack([np.load(folder / "files" / name) for name in after[:2]])
    assert np.abs(P - np.linalg.inv(X.T @ X + 3 * np.eye(90))).max() < 1e-12


def test_nothing_connects_groups_that_only_the_forgotten_connected(two):
    for *states, dtype in zip(*two[0]["groups"], ("float32", "float64")):
        B = np.hstack([state["columns"] for state in states])
        assert states[0]["method"] == "low-rank update"
        assert not B[:31, 31:].any() and not B[31:, :31].any() and B[1:31, 1:31].any() and B[31:, 31:].any()
        after = cases.two_groups()
        after[59] = 0
        assert np.abs(B - by_inverse(after)).max() < ALLOWED[dtype]


def test_what_is_refused_is_refused_by_all_and_changes_nothing(two):
    (first, unchanged, state), (second, also_unchanged, other) = two[0]["refused"]
    both = {
        "unfitted": ("ModelError", "call fit() first"),
        "unknown item": ("RequestError", "item = 90"),
        "padding": ("RequestError", "0 is RecBole's padding"),
        "not there": ("RequestError", "1 of 1 pairs to forget are not in X"),
        "different": ("RequestError", "different things"),
        "different users": ("RequestError", "different things"),
        "k": ("RequestError", "from 1 to 89"),
        "other X": ("DataError", "differ between the processes"),
        "model there": ("OutputError", "a model is there already"),
    }
    for seen in (first, second):
        for what, (kind, message) in both.items():
            assert seen[what][0] == kind and message in seen[what][1]
    assert first["one of them bad"][0] == "RequestError" and "not in X" in first["one of them bad"][1]
    assert second["one of them bad"][0] == "ModelError" and "another process" in second["one of them bad"][1]
    assert first["one has no folder"][0] == "ModelError"
    assert second["one has no folder"][0] in ("FileExistsError", "NotADirectoryError", "OutputError")
    assert unchanged and also_unchanged
    X = cases.data()
    X[5] = 0
    assert_is_the_inverse([state, other], X, "float64")


def test_a_fit_that_cannot_be_is_an_error_of_all(two):
    for fitting, scoring in two[0]["unsolvable"]:
        assert fitting[0] == "UnsolvedError" and "larger reg_weight or float64" in fitting[1]
        assert scoring[0] == "ModelError"


def test_a_wrong_update_is_seen_and_fitted_anew(two):
    states = two[0]["wrong_update"]
    X = cases.data()
    X[5] = 0
    assert_is_the_inverse(states, X, "float64")
    for state in states:
        assert state["method"] == "refit" and "backward error" in state["notes"][0]


def test_models_are_saved_and_loaded_by_another_number_of_processes(two):
    seen, folder = two
    X = cases.data()
    (other, *loaded), (_, *also) = [(state[0], state[1]) for state in seen["from_one"]]
    assert other[0] == "CheckpointError" and "other interactions" in other[1]
    assert np.array_equal(np.hstack([*loaded, *also]), ShardedEASE.load(folder / "one", sp.csr_matrix(X)).columns())
    X[5] = 0
    states = [state[2] for state in seen["from_one"]]
    assert_is_the_inverse(states, X, "float64")
    for name in ("two", "two-files"):
        one = ShardedEASE.load(folder / name, sp.csr_matrix(X))
        assert np.abs(one.columns() - np.hstack([state["columns"] for state in states])).max() < 1e-14


def test_a_process_does_not_wait_for_one_that_has_ended(two):
    error, unchanged = two[0]["left_alone"][0]
    assert error is not None and unchanged


# --- one process ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ALLOWED)
def test_one_process_follows_the_inverse_and_ease(monkeypatch, dtype):
    monkeypatch.setattr(inverse, "PANEL", 16)
    states = cases.sequence(cases.sharded(cases.data(), dtype))
    history = [cases.data(), *cases.after_each(cases.data())]
    for X, state in zip(history, states, strict=True):
        assert_is_the_inverse([state], X, dtype)
    single = corrected(ease, EASE, history[0], history[1], dtype=np.dtype(dtype))
    assert np.abs(dense(single.B) - states[1]["columns"]).max() < ALLOWED[dtype]
    assert np.array_equal(dense(single.B) == 0, states[1]["columns"] == 0)


def test_corrections_are_checked_in_all_directions_after_some(monkeypatch):
    model = cases.sharded(cases.data(), "float64")
    model.fit()
    monkeypatch.setattr(ease, "PENDING", 1)
    model._inverse.block[50] *= 1.01  # what the profile of user 5 does not see
    assert cases.data()[5, 50] == 0
    methods = [model.forget(*cases.all_of(cases.data(), user)).method for user in (5, 6)]
    assert methods[-1] == "refit"
    X = cases.data()
    X[[5, 6]] = 0
    assert np.abs(model.columns() - by_inverse(X)).max() < 1e-12


def test_a_fit_takes_little_memory_beside_its_rows():
    rng = np.random.default_rng(0)
    X = sp.random(1500, 1200, 0.01, format="csr", random_state=rng, dtype=np.float32)
    X.data[:] = 1
    model = ShardedEASE(X, 50.0)
    for call, allowed in ((model.fit, 2.5 * 512 * 1200 * 4 + 4 * 512 * 1200 * 8), (lambda: forget(model), 2e6)):
        tracemalloc.start()
        call()
        assert tracemalloc.get_traced_memory()[1] < allowed + (1 << 21)
        tracemalloc.stop()


def forget(model):
    rows = model.X[:3].tocoo()
    assert model.forget(rows.row[rows.row > 0], rows.col[rows.row > 0]).method == "low-rank update"


def test_settings_are_checked_at_the_door(workdir):
    X = sp.csr_matrix(cases.data())
    for weight in (0, -1.0, "3", np.nan, True):
        with pytest.raises(SettingsError, match="reg_weight"):
            ShardedEASE(X, weight)
    for dtype in ("float16", int, "no type"):
        with pytest.raises(SettingsError, match="dtype"):
            ShardedEASE(X, 3.0, dtype=dtype)
    for wrong in (cases.data(), X * np.nan, X[:, :1]):
        with pytest.raises(DataError):
            ShardedEASE(wrong, 3.0)
    model = ShardedEASE(X, 3.0)
    for call in (lambda: model.scores([1]), model.columns, lambda: model.save(workdir / "folder")):
        with pytest.raises(ModelError, match="fit"):
            call()
    model.fit()
    for pairs in (([7], [1], [0.5]), (["7"], ["1"]), ([True], [1]), ([[7]], [1]), ([7, 8], [1]), ([160], [1])):
        with pytest.raises(RequestError):
            model.learn(*pairs)
    assert model.forget([1, 1, 7], [3, 3, 1], strict=False).skipped == 1
    assert model.forget([1], [3], strict=False).interactions == 0


def test_lists_end_where_the_items_do():
    X = np.zeros((3, 4))
    X[1, [1, 2]] = X[2, [1, 3]] = 1
    model = cases.sharded(X, "float64")
    model.fit()
    items, scores = model.topk([1], 3)
    assert items.tolist() == [[3, 0, 0]] and np.isneginf(scores[0, 1:]).all()
    assert sorted(model.topk([1], 3, mask_seen=False)[0][0].tolist()) == [1, 2, 3]
    assert model.topk([], 2)[0].shape == (0, 2) and model.scores([]).shape == (0, 4)


def test_a_damaged_or_half_written_model_is_not_loaded(workdir, monkeypatch):
    X = sp.csr_matrix(cases.data())
    model = ShardedEASE(X, 3.0, folder=workdir / "model")
    model.fit()
    rows = np.load(workdir / "model" / "rows-0-90.npy")
    no_number = np.where(np.arange(90) == 50, np.nan, rows).astype(rows.dtype)
    scaled = rows * np.linspace(1, 1.1, 90, dtype=rows.dtype)
    for what, content in (("damaged", scaled), ("damaged", no_number), ("not its rows", rows[:80])):
        (workdir / what).mkdir(exist_ok=True)
        np.save(workdir / what / "rows-0-90.npy", content)
        (workdir / what / "sharded-ease.json").write_bytes((workdir / "model" / "sharded-ease.json").read_bytes())
        with pytest.raises(CheckpointError, match=what):
            ShardedEASE.load(workdir / what, X)
    (workdir / "damaged" / "rows-0-90.npy").unlink()
    with pytest.raises(CheckpointError, match="cannot be read"):
        ShardedEASE.load(workdir / "damaged", X)

    def interrupted(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(inverse.ShardedInverse, "subtract", interrupted)
    with pytest.raises(KeyboardInterrupt):
        model.forget(*cases.all_of(cases.data(), 5))
    with pytest.raises(CheckpointError, match="no whole model"):
        ShardedEASE.load(workdir / "model", X)
    assert [path.name for path in (workdir / "model").iterdir()] == ["rows-0-90.partial"]
    with pytest.raises(ModelError, match="call fit"):
        model.scores([1])
    model.fit()
    assert np.array_equal(ShardedEASE.load(workdir / "model", X).columns(), model.columns())
    assert json.loads((workdir / "model" / "sharded-ease.json").read_text())["rows"] == [[0, 90]]
    with pytest.raises(OutputError, match="already"):
        model.save(workdir / "model")
