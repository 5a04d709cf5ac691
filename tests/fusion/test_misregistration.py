"""PET moved against CT: where it goes, and what the curve says."""

import numpy as np
import pytest

from medseg_core.cases import Case
from medseg_core.store import write_arrays
from medseg_fusion.misregistration import STEPS, curve, direction_of, means, moved


def point(place, shape=(21, 31, 11)):
    pet = np.zeros(shape, np.float32)
    pet[place] = 8
    return pet


def peak(pet):
    return np.unravel_index(pet.argmax(), pet.shape)


def test_a_move_in_mm_is_one_in_voxels_of_each_axis():
    found = moved(point((10, 15, 5)), np.array([4.0, -6.0, 9.0]), 0.0, spacing=(2.0, 3.0, 4.5))
    assert peak(found) == (12, 13, 7)
    assert found.max() == 8


def test_a_turn_is_one_in_mm_about_the_middle_of_the_slice():
    # 6 mm along the first axis becomes 6 mm along the second: 3 voxels of 2 mm become 2 of 3 mm
    found = moved(point((13, 15, 5)), np.zeros(3), 90.0, spacing=(2.0, 3.0, 4.5))
    assert peak(found) in ((10, 17, 5), (10, 13, 5))


def test_no_move_changes_nothing():
    pet = point((1, 2, 3))
    assert moved(pet, np.zeros(3), 0.0, spacing=(1, 1, 1)) is pet


def test_pictures_are_moved_within_their_slices():
    assert direction_of("p1", planar=True)[2] == 0
    assert np.linalg.norm(direction_of("p1", planar=False)) == pytest.approx(1)
    assert (direction_of("p1", planar=False) == direction_of("p1", planar=False)).all()


class Hot:
    """Tumour where PET is."""

    threshold = 0.5

    def probabilities(self, ct, pet):
        return pet / 8


def test_dice_falls_from_1_the_farther_pet_is_moved(tmp_path):
    pet = np.zeros((24, 24, 24), np.float32)
    pet[8:16, 8:16, 8:16] = 8
    about = {"unit": "HU and SUV", "spacing": [2.0, 2.0, 2.0]}
    write_arrays(tmp_path / "p", {"ct": pet, "pet": pet, "label": (pet > 0).astype(np.uint8)}, about)
    steps = means(list(curve([Case("p", {"arrays": tmp_path / "p"})], Hot())))
    dice = [step["dice"] for step in steps if not step["degrees"]]
    assert [(step["mm"], step["degrees"]) for step in steps] == list(STEPS)
    assert dice[0] == 1
    assert dice == sorted(dice, reverse=True)
    assert dice[-1] < 0.2  # 20 mm of an edge of 16
