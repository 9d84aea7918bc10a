"""SequentialRules forgets: counts are subtracted, and what rests on them is computed again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from os import PathLike
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray
from recbole.utils import get_model, init_seed

from recbole_llmd.data.identity import KEY, DataIdentity
from recbole_llmd.data.sequences import TrainingSequences, closed_up
from recbole_llmd.data.transitions import Samples
from recbole_llmd.distill.evidence import USUAL, Counts, Evidence, PooledEvidence, Weights, fit_weights
from recbole_llmd.errors import CheckpointError, DataError, ModelError, RequestError, SettingsError
from recbole_llmd.process_memory import PeakMemory
from recbole_llmd.unlearning import checkpoint
from recbole_llmd.unlearning.identifiers import Identifiers
from recbole_llmd.unlearning.mapping.correction import Change, Correction
from recbole_llmd.unlearning.model_hash import hash_of
from recbole_llmd.unlearning.named_requests import NamedRequests
from recbole_llmd.unlearning.published_model import WRITING
from recbole_llmd.unlearning.receipt import Receipt
from recbole_llmd.unlearning.request import Request, pairs_of

if TYPE_CHECKING:
    from recbole.data.dataset import SequentialDataset

    from recbole_llmd.model.sequential_rules import SequentialRules

NOBODY = np.zeros(0, np.int64)
KEPT = "the weights of the kinds of evidence stay as they were fitted before; refit() fits them on what is left"


@dataclass(frozen=True, eq=False)
class _Counted:
    """What a model holds, and the counts that it rests on."""

    sequences: TrainingSequences
    validation: Samples | None
    popularity: NDArray[np.float64]
    evidence: PooledEvidence
    counts: Counts


class SequentialUnlearner(NamedRequests):
    """Lets a trained SequentialRules forget users, and single interactions of users, in place.

    After a request the model holds, to the last bit, what counting anew on the retained training sequences gives with
    the same weights. A sequence closes up where an item is taken out of it. Where a user leaves whole, the weights are
    fitted again without that user's validation sample. A request that fails or is interrupted leaves the model as it
    was.

    >>> from recbole.quick_start import load_data_and_model, run_recbole  # small: a tiny dataset
    >>> given = {key: value for key, value in small.items() if not key.startswith("llm_")}
    >>> result = run_recbole(model="SequentialRules", config_dict=given)
    >>> from pathlib import Path
    >>> engine = SequentialUnlearner.from_checkpoint(next(Path("saved").glob("SequentialRules-*.pth")))
    >>> receipt = engine.forget_users("u3")
    >>> receipt.users, engine.sequences.of_user(engine.user_ids.to_internal("u3")[0][0]).tolist()
    (1, [])
    >>> engine.save("corrected.pth")
    >>> model = load_data_and_model("corrected.pth")[1]
    >>> engine.forget_users("u3")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
        ...
    recbole_llmd.errors.RequestError: user 'u3': there is no interaction to forget. ...

    Args:
        model: a trained SequentialRules.
        dataset: the RecBole dataset that it was trained on.
        refit_weights: whether the weights are fitted again on the validation samples that are left; None to do so where
            a user leaves whole.
        hashes: whether receipts hold the model's hash before and after.
        keep_pairs: whether receipts hold the pairs that were forgotten: personal data.
        salt: of the receipts' digests of the pairs, a secret text; if None, each has one of its own.

    Raises:
        ModelError: if the model is another one or not trained, or its training samples come from no sequences.
        SettingsError: if a setting is of the wrong kind.
        DataError: if the dataset has other numbers of users or items than the model.
    """

    def __init__(
        self,
        model: SequentialRules,
        dataset: SequentialDataset,
        refit_weights: bool | None = None,
        hashes: bool = True,
        keep_pairs: bool = False,
        salt: str | None = None,
    ) -> None:
        self._set_receipts(hashes, keep_pairs, salt)
        if not isinstance(refit_weights, (bool, type(None))):
            raise SettingsError(f"refit_weights = {refit_weights!r}: expected True, False or None.")
        self.name = type(model).__name__
        if not isinstance(getattr(model, "evidence", None), PooledEvidence):
            raise ModelError(f"model = {self.name}: expected a model of counted evidence, after its training.")
        if model.sequences is None:
            raise ModelError(
                f"model = {self.name}: its training samples are not the beginnings of one sequence a user, so that it "
                "is unknown what follows what without an item. Train again on the retained data, or with a split that "
                "takes the first items of every user, such as RecBole's leave-one-out."
            )
        self.model: Any = model
        self.dataset, self.config, self.refit_weights = dataset, dataset.config, refit_weights
        for known, count, kind in (
            (dataset.user_num, model.sequences.n_users, "user"),
            (dataset.item_num, model.n_items, "item"),
        ):
            if known != count:
                raise DataError(
                    f"the dataset has {known - 1} {kind}s and the model {count - 1}: it is not the one that the model "
                    "was trained on. Give that."
                )
        self.identity: DataIdentity | None = DataIdentity.of(dataset)
        self.checkpoint: dict[str, Any] | None = None
        self._counted: _Counted | None = None
        self._hashed: tuple[tuple[object, ...], str] = ((), "")

    @classmethod
    def from_checkpoint(
        cls, path: str | PathLike[str], content: dict[str, Any] | None = None, **settings: Any
    ) -> SequentialUnlearner:
        """The engine of a saved model.

        Args:
            path: a checkpoint written by RecBole's training or by :meth:`save`.
            content: what :func:`~recbole_llmd.unlearning.checkpoint.read` gave of it; read here if None.
            settings: as for the class.

        Raises:
            CheckpointError: if there is no such file, it holds no training sequences, or the data are no longer those
                that the model was trained on.
        """
        content = checkpoint.read(path) if content is None else content
        config, stored = content["config"], content.get("other_parameter") or {}
        if "sequences" not in stored or not content.get(KEY):
            raise CheckpointError(
                f"checkpoint = {str(path)!r}: holds no training sequences, by which a sequential model forgets. Train "
                "again, which writes them."
            )
        dataset = checkpoint.training_data(path, config)
        trained_on = DataIdentity.from_dict(content[KEY])
        checkpoint.refuse_other_data(path, trained_on.mismatch(DataIdentity.of(dataset)))
        init_seed(config["seed"], config["reproducibility"])
        model = get_model(config["model"])(config, dataset)
        model.load_state_dict(content["state_dict"])
        model.load_other_parameter(stored)
        engine = cls(model.to(config["device"]), dataset, **settings)
        engine.checkpoint = checkpoint.not_replaced(content)
        return engine

    def save(self, path: str | PathLike[str]) -> None:
        """Write the model as a checkpoint that RecBole loads; of what was forgotten it holds nothing."""
        checkpoint.write(path, self, {})

    # --- the model ----------------------------------------------------------------------------------------------------

    @property
    def user_ids(self) -> Identifiers:
        """The model's users, by what names them."""
        return Identifiers("user", self.sequences.n_users, self.dataset, self.model.USER_ID)

    @property
    def item_ids(self) -> Identifiers:
        """The model's items, by what names them."""
        return Identifiers("item", self.model.n_items, self.dataset, self.model.ITEM_ID)

    @property
    def sequences(self) -> TrainingSequences:
        """The training sequences that are left."""
        sequences: TrainingSequences = self.model.sequences
        return sequences

    @property
    def _linear(self) -> bool:
        """Whether the linear model is among the evidence, whose matrix is then dense."""
        return isinstance(self.model.evidence.matrix, np.ndarray)

    @property
    def X(self) -> sp.csr_matrix:
        """The training interactions that are left, CSR ``[n_users, n_items]``."""
        return self.sequences.matrix(self.model.n_items)

    @property
    def in_files(self) -> sp.csr_matrix:
        """The training interactions of the data files, CSR ``[n_users, n_items]``."""
        return sp.csr_matrix(self.dataset.inter_matrix(form="csr"))

    def fingerprint(self) -> str:
        """SHA-256 of everything that the model holds, equal for equal models."""
        model, evidence = self.model, self.model.evidence
        held = (evidence, self.sequences, model.validation, model.popularity)
        if len(self._hashed[0]) != len(held) or any(a is not b for a, b in zip(self._hashed[0], held)):
            weights = np.array([*evidence.weights.kinds, evidence.weights.floor, evidence.weights.sharpness])
            matrices = [evidence.next, evidence.matrix, evidence.rest.numpy(), evidence.texts, weights]
            matrices += [model.popularity, self.sequences.items, self.sequences.starts]
            if model.validation is not None:
                matrices += list(vars(model.validation).values())
            self._hashed = held, hash_of(matrix for matrix in matrices if matrix is not None)
        return self._hashed[1]

    # --- requests -----------------------------------------------------------------------------------------------------

    def forget_users(self, users: object, *, ids: str = "token", strict: bool = True) -> Receipt:
        """Remove all interactions of users, and their validation samples.

        Args:
            users: one or many.
            ids: as for :meth:`forget`.
            strict: whether a user of whom the model has nothing is refused; else such are skipped.

        Raises:
            RequestError: if an id is unknown or of another type, or a user has nothing to forget.
        """
        started = perf_counter()
        with WRITING:  # what they have stays until it is forgotten
            leaving = np.unique(self.user_ids.to_internal(users, ids)[0])
            owners, items = pairs_of(self.X, leaving)
            known = owners if self.model.validation is None else np.union1d(owners, self.model.validation.users)
            without = self._without_pairs(self.user_ids, leaving, known, strict)
            resolving = perf_counter() - started
            receipt = self.apply(Request("forget", owners, items), np.intersect1d(leaving, known))
        return replace(receipt, seconds=receipt.seconds + resolving, skipped=without)

    def apply(self, request: Request, leaving: NDArray[np.int64] = NOBODY) -> Receipt:
        """Correct the model as ``request`` says; the one path of all requests.

        Args:
            request: what to forget.
            leaving: users whose validation samples go, too, whether they have training interactions or not.

        Raises:
            RequestError: if it is none to forget, an id is not the model's, or a pair is not there.
        """
        started = perf_counter()
        if request.kind != "forget":
            raise RequestError(f"kind = {request.kind!r}: {self.name} forgets only. Train again with what is new.")
        with WRITING:
            self.user_ids.check(request.users, ())
            self.item_ids.check(request.items, ())
            change, skipped = self._change(request, self.X)
            receipt = self._carried_out(request, change, lambda: self._forgotten(change, leaving), started)
            return replace(receipt, skipped=skipped, users=len(np.union1d(change.users, leaving)))

    def refit(self) -> Receipt:
        """Count anew on the training sequences that are left, and fit the weights on the validation samples left."""
        started = perf_counter()
        with WRITING:
            return self._carried_out(None, Change.none(self.X), self._refitted, started)

    def _forgotten(self, change: Change, leaving: NDArray[np.int64]) -> tuple[_Counted | None, Correction]:
        """What the model holds after a change (None if it changes nothing), and what was done."""
        before, counted, n_items = self.sequences, self._as_counted(), self.model.n_items
        sequences = before.without(change.owners, change.delta.indices)
        left_whole = np.union1d(change.users[sequences.lengths[change.users] == 0], leaving)
        if not len(change.users) and not len(left_whole):
            return None, Correction(None, "nothing to correct")
        old, new = before.samples(change.users), sequences.samples(change.users)
        popularity = counted.popularity - old.popularity(n_items) + new.popularity(n_items)
        validation = self._validation_left(sequences, change.users, left_whole)
        refits = bool(len(left_whole)) if self.refit_weights is None else self.refit_weights
        corrected = self._made(sequences, validation, popularity, counted.counts.exchanged(old, new), refits)
        method = "counts subtracted"
        if self._linear:
            method += ", linear model solved again"
        if refits:
            method += f", weights fitted again on {0 if validation is None else len(validation)} validation samples"
        return corrected, Correction(None, method, notes=() if refits else (KEPT,))

    def _refitted(self) -> tuple[_Counted, Correction]:
        samples, n_items = self.sequences.samples(), self.model.n_items
        popularity, counts = samples.popularity(n_items), Counts.of(samples, n_items, self._linear)
        made = self._made(self.sequences, self.model.validation, popularity, counts, True)
        return made, Correction(None, "refit")

    def _as_counted(self) -> _Counted:
        """What the model holds; the first time, and where it has been loaded since, it is counted."""
        model, known = self.model, self._counted
        if known is None or known.sequences is not model.sequences:
            counts = Counts.of(self.sequences.samples(), model.n_items, self._linear)
            known = _Counted(self.sequences, model.validation, model.popularity, model.evidence, counts)
        return known

    def _validation_left(
        self, sequences: TrainingSequences, changed: NDArray[np.int64], left_whole: NDArray[np.int64]
    ) -> Samples | None:
        samples = self.model.validation
        if samples is None:
            return None
        return closed_up(samples[~np.isin(samples.users, left_whole)], self.sequences, sequences, changed)

    def _made(
        self,
        sequences: TrainingSequences,
        validation: Samples | None,
        popularity: NDArray[np.float64],
        counts: Counts,
        refits: bool,
    ) -> _Counted:
        """The evidence of counts, with the model's weights or those fitted on the validation samples."""
        model, evidence = self.model, Evidence(counts, popularity, self.model.texts)
        weights: Weights = model.evidence.weights
        if refits:
            weights = USUAL if validation is None else fit_weights(evidence, validation)
        return _Counted(sequences, validation, popularity, PooledEvidence(evidence, weights), counts)

    def _carried_out(
        self,
        request: Request | None,
        change: Change,
        correct: Callable[[], tuple[_Counted | None, Correction]],
        started: float,
    ) -> Receipt:
        """Run a correction, set its result, and write its receipt."""
        hashing = perf_counter()
        hash_before = self.fingerprint() if self.hashes else None
        hash_seconds = perf_counter() - hashing
        with PeakMemory() as memory:
            counted, correction = correct()
        if counted is not None:
            self._counted = counted
            vars(self.model).update(
                sequences=counted.sequences,
                validation=counted.validation,
                popularity=counted.popularity,
                evidence=counted.evidence,
            )
        seconds = perf_counter() - started - hash_seconds
        hashing = perf_counter()
        hash_after = self.fingerprint() if self.hashes else None
        return replace(
            Receipt.of(request, change, correction, model=self.name, mode="counts"),
            seconds=seconds,
            hash_seconds=hash_seconds + perf_counter() - hashing,
            peak_bytes=memory.bytes,
            hash_before=hash_before,
            hash_after=hash_after,
            **self._named(change),
        )
