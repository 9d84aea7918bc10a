"""Patches are applied where their versions need them; code and document say from and until which."""

from pathlib import Path

import pytest

from recbole_llmd import compat, patching
from recbole_llmd.patching import Patch

DOCUMENT = Path(__file__).resolve().parents[1] / "docs" / "recbole-today.md"


@pytest.mark.parametrize("patch", compat.PATCHES, ids=lambda patch: patch.name)
def test_a_patch_is_needed_from_its_version_on(patch):
    *major, last = map(int, patch.needed_from.split("."))
    assert patch.needed(patch.needed_from) and patch.needed(f"{patch.needed_from}.1+cpu") and patch.needed("9999")
    assert not patch.needed(".".join(map(str, [*major, last - 1])))


def test_recbole_is_the_release_that_the_patches_were_made_for():
    """After a new RecBole: see which patches its changes end, then set RECBOLE and the words of ``until``."""
    assert patching.installed_version("recbole") == patching.RECBOLE
    assert {patch.package for patch in compat.PATCHES} == {"recbole", "python", "numpy", "scipy", "torch", "pandas"}
    assert {patch.until for patch in compat.PATCHES} == {patching.NEXT_RECBOLE, patching.NEXT_THOP}


def test_the_document_lists_every_patch_with_its_versions():
    table = [line for line in DOCUMENT.read_text(encoding="utf-8").splitlines() if line.startswith("| `")]
    assert table == [
        f"| `{patch.name}` | {patch.cause} | {patch.package} {patch.needed_from} | {patch.until} |"
        for patch in compat.PATCHES
    ]


def test_apply_runs_every_needed_patch_once(monkeypatch):
    calls = []
    patches = [
        Patch(lambda: calls.append("a"), "fails from NumPy 1 on", "numpy", "1", "NumPy 0"),
        Patch(lambda: calls.append("b"), "fails with a NumPy of the future", "numpy", "999", "NumPy 1000"),
        Patch(lambda: calls.append("c"), "fails with what is not known", "recbole-llmd-none", "1", "it is known"),
    ]
    monkeypatch.setattr(compat, "PATCHES", patches)
    compat.apply.cache_clear()
    compat.apply()
    compat.apply()
    assert calls == ["a", "c"]
