"""Blocks of slices that moved: put back where that is sure, left where it is not."""

import math

import numpy as np
import pytest
from tests.pieces import dice_of

from medseg_core.io import read_volume
from medseg_near import slabs
from medseg_near.noise import corrupt
from medseg_near.slabs import put_back

THICK = ("liver", "spleen", "aorta", "iliopsoas_left", "kidney_right", "small_bowel")


def barrel(size=40, *, slant=0.0):
    """(X, Y, Z) bool: upright along X, thickest in the middle; it leans along Z by `slant` voxels a slice."""
    x, y, z = np.indices((size,) * 3) - (size - 1) / 2
    return (y**2 + (z - slant * x) ** 2 <= (9 - x**2 / 60) ** 2) & (abs(x) < 14)


def moved(label, slices, steps, *, axis=0):
    out = np.moveaxis(label.copy(), axis, 0)
    out[slices] = np.roll(out[slices], steps, (1, 2))
    return np.moveaxis(out, 0, axis)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_block_comes_back_to_where_it_was(axis):
    clean = np.moveaxis(barrel(), 0, axis)
    noisy = moved(clean, slice(15, 18), (3, -2), axis=axis)
    found = put_back(noisy, [2.0 if n == axis else 1.5 for n in range(3)])
    assert (found.label == clean).all()
    assert found.num_moved == 3
    assert found.farthest_mm == pytest.approx(1.5 * math.hypot(3, 2))


def test_where_all_voxel_edges_are_alike_the_axis_is_found():
    clean = np.moveaxis(barrel(), 0, 2)
    assert (put_back(moved(clean, slice(22, 25), (0, 3), axis=2), (1, 1, 1)).label == clean).all()


def test_slices_are_only_looked_for_where_they_are_thickest():
    noisy = moved(barrel(), slice(15, 20), (3, -2))
    assert put_back(noisy, (1, 1, 3)).label is noisy


@pytest.mark.parametrize("slant", [0.0, 0.5])
def test_a_shape_that_leans_is_no_shape_that_moved(slant):
    clean = barrel(slant=slant)
    found = put_back(clean, (1, 1, 1))
    assert found.label is clean
    assert found.num_moved == 0


def test_a_block_beyond_a_gap_stays_as_nothing_tells_where_it_belongs():
    noisy = moved(barrel(), slice(15, 20), (3, -2))
    noisy[20:22] = False
    assert put_back(noisy, (3, 1, 1)).label is noisy


def test_nothing_and_a_single_slice_stay_as_they_are():
    label = np.zeros((5, 6, 7), bool)
    assert put_back(label, (1, 1, 1)).label is label
    label[2, 2:4, 2:4] = True
    assert put_back(label, (2, 1, 1)).label is label


def organ_of(data, name):
    """A label of a real CT with room about it, and its spacing."""
    volume = read_volume(data / "ct_multiorgan" / "ts_s0001" / "segmentations" / f"{name}.nii.gz")
    held = np.argwhere(volume.voxels > 0)
    return np.pad(volume.voxels > 0, 8)[tuple(map(slice, held.min(0), held.max(0) + 17))], volume.spacing_mm


def test_no_label_of_two_real_cts_is_taken_for_one_that_moved(data):
    files = sorted((data / "ct_multiorgan").glob("*/segmentations/*.nii.gz"))
    volumes = {file: read_volume(file) for file in files}
    moved = [file.name for file, one in volumes.items() if put_back(one.voxels > 0, one.spacing_mm).num_moved]
    assert len(files) > 90
    assert moved == []


def test_a_vessel_that_crosses_thick_slices_stays(data):
    artery, (x_mm, y_mm, z_mm) = organ_of(data, "iliac_artery_right")
    assert put_back(artery[:, :, ::4], (x_mm, y_mm, 4 * z_mm)).num_moved == 0


def test_nothing_is_moved_out_of_the_array(monkeypatch):
    label = barrel()[:, 10:]  # its rim lies on the edge
    monkeypatch.setattr(slabs, "_best_steps", lambda planes: (1.0, np.full((len(planes), 2), -4)))
    assert put_back(label, (2, 1, 1)).label is label


@pytest.mark.parametrize("organ", THICK)
def test_organs_that_were_cut_into_blocks_and_moved_come_closer_again(organ, data):
    clean, spacing_mm = organ_of(data, organ)
    noisy = corrupt(clean, "shifts", amount=0.7, spacing_mm=spacing_mm, rng=np.random.default_rng(0))
    assert dice_of(put_back(noisy, spacing_mm).label, clean) > dice_of(noisy, clean) + 0.02
