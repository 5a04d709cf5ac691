import json

import numpy as np
import pytest

from medseg_core.errors import MedsegError
from medseg_core.io import write_volume
from medseg_core.volume import Volume
from medseg_near.check import check
from medseg_near.settings import PrepareConfig

SPACED = np.diag([1.0, 1.0, 2.0, 1.0])


def save(path, *blocks, affine=SPACED, size=(12, 12, 12)):
    """A mask of blocks given as (start, stop) along all axes."""
    voxels = np.zeros(size, np.uint8)
    for start, stop in blocks:
        voxels[start:stop, start:stop, start:stop] = 1
    write_volume(Volume(voxels, affine), path)
    return path


def told(checked, severity):
    return [finding["text"] for finding in checked.findings if finding["severity"] == severity]


def test_sound_labels_are_not_bad(tmp_path):
    for name in "ab":
        save(tmp_path / "maps" / f"{name}.nii.gz", (2, 6))
    checked = check(tmp_path / "maps", label="1")
    assert (checked.findings, checked.bad) == ((), False)


def test_a_row_says_what_prepare_would_make(tmp_path):
    save(tmp_path / "s.nii.gz", (2, 6))
    (row,) = check(tmp_path / "s.nii.gz", label="1", config=PrepareConfig(margin_mm=2)).shapes
    assert (row["id"], row["structure"], row["size"]) == ("s", "1", [12, 12, 12])
    assert (row["spacing_mm"], row["crop"]) == ([1.0, 1.0, 2.0], [8, 8, 6])
    assert (row["voxels"], row["ml"]) == (64, pytest.approx(0.128))
    assert (row["parts"], row["largest"], row["cut"], row["image"]) == (1, 1.0, False, False)


def test_nothing_is_written(tmp_path):
    save(tmp_path / "s.nii.gz", (2, 6))
    check(tmp_path / "s.nii.gz", label="1")
    assert [file.name for file in tmp_path.iterdir()] == ["s.nii.gz"]


def test_what_prepare_would_refuse_is_an_error_of_its_case(tmp_path):
    save(tmp_path / "maps" / "a.nii.gz", (2, 6))
    save(tmp_path / "maps" / "b.nii.gz")
    checked = check(tmp_path / "maps", label="1")
    assert checked.bad
    (error,) = [finding for finding in checked.findings if finding["severity"] == "error"]
    assert error["case"] == "b"
    assert "holds no voxel of id 1, only background" in error["text"]


def test_a_case_without_the_structure_is_an_error(tmp_path):
    for case, name in (("a", "aorta"), ("b", "liver")):
        save(tmp_path / "masks" / case / "segmentations" / f"{name}.nii.gz", (2, 6))
    assert "no structure 'aorta', only liver" in told(check(tmp_path / "masks", label="aorta"), "error")[0]


def test_parts_are_a_note_with_the_share_of_the_largest(tmp_path):
    save(tmp_path / "s.nii.gz", (1, 5), (6, 8))
    notes = told(check(tmp_path / "s.nii.gz", label="1"), "note")
    assert "1 of 1 structures lie in several parts: s (2, the largest has 88.9%)" in notes


def test_many_small_parts_are_a_warning(tmp_path):
    save(tmp_path / "s.nii.gz", (1, 4), (5, 8), (9, 11))
    assert told(check(tmp_path / "s.nii.gz", label="1"), "warning") == [
        "3 parts, and the largest has 43.5% of the voxels"
    ]


def test_a_structure_at_the_edge_of_its_file_may_be_cut(tmp_path):
    save(tmp_path / "s.nii.gz", (0, 4))
    assert "1 structures reach the edge of their file, which may have cut them: s" in told(
        check(tmp_path / "s.nii.gz", label="1"), "note"
    )


def test_a_speck_is_a_warning(tmp_path):
    save(tmp_path / "s.nii.gz", (3, 5))
    assert "8 voxels are too few for a shape; is it a speck?" in told(
        check(tmp_path / "s.nii.gz", label="1"), "warning"
    )


def test_a_ct_that_is_not_in_hu_is_a_warning(tmp_path):
    label = save(tmp_path / "s.nii.gz", (2, 6))
    write_volume(Volume(np.full((12, 12, 12), 1900, np.int16), SPACED), tmp_path / "ct.nii.gz")
    warned = told(check(label, label="1", images=tmp_path / "ct.nii.gz"), "warning")
    assert warned == ["100% of its CT is above the window; is it in HU? set --window-hu"]


def test_thick_slices_are_a_warning(tmp_path):
    save(tmp_path / "s.nii.gz", (2, 6), affine=np.diag([1.0, 1, 5, 1]))
    assert "slices of 1 shapes are more than three pixels thick: s" in told(
        check(tmp_path / "s.nii.gz", label="1"), "warning"
    )


def test_a_single_shape_is_a_note(tmp_path):
    save(tmp_path / "s.nii.gz", (2, 6))
    assert told(check(tmp_path / "s.nii.gz", label="1"), "note")[0].startswith("a single shape")


def test_an_appearance_that_some_shapes_lack_is_a_warning(tmp_path):
    for folder in ("shape", "appearance"):
        (tmp_path / "near" / folder).mkdir(parents=True)
    mask = np.zeros((9, 9, 9), np.int16)
    mask[2:6, 2:6, 2:6] = 9
    for name in "ab":
        np.save(tmp_path / "near" / "shape" / f"{name}.npy", mask)
    np.save(tmp_path / "near" / "appearance" / "a.npy", np.full((9, 9, 9), 0.5))
    (tmp_path / "near" / "info.csv").write_text("id\na\nb\n")
    checked = check(tmp_path / "near", label="9")
    assert told(checked, "warning") == ["1 of 2 shapes have no CT, so none can be fitted to: b"]
    assert told(checked, "note") == ["nothing says how large the voxels of 2 shapes are; 1 mm is taken"]


def test_the_table_has_a_line_for_each_shape_up_to_a_number(tmp_path):
    for name in "abc":
        save(tmp_path / "maps" / f"{name}.nii.gz", (2, 6))
    lines = check(tmp_path / "maps", label="1").table(most=2).splitlines()
    assert [line.split()[0] for line in lines] == ["shape", "a", "b", "and"]
    assert lines[1].split()[1:5] == ["12x12x12", "1x1x2", "12x12x11", "64"]


def test_what_json_holds_is_found(tmp_path):
    save(tmp_path / "s.nii.gz", (2, 6))
    checked = check(tmp_path / "s.nii.gz", label="1")
    assert json.loads(json.dumps(checked.shapes))[0]["id"] == "s"


def test_a_path_with_nothing_there_is_refused(tmp_path):
    with pytest.raises(MedsegError, match="there is no file or folder"):
        check(tmp_path / "nothing", label="1")


def test_a_real_scan_has_torn_vessels_and_no_error(data):
    case = data / "ct_multiorgan" / "ts_s0001"
    if not case.is_dir():
        pytest.skip("needs ct_multiorgan/ts_s0001")
    checked = check(case, label="iliac_artery_*", images=case)
    assert not checked.bad
    assert [row["voxels"] for row in checked.shapes] == [643, 690]
    assert "iliac_artery_left (2, the largest has 67.7%)" in told(checked, "note")[0]
