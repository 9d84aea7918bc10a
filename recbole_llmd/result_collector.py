"""What a run found besides RecBole's result dictionary, collected for whoever started the run."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from typing import Any

Results = dict[str, dict[str, Any]]

_collecting: ContextVar[Results | None] = ContextVar("collected results", default=None)


@contextlib.contextmanager
def collect_results() -> Iterator[Results]:
    """Yield a dict that :func:`add_result` fills inside the block; an inner block collects for itself alone.

    >>> with collect_results() as results:
    ...     add_result("llm", {"test_result": {"ndcg@10": 0.1}})
    >>> results
    {'llm': {'test_result': {'ndcg@10': 0.1}}}
    """
    collected: Results = {}
    token = _collecting.set(collected)
    try:
        yield collected
    finally:
        _collecting.reset(token)


def add_result(key: str, values: Mapping[str, Any]) -> None:
    """Add to the entry ``key`` of the run's results; without effect where nobody collects them."""
    collected = _collecting.get()
    if collected is not None:
        collected.setdefault(key, {}).update(values)
