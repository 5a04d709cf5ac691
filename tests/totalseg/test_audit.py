"""What `check` says about a folder before any work."""

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from medseg_core.errors import MedsegError
from medseg_totalseg.audit import check
from medseg_totalseg.phantom import phantom

SHAPE = (20, 12, 8)
RAS = np.diag([2.0, 2, 2, 1])


def save(path: Path, voxels, dtype=np.uint8, affine=RAS) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(np.asarray(voxels, dtype), affine), path)
    return path


def scan_of(number: int = 0) -> np.ndarray:
    return np.random.default_rng(number).integers(-1000, 1000, SHAPE)


def box(start: int, stop: int) -> np.ndarray:
    mask = np.zeros(SHAPE, np.uint8)
    mask[start:stop] = 1
    return mask


@pytest.fixture
def case(tmp_path) -> Path:
    folder = tmp_path / "data" / "s1"
    save(folder / "ct.nii.gz", scan_of(), np.int16)
    save(folder / "segmentations" / "liver.nii.gz", box(12, 18))
    save(folder / "segmentations" / "kidney_right.nii.gz", box(9, 11))
    save(folder / "segmentations" / "kidney_left.nii.gz", box(1, 3))
    return folder


def said(case: Path, **options) -> dict[str, list[str]]:
    """Severity -> texts; everything `check` says is JSON and one line."""
    findings = check(case.parent, **options)
    assert json.loads(json.dumps(findings)) == findings
    assert not any("\n" in finding["text"] for finding in findings)
    kinds = ("error", "warning", "note")
    return {kind: [f["text"] for f in findings if f["severity"] == kind] for kind in kinds}


NOTHING = {"error": [], "warning": [], "note": []}


def test_a_good_case_says_nothing(case):
    assert said(case) == NOTHING


def test_the_phantom_says_nothing(tmp_path):
    assert check(phantom(tmp_path, num_cases=2)) == []


def test_every_bad_file_is_named_not_only_the_first(case):
    masks = case / "segmentations"
    (masks / "kidney_left.nii.gz").write_bytes(b"no nifti" * 100)
    save(masks / "kidney_right.nii.gz", box(9, 11)[:-1])
    save(masks / "liver.nii.gz", 2 * box(12, 18))
    errors = said(case)["error"]
    assert len(errors) == 3
    for name in ("kidney_left.nii.gz", "kidney_right.nii.gz", "liver.nii.gz holds the value 2"):
        assert sum(name in text for text in errors) == 1


def test_an_unreadable_scan_does_not_stop_the_others(case):
    save(case.parent / "s0" / "segmentations" / "liver.nii.gz", box(1, 2))
    (case.parent / "s0" / "ct.nii.gz").write_bytes(b"")
    findings = check(case.parent)
    assert [(f["case"], f["severity"]) for f in findings if f["severity"] == "error"] == [("s0", "error")]
    assert "s0/ct.nii.gz" in findings[0]["text"]


def test_numbers_that_are_none_are_counted(case):
    voxels = scan_of().astype(np.float32)
    voxels[0, 0, :3] = np.nan
    voxels[0, 1, 0] = np.inf
    save(case / "ct.nii.gz", voxels, np.float32)
    assert any("4 voxels that are no numbers" in text for text in said(case)["error"])


@pytest.mark.parametrize(
    ("voxels", "severity", "text"),
    [
        (scan_of() + 1000, "warning", "lowest value"),  # stored without its intercept
        (scan_of() * 20, "warning", "highest value"),
        (np.where(scan_of() < -900, -3024, scan_of()), "note", "-3024 is below air"),
    ],
)
def test_absurd_intensities_are_told(case, voxels, severity, text):
    save(case / "ct.nii.gz", voxels, np.int16)
    assert any(text in line for line in said(case)[severity])


def test_unknown_names_are_told_with_the_way_out(case):
    save(case / "segmentations" / "livr.nii.gz", box(0, 1))
    (error,) = said(case)["error"]
    assert "livr (nearest: liver)" in error
    assert "--labels folder" in error
    assert said(case, labels="folder")["error"] == []


def test_empty_and_tiny_masks_are_told(case):
    save(case / "segmentations" / "spleen.nii.gz", box(0, 0))
    few = box(0, 0)
    few[0, 0, :3] = 1
    save(case / "segmentations" / "colon.nii.gz", few)
    found = said(case)
    assert found["note"] == ["1 of 5 masks are empty: spleen"]
    assert found["warning"] == ["masks of less than 8 voxels: colon (3)"]


def test_overlap_is_counted_by_pairs(case):
    """Rows 12-17 are liver, rows 17-18 colon: one row of 96 voxels in both, of 2 + 2 + 6 + 1 rows."""
    save(case / "segmentations" / "colon.nii.gz", box(17, 19))
    (text,) = said(case)["warning"]
    assert text == "96 voxels (9.09%) lie in more than one structure: liver and colon 96"


def test_swapped_sides_are_suspected(case):
    masks = case / "segmentations"
    save(masks / "kidney_left.nii.gz", box(9, 11))
    save(masks / "kidney_right.nii.gz", box(1, 3))
    assert said(case)["warning"] == ["left lies on the right: kidney_left; are the names of the two sides swapped?"]
    save(masks / "hip_left.nii.gz", box(18, 20))
    save(masks / "hip_right.nii.gz", box(4, 5))
    assert "all 2 left structures lie on the right" in said(case)["warning"][0]


def test_sides_are_those_of_the_patient_not_of_the_array(case):
    """In LPS the first index grows to the left, so the same arrays have their sides swapped."""
    lps = RAS @ np.diag([-1, -1, 1, 1])
    for path in case.rglob("*.nii.gz"):
        save(path, nib.load(path).dataobj, nib.load(path).get_data_dtype(), lps)
    assert "left lies on the right" in said(case)["warning"][0]


def test_the_same_scan_twice_is_found(case):
    save(case.parent / "s2" / "ct.nii.gz", scan_of(), np.float32)
    save(case.parent / "s2" / "segmentations" / "liver.nii.gz", box(12, 18))
    save(case.parent / "s3" / "ct.nii.gz", scan_of(3), np.int16)
    save(case.parent / "s3" / "segmentations" / "liver.nii.gz", box(12, 18))
    assert [f["case"] for f in check(case.parent) if "the same scan as s1" in f["text"]] == ["s2"]


def test_missing_files_and_ignored_folders_are_notes_of_the_whole(case):
    save(case.parent / "s2" / "ct.nii.gz", scan_of(2), np.int16)
    save(case.parent / "s2" / "segmentations" / "liver.nii.gz", box(12, 18))
    (case.parent / "scripts").mkdir()
    notes = [f["text"] for f in check(case.parent) if f["case"] == ""]
    assert notes[0] == "ignored, no case: scripts (no ct.nii.gz)"
    assert "kidney_left (1 of 2), kidney_right (1 of 2)" in notes[1]
    assert "--missing ignore" in notes[1]


def test_a_folder_of_nothing_is_an_error_and_no_folder_is_refused(tmp_path):
    (finding,) = check(tmp_path)
    assert finding["severity"] == "error"
    with pytest.raises(MedsegError, match="there is no folder"):
        check(tmp_path / "gone")


def test_real_patients_have_metal_and_overlaps(data):
    """SOURCES.md: pt_132 has metal up to 27036 HU, pt_2 has no larynx."""
    findings = check(data / "ct_more" / "openkbp" / "pt_132", labels="folder")
    assert any("highest value 27036" in f["text"] for f in findings if f["case"] == "pt_132")
    assert not any(f["severity"] == "error" for f in findings)
