"""Made motion: what is drawn, which way it goes, and that it is smooth and invertible."""

import numpy as np
import pytest
import torch
from scipy.ndimage import zoom

from medseg_cardiac import synthetic
from medseg_cardiac.fields import num_folds
from medseg_cardiac.synthetic import Motion, made_motion, smooth_field

STILL = Motion(squeeze=0.0, twist_rad=0.0, bend_px=0.0, shift_px=0.0)


def only(**most):
    return Motion(**{**vars(STILL), **most})


def made(seed, size=64, most=None):
    return made_motion(size, np.random.default_rng(seed), most=most)


def divergence(flow):
    """The mean over the middle, where the heart is."""
    middle = np.s_[flow.shape[1] // 4 : -flow.shape[1] // 4]
    return float((np.gradient(flow[0], axis=0) + np.gradient(flow[1], axis=1))[middle, middle].mean())


def test_equal_generators_give_equal_fields():
    one = made(3)
    assert (one.shape, one.dtype) == ((2, 64, 64), np.float32)
    np.testing.assert_array_equal(one, made(3))
    assert np.abs(one - made(4)).max() > 0.1


def test_nothing_moves_where_nothing_may():
    assert not made(0, most=STILL).any()


def test_a_shift_alone_moves_everything_alike_and_no_further_than_it_may():
    shifts = np.stack([made(seed, 16, only(shift_px=2.0)) for seed in range(50)])
    np.testing.assert_allclose(shifts, shifts[..., :1, :1] + 0 * shifts, atol=1e-6)
    assert 1.8 < np.abs(shifts).max() <= 2.0


def test_most_squeezes_look_up_farther_in():
    """A relaxed heart stays: what it shows is found nearer the middle in the other frame, where it is contracted."""
    found = np.array([divergence(made(seed, 32, only(squeeze=0.4))) for seed in range(300)])
    assert abs((found < 0).mean() - 0.75) < 0.08  # three standard deviations of a share of 300


def test_a_squeeze_is_strongest_around_the_middle_and_gone_far_from_it():
    flow = np.abs(np.stack([made(seed, 256, only(squeeze=0.4)) for seed in range(10)])).max((0, 1))
    assert flow[96:160, 96:160].max() > 3
    assert max(flow[0].max(), flow[-1].max(), flow[:, 0].max(), flow[:, -1].max()) < 0.3 * flow.max()


def test_a_twist_is_a_turn_that_keeps_areas():
    flow = max((made(seed, 64, only(twist_rad=0.15)) for seed in range(9)), key=lambda flow: np.abs(flow).max())
    assert np.abs(flow).max() > 1
    slopes = np.gradient(flow[0], axis=0) + np.gradient(flow[1], axis=1)
    assert np.abs(slopes[1:-1, 1:-1]).max() < 0.01  # of slopes of 0.1
    h, w = np.unravel_index(np.hypot(*flow[:, 20:44, 20:44]).argmin(), (24, 24))  # about which everything turns
    below, beside = flow[:, 20 + h + 8, 20 + w], flow[:, 20 + h, 20 + w + 8]
    assert below[1] * beside[0] < 0
    assert np.abs(below[1]) == pytest.approx(np.abs(beside[0]), rel=0.3)


def test_beyond_a_pool_muscle_keeps_its_area():
    """A displacement away * (a / r)^2 has no divergence."""
    away = np.indices((64, 64)) - 31.5
    radius = np.hypot(*away)
    left = synthetic.as_muscle(radius, 10.0)
    assert (left[radius < 10] == 1).all()
    flow = -0.2 * away * left
    slopes = np.gradient(flow[0], axis=0) + np.gradient(flow[1], axis=1)
    assert np.abs(slopes[radius < 8] + 0.4).max() < 1e-9
    assert np.abs(slopes[radius > 12]).max() < 0.01


@pytest.mark.parametrize("size", [64, 128])
def test_no_field_folds(size):
    flows = torch.from_numpy(np.stack([made(seed, size) for seed in range(60)]))
    assert not num_folds(flows).any()


def test_fields_differ_in_strength_and_reach_what_systole_needs():
    """The endocardium of a heart of 25 pixels' radius moves by 6 to 10."""
    longest = np.array([np.hypot(*made(seed, 128)).max() for seed in range(60)])
    assert longest.min() < 3
    assert 8 < longest.max() < 20


def test_a_smooth_field_of_one_value_is_that_value():
    np.testing.assert_allclose(smooth_field(np.full((2, 5, 5), 1.7), 40), 1.7, atol=1e-6)


@pytest.mark.parametrize("num", [4, 7])
def test_a_smooth_field_is_scipy_s_cubic_zoom_of_both_axes(num):
    coarse = np.random.default_rng(0).standard_normal((3, num, num))
    want = [zoom(part, 48 / num, order=3, grid_mode=True, mode="nearest") for part in coarse]
    np.testing.assert_allclose(smooth_field(coarse, 48), want, atol=1e-9)
