"""Random numbers that neither depend on nor disturb what runs around them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch


@contextlib.contextmanager
def isolated_random_state(seed: int) -> Iterator[None]:
    """Draw torch's random numbers from ``seed`` inside; outside, the generator goes on as if nothing had happened.

    >>> def drawn():
    ...     with isolated_random_state(7):
    ...         return torch.rand(1).item()
    >>> drawn() == drawn()
    True
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield
