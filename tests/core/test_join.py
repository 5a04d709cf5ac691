import struct
from collections.abc import Mapping
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from medseg_core.errors import MedsegError
from medseg_core.grid import Grid
from medseg_core.io import read_grid
from medseg_core.join import Joined, join_masks

AFFINE = np.diag((1.5, 1.5, 3.0, 1.0))
DTYPES = ["u1", "i1", "u2", "i2", "i4", "u4", "i8", "u8", "f4", "f8"]


def saved(
    folder: Path, masks: Mapping[int, np.ndarray], *, dtype: str = "u1", affine: np.ndarray = AFFINE
) -> dict[int, Path]:
    files = {}
    for number, mask in masks.items():
        files[number] = folder / f"{number}.nii.gz"
        nib.save(nib.Nifti1Image(mask.astype(dtype), affine, dtype=np.dtype(dtype)), files[number])
    return files


def joined(folder: Path, masks: Mapping[int, np.ndarray], **how) -> Joined:
    shape = next(iter(masks.values())).shape
    return join_masks(saved(folder, masks, **how), Grid(shape, AFFINE))


def blobs(shape: tuple[int, ...], *, num: int, seed: int = 0) -> dict[int, np.ndarray]:
    """Boxes at random places, whose edges fall anywhere in a word; many overlap."""
    rng = np.random.default_rng(seed)
    masks = {}
    for number in range(1, num + 1):
        masks[number] = np.zeros(shape, bool)
        low = rng.integers(0, shape)
        masks[number][tuple(slice(a, a + rng.integers(1, 9)) for a in low)] = True
    return masks


def test_a_voxel_gets_the_id_of_its_mask(tmp_path):
    one, two = np.zeros((2, 3, 4), bool), np.zeros((2, 3, 4), bool)
    one[0, 1, 2] = two[1, 2, 3] = two[1, 2, 2] = True
    result = joined(tmp_path, {3: one, 117: two})
    (label,) = result.layers
    assert label.dtype == np.uint8
    assert label.flags.f_contiguous
    assert label[0, 1, 2] == 3
    assert label[1, 2, 3] == label[1, 2, 2] == 117
    assert np.count_nonzero(label) == 3
    assert result.voxels == {3: 1, 117: 2}
    assert result.overlaps == {}


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype_gives_what_nibabel_gives(tmp_path, dtype):
    masks = blobs((13, 11, 7), num=5)
    result = joined(tmp_path, masks, dtype=dtype)
    expected = np.zeros((13, 11, 7), np.uint8)
    for number in masks:
        expected[nib.load(tmp_path / f"{number}.nii.gz").get_fdata() > 0.5] = number
    np.testing.assert_array_equal(result.layers[0], expected)
    assert result.voxels == {number: mask.sum() for number, mask in masks.items()}


@pytest.mark.parametrize("dtype", ["u1", "f8"])
def test_masks_larger_than_a_piece_are_joined_without_a_seam(tmp_path, dtype):
    shape = (91, 81, 71)  # 0.5 and 4 MB, read by the quarter megabyte, and no whole number of words
    masks = {**blobs(shape, num=30), 31: np.ones(shape, bool)}
    result = joined(tmp_path, masks, dtype=dtype)
    assert result.voxels[31] == 91 * 81 * 71
    for number, mask in masks.items():
        np.testing.assert_array_equal(np.any([layer == number for layer in result.layers], axis=0), mask)


def test_overlaps_are_counted_by_pair_and_kept_in_layers(tmp_path):
    masks = {number: np.zeros((4, 1, 1), bool) for number in (2, 5, 9)}
    masks[9][:3] = masks[5][1:4] = masks[2][2] = True  # voxels: 9 | 9 5 | 9 5 2 | 5
    result = joined(tmp_path, dict(reversed(masks.items())))
    assert [layer.ravel().tolist() for layer in result.layers] == [[9, 9, 9, 5], [0, 5, 5, 0], [0, 0, 2, 0]]
    assert result.overlaps == {(2, 5): 1, (2, 9): 1, (5, 9): 2}
    assert result.voxels == {2: 1, 5: 3, 9: 3}


def test_overlaps_equal_those_of_every_pair_of_masks(tmp_path):
    masks = blobs((9, 9, 9), num=12, seed=3)
    result = joined(tmp_path, masks)
    expected = {(a, b): int((masks[a] & masks[b]).sum()) for a in masks for b in masks if a < b}
    assert result.overlaps == {pair: num for pair, num in expected.items() if num}
    assert len(result.layers) == np.sum(list(masks.values()), axis=0).max()


def test_an_empty_mask_has_no_voxels_and_no_masks_give_an_empty_map(tmp_path):
    result = joined(tmp_path, {4: np.zeros((2, 3, 4), bool)})
    assert result.voxels == {4: 0}
    empty = join_masks({}, Grid((2, 3, 4), AFFINE))
    assert empty.layers[0].shape == (2, 3, 4)
    assert not empty.layers[0].any()


def test_ids_beyond_255_take_two_bytes(tmp_path):
    mask = np.ones((2, 3, 4), bool)
    result = joined(tmp_path, {255: mask, 256: mask})
    assert result.layers[0].dtype == np.uint16
    assert (result.layers[0] == 256).all()
    assert (result.layers[1] == 255).all()


@pytest.mark.parametrize("number", [0, -1, 65536])
def test_ids_that_no_label_map_can_hold_are_refused(tmp_path, number):
    with pytest.raises(MedsegError, match=f"got {number} for"):
        join_masks({number: tmp_path / "a.nii.gz"}, Grid((2, 3, 4), AFFINE))


