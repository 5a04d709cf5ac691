"""Parts, largest parts and holes against SciPy, label by label."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_array_equal
from scipy import ndimage

from medseg_core.errors import MedsegError
from medseg_core.masks import components, fill_holes, keep_largest

TYPES = ["bool", "u1", "u2", "i2", "i4", "i8", ">i2"]


def noise(seed: int, shape: tuple[int, ...], *, share: float = 0.5, num_labels: int = 3) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (rng.integers(1, num_labels + 1, shape) * (rng.random(shape) < share)).astype(np.uint8)


def largest_by_scipy(mask: np.ndarray, n: int, rank: int) -> np.ndarray:
    """One label at a time; parts come in C order of their first voxel, and a stable sort keeps that order in ties."""
    kept = np.zeros_like(mask)
    for i in np.unique(mask[mask > 0]):
        parts, _ = ndimage.label(mask == i, ndimage.generate_binary_structure(mask.ndim, rank))
        sizes = np.bincount(parts.ravel())[1:]
        kept[np.isin(parts, 1 + np.argsort(-sizes, kind="stable")[:n])] = i
    return kept


@pytest.mark.parametrize(("ndim", "connectivity", "rank"), [(2, 4, 1), (2, 8, 2), (3, 6, 1), (3, 18, 2), (3, 26, 3)])
def test_components_are_scipys_label_by_label(ndim, connectivity, rank):
    mask = noise(0, (9, 8, 7)[:ndim])
    parts, total = components(mask, connectivity=connectivity), 0
    for i in (1, 2, 3):
        expected, num = ndimage.label(mask == i, ndimage.generate_binary_structure(ndim, rank))
        pairs = np.unique(np.stack([parts[mask == i], expected[mask == i]]), axis=1)
        assert pairs.shape[1] == num == len(np.unique(pairs[0]))
        total += num
    assert_array_equal(np.unique(parts), np.arange(total + 1))
    assert_array_equal(parts == 0, mask == 0)


def test_touching_voxels_of_two_labels_are_two_parts():
    assert_array_equal(np.unique(components(np.array([[1, 2]], np.uint8))), [1, 2])


@given(st.integers(0, 2**32 - 1), st.integers(1, 3), st.sampled_from([(6, 7), (5, 4, 6)]), st.sampled_from("CF"))
def test_the_largest_parts_are_scipys_label_by_label(seed, n, shape, order):
    mask = noise(seed, shape, share=0.3)
    kept = keep_largest(np.array(mask, order=order), n=n)
    assert_array_equal(kept, largest_by_scipy(mask, n, mask.ndim))


def test_the_largest_part_through_faces_only():
    mask = noise(1, (6, 5, 7))
    assert_array_equal(keep_largest(mask, connectivity=6), largest_by_scipy(mask, 1, 1))


@pytest.mark.parametrize("order", ["C", "F"])
def test_of_equal_parts_the_one_with_the_smallest_index_stays(order):
    mask = np.zeros((5, 5, 5), np.uint8, order=order)
    mask[0, 4, 4] = mask[4, 0, 0] = 1
    assert_array_equal(np.argwhere(keep_largest(mask)), [[0, 4, 4]])


def test_labels_that_are_not_asked_for_stay():
    mask = np.array([[1, 0, 1, 1, 0, 2, 0, 2, 2]], np.uint8)
    assert_array_equal(keep_largest(mask, ids=[2]), [[1, 0, 1, 1, 0, 0, 0, 2, 2]])
    assert_array_equal(keep_largest(mask, ids=[]), mask)


@given(st.integers(0, 2**32 - 1), st.sampled_from([(9, 9), (6, 7, 6)]), st.sampled_from("CF"))
def test_holes_of_one_label_are_scipys(seed, shape, order):
    mask = noise(seed, shape, share=0.75, num_labels=1)
    assert_array_equal(fill_holes(np.array(mask, order=order)), ndimage.binary_fill_holes(mask))


@given(st.integers(0, 2**32 - 1), st.sampled_from([(9, 9), (6, 7, 6)]))
def test_holes_of_a_label_among_others_are_scipys_background(seed, shape):
    mask = noise(seed, shape, share=0.85, num_labels=2)
    expected = mask.copy()
    expected[ndimage.binary_fill_holes(mask == 2) & (mask == 0)] = 2
    assert_array_equal(fill_holes(mask, ids=[2]), expected)


def test_another_label_in_a_hole_is_not_overwritten():
    mask = np.ones((5, 5, 5), np.uint8)
    mask[1:4, 1:4, 1:4], mask[2, 2, 2] = 0, 2
    expected = np.ones((5, 5, 5), np.uint8)
    expected[2, 2, 2] = 2
    assert_array_equal(fill_holes(mask), expected)


@pytest.mark.parametrize(("outer", "inner"), [(1, 2), (2, 1)])
def test_a_hole_within_two_labels_goes_to_the_inner_one(outer, inner):
    mask = np.zeros((9, 12), np.uint8)
    mask[:, :9], mask[1:8, 1:8], mask[2:7, 2:7], mask[3:6, 3:6] = outer, 0, inner, 0
    mask[0, 11] = inner  # far away, so that the inner label's box is the larger one
    filled = fill_holes(mask)
    assert (filled[2:7, 2:7] == inner).all()
    assert_array_equal(filled[:, :9] == inner, np.pad(np.ones((5, 5), bool), 2))


def test_what_two_labels_enclose_together_is_no_hole():
    mask = np.array([[1, 1, 1], [1, 0, 2], [1, 2, 2]], np.uint8)
    assert_array_equal(fill_holes(mask), mask)


def test_what_opens_to_the_edge_of_the_array_is_no_hole():
    mask = np.array([[1, 1, 1], [1, 0, 1], [1, 0, 1]], np.uint8)
    assert_array_equal(fill_holes(mask), mask)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("order", ["C", "F"])
def test_type_and_memory_order_stay(dtype, order):
    mask = np.zeros((5, 6, 7), dtype, order=order)
    mask[1:4, 1:4, 1:4], mask[2, 2, 2], mask[4, 5, 6] = 1, 0, 1
    mask.flags.writeable = False
    for changed in (keep_largest(mask), fill_holes(mask)):
        assert changed.dtype == mask.dtype
        assert changed.flags.f_contiguous == (order == "F")
        assert (changed != mask).sum() == 1


def test_nothing_comes_of_nothing():
    for shape in ((4, 4), (0, 3, 2)):
        empty = np.zeros(shape, np.uint8)
        assert_array_equal(components(empty), empty)
        assert_array_equal(keep_largest(empty), empty)
        assert_array_equal(fill_holes(empty), empty)


def test_what_cannot_be_done_says_what_can():
    mask = np.zeros((2, 2), np.uint8)
    with pytest.raises(MedsegError, match=r"connectivity 6 .* 2D; take one of \(4, 8\)"):
        components(mask, connectivity=6)
    with pytest.raises(MedsegError, match="n=0"):
        keep_largest(mask, n=0)
    with pytest.raises(MedsegError, match="float64"):
        fill_holes(np.zeros((2, 2)))
    with pytest.raises(MedsegError, match="id -1"):
        keep_largest(np.full((2, 2), -1))
