import numpy as np
import pytest
from numpy.testing import assert_array_equal

from medseg_core.spread import spread

RNG = np.random.default_rng(0)
REALS = [np.float16, np.float32, np.float64]
WHOLE = ["i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8"]


def five(values: np.ndarray) -> list:
    return [
        values.min(),
        *(np.percentile(values, share, method="inverted_cdf") for share in (1, 50, 99)),
        values.max(),
    ]


@pytest.mark.parametrize("dtype", REALS)
@pytest.mark.parametrize("num", [1, 2, 3, 99, 100, 101, 2000])
def test_percentiles_of_reals_are_numpys(dtype, num):
    values = (RNG.normal(size=num) * 10.0 ** RNG.integers(-3, 3, num)).astype(dtype)
    values[: num // 3] = -0.5  # a background of one value
    assert list(spread(values).range.values()) == five(values)


@pytest.mark.parametrize("dtype", WHOLE)
@pytest.mark.parametrize("narrow", [True, False])
def test_percentiles_of_whole_numbers_are_numpys(dtype, narrow):
    limits = np.iinfo(dtype)
    low, high = (max(limits.min, -90), min(limits.max, 100)) if narrow else (limits.min, limits.max)
    values = RNG.integers(low, high, 997, dtype=dtype, endpoint=True)
    assert list(spread(values).range.values()) == [int(value) for value in five(values.astype(object))]


@pytest.mark.parametrize("dtype", [*WHOLE, *REALS, bool])
def test_whole_numbers_are_counted_as_numpy_counts_them(dtype):
    values = RNG.integers(0, 2 if dtype is bool else 50, (7, 8, 9)).astype(dtype)
    expected, counts = np.unique(values, return_counts=True)
    found = spread(np.asfortranarray(values))
    assert_array_equal(found.values, expected)
    assert_array_equal(found.counts, counts)


def test_a_slope_below_0_turns_values_and_their_counts_round():
    found = spread(np.array([1, 1, 2, 7], np.int16), slope=-2.0, intercept=1.0)
    assert_array_equal(found.values, [-13, -3, -1])
    assert_array_equal(found.counts, [1, 1, 2])
    assert list(found.range.values()) == [-13, -13, -3, -1, -1]
    values = RNG.normal(size=99).astype(np.float32)
    assert list(spread(values, slope=-2.0).range.values()) == five(-2 * values)


def test_what_is_not_finite_is_counted_and_left_out_of_the_percentiles():
    found = spread(np.array([np.nan, 1.5, np.inf, -np.inf, np.nan, 2.5, 2.5], np.float32))
    assert (found.num_nan, found.num_inf) == (2, 2)
    assert found.range == {"min": 1.5, "p1": 1.5, "median": 2.5, "p99": 2.5, "max": 2.5}
    assert not spread(np.array([np.nan, np.inf])).range


def test_one_value_that_is_not_whole_or_not_finite_makes_reals():
    for odd in (0.5, np.nan, np.inf):
        assert spread(np.array([0, 1, 1, odd], np.float32)).values is None


def test_whole_numbers_that_float64_does_not_hold_keep_their_last_digit():
    found = spread(np.array([2**63 + 1, 2**63 + 3], np.uint64))
    assert (found.range["min"], found.range["max"]) == (2**63 + 1, 2**63 + 3)


def test_flat_is_the_share_of_equal_ones_among_neighbours_that_are_both_not_0():
    assert spread(np.array([0, 0, 1, 1, 1, 2, 0, 3], np.uint8)).flat == pytest.approx(2 / 3)  # 11, 11, 12
    assert spread(np.array([0, 1, 0, 2], np.uint8)).flat == 1
    assert spread(np.array([[1, 2], [1, 2]], np.uint8, order="F")).flat == pytest.approx(2 / 3)  # 1 1 2 2 in memory


def stripes(width: int, num: int) -> np.ndarray:
    return np.repeat(np.arange(num), width)


@pytest.mark.parametrize(
    ("values", "is_map"),
    [
        (stripes(10, 300), True),
        (stripes(10, 300).astype(np.float32), True),
        (stripes(10, 300) - 1, False),  # below 0
        (stripes(10, 300) + 65_500, False),  # beyond 65535
        (stripes(10, 300) + 0.5, False),
        (stripes(2, 300), False),  # half of the neighbours differ
        (np.clip(RNG.normal(100, 20, 5000), 0, 255).astype(np.uint8), False),
        (np.zeros(9), True),
        (np.tile([0, 0, 7], 50), True),  # a voxel thin
    ],
)
def test_ids_are_whole_in_range_and_lie_in_flat_areas(values, is_map):
    assert spread(values).is_label_map == is_map


def test_a_scale_can_make_ids_of_what_is_stored_and_the_reverse():
    stored = stripes(10, 5).astype(np.int16)
    assert spread(stored - 2, intercept=2.0).is_label_map
    assert not spread(stored, slope=0.5).is_label_map
