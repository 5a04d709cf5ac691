"""One patient on one grid: where things lie, in which units, and what is refused."""

import numpy as np
import pytest
from tests.fusion.conftest import CT_AFFINE, PET_AFFINE, TUMOUR, planes, volumes

from medseg_core.errors import MedsegError
from medseg_core.io import read_volume, write_picture
from medseg_core.volume import Picture, Volume, resample
from medseg_fusion.patients import Patient, doubt_of_suv, read_patient
from medseg_fusion.sources import find_patients

FAR_AFFINE = PET_AFFINE + np.array([[0, 0, 0, 500]] + 3 * [[0, 0, 0, 0]])
NAMES = ["a_slice_1", "a_slice_2"]


def only(data):
    return find_patients(data).cases[0]


def test_ct_pet_and_mask_come_onto_one_grid_in_ras(write):
    patient = read_patient(only(write()))
    hu, _ = volumes()["CT_image"]
    np.testing.assert_array_equal(patient.ct, hu[::-1, ::-1])  # LPS to RAS
    assert patient.pet.shape == patient.label.shape == (16, 20, 4)
    assert patient.spacing == (2, 2, 4)
    assert patient.label[::-1, ::-1][TUMOUR].all()
    assert patient.label.sum() == 6 * 6 * 2


def test_pet_lies_where_the_world_says(write):
    suv, affine = np.zeros((8, 10, 4), np.float32), PET_AFFINE
    suv[5, 2, 1] = 8.0  # at world (-20, -8, 4), in CT the voxel (10, 4, 1)
    patient = read_patient(only(write(PET_image=(suv, affine))))
    assert np.unravel_index(patient.pet.argmax(), patient.pet.shape) == (16 - 1 - 10, 20 - 1 - 4, 1)
    assert patient.pet.max() == pytest.approx(8.0)


def test_a_spacing_of_its_own_keeps_the_volume_of_the_tumour(write):
    coarse = read_patient(only(write()), spacing_mm=(4, 4, 4))
    assert coarse.ct.shape == (8, 10, 4)
    assert coarse.label.sum() * 4**3 == 6 * 6 * 2 * 2 * 2 * 4


def test_what_pet_does_not_reach_is_told(write):
    suv, affine = volumes()["PET_image"]
    patient = read_patient(only(write(PET_image=(suv[:4], affine))))
    assert patient.covered == pytest.approx(0.5, abs=0.07)
    assert (patient.pet[:6] == 0).all()  # RAS: the half that is missing


@pytest.mark.parametrize(
    ("replaced", "said"),
    [
        (
            {"PET_image": (volumes()["PET_image"][0], FAR_AFFINE)},
            "no place in common",
        ),
        ({"CT_image": volumes()["PET_image"], "PET_image": volumes()["CT_image"]}, "swap CT and PET"),
        ({"PET_image": (4000 * volumes()["PET_image"][0], PET_AFFINE)}, "beyond any SUV: Bq/ml or kBq/ml"),
        ({"PET_image": (0 * volumes()["PET_image"][0], PET_AFFINE)}, "is 0 everywhere"),
        ({"PET_image": (volumes()["PET_image"][0] * np.float32(np.nan), PET_AFFINE)}, "no numbers"),
        ({"CT_mask": (3 * volumes()["CT_mask"][0], CT_AFFINE)}, "holds 0, 3; a mask of tumour is 0 and 1"),
    ],
)
def test_what_cannot_be_ct_pet_and_mask_is_refused(write, replaced, said):
    data = write(**replaced)
    with pytest.raises(MedsegError, match=said):
        read_patient(only(data))


def test_masks_of_0_and_255_are_masks(write):
    mask, affine = volumes()["CT_mask"]
    assert read_patient(only(write(CT_mask=(255 * mask, affine)))).label.max() == 1


def test_pictures_of_a_patient_become_a_stack_in_8_bits(draw):
    some = planes(NAMES)
    patient = read_patient(only(draw(some)))
    np.testing.assert_array_equal(patient.pet[..., 1], some["PET"]["a_slice_2"])
    np.testing.assert_array_equal(patient.label[..., 0], some["masks"]["a_slice_1"] > 0)
    assert (patient.unit, patient.affine, patient.slices) == ("8 bits", None, ("a_slice_1.png", "a_slice_2.png"))


