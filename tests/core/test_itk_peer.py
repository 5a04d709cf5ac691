"""Beside ITK's own readers and writers, through SimpleITK."""

from pathlib import Path

import numpy as np
import pytest
from tests.core.test_itk import NRRD, TURNED, VOXELS, meta, nrrd

from medseg_core.itk import itk_grid, read_itk
from medseg_core.volume import Volume

sitk = pytest.importorskip("SimpleITK")


def by_itk(path: Path) -> Volume:
    image = sitk.ReadImage(str(path))
    affine = np.eye(4)
    affine[:3, :3] = np.array(image.GetDirection()).reshape(3, 3) * image.GetSpacing()
    affine[:3, 3] = image.GetOrigin()
    return Volume(sitk.GetArrayFromImage(image).T, np.diag([-1, -1, 1, 1]) @ affine)


def assert_same(path: Path) -> None:
    mine, its = read_itk(path), by_itk(path)
    assert mine.voxels.dtype == its.voxels.dtype
    np.testing.assert_array_equal(mine.voxels, its.voxels)
    np.testing.assert_allclose(mine.affine, its.affine, atol=1e-9)
    np.testing.assert_array_equal(itk_grid(path).affine, mine.affine)


@pytest.mark.parametrize("suffix", [".nrrd", ".nhdr", ".mha", ".mhd"])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("dtype", ["u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f4", "f8"])
def test_what_itk_writes_reads_as_itk_reads_it(tmp_path, suffix, packed, dtype):
    image = sitk.GetImageFromArray(np.ascontiguousarray((VOXELS % 100).astype(dtype).T))
    image.SetDirection((TURNED / (0.8, 0.9, 2.5)).ravel().tolist())
    image.SetSpacing((0.8, 0.9, 2.5))
    image.SetOrigin((-10.0, 20.0, 30.5))
    path = tmp_path / f"a{suffix}"
    sitk.WriteImage(image, str(path), packed)
    assert_same(path)
    np.testing.assert_array_equal(read_itk(path).voxels, (VOXELS % 100).astype(dtype))


ALONG_TIME = {"kinds": "domain domain domain list", "space_directions": NRRD["space directions"] + " none"}
BARE = {"space": None, "space_directions": None, "space_origin": None, "kinds": None}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"space": "right-anterior-superior"},
        {"space": "LAS"},
        {"space_origin": None},
        {"dimension": "4", "sizes": "4 5 6 1", **ALONG_TIME},
        {"type": "short int", "endian": "big", "byte_skip": "-1"},
        {**BARE, "spacings": "0.8 0.9 2.5"},
        BARE,
    ],
)
def test_nrrd_by_hand_reads_as_itk_reads_it(tmp_path, changes):
    assert_same(nrrd(tmp_path / "a.nrrd", **changes))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"Offset": None, "Position": "4 5 6"},
        {"TransformMatrix": None, "Rotation": "0 1 0 1 0 0 0 0 1"},
        {"ElementSpacing": None, "ElementSize": "2 3 4"},
        {"ElementSpacing": None},
        {"BinaryData": None, "BinaryDataByteOrderMSB": None, "ElementByteOrderMSB": "True"},
        {"HeaderSize": "-1"},
        {"ElementType": "MET_USHORT", "AnatomicalOrientation": "LPS"},
    ],
)
def test_metaimage_by_hand_reads_as_itk_reads_it(tmp_path, changes):
    assert_same(meta(tmp_path / "a.mha", **changes))


def test_real_files_of_slicer_read_the_same(data):
    for path in sorted(data.glob("ct_more/*/*.nrrd")):
        if "Overlapping" not in path.name:
            assert_same(path)
