"""Points and masks carried along, by hand and against a heart whose motion is a formula."""

import math

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from torch import nn

from medseg_cardiac import phantom
from medseg_cardiac.contours import outline
from medseg_cardiac.tracking import carried_mask, carried_points, cycle, dice_of

SIZE, CENTRE = 64, (30.3, 33.8)  # off the pixels, on whose lattice areas of circles jump


def places():
    return np.indices((SIZE, SIZE)).astype(float)


def scaled(factor, centre=CENTRE):
    """The displacement of x -> centre + factor (x - centre)."""
    return (factor - 1) * (places() - np.reshape(centre, (2, 1, 1)))


def disc(radius, centre=CENTRE):
    return np.hypot(*(places() - np.reshape(centre, (2, 1, 1)))) < radius


@pytest.fixture(scope="module")
def heart():
    """A slice of the phantom: its plane, its displacement (T, D, H, W) and its masks."""
    plane = phantom.scan(0, 1, size=128, num_frames=10)
    masks = {name.split("/")[0] + name.split("{case}")[1]: mask for name, mask in phantom.masks(plane).items()}
    return plane, phantom.displacement(plane), masks


class Gap(nn.Module):
    """Answers both grey values: (moving, fixed) as the two components."""

    def __init__(self):
        super().__init__()
        self.gain, self.sizes = nn.Parameter(torch.ones(())), []

    def forward(self, moving, fixed):
        self.sizes.append(len(moving))
        return self.gain * torch.cat([moving, fixed], 1)


@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_every_frame_but_ed_is_asked_for_with_ed_fixed(batch_size):
    frames = np.arange(6.0).reshape(-1, 1, 1) + np.zeros((6, 8, 10))
    model = Gap()
    flows = cycle(model, frames, 2, batch_size=batch_size)
    assert (flows.shape, flows.dtype) == ((6, 2, 8, 10), np.float32)
    assert not flows[2].any()
    for t in (0, 1, 3, 4, 5):
        assert (flows[t, 0] == t).all()  # moving
        assert (flows[t, 1] == 2).all()  # fixed
    assert sum(model.sizes) == 5
    assert max(model.sizes) == min(batch_size, 5)


def test_points_go_where_their_pixel_goes_rows_first():
    flow = np.stack([np.full((8, 9), 2.0), np.full((8, 9), -1.5)])
    np.testing.assert_allclose(carried_points(np.array([[3.25, 4.5]]), flow), [[5.25, 3.0]])


def test_between_pixels_a_linear_motion_is_exact():
    points = np.random.default_rng(0).uniform(0, SIZE - 1, (50, 2))
    want = np.array(CENTRE) + 0.7 * (points - CENTRE)
    np.testing.assert_allclose(carried_points(points, scaled(0.7)), want, atol=1e-12)


def test_points_beyond_the_picture_move_with_its_edge():
    flow = np.stack([places()[1], 0 * places()[0]])
    np.testing.assert_allclose(carried_points(np.array([[-2.0, 80.0]]), flow), [[-2.0 + SIZE - 1, 80.0]])


def test_a_mask_that_stays_is_itself():
    noise = gaussian_filter(np.random.default_rng(0).standard_normal((SIZE, SIZE)), 2)
    for mask in (noise > 0, disc(12), disc(18) & ~disc(9), np.zeros((SIZE, SIZE), bool), np.ones((SIZE, SIZE), bool)):
        np.testing.assert_array_equal(carried_mask(mask, np.zeros((2, SIZE, SIZE))), mask)


def test_a_mask_moves_by_whole_pixels_and_leaves_the_picture():
    mask = disc(8, (20, 50))
    flow = np.stack([np.full((SIZE, SIZE), -3.0), np.full((SIZE, SIZE), 9.0)])
    want = np.zeros_like(mask)
    want[:-3, 9:] = mask[3:, :-9]
    np.testing.assert_array_equal(carried_mask(mask, flow), want)


@pytest.mark.parametrize("factor", [0.6, 1.3])
def test_a_squeezed_ring_keeps_its_hole_and_changes_its_area_by_the_square(factor):
    ring = disc(18) & ~disc(9)
    moved = carried_mask(ring, scaled(factor))
    assert dice_of(moved, disc(18 * factor) & ~disc(9 * factor)) > 0.95
    assert moved.sum() == pytest.approx(factor**2 * ring.sum(), rel=0.04)
    assert not moved[30, 34]
    assert len(outline(moved)) == 2


def test_the_pool_of_the_phantom_is_carried_onto_its_pool_at_end_systole(heart):
    plane, flows, masks = heart
    ed, es = masks["cmr_LV_mask_ED"], masks["cmr_LV_mask_ES"]
    assert dice_of(ed, es) < 0.85
    assert dice_of(carried_mask(ed, flows[plane.es]), es) > 0.975  # pixels of the edge count half


def test_points_of_the_wall_follow_the_phantom_s_formula(heart):
    plane, flows, masks = heart
    points = np.argwhere(masks["cmr_Myo_mask"])[::7] + np.array([0.3, -0.4])
    for t in (2, plane.es, 8):
        start_mm = (points - plane.centre).T * plane.spacing_mm
        want_mm = plane.ring.forward(start_mm, plane.contractions[t])
        gap = carried_points(points, flows[t]) - plane.pixels(want_mm).T
        assert np.hypot(*gap.T).max() < 0.1


def test_the_phantom_s_wall_gains_area_as_it_thickens_and_stays_around_the_pool(heart):
    plane, flows, masks = heart
    wall, pool = (carried_mask(masks[name], flows[plane.es]) for name in ("cmr_Myo_mask", "cmr_LV_mask_ED"))
    gradients = plane.ring.gradient(plane.points_mm[:, masks["cmr_Myo_mask"]], 1.0)
    area = np.linalg.det(gradients.transpose(2, 0, 1)).sum()
    assert area > 1.05 * masks["cmr_Myo_mask"].sum()
    assert wall.sum() == pytest.approx(area, rel=0.02)
    assert (wall & pool).sum() < 0.02 * wall.sum()


def test_dice_is_twice_the_overlap_over_both():
    one, other = np.zeros((2, 3, 4), bool)
    one[0], other[0, 2:], other[1, 2:] = True, True, True
    assert dice_of(one, other) == 2 * 2 / 8
    assert dice_of(one, one) == 1
    assert dice_of(one, ~one) == 0
    assert math.isnan(dice_of(one & ~one, one & ~one))
