"""The square that a network sees: what stands where, the way back, and the same square in another picture."""

import numpy as np
import pytest

from medseg_cardiac.window import Window, window_about, window_through
from medseg_core.errors import MedsegError

H, W = 40, 56
UNEVEN = (1.0, 2.0)  # mm along h and w
TURNED = Window(np.array([[0.8, -0.6], [0.6, 0.8]]) * 1.5, np.array([7.0, 12.5]), 16)


def ramp(factors=(1.0, 0.0)):
    """A picture whose grey values are places, which linear sampling keeps."""
    return np.tensordot(factors, np.indices((H, W)), 1)


def turned_affine(degrees, origin, spacing_mm, *, about=(1.0, 0.0, 0.0)):
    """(4, 4) of an oblique plane, turned by so many degrees about an axis of the patient."""
    axis, angle = np.array(about) / np.linalg.norm(about), np.deg2rad(degrees)
    cross = np.cross(np.eye(3), axis)
    turn = np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross
    tilted = np.array([[0.6, 0.0, 0.8], [0.0, 1.0, 0.0], [-0.8, 0.0, 0.6]])
    affine = np.eye(4)
    affine[:3, :3] = turn @ tilted * (*spacing_mm, 8.0)
    affine[:3, 3] = origin
    return affine


def test_where_pixels_keep_their_size_the_window_is_a_cut_out():
    plane = np.random.default_rng(0).random((H, W))
    window = window_about((20.3, 30.8), (1.4, 1.4), pixel_mm=1.4, size=16)
    np.testing.assert_array_equal(window.offset, [13, 23])  # 20.3 - 7.5 and 30.8 - 7.5, to whole pixels
    np.testing.assert_array_equal(window.take(plane), plane[13:29, 23:39].astype(np.float32))


def test_a_pixel_of_almost_the_same_size_is_left_as_it_is():
    assert window_about((20, 30), (1.4, 1.4), pixel_mm=1.4007, size=16).matrix.tolist() == [[1, 0], [0, 1]]
    assert window_about((20, 30), (1.4, 1.4), pixel_mm=1.403, size=16).matrix[0, 0] == pytest.approx(1.403 / 1.4)


def test_pixels_of_unequal_sides_become_square_ones_about_the_centre():
    window = window_about((20, 30), UNEVEN, pixel_mm=0.5, size=21)
    np.testing.assert_allclose(window.take(ramp((1, 0)))[:, 10], 20 + 0.5 * (np.arange(21) - 10), atol=1e-5)
    np.testing.assert_allclose(window.take(ramp((0, 1)))[10], 30 + 0.25 * (np.arange(21) - 10), atol=1e-5)


def test_a_cine_is_cut_frame_by_frame():
    frames = np.random.default_rng(0).random((3, H, W))
    taken = TURNED.take(frames)
    assert (taken.shape, taken.dtype) == ((3, 16, 16), np.float32)
    for frame, window in zip(frames, taken, strict=True):
        np.testing.assert_array_equal(window, TURNED.take(frame))


def test_beyond_the_plane_its_edge_holds_and_no_mask_reaches_there():
    window = window_about((0, 0), (1, 1), pixel_mm=1, size=10)
    plane = np.random.default_rng(0).random((H, W)).astype(np.float32)
    assert (window.take(plane)[:5, :5] == plane[0, 0]).all()
    mask = window.take_mask(np.ones((H, W), bool))
    np.testing.assert_array_equal(mask, (np.indices((10, 10)) >= -window.offset.reshape(2, 1, 1)).all(0))


def test_a_mask_holds_what_is_at_least_half_inside():
    mask = np.arange(W) >= np.full((H, 1), 20)
    window = window_about((20, 20), (1, 1), pixel_mm=0.25, size=17)  # columns 18 to 22 by quarters
    np.testing.assert_array_equal(window.take_mask(mask)[8], 18 + np.arange(17) / 4 >= 19.5)


def test_what_is_taken_comes_home_to_its_place_and_elsewhere_is_nothing():
    plane = 1 + np.random.default_rng(0).random((H, W)).astype(np.float32)
    window = window_about((20, 30), (1, 1), pixel_mm=1, size=12)
    home = window.home(window.take(plane), (H, W))
    h, w = window.offset.astype(int)
    inside = np.zeros((H, W), bool)
    inside[h : h + 12, w : w + 12] = True
    np.testing.assert_array_equal(home, np.where(inside, plane, 0))


def test_points_go_to_the_plane_and_back():
    points = np.random.default_rng(0).uniform(0, 15, (9, 2))
    np.testing.assert_allclose(TURNED.points(TURNED.points_home(points)), points, atol=1e-12)
    np.testing.assert_allclose(TURNED.points_home(np.array([[1.0, 0.0]])), [[7 + 1.2, 12.5 + 0.9]])


