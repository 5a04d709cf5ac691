"""How the values of an array are spread: least, largest, percentiles, counts, and whether they are ids or intensities.

Values are those of a label map where they are whole numbers from 0 to 65535 that lie in flat areas: of the neighbours
in a row that are both not 0, at least four in five are equal. In label maps more than nine in ten are, also where
vessels are a voxel thin; in images, of any depth, about one in ten.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numba import njit

from medseg_core.masks import LARGEST_ID

FLAT = 0.8
LARGEST_SPAN = 2**20  # whole values are counted one by one, in at most 8 MB
EXACT = 2**53  # whole numbers below it are exact in float64
QUANTILES = {"p1": 0.01, "median": 0.5, "p99": 0.99}


@dataclass(frozen=True, eq=False)
class Spread:
    """What `spread` found.

    Args:
        range: "min", "p1", "median", "p99", "max" -> finite value, int where it is whole; empty where none is finite.
        num_nan, num_inf: values that are not finite.
        values, counts: (n,) each different value, ascending, and how often it comes; None where there are nan or
            infinite ones, where one as stored is no whole number, or where they span a million.
        flat: the share of equal neighbours that the rule of this module asks for, of the numbers as stored; 1 where no
            two are both not 0.
    """

    range: Mapping[str, int | float] = field(default_factory=dict)
    num_nan: int = 0
    num_inf: int = 0
    values: np.ndarray | None = None
    counts: np.ndarray | None = None
    flat: float = 0.0

    @property
    def is_label_map(self) -> bool:
        """By the rule of this module."""
        values = self.values
        if values is None or values[0] < 0 or values[-1] > LARGEST_ID or (values != np.rint(values)).any():
            return False
        return self.flat >= FLAT


def spread(stored: np.ndarray, *, slope: float = 1.0, intercept: float = 0.0) -> Spread:
    """Looks at every number one to five times.

    Percentiles are values that occur: the least that as many are not above (numpy's "inverted_cdf").

    Args:
        stored: at least one number, any shape and real type; rows are read in memory order.
        slope, intercept: value = slope * stored + intercept; the slope is not 0.
    """
    flat = stored.ravel(order="K")
    if flat.dtype in (bool, np.float16):  # numba's loops take no half
        flat = flat.astype(np.uint8 if flat.dtype == bool else np.float32)
    low, high, num_nan, num_inf = flat.min(), flat.max(), 0, 0
    if not (np.isfinite(low) and np.isfinite(high)):
        finite = np.isfinite(flat)
        num_nan = int(np.isnan(flat).sum())
        num_inf = flat.size - num_nan - int(finite.sum())
        flat = flat[finite]
        if not flat.size:
            return Spread({}, num_nan, num_inf)
        low, high = flat.min(), flat.max()
    low, high, is_real = low.item(), high.item(), flat.dtype.kind == "f"
    countable = not num_nan + num_inf and high - low < LARGEST_SPAN and max(-low, high) < EXACT
    if countable and (not is_real or _are_whole(flat)):
        return _counted(flat, int(low), int(high), slope, intercept)
    ranks = _ranks(flat.size, slope)
    middle = _real_at(flat, ranks) if is_real else np.partition(flat, ranks)[ranks]
    return Spread(_named([low, *middle.tolist(), high], slope, intercept), num_nan, num_inf)


def _counted(flat: np.ndarray, low: int, high: int, slope: float, intercept: float) -> Spread:
    table = np.zeros(high - low + 1, np.int64)
    same, pairs = _tally(flat, low, table)
    stored = np.flatnonzero(table)
    counts = table[stored]
    stored += low
    places = np.searchsorted(np.cumsum(counts), _ranks(flat.size, slope), side="right")
    marks = stored[[0, *places, -1]].tolist()
    up = 1 if slope > 0 else -1
    values = (slope * stored + intercept if (slope, intercept) != (1.0, 0.0) else stored)[::up]
    return Spread(
        _named(marks, slope, intercept), values=values, counts=counts[::up], flat=same / pairs if pairs else 1.0
    )


def _named(marks: Sequence[int | float], slope: float, intercept: float) -> dict[str, int | float]:
    """The five values by name; a slope below 0 has turned them round."""
    scaled = sorted(slope * mark + intercept for mark in marks) if (slope, intercept) != (1.0, 0.0) else marks
    plain = (int(mark) if abs(mark) < EXACT and float(mark).is_integer() else mark for mark in scaled)
    return dict(zip(("min", *QUANTILES, "max"), plain, strict=True))


def _ranks(num: int, slope: float) -> list[int]:
    """Places of the percentiles among stored numbers when sorted; a slope below 0 counts from the other end."""
    ranks = [math.ceil(share * num) - 1 for share in QUANTILES.values()]
    return ranks if slope > 0 else [num - 1 - rank for rank in ranks]


def _real_at(flat: np.ndarray, ranks: Sequence[int]) -> np.ndarray:
    """The float32 or float64, none of them nan, that stand at these places when sorted: 16 bits at a time, exactly.

    Bits are in the order of values once those of negative ones are turned over, and the sign bit of the others.
    """
    bits = np.dtype(f"u{flat.itemsize}").type
    top, ones = bits(1 << 8 * flat.itemsize - 1), bits((1 << 8 * flat.itemsize) - 1)
    found, left = np.zeros(len(ranks), np.uint64), np.array(ranks)
    for shift in range(8 * flat.itemsize - 16, -1, -16):
        starts, which = np.unique(found, return_inverse=True)
        tables = np.zeros((len(starts), 2**16), np.int64)
        _add_digits(flat.view(bits), top, ones, np.uint64(shift), starts, tables)
        for i, table in enumerate(tables[which]):
            below = np.cumsum(table)
            digit = np.searchsorted(below, left[i], side="right")
            left[i] -= below[digit] - table[digit]
            found[i] = np.uint64((int(found[i]) << 16) + int(digit))
    keys = found.astype(bits)
    return np.where(keys & top, keys ^ top, keys ^ ones).view(flat.dtype)


@njit(nogil=True, cache=True)
def _are_whole(flat):
    """Whether all values are whole numbers."""
    for value in flat:  # noqa: SIM110 a generator is slow in numba
        if value != np.floor(value):
            return False
    return True


@njit(nogil=True, cache=True)
def _tally(flat, low, table):
    """Counts whole values from `low` on; returns how many neighbours that are both not 0 are equal, and of how many."""
    last, run, same, pairs = flat[0], 0, 0, 0
    for value in flat:
        if value == last:
            run += 1
            continue
        table[np.int64(last) - low] += run
        if last != 0:
            same += run - 1
            pairs += run - 1 + (value != 0)
        last, run = value, 1
    table[np.int64(last) - low] += run
    if last != 0:
        same += run - 1
        pairs += run - 1
    return same, pairs


@njit(nogil=True, cache=True)
def _add_digits(bits, top, ones, shift, starts, tables):
    """Counts the 16 bits above `shift` of every value, in the table of the start that the bits before them make."""
    for each in bits:
        key = np.uint64(each ^ (ones if each & top else top)) >> shift
        start, digit = key >> np.uint64(16), key & np.uint64(0xFFFF)
        for n in range(len(starts)):
            if starts[n] == start:
                tables[n, digit] += 1
