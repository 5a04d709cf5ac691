import json
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from medseg_cardiac.dataset import discover, read_cine, read_mask
from medseg_cardiac.prepare import prepare
from medseg_core.cohort import read_journal
from medseg_core.errors import MedsegError

pydicom = pytest.importorskip("pydicom")

NUM = 4
ROWS, COLUMNS = 24, 30
HEIGHTS = (0.0, 10.0, 26.0)  # mm, unevenly
FRAMES = np.random.default_rng(0).integers(0, 900, (3, NUM, ROWS, COLUMNS)).astype(np.uint16)
NAME = "Secret^Sam"


def cine(folder: Path, *, series=lambda z: "1.2.3", leave=(), num: int = NUM) -> Path:
    """Files named by number, upwards from the top slice; upright, 1.5 mm from row to row, 1.25 mm between columns."""
    folder.mkdir(parents=True, exist_ok=True)
    for z, height in enumerate(HEIGHTS):
        for t in range(num):
            if (z, t) in leave:
                continue
            image = pydicom.Dataset()
            image.PatientName = image.PatientID = NAME
            image.SOPClassUID, image.SOPInstanceUID = pydicom.uid.MRImageStorage, f"1.2.{z + 1}.{t + 1}"
            image.SeriesInstanceUID, image.Modality, image.SliceThickness = series(z), "MR", 8
            image.Rows, image.Columns, image.PixelSpacing = ROWS, COLUMNS, [1.5, 1.25]
            image.ImageOrientationPatient, image.ImagePositionPatient = [1, 0, 0, 0, 1, 0], [-20, -30, height]
            image.SamplesPerPixel, image.PhotometricInterpretation, image.PixelRepresentation = 1, "MONOCHROME2", 0
            image.BitsAllocated, image.BitsStored, image.HighBit = 16, 16, 15
            image.TriggerTime = 10 + 40 * t
            image.PixelData = FRAMES[z, t].tobytes()
            image["PixelData"].VR = "OW"
            image.file_meta = pydicom.dataset.FileMetaDataset()
            image.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
            image.save_as(folder / f"{number(z, t):04d}.dcm", enforce_file_format=True)
    return folder


def number(z: int, t: int) -> int:
    return 60 - 20 * z + t


def box(folder: Path, z: int, t: int, kind: str, *, x: tuple[int, int], y: tuple[int, int]) -> None:
    """A contour half a pixel around the columns x and the rows y, both ends with them."""
    (x0, x1), (y0, y1) = ((a - 0.5, b + 0.5) for a, b in (x, y))
    lines = [f"{a} {b}" for a, b in ((x0, y0), (x1, y0), (x1, y1), (x0, y1))]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"IM-0001-{number(z, t):04d}-{kind}contour-manual.txt").write_text("\n".join(lines))


def contours(folder: Path) -> Path:
    """Of the upper two slices, ED in frame 3 and ES in frame 1."""
    for z in (1, 2):
        box(folder, z, 3, "o", x=(5, 20), y=(4, 11))
        box(folder, z, 3, "i", x=(8, 17), y=(6, 9))
        box(folder, z, 1, "i", x=(10, 14), y=(7, 8))
    return folder


def test_slices_go_by_height_frames_by_time_and_each_file_has_the_place_of_its_slice(tmp_path):
    assert prepare(cine(tmp_path / "p1"), tmp_path / "out").done == ("p1",)
    for z, (height, thick) in enumerate(zip(HEIGHTS, (10.0, 13.0, 16.0), strict=True)):
        image = nib.load(tmp_path / f"out/images/cmr/p1/slice_{z:02d}.nii.gz")
        np.testing.assert_array_equal(np.asarray(image.dataobj), FRAMES[z].transpose(2, 1, 0)[:, :, None])
        np.testing.assert_allclose(image.header.get_zooms(), (1.25, 1.5, thick, 0.04), rtol=1e-6)
        np.testing.assert_allclose(image.affine @ (2, 3, 0, 1), (20 - 2.5, 30 - 4.5, height, 1), atol=1e-5)


def test_contours_are_filled_on_the_axes_of_the_file_at_their_own_frames(tmp_path):
    cine(tmp_path / "p1")
    contours(tmp_path / "p1/contours")
    prepare(tmp_path / "p1", tmp_path / "out")
    (patient,) = discover(tmp_path / "out")
    assert [(plane.ed, plane.es) for plane in patient.planes] == [(None, None), (3, 1), (3, 1)]
    assert [sorted(plane.places) for plane in patient.planes] == [["cine"], *[["cine", "lv_ed", "lv_es", "myo"]] * 2]
    whole, pool, small = np.zeros((3, COLUMNS, ROWS), bool)
    whole[5:21, 4:12] = pool[8:18, 6:10] = small[10:15, 7:9] = True
    for role, mask in {"myo": whole & ~pool, "lv_ed": pool, "lv_es": small}.items():
        place = patient.planes[1].places[role]
        np.testing.assert_array_equal(read_mask(place, (COLUMNS, ROWS)), mask)
        image = nib.load(place.path)
        np.testing.assert_allclose(image.affine, nib.load(patient.planes[1].places["cine"].path).affine)
        assert image.get_data_dtype() == np.uint8


