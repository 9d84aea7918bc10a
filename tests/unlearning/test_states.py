"""A model is as it was before a request or as it is after it: for readers, after errors and after interrupts."""

import linecache
import sys
import threading

import numpy as np
import pytest
import torch

from recbole_llmd.unlearning import Unlearner
from tests.helpers.engines import engine_of
from tests.helpers.mapping_models import MODELS, dense

PACKAGE = "recbole_llmd/unlearning/"


def state(engine):
    """Everything that a request may change."""
    tokens = {key: list(map(str, names)) for key, names in engine.dataset.field2id_token.items()}
    known = {key: dict(names) for key, names in engine.dataset.field2token_id.items() if key in tokens}
    model = engine.snapshot()
    users = torch.arange(1, model.n_users)
    scores = np.asarray(model.full_sort_predict({model.USER_ID: users})).ravel()
    return engine.X.toarray(), scores, (model.n_users, model.n_items), tokens, known


def same(one, other):
    shapes = one[2:] == other[2:]
    return shapes and all(x.shape == y.shape and np.array_equal(x, y) for x, y in zip(one[:2], other[:2]))


class InterruptAt:
    """Raises KeyboardInterrupt at the n-th line of the package's unlearning that runs in this thread.

    ``possible`` are the numbers of the lines but for those with ``with``, which are passed on the way out, too: there
    Python does not look for signals before the block's lock is open again.
    """

    def __init__(self, number):
        self.number, self.lines, self.possible = number, 0, []

    def __enter__(self):
        sys.settrace(self._trace)
        return self

    def __exit__(self, *error):
        sys.settrace(None)

    def _trace(self, frame, event, argument):
        return self._line if PACKAGE in frame.f_code.co_filename else None

    def _line(self, frame, event, argument):
        if event == "line":
            self.lines += 1
            if not linecache.getline(frame.f_code.co_filename, frame.f_lineno).lstrip().startswith("with "):
                self.possible.append(self.lines)
            if self.lines == self.number:
                raise KeyboardInterrupt
        return self._line


REQUESTS = {
    "forget": lambda engine: engine.forget_users([4], ids="internal"),
    "learn and grow": lambda engine: engine.learn(["newcomer"] * 2, ["i1", "novelty"], grow=True),
}


@pytest.mark.parametrize("name", ["EASE", "ItemKNN", "DualEASE", "SparseEASE", "NCEPLRec"])
@pytest.mark.parametrize("request_", REQUESTS)
def test_a_request_interrupted_anywhere_leaves_the_model_before_or_after_it(trained, name, request_):
    def begun():
        engine = engine_of(trained, name, hashes=False)
        engine.forget_users([2], ids="internal")
        return engine

    ask = REQUESTS[request_]
    engine = begun()
    before = state(engine)
    with InterruptAt(None) as whole:
        ask(engine)
    after = state(engine)
    assert whole.lines > 80 and not same(before, after)
    outcomes = set()
    for number in whole.possible[::7]:
        engine = begun()
        with pytest.raises(KeyboardInterrupt), InterruptAt(number):
            ask(engine)
        left = state(engine)
        outcomes.add("after" if same(left, after) else "before")
        assert same(left, after) or same(left, before), number
        if same(left, before):
            ask(engine)
        assert same(state(engine), after), number
    assert outcomes == {"before", "after"}


@pytest.mark.parametrize("name", MODELS)
def test_readers_see_the_model_before_or_after_a_request(trained, name):
    engine = engine_of(trained, name)
    engine.refit()
    users = torch.tensor([3, 5])

    def scores():
        model = engine.snapshot()
        torch.manual_seed(0)  # RecBole's ADMMSLIM adds noise to its scores
        return np.asarray(model.full_sort_predict({model.USER_ID: users})).ravel()

    receipts, wrong, reads, stop = [], [], [0], threading.Event()
    known = [scores()]

    def read():
        while not stop.is_set():
            seen = scores()
            reads[0] += 1
            if not any(np.array_equal(seen, state) for state in known):
                wrong.append(seen)

    for _ in range(3):  # the states first: forgetting and learning again are repeatable
        receipts.append(engine.forget_users([3], ids="internal"))
        known.append(scores())
        engine.learn(*receipts[-1].pairs, ids="internal")
        known.append(scores())
    twin = engine_of(trained, name)
    twin.refit()
    engine = twin
    reader = threading.Thread(target=read)
    reader.start()
    for receipt in receipts:
        twin.forget_users([3], ids="internal")
        twin.learn(*receipt.pairs, ids="internal")
    stop.set()
    reader.join()
    assert reads[0] and not wrong


