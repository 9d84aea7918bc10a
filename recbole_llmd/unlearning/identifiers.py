"""Users and items as RecBole names them: internal ids (numbers) or tokens (strings)."""

from numbers import Integral

import numpy as np

from recbole_llmd.errors import SettingsError

LARGEST = 2**31  # SciPy's indices


class Ids:
    """The users or the items of a model.

    Args:
        kind: ``"user"`` or ``"item"``, for messages.
        count: how many internal ids the model has, 0 (RecBole's padding) included.
        dataset: the RecBole dataset that knows the tokens, or None.
        field: its name for them, such as ``user_id``.
    """

    def __init__(self, kind, count, dataset, field):
        self.kind, self.count, self.dataset, self.field = kind, count, dataset, field

    def resolve(self, given, grow=False):
        """Internal ids of ``given``.

        Args:
            given: one or many internal ids (any integers) or tokens (strings).
            grow: whether ids that the model does not have yet are accepted: unknown tokens, or the next free numbers.

        Returns:
            tuple: ids [len(given)], and the new tokens in the order of their ids.

        Raises:
            SettingsError: if one is unknown, the padding, or of another type.
        """
        if hasattr(given, "detach"):
            given = given.detach().cpu().numpy()
        if isinstance(given, (str, Integral)):
            given = [given]
        given = given.tolist() if hasattr(given, "tolist") else list(given)
        given = given if isinstance(given, list) else [given]
        if all(isinstance(v, str) for v in given):
            return self._of_tokens(given, grow)
        for value in given:
            if not isinstance(value, Integral) or isinstance(value, bool):
                raise SettingsError(
                    f"{self.kind} = {value!r}: give internal ids (whole numbers) or RecBole's tokens "
                    f"(strings), all of one sort."
                )
        return self._of_numbers(given, grow)

    def _of_tokens(self, tokens, grow):
        if self.dataset is None and tokens:
            raise SettingsError(
                f"{self.kind} = {tokens[0]!r}: a token needs the dataset to be looked up. Build the "
                f"engine with Unlearner(model, dataset), or give internal ids."
            )
        known = self.dataset.field2token_id[self.field] if tokens else {}
        fresh = {}
        for token in tokens:
            if token == "[PAD]":
                raise SettingsError(f"{self.kind} = '[PAD]': this is RecBole's padding, not a {self.kind}.")
            if token not in known:
                if not grow:
                    raise self._unknown(token)
                fresh.setdefault(token, self.count + len(fresh))
        return np.array([fresh[t] if t in fresh else known[t] for t in tokens], np.int64), list(fresh)

    def _of_numbers(self, numbers, grow):
        for number in numbers:
            if not 1 <= number < (LARGEST if grow else self.count):
                raise self._unknown(number)
        ids = np.array(numbers, np.int64)
        new = np.unique(ids[ids >= self.count])
        if not np.array_equal(new, self.count + np.arange(len(new))):
            raise SettingsError(
                f"{self.kind} = {int(new[-1])}: new {self.kind}s take the next free internal ids, from "
                f"{self.count} on without a gap; here they are {new[:10].tolist()}."
            )
        return ids, [str(i) for i in new] if self.dataset is None else self._free_tokens(new)

    def _free_tokens(self, new):
        """Tokens for new internal ids: the number itself, which must not be another's token."""
        known = self.dataset.field2token_id[self.field]
        for number in new:
            if str(number) in known:
                raise SettingsError(
                    f"{self.kind} = {number}: a new internal id needs a token, and {str(number)!r} is "
                    f"another {self.kind}'s. Give the new {self.kind} by its token."
                )
        return [str(number) for number in new]

    def _unknown(self, value):
        rule = (
            f"a token of the dataset's field {self.field!r}"
            if isinstance(value, str)
            else f"an internal id from 1 to {self.count - 1} (0 is RecBole's padding)"
        )
        return SettingsError(
            f"{self.kind} = {value!r}: the model does not know it; expected {rule}. To add a new "
            f"{self.kind}, use learn(..., grow=True)."
        )

    def add(self, tokens):
        """Let the model and its dataset know ``tokens`` as the next ids; changes nothing if there are none."""
        if self.dataset is not None and tokens:
            known, names = self.dataset.field2token_id[self.field], self.dataset.field2id_token
            known.update({token: self.count + i for i, token in enumerate(tokens)})
            names[self.field] = np.append(names[self.field], tokens)
        self.count += len(tokens)
