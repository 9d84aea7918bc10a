"""The suppression list: what was forgotten stays away from every later run, though the data files still have it.

A file of salted digests of users and of pairs, with a checksum; its salt is in ``<list>.salt``. The setting
``suppression_list`` names it, for every model. RecBole's Dataset leaves out what the list has right after it has read
the atomic files, before it numbers users and items: filters, splits and samples know nothing of it.

Entries are only added, at the end. Which ones a run was built with is kept in its Config (``suppression_state``), and
in its checkpoints: read again, such a checkpoint gets the data of its training although the list has grown since, and
what other runs have saved (RecBole's datasets and dataloaders, results of a comparison) is not taken in its place.
"""

from __future__ import annotations

import contextlib
import difflib
import functools
import hashlib
import os
from collections.abc import Sequence
from logging import getLogger
from os import PathLike
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from recbole.config.configurator import Config
from recbole.data.dataset import Dataset
from recbole.utils.argument_list import dataset_arguments

from recbole_llmd.errors import DataError, SettingsError
from recbole_llmd.settings import SUPPRESSION_RULES
from recbole_llmd.unlearning.digests import digest, named_in
from recbole_llmd.unlearning.erasure.durable import durable_write, locked
from recbole_llmd.unlearning.erasure.secrets_files import read_salt

KEY, STATE = "suppression_list", "suppression_state"  # in Configs
HEAD = "recbole-llmd suppression list"
USER, PAIR = "user", "pair"


class SuppressionList:
    """A list of forgotten users and pairs, as salted digests.

    Args:
        path: the file.
        create: whether a file that is not there is an empty list, to be written by :meth:`add`.
        state: what :attr:`state` was, to read the entries of that time alone; None for all.

    Raises:
        DataError: if the file is not there, is damaged, no longer has the entries of ``state``, or belongs to another
            salt.
        SettingsError: if its salt is not there.

    >>> listed = SuppressionList("forgotten.list", create=True)
    >>> listed.add(listed.lines(["u3"], None) + listed.lines(["u1"], ["i7"]))
    >>> users, items = pd.Series(["u1", "u1", "u3"]), pd.Series(["i7", "i8", "i7"])
    >>> SuppressionList("forgotten.list").suppressed(users, items).tolist()
    [True, False, True]
    """

    def __init__(self, path: str | PathLike[str], create: bool = False, state: str | None = None) -> None:
        self.path = os.fspath(path)
        is_new = create and not os.path.exists(path)
        if not is_new and not os.path.isfile(path):
            raise self._refused("there is no such file")
        with locked(self.path, wait=True) if is_new else contextlib.nullcontext():
            self._salt = read_salt(f"{self.path}.salt", create=is_new)
        self._first = f"{HEAD} {digest(self._salt, HEAD)}"
        self.entries: list[str] = [] if is_new else self._read()
        if state is not None:
            self.entries = self.entries[: int(state.split()[0])]
            if self.state != state:
                raise self._refused("no longer has all entries that it had when it was used before")

    @property
    def state(self) -> str:
        """How many entries there are, and a hash of them."""
        return f"{len(self.entries)} {hashlib.sha256(repr(self.entries).encode()).hexdigest()[:16]}"

    def _refused(self, problem: str) -> DataError:
        return DataError(
            f"{KEY} = {self.path!r}: {problem}. Restore it from a copy: without it, what was forgotten would come back."
        )

    def _read(self) -> list[str]:
        with open(self.path, "rb") as stream:
            content = stream.read()
        body, _, last = content.removesuffix(b"\n").rpartition(b"\n")
        if last + b"\n" != _checksum(body) or not content.endswith(b"\n"):
            raise self._refused("is damaged: its checksum is another")
        first, *entries = body.decode("ascii").split("\n")
        if first != self._first:
            raise self._refused(f"does not belong to the salt in {self.path}.salt")
        return entries

    def lines(self, users: Sequence[str], items: Sequence[str] | None) -> list[str]:
        """The entries for what a request names: users [n], and items [n] or None where users are forgotten whole.

        A pair's entry begins with its user's digest, so that only the pairs of such users need to be hashed.
        """
        return [" ".join([USER if items is None else PAIR, *self._digests(named)]) for named in named_in(users, items)]

    def _digests(self, named: tuple[str, ...]) -> list[str]:
        """Of a user, and of the pair if it is one."""
        return [digest(self._salt, *named[:length]) for length in range(1, len(named) + 1)]

    def add(self, lines: Sequence[str]) -> None:
        """Add entries, those that it has once; on the disk when this returns."""
        with locked(self.path, wait=True):
            there = self._read() if os.path.exists(self.path) else []  # by now, another process may have added some
            self.entries = list(dict.fromkeys([*there, *lines]))
            body = "\n".join([self._first, *self.entries]).encode("ascii")
            durable_write(self.path, body + b"\n" + _checksum(body))

    def suppressed_users(self, users: pd.Series) -> NDArray[np.bool_]:
        """Which of the tokens are those of users who were forgotten whole."""
        return self._has(users, {entry.split()[1] for entry in self.entries if entry.startswith(USER)})

    def suppressed(self, users: pd.Series, items: pd.Series) -> NDArray[np.bool_]:
        """Which of the interactions were forgotten, with their user or alone."""
        gone = self.suppressed_users(users)
        entries = [entry.split() for entry in self.entries if entry.startswith(PAIR)]
        owners, pairs = {owner for _, owner, _ in entries}, {pair for *_, pair in entries}
        rows = np.flatnonzero(self._has(users, owners))
        for row, *named in zip(rows, users.iloc[rows], items.iloc[rows]):
            gone[row] |= digest(self._salt, *map(str, named)) in pairs
        return gone

    def _has(self, users: pd.Series, digests: set[str]) -> NDArray[np.bool_]:
        """Which of the tokens have their digest among these; each distinct token is hashed once."""
        numbers, distinct = pd.factorize(users)  # -1 where there is no token
        hit = [bool(digests) and digest(self._salt, str(token)) in digests for token in distinct]
        found: NDArray[np.bool_] = np.array([*hit, False])[numbers]
        return found