def test_a_snapshot_stays_while_the_model_goes_on(trained):
    engine = engine_of(trained, "EASE")
    engine.forget_users([2], ids="internal")
    model, before = engine.snapshot(), dense(engine._matrix)
    X = engine.X.toarray()
    for user in (3, 4, 5):
        engine.forget_users([user], ids="internal")
    engine.fold()
    assert np.array_equal(dense(model.item_similarity), before) and np.array_equal(
        model.interaction_matrix.toarray(), X
    )
    assert not np.array_equal(engine.B, before)


def test_writers_wait_for_one_another(trained):
    engine = engine_of(trained, "EASE")
    users = list(range(3, 11))
    threads = [threading.Thread(target=engine.forget_users, args=([u],), kwargs={"ids": "internal"}) for u in users]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    other = engine_of(trained, "EASE")
    other.forget_users(users, ids="internal")
    assert (engine.X != other.X).nnz == 0 and np.abs(engine.B - other.B).max() < 1e-5


def test_a_checkpoint_remembers_what_a_first_request_computes(trained, monkeypatch):
    engine = engine_of(trained, "EASE")
    engine.forget_users([2], ids="internal")
    engine.save("model.pth")
    again = Unlearner.from_checkpoint("model.pth")
    monkeypatch.setattr("recbole_llmd.unlearning.mapping.ease.inverse_diagonal", None)
    monkeypatch.setattr("recbole_llmd.unlearning.model_hash._in_blocks", None)
    receipt = again.forget_users([3], ids="internal")
    monkeypatch.undo()
    assert receipt.method == "low-rank update" and receipt.hash_before == engine.fingerprint()
    engine.forget_users([3], ids="internal")
    assert np.abs(dense(again._matrix) - engine.B).max() < 1e-6


def test_engines_of_one_model_wait_for_one_another(trained):
    first = engine_of(trained, "EASE")
    second = Unlearner(first.model, first.dataset)
    users = list(range(3, 27))
    threads = [
        threading.Thread(target=engine.forget_users, args=([user],), kwargs={"ids": "internal"})
        for pair in zip(users[::2], users[1::2])
        for engine, user in zip((first, second), pair)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not first.X[users].nnz and (first.X != second.X).nnz == 0
    other = engine_of(trained, "EASE")
    other.forget_users(users, ids="internal")
    assert np.abs(first.B - other.B).max() < 1e-5


def test_newcomers_of_several_threads_all_arrive(trained):
    engine = engine_of(trained, "ItemKNN")
    n_users, failed = engine.model.n_users, []

    def arrive(name):
        try:
            engine.learn([name], ["i1"], grow=True)
        except Exception as error:
            failed.append(error)

    threads = [threading.Thread(target=arrive, args=(f"newcomer {n}",)) for n in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed and engine.model.n_users == n_users + 12
    assert engine.X[n_users:].nnz == 12


@pytest.mark.parametrize("name", ["EASE", "ItemKNN"])
def test_a_loaded_model_grows_at_its_first_request(trained, name):
    engine = engine_of(trained, name)
    engine.forget_users([2], ids="internal")
    engine.save("model.pth")
    again = Unlearner.from_checkpoint("model.pth")
    for one in (engine, again):
        one.learn(["newcomer"] * 2, ["i1", "novelty"], grow=True)
    assert np.abs(dense(again.B) - dense(engine.B)).max() < 1e-6 and again.B.shape == (again.model.n_items,) * 2


def test_hashes_tell_models_apart_and_name_no_pair(trained):
    """One request in two modes ends in two models; equal requests on equal models end in equal hashes."""
    for name in ("ItemKNN", "EASE"):
        hashes = []
        for mode in ("mapping", "interaction", "mapping"):
            engine = engine_of(trained, name, mode=mode)
            engine.refit()
            hashes.append(engine.forget([4], [engine.X[4].indices[0]], ids="internal").hash_after)
        assert hashes[0] == hashes[2] != hashes[1]
