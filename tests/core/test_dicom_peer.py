"""Beside SimpleITK's ImageSeriesReader, which reads with GDCM."""

import zipfile
from pathlib import Path

import numpy as np
import pytest
from tests.core.test_dicom import WIDE, ct, packed

from medseg_core.dicom import dicom_grid, read_dicom
from medseg_core.volume import Volume

sitk = pytest.importorskip("SimpleITK")


def by_itk(folder: Path) -> Volume:
    sitk.ProcessObject.SetGlobalWarningDisplay(False)  # the real slices waver by 0.08 mm
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    image = reader.Execute()
    affine = np.eye(4)
    affine[:3, :3] = np.array(image.GetDirection()).reshape(3, 3) * image.GetSpacing()
    affine[:3, 3] = image.GetOrigin()
    return Volume(sitk.GetArrayFromImage(image).T, np.diag([-1, -1, 1, 1]) @ affine)


def assert_same(folder: Path, **tolerance) -> None:
    mine, its = read_dicom(folder), by_itk(folder)
    assert mine.grid.differs(its.grid, tolerance_mm=1e-4) is None
    assert dicom_grid(folder).differs(its.grid, tolerance_mm=1e-4) is None
    np.testing.assert_allclose(mine.voxels, its.voxels, **(tolerance or {"rtol": 0}))


def test_an_oblique_ct_in_hounsfield_units_reads_the_same(tmp_path):
    assert_same(ct(tmp_path / "ct", change=lambda z: {"RescaleSlope": 1, "RescaleIntercept": -1024}))


@pytest.mark.parametrize("kind", ["RLELossless", "JPEGLosslessProcess14_1", "JPEGLSLossless", "JPEG2000Lossless"])
def test_compressed_slices_read_the_same(tmp_path, kind):
    folder = packed(tmp_path / "ct", kind, sign=1)
    assert_same(folder)
    np.testing.assert_array_equal(by_itk(folder).voxels, WIDE - 1000)


def test_a_real_pet_reads_the_same(data, tmp_path):
    with zipfile.ZipFile(data / "ctpet_dicom_sts001/pet_dicom.zip") as file:
        file.extractall(tmp_path)
    assert_same(tmp_path / "image", rtol=1e-6)
