"""Random draws that neither depend on nor disturb what runs around them."""

import contextlib

import torch


@contextlib.contextmanager
def isolated_random_state(seed):
    """Draw torch's random numbers from ``seed`` inside; outside, the generator goes on as if nothing had happened."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield
