"""Secrets in files: salts of digests, and keys."""

from __future__ import annotations

import os
import secrets
from os import PathLike

from recbole_llmd.errors import SettingsError
from recbole_llmd.unlearning.erasure.durable import durable_write

SALT_BYTES = 16  # the least that a salt has; a new one has twice as many


def read_salt(path: str | PathLike[str], create: bool = False) -> str:
    """The salt in a file: its text without blanks around it.

    Args:
        path: the file.
        create: whether a file that is not there is made, with a random salt that its owner alone can read.

    Raises:
        SettingsError: if there is no such file, or it holds fewer than 16 characters.
    """
    if create and not os.path.exists(path):
        durable_write(path, (secrets.token_hex(2 * SALT_BYTES) + "\n").encode(), mode=0o600)
    return read_secret(path, "salt")


def read_secret(path: str | PathLike[str], name: str) -> str:
    """The text of a file with a secret (a salt, a key), of 16 characters or more."""
    said = f"{name} file = {os.fspath(path)!r}"
    if not os.path.isfile(path):
        raise SettingsError(f"{said}: there is no such file. Give the one that was used first; no other matches.")
    with open(path, encoding="utf-8", errors="surrogateescape") as stream:
        text = stream.read().strip()
    if len(text) < SALT_BYTES:
        raise SettingsError(
            f"{said}: has {len(text)} characters; at least {SALT_BYTES} are needed. Restore it, or make a random one."
        )
    return text
