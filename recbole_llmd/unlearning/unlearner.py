"""IMCorrect (arXiv 2307.15960): correct X, then B, of a trained mapping model, without retraining."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from numbers import Real
from os import PathLike
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse as sp
from numpy.typing import ArrayLike, DTypeLike
from recbole.config import Config

from recbole_llmd import registry
from recbole_llmd.data.identity import DataIdentity
from recbole_llmd.errors import DataError, MappingMismatch, RequestError, SettingsError, UnsolvedError
from recbole_llmd.process_memory import PeakMemory
from recbole_llmd.unlearning import checkpoint
from recbole_llmd.unlearning.mapping.correction import Change, Correction, FittedMapping, axis, padded
from recbole_llmd.unlearning.named_requests import NamedRequests
from recbole_llmd.unlearning.published_model import WRITING, PublishedModel
from recbole_llmd.unlearning.receipt import Receipt
from recbole_llmd.unlearning.request import Request, pairs_of

if TYPE_CHECKING:
    from recbole.data.dataset import Dataset
    from recbole.model.abstract_recommender import GeneralRecommender

MODES = ("none", "interaction", "mapping", "retrain")


class Unlearner(PublishedModel, NamedRequests):
    """Lets a trained RecBole mapping model forget and learn interactions, in place.

    RecBole's ``predict``, ``full_sort_predict``, ``trainer.evaluate(..., load_best_model=False)``, saving and loading
    work on the corrected model as before. Users and items are named by their tokens, or by RecBole's internal ids where
    ``ids="internal"`` says so. A request that fails or is interrupted leaves the model as it was; a request changes
    nothing that a :meth:`snapshot` reads. Requests of several threads wait for one another.

    >>> class EASE:  # what is read of RecBole's model: two users and three items (0 is RecBole's padding)
    ...     USER_ID, ITEM_ID, n_users, n_items = "user_id", "item_id", 3, 4
    ...     interaction_matrix = sp.csr_matrix([[0, 0, 0, 0], [0, 1, 1, 0], [0, 1, 0, 1]], dtype=np.float64)
    ...     item_similarity = np.zeros((4, 4))
    >>> model = EASE()
    >>> engine = Unlearner(model, {"reg_weight": 1.0})
    >>> engine.refit().method
    'refit'
    >>> receipt = engine.forget(2, 3, ids="internal")
    >>> receipt.users, receipt.interactions, receipt.residual < receipt.tolerance
    (1, 1, True)
    >>> bool(model.item_similarity[:, 3].any()), int(model.interaction_matrix.nnz)
    (False, 3)
    >>> engine.learn(2, 3, ids="internal").interactions
    1
    >>> engine.forget(2, 2, ids="internal")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
        ...
    recbole_llmd.errors.RequestError: 1 of 1 pairs to forget are not in X, the training interactions; ...

    Args:
        model: a trained EASE, ItemKNN, SLIMElastic, ADMMSLIM, AsymKNN or NCEPLRec of RecBole, or a DualEASE or
            SparseEASE.
        source: the RecBole dataset that the model was trained on (or its Config, if no tokens are needed).
        mode: ``"mapping"`` corrects X and B; ``"interaction"`` corrects X alone; ``"none"`` changes nothing;
            ``"retrain"`` corrects X and fits B from scratch.
        tolerance: residual allowed (the mapping module's ``TOLERANCE`` for the dtype of B if None).
        hashes: whether receipts hold the model's hash before and after.
        keep_pairs: whether receipts hold the pairs that were forgotten or learned: personal data.
        salt: of the receipts' digests of the pairs, a secret text; if None, each has one of its own.

    Raises:
        ModelError: if the model is no mapping model.
        SettingsError: if the mode is unknown, another argument is of the wrong kind, or the model was trained with a
            setting that is not in ``source`` or cannot be corrected.
        DataError: if the dataset has other numbers of users or items than the model.
    """

    def __init__(
        self,
        model: GeneralRecommender,
        source: Dataset | Config,
        mode: str = "mapping",
        tolerance: float | None = None,
        hashes: bool = True,
        keep_pairs: bool = False,
        salt: str | None = None,
    ) -> None:
        if mode not in MODES:
            raise SettingsError(f"mode = {mode!r}: expected one of " + ", ".join(map(repr, MODES)) + ".")
        self._set_receipts(hashes, keep_pairs, salt)
        self.mode, self.tolerance = mode, tolerance
        self.name = type(model).__name__
        dataset = source if hasattr(source, "inter_matrix") else None
        super().__init__(model, registry.mapping_module(self.name), dataset, hashes)
        known = isinstance(tolerance, Real) and not isinstance(tolerance, bool)
        if tolerance is not None and not (known and 0 < float(tolerance) < np.inf):
            raise SettingsError(f"tolerance = {tolerance!r}: must be a number above 0, or None.")
        self.config = source if dataset is None else source.config
        self.params = self._parameters()
        self._check_counts()
        self.identity = DataIdentity.of(self.dataset) if self.dataset is not None else None
        self.checkpoint: dict[str, Any] | None = None

    @classmethod
    def from_checkpoint(
        cls, path: str | PathLike[str], content: dict[str, Any] | None = None, **settings: Any
    ) -> Unlearner:
        """The engine of a model that RecBole saved, built without training it again.

        Args:
            path: a checkpoint written by RecBole or by :meth:`save`.
            content: what :func:`~recbole_llmd.unlearning.checkpoint.read` gave of it; read here if None.
            settings: as for the class.

        Raises:
            CheckpointError: if there is no such file, RecBole did not write it, or the data are no longer those that
                the model was trained on.
            ModelError: if it holds no mapping model.
        """
        loaded = checkpoint.load(path, content)
        engine = cls(loaded.model, loaded.dataset, **settings)
        engine.checkpoint = checkpoint.not_replaced(loaded.content)
        if checkpoint.REMEMBERED in loaded.content:
            engine.remember(loaded.content[checkpoint.REMEMBERED])
        return engine

    def save(self, path: str | PathLike[str]) -> None:
        """Write the model as a checkpoint that RecBole loads.

        An engine that was built from a Config alone does not know which data its ids belong to: what it saves is
        refused by :meth:`from_checkpoint`.
        """
        checkpoint.save(path, self)

    def _parameters(self) -> dict[str, Any]:
        """The model's parameters, by RecBole's keys."""
        if not isinstance(self.config, (Config, Mapping)):
            raise SettingsError(
                f"source = {type(self.config).__name__}: expected the dataset that the model was trained on, such as "
                "train_data.dataset, or its Config."
            )
        params = {key: self.config[key] for key in self.mapping.PARAMETERS if key in self.config}
        if self.mapping.PARAMETERS and all(value is None for value in params.values()):
            raise SettingsError(
                f"{', '.join(self.mapping.PARAMETERS)}: none is in the Config given, which is another model's than "
                f"{self.name}'s. Give the one that the model was trained with."
            )
        params = dict.fromkeys(self.mapping.PARAMETERS) | params
        for key, value in self.mapping.REQUIRED.items():
            if params[key] != value:
                raise SettingsError(
                    f"{key} = {params[key]!r}: {self.name} is corrected with {key} = {value!r} "
                    f"only. Train it so, or retrain on the retained interactions."
                )
        return params

    def _check_counts(self) -> None:
        """Refuse a dataset of other users or items, whose tokens would name the model's wrongly."""
        if self.dataset is None:
            return
        for ids in (self.user_ids, self.item_ids):
            known = len(self.dataset.field2id_token[ids.field])
            if known != ids.count:
                raise DataError(
                    f"the dataset has {known - 1} {ids.kind}s and the model {ids.count - 1}: it is not the one that "
                    "the model was trained on. Give that, or the Config alone and internal ids."
                )

    # --- requests by tokens or ids ------------------------------------------------------------------------------------

    def forget_users(self, users: object, *, ids: str = "token", strict: bool = True) -> Receipt:
        """Remove all interactions of users; ``ids`` as for :meth:`forget`, ``strict`` refuses a user without any.

        Raises:
            RequestError: if an id is unknown or of another type, or a user has nothing to forget.
        """
        started = perf_counter()
        with WRITING:  # what they have stays until it is forgotten
            leaving = np.unique(self.user_ids.to_internal(users, ids)[0])
            owners, items = pairs_of(self.X, leaving)
            without = self._without_pairs(self.user_ids, leaving, owners, strict)
            return self._answered(Request("forget", owners, items), started, without)

    def forget_items(self, items: object, *, ids: str = "token", strict: bool = True) -> Receipt:
        """Remove all interactions with items; ``ids`` as for :meth:`forget`, ``strict`` refuses an item without any.

        Raises:
            RequestError: if an id is unknown or of another type, or nobody has an item.
        """
        started = perf_counter()
        with WRITING:
            leaving = np.unique(self.item_ids.to_internal(items, ids)[0])
            owned, users = pairs_of(self.X.T.tocsr(), leaving)
            without = self._without_pairs(self.item_ids, leaving, owned, strict)
            return self._answered(Request("forget", users, owned), started, without)

    def learn(
        self,
        users: object,
        items: object,
        values: ArrayLike | None = None,
        *,
        ids: str = "token",
        strict: bool = True,
        grow: bool = False,
    ) -> Receipt:
        """Add interactions; the inverse of :meth:`forget` (to rounding).

        Args:
            users: one or many, named as ``ids`` says (see :meth:`forget`).
            items: as many as users.
            values: entries of X for the pairs (how often each occurs; receipts hold those forgotten), or None for 1.
            ids: ``"token"`` or ``"internal"``.
            strict: whether a pair that is already in X is refused; else it is skipped and counted in the receipt.
            grow: whether users and items that the model does not know are added to it, and to its dataset's tokens.

        Raises:
            RequestError: if an id is unknown or of another type, a pair is already in X, or values do not fit.
        """
        started = perf_counter()
        if not isinstance(grow, bool):
            raise RequestError(f"grow = {grow!r}: expected True or False.")
        weights: Any = values  # checked by the request
        with WRITING:  # the numbers of newcomers are theirs until they are there
            user_ids, new_users = self.user_ids.to_internal(users, ids, grow)
            item_ids, new_items = self.item_ids.to_internal(items, ids, grow)
            return self._answered(Request("learn", user_ids, item_ids, weights, new_users, new_items, strict), started)

    # --- the one path -------------------------------------------------------------------------------------------------

    def apply(self, request: Request) -> Receipt:
        """Correct the model as ``request`` says; the one path of all requests.

        Raises:
            RequestError: if an id is not the model's, or a pair is not there to forget or already there to learn.
            MappingMismatch: if B does not belong to X, so that there is nothing to correct it from.
            UnsolvedError: if the corrected B does not solve its equations to the tolerance.
        """
        started = perf_counter()
        with WRITING:
            for identifiers, internal_ids, new in (
                (self.user_ids, request.users, request.new_users),
                (self.item_ids, request.items, request.new_items),
            ):
                identifiers.check(internal_ids, new)
            X = request.grown(self.X)
            change, skipped = self._change(request, X)
            receipt = self._carried_out(request, change, lambda: self._correct(X, change), started)
        return replace(receipt, skipped=skipped)

    def refit(self, dtype: DTypeLike | None = None) -> Receipt:
        """Fit B on the present X from scratch, as RecBole defines the model.

        For a model without the choices that RecBole leaves open: ItemKNN's ties, the iterations at which SLIMElastic
        and ADMMSLIM stop, float32 (``dtype="float64"``).
        """
        started = perf_counter()
        with WRITING:
            X = self.X
            target = np.dtype(self._matrix.dtype if dtype is None else dtype)
            return self._carried_out(None, Change.none(X), lambda: self._fitted(X, target, "refit"), started)

    def _correct(self, X: sp.csr_matrix, change: Change) -> Correction:
        """B for ``change`` of X [already grown], according to the mode."""
        B = self._matrix
        if not len(change.users):
            return Correction(B, "nothing to correct")
        cache = self._known(self.X)
        B = padded(B, X.shape[axis(self.params)] - B.shape[0])
        if self.mode == "none":
            return Correction(B, "none")
        if self.mode == "interaction":
            return Correction(B, "X alone")
        if self.mode == "retrain":
            return self._fitted(change.X, B.dtype, "retrain")
        try:
            return self.mapping.correct(FittedMapping(X, B, self.params, cache), change, self._tolerance)
        except MappingMismatch as error:
            raise MappingMismatch(
                f"{self.name}: {self.mapping.MATRIX} does not belong to interaction_matrix: {error}. Give the dataset "
                f"and the parameters that the model was trained with, or refit() first."
            ) from error

    def _fitted(self, X: sp.csr_matrix, dtype: DTypeLike, method: str) -> Correction:
        try:
            return Correction(self.mapping.fit(X, self.params, dtype), method, cache={"exact_for": X.shape})
        except np.linalg.LinAlgError as error:
            raise UnsolvedError(
                f"{self.name} cannot be fitted: {error} A larger penalty or float64 is needed."
            ) from error

    def _carried_out(
        self, request: Request | None, change: Change, correct: Callable[[], Correction], started: float
    ) -> Receipt:
        """Run a correction for ``change`` (a refit if there is no request), set its result, and write its receipt."""
        self._hash.seconds = 0.0
        hash_before = self._hash.of(self.X, self._matrix) if self.hashes else None
        with PeakMemory() as memory:
            correction = correct()
            derived = self.mapping.derived(change.X, correction.B, self.params)
        changes = request is None or bool(len(change.users) and self.mode != "none")
        if changes:
            self._publish(change.X, correction, derived, request)
        seconds = perf_counter() - started - self._hash.seconds
        hash_after = self._hash.after(change, correction.B) if self.hashes and changes else hash_before
        return replace(
            Receipt.of(request, change, correction, model=self.name, mode=self.mode),
            seconds=seconds,
            hash_seconds=self._hash.seconds,
            peak_bytes=memory.bytes,
            hash_before=hash_before,
            hash_after=hash_after,
            **self._named(change),
        )
