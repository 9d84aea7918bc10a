"""IMCorrect (arXiv 2307.15960): correct X, then B, of a trained mapping model, without retraining."""

from time import perf_counter

import numpy as np
import scipy.sparse as sp

from recbole_llmd.errors import MappingMismatch, SettingsError
from recbole_llmd.process_memory import PeakMemory
from recbole_llmd.unlearning import checkpoint
from recbole_llmd.unlearning.identifiers import Ids
from recbole_llmd.unlearning.mapping import mapping_of
from recbole_llmd.unlearning.mapping.correction import Change, Correction, State
from recbole_llmd.unlearning.receipt import Receipt, fingerprint

MODES = ("none", "interaction", "mapping", "retrain")


class Unlearner:
    """Lets a trained RecBole mapping model forget and learn interactions, in place.

    RecBole's ``predict``, ``full_sort_predict``, ``trainer.evaluate(..., load_best_model=False)``, saving and loading
    work on the corrected model as before. A request that fails leaves the model as it was.

    Args:
        model: a trained EASE, ItemKNN, SLIMElastic or ADMMSLIM of RecBole.
        source: the RecBole dataset that the model was trained on (or its Config, if no tokens are needed).
        mode: ``"mapping"`` corrects X and B; ``"interaction"`` corrects X alone; ``"none"`` changes nothing;
            ``"retrain"`` corrects X and fits B from scratch.
        tolerance: residual allowed (the mapping module's ``TOLERANCE`` for the dtype of B if None).
        hashes: whether receipts hold the model's hash before and after.

    Raises:
        SettingsError: if the model is no mapping model, or the mode is unknown.
    """

    def __init__(self, model, source, mode="mapping", tolerance=None, hashes=True):
        if mode not in MODES:
            raise SettingsError(f"mode = {mode!r}: expected one of " + ", ".join(map(repr, MODES)) + ".")
        self.model, self.mode, self.tolerance, self.hashes = model, mode, tolerance, hashes
        self.name = type(model).__name__
        self.mapping = mapping_of(self.name)
        dataset = source if hasattr(source, "inter_matrix") else None
        self.config = source if dataset is None else source.config
        self.params = {key: self.config[key] for key in self.mapping.PARAMETERS}
        for key, value in getattr(self.mapping, "REQUIRED", {}).items():
            if self.params[key] != value:
                raise SettingsError(
                    f"{key} = {self.params[key]!r}: {self.name} is corrected with {key} = {value!r} "
                    f"only. Train it so, or retrain on the retained interactions."
                )
        self.user_ids = Ids("user", model.n_users, dataset, model.USER_ID)
        self.item_ids = Ids("item", model.n_items, dataset, model.ITEM_ID)
        self.checkpoint, self.new_tokens = None, {}
        self._cache, self._seen = {}, (None, None)

    @classmethod
    def from_checkpoint(cls, path, **settings):
        """The engine of a model that RecBole saved, built without training it again.

        Args:
            path: a checkpoint written by RecBole or by :meth:`save`.
            settings: as for the class.

        Raises:
            SettingsError: if there is no such file, or it holds no mapping model.
        """
        model, dataset, content = checkpoint.load(path)
        engine = cls(model, dataset, **settings)
        engine.checkpoint, engine.new_tokens = content, dict(content.get("new_tokens", {}))
        return engine

    def save(self, path):
        """Write the model as a checkpoint that RecBole loads."""
        checkpoint.save(path, self)

    @property
    def X(self):
        """The model's interactions, CSR [n_users, n_items] with sorted indices."""
        X = self.model.interaction_matrix
        if not sp.issparse(X) or X.format != "csr" or not X.has_canonical_format:
            X = sp.csr_matrix(X)
            X.sum_duplicates()
        return X

    @property
    def B(self):
        """The model's mapping matrix [n_items, n_items]."""
        return getattr(self.model, self.mapping.MATRIX)

    def forget(self, user_ids, item_ids, strict=True):
        """Remove interactions; pair ``n`` is user ``n`` with item ``n``. Repeated pairs count once.

        Args:
            user_ids, item_ids: internal ids or tokens, of equal number; none is an empty request, which is recorded.
            strict: whether a pair that is not in X is refused; else it is skipped and counted in the receipt.

        Raises:
            SettingsError: if an id is unknown, or a pair is not in X.
        """
        started = perf_counter()
        users, items, _, _ = self._pairs(user_ids, item_ids)
        return self._forget(users, items, strict, started)

    def forget_users(self, user_ids, strict=True):
        """Remove all interactions of users; ``strict`` refuses a user without any.

        Raises:
            SettingsError: if an id is unknown, or a user has nothing to forget.
        """
        started = perf_counter()
        users = np.unique(self.user_ids.resolve(user_ids)[0])
        return self._forget_all(self.X, users, self.user_ids, strict, started)

    def forget_items(self, item_ids, strict=True):
        """Remove all interactions with items; ``strict`` refuses an item without any.

        Raises:
            SettingsError: if an id is unknown, or nobody has an item.
        """
        started = perf_counter()
        items = np.unique(self.item_ids.resolve(item_ids)[0])
        return self._forget_all(self.X.T.tocsr(), items, self.item_ids, strict, started)

    def learn(self, user_ids, item_ids, values=None, strict=True, grow=False):
        """Add interactions; the inverse of :meth:`forget` (to rounding).

        Args:
            user_ids, item_ids: internal ids or tokens, of equal number.
            values: entries of X for the pairs (how often each occurs; receipts hold those forgotten), or None for 1.
            strict: whether a pair that is already in X is refused; else it is skipped and counted in the receipt.
            grow: whether users and items that the model does not know are added to it, and to its dataset's tokens.

        Raises:
            SettingsError: if an id is unknown, a pair is already in X, or values do not fit.
        """
        started = perf_counter()
        users, items, new_users, new_items = self._pairs(user_ids, item_ids, grow)
        values = self._values(values, len(users))
        first = np.unique(users * (items.max(initial=0) + 1) + items, return_index=True)[1]
        users, items, values = users[first], items[first], values[first]
        X = _resized(self.X, len(new_users), len(new_items))
        fresh = np.asarray(X[users, items]).ravel() == 0 if len(users) else np.zeros(0, bool)
        _check(fresh, users, items, "to learn are already in X", strict)
        pairs = users[fresh], items[fresh], values[fresh]
        return self._apply("learn", X, pairs, 1, int((~fresh).sum()), (new_users, new_items), started)

    def refit(self, dtype=None):
        """Fit B on the present X from scratch, as RecBole defines the model, in place.

        For a start without the choices that RecBole leaves open: ItemKNN's ties, the iterations at which SLIMElastic
        and ADMMSLIM stop, float32 (``dtype="float64"``).
        """
        started, dtype = perf_counter(), np.dtype(dtype or self.B.dtype)
        return self._recorded(
            "refit", self.X, ((), (), ()), 0, ((), ()), started, lambda X: self._fitted(X, dtype, "refit")
        )

    # --- requests -----------------------------------------------------------------------------------------------------

    def _pairs(self, user_ids, item_ids, grow=False):
        users, new_users = self.user_ids.resolve(user_ids, grow)
        items, new_items = self.item_ids.resolve(item_ids, grow)
        if len(users) != len(items):
            raise SettingsError(
                f"{len(users)} users and {len(items)} items: pairs need as many of one as the other. "
                f"To forget all of a user or an item, use forget_users or forget_items."
            )
        return users, items, new_users, new_items

    @staticmethod
    def _values(values, number):
        values = np.ones(number) if values is None else np.atleast_1d(np.asarray(values, np.float64))
        if len(values) != number or not (values > 0).all() or (values != np.rint(values)).any():
            raise SettingsError(f"values: expected {number} whole numbers above 0, one per pair (how often it occurs).")
        return values

    def _forget_all(self, X, rows, ids, strict, started):
        lengths = np.diff(X.indptr)[rows]
        if strict and not lengths.all():
            raise SettingsError(
                f"{ids.kind} = {rows[lengths == 0][0]} (internal id): there is no interaction to "
                f"forget. Leave it out, or use strict=False to skip it."
            )
        others = X[rows].indices
        owners = np.repeat(rows, lengths)
        users, items = (owners, others) if ids is self.user_ids else (others, owners)
        return self._forget(users.astype(np.int64), items.astype(np.int64), True, started, int((lengths == 0).sum()))

    def _forget(self, users, items, strict, started, skipped=0):
        X = self.X
        pairs = np.unique(users * X.shape[1] + items)
        users, items = pairs // X.shape[1], pairs % X.shape[1]
        values = np.asarray(X[users, items]).ravel() if len(users) else np.zeros(0)
        there = values != 0
        _check(there, users, items, "to forget are not in X", strict)
        pairs = users[there], items[there], values[there]
        return self._apply("forget", X, pairs, -1, skipped + int((~there).sum()), ((), ()), started)

    def _apply(self, request, X, pairs, sign, skipped, new, started):
        """Correct the model for ``sign``·pairs added to X [already grown]."""
        users, items, values = pairs
        if not len(users):
            return self._recorded(
                request,
                X,
                pairs,
                skipped,
                ((), ()),
                started,
                lambda X: Correction(self.B, "nothing to correct"),
                set_result=False,
            )
        change = sp.csr_matrix(((sign * values).astype(X.dtype), (users, items)), shape=X.shape)
        after = (X + change).tocsr()
        after.eliminate_zeros()
        after.has_canonical_format = True
        return self._recorded(
            request,
            after,
            pairs,
            skipped,
            new,
            started,
            lambda after: self._correct(X, after, new),
            set_result=self.mode != "none",
        )

    def _fitted(self, X, dtype, method):
        return Correction(self.mapping.fit(X, self.params, dtype), method, cache={"own": X.shape})

    def _correct(self, X, after, new):
        """B for X ``after``, according to the mode."""
        B = _padded(self.B, len(new[1]))
        if self.mode == "none":
            return Correction(B, "none")
        if self.mode == "interaction":
            return Correction(B, "X alone")
        dtype = B.dtype
        if self.mode == "retrain":
            return self._fitted(after, dtype, "retrain")
        known = self._seen[0] is self.model.interaction_matrix and self._seen[1] is self.B
        # Empty at the first request and where someone loaded other weights; and again if this correction fails.
        cache, self._cache = self._cache if known else {}, {}
        tolerance = self.mapping.TOLERANCE[str(dtype)] if self.tolerance is None else self.tolerance
        try:
            return self.mapping.correct(State(X, B, self.params, cache), Change.between(X, after), tolerance)
        except MappingMismatch as error:
            raise SettingsError(
                f"{self.name}: {self.mapping.MATRIX} does not belong to interaction_matrix: {error}. Give the dataset "
                f"and the parameters that the model was trained with, or refit() first."
            ) from error

    def _recorded(self, request, after, pairs, skipped, new, started, correct, set_result=True):
        """Run a correction, set its result in the model, and write its receipt."""
        hashing = perf_counter()
        before_hash = fingerprint(self.X, self.B) if self.hashes else None
        hashing = perf_counter() - hashing
        with PeakMemory() as memory:
            correction = correct(after)
            derived = self.mapping.derived(after, correction.B) if hasattr(self.mapping, "derived") else {}
        if set_result:
            self._commit(after, correction, derived, new)
        seconds = perf_counter() - started - hashing
        again = perf_counter()
        after_hash = fingerprint(self.X, self.B) if self.hashes else None
        users, items, values = (np.asarray(part).tolist() for part in pairs)
        return Receipt(
            request=request,
            model=self.name,
            mode=self.mode,
            users=users,
            items=items,
            values=values,
            skipped=skipped,
            new_users=len(new[0]),
            new_items=len(new[1]),
            method=correction.method,
            estimates=correction.estimates,
            residual=correction.residual,
            tolerance=correction.tolerance,
            notes=correction.notes,
            seconds=seconds,
            hash_seconds=hashing + perf_counter() - again,
            peak_bytes=memory.bytes,
            hash_before=before_hash,
            hash_after=after_hash,
        )

    def _commit(self, X, correction, derived, new):
        """The only place that changes the model's attributes: plain assignments, nothing that can fail."""
        model = self.model
        matrices = {"interaction_matrix": X, self.mapping.MATRIX: correction.B, **derived}
        for name, value in matrices.items():
            setattr(model, name, value)
        if new[0] or new[1]:
            for ids, tokens in zip((self.user_ids, self.item_ids), new):
                ids.add(tokens)
                self.new_tokens[ids.field] = [*self.new_tokens.get(ids.field, ()), *tokens]
            model.n_users, model.n_items = self.user_ids.count, self.item_ids.count
            matrices.update(n_users=model.n_users, n_items=model.n_items)
        # What RecBole's checkpoints hold; its ItemKNN leaves out X, its ADMMSLIM everything.
        model.other_parameter_name = list(dict.fromkeys([*getattr(model, "other_parameter_name", ()), *matrices]))
        self._cache, self._seen = correction.cache, (X, correction.B)


def _check(good, users, items, problem, strict):
    if strict and not good.all():
        user, item = users[~good][0], items[~good][0]
        raise SettingsError(
            f"{(~good).sum()} of {len(good)} pairs {problem}, the first: user {user}, item {item} "
            f"(internal ids). Leave them out, or use strict=False to skip them."
        )


def _resized(X, new_users, new_items):
    if not new_users and not new_items:
        return X
    X = X.copy()
    X.resize(X.shape[0] + new_users, X.shape[1] + new_items)
    return X


def _padded(B, new_items):
    """B with rows and columns of zeros for new items: what every mapping model gives an item without interactions."""
    if not new_items:
        return B
    n = B.shape[0] + new_items
    if sp.issparse(B):
        B = B.copy()
        B.resize(n, n)
        return B
    padded = np.zeros((n, n), B.dtype)
    padded[:-new_items, :-new_items] = B
    return padded.view(type(B))
