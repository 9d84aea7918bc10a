"""The exponential moving average of a model's trained weights."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

WARM_UP = 10  # steps after which the average has forgotten the initial weights, however slow its decay


class WeightAverage:
    """Averages a model's trained weights over the steps of its optimizer.

    After n steps the old average counts for ``min(decay, n / (n + WARM_UP))``: the first steps are forgotten soon.

    Args:
        model: the model.
        decay: what the average keeps of itself in a step; 0 makes it the model's own weights.

    >>> model = torch.nn.Linear(1, 1, bias=False)
    >>> average = WeightAverage(model, decay=0.9)
    >>> for value in (1.0, 12.0):
    ...     _ = model.weight.data.fill_(value)
    ...     average.update()
    >>> with average.in_place():
    ...     round(model.weight.item(), 4)  # 1/11 of the first step's, 10/11 of the second's
    11.0
    >>> model.weight.item()
    12.0
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.model, self.decay = model, decay
        self.steps = 0
        self.weights: list[Tensor] | None = None

    def restart(self) -> None:
        """Begin anew with the weights of the next step."""
        self.steps, self.weights = 0, None

    @torch.no_grad()
    def update(self) -> None:
        """Count the weights after a step."""
        if not self.decay:
            return
        if self.weights is None:
            self.weights = [weight.clone() for weight in self._trained()]
        keep = min(self.decay, self.steps / (self.steps + WARM_UP))
        for average, weight in zip(self.weights, self._trained()):
            average.lerp_(weight, 1 - keep)
        self.steps += 1

    @contextlib.contextmanager
    def in_place(self) -> Iterator[None]:
        """Inside, the model has the averaged weights."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def keep(self) -> None:
        """Leave the averaged weights in the model."""
        self._swap()
        self.restart()

    @torch.no_grad()
    def _swap(self) -> None:
        if self.weights is None:
            return
        for average, weight in zip(self.weights, self._trained()):
            own = weight.clone()
            weight.copy_(average)
            average.copy_(own)
        self.model.train(self.model.training)  # a model forgets what it computed from the other weights

    def _trained(self) -> list[nn.Parameter]:
        return [weight for weight in self.model.parameters() if weight.requires_grad]

    def state_dict(self) -> dict[str, Any]:
        """What :meth:`load_state_dict` goes on from."""
        return {"steps": self.steps, "weights": self.weights}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what :meth:`state_dict` gave."""
        self.steps, self.weights = state["steps"], state["weights"]
