"""The distance of two results, also if squares overflow or a few values dominate."""

import numpy as np
import pytest

from mae_convert.verify.distance import FUNCTION_LIMIT, function_error, relative_error


@pytest.fixture
def exact():
    return np.random.default_rng(0).standard_normal((2, 50, 32))


@pytest.mark.parametrize("scale", [1e-310, 1e-200, 1e-155, 1.0, 1e155, 1e200, 1e300])
def test_small_and_large_values_do_not_hide_a_difference(exact, scale):
    with np.errstate(under="ignore"):
        b = exact * scale
        assert relative_error(b * 1.5, b) == pytest.approx(0.5, rel=1e-6)
        assert relative_error(b, b) == 0.0
        assert relative_error(b, b * 0) == np.inf


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_non_finite_values_never_pass(exact, value):
    changed = exact.copy()
    changed[0, 0, 0] = value
    for a, b in ((changed, exact), (exact, changed), (changed, changed)):
        assert not function_error(a, b) <= FUNCTION_LIMIT


def test_zeros_are_equal_to_zeros():
    assert function_error(np.zeros(3), np.zeros(3)) == 0.0
    assert function_error(np.zeros((0, 3)), np.zeros((0, 3))) == 0.0


def huge_value(array):
    array[0, 3, 4] = 3e15


def huge_channel(array):
    array[..., 7] = 3e15


def huge_token(array):
    array[:, 0] = 3e15


def huge_cross(array):
    huge_channel(array)
    huge_token(array)


@pytest.mark.parametrize("outlier", [huge_value, huge_channel, huge_token, huge_cross])
def test_a_few_huge_values_do_not_hide_other_differences(exact, outlier):
    other = exact + 185
    outlier(exact), outlier(other)
    assert relative_error(other, exact) <= FUNCTION_LIMIT
    assert function_error(other, exact) > 1
    assert function_error(exact * (1 + 1e-15), exact) <= FUNCTION_LIMIT


@pytest.mark.parametrize("shape", [(1,), (2, 2), (1, 6), (2, 10, 8), (3, 40, 64)])
def test_rounding_passes_though_some_values_are_small_by_chance(shape):
    rng = np.random.default_rng(1)
    for _ in range(100):
        exact = rng.standard_normal(shape)
        exact.flat[0] *= 1e-12 if exact.size > 1 else 1  # a sum whose terms cancel by chance
        rounded = exact + rng.uniform(-4e-15, 4e-15, shape)
        assert function_error(rounded, exact) <= FUNCTION_LIMIT