def test_of_several_contours_ed_has_the_largest_pool_and_es_the_smallest(tmp_path):
    cine(tmp_path / "p1")
    folder = tmp_path / "p1/contours"
    for t, size in enumerate((6, 3, 2, 8)):
        box(folder, 1, t, "i", x=(5, 5 + size), y=(4, 8))
        if t != 2:
            box(folder, 1, t, "o", x=(3, 20), y=(2, 12))
        box(folder, 2, t, "i", x=(5, 5 + size), y=(4, 8))
    prepare(tmp_path / "p1", tmp_path / "out")
    (patient,) = discover(tmp_path / "out")
    assert [(plane.ed, plane.es) for plane in patient.planes[1:]] == [(3, 2), (3, 2)]
    assert "myo" not in patient.planes[2].places


def test_a_bad_patient_costs_only_itself_and_the_same_call_goes_on(tmp_path):
    cine(tmp_path / "in/p1")
    cine(tmp_path / "in/p2", leave=[(1, 2)])
    outcome = prepare(tmp_path / "in", tmp_path / "out")
    assert outcome.done == ("p1",)
    assert "has 3 frames where" in outcome.failed["p2"]
    assert [patient.id for patient in discover(tmp_path / "out")] == ["p1"]
    cine(tmp_path / "in/p2")
    again = prepare(tmp_path / "in", tmp_path / "out")
    assert (again.done, again.skipped) == (("p2",), ("p1",))
    listed = json.loads((tmp_path / "out/cases.json").read_text())["cases"]
    assert [case["id"] for case in listed] == ["p1", "p2"]


def test_a_zip_gives_the_same_bytes_as_its_folder(tmp_path):
    folder = cine(tmp_path / "a/p1")
    shutil.make_archive(str(tmp_path / "b/p1"), "zip", folder)
    prepare(folder, tmp_path / "of_folder")
    prepare(tmp_path / "b/p1.zip", tmp_path / "of_zip")
    for file in (tmp_path / "of_folder/images").rglob("*.nii.gz"):
        assert file.read_bytes() == (tmp_path / "of_zip" / file.relative_to(tmp_path / "of_folder")).read_bytes()


def test_a_series_for_each_slice_is_refused_with_the_flag_that_takes_them_as_one(tmp_path):
    folder = cine(tmp_path / "p1", series=lambda z: f"1.2.3.{z + 1}")
    why = prepare(folder, tmp_path / "out").failed["p1"]
    assert "holds 3 series: 1.2.3.1" in why
    assert why.endswith("take one by --series UID, or all as one by --series all")
    assert prepare(folder, tmp_path / "all", series="all").done == ("p1",)
    assert read_journal(tmp_path / "all")["p1"]["slices"] == 3


def test_contours_that_cannot_be_of_this_patient_cost_it(tmp_path):
    folder = tmp_path / "p1"
    cine(folder)
    box(folder / "contours", 1, 3, "o", x=(5, 20), y=(4, 11))
    box(folder / "contours", 1, 3, "i", x=(8, 25), y=(6, 9))
    assert "lies outside IM-0001-0043-ocontour" in prepare(folder, tmp_path / "a").failed["p1"]
    box(folder / "contours", 1, 3, "i", x=(108, 125), y=(6, 9))
    assert "holds no pixel of a picture" in prepare(folder, tmp_path / "b").failed["p1"]
    shutil.rmtree(folder / "contours")
    box(folder / "contours", -9, 3, "i", x=(8, 12), y=(6, 9))
    assert "and no file of" in prepare(folder, tmp_path / "c").failed["p1"]
    assert not list(tmp_path.rglob("*.nii.gz"))


def test_one_frame_for_each_slice_is_no_cine(tmp_path):
    assert "so nothing moves" in prepare(cine(tmp_path / "p1", num=1), tmp_path / "out").failed["p1"]


def test_a_folder_of_something_else_is_not_written_into(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/thesis.txt").touch()
    with pytest.raises(MedsegError, match="exists and is not of `prepare`"):
        prepare(cine(tmp_path / "p1"), tmp_path / "out")


def test_nothing_written_holds_the_name_in_the_header(tmp_path):
    cine(tmp_path / "p1")
    contours(tmp_path / "p1/contours")
    prepare(tmp_path / "p1", tmp_path / "out")
    for file in (tmp_path / "out").rglob("*"):
        assert "Secret" not in str(file)
        if file.is_file():
            content = nib.load(file).header.binaryblock if file.name.endswith(".gz") else file.read_bytes()
            assert b"Secret" not in content


@pytest.mark.parametrize("case", ["SCD0000101", "SCD0000201", "SCD0000301"])
def test_the_real_zips_give_the_frames_and_masks_that_others_derived_on_turned_axes(data, tmp_path, case):
    folder = data / "cmr_cine" / case
    assert prepare(folder, tmp_path / "out").done == (case,)
    (patient,), (other,) = discover(tmp_path / "out"), discover(folder)
    about = json.loads((folder / "info.json").read_text())["slices"]
    for plane, derived, told in zip(patient.planes, other.planes[::-1], about[::-1], strict=True):
        frames, theirs = (read_cine(each.places["cine"]).frames for each in (plane, derived))
        np.testing.assert_array_equal(frames, theirs.transpose(0, 2, 1))
        assert (plane.ed, plane.es) == (told["ED_frame_index"], told["ES_frame_index"])
        for role in ("myo", "lv_ed", "lv_es"):
            mask, theirs = (read_mask(each.places[role], (256, 256)) for each in (plane, derived))
            np.testing.assert_array_equal(mask, theirs.T)
