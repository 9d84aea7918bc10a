"""RecBole's quick start with our results in its dictionary, in one process or many."""

from __future__ import annotations

import functools
from collections.abc import Callable
from logging import getLogger
from typing import Any

import recbole.quick_start
from recbole.quick_start import quick_start as recbole_quick_start
from recbole.utils import set_color

from recbole_llmd.result_collector import collect_results

_run_recboles = recbole_quick_start.run_recboles


def run_recboles(rank: int, *args: Any) -> Any:
    """The target of RecBole's spawned processes (``--nproc``); being ours, it loads this package there too."""
    return _run_recboles(rank, *args)


def install() -> None:
    """Extend RecBole's quick start; called once by ``import recbole_llmd``."""
    ours = {
        name: _with_our_results(getattr(recbole_quick_start, name)) for name in ("run_recbole", "objective_function")
    }
    for module in (recbole.quick_start, recbole_quick_start):
        for name, function in {**ours, "run_recboles": run_recboles}.items():
            setattr(module, name, function)


def _with_our_results(run: Callable[..., dict[str, Any]]) -> Callable[..., dict[str, Any]]:
    @functools.wraps(run)
    def with_our_results(*args: Any, **kwargs: Any) -> dict[str, Any]:
        with collect_results() as ours:
            result = run(*args, **kwargs)
        llm = ours.get("llm", {})
        if llm:
            logger = getLogger()
            logger.info(set_color("LLM best valid ", "yellow") + f": {llm.get('best_valid_result')}")
            logger.info(set_color("LLM test result", "yellow") + f": {llm.get('test_result')}")
        return {**result, **ours}

    return with_our_results
