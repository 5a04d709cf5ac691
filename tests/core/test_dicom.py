import subprocess
import sys
import warnings
import zipfile
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
from pydicom import Dataset, encaps
from pydicom.dataset import FileMetaDataset
from pydicom.uid import (
    CTImageStorage,
    EnhancedCTImageStorage,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEGLSLossless,
    RTDoseStorage,
    RTStructureSetStorage,
)

from medseg_core.dicom import dicom_grid, read_dicom
from medseg_core.errors import MedsegError
from medseg_core.io import read_grid, read_volume

RNG = np.random.default_rng(0)
STORED = RNG.integers(0, 4000, (6, 5, 7)).astype(np.uint16)  # X Y Z
TURNED = nib.eulerangles.euler2mat(0.3, 0.2, 0.1)  # columns: along a row, along a column, normal; LPS
SPACING = np.array([0.8, 0.9, 2.5])
CORNER = np.array([-100.0, 50.0, 30.0])
AFFINE = np.diag([-1, -1, 1, 1]) @ nib.affines.from_matvec(TURNED * SPACING, CORNER)
PATIENT = "Secret^Sam"


def header(z: int, **tags) -> Dataset:
    """Slice z of an oblique CT; `tags` replace its own, and None leaves one out."""
    image = Dataset()
    image.PatientName = PATIENT
    image.SOPClassUID, image.SOPInstanceUID, image.SeriesInstanceUID = CTImageStorage, f"1.2.3.{z + 1}", "1.2.3"
    image.Modality, image.SeriesDescription, image.InstanceNumber = "CT", "thorax", 100 - z
    image.Rows, image.Columns, image.PixelSpacing = 5, 6, [0.9, 0.8]  # between rows, between columns
    image.ImageOrientationPatient = TURNED[:, :2].T.ravel().round(9).tolist()
    image.ImagePositionPatient = (CORNER + z * SPACING[2] * TURNED[:, 2]).round(6).tolist()
    image.SamplesPerPixel, image.PhotometricInterpretation = 1, "MONOCHROME2"
    image.BitsAllocated, image.BitsStored, image.HighBit, image.PixelRepresentation = 16, 16, 15, 0
    for tag, value in tags.items():
        if value is None:
            delattr(image, tag)
        else:
            setattr(image, tag, value)
    return image


def saved(image: Dataset, path: Path, pixels: np.ndarray | None = None, syntax=ExplicitVRLittleEndian) -> Path:
    """`pixels` are (frames, rows, columns) or (rows, columns)."""
    if pixels is not None:
        big = syntax == ExplicitVRBigEndian
        image.PixelData = pixels.astype(pixels.dtype.newbyteorder(">" if big else "<")).tobytes()
        image["PixelData"].VR = "OW"
    image.file_meta = FileMetaDataset()
    image.file_meta.TransferSyntaxUID = syntax
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save_as(path, enforce_file_format=True)
    return path


def ct(folder: Path, stored: np.ndarray = STORED, *, change=lambda z: {}, syntax=ExplicitVRLittleEndian) -> Path:
    """A folder of one slice per file, whose names and numbers run against their places."""
    for z in range(stored.shape[2]):
        saved(header(z, **change(z)), folder / f"{z * 3 % 7}-{z}.dcm", stored[:, :, z].T, syntax)
    return folder


def test_slices_lie_where_their_positions_say_whatever_they_are_called(tmp_path):
    volume = read_dicom(ct(tmp_path / "ct"))
    np.testing.assert_array_equal(volume.voxels, STORED)
    np.testing.assert_allclose(volume.affine, AFFINE, atol=1e-6)
    assert volume.voxels.flags.f_contiguous


