"""What is no stack of numbers ends in one line that names the file, shows the value and gives the fix; no patient."""

import contextlib
import sys
from collections.abc import Callable

import numpy as np
import pytest
from pydicom import Dataset, encaps
from pydicom.uid import HTJ2KLossless, RLELossless
from tests.core.test_dicom import AFFINE, CORNER, PATIENT, RNG, SPACING, STORED, TURNED, ct, header, packed, saved

from medseg_core.dicom import dicom_grid, read_dicom
from medseg_core.errors import MedsegError
from medseg_core.io import read_grid, read_volume


def at(z: int, **tags) -> Callable[[int], dict]:
    """Changes slice z only."""
    return lambda each: tags if each == z else {}


def moved(mm: float, *, along: int, by: Callable[[int], float] = lambda z: z) -> Callable[[int], dict]:
    """Moves each slice along an axis of the image by mm * by(z)."""

    def change(z: int) -> dict:
        position = CORNER + z * SPACING[2] * TURNED[:, 2] + mm * by(z) * TURNED[:, along]
        return {"ImagePositionPatient": position.round(6).tolist()}

    return change


def wavering(mm: float) -> Callable[[int], dict]:
    """The third slice of seven lies off its place."""
    return moved(mm, along=2, by=lambda z: float(z == 3))


@pytest.mark.parametrize("mm", [0.24, -0.24])  # 0.1 gaps of 2.5 mm are 0.25 mm
def test_a_slice_may_lie_a_tenth_of_a_gap_off_its_even_place(tmp_path, mm):
    assert read_dicom(ct(tmp_path / "ct", change=wavering(mm))).spacing_mm[2] == pytest.approx(2.5, abs=1e-5)
    with pytest.raises(MedsegError, match=r"not evenly spaced: (2\.82|2\.18) mm from"):
        read_dicom(ct(tmp_path / "ct", change=wavering(mm / 0.24 * 0.26 + np.sign(mm) * 0.06)))


def test_positions_rounded_to_a_tenth_of_a_millimetre_are_even_enough(tmp_path):
    rounded = lambda z: {  # noqa: E731
        "ImageOrientationPatient": [1, 0, 0, 0, 1, 0],
        "ImagePositionPatient": [0, 0, round(0.625 * z + 0.02, 1)],
    }
    grid = dicom_grid(ct(tmp_path / "ct", change=rounded))
    assert grid.spacing_mm[2] == pytest.approx(0.625, abs=0.1 / 6)


@pytest.mark.parametrize(("num", "gone"), [(3, 1), (4, 2), (7, 1), (7, 3), (7, 5)])
def test_each_missing_slice_is_seen(tmp_path, num, gone):
    folder = ct(tmp_path / "ct", STORED[:, :, :num])
    next(folder.glob(f"*-{gone}.dcm")).unlink()
    if num == 3:  # two slices are always even
        assert dicom_grid(folder).spacing_mm[2] == pytest.approx(5)
        return
    with pytest.raises(MedsegError, match=r"5\.00 mm from \d-\d\.dcm at .* mm to .*, 2\.50 mm elsewhere; 1 missing"):
        dicom_grid(folder)


@pytest.mark.parametrize("degrees", [0.5, 15.0, -15.0])
def test_a_tilted_gantry_is_told_with_its_angle(tmp_path, degrees):
    shear = moved(2.5 * np.tan(np.radians(degrees)), along=1)
    with pytest.raises(MedsegError, match=rf"a tilt of {abs(degrees):.2f} degrees.*dcm2niix"):
        read_dicom(ct(tmp_path / "ct", change=shear))


@pytest.mark.parametrize("degrees", [0.09, 0.11])
def test_a_lean_of_a_tenth_of_a_degree_is_upright(tmp_path, degrees):
    folder = ct(tmp_path / "ct", np.tile(STORED, 5), change=moved(2.5 * np.tan(np.radians(degrees)), along=1))
    if degrees < 0.1:
        np.testing.assert_allclose(dicom_grid(folder).affine, AFFINE, atol=1e-5)
        return
    with pytest.raises(MedsegError, match=r"a tilt of 0\.11 degrees"):
        dicom_grid(folder)


