import re
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from medseg_cardiac.audit import check
from medseg_cardiac.dataset import discover
from medseg_core.cases import Case, read_cases, write_cases
from medseg_core.errors import MedsegError

H, W = np.mgrid[:40, :36]
RADIUS = np.hypot(H - 20, W - 18)
AFFINE = np.diag([1.5, 1.25, 8, 1])
NUM = 10
NAMES = ("slice_00", "slice_01")
MYO = (RADIUS >= 8) & (RADIUS < 13)


def save(path: Path, array: np.ndarray, *, affine=AFFINE) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    kind = np.uint8 if array.dtype == bool else array.dtype
    nib.save(nib.Nifti1Image(array.astype(kind), affine), path)
    return path


def at(k: int) -> np.ndarray:
    affine = AFFINE.copy()
    affine[2, 3] = 8 * k
    return affine


def frames() -> np.ndarray:
    """(H, W, 1, T): a pool of radius 8 in frame 0 and 5 in frame 4."""
    radii = 8 - 3 * np.sin(np.pi * np.minimum(np.arange(NUM) / 4, (NUM - np.arange(NUM)) / 6) / 2)
    return np.where(RADIUS[..., None] < radii, 200, np.where(RADIUS < 13, 60, 90)[..., None]).astype(np.int16)[
        :, :, None
    ]


@pytest.fixture
def data(tmp_path):
    """One patient with all there can be; half of the wall is infarct in the first slice, none in the other."""
    for k, name in enumerate(NAMES):
        save(tmp_path / f"images/cmr/p1/{name}.nii.gz", frames(), affine=at(k))
        save(tmp_path / f"images/lge/p1/{name}.nii.gz", np.where(MYO, 50, 90)[..., None].astype(np.int16))
        save(tmp_path / f"labels/cmr_Myo_mask/p1/{name}.nii.gz", MYO[..., None], affine=at(k))
        save(tmp_path / f"labels/cmr_LV_mask/p1_ED/{name}.nii.gz", RADIUS[..., None] < 8, affine=at(k))
        save(tmp_path / f"labels/lge/lge_Myo_labels/p1/{name}.nii.gz", MYO[..., None])
        save(tmp_path / f"labels/lge/lge_MI_labels/p1/{name}.nii.gz", (MYO & (W > 18) & (k == 0))[..., None])
    return tmp_path


def told(data: Path, **how) -> list[tuple[str, str]]:
    return [(finding["severity"], finding["text"]) for finding in check(data, **how).findings]


def texts(data: Path, severity: str) -> str:
    return "\n".join(text for kind, text in told(data) if kind == severity)


def test_a_whole_patient_has_one_row_and_nothing_wrong(data):
    checked = check(data)
    (row,) = checked.patients
    assert not checked.bad
    assert not [finding for finding in checked.findings if finding["severity"] != "note"]
    assert row["roles"] == {"myo": 2, "lv_ed": 2, "lv_es": 0, "mi": 0, "lge": 2, "lge_myo": 2, "lge_mi": 2}
    assert (row["frames"], row["size"], row["spacing_mm"], row["thickness_mm"]) == (
        [10],
        [(40, 36)],
        [(1.5, 1.25)],
        [8],
    )
    assert (row["ed"], row["es"], row["found"]) == ([0], [4], True)
    assert row["infarct_share"] == pytest.approx((MYO & (W > 18)).sum() / (2 * MYO.sum()))


def test_the_table_has_a_line_for_each_patient_below_its_heads(data):
    lines = check(data).table().splitlines()
    assert lines[0].split() == ["patient", "slices", "frames", "pixels", "mm", "masks", "ED/ES", "infarct"]
    share = f"{(MYO & (W > 18)).sum() / (2 * MYO.sum()):.1%}"
    expected = ["p1", "2", "10", "40x36", "1.5x1.25x8", "myo", "lv_ed", "lge", "lge_myo", "lge_mi", "0/4~", share]
    assert lines[1].split() == expected


def test_the_case_list_written_gives_the_phases_that_were_found_and_given_ones_stay(data):
    write_cases(data / "cases.json", [Case("p1", {}, notes={"ed": {"slice_00": 9}})])
    check(data, out=data / "cases.json")
    (case,) = read_cases(data / "cases.json")
    assert case.notes == {"ed": {"slice_00": 9, "slice_01": 0}, "es": {"slice_00": 4, "slice_01": 4}}
    assert case.files["cine"] == data / "images/cmr/p1"
    assert [(plane.ed, plane.es) for plane in discover(data)[0].planes] == [(9, 4), (0, 4)]


