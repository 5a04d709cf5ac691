import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medseg_core.errors import MedsegError
from medseg_core.volume import Grid, Picture, Series, Volume, resample

RNG = np.random.default_rng(0)
ORIENTATIONS = [
    "".join(sides) for order in itertools.permutations(("RL", "AP", "SI")) for sides in itertools.product(*order)
]
OBLIQUE = np.array([[0.9, -0.5, 0.1, -30], [0.5, 1.1, 0, 12], [-0.1, 0, 2.5, 7], [0, 0, 0, 1]])


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_out_to_an_orientation_and_home_changes_no_bit(orientation):
    assert len(set(ORIENTATIONS)) == 48
    image = Volume(np.asfortranarray(RNG.normal(size=(4, 5, 6))), OBLIQUE)
    label = image.like(np.asfortranarray(RNG.integers(0, 2**40, (4, 5, 6))))
    for volume, how in ((image, "linear"), (label, "label")):
        there = resample(volume, volume.grid.oriented(orientation), how=how)
        assert there.orientation == orientation
        home = resample(there, volume.grid, how=how)
        assert home.voxels.dtype == volume.voxels.dtype
        np.testing.assert_array_equal(home.voxels, volume.voxels)
        assert home.grid.differs(volume.grid, tolerance_mm=0) is None


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_a_voxel_stays_where_it_is_in_the_patient(orientation):
    voxels = np.zeros((4, 5, 6))
    voxels[1, 2, 4] = 1
    volume = Volume(voxels, OBLIQUE)
    there = resample(volume, volume.grid.oriented(orientation))
    (index,) = np.argwhere(there.voxels)
    np.testing.assert_allclose(there.affine @ (*index, 1), OBLIQUE @ (1, 2, 4, 1))


def test_a_cube_of_3_mm_seen_at_1_mm_comes_back_as_it_was():
    label = np.zeros((6, 6, 6), np.uint8)
    label[1:4, 2:5, 2:4] = 7
    volume = Volume(label, np.diag((3.0, 3.0, 3.0, 1.0)))
    fine = resample(volume, volume.grid.oriented("LPS", (1, 1, 1)), how="label")
    assert fine.grid.shape == (18, 18, 18)
    np.testing.assert_array_equal(resample(fine, volume.grid, how="label").voxels, label)


@given(st.sampled_from(ORIENTATIONS), st.integers(1, 4), st.integers(0, 2**32 - 1))
def test_a_label_map_seen_at_an_odd_part_of_its_spacing_comes_back_as_it_was(orientation, part, seed):
    """Every third (fifth, ...) centre of the finer grid is one of the coarser: there the grids coincide."""
    label = np.random.default_rng(seed).integers(0, 5, (4, 3, 5)).astype(np.uint8)
    volume = Volume(label, OBLIQUE)
    spacing = np.array(volume.grid.oriented(orientation).spacing_mm) / (2 * part + 1)
    fine = resample(volume, volume.grid.oriented(orientation, tuple(spacing)), how="label")
    np.testing.assert_array_equal(resample(fine, volume.grid, how="label").voxels, label)


def test_resampling_to_its_own_grid_gives_a_copy():
    volume = Volume(RNG.normal(size=(3, 4, 5)), OBLIQUE)
    same = resample(volume, volume.grid)
    np.testing.assert_array_equal(same.voxels, volume.voxels)
    assert not np.shares_memory(same.voxels, volume.voxels)


def test_values_lie_halfway_between_voxels_of_another_grid():
    volume = Volume(np.arange(8.0).reshape(2, 2, 2), np.diag((2.0, 2.0, 2.0, 1.0)))
    middle = np.eye(4)
    middle[:3, 3] = 1  # mm
    assert resample(volume, Grid((1, 1, 1), middle)).voxels.item() == 3.5


BOARD = (np.indices((24, 20, 16)).sum(axis=0) % 2 * 1000).astype(np.int16)  # a checkerboard of 0 and 1000 HU


def every(step: int, shape: tuple[int, int, int]) -> Grid:
    """Centres on every few voxels of an array of 1 mm, from its third voxel on."""
    return Grid(shape, [[step, 0, 0, 2], [0, step, 0, 2], [0, 0, step, 2], [0, 0, 0, 1]])


