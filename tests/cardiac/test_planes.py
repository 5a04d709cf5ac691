from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from medseg_cardiac.planes import Place, read_cine, read_mask, write_masks
from medseg_core.errors import MedsegError

RNG = np.random.default_rng(0)
OBLIQUE = nib.affines.from_matvec(nib.eulerangles.euler2mat(0.1, 0.2, 0.3) * (1.5, 1.25, 8), (10, 20, 30))


def save(path: Path, array: np.ndarray, *, affine=None, zooms=None, units=None) -> Path:
    image = nib.Nifti1Image(array, np.eye(4) if affine is None else affine)
    if affine is None and zooms:
        image = nib.Nifti1Image(array, np.diag([*zooms[:3], 1]))
    image.header.set_zooms([*image.header.get_zooms()[:3], *(zooms or (1,) * 4)[3 : array.ndim]])
    if units:
        image.header.set_xyzt_units(*units)
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(image, path)
    return path


def stack(shape=(6, 5, 3, 4)) -> np.ndarray:
    return RNG.integers(0, 900, shape).astype(np.int16)


def test_a_file_of_time_first_has_its_frames_in_its_own_order_and_the_step_as_seconds(tmp_path):
    frames = stack((4, 8, 9))
    cine = read_cine(Place(save(tmp_path / "a.nii.gz", frames, zooms=(0.04, 1.5, 1.25))))
    np.testing.assert_array_equal(cine.frames, frames)
    assert cine.frames.dtype == np.int16
    assert cine.spacing_mm == pytest.approx((1.5, 1.25))
    assert cine.times_s == pytest.approx([0, 0.04, 0.08, 0.12])
    assert (cine.affine, cine.thickness_mm) == (None, None)


def test_the_plane_of_a_stack_lies_where_the_affine_of_the_file_puts_its_slice(tmp_path):
    voxels = stack()
    place = Place(save(tmp_path / "a.nii.gz", voxels, affine=OBLIQUE, zooms=(0, 0, 0, 0.03), units=("mm", "sec")), 2)
    cine = read_cine(place)
    np.testing.assert_array_equal(cine.frames[3], voxels[:, :, 2, 3])
    np.testing.assert_allclose(cine.affine @ (4, 1, 0, 1), OBLIQUE @ (4, 1, 2, 1), atol=1e-5)
    assert cine.spacing_mm == pytest.approx((1.5, 1.25), rel=1e-6)
    assert cine.thickness_mm == pytest.approx(8)
    assert cine.times_s == pytest.approx([0, 0.03, 0.06, 0.09])


def test_a_file_of_one_slice_and_four_axes_needs_no_index(tmp_path):
    voxels = stack((6, 5, 1, 4))
    cine = read_cine(Place(save(tmp_path / "a.nii.gz", voxels, affine=OBLIQUE)))
    np.testing.assert_array_equal(cine.frames, voxels[:, :, 0].transpose(2, 0, 1))
    np.testing.assert_allclose(cine.affine, OBLIQUE, atol=1e-5)


@pytest.mark.parametrize("shape", [(1, 6, 5), (6, 5, 1)])
def test_a_single_picture_is_one_frame_whichever_axis_is_missing(tmp_path, shape):
    picture = stack(shape)
    cine = read_cine(Place(save(tmp_path / "a.nii.gz", picture, affine=OBLIQUE)))
    np.testing.assert_array_equal(cine.frames, picture.reshape(1, 6, 5))


def test_a_first_axis_of_length_one_is_no_space_whatever_the_steps_are(tmp_path):
    picture = stack((1, 6, 5))
    cine = read_cine(Place(save(tmp_path / "a.nii.gz", picture, zooms=(1.4, 1.4, 8))))
    np.testing.assert_array_equal(cine.frames, picture)


def test_a_slice_of_three_axes_is_one_frame_of_a_stack(tmp_path):
    voxels = stack((6, 6, 3))
    cine = read_cine(Place(save(tmp_path / "a.nii.gz", voxels, zooms=(1.5, 1.5, 8)), 1))
    np.testing.assert_array_equal(cine.frames, voxels[None, :, :, 1])


@pytest.mark.parametrize(
    ("axes", "order"),
    [("THW", (0, 1, 2)), ("HWT", (1, 2, 0)), ("HWTS", (2, 3, 1, 0)), ("THWS", (1, 2, 3, 0)), ("SHWT", (0, 2, 3, 1))],
)
def test_named_axes_give_the_same_frames_in_every_order(tmp_path, axes, order):
    frames = stack((4, 8, 9)) if "S" not in axes else stack((3, 4, 8, 9))
    place = Place(save(tmp_path / "a.nii.gz", frames.transpose(order)), 2 if "S" in axes else None)
    np.testing.assert_array_equal(read_cine(place, axes=axes).frames, frames[2] if "S" in axes else frames)


@pytest.mark.parametrize(
    ("shape", "zooms"),
    [
        ((32, 32, 20), (1, 1, 1)),  # two equal lengths, then another
        ((32, 28, 20), (1.4, 1.4, 8)),  # two equal steps, then another
        ((20, 32, 32), (1.4, 1.4, 8)),  # steps against lengths
        ((64, 48, 20), (1, 1, 1)),  # by far the shortest last
    ],
)
def test_a_first_axis_that_the_header_betrays_as_space_is_refused_with_the_fix(tmp_path, shape, zooms):
    place = Place(save(tmp_path / "a.nii.gz", np.zeros(shape, np.int16), zooms=zooms))
    with pytest.raises(MedsegError, match=r"a.nii.gz has shape .* first axis is space.*--axes HWT"):
        read_cine(place)


