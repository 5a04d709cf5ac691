"""Points of a shape: that their truth is that of the label, near its surface and anywhere, on any grid."""

import pickle

import numpy as np
import pytest
from scipy.ndimage import binary_dilation, binary_erosion
from tests.near.conftest import SMALL, ball_of

from medseg_core.draw import Draw
from medseg_core.grid import Grid
from medseg_near.points import Points, band_of, expected_positives, frame_of, inside, share_at
from medseg_near.settings import FitConfig
from medseg_near.shapes import Shape

HALF_MM = 9.0


def source(shapes, **more):
    config = FitConfig(**{**SMALL, "points": 4000, "curriculum": (1.0,), **more})
    return Points(shapes, config, half_mm=HALF_MM, num_points=config.points)


def test_a_frame_runs_to_the_right_to_the_front_and_up_in_mm(shapes):
    frame = frame_of(shapes[0], HALF_MM)
    middle = frame.voxels(np.zeros((1, 3)))[0]
    centre_mm = shapes[0].grid.affine[:3, :3] @ middle + shapes[0].grid.affine[:3, 3]
    np.testing.assert_allclose(centre_mm, shapes[0].centre_mm, atol=1e-9)
    ahead_mm = shapes[0].grid.affine[:3, :3] @ (frame.voxels(np.array([[0, 1.0, 0]]))[0] - middle)
    np.testing.assert_allclose(ahead_mm, [0, HALF_MM, 0], atol=1e-9)
    np.testing.assert_allclose(frame.points(frame.voxels(np.eye(3))), np.eye(3), atol=1e-12)


def test_the_truth_of_a_ball_is_its_radius(shapes):
    """Voxels are 1, 1.5 and 2 mm long, so the surface is known to about a mm."""
    sample = source(shapes, curriculum=(0.0,))[Draw(1, 0, 0, 0)]
    away_mm = HALF_MM * np.linalg.norm(sample["points"].numpy(), axis=1)
    assert sample["inside"].numpy()[away_mm < 4.5].all()
    assert not sample["inside"].numpy()[away_mm > 7.5].any()


def test_the_band_is_dilation_minus_erosion_by_a_ball():
    label, radius = ball_of(8.0, affine=np.eye(4)), 2
    cube = np.indices((5, 5, 5)) - 2
    element = (cube**2).sum(0) <= radius**2
    want = binary_dilation(label, element) & ~binary_erosion(label, element)
    found = np.zeros(label.shape, bool)
    found.ravel()[band_of(label, radius)] = True
    np.testing.assert_array_equal(found, want)


def test_points_near_the_surface_are_near_it_and_on_both_of_its_sides(shapes):
    sample = source(shapes)[Draw(2, 0, 0, 0)]
    away_mm = HALF_MM * np.linalg.norm(sample["points"].numpy(), axis=1)
    assert np.abs(away_mm - 7).max() < 2 * 2 + 2.5  # two voxels, of 2 mm at most, and half a voxel's diagonal
    assert 0.25 < sample["inside"].mean() < 0.75


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_the_share_of_positives_is_what_geometry_says(shapes, share):
    points = source(shapes, points=20_000, curriculum=(share,))
    found = np.mean([points[Draw(1, 0, place, 0)]["inside"].mean() for place in range(4)])
    want = expected_positives(shapes[1], points.config, half_mm=HALF_MM, share=share)
    assert found == pytest.approx(want, rel=0.1)


def test_a_tube_that_is_a_thousandth_of_its_box_still_gives_a_tenth_of_positives():
    """The seed's transposed outer shell gave under one percent."""
    label = np.zeros((96, 64, 64), bool)
    label[:, 40:42, 20:22] = True
    shape = Shape("tube", label, Grid(label.shape, np.eye(4)), None, Grid(label.shape, np.eye(4)), (0, 0, 0))
    config = FitConfig(points=4000, curriculum=(0.5,))
    sample = Points([shape], config, half_mm=48.0, num_points=4000)[Draw(0, 0, 0, 0)]
    assert label.mean() < 0.001
    assert sample["inside"].mean() > 0.05


def test_the_curriculum_has_thirds():
    config = FitConfig(epochs=300, curriculum=(0.5, 0.3, 0.1))
    assert [share_at(epoch, config) for epoch in (0, 99, 100, 199, 200, 299)] == [0.5, 0.5, 0.3, 0.3, 0.1, 0.1]


def test_equal_draws_are_equal_also_in_another_process(shapes):
    points = source(shapes)
    other = pickle.loads(pickle.dumps(points))
    one, two = points[Draw(1, 3, 5, 7)], other[Draw(1, 3, 5, 7)]
    assert all((one[name] == two[name]).all() for name in one)


def test_beyond_the_file_there_is_nothing():
    label = np.ones((4, 4, 4), bool)
    assert inside(label, np.array([[1.0, 2, 3], [-1, 2, 3], [3.4, 2, 2], [3.6, 2, 2]])).tolist() == [
        True, False, True, False
    ]  # fmt: skip
