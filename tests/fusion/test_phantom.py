"""Phantom patients: what is known of them, and that neither picture alone tells it."""

import json

import numpy as np
import pytest

from medseg_core.errors import MedsegError
from medseg_core.io import read_volume
from medseg_fusion.patients import read_patient
from medseg_fusion.phantom import phantom
from medseg_fusion.sources import find_patients


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return phantom(tmp_path_factory.mktemp("phantom") / "data", num_cases=6)


def test_the_mask_has_the_volume_of_its_balls(made):
    truth = json.loads((made / "truth.json").read_text())
    for patient, objects in truth.items():
        mask = read_volume(made / patient / "CT_mask.nii.gz")
        balls = [4 / 3 * np.pi * one["radius_mm"] ** 3 for one in objects if one["kind"] == "tumour"]
        assert mask.voxels.sum() * np.prod(mask.spacing_mm) == pytest.approx(sum(balls), rel=0.05)


def test_one_patient_in_six_has_no_tumour(made):
    empty = [case.id for case in find_patients(made).cases if not read_patient(case).label.any()]
    assert empty == ["p005"]


def test_fluid_is_as_hot_as_a_tumour_and_a_mass_is_as_dense(made):
    truth = json.loads((made / "truth.json").read_text())
    by_kind = {"tumour": [], "fluid": [], "mass": []}
    for patient, objects in truth.items():
        ct = read_volume(made / patient / "CT_image.nii.gz")
        for one in objects:
            at = np.linalg.inv(ct.affine) @ [*one["centre_mm"], 1]
            hu = ct.voxels[tuple(slice(round(v) - 1, round(v) + 2) for v in at[:3])].mean()
            by_kind[one["kind"]].append((hu, one["suv"]))
    means = {kind: np.mean(found, 0) for kind, found in by_kind.items()}
    assert abs(means["tumour"][0] - means["mass"][0]) < 10
    assert means["tumour"][0] - means["fluid"][0] > 50
    assert means["fluid"][1] >= means["tumour"][1] - 2
    assert means["mass"][1] < 1


def test_patients_do_not_depend_on_how_many_there_are(made, tmp_path):
    again = phantom(tmp_path / "data", num_cases=2)
    for file in ("CT_image", "PET_image"):
        both = [read_volume(where / "p001" / f"{file}.nii.gz").voxels for where in (made, again)]
        np.testing.assert_array_equal(*both)


def test_a_folder_with_something_else_is_left_alone(tmp_path):
    (tmp_path / "notes.txt").touch()
    with pytest.raises(MedsegError, match="is no phantom"):
        phantom(tmp_path)
