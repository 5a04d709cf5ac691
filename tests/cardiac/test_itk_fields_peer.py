"""Displacements as ITK fields: by hand, and by the word of SimpleITK, which reads and applies them."""

import nibabel as nib
import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from medseg_cardiac import phantom
from medseg_cardiac.fields import warp
from medseg_cardiac.itk_fields import write_field
from medseg_core.errors import MedsegError

H, W = 40, 52
TURN = nib.eulerangles.euler2mat(0.4, -0.7, 0.9)
OBLIQUE = nib.affines.from_matvec(TURN * (1.4, 0.9, 8.0), (-31.0, 22.5, 17.0))
MIRRORED = nib.affines.from_matvec(TURN * (-1.1, 1.6, 10.0), (12.0, -40.0, 3.0))
STRAIGHT = np.diag([1.2, 0.8, 8.0, 1.0])


@pytest.fixture
def sitk():
    return pytest.importorskip("SimpleITK")


def noise(*shape, seed=0, sigma=3):
    smooth = np.stack([gaussian_filter(x, sigma) for x in np.random.default_rng(seed).standard_normal(shape)])
    return smooth / np.abs(smooth).max()


def shift(h, w):
    return np.stack([np.full((H, W), float(h)), np.full((H, W), float(w))])


def header_of(path):
    lines = path.read_bytes().split(b"ElementDataFile = LOCAL\n")[0].decode().splitlines()
    return dict(line.split(" = ") for line in lines)


def as_itk(sitk, picture, affine, path):
    """By a NIfTI file, whose place in the patient SimpleITK works out by itself."""
    nib.save(nib.Nifti1Image(picture[..., None].astype(np.float32), affine), path)
    return sitk.ReadImage(str(path))


def test_a_shift_is_written_in_mm_and_left_and_back_are_positive(tmp_path):
    """3 rows of 1.2 mm to the right are -3.6 mm to the left; -2 columns of 0.8 mm forwards are 1.6 mm backwards."""
    write_field(shift(3, -2), STRAIGHT, tmp_path / "a.mha")
    voxels = np.frombuffer((tmp_path / "a.mha").read_bytes()[-H * W * 3 * 4 :], "<f4").reshape(-1, 3)
    np.testing.assert_allclose(voxels, [[-3.6, 1.6, 0.0]] * (H * W), atol=1e-6)


def test_the_header_says_where_the_plane_lies(tmp_path):
    affine = STRAIGHT.copy()
    affine[:3, 3] = 10, 20, 30
    write_field(shift(0, 0), affine, tmp_path / "a.mha")
    header = header_of(tmp_path / "a.mha")
    numbers = {name: [float(x) for x in header[name].split()] for name in ("Offset", "ElementSpacing", "DimSize")}
    assert numbers == {"Offset": [-10, -20, 30], "ElementSpacing": [1.2, 0.8, 8], "DimSize": [H, W, 1]}
    assert [float(x) for x in header["TransformMatrix"].split()] == [-1, 0, 0, 0, -1, 0, 0, 0, 1]


@pytest.mark.parametrize("name", ["a.nii.gz", "a.mhd", "a"])
def test_another_suffix_is_refused(name, tmp_path):
    with pytest.raises(MedsegError, match=r"cannot write a field to .*; name it \.mha"):
        write_field(shift(0, 0), STRAIGHT, tmp_path / name)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("affine", [np.zeros((4, 4)), np.full((4, 4), np.nan), np.eye(3)])
def test_an_affine_that_is_none_is_refused_and_nothing_written(affine, tmp_path):
    with pytest.raises(MedsegError, match="affine"):
        write_field(shift(0, 0), affine, tmp_path / "a.mha")
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_refuses_is_one_line_and_leaves_the_old_field(tmp_path, monkeypatch):
    write_field(shift(1, 1), STRAIGHT, tmp_path / "a.mha")
    before = (tmp_path / "a.mha").read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.write_bytes", full)
    with pytest.raises(MedsegError, match="No space left"):
        write_field(shift(2, 2), STRAIGHT, tmp_path / "a.mha")
    assert (tmp_path / "a.mha").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["a.mha"]


@pytest.mark.parametrize("affine", [STRAIGHT, OBLIQUE, MIRRORED], ids=["straight", "oblique", "mirrored"])
def test_simpleitk_takes_a_point_where_the_displacement_takes_it(sitk, affine, tmp_path):
    flow = 4 * noise(2, H, W)
    write_field(flow, affine, tmp_path / "a.mha")
    image = sitk.ReadImage(str(tmp_path / "a.mha"), sitk.sitkVectorFloat64)
    assert image.GetSize() == (H, W, 1)
    transform = sitk.DisplacementFieldTransform(image)
    for h, w in ((0, 0), (7, 31), (20, 20), (39, 51)):
        start, end = (
            (affine @ [*place, 0, 1])[:3] * (-1, -1, 1) for place in ((h, w), np.array([h, w]) + flow[:, h, w])
        )
        np.testing.assert_allclose(transform.TransformPoint(start.tolist()), end, atol=1e-4)


@pytest.mark.parametrize("affine", [STRAIGHT, OBLIQUE, MIRRORED], ids=["straight", "oblique", "mirrored"])
def test_simpleitk_warps_a_picture_to_the_same_grey_values(sitk, affine, tmp_path):
    picture, flow = 0.5 + 0.5 * noise(1, H, W, seed=1, sigma=2)[0], 4 * noise(2, H, W)
    write_field(flow, affine, tmp_path / "a.mha")
    transform = sitk.DisplacementFieldTransform(sitk.ReadImage(str(tmp_path / "a.mha"), sitk.sitkVectorFloat64))
    moving = as_itk(sitk, picture, affine, tmp_path / "moving.nii")
    theirs = sitk.GetArrayFromImage(sitk.Resample(moving, moving, transform, sitk.sitkLinear, -1.0))[0].T
    ours = warp(torch.from_numpy(picture)[None, None], torch.from_numpy(flow)[None])[0, 0].numpy()
    at = np.indices((H, W)) + flow
    inside = ((at >= 0.01) & (at <= np.reshape((H - 1.01, W - 1.01), (2, 1, 1)))).all(0)
    assert inside.mean() > 0.8
    assert np.abs(theirs - ours)[inside].max() < 1e-3
    assert np.abs(theirs - picture)[inside].max() > 0.1


def test_the_field_of_ed_to_es_brings_the_picture_of_es_onto_ed(sitk, tmp_path):
    """The phantom's own motion on its own plane, oblique as a heart lies."""
    plane = phantom.scan(0, 1, size=64, num_frames=6)
    frames, flow = phantom.pictures(plane)[0] / 1000, phantom.displacement(plane)[plane.es]
    write_field(flow, plane.affine, tmp_path / "a.mha")
    transform = sitk.DisplacementFieldTransform(sitk.ReadImage(str(tmp_path / "a.mha"), sitk.sitkVectorFloat64))
    moving = as_itk(sitk, frames[plane.es], plane.affine, tmp_path / "es.nii")
    moved = sitk.GetArrayFromImage(sitk.Resample(moving, moving, transform, sitk.sitkLinear, 0.0))[0].T
    inside = plane.moving
    gap, unmoved = (np.abs(picture - frames[0])[inside].mean() for picture in (moved, frames[plane.es]))
    assert gap < unmoved / 2