def test_axial_slices_of_a_lying_patient_grow_to_the_left_back_and_head(tmp_path):
    flat = lambda z: {"ImageOrientationPatient": [1, 0, 0, 0, 1, 0], "ImagePositionPatient": [-10, -20, 2 * z]}  # noqa: E731
    volume = read_dicom(ct(tmp_path / "ct", change=flat))
    assert volume.orientation == "LPS"
    np.testing.assert_allclose(volume.affine, [[-0.8, 0, 0, 10], [0, -0.9, 0, 20], [0, 0, 2, 0], [0, 0, 0, 1]])


def test_ct_comes_out_as_int16_hounsfield_units(tmp_path):
    scale = {"RescaleSlope": 1, "RescaleIntercept": -1024}
    volume = read_dicom(ct(tmp_path / "ct", change=lambda z: scale))
    assert volume.voxels.dtype == np.int16
    np.testing.assert_array_equal(volume.voxels, STORED.astype(int) - 1024)


@pytest.mark.parametrize(("intercept", "dtype"), [(-1024, np.int32), (-2000, np.int16), (-32768, np.int16)])
def test_values_beyond_int16_are_int32(tmp_path, intercept, dtype):
    stored = STORED.copy()
    stored[2, 3, 4] = 34000
    scale = {"RescaleSlope": 1, "RescaleIntercept": intercept}
    volume = read_dicom(ct(tmp_path / "ct", stored, change=lambda z: scale))
    assert volume.voxels.dtype == dtype
    np.testing.assert_array_equal(volume.voxels, stored.astype(int) + intercept)


def test_pet_has_the_scale_of_each_slice_in_float32(tmp_path):
    volume = read_dicom(ct(tmp_path / "ct", change=lambda z: {"RescaleSlope": 0.5 + z, "RescaleIntercept": z}))
    assert volume.voxels.dtype == np.float32
    np.testing.assert_allclose(volume.voxels, STORED * (0.5 + np.arange(7)) + np.arange(7), rtol=1e-7)


@pytest.mark.parametrize("bits", [12, 16])
def test_signed_numbers_of_fewer_bits_keep_their_sign(tmp_path, bits):
    stored = STORED.astype(np.int16) // 2 - 1000
    unused = {"BitsStored": bits, "HighBit": bits - 1, "PixelRepresentation": 1}
    folder = ct(tmp_path / "ct", stored.view(np.uint16) & (2**bits - 1), change=lambda z: unused)
    np.testing.assert_array_equal(read_dicom(folder).voxels, stored)


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRBigEndian])
def test_other_ways_to_write_bytes_read_the_same(tmp_path, syntax):
    volume = read_dicom(ct(tmp_path / "ct", syntax=syntax))
    np.testing.assert_array_equal(volume.voxels, STORED)
    np.testing.assert_allclose(volume.affine, AFFINE, atol=1e-6)


WIDE = np.tile(STORED.astype(np.int16), (8, 8, 1))  # GDCM cannot make JPEG 2000 of fewer pixels
GDCM = """
import gdcm, sys
for path in sys.argv[2:]:
    reader, change, writer = gdcm.ImageReader(), gdcm.ImageChangeTransferSyntax(), gdcm.ImageWriter()
    reader.SetFileName(path)
    assert reader.Read()
    change.SetTransferSyntax(gdcm.TransferSyntax(getattr(gdcm.TransferSyntax, sys.argv[1])))
    change.SetInput(reader.GetImage())
    assert change.Change()
    writer.SetFileName(path)
    writer.SetFile(reader.GetFile())
    writer.SetImage(change.GetOutput())
    assert writer.Write()
"""


def packed(folder: Path, kind: str, *, sign: int = 0) -> Path:
    """A folder of slices of WIDE - 1000 * sign that GDCM compressed, in a process of its own, which it may end."""
    ct(folder, WIDE - 1000 * sign, change=lambda z: {"PixelRepresentation": sign, "Columns": 48, "Rows": 40})
    subprocess.run([sys.executable, "-c", GDCM, kind, *folder.iterdir()], check=True)
    return folder


