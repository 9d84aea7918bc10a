"""Users and items by what names them: tokens (strings, as in the data files) or RecBole's internal ids (numbers)."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from recbole_llmd.errors import RequestError

if TYPE_CHECKING:
    from recbole.data.dataset import Dataset

KINDS_OF_ID = ("token", "internal")
LARGEST = 2**31  # SciPy's indices
PADDING = "[PAD]"  # RecBole's token of the internal id 0


class Identifiers:
    """Converts tokens to the internal ids of a model's users or items, and back.

    Args:
        kind: ``"user"`` or ``"item"``, for messages.
        count: how many internal ids the model has, 0 (RecBole's padding) included.
        dataset: the RecBole dataset that knows the tokens, or None.
        field: its name for them, such as ``user_id``.

    >>> from types import SimpleNamespace
    >>> dataset = SimpleNamespace(field2token_id={"user_id": {"[PAD]": 0, "ann": 1, "bob": 2}})
    >>> users = Identifiers("user", 3, dataset, "user_id")
    >>> users.to_internal(["bob", "ann"])[0].tolist()
    [2, 1]
    >>> users.to_internal(2, ids="internal")[0].tolist()
    [2]
    """

    def __init__(self, kind: str, count: int, dataset: Dataset | None, field: str) -> None:
        self.kind, self.count, self.dataset, self.field = kind, count, dataset, field

    def to_internal(
        self, given: object, ids: str = "token", grow: bool = False
    ) -> tuple[NDArray[np.int64], tuple[str, ...]]:
        """Internal ids of ``given``.

        Args:
            given: one or many tokens (strings), or internal ids (whole numbers): a list, tuple, NumPy array, pandas
                Series or tensor of one dimension.
            ids: which of the two they are, ``"token"`` or ``"internal"``.
            grow: whether ids that the model does not have yet are accepted: unknown tokens, or the next free numbers.

        Returns:
            The ids [len(given)], and the new tokens in the order of their ids.

        Raises:
            RequestError: if one is unknown, the padding, or of another type.
        """
        if ids not in KINDS_OF_ID:
            raise RequestError(
                f"ids = {ids!r}: expected 'token' (names as in the data files) or 'internal' (RecBole's numbers)."
            )
        values = self._listed(given)
        for value in values:
            if not _is_token(value) if ids == "token" else not _is_number(value):
                raise self._of_wrong_type(value, ids)
        return self._of_tokens(values, grow) if ids == "token" else self._of_numbers(values, grow)

    def check(self, internal_ids: NDArray[np.int64], new: Sequence[str]) -> None:
        """Refuse a request over ``internal_ids`` [n] that adds the tokens ``new``, in the order of their ids.

        Raises:
            RequestError: if an id is neither the model's nor that of a new token, or a new token has no pair, is not
                new or no text, or the dataset has grown by another model's.
        """
        known = {PADDING: 0} if self.dataset is None else self.dataset.field2token_id[self.field]
        if self.dataset is not None and new and len(known) != self.count:
            raise RequestError(
                f"new {self.kind}s = {_shown(tuple(new))}: the dataset has {len(known)} {self.kind}s and the model "
                f"{self.count}, so that another model has grown it. Give each model a dataset of its own."
            )
        outside = internal_ids[(internal_ids < 1) | (internal_ids >= self.count + len(new))]
        if len(outside):
            raise self._unknown(int(outside[0]))
        with_pair = len(np.unique(internal_ids[internal_ids >= self.count]))
        are_new = all(_is_token(token) and token and token not in known for token in new)
        if with_pair < len(new) or len(set(new)) < len(new) or not are_new:
            raise RequestError(
                f"new {self.kind}s = {_shown(tuple(new))}: each must be a token (text) that the model does not know "
                f"yet, and have a pair in the request; their internal ids begin at {self.count}."
            )

    def token(self, internal_id: int) -> str:
        """The token of one of them; the internal id as text where tokens are unknown."""
        if self.dataset is None:
            return str(internal_id)
        return str(self.dataset.field2id_token[self.field][internal_id])

    def name(self, internal_id: int) -> str:
        """How messages call one of them: by its token where tokens are known."""
        if self.dataset is None:
            return f"{self.kind} {internal_id} (internal id)"
        return f"{self.kind} {str(self.dataset.field2id_token[self.field][internal_id])!r}"

    def _listed(self, given: object) -> list[Any]:
        """The values given, as a list; only a sequence has an order and says how often each is named."""
        if isinstance(given, torch.Tensor):
            given = given.detach().cpu().numpy()
        if isinstance(given, np.ndarray) and given.ndim == 0:
            given = given.item()
        if isinstance(given, (np.ndarray, pd.Series, pd.Index)) and given.ndim == 1:
            given = given.tolist()
        if _is_token(given) or _is_number(given):
            given = [given]
        if isinstance(given, Sequence) and not isinstance(given, (bytes, bytearray, memoryview)):
            return [value.item() if isinstance(value, np.generic) else value for value in given]
        raise RequestError(
            f"{self.kind}s = {_shown(given)}: expected one {self.kind} or a list of them: a list, tuple, NumPy array, "
            f"pandas Series or tensor of one dimension, not {type(given).__name__}. Give a list of tokens (strings), "
            f'or of internal ids (whole numbers) with ids="internal".'
        )

    def _of_wrong_type(self, value: object, ids: str) -> RequestError:
        if ids == "internal":
            rule = 'with ids="internal" only whole numbers name one'
            remedy = 'Leave ids="internal" out to give tokens (strings).'
        elif _is_number(value):
            rule = "a number alone does not say whether it is a token or one of RecBole's internal ids"
            remedy = f'Give the token as a string, {str(value)!r}, or say ids="internal" for RecBole\'s internal ids.'
        else:
            rule = f"a {self.kind} is named by its token, a string"
            remedy = 'Give strings; for RecBole\'s internal ids give whole numbers and ids="internal".'
        return RequestError(f"{self.kind} = {_shown(value)} ({type(value).__name__}): {rule}. {remedy}")

    def _of_tokens(self, tokens: list[str], grow: bool) -> tuple[NDArray[np.int64], tuple[str, ...]]:
        if self.dataset is None and tokens:
            raise RequestError(
                f"{self.kind} = {tokens[0]!r}: a token needs the dataset to be looked up. Build the "
                f'engine with Unlearner(model, dataset), or give internal ids and ids="internal".'
            )
        known = self.dataset.field2token_id[self.field] if self.dataset is not None and tokens else {}
        added: dict[str, int] = {}
        for token in tokens:
            if token == PADDING:
                raise RequestError(
                    f"{self.kind} = {PADDING!r}: this is RecBole's padding and names no {self.kind}. Leave it out."
                )
            if token not in known:
                if not grow:
                    raise self._unknown(token)
                added.setdefault(token, self.count + len(added))
        return np.array([added[t] if t in added else known[t] for t in tokens], np.int64), tuple(added)

    def _of_numbers(self, numbers: list[int], grow: bool) -> tuple[NDArray[np.int64], tuple[str, ...]]:
        for number in numbers:
            if not 1 <= number < (LARGEST if grow else self.count):
                raise self._unknown(number)
        ids = np.array(numbers, np.int64)
        added = np.unique(ids[ids >= self.count])
        if not np.array_equal(added, self.count + np.arange(len(added))):
            raise RequestError(
                f"{self.kind} = {int(added[-1])}: new {self.kind}s take the next free internal ids, from "
                f"{self.count} on without a gap; here they are {added[:10].tolist()}. Number them so, or give tokens."
            )
        return ids, tuple(self._as_token(int(number)) for number in added)

    def _as_token(self, number: int) -> str:
        """The token of a new internal id: the number itself, which must not be another's token."""
        if self.dataset is not None and str(number) in self.dataset.field2token_id[self.field]:
            raise RequestError(
                f"{self.kind} = {number}: a new internal id needs a token, and {str(number)!r} is "
                f"another {self.kind}'s. Give the new {self.kind} by its token."
            )
        return str(number)

    def _unknown(self, value: object) -> RequestError:
        rule = (
            f"a token of the dataset's field {self.field!r}"
            if isinstance(value, str)
            else f"an internal id from 1 to {self.count - 1} (0 is RecBole's padding)"
        )
        return RequestError(
            f"{self.kind} = {value!r}: the model does not know it; expected {rule}. Leave it out, or correct it; only "
            f"learn(..., grow=True) adds new {self.kind}s."
        )


def _is_token(value: object) -> bool:
    return isinstance(value, str)


def _is_number(value: object) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def _shown(value: object) -> str:
    """``value`` in a message: short, and on one line."""
    text = " ".join(repr(value).split())
    return text if len(text) <= 80 else text[:77] + "..."
