"""Skeletons by their topology and where they must lie, clDice by hand."""

from itertools import product

import cc3d
import nibabel as nib
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_array_equal
from scipy import ndimage

from medseg_core.errors import MedsegError
from medseg_core.skeleton import cldice, skeleton

TYPES = ["bool", "u1", "u2", "i2", "i4", "u8", ">i2"]
SHAPES = [(13, 11), (8, 9, 7), (1, 9, 10), (9, 1, 8), (7, 8, 1)]
SEEDS = st.integers(0, 2**32 - 1)


def noise(seed: int, shape: tuple[int, ...]) -> np.ndarray:
    """Three labels from scattered to fat, which touch each other and the edge of the array."""
    rng = np.random.default_rng(seed)
    fields = [ndimage.gaussian_filter(rng.normal(size=shape), rng.uniform(0, 1.2)) for _ in range(3)]
    is_label = rng.random(shape) < rng.uniform(0.5, 1.2)
    return np.where(is_label, np.array([1, 2, 300])[np.argmax(fields, axis=0)], 0).astype(np.uint16)


def num_parts(mask: np.ndarray) -> int:
    return int(cc3d.connected_components(mask, connectivity=8 if mask.ndim == 2 else 26, return_N=True)[1])


def euler_number(mask: np.ndarray) -> int:
    """Corners less edges plus faces less volumes of all voxels, each once however many voxels share it."""
    total = 0
    for is_between in product((False, True), repeat=mask.ndim):
        cells = np.pad(mask, 1)
        for axis in np.flatnonzero(is_between):
            cells = np.delete(cells, 0, axis) | np.delete(cells, -1, axis)
        total += (-1) ** (mask.ndim - sum(is_between)) * np.count_nonzero(cells)
    return total


def distances(shape: tuple[int, ...], *centre: float) -> np.ndarray:
    """How far each voxel is from a point."""
    return np.sqrt(sum((x - middle) ** 2 for x, middle in zip(np.indices(shape), centre, strict=True)))


def ring(*, radius: float, thickness: float) -> np.ndarray:
    x, y, z = np.indices((40, 40, 16)) - np.array([19.5, 19.5, 7.3])[:, None, None, None]
    return np.hypot(np.hypot(x, y) - radius, z) <= thickness


@pytest.mark.parametrize("step", [(1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 0), (1, 0, 1), (1, -1, 1), (1, 0), (1, -1)])
def test_a_line_of_one_voxel_is_its_own_skeleton(step):
    line = np.zeros((12,) * len(step), np.uint8)
    line[tuple((np.array([11 if n < 0 else 0 for n in step]) + np.arange(10)[:, None] * step).T)] = 1
    assert line.sum() == 10
    assert_array_equal(skeleton(line), line)


@pytest.mark.parametrize("shape", [(3, 3, 3), (2, 3, 9), (4, 6, 5), (5, 9, 30), (6, 6), (3, 20)])
def test_a_box_thins_to_one_part_without_holes_or_blocks(shape):
    thin = skeleton(np.pad(np.ones(shape, np.uint8), 2))
    assert num_parts(thin) == euler_number(thin) == 1
    assert not ndimage.minimum_filter(thin, size=2).any()


@pytest.mark.parametrize("edge", [2, 4, 6, 8])
def test_a_cube_of_even_edge_thins_to_one_voxel_and_not_to_none(edge):
    mask = np.zeros((12, 10, 10), np.uint8)
    mask[1 : 1 + edge, 1 : 1 + edge, 1 : 1 + edge] = 1
    assert skeleton(mask).sum() == 1


def test_a_cube_of_even_edge_thins_to_one_voxel_after_labels_with_all_kinds_of_surroundings():
    mask = (np.random.default_rng(0).random((60, 60, 60)) < 0.4).astype(np.uint8)
    mask[:12, :12, :12], mask[4:8, 4:8, 4:8] = 0, 2
    assert (skeleton(mask) == 2).sum() == 1


def test_a_ring_keeps_its_hole_and_becomes_one_closed_line():
    solid = ring(radius=12, thickness=4)
    thin = skeleton(solid)
    neighbours = ndimage.convolve(thin.astype(np.uint8), np.ones((3, 3, 3), np.uint8), mode="constant")[thin] - 1
    assert num_parts(thin) == 1
    assert euler_number(thin) == euler_number(solid) == 0
    assert_array_equal(neighbours, 2)
    assert ring(radius=12, thickness=1.5)[thin].all()


