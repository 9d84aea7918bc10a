"""The averaged weights against the recursion written out, and what of a side is evaluated and kept."""

import pytest
import torch

from recbole_llmd.trainer.weight_average import WARM_UP, WeightAverage


class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.trained = torch.nn.Parameter(torch.tensor([0.0, 10.0]))
        self.frozen = torch.nn.Parameter(torch.tensor([5.0]), requires_grad=False)


def steps(average, values):
    for value in values:
        average.model.trained.data = torch.tensor([value, 10 - value])
        average.update()


@pytest.mark.parametrize("decay", [0.5, 0.95])
def test_average_is_the_recursion(decay):
    values = [1.0, 4.0, 2.0, 8.0, 5.0, 7.0, 1.0]
    average = WeightAverage(Model(), decay)
    steps(average, values)
    expected = values[0]
    for n, value in enumerate(values):
        keep = min(decay, n / (n + WARM_UP))
        expected = keep * expected + (1 - keep) * value
    with average.in_place():
        assert average.model.trained.tolist() == pytest.approx([expected, 10 - expected])
        assert average.model.frozen.item() == 5
    assert average.model.trained.tolist() == [1, 9]


def test_training_goes_on_from_the_own_weights_after_an_error():
    average = WeightAverage(Model(), 0.9)
    steps(average, [1.0, 2.0])
    with pytest.raises(RuntimeError), average.in_place():
        raise RuntimeError
    assert average.model.trained.tolist() == [2, 8]


def test_zero_keeps_the_models_weights():
    average = WeightAverage(Model(), 0.0)
    steps(average, [1.0, 2.0])
    with average.in_place():
        assert average.model.trained.tolist() == [2, 8]


def test_restart_forgets_and_keep_leaves_the_average():
    average = WeightAverage(Model(), 0.9)
    steps(average, [1.0, 2.0])
    average.restart()
    steps(average, [6.0])
    with average.in_place():
        assert average.model.trained.tolist() == [6, 4]
    steps(average, [8.0])
    average.keep()
    assert average.model.trained[0].item() == pytest.approx(6 / 11 + 8 * 10 / 11)
    with average.in_place():
        assert average.model.trained[0].item() == pytest.approx(6 / 11 + 8 * 10 / 11)


def test_a_state_that_was_saved_goes_on():
    once, first, second = (WeightAverage(Model(), 0.9) for _ in range(3))
    steps(once, [1.0, 4.0, 2.0, 8.0])
    steps(first, [1.0, 4.0])
    second.load_state_dict(first.state_dict())
    steps(second, [2.0, 8.0])
    torch.testing.assert_close(second.weights, once.weights, rtol=0, atol=0)
