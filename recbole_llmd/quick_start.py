"""RecBole's quick start with our results in its dictionary, in one process or many."""

from __future__ import annotations

import functools
import zipfile
from collections.abc import Callable
from logging import getLogger
from typing import Any

import recbole.quick_start
import torch
from recbole.quick_start import quick_start as recbole_quick_start
from recbole.utils import set_color

from recbole_llmd.data.identity import KEY, NEW_TOKENS, DataIdentity, add_tokens
from recbole_llmd.errors import CheckpointError
from recbole_llmd.result_collector import collect_results

_run_recboles = recbole_quick_start.run_recboles


def run_recboles(rank: int, *args: Any) -> Any:
    """The target of RecBole's spawned processes (``--nproc``); being ours, it loads this package there too."""
    return _run_recboles(rank, *args)


def install() -> None:
    """Extend RecBole's quick start; called once by ``import recbole_llmd``."""
    ours = {
        "run_recbole": _with_our_results(recbole_quick_start.run_recbole),
        "objective_function": _with_our_results(recbole_quick_start.objective_function),
        "load_data_and_model": _with_check_of_the_data(recbole_quick_start.load_data_and_model),
        "run_recboles": run_recboles,
    }
    for module in (recbole.quick_start, recbole_quick_start):
        for name, function in ours.items():
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


def _with_check_of_the_data(load: Callable[[str], tuple[Any, ...]]) -> Callable[[str], tuple[Any, ...]]:
    """RecBole's ``load_data_and_model`` that refuses a checkpoint of ours whose users or items have other ids today.

    Its datasets learn the users and items that a model has beyond those of the data files.
    """

    @functools.wraps(load)
    def load_data_and_model(model_file: str) -> tuple[Any, ...]:
        loaded = load(model_file)
        # Named by the user; the tensors, which RecBole has read already, stay in the file.
        in_file = zipfile.is_zipfile(model_file)
        content = torch.load(model_file, map_location="cpu", weights_only=False, mmap=in_file)
        stored = content.get(KEY)
        if stored is not None:
            then, now = DataIdentity.from_dict(stored), DataIdentity.of(loaded[3].dataset)
            changed = then.mismatch(now)
            if changed and (then.users, then.items) != (now.users, now.items):
                raise CheckpointError(
                    f"checkpoint = {model_file!r}: its data have changed since its training: {changed}. Its ids mean "
                    "others now. Restore the data file, or train again."
                )
            if changed:
                getLogger().warning(f"{model_file}: its data have changed since its training: {changed}.")
        datasets = [loaded[2], *(loader._dataset for loader in loaded[3:])]
        for dataset in {id(dataset.field2id_token): dataset for dataset in datasets}.values():  # some share tokens
            for field, tokens in content.get(NEW_TOKENS, {}).items():
                add_tokens(dataset, field, tokens)
        return loaded

    return load_data_and_model