def stored(path: Path, values: np.ndarray, slope: float, intercept: float) -> Path:
    """A plain .nii whose stored numbers are scaled."""
    nib.save(nib.Nifti1Image(values, AFFINE), path)
    content = bytearray(path.read_bytes())
    struct.pack_into("<2f", content, 112, slope, intercept)
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(("slope", "intercept", "zero", "one"), [(1 / 255, 0, 0, 255), (0.5, -1, 2, 4), (-1, 1, 1, 0)])
@pytest.mark.parametrize("dtype", ["u1", "i2", "f4"])
def test_slope_and_intercept_are_honoured(tmp_path, slope, intercept, zero, one, dtype):
    mask = blobs((5, 6, 7), num=1)[1]
    path = stored(tmp_path / "a.nii", np.where(mask, one, zero).astype(dtype), slope, intercept)
    np.testing.assert_array_equal(join_masks({7: path}, Grid((5, 6, 7), AFFINE)).layers[0], mask * 7)


def test_big_endian_and_plain_files_are_read(tmp_path):
    mask = blobs((5, 6, 7), num=1)[1]
    for dtype in (">i2", ">f8"):
        image = nib.Nifti1Image(mask.astype(dtype), AFFINE, nib.Nifti1Header(endianness=">"))
        image.set_data_dtype(np.dtype(dtype))
        nib.save(image, tmp_path / "a.nii")
        np.testing.assert_array_equal(join_masks({7: tmp_path / "a.nii"}, Grid((5, 6, 7), AFFINE)).layers[0], mask * 7)


def test_a_negative_zero_is_background(tmp_path):
    values = np.full((2, 3, 4), -0.0)
    values[1, 1, 1] = 1
    nib.save(nib.Nifti1Image(values, AFFINE), tmp_path / "a.nii.gz")
    result = join_masks({7: tmp_path / "a.nii.gz"}, Grid((2, 3, 4), AFFINE))
    assert result.voxels == {7: 1}


@pytest.mark.parametrize(
    ("dtype", "value", "shown"),
    [("u1", 2, "2"), ("u1", 255, "255"), ("i2", -1, "-1"), ("f4", 0.5, "0.5"), ("f8", np.nan, "nan"), ("f8", -1, "-1")],
)
@pytest.mark.parametrize("place", [0, 23])
def test_another_value_than_0_and_1_is_shown_with_its_file(tmp_path, dtype, value, shown, place):
    values = np.zeros(24, dtype)
    values[place] = value
    nib.save(nib.Nifti1Image(values.reshape(2, 3, 4), AFFINE), tmp_path / "liver.nii.gz")
    with pytest.raises(MedsegError, match=rf"liver\.nii\.gz holds the value {shown} "):
        join_masks({1: tmp_path / "liver.nii.gz"}, Grid((2, 3, 4), AFFINE))


def test_another_scaled_value_is_shown_as_scaled(tmp_path):
    path = stored(tmp_path / "a.nii", np.full((2, 3, 4), 100, np.uint8), 1 / 255, 0)
    with pytest.raises(MedsegError, match=r"holds the value 0\.39"):
        join_masks({1: path}, Grid((2, 3, 4), AFFINE))


def test_a_mask_on_another_grid_is_named_with_the_reason(tmp_path):
    mask = np.ones((2, 3, 4), bool)
    with pytest.raises(MedsegError, match=r"1\.nii\.gz does not lie .*shape \(2, 3, 5\) against \(2, 3, 4\)"):
        join_masks(saved(tmp_path, {1: mask}), Grid((2, 3, 5), AFFINE))
    shifted = AFFINE.copy()
    shifted[2, 3] = 1
    with pytest.raises(MedsegError, match="1 mm apart"):
        join_masks(saved(tmp_path, {1: mask}), Grid((2, 3, 4), shifted))
    shifted[2, 3] = 0.01
    assert join_masks(saved(tmp_path, {1: mask}), Grid((2, 3, 4), shifted)).voxels == {1: 24}


@pytest.mark.parametrize("left", [0.5, 0.99])
def test_a_mask_that_is_cut_short_is_named(tmp_path, left):
    (path,) = saved(tmp_path, {1: np.random.default_rng(0).random((20, 20, 20)) > 0.5}).values()
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * left)])
    with pytest.raises(MedsegError, match=r"1\.nii\.gz is cut short"):
        join_masks({1: path}, Grid((20, 20, 20), AFFINE))


def test_a_wrong_checksum_after_the_last_voxel_is_seen(tmp_path):
    (path,) = saved(tmp_path, {1: np.ones((20, 20, 20), bool)}).values()
    content = bytearray(path.read_bytes())
    content[-6] ^= 1
    path.write_bytes(content)
    with pytest.raises(MedsegError, match=r"1\.nii\.gz is damaged"):
        join_masks({1: path}, Grid((20, 20, 20), AFFINE))


@pytest.mark.parametrize(("case", "num"), [("ts_s0001", 65), ("ts_s0002", 117)])
def test_real_masks_of_104_and_117_classes_give_what_nibabel_gives(data, case, num):
    folder = data / "ct_multiorgan" / case
    files = dict(enumerate(sorted((folder / "segmentations").glob("*.nii.gz")), 1))
    result = join_masks(files, read_grid(folder / "ct.nii.gz"))
    assert len(files) == num
    expected = np.zeros(result.layers[0].shape, np.uint8)
    for number, path in files.items():
        expected[np.asarray(nib.load(path).dataobj) > 0.5] = number
    np.testing.assert_array_equal(result.layers[0], expected)
    assert len(result.layers) == 1  # these masks are parts of one label map