def test_phases_at_one_place_are_told_with_what_tells_them_apart(tmp_path):
    folder = ct(tmp_path / "ct", change=lambda z: {"TriggerTime": 0})
    for z in range(7):
        phase = header(z, SOPInstanceUID=f"1.2.4.{z}", TriggerTime=50)
        saved(phase, folder / f"late{z}.dcm", STORED[..., z].T)
    with pytest.raises(MedsegError, match=r"14 images at 7 places: .* in TriggerTime\. .*copy one image of each place"):
        read_dicom(folder)


HUGE = 60_000
REFUSED = {  # the changes of slice 3, and words of the message
    "no position": ({"ImagePositionPatient": None}, "has no ImagePositionPatient"),
    "no direction": ({"ImageOrientationPatient": None}, "has no ImageOrientationPatient"),
    "no pixel size": ({"PixelSpacing": None}, "has no PixelSpacing"),
    "half a position": ({"ImagePositionPatient": [1, 2]}, r"ImagePositionPatient \[1.0, 2.0\] where 3"),
    "pixels without size": ({"PixelSpacing": [0, 1]}, "pixels of 1 x 0 mm"),
    "skewed": ({"ImageOrientationPatient": [1, 0, 0, 0.1, 1, 0]}, "which is no grid"),
    "no slope": ({"RescaleSlope": 0}, "RescaleSlope 0"),
    "turned": (
        {"ImageOrientationPatient": [1, 0, 0, 0, 1, 0]},
        r"differ in direction or pixel size.*2-3\.dcm",
    ),
    "other pixels": ({"PixelSpacing": [0.9, 0.9]}, "differ in direction or pixel size"),
    "other shape": ({"Rows": 6, "Columns": 5}, r"differ in shape: \(6, 5\) in .*, \(5, 6\) in"),
    "colour": ({"PhotometricInterpretation": "RGB", "SamplesPerPixel": 3}, "in colour"),
    "palette": ({"PhotometricInterpretation": "PALETTE COLOR"}, "in colour"),
    "table": ({"ModalityLUTSequence": [Dataset()]}, "Modality LUT"),
    "no rows": ({"Rows": 0}, "says 0 rows, 6 columns"),
    "one bit": ({"BitsAllocated": 1}, "1 bits"),
    "promise": ({"Rows": HUGE, "Columns": HUGE}, "promises 7200000000 bytes.*cut short"),
}


@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.parametrize("read", [read_dicom, dicom_grid])
def test_what_is_no_stack_of_numbers_ends_in_one_line_without_the_patient(tmp_path, case, read):
    tags, words = REFUSED[case]
    folder = ct(tmp_path / "ct", change=at(3, **tags))
    with pytest.raises(MedsegError, match=words) as caught:
        read(folder)
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert PATIENT[:6] not in str(caught.value)


