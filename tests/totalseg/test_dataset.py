"""The released folder as it is."""

from pathlib import Path

import pytest

from medseg_core.errors import MedsegError
from medseg_totalseg.dataset import discover, masks_of, names_of, scan

HEADER = "image_id;age;gender;institute;study_type;split;manufacturer;scanner_model;kvp;pathology;pathology_location\n"


def put(folder: Path, *masks: str) -> Path:
    """A case of empty files: looking at a folder reads none of them."""
    (folder / "segmentations").mkdir(parents=True)
    (folder / "ct.nii.gz").touch()
    for name in masks:
        (folder / "segmentations" / name).touch()
    return folder


def test_cases_are_found_by_what_they_hold_whatever_their_name(tmp_path):
    put(tmp_path / "s0011", "liver.nii.gz")
    put(tmp_path / "Müller, A.", "liver.nii.gz", "spleen.nii.gz")
    cases = discover(tmp_path)
    assert [case.id for case in cases] == ["Müller, A.", "s0011"]
    assert cases[1].files["ct"].read_bytes() == b""
    assert names_of(cases) == ["liver", "spleen"]


def test_folders_that_are_no_cases_are_ignored_and_named(tmp_path, caplog):
    put(tmp_path / "s0011", "liver.nii.gz")
    (tmp_path / "scripts").mkdir()  # what the original took for a patient
    (tmp_path / "s0012").mkdir()
    (tmp_path / "s0012" / "ct.nii.gz").touch()
    (tmp_path / ".git").mkdir()
    assert [case.id for case in discover(tmp_path)] == ["s0011"]
    assert "s0012 (no segmentations/), scripts (no ct.nii.gz)" in caplog.text
    assert scan(tmp_path)[1] == ["s0012 (no segmentations/)", "scripts (no ct.nii.gz)"]


def test_data_may_be_one_case(tmp_path, monkeypatch):
    put(tmp_path / "s0007", "liver.nii.gz")
    assert [case.id for case in discover(tmp_path / "s0007")] == ["s0007"]
    monkeypatch.chdir(tmp_path / "s0007")
    assert [case.id for case in discover(Path())] == ["s0007"]


def test_masks_are_nifti_files_that_are_not_hidden(tmp_path):
    put(tmp_path / "s1", "spleen.nii.gz", "liver.nii", "._liver.nii.gz", "notes.txt", "rib_left_1.nii.gz")
    (case,) = discover(tmp_path)
    assert list(masks_of(case)) == ["liver", "rib_left_1", "spleen"]


def test_official_splits_are_honoured(tmp_path):
    """The released file has a byte order mark and semicolons."""
    for name in ("s0000", "s0001", "s0002"):
        put(tmp_path / name)
    rows = "s0000;60;m;i;ct;train\ns0001;60;m;i;ct;val\ns0002;60;f;i;ct;test\ns0003;1;f;i;ct;train\n"
    (tmp_path / "meta.csv").write_text(HEADER + rows, encoding="utf-8-sig")
    cases = discover(tmp_path)
    assert [case.split for case in cases] == ["train", "val", "test"]
    assert [case.unit for case in cases] == ["s0000", "s0001", "s0002"]


def test_a_column_patient_makes_groups_and_commas_part_columns_too(tmp_path):
    put(tmp_path / "a")
    put(tmp_path / "b")
    (tmp_path / "meta.csv").write_text("image_id,patient\na,p1\nb,p1\n")
    assert [(case.group, case.split) for case in discover(tmp_path)] == [("p1", ""), ("p1", "")]


def test_cases_that_meta_does_not_name_are_told(tmp_path, caplog):
    put(tmp_path / "a")
    put(tmp_path / "b")
    (tmp_path / "meta.csv").write_text(HEADER + "a;;;;;train\n")
    assert [case.split for case in discover(tmp_path)] == ["train", ""]
    assert "no split for 1 of 2 cases, b first" in caplog.text


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (HEADER + "a;;;;;trian\n", "split of a is 'trian'.*did you mean 'train'"),
        ("id;split\na;train\n", "no column image_id but 'id;split'"),
        ("", "no column image_id"),
    ],
)
def test_a_meta_file_that_cannot_be_right_is_refused(tmp_path, text, said):
    put(tmp_path / "a")
    (tmp_path / "meta.csv").write_text(text)
    with pytest.raises(MedsegError, match=said):
        discover(tmp_path)


def test_a_meta_file_that_is_no_text_is_refused(tmp_path):
    put(tmp_path / "a")
    (tmp_path / "meta.csv").write_bytes(b"image_id\xff\xfe\x00")
    with pytest.raises(MedsegError, match=r"meta\.csv"):
        discover(tmp_path)


def test_no_case_says_what_one_looks_like(tmp_path):
    with pytest.raises(MedsegError, match="there is no folder"):
        discover(tmp_path / "gone")
    with pytest.raises(MedsegError, match=r"holds no case; a case is a folder with ct\.nii\.gz"):
        discover(tmp_path)
    (tmp_path / "scripts").mkdir()
    with pytest.raises(MedsegError, match=r"it holds scripts \(no ct\.nii\.gz\)"):
        discover(tmp_path)


def test_the_real_folder_has_twelve_patients(data):
    cases = discover(data / "ct_more" / "openkbp")
    assert len(cases) == 12
    assert len(names_of(cases)) == 7
    lacking = [case.id for case in cases if len(masks_of(case)) < 7]
    assert lacking == ["pt_2"]  # SOURCES.md: pt_2 has no larynx