@pytest.mark.parametrize("how", ["linear", "cubic"])
def test_a_checkerboard_seen_four_times_coarser_is_its_mean_with_antialias_and_folds_without(how):
    board = Volume(BOARD, np.eye(4))
    folded = resample(board, every(4, (5, 5, 4)), how=how)
    assert (folded.voxels == 0).all()
    smooth = resample(board, every(4, (5, 5, 4)), how=how, antialias=True)
    np.testing.assert_allclose(smooth.voxels, 500, atol=1)


@pytest.mark.parametrize("how", ["linear", "cubic"])
@pytest.mark.parametrize("oblique", [0, 1])
def test_antialias_leaves_a_constant_as_it_is(how, oblique):
    affine = [[1.8, -oblique, 0, 4], [oblique, 2.2, 0, 2], [0, 0, 5, 2], [0, 0, 0, 1]]
    volume = Volume(np.full(BOARD.shape, -1000, np.int16), np.eye(4))
    coarse = resample(volume, Grid((5, 4, 3), affine), how=how, antialias=True, outside=0)
    np.testing.assert_allclose(coarse.voxels, -1000, atol=1e-3)


@pytest.mark.parametrize("how", ["linear", "cubic"])
def test_antialias_changes_no_bit_where_no_step_is_longer_than_a_voxel(how):
    volume = Volume(RNG.normal(0, 1000, (6, 7, 8)), OBLIQUE)
    for grid in (volume.grid, volume.grid.oriented("PIR"), volume.grid.oriented("LAS", (0.5, 1, 0.7))):
        plain, smooth = (resample(volume, grid, how=how, antialias=on).voxels for on in (False, True))
        np.testing.assert_array_equal(smooth, plain)


def test_antialias_is_refused_for_labels():
    volume = Volume(np.zeros((2, 2, 2), np.uint8), np.eye(4))
    with pytest.raises(MedsegError, match="leave antialias out"):
        resample(volume, volume.grid, how="label", antialias=True)


def test_an_unknown_way_to_resample_is_named():
    volume = Volume(np.zeros((2, 2, 2)), np.eye(4))
    with pytest.raises(MedsegError, match="'lable'; did you mean 'label'"):
        resample(volume, volume.grid, how="lable")


@pytest.mark.parametrize(
    ("voxels", "words"),
    [
        (np.zeros((2, 3)), r"three axes, got shape \(2, 3\)"),
        (np.zeros((2, 3, 4, 5)), "three axes"),
        (np.zeros((2, 3, 0)), "real numbers"),
        (np.zeros((2, 3, 4), complex), "real numbers"),
        (np.zeros((2, 3, 4), object), "real numbers"),
    ],
)
def test_what_is_no_volume_is_refused(voxels, words):
    with pytest.raises(MedsegError, match=words):
        Volume(voxels, np.eye(4))


def test_a_volume_with_a_singular_affine_is_refused():
    with pytest.raises(MedsegError, match="singular"):
        Volume(np.zeros((2, 3, 4)), np.diag((1, 1, 0, 1)))


def test_a_mask_keeps_its_images_place():
    image = Volume(np.zeros((2, 3, 4)), OBLIQUE)
    mask = image.like(np.ones((2, 3, 4), np.uint8))
    assert mask.voxels.dtype == np.uint8
    assert mask.grid.differs(image.grid, tolerance_mm=0) is None
    with pytest.raises(MedsegError, match=r"\(2, 3\)"):
        image.like(np.ones((2, 3)))


def test_a_frame_is_a_view_of_its_series():
    series = Series(np.arange(48).reshape(2, 2, 3, 4), OBLIQUE, np.array([0.0, 0.5]))
    np.testing.assert_array_equal(series.frame(1).voxels, np.arange(24, 48).reshape(2, 3, 4))
    assert np.shares_memory(series.frame(1).voxels, series.frames)


def test_a_series_has_four_axes_and_a_time_for_each_frame():
    with pytest.raises(MedsegError, match="T X Y Z"):
        Series(np.zeros((2, 3, 4)), OBLIQUE)
    with pytest.raises(MedsegError, match="3 times for 2 frames"):
        Series(np.zeros((2, 2, 3, 4)), OBLIQUE, np.zeros(3))


def test_a_picture_has_two_or_three_axes():
    assert Picture(np.zeros((4, 5, 3), np.uint8), 2.5).pixel_nm == 2.5
    with pytest.raises(MedsegError, match="H W C"):
        Picture(np.zeros((1, 4, 5, 3)))
