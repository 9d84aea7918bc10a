"""Salted digests: which inputs are told apart, and what a salt file must hold."""

import hashlib
import itertools
import stat

import pytest

from recbole_llmd.errors import SettingsError
from recbole_llmd.unlearning.digests import digest, digest_of_request
from recbole_llmd.unlearning.erasure.secrets_files import read_salt


def test_a_digest_is_sha256_of_the_parts_with_their_lengths():
    parts = [b"pepper", "ü1".encode(), b"i1"]
    content = (2).to_bytes(8, "little") + b"".join(len(part).to_bytes(8, "little") + part for part in parts)
    assert digest("pepper", "ü1", "i1") == hashlib.sha256(content).hexdigest()


def test_no_two_inputs_collide():
    words = ["", "a", "b", "ab", "ba", "a\x00", "\x00a", "1", "11"]
    inputs = [(salt, *tokens) for n in (1, 2, 3) for salt in words for tokens in itertools.product(words, repeat=n)]
    assert len({digest(*given) for given in inputs}) == len(inputs)


def test_a_request_has_one_digest_in_any_order():
    assert digest_of_request("s", ["a", "b", "a"], ["1", "2", "1"]) == digest_of_request("s", ["b", "a"], ["2", "1"])
    others = [(["a"], None), (["a", "b"], None), (["a"], ["b"]), (["b"], ["a"]), (["a", "b"], ["1", "2"]), ([], None)]
    assert len({digest_of_request(salt, *named) for salt in ("s", "t") for named in others}) == 12


def test_a_salt_is_made_once_and_only_its_owner_reads_it(workdir):
    salt = read_salt("new.salt", create=True)
    assert len(salt) == 64 and read_salt("new.salt", create=True) == read_salt("new.salt") == salt
    assert read_salt("other.salt", create=True) != salt
    assert stat.S_IMODE((workdir / "new.salt").stat().st_mode) == 0o600


def test_a_missing_or_short_salt_is_refused(workdir):
    with pytest.raises(SettingsError, match=r"salt file = 'none': there is no such file\. Give the one"):
        read_salt("none")
    (workdir / "short").write_text("0123456789abcde\n")
    with pytest.raises(SettingsError, match=r"salt file = 'short': has 15 characters; at least 16 .* Restore it"):
        read_salt("short")
