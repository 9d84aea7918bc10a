"""From and until which versions the patches of recbole_llmd.compat are needed, as code and document say."""

from pathlib import Path

import pytest

from recbole_llmd import compat

DOCUMENT = Path(__file__).resolve().parents[1] / "docs" / "recbole-today.md"


@pytest.mark.parametrize("patch", compat.PATCHES, ids=lambda patch: patch.name)
def test_a_patch_is_needed_from_its_version_on(patch):
    *major, last = map(int, patch.needed_from.split("."))
    assert patch.needed(patch.needed_from) and patch.needed(f"{patch.needed_from}.1+cpu") and patch.needed("9999")
    assert not patch.needed(".".join(map(str, [*major, last - 1])))


def test_recbole_is_the_release_that_the_patches_were_made_for():
    """After a new RecBole: see which patches its changes end, then set RECBOLE and the words of ``until``."""
    assert compat.installed_version("recbole") == compat.RECBOLE
    assert {patch.package for patch in compat.PATCHES} == {"recbole", "python", "numpy", "scipy", "torch", "pandas"}
    assert {patch.until for patch in compat.PATCHES} == {compat.NEXT_RECBOLE, compat.NEXT_THOP}


def test_the_document_lists_every_patch_with_its_versions():
    table = [line for line in DOCUMENT.read_text(encoding="utf-8").splitlines() if line.startswith("| `")]
    assert table == [
        f"| `{patch.name}` | {patch.cause} | {patch.package} {patch.needed_from} | {patch.until} |"
        for patch in compat.PATCHES
    ]
