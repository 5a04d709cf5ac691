"""Septum, anterior wall and apex from geometry, and turns of a plane."""

from itertools import product

import nibabel as nib
import numpy as np
import pytest

from medseg_cardiac.orientation import APEX_RAS, Turn, axes_of, base_first, upright
from medseg_core.errors import MedsegError

# ImageOrientationPatient of the three Sunnybrook patients: along columns (w), then along rows (h), LPS
HEADERS = {
    "SCD0000101": ((-0.104592, 0.346381, -0.932245), (-0.733192, -0.660188, -0.163037)),
    "SCD0000201": ((0.77038, 0.618446, 0.155046), (-0.15161, 0.41389, -0.897613)),
    "SCD0000301": ((0.712221, 0.701112, -0.0343949), (-0.307716, 0.267798, -0.913015)),
}
EIGHT = [np.array(rows) for a, b in product((1, -1), repeat=2) for rows in ([[a, 0], [0, b]], [[0, a], [b, 0]])]


def affine_of(case: str, *, spacing_mm: float = 1.4) -> np.ndarray:
    along_w, along_h = (np.array(axis) * (-1, -1, 1) for axis in HEADERS[case])
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1], affine[:3, 2] = spacing_mm * along_h, spacing_mm * along_w, np.cross(along_h, along_w)
    return affine


def turned(affine: np.ndarray, matrix: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """The affine of `Turn(matrix).plane(plane)`."""
    back = np.eye(4)
    back[:2, :2] = matrix.T
    origin = Turn(matrix).points(np.zeros(2), shape)
    back[:2, 3] = -matrix.T @ origin
    return affine @ back


def test_without_an_affine_the_septum_is_left_and_anterior_up_and_this_is_said():
    found = axes_of(None)
    assert found.septum.tolist() == [0, -1]
    assert found.anterior.tolist() == [-1, 0]
    assert "convention" in found.said
    assert "left" in found.said


def test_a_plane_with_rows_to_the_feet_and_columns_to_the_left_back_has_its_septum_left_and_anterior_up():
    found = axes_of(affine_of("SCD0000301"))
    assert found.septum == pytest.approx([0, -1], abs=0.05)
    assert found.anterior == pytest.approx([-1, 0], abs=0.05)
    assert found.septum @ found.anterior == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("case", HEADERS)
def test_in_real_patients_the_right_ventricle_is_bright_beyond_the_septum_and_the_lung_dark_opposite(data, case):
    root = data / "cmr_cine" / case / "derived"
    frames = nib.load(sorted(root.glob("images/cmr/*/*.nii.gz"))[0]).get_fdata()
    myo = nib.load(root / f"labels/cmr_Myo_mask/{case}.nii.gz").get_fdata()[0] > 0
    ed = 18  # all three, in info.json
    found = axes_of(affine_of(case))
    steps = np.stack(np.indices(myo.shape), axis=-1) - np.argwhere(myo).mean(axis=0)
    along, across = steps @ found.septum, steps @ found.anterior
    edge = np.abs(steps[myo] @ found.septum).max()
    beyond = (np.abs(across) < 8) & (np.abs(along) > edge + 2) & (np.abs(along) < edge + 15)
    pool, lung = frames[ed][beyond & (along > 0)].mean(), frames[ed][beyond & (along < 0)].mean()
    assert pool > 1.5 * lung


@pytest.mark.parametrize("matrix", EIGHT, ids=str)
def test_however_the_array_lies_the_picture_of_a_patient_is_the_same(matrix):
    plane = np.arange(5 * 7).reshape(5, 7)
    affine = affine_of("SCD0000101")
    expected = upright(axes_of(affine)).plane(plane)
    laid = Turn(matrix).plane(plane)
    found = axes_of(turned(affine, matrix, plane.shape))
    np.testing.assert_array_equal(upright(found).plane(laid), expected)
    assert found.septum == pytest.approx(matrix @ axes_of(affine).septum)
    assert found.anterior == pytest.approx(matrix @ axes_of(affine).anterior)


@pytest.mark.parametrize("matrix", EIGHT, ids=str)
def test_a_point_moves_with_its_pixel(matrix):
    plane = np.zeros((4, 6))
    plane[1, 4] = 1
    turn = Turn(matrix)
    at = np.argwhere(turn.plane(plane))[0]
    np.testing.assert_array_equal(turn.points(np.array([1, 4]), plane.shape), at)
    assert turn.plane(np.zeros((3, 4, 6))).shape == (3, *turn.plane(plane).shape)
    assert turn.spacing((4.0, 6.0)) == tuple(map(float, turn.plane(plane).shape))


def test_a_plane_that_lies_as_pictures_do_is_not_turned():
    plane = np.arange(6).reshape(2, 3)
    np.testing.assert_array_equal(upright(None).plane(plane), plane)
    np.testing.assert_array_equal(upright(axes_of(None)).plane(plane), plane)


@pytest.mark.parametrize("affine", [np.eye(4), np.diag([-1.4, -1.4, 8, 1]), np.zeros((4, 4))])
def test_an_affine_that_is_no_short_axis_falls_back_to_the_convention_and_says_why(affine):
    found = axes_of(affine)
    assert found.septum.tolist() == [0, -1]
    assert "convention (the affine" in found.said


def test_a_given_angle_turns_both_directions_clockwise_from_septum_to_anterior():
    found = axes_of(None, septum_deg=90)
    assert found.septum == pytest.approx([-1, 0])
    assert found.anterior == pytest.approx([0, 1])
    assert axes_of(None, septum_deg=180).anterior == pytest.approx([-1, 0])


def test_a_given_angle_keeps_the_side_of_anterior_that_a_mirrored_affine_tells():
    mirrored = turned(affine_of("SCD0000301"), np.diag([-1, 1]), (5, 7))
    found = axes_of(mirrored, septum_deg=180)
    assert found.septum == pytest.approx([0, -1])
    assert found.anterior == pytest.approx([1, 0])
    assert "as given" in found.said


@pytest.mark.parametrize(("affine", "deg", "word"), [(np.eye(3), None, "4 x 4"), (None, float("nan"), "nan degrees")])
def test_what_is_no_geometry_is_refused(affine, deg, word):
    with pytest.raises(MedsegError, match=word):
        axes_of(affine, septum_deg=deg)


def test_the_apex_is_the_end_further_left_in_front_and_below_whatever_the_areas():
    base, apex = np.eye(4), np.eye(4)
    apex[:3, 3] = 60 * APEX_RAS
    assert base_first(np.array([100, 900]), affines=(base, apex))
    assert not base_first(np.array([900, 100]), affines=(apex, base))
    assert base_first(np.array([900, 100]), affines=(base, base))


def test_without_positions_the_smaller_outlined_end_is_the_apex():
    assert base_first(np.array([0, 900, 950, 400]))
    assert not base_first(np.array([0, 0, 300, 950, 900]))
    assert base_first(np.array([0, 500, 0]))


def test_what_is_given_about_the_ends_wins():
    assert not base_first(np.array([900, 100]), given=False)
