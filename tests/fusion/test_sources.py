"""Which patients a folder holds, and what is refused of it."""

import pytest
from tests.fusion.conftest import planes

from medseg_core.cases import split_cases
from medseg_core.errors import MedsegError
from medseg_fusion.sources import find_patients, labelled, role_of

SLICES = [f"patient_00{patient}_slice_{number:04d}" for patient in (1, 2) for number in (2, 10, 1)]


@pytest.mark.parametrize(
    ("name", "role"),
    [
        ("CT_image", "ct"),
        ("CTres", "ct"),
        ("PET_image", "pet"),
        ("SUV", "pet"),
        ("p7__PT", "pet"),
        ("CT_mask", "label"),
        ("SEG", "label"),
        ("GTV_Mass", "label"),
        ("PET_mask", "label_pet"),
        ("contrast", ""),  # holds the letters ct
        ("petra", ""),
    ],
)
def test_a_file_is_what_the_words_of_its_name_say(name, role):
    assert role_of(name) == role


def test_a_folder_per_patient_gives_a_case_each_with_its_files(write):
    write("p1")
    data = write("p2", CT_mask=None)
    found = find_patients(data)
    assert [case.id for case in found.cases] == ["p1", "p2"]
    assert {role: path.name for role, path in found.cases[0].files.items()} == {
        "ct": "CT_image.nii.gz",
        "pet": "PET_image.nii.gz",
        "label": "CT_mask.nii.gz",
    }
    assert [case.id for case in labelled(found.cases)] == ["p1"]


def test_a_patients_own_folder_is_taken_as_one(write):
    assert [case.id for case in find_patients(write("p1") / "p1").cases] == ["p1"]


def test_a_patient_without_pet_costs_only_itself(write):
    write("p1")
    found = find_patients(write("p2", PET_image=None))
    assert [case.id for case in found.cases] == ["p1"]
    assert "p2 has no PET; put a file there whose name says pet" in found.refused["p2"]


def test_two_files_for_one_role_are_refused_by_name(write):
    data = write("p1")
    (data / "p1" / "ct_late.nii.gz").write_bytes((data / "p1" / "CT_image.nii.gz").read_bytes())
    assert "2 files for CT: CT_image.nii.gz, ct_late.nii.gz; leave one" in find_patients(data).refused["p1"]


def test_the_mask_on_cts_grid_goes_before_the_one_on_pets(write):
    data = write("p1")
    (data / "p1" / "PET_mask.nii.gz").write_bytes((data / "p1" / "CT_mask.nii.gz").read_bytes())
    assert find_patients(data).cases[0].files["label"].name == "CT_mask.nii.gz"


def test_pictures_are_gathered_by_patient_in_the_order_of_their_numbers(draw):
    cases = find_patients(draw(planes(SLICES))).cases
    assert [case.id for case in cases] == ["patient_001", "patient_002"]
    assert [name[-8:-4] for name in cases[0].notes["slices"]] == ["0001", "0002", "0010"]


def test_folders_of_splits_are_kept(draw):
    draw(planes(SLICES[:3]), "train")
    cases = split_cases(find_patients(draw(planes(SLICES[3:]), "val")).cases, val=0.5)
    assert {case.id: case.split for case in cases} == {"patient_001": "train", "patient_002": "val"}


def test_slices_of_a_patient_in_two_splits_are_refused(draw):
    draw(planes(SLICES[:2]), "train")
    data = draw(planes(SLICES[2:]), "test")
    with pytest.raises(MedsegError, match="patient patient_001 is in train and in test"):
        find_patients(data)


@pytest.mark.parametrize(("role", "lacking"), [("PET", "PET"), ("masks", "masks"), ("CT", "CT")])
def test_names_that_do_not_match_across_folders_are_refused(draw, role, lacking):
    some = planes(SLICES)
    del some[role][SLICES[1]]
    with pytest.raises(MedsegError, match=rf"{lacking} lacks patient_001_slice_0010\.png; the folders"):
        find_patients(draw(some))


def test_a_picture_that_does_not_say_its_patient_is_refused(draw):
    with pytest.raises(MedsegError, match="does not say its patient; rename it <patient>_slice_<number>"):
        find_patients(draw(planes(["img7"])))


def test_nothing_there_says_what_is_looked_for(tmp_path):
    with pytest.raises(MedsegError, match="there is no folder"):
        find_patients(tmp_path / "no")
    with pytest.raises(MedsegError, match="holds no patients; expected <patient>/CT_image"):
        find_patients(tmp_path)


def test_the_real_patients_are_found(data):
    found = find_patients(data / "ctpet")
    assert (len(found.cases), found.refused) == (19, {})


@pytest.mark.parametrize("front", ["PT", "CT"])
def test_patients_may_be_called_by_the_words_of_a_role(write, front):
    write(f"{front}_001")
    assert [case.id for case in find_patients(write(f"{front}_002")).cases] == [f"{front}_001", f"{front}_002"]


def test_a_part_without_pet_is_refused(draw):
    draw(planes(["a_slice_1"]), "train")
    with pytest.raises(MedsegError, match="val has no folder PET of pictures"):
        find_patients(draw(planes(["b_slice_1"], roles=("CT", "masks")), "val"))
