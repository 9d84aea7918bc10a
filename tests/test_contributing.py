"""CONTRIBUTING.md is true: its examples are carried out in a copy of the checkout, its layout is the package's."""

import ast
import os
import re
import shutil
import subprocess
import sys

from tests.conftest import REPO

TEXT = (REPO / "CONTRIBUTING.md").read_text(encoding="utf-8")
COPIED = ("recbole_llmd", "properties", "dataset", "docs", "pytest.ini", "tests")
STEP = re.compile(
    r"(?:New file|At the end of|In) `(?P<file>[^`\n]+)`(?:, (?P<side>above|below) `(?P<anchor>[^\n]+)`)?:\n\n"
    r"```\w+\n(?P<code>.*?)```\n",
    re.DOTALL,
)


def steps():
    """The document's changes in order: file, side and anchor (None: at its end, or a new file), lines to add."""
    return [match.group("file", "side", "anchor", "code") for match in STEP.finditer(TEXT)]


def carry_out(root, file, side, anchor, code):
    path = root / file
    if side is None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "a", encoding="utf-8") as stream:
            stream.write(code)
        return
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    (place,) = [number for number, line in enumerate(lines) if anchor in line]
    lines.insert(place + (side == "below"), code)
    path.write_text("".join(lines), encoding="utf-8")


PATCH_TEST = """
from recbole.trainer import trainer
from recbole_llmd.compat import PATCHES
from tests import test_compat as compat

def test_default_valid_metric(monkeypatch):
    name, check = list(compat.CHECKS.items())[-1]
    assert name == PATCHES[-1].name == "default_valid_metric" == list(compat.WITHOUT)[-1]
    assert compat.outcome(check) == ""
    monkeypatch.setattr(trainer, "calculate_valid_score", trainer.calculate_valid_score.__wrapped__)
    message, fails = compat.WITHOUT[name]
    assert fails and message in compat.outcome(check)
"""


def test_the_examples_pass_their_own_tests(tmp_path):
    for name in COPIED:
        copy = shutil.copytree if (REPO / name).is_dir() else shutil.copy
        copy(REPO / name, tmp_path / name)
    for step in steps():
        carry_out(tmp_path, *step)
    (tmp_path / "tests" / "test_patch.py").write_text(PATCH_TEST)  # in this process; all of test_compat.py takes long
    tests = [
        "tests/unlearning/mapping/test_cooccurrence.py",
        "tests/data/test_item_text_lower_case.py",
        "tests/test_patch.py",
        "tests/test_patching.py",
        "tests/test_docstrings.py",
    ]
    chosen = "cooccurrence or lower_case or default_valid_metric or document"
    env = {**os.environ, "PYTHONPATH": str(tmp_path), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests, "-k", chosen]
    done = subprocess.run(command, capture_output=True, text=True, env=env, cwd=tmp_path)
    # the mapping model and its docstrings (5), the setting (5), the patch and its versions (2), the table of patches
    assert re.search(r"\b13 passed, \d+ deselected", done.stdout), done.stdout + done.stderr


def test_every_code_block_is_a_step():
    assert TEXT.count("```") == 2 * len(steps()) == 28


# --- the layout -------------------------------------------------------------------------------------------------------


def layers():
    """The lines of the layout, from the top: the names of each."""
    block = TEXT.split("## Layout\n\n")[1].split("\n\n")[0]
    return [re.split(r",\s+", re.split(r"\s{3,}", line.strip())[0]) for line in block.splitlines()]


def layer_of(module):
    """The number of the line that names a module of the package, or the nearest folder it is in."""
    path = module.split(".")[1:]
    numbers = {name: number for number, names in enumerate(layers()) for name in names}
    while path and "/".join(path) not in numbers:
        path.pop()
    assert path, f"{module} has no line in the layout"
    return numbers["/".join(path)]


def imports_of(file):
    """The package's modules that a file imports where it is itself imported."""
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "recbole_llmd":
            if node.module == "recbole_llmd":
                yield from (f"recbole_llmd.{name.name}" for name in node.names)
            else:
                yield node.module


def test_imports_run_down_the_layout():
    upward = {}
    for file in sorted((REPO / "recbole_llmd").rglob("*.py")):
        module = ".".join(file.relative_to(REPO).with_suffix("").parts).removesuffix(".__init__")
        if module != "recbole_llmd":  # the package itself imports all of them, in the order that RecBole needs
            above = [name for name in imports_of(file) if layer_of(name) < layer_of(module)]
            upward.update({module: above} if above else {})
    assert upward == {}, "modules that import from a line above their own"