def test_a_hollow_ball_keeps_its_cavity():
    distance = distances((21, 21, 21), 10, 10, 10)
    thin = skeleton((distance < 9) & (distance > 4))
    assert num_parts(thin) == 1
    assert cc3d.connected_components(~thin, connectivity=6, return_N=True)[1] == 2
    assert euler_number(thin) == 2


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("radius", [2, 4.5, 6])
def test_the_skeleton_of_a_tube_is_its_axis(axis, radius):
    tube = np.moveaxis(np.broadcast_to(distances((17, 17), 8, 8) <= radius, (40, 17, 17)), 0, axis)
    along, *across = np.moveaxis(np.argwhere(skeleton(np.pad(tube, 1))) - 1, 1, 0)[[axis, axis - 1, axis - 2]]
    assert np.hypot(*(np.array(across) - 8)).max() <= 1
    assert_array_equal(np.unique(along)[5:-5], np.arange(along.min() + 5, along.max() - 4))
    assert along.max() - along.min() >= 39 - 2 * radius


@given(SEEDS, st.sampled_from(SHAPES))
def test_a_skeleton_lies_within_its_label(seed, shape):
    mask = noise(seed, shape)
    thin = skeleton(mask)
    assert_array_equal(thin[thin > 0], mask[thin > 0])


@given(SEEDS, st.sampled_from(SHAPES))
def test_each_label_keeps_its_parts_holes_and_cavities(seed, shape):
    mask = noise(seed, shape)
    thin = skeleton(mask)
    for i in (1, 2, 300):
        assert num_parts(thin == i) == num_parts(mask == i)
        assert euler_number(thin == i) == euler_number(mask == i)


@given(SEEDS, st.sampled_from(SHAPES))
def test_a_skeleton_is_its_own_skeleton(seed, shape):
    thin = skeleton(noise(seed, shape))
    assert_array_equal(skeleton(thin), thin)


@given(SEEDS, st.sampled_from([(13, 11), (8, 9, 7)]), st.integers(0, 70), st.integers(0, 70))
def test_where_a_label_lies_does_not_matter(seed, shape, before, after):
    mask = noise(seed, shape)
    margins = [(1, 1)] * (mask.ndim - 1) + [(before, after)]
    assert_array_equal(skeleton(np.pad(mask, margins)), np.pad(skeleton(mask), margins))


@given(SEEDS, st.sampled_from(SHAPES))
def test_labels_do_not_influence_each_other(seed, shape):
    mask = noise(seed, shape)
    thin = skeleton(mask)
    for i in (1, 2, 300):
        assert_array_equal(thin == i, skeleton(mask == i))


@given(SEEDS, st.sampled_from(SHAPES))
def test_memory_order_does_not_matter(seed, shape):
    mask = noise(seed, shape)
    thin = skeleton(mask)
    assert_array_equal(skeleton(np.asfortranarray(mask)), thin)
    assert_array_equal(skeleton(np.repeat(mask, 2, axis=-1)[..., ::2]), thin)


def test_labels_that_are_not_asked_for_are_left_out():
    mask = noise(0, (9, 9, 9))
    thin = skeleton(mask)
    assert_array_equal(skeleton(mask, ids=[300, 7, 1]), np.where(np.isin(mask, [1, 300]), thin, 0))


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("shape", [(5, 6, 7), (5, 7)])
def test_type_and_memory_order_stay(dtype, order, shape):
    mask = np.zeros(shape, dtype, order=order)
    mask[1:4, 1:6] = 1
    mask.flags.writeable = False
    thin = skeleton(mask)
    assert thin.dtype == mask.dtype
    assert thin.flags.f_contiguous == (order == "F")
    assert 0 < thin.sum() < mask.sum()
    assert_array_equal(thin, skeleton(mask == 1))


def test_nothing_comes_of_nothing():
    for shape in ((4, 4), (0, 3, 2)):
        empty = np.zeros(shape, np.uint8)
        assert_array_equal(skeleton(empty), empty)
        assert np.isnan([*cldice(empty, empty, ids=[1]).values()]).all()


def test_a_broken_vessel_by_hand():
    label, mask = np.zeros((2, 5, 6, 14), np.uint8)
    label[2, 3, 2:12] = 1
    mask[2, 3, 2:12] = 1
    mask[2, 3, 5:8] = 0
    found = cldice(mask, label, ids=[1])
    assert found["topology_precision"] == 1
    assert found["topology_sensitivity"] == pytest.approx(7 / 10)
    assert found["cldice"] == pytest.approx(2 * 7 / 17)