def test_grey_pictures_with_three_equal_channels_are_grey(draw):
    some = planes(NAMES)
    some["CT"] = {name: np.repeat(pixels[..., None], 3, -1) for name, pixels in some["CT"].items()}
    assert read_patient(only(draw(some))).ct.shape == (12, 16, 2)


def replaced_by(draw, role, pixels):
    data = draw(planes(NAMES))
    write_picture(Picture(pixels), data / role / "a_slice_2.png")
    return data


@pytest.mark.parametrize(
    ("role", "pixels", "said"),
    [
        ("PET", np.zeros((12, 15), np.uint8), "a_slice_2.png and .* differ in size, 12x15 and 12x16"),
        ("CT", np.eye(3, dtype=np.uint8)[np.zeros((12, 16), int)], "has colours"),
        ("PET", np.zeros((12, 16), np.uint16), "holds uint16; 16-bit pictures do not say their units"),
        ("masks", np.full((12, 16), 7, np.uint8), "masks/a_slice_2.png holds 7; a mask"),
    ],
)
def test_pictures_of_other_kinds_are_refused(draw, role, pixels, said):
    data = replaced_by(draw, role, pixels)
    with pytest.raises(MedsegError, match=said):
        read_patient(only(data))


def test_pet_of_a_real_patient_lies_under_its_mask(data):
    case = next(case for case in find_patients(data / "ctpet").cases if case.id == "STS_001")
    patient = read_patient(case, spacing_mm=(2, 2, 3.27))
    there = read_volume(case.files["pet"].with_name("PET_mask.nii.gz"))
    grid = Volume(patient.label, patient.affine).grid
    of_pet = resample(there, grid, how="label", outside=0).voxels > 0
    dice = 2 * (of_pet & (patient.label > 0)).sum() / (of_pet.sum() + patient.label.sum())
    assert dice > 0.9  # two drawings of one tumour; 0.91 to 0.95 in the first five patients
    assert patient.pet[patient.label > 0].mean() > 3 * patient.pet[patient.label == 0].mean()


def test_suv_of_dicom_is_that_of_the_same_patients_volume(data):
    (zipped,) = find_patients(data / "ctpet_dicom_sts001").cases
    given = next(case for case in find_patients(data / "ctpet").cases if case.id == "STS_001")
    ours, theirs = read_patient(zipped), read_patient(given)
    inner = (slice(12, -12), slice(12, -12), slice(3, -3))  # the given PET was cut out and knows nothing beyond
    np.testing.assert_allclose(ours.pet[inner], theirs.pet[inner], atol=0.01 * theirs.pet.max())


def test_a_mask_elsewhere_in_the_world_is_no_patient_without_tumour(write):
    mask, _ = volumes()["CT_mask"]
    with pytest.raises(MedsegError, match=r"CT_mask.nii.gz has tumour and none of it lies in the CT"):
        read_patient(only(write(CT_mask=(mask, CT_AFFINE + FAR_AFFINE - PET_AFFINE))))


def test_tumour_that_a_coarse_grid_loses_is_told(write, caplog):
    mask = np.zeros((16, 20, 4), np.uint8)
    mask[5, 5, 1] = 1
    assert not read_patient(only(write(CT_mask=(mask, CT_AFFINE))), spacing_mm=(8, 8, 16)).label.any()
    assert "has tumour that is lost on a grid of 8x8x16 mm; take a finer one" in caplog.text


@pytest.mark.parametrize(("factor", "told"), [(1, ""), (5.3, "PET is 3.2 in the median of soft tissue")])
def test_pet_in_kbq_is_doubted_by_its_soft_tissue(factor, told):
    ct, pet = np.full((4, 4, 4), 40, np.int16), np.full((4, 4, 4), 0.6 * factor, np.float32)
    ct[0], pet[0] = -1000, 90  # not of the body
    assert doubt_of_suv(Patient("p", ct, pet, None, "HU and SUV", (1, 1, 1))).startswith(told)
    assert bool(doubt_of_suv(Patient("p", ct, pet, None, "HU and SUV", (1, 1, 1)))) == bool(told)


def test_no_shared_patient_is_doubted(data):
    for case in find_patients(data / "ctpet").cases[::4]:
        assert doubt_of_suv(read_patient(case, spacing_mm=(6, 6, 6))) == ""
