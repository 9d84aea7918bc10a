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
count the time of such a fit for each request answered since.
"""

import copy
from time import perf_counter

import numpy as np

from recbole_llmd.unlearning.engine import IMCorrect
from recbole_llmd.unlearning.receipt import PeakMemory


def clone(model, mapping):
    """A copy of a mapping model with a mapping matrix of its own; X is shared until a correction replaces it."""
    twin = copy.copy(model)
    setattr(twin, mapping.MATRIX, getattr(model, mapping.MATRIX).copy())
    return twin


class Arm:
    """One way to answer requests, in one of the engine's modes.

    Attributes:
        name (str): as tables show it.
        engine (IMCorrect): holds the arm's model.
        seconds (list): what each request took, the update alone.
        peak_bytes (int): the highest memory of a request above what the process held before; None if unknown.
        method (str): what the last request did.
    """

    def __init__(self, name, model, config, mode):
        self.name, self.seconds, self.peak_bytes, self.method = name, [], None, "none"
        self.engine = IMCorrect(model, config, mode=mode, hashes=False)
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
        return self.engine.forget(users, items) if request == "forget" else self.engine.learn(users, items, values)

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

    Users are dealt out at random to ``unlearn_shards`` parts, by RecBole's seed.

    Args:
        parts: the parts' mapping matrices, if they are fitted already to the interactions of ``model``.
    """

    def __init__(self, model, config, parts=None):
        super().__init__("SISA", model, config, "interaction")
        shards, self.dtype = config["unlearn_shards"], self.engine.B.dtype
        self.shard = np.random.default_rng(config["seed"]).permutation(self.model.n_users) % shards
        self.parts = list(parts or map(self._fit, range(shards)))
        self._serve()

    def _settle(self, requests, receipt):
        touched = [np.unique(self.shard[users]) for users in requests]
        again = np.unique(np.concatenate(touched))
        with PeakMemory() as memory:
            started = perf_counter()
            for number in again:
                self.parts[number] = self._fit(number)
            each = (perf_counter() - started) / len(again)
            started = perf_counter()
            self._serve()
            serving = perf_counter() - started
        seconds = [each * len(parts) + serving for parts in touched]
        self._count(seconds, memory.bytes, f"{len(again)} of {len(self.parts)} parts fitted")

    def _fit(self, number):
        return self.engine.mapping.fit(self.engine.X[self.shard == number], self.engine.params, self.dtype)

    def _serve(self):
        mapping = self.engine.mapping
        B = (sum(self.parts[1:], start=self.parts[0]) / len(self.parts)).astype(self.dtype)
        derived = mapping.derived(self.engine.X, B) if hasattr(mapping, "derived") else {}
        for name, value in {mapping.MATRIX: B, **derived}.items():
            setattr(self.model, name, value)
