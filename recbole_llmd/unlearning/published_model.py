"""A RecBole mapping model as readers see it: its matrices, replaced by whole states and never written in place."""

from __future__ import annotations

import copy
import threading
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import scipy.sparse as sp
import torch

from recbole_llmd.data.identity import DataIdentity, added_tokens
from recbole_llmd.unlearning.identifiers import Identifiers
from recbole_llmd.unlearning.mapping.corrected_matrix import CorrectedMatrix
from recbole_llmd.unlearning.mapping.correction import Correction, MappingMatrix, MappingModel
from recbole_llmd.unlearning.model_hash import ModelHash, fingerprint
from recbole_llmd.unlearning.request import Request

if TYPE_CHECKING:
    from recbole.data.dataset import Dataset
    from recbole.model.abstract_recommender import GeneralRecommender


WRITING = threading.RLock()  # held by the request that is being answered: several engines may have one model


class Remembered(NamedTuple):
    """What a correction leaves for the next one, and the X and B that it holds for.

    >>> Remembered().cache
    {}
    """

    X: object = None
    B: object = None
    cache: Mapping[str, Any] = {}


class PublishedModel:
    """What the engine reads of a RecBole model, and the one place that changes it.

    Args:
        model: a trained mapping model of RecBole.
        mapping: the module of its corrections.
        dataset: the RecBole dataset that it was trained on, or None where only internal ids are known.
        hashes: whether its hash is kept.

    >>> import numpy as np
    >>> from recbole_llmd.unlearning.mapping import ease
    >>> class EASE:  # stands for RecBole's: two users and two items (0 is RecBole's padding)
    ...     USER_ID, ITEM_ID, n_users, n_items = "user_id", "item_id", 3, 3
    ...     interaction_matrix = sp.csr_matrix([[0, 0, 0], [0, 1, 1], [0, 1, 0]], dtype=np.float64)
    ...     item_similarity = np.zeros((3, 3))
    >>> published = PublishedModel(EASE(), ease, None, hashes=True)
    >>> published.X.nnz, published.B.shape, published.user_ids.count
    (3, (3, 3), 3)
    """

    def __init__(self, model: GeneralRecommender, mapping: MappingModel, dataset: Dataset | None, hashes: bool) -> None:
        self.model, self.mapping, self.dataset, self.hashes = model, mapping, dataset, hashes
        self.identity: DataIdentity | None = None
        self.params: dict[str, Any] = {}
        self.tolerance: float | None = None
        self._remembered = Remembered()
        self._hash = ModelHash()

    def remembered(self) -> dict[str, Any]:
        """What a checkpoint keeps beside the model: what the first request on it would compute, and its hash."""
        cache = self._known(self.X)
        return {
            "cache": {key: cache[key] for key in ("diagonal", "exact_for") if key in cache},
            "hash": self._hash.of(self.X, self._matrix) if self.hashes else None,
        }

    def remember(self, stored: Mapping[str, Any]) -> None:
        """Take over what :meth:`remembered` gave when the model was saved."""
        X = self.X
        self._remembered = Remembered(X, self._matrix, {**stored["cache"], "stored": True})
        self._hash = ModelHash(stored["hash"])
        self._hash.known_for(X, self._matrix)

    @property
    def X(self) -> sp.csr_matrix:
        """The model's interactions, CSR [n_users, n_items] with sorted indices."""
        X = self.model.interaction_matrix
        if not sp.issparse(X) or X.format != "csr" or not X.has_canonical_format:
            X = sp.csr_matrix(X, copy=True)
            X.sum_duplicates()
        return X

    @property
    def B(self) -> MappingMatrix:
        """The model's mapping matrix [n_items, n_items], with all corrections written into it."""
        self.fold()
        return self._matrix

    @property
    def _matrix(self) -> MappingMatrix:
        """The same as the model has it: corrections may wait beside it."""
        return getattr(self.model, self.mapping.MATRIX)

    def snapshot(self) -> GeneralRecommender:
        """The model as it is now, for a reader: a view that no later request changes.

        It shares the model's matrices, so that it costs nothing; while it is used, it keeps them in memory.
        """
        return copy.copy(self.model)  # one update of a dictionary, as a request's of the model's is

    def fold(self) -> None:
        """Write the corrections that wait beside B into it: one pass over B, into new memory of its size.

        Where their errors have added up to more than the tolerance, B is fitted anew.
        """
        with WRITING:
            waiting, X = self._matrix, self.X
            if isinstance(waiting, CorrectedMatrix):
                fold = cast(Any, self.mapping).fold  # of a module that lets corrections wait
                self._publish(X, fold(waiting, X, self.params, self._tolerance), {})

    @property
    def _tolerance(self) -> float:
        return self.mapping.TOLERANCE[str(self._matrix.dtype)] if self.tolerance is None else self.tolerance

    def fingerprint(self) -> str:
        """SHA-256 of X and B (:func:`~recbole_llmd.unlearning.model_hash.fingerprint`), equal for equal models."""
        return fingerprint(self.X, self.B)

    @property
    def user_ids(self) -> Identifiers:
        """The model's users, by what names them; as many as the model has now, whoever made it grow."""
        return Identifiers("user", self.model.n_users, self.dataset, self.model.USER_ID)

    @property
    def item_ids(self) -> Identifiers:
        """The model's items, by what names them."""
        return Identifiers("item", self.model.n_items, self.dataset, self.model.ITEM_ID)

    @property
    def in_files(self) -> sp.csr_matrix | None:
        """The training interactions of the data files, CSR of X's shape; None without a dataset."""
        if self.dataset is None:
            return None
        X = sp.csr_matrix(self.dataset.inter_matrix(form="csr"))
        X.resize(self.X.shape)
        return X

    @property
    def new_tokens(self) -> dict[str, list[str]]:
        """The tokens that the model has beyond those of the data files, by field, in the order of their ids."""
        if self.dataset is None or self.identity is None:
            return {}
        return {
            ids.field: list(map(str, self.dataset.field2id_token[ids.field][in_files : ids.count]))
            for ids, in_files in ((self.user_ids, len(self.identity.users)), (self.item_ids, len(self.identity.items)))
        }

    def _known(self, X: sp.csr_matrix) -> Mapping[str, Any]:
        """What the last correction left for the next one; nothing where someone has loaded other matrices since."""
        remembered = self._remembered
        return remembered.cache if remembered.X is X and remembered.B is self._matrix else {}

    def _publish(
        self,
        X: sp.csr_matrix,
        correction: Correction,
        derived: dict[str, Any],
        request: Request | None = None,
    ) -> None:
        """The only place that changes the model: dictionaries are updated, all of them or none.

        An interrupt may come between two updates. The updates are then repeated, since each may be done twice.
        """
        model = self.model
        attributes = {"interaction_matrix": X, self.mapping.MATRIX: correction.B, **where_it_is(model, derived)}
        updates: list[tuple[dict[str, Any], dict[str, Any]]] = [
            (vars(self), {"_remembered": Remembered(X, correction.B, correction.cache)})
        ]
        if request is not None and (request.new_users or request.new_items):
            attributes.update(n_users=X.shape[0], n_items=X.shape[1])
            if self.dataset is not None:
                new = {model.USER_ID: request.new_users, model.ITEM_ID: request.new_items}
                updates += added_tokens(self.dataset, new)
        # What RecBole's checkpoints hold; its ItemKNN leaves out X, its ADMMSLIM everything.
        stored = list(dict.fromkeys([*getattr(model, "other_parameter_name", ()), *attributes]))
        updates.append((vars(model), {**attributes, "other_parameter_name": stored}))
        try:
            _update(updates)
        except BaseException:
            _update(updates)
            raise


def where_it_is(model: GeneralRecommender, attributes: Mapping[str, Any]) -> dict[str, Any]:
    """Attributes of a model with their tensors on its device."""
    return {
        name: value.to(model.device) if isinstance(value, torch.Tensor) else value for name, value in attributes.items()
    }


def _update(updates: Iterable[tuple[dict[str, Any], dict[str, Any]]]) -> None:
    for target, entries in updates:
        target.update(entries)
