"""LGE brought to the cine, against the misalignment that the phantom knows."""

import numpy as np
import pytest
import torch
from torch import nn

from medseg_cardiac.alignment import aligned
from medseg_cardiac.phantom import masks, pictures, scan

SIZE = 96


class Still(nn.Module):
    """A net that has learnt nothing."""

    def __init__(self):
        super().__init__()
        self.zero = nn.Parameter(torch.zeros(()))

    def forward(self, moving, fixed):
        return self.zero.expand(len(fixed), 2, *fixed.shape[2:])


@pytest.fixture(scope="module")
def slices():
    """Of four hearts: LGE and ED, the walls drawn on both, and the true displacement (2, H, W)."""
    found = []
    for number in range(4):
        plane = scan(number, 1, size=SIZE, num_frames=4)
        cine, lge = pictures(plane)
        drawn = masks(plane)
        walls = drawn["lge/lge_Myo_labels/{case}"], drawn["cmr_Myo_mask/{case}"]
        shift = (plane.shift.forward(plane.points_mm) - plane.points_mm) / plane.spacing_mm
        low, high = np.percentile(cine, (1, 99))
        found.append((np.clip(lge / 1000, 0, 1), np.clip((cine[0] - low) / (high - low), 0, 1), walls, shift))
    return found


def error_px(flow, shift, wall):
    return float(np.linalg.norm(flow[0].numpy() - shift, axis=0)[wall].mean())


def errors(slices, *, drawn):
    return [
        error_px(aligned(Still(), lge, ed, walls=walls if drawn else ()), shift, walls[1])
        for lge, ed, walls, shift in slices
    ]


def test_pictures_alone_take_most_of_the_misalignment_away(slices):
    before = [error_px(torch.zeros(1, 2, SIZE, SIZE), shift, walls[1]) for *_, walls, shift in slices]
    assert np.mean(errors(slices, drawn=False)) < 0.5 * np.mean(before)


def test_walls_that_are_drawn_on_both_help(slices):
    assert np.mean(errors(slices, drawn=True)) < np.mean(errors(slices, drawn=False))


def test_what_the_net_says_beyond_a_stiff_motion_is_not_taken(slices):
    class Noisy(Still):
        def forward(self, moving, fixed):
            noise = torch.randn(1, 2, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
            return super().forward(moving, fixed) + 2 * noise

    lge, ed, walls, shift = slices[0]
    calm, noisy = (error_px(aligned(net, lge, ed), shift, walls[1]) for net in (Still(), Noisy()))
    assert noisy < calm + 0.5