BROKEN = {
    "NaN": ("images/cmr/p1/slice_00", np.full((40, 36, 1, 10), np.nan), "14400 values that are no numbers"),
    "one frame": ("images/cmr/p1/slice_00", frames()[..., 0], "has one frame, so nothing moves"),
    "frozen": ("images/cmr/p1/slice_00", np.ones((40, 36, 1, 10), np.int16), "all 10 frames of .* are equal"),
    "another grid": (
        "labels/cmr_Myo_mask/p1/slice_00",
        np.ones((39, 36, 1), np.uint8),
        "another grid than the 40 x 36",
    ),
    "turned": ("labels/cmr_Myo_mask/p1/slice_00", np.ones((36, 40, 1), np.uint8), "swap its two in-plane axes"),
    "three values": ("labels/cmr_Myo_mask/p1/slice_00", (MYO[..., None] * (1 + W[..., None] % 3)), "3 values beside 0"),
    "cine as LGE": ("images/lge/p1/slice_00", frames(), "has 10 frames where LGE has one"),
    "space first": ("images/cmr/p1/slice_00", np.ones((40, 40, 10), np.int16), "first axis is space.*--axes HWT"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_what_is_refused_is_an_error_that_names_the_file_and_the_rest_is_read(data, case):
    name, array, said = BROKEN[case]
    array = array.astype(np.int16) if array.dtype == np.int64 else array
    save(data / f"{name}.nii.gz", array)
    checked = check(data)
    errors = [finding["text"] for finding in checked.findings if finding["severity"] == "error"]
    assert checked.bad
    assert len(errors) == 1
    assert name in errors[0]
    assert re.search(said, errors[0])
    assert checked.patients[0]["slices"] == 2


def test_what_nobody_should_trust_unseen_is_a_warning(data):
    empty = np.zeros((40, 36, 1), np.uint8)
    save(data / "labels/cmr_Myo_mask/p1/slice_00.nii.gz", empty, affine=at(0))
    (data / "labels/cmr_LV_mask/p1_ED/slice_01.nii.gz").unlink()
    save(data / "labels/lge/lge_MI_labels/p1/slice_01.nii.gz", RADIUS[..., None] < 13)
    save(data / "labels/cmr_Myo_mask/p1/slice_01.nii.gz", MYO[..., None], affine=at(0))
    save(data / "images/cmr/p1/slice_01.nii.gz", frames()[..., :8], affine=np.diag([1.6, 1.25, 8, 1]))
    warned = texts(data, "warning")
    for said in (
        *("myo of slice_00 is empty", "no lv_ed for slice_01", "of lge_mi of slice_01 lies outside lge_myo"),
        *("differ in their number of frames: slice_00 10, slice_01 8", "in the size of their pixels"),
    ):
        assert said in warned


def test_a_mask_that_its_header_puts_elsewhere_is_told_with_the_distance(data):
    save(data / "labels/cmr_Myo_mask/p1/slice_01.nii.gz", MYO[..., None], affine=at(0))
    assert "slice_01.nii.gz lies 8 mm from slice_01.nii.gz by its header" in texts(data, "warning")


def test_slices_of_a_mask_volume_lie_where_its_affine_puts_them(data):
    (data / "labels/cmr_Myo_mask/p1").rename(data / "aside")
    save(data / "labels/cmr_Myo_mask/p1.nii.gz", np.stack([MYO, MYO], axis=2))
    assert "by its header" not in texts(data, "warning")
    assert "1 mask volumes have their slices along the last axis" in texts(data, "note")


def test_a_pool_in_the_wall_and_pixels_without_a_size_are_warned_of(data):
    save(data / "labels/cmr_LV_mask/p1_ED/slice_00.nii.gz", RADIUS[..., None] < 12, affine=at(0))
    save(data / "images/cmr/p1/slice_00.nii.gz", frames(), affine=np.eye(4))
    warned = texts(data, "warning")
    assert "of lv_ed of slice_00 is myocardium too" in warned
    assert "pixels of 1 x 1 mm: is its header empty?" in warned


def test_phases_of_a_case_list_that_cannot_be_are_errors(data):
    notes = {"ed": {"slice_00": 0, "slice_01": 3}, "es": {"slice_00": 10, "slice_01": 3}}
    write_cases(data / "cases.json", [Case("p1", {}, notes=notes)])
    errors = texts(data, "error")
    assert "es of slice_00 is frame 10, and there are 10, counted from 0" in errors
    assert "ED and ES of slice_01 are both frame 3" in errors


def test_an_infarct_drawn_on_the_cine_counts_where_there_is_no_lge(data):
    for folder in ("images/lge", "labels/lge"):
        (data / folder).rename(data / folder.replace("/", "-"))
    for k, name in enumerate(NAMES):
        save(data / f"labels/cmr_MI_mask/p1/{name}.nii.gz", (MYO & (H > 20))[..., None], affine=at(k))
    checked = check(data)
    assert checked.patients[0]["infarct_share"] == pytest.approx((MYO & (H > 20)).sum() / MYO.sum())
    assert "registration and infarct segmentation cannot" in checked.findings[-1]["text"]


def test_no_folder_is_the_only_thing_that_is_fatal(tmp_path):
    with pytest.raises(MedsegError, match="there is no folder"):
        check(tmp_path / "no")


def test_a_patient_of_whom_nothing_can_be_read_is_a_row_of_dashes(data):
    (data / "images/cmr/p2.nii.gz").write_bytes(b"nothing")
    checked = check(data)
    assert checked.table().splitlines()[2].split() == ["p2", "0", "-", "-", "-", "-", "-", "-"]
    assert [finding["case"] for finding in checked.findings if finding["severity"] == "error"] == ["p2"]