@pytest.mark.parametrize("kind", ["RLELossless", "JPEGLosslessProcess14_1", "JPEGLSLossless", "JPEG2000Lossless"])
@pytest.mark.parametrize("sign", [0, 1])
def test_what_gdcm_compressed_reads_as_before(tmp_path, kind, sign):
    folder = packed(tmp_path / "ct", kind, sign=sign)
    np.testing.assert_array_equal(read_dicom(folder).voxels, WIDE - 1000 * sign)


def test_a_folder_a_file_of_it_and_the_folder_above_are_one_series(tmp_path):
    folder = ct(tmp_path / "study" / "ct")
    (folder / "0-0.dcm").rename(folder / "IM0001")
    for path in (folder, folder / "1-5.dcm", folder / "IM0001", folder.parent):
        volume, grid = read_volume(path), read_grid(path)
        np.testing.assert_array_equal(volume.voxels, STORED)
        assert grid.shape == (6, 5, 7)
        np.testing.assert_array_equal(grid.affine, volume.affine)


def test_of_several_series_one_is_taken_by_uid_or_by_a_file(tmp_path):
    folder = ct(tmp_path / "ct")
    scout = header(0, SeriesInstanceUID="1.2.4", SeriesDescription="scout")
    other = saved(scout, folder / "scout.dcm", STORED[..., 0].T)
    with pytest.raises(MedsegError, match=r"2 series: 1\.2\.3 \(CT, thorax, 7 .*1\.2\.4 \(CT, scout, 1 .*series=UID"):
        read_dicom(folder)
    with pytest.raises(MedsegError, match=r"no series '1\.2\.5'; did you mean '1\.2\.[34]'\?; it holds 1\.2\.3 \(CT"):
        read_dicom(folder, series="1.2.5")
    assert read_dicom(folder, series="1.2.3").voxels.shape == (6, 5, 7)
    assert dicom_grid(folder, series="1.2.4").shape == (6, 5, 1)
    assert read_dicom(other).voxels.shape == (6, 5, 1)
    assert read_dicom(folder / "1-5.dcm").voxels.shape == (6, 5, 7)


def test_hidden_files_and_what_is_no_image_are_passed_over(tmp_path):
    folder = ct(tmp_path / "ct")
    (folder / "._0-0.dcm").write_bytes(b"macOS")
    (folder / "notes.txt").write_text("hello")
    (folder / "inside").mkdir()
    saved(header(0, SOPClassUID=RTStructureSetStorage, SeriesInstanceUID="1.2.9", Rows=None), folder / "contours.dcm")
    dose = header(0, SOPClassUID=RTDoseStorage, SeriesInstanceUID="1.2.8", NumberOfFrames=7)
    saved(dose, folder / "dose.dcm", STORED.T)
    np.testing.assert_array_equal(read_dicom(folder).voxels, STORED)
    with pytest.raises(MedsegError, match=r"contours\.dcm holds RT Structure Set Storage, which is no image"):
        read_dicom(folder / "contours.dcm")


@pytest.mark.parametrize(("thickness", "mm"), [(3.5, 3.5), (None, 1.0), (0, 1.0)])
def test_a_slice_alone_is_as_thick_as_it_says(tmp_path, thickness, mm):
    image = header(0) if thickness is None else header(0, SliceThickness=thickness)
    volume = read_dicom(saved(image, tmp_path / "a.dcm", STORED[..., 0].T))
    np.testing.assert_allclose(volume.spacing_mm, (0.8, 0.9, mm))
    np.testing.assert_allclose(volume.affine[:3, 2], AFFINE[:3, 2] / 2.5 * mm, atol=1e-6)


