"""Salted digests: they tell whether a token is the one that was forgotten to whoever has the token and the salt."""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Sequence
from os import PathLike

from recbole_llmd.errors import SettingsError
from recbole_llmd.unlearning.erasure.durable import durable_write

SALT_BYTES = 16  # the least that a salt has; a new one has twice as many


def digest(salt: str, *tokens: str) -> str:
    """SHA-256 of a salt and tokens, as hexadecimal digits.

    Each part has its length in front, so that no two lists of tokens give the same bytes.

    >>> digest("salt", "u1", "i1") == digest("salt", "u1i", "1"), len(digest("salt", "u1"))
    (False, 64)
    """
    hashed = hashlib.sha256(len(tokens).to_bytes(8, "little"))
    for part in (salt, *tokens):
        encoded = part.encode("utf-8", "surrogatepass")
        hashed.update(len(encoded).to_bytes(8, "little") + encoded)
    return hashed.hexdigest()


def digest_of_request(salt: str, users: Sequence[str], items: Sequence[str] | None) -> str:
    """The digest of what a request names, whatever the order, repeated lines counting once.

    Args:
        salt: any text.
        users: tokens ``[n]``.
        items: tokens ``[n]``, or None where the users are forgotten whole.

    >>> digest_of_request("salt", ["u2", "u1", "u1"], None) == digest_of_request("salt", ["u1", "u2"], None)
    True
    """
    return digest(salt, *sorted({digest(salt, *named) for named in named_in(users, items)}))


def named_in(users: Sequence[str], items: Sequence[str] | None) -> list[tuple[str, ...]]:
    """The users or pairs of a request, once each.

    >>> named_in(["u1", "u1", "u2"], None), named_in(["u1"], ["i1"])
    ([('u1',), ('u2',)], [('u1', 'i1')])
    """
    return list(dict.fromkeys(zip(users) if items is None else zip(users, items)))


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
