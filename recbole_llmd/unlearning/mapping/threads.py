"""Work on the blocks of a large array by as many threads as BLAS may use (OMP_NUM_THREADS, the processor affinity)."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from threadpoolctl import ThreadpoolController

Block = TypeVar("Block")


@functools.cache
def _libraries() -> ThreadpoolController:
    return ThreadpoolController()


def in_parallel(work: Callable[[Iterator[Block]], object], blocks: Iterable[Block]) -> None:
    """Call ``work(blocks)`` in every thread, with one iterator that they share out among them and single-threaded BLAS.

    NumPy lets the other threads run meanwhile; SciPy's BLAS functions do not. Returns, or raises the first exception,
    when no thread works any more: also at an interrupt, which reaches the waiting main thread alone.
    """
    threads = max((library["num_threads"] for library in _libraries().select(user_api="blas").info()), default=1)
    shared = iter(blocks)
    with _libraries().limit(limits=1, user_api="blas"), ThreadPoolExecutor(threads) as pool:
        for future in [pool.submit(work, shared) for _ in range(threads)]:
            future.result()