def enhanced(path: Path, order: list[int], **tags) -> Path:
    """All slices in one file, in this order, frame z with the scale (z + 0.5, 0)."""
    image = header(0, SOPClassUID=EnhancedCTImageStorage, NumberOfFrames=len(order), **tags)
    shared, measures, plane = Dataset(), Dataset(), Dataset()
    measures.PixelSpacing, plane.ImageOrientationPatient = image.PixelSpacing, image.ImageOrientationPatient
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = [measures], [plane]
    image.SharedFunctionalGroupsSequence = [shared]
    frames = []
    for z in order:
        frame, position, scale = Dataset(), Dataset(), Dataset()
        position.ImagePositionPatient = header(z).ImagePositionPatient
        scale.RescaleSlope, scale.RescaleIntercept = z + 0.5, 0
        frame.PlanePositionSequence, frame.PixelValueTransformationSequence = [position], [scale]
        frames.append(frame)
    image.PerFrameFunctionalGroupsSequence = frames
    del image.ImagePositionPatient, image.ImageOrientationPatient, image.PixelSpacing
    return saved(image, path, STORED.T[order])


def test_frames_of_an_enhanced_file_are_slices(tmp_path):
    volume = read_volume(enhanced(tmp_path / "a.dcm", [4, 2, 0, 6, 1, 3, 5]))
    np.testing.assert_allclose(volume.voxels, STORED * (0.5 + np.arange(7)), rtol=1e-7)
    np.testing.assert_allclose(volume.affine, AFFINE, atol=1e-6)


@pytest.mark.parametrize("table", [True, False])
def test_compressed_frames_of_an_enhanced_file_are_slices(tmp_path, table):
    order = [4, 2, 0, 6, 1, 3, 5]
    folder = packed(tmp_path / "ct", "JPEGLSLossless")
    slices = [next(folder.glob(f"*-{z}.dcm")) for z in order]
    streams = [encaps.get_frame(pydicom.dcmread(path).PixelData, 0, number_of_frames=1) for path in slices]
    image = pydicom.dcmread(enhanced(tmp_path / "a.dcm", order, Rows=40, Columns=48))
    image.PixelData = encaps.encapsulate(streams, has_bot=table)
    image["PixelData"].is_undefined_length = True
    volume = read_volume(saved(image, tmp_path / "a.dcm", syntax=JPEGLSLossless))
    np.testing.assert_allclose(volume.voxels, WIDE * (0.5 + np.arange(7)), rtol=1e-7)


def test_frames_without_places_or_at_one_place_are_refused(tmp_path):
    with pytest.raises(MedsegError, match=r"7 frames, and says of 0 where they lie"):
        read_dicom(saved(header(0, NumberOfFrames=7), tmp_path / "plain" / "a.dcm", STORED.T))
    with pytest.raises(MedsegError, match=r"3 images at 2 places: a\.dcm frame 1 and a\.dcm frame 3 lie at one\. They"):
        read_dicom(enhanced(tmp_path / "cine" / "a.dcm", [0, 1, 0]))


def unpacked(path: Path, folder: Path) -> Path:
    with zipfile.ZipFile(path) as file:
        file.extractall(folder)
    return folder


def test_a_real_pet_lies_where_its_derived_nifti_lies_and_has_its_values(data, tmp_path):
    folder = data / "ctpet_dicom_sts001"
    pet, suv = read_volume(unpacked(folder / "pet_dicom.zip", tmp_path)), read_volume(folder / "derived/PET_suv.nii.gz")
    assert pet.grid.differs(suv.grid, tolerance_mm=1e-3) is None
    factor = suv.voxels.max() / pet.voxels.max()
    np.testing.assert_allclose(pet.voxels * factor, suv.voxels, rtol=2e-6, atol=1e-6)


def test_real_cine_is_refused_in_silence_as_frames_over_time(data, tmp_path, caplog):
    unpacked(data / "cmr_cine/SCD0000101/dicom.zip", tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # its UIDs break the rules
        with pytest.raises(MedsegError, match=r"60 images at 3 places: \d+\.dcm and \d+\.dcm .* in TriggerTime"):
            read_volume(tmp_path)
    assert not caplog.records
