import contextlib
import gzip
import struct
import zlib
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from medseg_core.errors import MedsegError
from medseg_core.io import read_grid, read_series, read_volume

RNG = np.random.default_rng(0)
VOXELS = RNG.integers(-1000, 1000, (4, 5, 6)).astype(np.int16)
STRAIGHT = nib.affines.from_matvec(nib.eulerangles.euler2mat(0.1, 0.2, 0.3) * (0.8, 0.9, 2.5), (1, 2, 3))


def saved(path: Path, voxels: np.ndarray = VOXELS, affine: np.ndarray = STRAIGHT, **changes) -> Path:
    """By nibabel, so that reader and writer do not share a mistake."""
    image = nib.Nifti1Image(voxels, affine)
    for name, value in changes.items():
        image.header[name] = value
    nib.save(image, path)
    return path


def patched(path: Path, at: int, layout: str, *values) -> Path:
    """A healthy .nii with bytes of its header replaced."""
    saved(path)
    content = bytearray(path.read_bytes())
    struct.pack_into(layout, content, at, *values)
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("dtype", ["u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f4", "f8"])
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_every_dtype_reads_as_nibabel_reads_it(tmp_path, dtype, suffix):
    image = nib.Nifti1Image(VOXELS.astype(dtype), STRAIGHT, dtype=np.dtype(dtype))
    nib.save(image, tmp_path / f"a{suffix}")
    volume = read_volume(tmp_path / f"a{suffix}")
    assert volume.voxels.dtype == np.dtype(dtype)
    assert volume.voxels.flags.f_contiguous
    np.testing.assert_array_equal(volume.voxels, np.asarray(nib.load(tmp_path / f"a{suffix}").dataobj))
    np.testing.assert_array_equal(volume.affine, nib.load(tmp_path / f"a{suffix}").affine)


def test_slope_and_intercept_give_the_values_in_float32(tmp_path):
    path = patched(tmp_path / "a.nii", 112, "<2f", 0.5, -1024)
    volume = read_volume(path)
    assert volume.voxels.dtype == np.float32
    np.testing.assert_allclose(volume.voxels, VOXELS * 0.5 - 1024)
    np.testing.assert_allclose(volume.voxels, nib.load(path).get_fdata())


def test_a_slope_of_stored_float64_gives_float64(tmp_path):
    image = nib.Nifti1Image(VOXELS + 0.25, STRAIGHT)
    image.header.set_slope_inter(1, 0)
    nib.save(image, tmp_path / "a.nii")
    content = bytearray((tmp_path / "a.nii").read_bytes())
    struct.pack_into("<2f", content, 112, 2, 1)
    (tmp_path / "a.nii").write_bytes(content)
    volume = read_volume(tmp_path / "a.nii")
    assert volume.voxels.dtype == np.float64
    np.testing.assert_array_equal(volume.voxels, 2 * (VOXELS + 0.25) + 1)


@pytest.mark.parametrize("slope", [0, np.nan, 1])
def test_a_slope_that_says_nothing_keeps_the_dtype(tmp_path, slope):
    volume = read_volume(patched(tmp_path / "a.nii", 112, "<2f", slope, 0))
    assert volume.voxels.dtype == np.int16
    np.testing.assert_array_equal(volume.voxels, VOXELS)


def test_big_endian_and_nifti_2_read_the_same(tmp_path):
    nib.save(nib.Nifti1Image(VOXELS, STRAIGHT, nib.Nifti1Header(endianness=">")), tmp_path / "big.nii.gz")
    two = nib.Nifti2Image(VOXELS, STRAIGHT)
    nib.save(two, tmp_path / "two.nii.gz")
    for name in ("big.nii.gz", "two.nii.gz"):
        volume = read_volume(tmp_path / name)
        assert volume.voxels.dtype.isnative
        np.testing.assert_array_equal(volume.voxels, VOXELS)


def test_extensions_of_the_header_are_passed_over(tmp_path):
    image = nib.Nifti1Image(VOXELS, STRAIGHT)
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"x" * 1000))
    nib.save(image, tmp_path / "a.nii.gz")
    np.testing.assert_array_equal(read_volume(tmp_path / "a.nii.gz").voxels, VOXELS)


def test_several_gzip_members_are_one_file_and_the_suffix_does_not_matter(tmp_path):
    content = saved(tmp_path / "a.nii").read_bytes()
    (tmp_path / "members.nii.gz").write_bytes(gzip.compress(content[:400]) + gzip.compress(content[400:]) + bytes(512))
    (tmp_path / "zipped.nii").write_bytes(gzip.compress(content))
    (tmp_path / "plain.nii.gz").write_bytes(content)
    for name in ("members.nii.gz", "zipped.nii", "plain.nii.gz"):
        np.testing.assert_array_equal(read_volume(tmp_path / name).voxels, VOXELS)