def _checksum(body: bytes) -> bytes:
    return b"sha256 " + hashlib.sha256(body).hexdigest().encode() + b"\n"


# --- in RecBole -------------------------------------------------------------------------------------------------------


def install() -> None:
    """Let RecBole's Config and Dataset heed the list; called once by ``import recbole_llmd``."""
    Config._set_default_parameters = _with_check(Config._set_default_parameters)
    Dataset._load_data = _without_suppressed(Dataset._load_data)
    dataset_arguments.extend([KEY, STATE])  # saved datasets and dataloaders are taken where these are the same


def _with_check(set_defaults: Any) -> Any:
    @functools.wraps(set_defaults)
    def _set_default_parameters(self: Config) -> None:
        values = self.final_config_dict
        for key in self.external_config_dict:
            if key != KEY and (key == STATE or difflib.get_close_matches(key, [KEY], cutoff=0.8)):
                raise SettingsError(f"{key} is not a setting. The nearest valid name is {KEY}.")
        path, rule = values.get(KEY), SUPPRESSION_RULES[KEY]
        if not rule.test(path):
            raise SettingsError(f"{KEY} = {path!r}: must be {rule.text}.")
        if path is not None:
            values[STATE] = SuppressionList(path).state
        set_defaults(self)

    return _set_default_parameters


def _without_suppressed(load: Any) -> Any:
    @functools.wraps(load)
    def _load_data(self: Dataset, token: str, dataset_path: str) -> None:
        load(self, token, dataset_path)
        if self.config[KEY] is not None:
            _leave_out(self, SuppressionList(self.config[KEY], state=self.config[STATE]))

    return _load_data


def _leave_out(dataset: Dataset, listed: SuppressionList) -> None:
    """Drop what the list has from all that a dataset has just read of its users."""
    users, items = dataset.inter_feat[dataset.uid_field], dataset.inter_feat[dataset.iid_field]
    gone = listed.suppressed(users, items)
    if dataset.benchmark_filename_list is not None:  # one frame of several files, each with its length
        ends = np.cumsum(dataset.file_size_list)
        kept = np.add.reduceat(~gone, np.append(0, ends[:-1])) if len(gone) else ends
        dataset.file_size_list = [int(size) for size in kept]
    concerned = users[gone].nunique()
    dataset.inter_feat = dataset.inter_feat[~gone].reset_index(drop=True)
    suffixes = dataset.config["additional_feat_suffix"] or []
    columns = [dataset.uid_field, *(dataset.config["alias_of_user_id"] or [])]
    for name in ("user_feat", *(f"{suffix}_feat" for suffix in suffixes)):
        feat = getattr(dataset, name, None)
        for column in columns:
            if feat is not None and column in feat:
                feat = feat[~listed.suppressed_users(feat[column])].reset_index(drop=True)
                setattr(dataset, name, feat)
    getLogger().info(
        f"{listed.path}: {int(gone.sum())} interactions of {concerned} users are left out, as they were forgotten."
    )
