"""The same voxels as scikit-image's `skeletonize(method="lee")`, and clDice from them."""

import nibabel as nib
import numpy as np
import pytest
from numpy.testing import assert_array_equal
from scipy import ndimage

from medseg_core.masks import components
from medseg_core.skeleton import cldice, skeleton

morphology = pytest.importorskip("skimage.morphology")

IDS = (1, 2, 300)
SHAPES = [(31, 28), (1, 13), (13, 15, 14), (1, 24, 25), (9, 1, 20), (12, 14, 1), (5, 6, 70)]


def blobs(seed: int, shape: tuple[int, ...]) -> np.ndarray:
    """Three labels, from scattered voxels to fat ones that touch."""
    rng = np.random.default_rng(seed)
    fields = [ndimage.gaussian_filter(rng.normal(size=shape), rng.uniform(0, 2)) for _ in IDS]
    is_label = rng.random(shape) < rng.uniform(0.4, 1.5)
    return np.where(is_label, np.array(IDS)[np.argmax(fields, axis=0)], 0).astype(np.uint16)


def tubes(seed: int, shape: tuple[int, ...]) -> np.ndarray:
    """Three winding tubes of 2 to 11 voxels across; the later ones lie over the earlier ones."""
    rng = np.random.default_rng(seed)
    drawn = np.zeros(shape, np.uint16)
    for i in IDS:
        turns = np.array([rng.uniform(0, n, 6) for n in shape])
        path = ndimage.zoom(turns, (1, 20), order=3, mode="nearest", grid_mode=False)
        line = np.ones(shape, bool)
        line[tuple(np.clip(np.rint(path).astype(int), 0, np.array(shape)[:, None] - 1))] = False
        drawn[ndimage.distance_transform_edt(line) <= rng.uniform(1, 5.5)] = i
    return drawn


def by_scikit_image(mask: np.ndarray) -> np.ndarray:
    """Label by label, each in its box and what lies next to it, so that only a plane is given as a plane."""
    thin = np.zeros_like(mask)
    for i, box in enumerate(ndimage.find_objects(mask), 1):
        if box is not None:
            around = tuple(slice(max(0, side.start - 1), side.stop + 1) for side in box)
            thin[around][morphology.skeletonize(mask[around] == i, method="lee") > 0] = i
    return thin


def assert_same(thin: np.ndarray, mask: np.ndarray) -> None:
    """Equal voxels, but for one voxel of each part that scikit-image takes away wholly."""
    expected, parts = by_scikit_image(mask), components(mask)
    gone = np.setdiff1d(parts[mask > 0], parts[expected > 0])
    assert_array_equal(np.where(np.isin(parts, gone), 0, thin), expected)
    assert_array_equal(np.bincount(parts[thin > 0], minlength=parts.max() + 1)[gone], 1)


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("seed", range(8))
def test_skeletons_of_blobs_are_scikit_images(seed, shape, order):
    mask = np.array(blobs(seed, shape), order=order)
    assert_same(skeleton(mask), mask)


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("shape", [(60, 70), (38, 40, 42)])
@pytest.mark.parametrize("seed", range(3))
def test_skeletons_of_tubes_are_scikit_images(seed, shape, order):
    mask = np.array(tubes(seed, shape), order=order)
    assert_same(skeleton(mask), mask)


def test_of_every_picture_of_4_by_4_the_skeleton_is_scikit_images():
    pictures = (np.arange(2**16)[:, None] >> np.arange(16) & 1).reshape(256, 256, 4, 4)
    sheet = np.pad(pictures, [(0, 0), (0, 0), (1, 1), (1, 1)]).swapaxes(1, 2).reshape(1536, 1536).astype(np.uint8)
    assert_array_equal(skeleton(sheet), morphology.skeletonize(sheet > 0, method="lee"))


def test_a_part_that_scikit_image_takes_away_wholly_keeps_one_voxel():
    mask = np.zeros((12, 8, 8), np.uint8)
    mask[1:5, 2:6, 2:6] = mask[8:10, 1:3, 1:3] = 1
    assert not morphology.skeletonize(mask > 0, method="lee").any()
    assert_array_equal(np.bincount(components(mask)[skeleton(mask) > 0])[1:], [1, 1])


@pytest.mark.parametrize("shape", [(40, 50), (30, 32, 28)])
def test_cldice_is_that_of_scikit_images_skeletons(shape):
    label = tubes(4, shape)
    mask = np.roll(label, 2, axis=1)
    thin_mask, thin_label = by_scikit_image(mask), by_scikit_image(label)
    precision = [np.mean(label[thin_mask == i] == i) for i in IDS]
    sensitivity = [np.mean(mask[thin_label == i] == i) for i in IDS]
    found = cldice(mask, label, ids=IDS)
    assert found["topology_precision"].tolist() == precision
    assert found["topology_sensitivity"].tolist() == sensitivity


@pytest.mark.parametrize(
    "file",
    [
        "ct_multiorgan/ts_s0001/seg_multilabel_v1_104.nii.gz",
        "ct_multiorgan/ts_s0001/seg_multilabel_v1_104_fast.nii.gz",
        "ct_more/spl_abdomen_labels/derived/seg_multilabel.nii.gz",
    ],
)
def test_skeletons_of_real_structures_are_scikit_images(data, file):
    mask = np.asanyarray(nib.load(data / file).dataobj).astype(np.uint16, order="K")
    assert_same(skeleton(mask), mask)
