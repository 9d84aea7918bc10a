"""The examples in the docstrings: each runs, in a folder of its own, and each public class has one."""

import doctest
import importlib
import inspect
import io
import pkgutil

import pytest
from recbole.trainer import AbstractTrainer

import recbole_llmd
from recbole_llmd.errors import LLMDError

MODULES = [
    "recbole_llmd",
    *(
        module.name
        for module in pkgutil.walk_packages(recbole_llmd.__path__, "recbole_llmd.")
        if "__main__" not in module.name
    ),
]
FLAGS = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS
EXPLAINED_BY_LLMD_ERROR = set(LLMDError.__subclasses__())


def public_classes(module):
    return [
        cls
        for name, cls in vars(module).items()
        if inspect.isclass(cls)
        and cls.__module__ == module.__name__
        and not name.startswith("_")
        and not inspect.isabstract(cls)
        and not getattr(cls, "_is_protocol", False)  # no interfaces
        and not issubclass(cls, AbstractTrainer)  # RecBole finds and makes them by the model's name, nobody by hand
    ]


@pytest.mark.parametrize("name", MODULES)
def test_examples_run(name, fast, build):
    """Examples of models have ``small``, settings of a run that takes a second, and ``build`` of tests/conftest.py."""
    run_examples(name, {"small": fast, "build": build})


def run_examples(name, given):
    module, report = importlib.import_module(name), io.StringIO()
    runner = doctest.DocTestRunner(optionflags=FLAGS)
    for example in doctest.DocTestFinder(exclude_empty=True).find(module, extraglobs=given):
        runner.run(example, out=report.write)
    assert runner.summarize(verbose=False).failed == 0, report.getvalue()


@pytest.mark.parametrize("name", MODULES)
def test_every_public_class_has_an_example(name):
    classes = set(public_classes(importlib.import_module(name))) - EXPLAINED_BY_LLMD_ERROR
    without = [cls.__qualname__ for cls in classes if ">>> " not in (cls.__doc__ or "")]
    assert not without, f"add a short >>> example to the docstring of {', '.join(sorted(without))}"


def test_the_examples_are_run(tmp_path, monkeypatch):
    """A walker that misses a wrong example would pass for ever."""
    (tmp_path / "wrong_example.py").write_text('class Sum:\n    """>>> 1 + 1\n    3\n    """\n')
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(AssertionError, match=r"Expected:\s+3\s+Got:\s+2"):
        run_examples("wrong_example", {})
