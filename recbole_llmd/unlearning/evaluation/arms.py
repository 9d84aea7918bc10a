"""The ways to answer a request to forget, side by side on copies of one trained model.

=========== ========================================================================================================
original    the model before the requests
no-op       the requests are accepted and nothing is done
X only      the interactions X are corrected, the mapping B is not
IMCorrect   X and B are corrected
SISA        one model on each of several parts of the users, B averaged; the parts concerned are fitted again (after
            SISA, Bourtoule et al., S&P 2021, and RecEraser, Chen et al., WWW 2022)
retrained   the model fitted from scratch on the retained interactions: the reference
=========== ========================================================================================================

All arms answer the same requests. Those that fit anew (SISA, retrained) do so when :meth:`Arm.settle` is called, and
count the time of such fits for each request answered since.
"""

import copy
from time import perf_counter

import numpy as np

from recbole_llmd.unlearning.unlearner import Unlearner


def clone(model, mapping):
    """A copy of a mapping model with a mapping matrix of its own; X is shared until a correction replaces it."""
    twin = copy.copy(model)
    setattr(twin, mapping.MATRIX, getattr(model, mapping.MATRIX).copy())
    return twin


class Arm:
    """One way to answer requests, in one of the engine's modes.

    Attributes:
        name (str): as tables show it.
        engine (Unlearner): holds the arm's model.
        seconds (list): what each request took, the update alone.
        peak_bytes (int): the highest memory of a request above what the process held before; None if unknown.
        method (str): what the last request did.
    """

    def __init__(self, name, model, config, mode):
        self.name, self.seconds, self.peak_bytes, self.method = name, [], None, "none"
        self.engine = Unlearner(model, config, mode=mode, hashes=False)
        self.engine.model = clone(model, self.engine.mapping)

    @property
    def model(self):
        return self.engine.model

    def answer(self, request, users, items, values=None):
        """Answer a request, ``"forget"`` or ``"learn"``, over pairs of internal ids; returns its receipt."""
        receipt = self._apply(request, users, items, values)
        self._count([receipt.seconds], receipt.peak_bytes, receipt.method)
        return receipt

    def settle(self):
        """Finish what was put off: afterwards the model has answered every request."""

    def _apply(self, request, users, items, values):
        if request == "forget":
            return self.engine.forget(users, items, ids="internal")
        return self.engine.learn(users, items, values, ids="internal")

    def _count(self, seconds, peak_bytes, method):
        self.seconds += seconds
        self.method = method
        if peak_bytes is not None:
            self.peak_bytes = max(self.peak_bytes or 0, peak_bytes)


class _Deferred(Arm):
    """Answers all requests since the last time together, when it is settled."""

    def __init__(self, name, model, config, mode):
        super().__init__(name, model, config, mode)
        self._waiting = []

    def answer(self, request, users, items, values=None):
        values = np.ones(len(users)) if values is None else np.asarray(values, np.float64)
        self._waiting.append((request, np.asarray(users), np.asarray(items), values))

    def settle(self):
        waiting, self._waiting = self._waiting, []
        if waiting:
            self._settle([users for _, users, _, _ in waiting], self._together(waiting))

    def _together(self, waiting):
        return self._apply(waiting[0][0], *(np.concatenate(part) for part in list(zip(*waiting))[1:]))


class Retrained(_Deferred):
    """Fitted from scratch; one fit for all requests since the last one, and counted for each of them."""

    def __init__(self, model, config):
        super().__init__("retrained", model, config, "retrain")

    def _settle(self, requests, receipt):
        self._count([receipt.seconds] * len(requests), receipt.peak_bytes, receipt.method)


class Sisa(_Deferred):
    """Models on parts of the users, their mapping matrices averaged: scores X·B are then the mean of the parts' scores.

    Users are dealt out at random to ``unlearn_shards`` parts, by RecBole's seed. A part that a request concerns counts
    the seconds of its fit from scratch, which is timed once; the mapping matrix that such a fit would give is found by
    correcting the part's.

    Args:
        fitted: the parts of another Sisa of equal interactions, if there is one.
    """

    def __init__(self, model, config, fitted=None):
        super().__init__("SISA", model, config, "interaction")
        shards, users = config["unlearn_shards"], self.model.n_users
        self.shard, self.local = np.full(users, -1), np.zeros(users, np.int64)
        self.shard[1:] = np.random.default_rng(config["seed"]).permutation(users - 1) % shards
        for number in range(shards):
            theirs = self.shard == number
            self.local[theirs] = 1 + np.arange(theirs.sum())
        if fitted:
            self.parts = [(Arm("part", part.model, config, "mapping").engine, receipt) for part, receipt in fitted]
        else:
            self.parts = [self._fitted(number) for number in range(shards)]
        self._serve()

    def _fitted(self, number):
        """The model of one part and the receipt of its fit; row 0 is RecBole's padding, as in the whole model."""
        twin, X = clone(self.model, self.engine.mapping), self.engine.X
        twin.interaction_matrix = X[np.append(0, np.flatnonzero(self.shard == number))]
        twin.n_users = twin.interaction_matrix.shape[0]
        part = Unlearner(twin, self.engine.config, hashes=False)
        return part, part.refit()

    def _settle(self, requests, receipt):
        users, items = np.asarray(receipt.users), np.asarray(receipt.items)
        again = np.unique(self.shard[users])
        for number in again:
            theirs = self.shard[users] == number
            self.parts[number][0].forget(self.local[users[theirs]], items[theirs], ids="internal")
        started = perf_counter()
        self._serve()
        serving = perf_counter() - started
        fits = [fit for _, fit in self.parts]
        seconds = [serving + sum(fits[number].seconds for number in np.unique(self.shard[of])) for of in requests]
        peaks = [fits[number].peak_bytes for number in again]
        peak = None if None in peaks else max(peaks)
        self._count(seconds, peak, f"{len(again)} of {len(self.parts)} parts fitted")

    def _serve(self):
        mapping = self.engine.mapping
        matrices = [part.B for part, _ in self.parts]
        B = (sum(matrices[1:], start=matrices[0]) / len(matrices)).astype(self.engine.B.dtype)
        derived = mapping.derived(self.engine.X, B) if hasattr(mapping, "derived") else {}
        for name, value in {mapping.MATRIX: B, **derived}.items():
            setattr(self.model, name, value)
