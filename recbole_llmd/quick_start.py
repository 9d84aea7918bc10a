"""RecBole's quick start with our results in its dictionary, in one process or many."""

import functools
from logging import getLogger

import recbole.quick_start
from recbole.quick_start import quick_start as recbole_quick_start
from recbole.utils import set_color

from recbole_llmd import results

_run_recboles = recbole_quick_start.run_recboles


def run_recboles(rank, *args):
    """The target of RecBole's spawned processes (``--nproc``); being ours, it loads this package there too."""
    return _run_recboles(rank, *args)


def _with_extra_results(run):
    @functools.wraps(run)
    def wrapper(*args, **kwargs):
        results.take()
        result = run(*args, **kwargs)
        extra = results.take()
        llm = extra.get("llm", {})
        if llm:
            logger = getLogger()
            logger.info(set_color("LLM best valid ", "yellow") + f": {llm.get('best_valid_result')}")
            logger.info(set_color("LLM test result", "yellow") + f": {llm.get('test_result')}")
        return {**result, **extra}

    return wrapper


def install():
    """Extend RecBole's quick start; called once by ``import recbole_llmd``."""
    for name in ("run_recbole", "objective_function"):
        wrapped = _with_extra_results(getattr(recbole_quick_start, name))
        for module in (recbole.quick_start, recbole_quick_start):
            setattr(module, name, wrapped)
    for module in (recbole.quick_start, recbole_quick_start):
        module.run_recboles = run_recboles
