from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from medseg_cardiac.dataset import Place, discover, read_cine, read_mask, stack_of
from medseg_core.cases import Case, write_cases
from medseg_core.errors import MedsegError

SHAPE = (6, 5)


def save(path: Path, array: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array.astype(np.int16), np.diag([1.5, 1.5, 8, 1])), path)
    return path


def cine(root: Path, case: str, names=("slice_04", "slice_06", "slice_08")) -> Path:
    """Files (H, W, 1, T), each filled with its rank."""
    for k, name in enumerate(names):
        save(root / f"images/cmr/{case}/{name}.nii.gz", np.full((*SHAPE, 1, 4), k))
    return root / "images/cmr" / case


def volume(path: Path, num: int = 3, *, first: bool = True) -> Path:
    """Slice k has k + 1 pixels."""
    voxels = np.zeros((num, *SHAPE))
    for k in range(num):
        voxels[k].flat[: k + 1] = 1
    return save(path, voxels if first else voxels.transpose(1, 2, 0))


def sizes(planes, role: str) -> list[int]:
    return [int(read_mask(plane.places[role], SHAPE).sum()) for plane in planes]


@pytest.mark.parametrize("folder", ["labels/cmr/cmr_Myo_mask", "labels/cmr_Myo_mask"])
@pytest.mark.parametrize("first", [True, False])
def test_a_mask_volume_is_found_in_both_folders_and_its_slice_axis_is_said(tmp_path, folder, first):
    cine(tmp_path, "p1")
    volume(tmp_path / folder / "p1.nii.gz", first=first)
    (patient,) = discover(tmp_path)
    assert [(p.name, p.index) for p in patient.planes] == [("slice_04", 0), ("slice_06", 1), ("slice_08", 2)]
    assert sizes(patient.planes, "myo") == [1, 2, 3]
    assert [f"along the {'first' if first else 'last'} axis" in note for note in patient.notes] == [True]


@pytest.mark.parametrize("home", ["", "{}", "{}/derived"])
def test_patients_are_found_under_one_root_or_one_each(tmp_path, home):
    for case in ("p2", "p1"):
        cine(tmp_path / home.format(case), case)
    assert [patient.id for patient in discover(tmp_path)] == ["p1", "p2"]


def test_masks_of_a_file_per_slice_go_by_name_and_a_missing_one_is_named(tmp_path):
    cine(tmp_path, "p1")
    for name in ("slice_04", "slice_08"):
        save(tmp_path / f"labels/cmr_Myo_mask/p1/{name}.nii.gz", np.ones((*SHAPE, 1)))
    save(tmp_path / "labels/cmr_LV_mask/p1_ED/slice_04.nii.gz", np.ones((1, *SHAPE)))
    (patient,) = discover(tmp_path)
    assert [sorted(plane.places) for plane in patient.planes] == [["cine", "lv_ed", "myo"], ["cine"], ["cine", "myo"]]
    assert patient.notes == ("no myo for slice_06", "no lv_ed for slice_06, slice_08")


def test_a_stack_in_one_file_gives_a_plane_per_slice(tmp_path):
    save(tmp_path / "images/cmr/p1.nii.gz", np.arange(6 * 5 * 3 * 4).reshape(6, 5, 3, 4))
    volume(tmp_path / "labels/cmr_Myo_mask/p1.nii.gz")
    (patient,) = discover(tmp_path)
    assert [plane.places["cine"].index for plane in patient.planes] == [0, 1, 2]
    assert read_cine(patient.planes[1].places["cine"]).frames[0, 0].tolist() == [4, 16, 28, 40, 52]
    assert sizes(patient.planes, "myo") == [1, 2, 3]


@pytest.mark.parametrize("folder", ["labels/lge", "labels/lge_original"])
def test_lge_that_leaves_out_a_slice_ranks_its_labels_by_its_own_files(tmp_path, folder):
    cine(tmp_path, "p1")
    for name in ("slice_06", "slice_08"):
        save(tmp_path / f"images/lge/p1/{name}.nii.gz", np.ones((1, *SHAPE)))
    volume(tmp_path / folder / "lge_MI_labels/p1.nii.gz", 2)
    (patient,) = discover(tmp_path)
    assert set(patient.planes[0].places) == {"cine"}
    assert sizes(patient.planes[1:], "lge_mi") == [1, 2]
    assert "no lge for slice_04" in patient.notes
    assert "no lge_myo for slice_04, slice_06, slice_08" in patient.notes


def test_a_mask_of_another_number_of_slices_or_grid_is_left_out_and_told(tmp_path):
    cine(tmp_path, "p1")
    volume(tmp_path / "labels/cmr_Myo_mask/p1.nii.gz", 2)
    save(tmp_path / "labels/cmr_LV_mask/p1_ED.nii.gz", np.ones((3, 7, 7)))
    (patient,) = discover(tmp_path)
    assert {role for plane in patient.planes for role in plane.places} == {"cine"}
    assert any("has 2 slices where the cine has 3" in note for note in patient.notes)
    assert any("another grid than the 6 x 5" in note for note in patient.notes)
    assert [note.severity for note in patient.notes] == ["error", "error", "warning"]


