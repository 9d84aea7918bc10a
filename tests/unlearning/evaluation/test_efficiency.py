"""Cost figures against hand-computed cases."""

import math

import pytest

from recbole_llmd.unlearning.evaluation import efficiency


def test_request_seconds():
    assert efficiency.request_seconds([4.0, 1.0, 3.0, 2.0, 5.0]) == {"p50": 3, "p90": pytest.approx(4.6), "total": 15}
    assert efficiency.request_seconds([]) == {"p50": None, "p90": None, "total": 0}


def test_break_even_by_hand():
    assert efficiency.break_even([1, 10, 100], [0.1, 1.0, 10.0], 10**0.5) == pytest.approx(10**1.5)  # t = s / 10
    assert efficiency.break_even([100, 1, 10], [10.0, 0.1, 1.0], 10**0.5) == pytest.approx(10**1.5)
    assert efficiency.break_even([1, 10, 100], [0.1, 1.0, 10.0], 1.0) == pytest.approx(10)
    assert efficiency.break_even([2, 32], [1.0, 16.0**2], 16.0) == pytest.approx(8)  # t = (s / 2)²
    assert efficiency.break_even([1, 10, 100], [1.0, 2.0, 3.0], 3.1) is None
    assert efficiency.break_even([4, 8], [5.0, 9.0], 5.0) == 4  # at the smallest size already
    assert efficiency.break_even([1, 2, 4, 8], [1.0, 3.0, 1.0, 3.0], 2.0) == pytest.approx(
        2 ** (math.log(2) / math.log(3))
    )


def test_break_even_of_special_measurements():
    assert efficiency.break_even([7], [1.0], 2.0) is None and efficiency.break_even([7], [2.0], 1.0) == 7
    assert efficiency.break_even([], [], 1.0) is None
    assert efficiency.break_even([1, 10, 100], [1.0, 1.0, 1.0], 1.0) == 1
    assert efficiency.break_even([1, 10, 100], [1.0, 1.0, 1.0], 2.0) is None
    assert efficiency.break_even([1, 10, 100], [1.0, 1.0, 4.0], 2.0) == pytest.approx(10**1.5)
    assert efficiency.break_even([4, 4, 64, 64], [0.5, 2.0, 1.0, 64.0], 2.0**1.5) == pytest.approx(16)  # means: 1 and 8
    assert efficiency.break_even([1, 100], [1.0, 1.0], [10.0, 0.1]) == pytest.approx(10)  # retraining gets faster
    with pytest.raises(ValueError, match="above 0"):
        efficiency.break_even([0, 1], [1.0, 2.0], 1.0)