def test_hostile_files_and_folders_end_in_one_line_that_names_them(tmp_path):
    whole = saved(header(0), tmp_path / "whole.dcm", STORED[..., 0].T).read_bytes()
    tag = whole.index(b"\x28\x00\x10\x00")  # (0028,0010) Rows
    files = {
        "cut.dcm": (whole[:-7], "cut short"),
        "cut_header.dcm": (whole[:tag], "is cut short before"),
        "cut_meta.dcm": (whole[:140], "no known kind"),
        "empty.dcm": (b"", "no DICOM file"),
        "text.dcm": (b"hello", "no DICOM file"),
        "no_syntax.dcm": (whole.replace(b"\x02\x00\x10\x00UI", b"\x02\x00\x11\x00UI"), "TransferSyntaxUID|damaged"),
        "deflated.dcm": (whole.replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2.1.99"), "deflated as a whole"),
    }
    for name, (content, words) in files.items():
        folder = tmp_path / name[:-4]
        folder.mkdir()
        (folder / name).write_bytes(content)
        for path in (folder, folder / name):
            with pytest.raises(MedsegError, match=words + "|folder without DICOM") as caught:
                read_volume(path)
            assert str(path) in str(caught.value)
            assert "\n" not in str(caught.value)
            assert PATIENT[:6] not in str(caught.value)


def test_a_file_that_calls_itself_dicom_and_is_none_is_no_silent_gap(tmp_path):
    folder = ct(tmp_path / "ct")
    (folder / "last.IMA").write_bytes(b"")
    with pytest.raises(MedsegError, match=r"last\.IMA is no DICOM file"):
        dicom_grid(folder)


def test_a_folder_without_dicom_and_a_path_to_nowhere_are_told(tmp_path):
    (tmp_path / "a.nii.gz").write_bytes(b"")
    with pytest.raises(MedsegError, match=r"folder without DICOM images; name one \.nii\.gz file"):
        read_volume(tmp_path)
    saved(header(0), tmp_path / "whole.dcm", STORED[..., 0].T)
    with pytest.raises(MedsegError, match=r"no file or folder .*hole\.dcm; did you mean 'whole\.dcm'"):
        read_volume(tmp_path / "hole.dcm")
    (tmp_path / "copy.dcm").write_bytes((tmp_path / "whole.dcm").read_bytes())
    with pytest.raises(MedsegError, match=r"copy\.dcm and .*whole\.dcm are the same image; remove one"):
        read_volume(tmp_path)


def test_a_syntax_that_nothing_decodes_is_named_with_the_extra(tmp_path):
    image = header(0)
    image.PixelData = encaps.encapsulate([b"\0\0"])
    image["PixelData"].is_undefined_length = True
    saved(image, tmp_path / "a.dcm", syntax=HTJ2KLossless)
    with pytest.raises(MedsegError, match=r"High-Throughput JPEG 2000.*medseg-core\[dicom\]"):
        read_dicom(tmp_path / "a.dcm")


def test_without_pydicom_the_extra_is_named(tmp_path, monkeypatch):
    folder = ct(tmp_path / "ct")
    monkeypatch.setitem(sys.modules, "pydicom", None)
    with pytest.raises(MedsegError, match=r"pip install 'medseg-core\[dicom\]'"):
        read_volume(folder)


def test_the_grid_is_read_from_the_headers_alone(tmp_path):
    folder = packed(tmp_path / "ct", "JPEGLSLossless")
    path = folder / "1-5.dcm"
    whole = path.read_bytes()
    path.write_bytes(whole[: whole.index(b"\xff\xd8\xff\xf7") + 20])
    np.testing.assert_allclose(read_grid(folder).affine, AFFINE, atol=1e-6)
    with pytest.raises(MedsegError, match=r"1-5\.dcm is cut short before its voxels; copy or export it again"):
        read_volume(folder)


def test_only_our_error_comes_of_random_damage(tmp_path, capfd):
    image = header(0)
    plain = saved(image, tmp_path / "a.dcm", STORED[..., 0].T)
    image.compress(RLELossless)
    for whole in (plain.read_bytes(), saved(image, tmp_path / "b.dcm", syntax=RLELossless).read_bytes()):
        for number in range(150):
            content = bytearray(whole)
            for place in RNG.integers(128, len(content), size=3):
                content[place] = RNG.integers(256)
            plain.write_bytes(content[: None if number % 5 else RNG.integers(len(content))])
            with contextlib.suppress(MedsegError):
                read_volume(plain)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("kind", ["JPEGLosslessProcess14_1", "JPEGLSLossless", "JPEG2000Lossless"])
def test_damage_neither_ends_the_process_nor_is_logged(tmp_path, caplog, kind):
    """GDCM alone is ended by most of what this does to the first bytes of a stream."""
    path = next(packed(tmp_path / "ct", kind).iterdir())
    whole = path.read_bytes()
    start = whole.index(b"\xff\x4f\xff\x51" if "2000" in kind else b"\xff\xd8\xff")
    for number in range(200):
        content = bytearray(whole)
        content[start + number % 60] = RNG.integers(256)
        (tmp_path / "a.dcm").write_bytes(content)
        with contextlib.suppress(MedsegError):
            read_volume(tmp_path / "a.dcm")
    assert not caplog.records