def test_a_point_of_the_window_has_the_grey_value_of_its_place_in_the_plane():
    at = np.argwhere(np.ones((16, 16)))
    places = TURNED.points_home(at)
    seen = np.stack([TURNED.take(ramp((1, 0))), TURNED.take(ramp((0, 1)))], -1).reshape(-1, 2)
    inside = ((places >= 0) & (places <= (H - 1, W - 1))).all(1)
    assert inside.sum() > 200
    np.testing.assert_allclose(seen[inside], places[inside], atol=1e-4)


def test_a_displacement_changes_its_length_with_the_pixels():
    window = window_about((20, 30), UNEVEN, pixel_mm=2.0, size=12)  # 2 rows of the plane, 1 column
    flow = np.broadcast_to(np.array([3.0, -1.0]).reshape(2, 1, 1), (2, 12, 12))
    home = window.flow_home(flow, (H, W))
    np.testing.assert_allclose(home[:, 20, 30], [6.0, -1.0], atol=1e-6)
    assert not home[:, 0, 0].any()


def test_a_displacement_turns_with_the_window():
    """A point and where it goes, both brought home: the arrow between them is the displacement there."""
    point = np.array([[8.0, 7.0]])
    flow = np.random.default_rng(0).random((4, 2, 1, 1)) * np.ones((16, 16))
    home = TURNED.flow_home(flow, (H, W))
    assert home.shape == (4, 2, H, W)
    (start,) = TURNED.points_home(point)
    for field, moved in zip(flow, home, strict=True):
        (end,) = TURNED.points_home(point + field[:, 8, 7])
        np.testing.assert_allclose(moved[:, round(start[0]), round(start[1])], end - start, atol=1e-5)


@pytest.mark.parametrize("degrees", [0, 90, 163])
def test_the_same_place_of_the_patient_is_seen_in_another_picture(degrees):
    """Grey values are places in mm, and the other picture is turned, shifted, finer and off the plane."""
    cine = turned_affine(0, (10, 20, 30), (1.4, 1.4))
    normal = cine[:3, 2] / 8
    other = turned_affine(degrees, cine[:3] @ (20, 25, 0, 1) + 3 * normal, (0.9, 1.1), about=normal)
    middle = np.linalg.inv(other) @ cine @ (20, 25, 0, 1)
    other[:3, 3] -= other[:3, :2] @ ((34, 40) - middle[:2])
    window = window_about((20, 25), (1.4, 1.4), pixel_mm=1.4, size=16)
    through = window_through(window, cine, other, shapes=((H, W), (70, 80)), spacings_mm=((1.4, 1.4), (0.9, 1.1)))
    pixels = {"cine": (cine, (H, W), window), "other": (other, (70, 80), through)}
    along = cine[:3, :2].T / 1.4  # in the plane; the two differ through it
    seen = {}
    for name, (affine, shape, one) in pixels.items():
        h, w = np.indices(shape)
        places_mm = np.tensordot(affine, np.stack([h, w, 0 * h, 1 + 0 * h]), 1)[:3]
        seen[name] = one.take(np.tensordot(along, places_mm, 1))
    np.testing.assert_allclose(seen["other"], seen["cine"], atol=1e-3)


def test_without_affines_middle_lies_on_middle_and_a_mm_stays_a_mm():
    window = Window(np.eye(2), np.array([10.0, 20.0]), 16)
    shapes, spacings_mm = ((H, W), (81, 61)), ((1.5, 1.5), (0.75, 1.0))
    for pair in ((None, np.eye(4)), (np.eye(4), None), (None, None)):
        through = window_through(window, *pair, shapes=shapes, spacings_mm=spacings_mm)
        middle = window.points(np.array([[19.5, 27.5]]))
        np.testing.assert_allclose(through.points_home(middle), [[40, 30]])
        np.testing.assert_allclose(through.points_home(middle + 1) - [[40, 30]], [[2.0, 1.5]])


@pytest.mark.parametrize(("degrees", "refused"), [(2, False), (10, True), (90, True), (178, False)])
def test_planes_that_are_not_parallel_are_refused_with_their_angle(degrees, refused):
    """Seen from behind, a plane is parallel too."""
    window = Window(np.eye(2), np.zeros(2), 16)
    planes = turned_affine(0, (0, 0, 0), (1, 1)), turned_affine(degrees, (0, 0, 0), (1, 1), about=(0, 1, 0))
    how = {"shapes": ((H, W),) * 2, "spacings_mm": ((1.0, 1.0),) * 2}
    if not refused:
        assert window_through(window, *planes, **how).size == 16
        return
    with pytest.raises(MedsegError, match=rf"cine and LGE stand {degrees} degrees to each other; reformat"):
        window_through(window, *planes, **how)
