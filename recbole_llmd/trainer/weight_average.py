"""The exponential moving average of a model's trained weights."""

import contextlib

import torch

WARM_UP = 10  # steps after which the average has forgotten the initial weights, however slow its decay


class WeightAverage:
    """Averages a model's trained weights over the steps of its optimizer.

    After n steps the old average counts for ``min(decay, n / (n + WARM_UP))``: the first steps are forgotten soon.

    Args:
        model: the model.
        decay (float): what the average keeps of itself in a step; 0 makes it the model's own weights.
    """

    def __init__(self, model, decay):
        self.model, self.decay = model, decay
        self.steps, self.weights = 0, None

    def restart(self):
        """Begin anew with the weights of the next step."""
        self.steps, self.weights = 0, None

    @torch.no_grad()
    def update(self):
        """Take in the weights after a step."""
        if not self.decay:
            return
        if self.weights is None:
            self.weights = [weight.clone() for weight in self._trained()]
        keep = min(self.decay, self.steps / (self.steps + WARM_UP))
        for average, weight in zip(self.weights, self._trained()):
            average.lerp_(weight, 1 - keep)
        self.steps += 1

    @contextlib.contextmanager
    def in_place(self):
        """Inside, the model has the averaged weights."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def keep(self):
        """Leave the averaged weights in the model."""
        self._swap()
        self.restart()

    @torch.no_grad()
    def _swap(self):
        if self.weights is None:
            return
        for average, weight in zip(self.weights, self._trained()):
            own = weight.clone()
            weight.copy_(average)
            average.copy_(own)
        self.model.train(self.model.training)  # a model forgets what it computed from the other weights

    def _trained(self):
        return [weight for weight in self.model.parameters() if weight.requires_grad]

    def state_dict(self):
        """What :meth:`load_state_dict` goes on from."""
        return {"steps": self.steps, "weights": self.weights}

    def load_state_dict(self, state):
        self.steps, self.weights = state["steps"], state["weights"]