def test_a_vessel_that_goes_astray_by_hand():
    label, mask = np.zeros((2, 9, 12), np.uint8)
    label[4, 1:11] = 1
    mask[4, 3:7] = 1
    mask[[3, 2], [7, 8]] = 1
    found = cldice(mask, label, ids=[1])
    assert found["topology_precision"] == pytest.approx(4 / 6)
    assert found["topology_sensitivity"] == pytest.approx(4 / 10)
    assert found["cldice"] == pytest.approx(0.5)


def test_width_does_not_matter():
    label, mask = np.zeros((2, 9, 9, 30), np.uint8)
    label[4, 4, 2:28] = 1
    mask[3:6, 3:6, 2:28] = 1
    assert cldice(mask, label, ids=[1])["cldice"] == 1


@pytest.mark.parametrize("shape", SHAPES)
def test_the_same_on_both_sides_has_1(shape):
    label = noise(4, shape)
    assert_array_equal([*cldice(label, label, ids=[1, 300, 2]).values()], np.ones((3, 3)))


def test_another_label_on_the_centreline_does_not_count():
    label, mask = np.zeros((2, 3, 10), np.uint8)
    label[1] = 1
    mask[1, :4], mask[1, 4:] = 1, 2
    assert cldice(mask, label, ids=[1])["topology_sensitivity"] == pytest.approx(4 / 10)


def test_empty_sides_follow_the_table():
    mask = np.array([[1, 1, 0, 0, 5], [3, 0, 0, 0, 0], [0, 0, 0, 0, 0]], np.uint8)
    label = np.array([[1, 1, 0, 0, 0], [0, 0, 2, 2, 0], [0, 0, 5, 0, 0]], np.uint8)
    found = cldice(mask, label, ids=[4, 3, 2, 1, 5])  # absent, invented, missed, the same, apart
    assert_array_equal(found["cldice"], [np.nan, 0, 0, 1, 0])
    assert_array_equal(found["topology_precision"], [np.nan, 0, np.nan, 1, 0])
    assert_array_equal(found["topology_sensitivity"], [np.nan, np.nan, 0, 1, 0])


@pytest.mark.parametrize("shape", SHAPES)
def test_scores_are_shares_of_the_skeletons_whatever_type_and_memory_order(shape):
    mask, label = noise(5, shape), noise(6, shape)
    found = cldice(np.asfortranarray(mask), label.astype(">i4"), ids=[2, 300])
    thin_mask, thin_label = skeleton(mask), skeleton(label)
    for place, i in enumerate([2, 300]):
        precision, sensitivity = (label == i)[thin_mask == i].mean(), (mask == i)[thin_label == i].mean()
        assert found["topology_precision"][place] == precision
        assert found["topology_sensitivity"][place] == sensitivity
        assert found["cldice"][place] == pytest.approx(2 * precision * sensitivity / (precision + sensitivity))


def test_sides_exchanged_exchange_precision_and_sensitivity():
    mask, label = noise(7, (9, 9, 9)), noise(8, (9, 9, 9))
    there, back = cldice(mask, label, ids=[1, 2]), cldice(label, mask, ids=[1, 2])
    assert_array_equal(there["topology_precision"], back["topology_sensitivity"])
    assert_array_equal(there["cldice"], back["cldice"])


def test_what_cannot_be_done_says_what_can():
    mask = np.ones((2, 2), np.uint8)
    for refused in (lambda: skeleton(mask, ids=[0]), lambda: cldice(mask, mask, ids=[1, 0])):
        with pytest.raises(MedsegError, match="id 0 is the background"):
            refused()
    with pytest.raises(MedsegError, match="no id 70000"):
        skeleton(mask, ids=[70000])
    with pytest.raises(MedsegError, match="float64"):
        skeleton(np.ones((2, 2)))
    with pytest.raises(MedsegError, match="resample"):
        cldice(mask, np.ones((2, 3), np.uint8), ids=[1])


def test_real_arteries_become_lines_of_the_same_topology(data):
    file = data / "ct_more" / "spl_abdomen_labels" / "derived" / "seg_multilabel.nii.gz"
    mask = np.asanyarray(nib.load(file).dataobj)
    arteries = [17, 18, 19, 20, 21, 22, 23, 24, 25, 29, 71, 72, 73, 74, 75, 76]
    thin = skeleton(mask, ids=arteries)
    for i in arteries:
        box = ndimage.find_objects((mask == i).astype(np.uint8))[0]
        solid, line = mask[box] == i, thin[box] == i
        assert 0 < line.sum() < 0.2 * solid.sum()
        assert (num_parts(line), euler_number(line)) == (num_parts(solid), euler_number(solid))