@pytest.mark.parametrize("shape", [(3, 48, 48), (3, 48, 40)])
def test_a_stack_whose_steps_and_lengths_disagree_is_refused(tmp_path, shape):
    place = Place(save(tmp_path / "a.nii.gz", np.zeros(shape, np.int16), zooms=(1.4, 1.4, 8)), 0)
    with pytest.raises(MedsegError, match="first axis is space"):
        read_cine(place)


def test_four_axes_that_begin_with_time_are_refused_with_the_fix(tmp_path):
    place = Place(save(tmp_path / "a.nii.gz", np.zeros((20, 32, 32, 3), np.int16)), 0)
    with pytest.raises(MedsegError, match="no plane; say what they are"):
        read_cine(place)
    assert read_cine(place, axes="THWS").frames.shape == (20, 32, 32)


@pytest.mark.parametrize(
    ("place", "axes", "said"),
    [
        (None, "auto", "holds 3 slices where one is meant"),
        (3, "auto", "none of number 3"),
        (0, "HTWX", "--axes 'HTWX' is none of auto, THW"),
        (0, "THW", "4 axes where --axes THW names 3"),
    ],
)
def test_what_a_file_cannot_give_is_named(tmp_path, place, axes, said):
    path = save(tmp_path / "a.nii.gz", stack(), affine=OBLIQUE)
    with pytest.raises(MedsegError, match=said):
        read_cine(Place(path, place), axes=axes)


def test_values_that_are_no_numbers_are_counted_and_refused(tmp_path):
    frames = np.zeros((3, 8, 8), np.float32)
    frames[1, 2, 3:5] = np.nan
    with pytest.raises(MedsegError, match="2 values that are no numbers"):
        read_cine(Place(save(tmp_path / "a.nii.gz", frames)))


@pytest.mark.parametrize("order", [(0, 1, 2), (1, 2, 0)])
def test_the_slice_axis_of_a_mask_is_told_by_the_picture(tmp_path, order):
    voxels = RNG.random((3, 6, 5)) > 0.5
    path = save(tmp_path / "a.nii.gz", voxels.transpose(order).astype(np.uint8) * 255)
    np.testing.assert_array_equal(read_mask(Place(path, 1), (6, 5)), voxels[1])


@pytest.mark.parametrize("shape", [(6, 5), (6, 5, 1), (1, 6, 5)])
def test_a_mask_of_one_plane_may_have_any_axis_of_length_one(tmp_path, shape):
    plane = RNG.random((6, 5)) > 0.5
    path = save(tmp_path / "a.nii.gz", plane.reshape(shape).astype(np.float64))
    np.testing.assert_array_equal(read_mask(Place(path), (6, 5)), plane)


@pytest.mark.parametrize(
    ("array", "index", "said"),
    [
        (np.zeros((7, 5, 1)), None, "another grid than the 6 x 5 of its picture; resample"),
        (np.zeros((5, 6, 1)), None, "another grid than the 6 x 5 of its picture; swap"),
        (np.zeros((6, 5, 3)), None, "3 slices where one is meant"),
        (np.zeros((6, 5, 3)), 3, "3 slices and none of number 3"),
        (np.full((6, 5, 1), np.nan), None, "no numbers"),
        (np.arange(30.0).reshape(6, 5, 1) % 4, None, r"3 values beside 0 \(1 2 3\)"),
    ],
)
def test_a_mask_that_does_not_fit_is_refused_with_the_fix(tmp_path, array, index, said):
    with pytest.raises(MedsegError, match=said):
        read_mask(Place(save(tmp_path / "a.nii.gz", array), index), (6, 5))


def test_a_mask_whose_slices_nobody_can_tell_is_refused(tmp_path):
    path = save(tmp_path / "a.nii.gz", np.zeros((5, 5, 5)))
    with pytest.raises(MedsegError, match="one file per slice"):
        read_mask(Place(path, 0), (5, 5))


@pytest.mark.parametrize("order", [(0, 1, 2), (1, 2, 0)])
def test_masks_return_to_the_grid_of_their_volume_and_leave_other_slices_empty(tmp_path, order):
    reference = save(tmp_path / "a.nii.gz", np.zeros((3, 6, 5)).transpose(order), affine=OBLIQUE)
    plane = RNG.random((6, 5)) > 0.5
    written = write_masks({2: plane}, [Place(reference, k) for k in range(3)], tmp_path / "out" / "case")
    image = nib.load(written)
    assert (written, image.get_data_dtype()) == (tmp_path / "out" / "case.nii.gz", np.uint8)
    np.testing.assert_allclose(image.affine, OBLIQUE, atol=1e-5)
    slices = np.asarray(image.dataobj).transpose(np.argsort(order))
    np.testing.assert_array_equal(slices, np.stack([np.zeros((6, 5)), np.zeros((6, 5)), plane]))


def test_masks_of_single_files_become_a_folder_of_their_names(tmp_path):
    shape = (6, 5, 1)
    places = [Place(save(tmp_path / f"s{k}.nii.gz", np.zeros(shape), affine=OBLIQUE)) for k in range(2)]
    planes = RNG.random((2, 6, 5)) > 0.5
    folder = write_masks(dict(enumerate(planes)), places, tmp_path / "case.nii.gz")
    assert folder == tmp_path / "case"
    for k in range(2):
        image = nib.load(folder / f"s{k}.nii.gz")
        np.testing.assert_array_equal(np.asarray(image.dataobj)[:, :, 0], planes[k])
        np.testing.assert_allclose(image.affine, OBLIQUE, atol=1e-5)
