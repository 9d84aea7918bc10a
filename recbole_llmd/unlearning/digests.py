"""Salted digests: they tell whether a token is the one that was forgotten to whoever has the token and the salt."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence


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
