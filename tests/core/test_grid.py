import itertools

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medseg_core.errors import MedsegError
from medseg_core.grid import Grid

ORIENTATIONS = [
    "".join(sides[axis][flips[axis]] for axis in order)
    for sides in [("RL", "AP", "SI")]
    for order in itertools.permutations(range(3))
    for flips in itertools.product((0, 1), repeat=3)
]


def turned(degrees: float) -> np.ndarray:
    """About z, spacing 1, 2, 3 mm."""
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return np.array([[c, -2 * s, 0, 5], [s, 2 * c, 0, -7], [0, 0, 3, 11], [0, 0, 0, 1.0]])


def test_there_are_48_orientations():
    assert len(set(ORIENTATIONS)) == 48


def test_flipping_x_and_y_starts_at_the_other_corner():
    grid = Grid((2, 3, 4), np.diag((1.0, 2.0, 3.0, 1.0))).oriented("LPS")
    assert grid.shape == (2, 3, 4)
    assert grid.affine.tolist() == [[-1, 0, 0, 1], [0, -2, 0, 4], [0, 0, 3, 0], [0, 0, 0, 1]]


def test_permuting_axes_takes_shape_and_spacing_along():
    grid = Grid((2, 3, 4), np.diag((1.0, 2.0, 3.0, 1.0))).oriented("SRA")
    assert (grid.shape, grid.spacing_mm, grid.orientation) == ((4, 2, 3), (3, 1, 2), "SRA")


@pytest.mark.parametrize("degrees", [0, 20, -40])
@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_every_orientation_agrees_with_nibabel(orientation, degrees):
    image = nib.Nifti1Image(np.zeros((2, 3, 4), np.uint8), turned(degrees))
    target = nib.orientations.axcodes2ornt(tuple(orientation))
    expected = image.as_reoriented(nib.orientations.ornt_transform(nib.io_orientation(image.affine), target))
    grid = Grid((2, 3, 4), turned(degrees)).oriented(orientation)
    assert grid.shape == expected.shape
    np.testing.assert_allclose(grid.affine, expected.affine, atol=1e-12)
    assert grid.orientation == orientation


@given(st.sampled_from(ORIENTATIONS), st.sampled_from(ORIENTATIONS), st.floats(-44, 44))
def test_the_way_back_is_the_first_orientation(there, start, degrees):
    first = Grid((2, 3, 4), turned(degrees)).oriented(start)
    assert first.differs(first.oriented(there).oriented(start), tolerance_mm=1e-9) is None


def test_halving_the_spacing_moves_the_first_centre_by_a_quarter_voxel():
    grid = Grid((10, 10, 10), np.diag((3.0, 3.0, 3.0, 1.0))).oriented("RAS", (1.5, 3.0, 3.0))
    assert grid.shape == (20, 10, 10)
    assert grid.affine[:3, 3].tolist() == [-0.75, 0, 0]


def test_a_spacing_that_does_not_divide_the_extent_keeps_its_centre():
    grid = Grid((10, 10, 2), np.eye(4)).oriented("RAS", (6.0, 3.0, 9.0))
    assert grid.shape == (2, 3, 1)  # 10/6, 10/3 and 2/9 voxels, rounded, at least one
    centre = grid.affine @ (*(np.array(grid.shape) - 1) / 2, 1)
    np.testing.assert_allclose(centre[:3], (4.5, 4.5, 0.5))


def test_spacing_is_given_along_the_new_axes():
    grid = Grid((2, 3, 4), np.diag((1.0, 2.0, 3.0, 1.0))).oriented("SRA", (6, 1, 2))
    assert (grid.shape, grid.spacing_mm) == ((2, 2, 3), (6, 1, 2))


def test_an_oblique_grid_stays_oblique():
    first = Grid((20, 30, 40), turned(20))
    grid = first.oriented("LPS", (2.0, 2.0, 2.0))
    old, new = (affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0) for affine in (first.affine, grid.affine))
    np.testing.assert_allclose(new, old * (-1, -1, 1), atol=1e-12)