@pytest.mark.parametrize(("unit", "factor"), [(0, 1), (1, 1000), (2, 1), (3, 0.001), (10, 1), (255, 1)])
def test_metres_and_microns_become_mm(tmp_path, unit, factor):
    path = patched(tmp_path / "a.nii", 123, "<B", unit)
    np.testing.assert_allclose(read_grid(path).affine[:3], nib.load(path).affine[:3] * factor)


def test_trailing_axes_of_length_1_are_dropped_and_a_plane_gets_a_third(tmp_path):
    assert read_volume(saved(tmp_path / "a.nii.gz", VOXELS[..., None, None])).voxels.shape == (4, 5, 6)
    assert read_volume(saved(tmp_path / "b.nii.gz", VOXELS[:, :, 0])).voxels.shape == (4, 5, 1)


def test_the_grid_is_read_without_the_voxels(tmp_path):
    path = saved(tmp_path / "a.nii.gz", np.zeros((200, 200, 20), np.uint8))
    content = bytearray(path.read_bytes())
    content[-8:] = b"\0" * 8  # a wrong checksum, which only a whole read can see
    path.write_bytes(content)
    assert read_grid(path).shape == (200, 200, 20)
    with pytest.raises(MedsegError, match="damaged"):
        read_volume(path)


def broken(folder: Path) -> dict[str, tuple[Path, str]]:
    """Each kind of hostile file with words of its message."""
    whole = saved(folder / "whole.nii.gz").read_bytes()
    plain = saved(folder / "plain.nii").read_bytes()
    files = {
        "half.nii.gz": (whole[: len(whole) // 2], "cut short"),
        "no_trailer.nii.gz": (whole[:-8], "cut short"),
        "checksum.nii.gz": (whole[:-8] + b"abcd" + whole[-4:], "damaged"),
        "cut.nii": (plain[:-7], "cut short"),
        "cut_inside.nii.gz": (gzip.compress(plain[:-7]), "cut short"),
        "bare_magic.nii.gz": (b"\x1f\x8b", "cut short"),
        "noise.nii.gz": (b"\x1f\x8b" + RNG.bytes(60), "damaged|cut short"),
        "empty.nii.gz": (b"", "it is empty"),
        "text.nii.gz": (b"hello", "not a NIfTI"),
        "text_inside.nii.gz": (gzip.compress(b"hello" * 200), "not a NIfTI"),
        "really.nii": (b"\x89PNG\r\n" + bytes(400), "looks like PNG"),
        "dicom.nii": (bytes(128) + b"DICM" + bytes(400), "looks like DICOM"),
    }
    for name, (content, _) in files.items():
        (folder / name).write_bytes(content)
    (folder / "folder.nii.gz").mkdir()
    made = {name: (folder / name, words) for name, (_, words) in files.items()}
    return made | {
        "folder.nii.gz": (folder / "folder.nii.gz", "folder"),
        "wole.nii.gz": (folder / "wole.nii.gz", "no file.*did you mean 'whole.nii.gz'"),
        "below.nii.gz": (folder / "plain.nii" / "below.nii.gz", "cannot read"),
        "nan.nii": (patched(folder / "nan.nii", 284, "<f", np.nan), "not finite"),
        "flat.nii": (patched(folder / "flat.nii", 280, "<12f", *[1] * 12), "singular"),
        "code.nii": (patched(folder / "code.nii", 70, "<h", 999), "damaged header"),
        "bits.nii": (patched(folder / "bits.nii", 70, "<h", 1), "damaged header"),
        "negative.nii": (patched(folder / "negative.nii", 42, "<h", -5), "no voxels"),
        "pair.nii": (patched(folder / "pair.nii", 344, "4s", b"ni1\0"), r"\.hdr/\.img"),
        "magic.nii": (patched(folder / "magic.nii", 344, "4s", b"abcd"), "damaged header"),
        "offset.nii": (patched(folder / "offset.nii", 108, "<f", 1e9), "at most 0"),
        "offset_nan.nii": (patched(folder / "offset_nan.nii", 108, "<f", np.nan), "damaged header"),
        "4d.nii.gz": (saved(folder / "4d.nii.gz", np.zeros((4, 5, 6, 7), "u1")), r"\(4, 5, 6, 7\).*read_series"),
        "complex.nii.gz": (saved(folder / "complex.nii.gz", VOXELS.astype("c8")), "complex64.*convert"),
        "rgb.nii.gz": (saved(folder / "rgb.nii.gz", np.zeros((4, 5, 6), [(c, "u1") for c in "RGB"])), "RGB"),
    }


def test_each_hostile_file_ends_in_one_line_that_names_it(tmp_path):
    for name, (path, words) in broken(tmp_path).items():
        with pytest.raises(MedsegError, match=words) as caught:
            read_volume(path)
        assert str(path) in str(caught.value), name
        assert "\n" not in str(caught.value), name


def test_only_our_error_comes_of_random_damage(tmp_path):
    whole = saved(tmp_path / "a.nii.gz").read_bytes()
    plain = gzip.decompress(whole)
    for number in range(400):
        content, top = (bytearray(whole), len(whole)) if number % 2 else (bytearray(plain), 352)
        for place in RNG.integers(top, size=3):
            content[place] = RNG.integers(256)
        (tmp_path / "b.nii.gz").write_bytes(content)
        with contextlib.suppress(MedsegError):
            read_volume(tmp_path / "b.nii.gz")


def test_a_header_that_promises_more_than_gzip_can_hold_allocates_nothing(tmp_path):
    header = nib.Nifti1Header()
    header.set_data_dtype(np.int16)
    header.set_data_shape((30000, 30000, 30000))
    header["magic"], header["vox_offset"] = b"n+1", 352
    (tmp_path / "a.nii.gz").write_bytes(gzip.compress(header.binaryblock + bytes(4)))
    for read in (read_volume, read_grid, read_series):
        with pytest.raises(MedsegError, match="promises 30000 x 30000 x 30000 voxels of int16"):
            read(tmp_path / "a.nii.gz")


def test_zeros_at_the_best_ratio_of_deflate_are_believed(tmp_path):
    image = nib.Nifti1Image(np.zeros((200, 200, 200), np.uint8), np.eye(4))
    content = image.to_bytes()
    packed = zlib.compressobj(9, zlib.DEFLATED, 31)
    (tmp_path / "a.nii.gz").write_bytes(packed.compress(content) + packed.flush())
    assert len(content) / (tmp_path / "a.nii.gz").stat().st_size > 900
    assert not read_volume(tmp_path / "a.nii.gz").voxels.any()


def test_frames_come_first_and_times_in_seconds(tmp_path):
    image = nib.Nifti1Image(RNG.integers(0, 99, (4, 5, 6, 3)).astype(np.int16), STRAIGHT)
    image.header.set_xyzt_units("mm", "msec")
    image.header["pixdim"][4] = 40
    nib.save(image, tmp_path / "a.nii.gz")
    series = read_series(tmp_path / "a.nii.gz")
    np.testing.assert_array_equal(series.frames, np.moveaxis(np.asarray(image.dataobj), 3, 0))
    np.testing.assert_allclose(series.times_s, [0, 0.04, 0.08])
    assert series.frames.dtype == np.int16


def test_times_that_no_unit_explains_are_not_told(tmp_path):
    image = nib.Nifti1Image(np.zeros((4, 5, 6, 3), np.int16), STRAIGHT)
    image.header["pixdim"][4] = 40
    nib.save(image, tmp_path / "a.nii.gz")
    assert read_series(tmp_path / "a.nii.gz").times_s is None


def test_a_volume_is_a_series_of_one_frame_and_five_axes_are_none(tmp_path):
    np.testing.assert_array_equal(read_series(saved(tmp_path / "a.nii.gz")).frame(0).voxels, VOXELS)
    with pytest.raises(MedsegError, match="four axes"):
        read_series(saved(tmp_path / "b.nii.gz", np.zeros((2, 3, 4, 5, 6), np.uint8)))


def test_real_scans_read_as_nibabel_reads_them(data):
    for path in sorted(data.glob("ct*/*/*.nii.gz"))[::9]:
        if len(nib.load(path).shape) == 3:
            image = nib.load(path)
            volume = read_volume(path)
            np.testing.assert_array_equal(volume.voxels, np.asarray(image.dataobj))
            np.testing.assert_array_equal(volume.affine, image.affine)


@pytest.mark.parametrize("codes", [(0, 1), (0, 0)])
def test_voxels_without_a_size_are_refused_where_no_sform_gives_one(tmp_path, codes):
    path = patched(tmp_path / "a.nii", 80, "<4f", 0.0, 0.9, 2.5, 1.0)
    content = bytearray(path.read_bytes())
    struct.pack_into("<2h", content, 252, *codes[::-1])
    path.write_bytes(content)
    with pytest.raises(MedsegError, match=r"voxels of \[0\.0, 0\.8.*correct its pixdim"):
        read_grid(path)
    struct.pack_into("<2h", content, 252, 1, 1)
    path.write_bytes(content)
    np.testing.assert_allclose(read_grid(path).affine, STRAIGHT, atol=1e-5)


def test_a_plane_needs_no_thickness(tmp_path):
    path = saved(tmp_path / "a.nii", VOXELS[:, :, :1])
    content = bytearray(path.read_bytes())
    struct.pack_into("<f", content, 88, 0.0)
    struct.pack_into("<2h", content, 252, 1, 0)
    path.write_bytes(content)
    assert read_grid(path).shape == (4, 5, 1)


@pytest.mark.filterwarnings("error")
def test_a_scale_that_leaves_the_type_is_refused(tmp_path):
    with pytest.raises(MedsegError, match=r"slope 3e\+38 .* beyond float32"):
        read_volume(patched(tmp_path / "a.nii", 112, "<2f", 3e38, 0.0))