def test_names_without_leading_zeros_are_told_since_text_sorts_ten_before_nine(tmp_path):
    cine(tmp_path, "p1", ("slice_9", "slice_10"))
    (patient,) = discover(tmp_path)
    assert [plane.name for plane in patient.planes] == ["slice_10", "slice_9"]
    assert "slice_10, slice_9" in patient.notes[0]


def test_a_case_list_gives_ed_and_es_by_slice(tmp_path):
    folder = cine(tmp_path, "p1")
    notes = {"ed": {"slice_04": 18}, "es": {"slice_04": 7, "slice_06": 8}}
    write_cases(tmp_path / "cases.json", [Case("p1", {"cine": folder}, notes=notes)])
    (patient,) = discover(tmp_path)
    assert [(plane.ed, plane.es) for plane in patient.planes] == [(18, 7), (None, 8), (None, None)]


def test_a_case_list_with_words_for_frames_is_refused(tmp_path):
    folder = cine(tmp_path, "p1")
    write_cases(tmp_path / "cases.json", [Case("p1", {"cine": folder}, notes={"ed": {"slice_04": "last"}})])
    with pytest.raises(MedsegError, match="ed of p1 is"):
        discover(tmp_path)


def test_a_cine_that_cannot_be_read_costs_only_its_patient(tmp_path):
    cine(tmp_path, "p1")
    (tmp_path / "images/cmr/p2.nii.gz").write_bytes(b"nothing")
    one, other = discover(tmp_path)
    assert [len(patient.planes) for patient in (one, other)] == [3, 0]
    assert "p2.nii.gz" in other.notes[0]


def test_a_broken_slice_costs_its_own_patient_no_mask_volume(tmp_path):
    folder = cine(tmp_path, "p1")
    (folder / "slice_04.nii.gz").write_bytes(b"nothing")
    volume(tmp_path / "labels/cmr_Myo_mask/p1.nii.gz")
    (patient,) = discover(tmp_path)
    assert sizes(patient.planes[1:], "myo") == [2, 3]


def test_lge_without_a_cine_is_passed_over_and_named(tmp_path, caplog):
    cine(tmp_path, "p1")
    save(tmp_path / "images/lge/p2/slice_00.nii.gz", np.ones((1, *SHAPE)))
    assert [patient.id for patient in discover(tmp_path)] == ["p1"]
    assert "p2" in caplog.text


def test_nothing_there_is_said_with_what_is_meant(tmp_path):
    with pytest.raises(MedsegError, match="holds no patient; cines lie in images/cmr/<case>"):
        discover(tmp_path)
    with pytest.raises(MedsegError, match="there is no folder"):
        discover(tmp_path / "no")
    for home in ("a", "b"):
        cine(tmp_path / home, "p1")
    with pytest.raises(MedsegError, match=r"p1 lies in .*a and in .*b"):
        discover(tmp_path)


def test_a_single_cine_finds_its_slice_of_a_volume_by_its_rank_or_by_number(tmp_path):
    folder, myo = cine(tmp_path, "p1"), volume(tmp_path / "myo.nii.gz")
    patient = stack_of(folder / "slice_06.nii.gz", myo)
    assert (patient.planes[0].index, patient.planes[0].places["myo"]) == (1, Place(myo, 1))
    assert stack_of(folder / "slice_06.nii.gz", myo, index=2).planes[0].places["myo"].index == 2
    (folder / "slice_04.nii.gz").unlink()
    with pytest.raises(MedsegError, match=r"say which slice slice_06.nii.gz is with --slice 0 to 2"):
        stack_of(folder / "slice_06.nii.gz", myo)


def test_a_stack_by_name_is_refused_with_a_mask_of_other_slices(tmp_path):
    folder = cine(tmp_path, "p1")
    assert len(stack_of(folder, volume(tmp_path / "myo.nii.gz")).planes) == 3
    with pytest.raises(MedsegError, match="2 slices where the cine has 3"):
        stack_of(folder, volume(tmp_path / "two.nii.gz", 2))
    (tmp_path / "none").mkdir()
    with pytest.raises(MedsegError, match="none holds no mask; name each file as its slice"):
        stack_of(folder, tmp_path / "none")
    with pytest.raises(MedsegError, match=r"no file or folder .*; did you mean 'two.nii.gz'"):
        stack_of(folder, tmp_path / "twos.nii.gz")


def test_the_real_patients_are_found_as_they_lie(data):
    patients = discover(data / "cmr_cine")
    assert [patient.id for patient in patients] == ["SCD0000101", "SCD0000201", "SCD0000301"]
    for patient in patients:
        assert [sorted(plane.places) for plane in patient.planes] == [["cine", "lv_ed", "lv_es", "myo"]] * 3
        assert all("first axis" in note for note in patient.notes)