def test_grids_a_rounding_error_apart_are_one():
    affine = turned(20)
    assert Grid((512, 512, 300), affine).differs(Grid((512, 512, 300), affine.astype(np.float32))) is None


def test_a_small_turn_shows_at_the_far_corner():
    turn = np.eye(4)
    turn[0, 1] = 0.001  # 0.1 mm over 100 voxels of 1 mm
    small, large = (Grid((n, n, n), np.eye(4)).differs(Grid((n, n, n), turn)) for n in (100, 1001))
    assert small is None
    assert "1 mm apart" in large


def test_a_flipped_grid_is_told_by_its_orientation():
    grid = Grid((4, 4, 4), np.eye(4))
    assert "LAS" in grid.differs(grid.oriented("LAS"))


def test_another_shape_is_told_by_both_shapes():
    assert Grid((2, 3, 4), np.eye(4)).differs(Grid((2, 3, 5), np.eye(4))) == "shape (2, 3, 4) against (2, 3, 5)"


@pytest.mark.parametrize(
    ("affine", "words"),
    [
        (np.diag((1, 1, 0, 1)), "singular"),
        (np.array([[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]), "singular"),
        (np.diag((1, np.nan, 1, 1)), "not finite"),
        (np.diag((1, np.inf, 1, 1)), "not finite"),
        (np.eye(3), r"\(4, 4\)"),
        (np.ones((4, 4)), "last row"),
    ],
)
def test_what_is_no_affine_is_refused(affine, words):
    with pytest.raises(MedsegError, match=words):
        Grid((2, 3, 4), affine)


@pytest.mark.parametrize("shape", [(2, 3), (2, 3, 4, 5), (2, 0, 4)])
def test_what_is_no_volume_is_refused(shape):
    with pytest.raises(MedsegError, match="shape"):
        Grid(shape, np.eye(4))


@pytest.mark.parametrize("orientation", ["RA", "RAR", "XYZ", "RASS", "", "RL", "RLS"])
def test_what_is_no_orientation_is_refused(orientation):
    with pytest.raises(MedsegError, match="none of the 48"):
        Grid((2, 3, 4), np.eye(4)).oriented(orientation)


@pytest.mark.parametrize("spacing", [(1, 1), (1, 1, 0), (1, 1, -1), (1, 1, np.nan), (1, 1, np.inf)])
def test_what_is_no_spacing_is_refused(spacing):
    with pytest.raises(MedsegError, match="spacing"):
        Grid((2, 3, 4), np.eye(4)).oriented("RAS", spacing)


def test_a_grid_cannot_be_changed_from_outside():
    affine = np.eye(4)
    grid = Grid((2, 3, 4), affine)
    affine[0, 3] = 9
    assert grid.affine[0, 3] == 0
    with pytest.raises(ValueError, match="read-only"):
        grid.affine[0, 3] = 9


def test_a_spacing_that_no_memory_holds_is_refused_before_anything_is_made():
    lying = Grid((100, 100, 100), np.diag((1e6, 1.0, 1.0, 1.0)))  # a header in nanometres, or damaged
    with pytest.raises(MedsegError, match=r"1e\+08 x 100 x 100 of one whose header says 1e\+06"):
        lying.oriented("RAS", (1.0, 1.0, 1.0))
    long = Grid((512, 512, 700), np.diag((0.7, 0.7, 5.0, 1.0)))
    assert long.oriented("RAS", (0.5, 0.5, 0.5)).shape == (717, 717, 7000)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("size", [1e200, 1e-200, 1.7e308])
def test_an_affine_beyond_arithmetic_is_refused_without_a_word_from_numpy(size):
    with pytest.raises(MedsegError, match="singular"):
        Grid((2, 2, 2), np.diag((size, size, 0.0, 1.0)))
