"""Labels that were smoothed: told from others, and given back what they lost."""

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter
from tests.pieces import dice_of

from medseg_near.noise import corrupt
from medseg_near.smoothed import sharpened


def rough(seed=0):
    """(X, Y, Z) bool: a ball whose surface wavers from voxel to voxel, with thin fins."""
    away = np.linalg.norm(np.indices((32,) * 3) - 15.5, axis=0)
    ball = away + np.random.default_rng(seed).normal(0, 0.6, away.shape) < 7
    ball[6:26, 15:17, 15:17] = ball[15:17, 6:26, 15:17] = True
    return ball


def smooth(label, std):
    return gaussian_filter(label.astype(np.float32), std) > 0.5


@pytest.mark.parametrize("seed", range(3))
def test_a_rough_label_stays_as_it_is(seed):
    label = rough(seed)
    found, width = sharpened(label, (1, 1, 1))
    assert found is label
    assert width == 0


@pytest.mark.parametrize("std", [1.15, 1.5])
def test_a_smoothed_one_is_told_by_about_the_width_and_comes_closer(std):
    clean = rough()
    noisy = smooth(clean, std)
    found, width = sharpened(noisy, (1, 1, 1))
    assert width == pytest.approx(std, rel=0.25)
    assert dice_of(found, clean) > dice_of(noisy, clean)


def test_the_filter_is_as_wide_along_each_axis_in_mm():
    clean = np.repeat(rough(), 2, axis=0)
    noisy = smooth(clean, (2.4, 1.2, 1.2))
    right, wrong = (dice_of(sharpened(noisy, spacing_mm)[0], clean) for spacing_mm in ((0.5, 1, 1), (1, 1, 1)))
    assert right > max(wrong, dice_of(noisy, clean))


def test_what_smoothing_makes_of_the_answer_is_the_label():
    noisy = smooth(rough(), 1.3)
    found, width = sharpened(noisy, (1, 1, 1))
    assert dice_of(smooth(found, width), noisy) > dice_of(smooth(noisy, width), noisy)


def test_nothing_stays_nothing():
    label = np.zeros((4, 5, 6), bool)
    assert sharpened(label, (1, 1, 1)) == (label, 0.0)


def test_real_glands_are_rough_and_come_closer_once_they_were_smoothed(data):
    glands = np.load(data / "shapes3d" / "adrenalmnist3d_64_trainval.npz")["train_images"][:20] > 0
    assert [sharpened(gland, (1, 1, 1))[1] for gland in glands] == [0.0] * 20
    gains = []
    for gland in glands[:5]:
        noisy = corrupt(gland, "smooth", amount=0.7, spacing_mm=(1, 1, 1), rng=np.random.default_rng(0))
        gains.append(dice_of(sharpened(noisy, (1, 1, 1))[0], gland) - dice_of(noisy, gland))
    assert np.mean(gains) > 0.005
