"""Slices that come twice under two names."""

import numpy as np
import pytest

from medseg_fusion.leaks import Slices
from medseg_fusion.patients import Patient, read_patient
from medseg_fusion.sources import find_patients


def patient(name, ct, pet):
    return Patient(name, ct, pet, None, "HU and SUV", (1, 1, 1))


def textured(seed, shape=(48, 40, 3)):
    rng = np.random.default_rng(seed)
    coarse = rng.random((6, 5, 3))
    return np.kron(coarse, np.ones((8, 8, 1)))[: shape[0], : shape[1]]


def found(*patients):
    slices = Slices()
    for one in patients:
        slices.add(one)
    return slices.alike()


@pytest.mark.parametrize("change", [0, 4])
def test_a_copy_with_a_little_noise_is_found_and_named(change):
    hu, suv = 400 * textured(1) - 160, 10 * textured(2)
    noise = np.random.default_rng(3).normal(0, change, hu.shape)
    pairs = found(patient("a", hu, suv), patient("b", hu + noise, suv))
    assert pairs == [(("a", 0), ("b", 0))]


def test_the_same_ct_with_another_pet_is_no_copy():
    hu = 400 * textured(1) - 160
    assert not found(patient("a", hu, 10 * textured(2)), patient("b", hu, 10 * textured(4)))


def test_slices_of_one_patient_may_be_alike():
    hu = np.repeat(400 * textured(1)[..., :1] - 160, 3, -1)
    assert not found(patient("a", hu, hu))


def test_empty_slices_are_no_copies():
    air = np.full((48, 40, 2), -1000)
    assert not found(patient("a", air, 0 * air), patient("b", air, 0 * air))


def test_real_patients_are_not_taken_for_each_other(data):
    cases = find_patients(data / "ctpet").cases
    assert not found(*(read_patient(case, spacing_mm=(4, 4, 6.54)) for case in cases[:6]))
