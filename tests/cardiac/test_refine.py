"""Refinement: what a few steps make of a displacement, against the phantom's truth."""

import numpy as np
import pytest
import torch

from medseg_cardiac.fields import num_folds
from medseg_cardiac.phantom import displacement, masks, pictures, scan
from medseg_cardiac.refine import EDGE, on_splines, refined


@pytest.fixture(scope="module")
def pair():
    """Moving and fixed frame, the true displacement (2, H, W), and the wall, of a small heart half-way to systole."""
    plane = scan(0, 1, size=64, num_frames=8)
    cine, _ = pictures(plane)
    wall = next(mask for name, mask in masks(plane).items() if "cmr_Myo_mask" in name)
    low, high = np.percentile(cine, (1, 99))
    frames = torch.from_numpy(np.clip((cine - low) / (high - low), 0, 1).astype(np.float32))
    return frames[2][None, None], frames[0][None, None], displacement(plane)[2], wall


def error_px(flow, truth, wall):
    return float(np.linalg.norm(flow[0].numpy() - truth, axis=0)[wall].mean())


def test_a_few_steps_find_most_of_a_small_motion(pair):
    moving, fixed, truth, wall = pair
    still = torch.zeros(1, 2, 64, 64)
    found = refined(moving, fixed, still, steps=40)
    assert error_px(still, truth, wall) > 0.5
    assert error_px(found, truth, wall) < 0.5 * error_px(still, truth, wall)


def test_no_step_changes_nothing(pair):
    moving, fixed, *_ = pair
    flow = torch.rand(1, 2, 64, 64)
    assert torch.allclose(refined(moving, fixed, flow, steps=0), flow, atol=1e-4)


def test_what_is_integrated_does_not_fold(pair):
    moving, fixed, *_ = pair
    found = refined(moving, fixed, torch.zeros(1, 2, 64, 64), steps=40, smoothness=0.0, diffeomorphic=True)
    assert num_folds(found).tolist() == [0]


def test_the_border_stays_as_it_is(pair):
    moving, fixed, *_ = pair
    flow = torch.full((1, 2, 64, 64), 0.5)
    found = refined(moving, fixed, flow, steps=5)
    assert torch.allclose(found[..., 0, :], flow[..., 0, :], atol=0.05)
    assert (found - flow)[..., EDGE:-EDGE, EDGE:-EDGE].abs().max() > 0.05


def test_a_pair_does_not_depend_on_its_companions(pair):
    moving, fixed, *_ = pair
    two = torch.cat([moving, fixed]), torch.cat([fixed, fixed]), torch.zeros(2, 2, 64, 64)
    alone = refined(moving, fixed, torch.zeros(1, 2, 64, 64), steps=5)
    assert torch.allclose(refined(*two, steps=5)[:1], alone, atol=1e-4)


def test_splines_hold_a_turn_and_a_stretch_as_they_are():
    h, w = torch.meshgrid(torch.arange(50.0), torch.arange(37.0), indexing="ij")
    flow = torch.stack([0.1 * h - 0.2 * w + 3, 0.3 * h + 0.05 * w])[None]
    torch.testing.assert_close(on_splines(flow, gap=24), flow, atol=1e-3, rtol=0)


def test_splines_let_what_is_finer_than_their_knots_go():
    noise = torch.randn(1, 2, 64, 64, generator=torch.Generator().manual_seed(0))
    assert on_splines(noise, gap=24).std() < 0.2
