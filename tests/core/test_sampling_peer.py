"""Resampling against scikit-image, SimpleITK and PyTorch, on HU-scaled data."""

import numpy as np
import pytest
from scipy import ndimage

from medseg_core.grid import Grid
from medseg_core.volume import Volume, resample

RNG = np.random.default_rng(0)
IMAGE = ndimage.gaussian_filter(RNG.normal(0, 3000, (19, 23, 17)), 0.6)
LABEL = ndimage.zoom(RNG.integers(0, 118, (4, 5, 4)), 5, order=0)[:19, :23, :17].astype(np.uint8)


def same_field(grid: Grid, shape: tuple[int, int, int]) -> Grid:
    """Another number of voxels over exactly the same field of view."""
    step = np.divide(grid.shape, shape)
    return Grid(shape, grid.affine @ [*np.column_stack([np.diag(step), (step - 1) / 2]), (0, 0, 0, 1)])


@pytest.mark.parametrize(("how", "order"), [("linear", 1), ("cubic", 3)])
@pytest.mark.parametrize("shape", [(9, 7, 5), (19, 5, 4), (3, 3, 3)])
def test_antialias_equals_scikit_images_resize(how, order, shape):
    peer = pytest.importorskip("skimage.transform")
    expected = peer.resize(IMAGE, shape, order=order, mode="reflect", anti_aliasing=True, clip=False)
    volume = Volume(IMAGE.astype(np.float32), np.diag((0.8, 0.8, 2, 1)))
    ours = resample(volume, same_field(volume.grid, shape), how=how, antialias=True)
    np.testing.assert_allclose(ours.voxels, expected, atol=1e-3)


@pytest.mark.parametrize("spacing_mm", [(1.5, 1.5, 1.5), (0.5, 0.7, 3)])
def test_linear_equals_simpleitk_between_the_outermost_centres(spacing_mm):
    peer = pytest.importorskip("SimpleITK")
    volume = Volume(IMAGE.astype(np.int16), np.diag((-0.8, -0.8, 2.0, 1.0)))
    grid = volume.grid.oriented("PIR", spacing_mm)

    def placed(voxels: np.ndarray, affine: np.ndarray):
        image = peer.GetImageFromArray(voxels.T)
        lps = np.diag((-1.0, -1.0, 1.0)) @ affine[:3]
        spacing = np.linalg.norm(affine[:3, :3], axis=0)
        image.SetSpacing(spacing.tolist())
        image.SetDirection((lps[:, :3] / spacing).ravel().tolist())
        image.SetOrigin(lps[:, 3].tolist())
        return image

    target = placed(np.empty(grid.shape, np.uint8), grid.affine)
    moved = peer.Resample(
        placed(volume.voxels, volume.affine), target, peer.Transform(), peer.sitkLinear, -5000.0, peer.sitkFloat32
    )
    expected = peer.GetArrayFromImage(moved).T
    inside = ndimage.binary_erosion(expected > -5000)
    assert inside.mean() > 0.3
    np.testing.assert_allclose(resample(volume, grid).voxels[inside], expected[inside], atol=1e-3)


@pytest.mark.parametrize("shape", [(30, 31, 12), (9, 40, 17)])
def test_labels_equal_the_arg_max_of_pytorchs_trilinear_one_hot_maps(shape):
    torch = pytest.importorskip("torch")
    maps = torch.nn.functional.one_hot(torch.from_numpy(LABEL.astype(np.int64)), 118).movedim(-1, 0)[None].double()
    shares = torch.nn.functional.interpolate(maps, shape, mode="trilinear", align_corners=False)[0].numpy()
    volume = Volume(LABEL, np.eye(4))
    ours = resample(volume, same_field(volume.grid, shape), how="label").voxels
    expected = np.round(shares, 9).argmax(axis=0)  # the smallest id of those that tie
    np.testing.assert_array_equal(ours, expected)
