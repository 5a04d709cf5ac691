import contextlib
import gzip
import os
import resource
import struct
import zlib
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from medseg_core.errors import MedsegError
from medseg_core.io import (
    case_name,
    read_grid,
    read_picture,
    read_series,
    replacing,
    write_picture,
    write_series,
    write_text,
    write_volume,
)
from medseg_core.volume import Picture, Series, Volume

RNG = np.random.default_rng(0)
VOXELS = RNG.integers(-1000, 1000, (4, 5, 6)).astype(np.int16)
STRAIGHT = nib.affines.from_matvec(nib.eulerangles.euler2mat(0.1, 0.2, 0.3) * (0.8, 0.9, 2.5), (1, 2, 3))


@pytest.mark.parametrize("dtype", ["u1", "i1", "u2", "i2", "u4", "i4", "f4", "f8", ">i2"])
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_nibabel_reads_what_we_write(tmp_path, dtype, order, suffix):
    volume = Volume(np.array(VOXELS, dtype=dtype, order=order), STRAIGHT)
    write_volume(volume, tmp_path / f"a{suffix}")
    image = nib.load(tmp_path / f"a{suffix}")
    assert image.get_data_dtype() == np.dtype(dtype).newbyteorder("=")
    np.testing.assert_array_equal(np.asarray(image.dataobj), volume.voxels)
    for affine, code in (image.get_sform(coded=True), image.get_qform(coded=True)):
        assert code == 1
        np.testing.assert_allclose(affine, STRAIGHT, atol=1e-5)
    assert image.header.get_xyzt_units()[0] == "mm"
    np.testing.assert_allclose(image.header.get_zooms(), (0.8, 0.9, 2.5), rtol=1e-6)


@pytest.mark.parametrize("shape", [(4, 5, 1, 3), (4, 5, 2, 3)])
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_nibabel_reads_the_frames_and_times_of_a_series(tmp_path, shape, suffix):
    voxels = RNG.integers(-1000, 1000, shape).astype(np.int16)
    series = Series(np.moveaxis(voxels, 3, 0), STRAIGHT, np.array([0.01, 0.05, 0.09]))
    write_series(series, tmp_path / f"a{suffix}")
    image = nib.load(tmp_path / f"a{suffix}")
    np.testing.assert_array_equal(np.asarray(image.dataobj), voxels)
    np.testing.assert_allclose(image.affine, STRAIGHT, atol=1e-5)
    np.testing.assert_allclose(image.header.get_zooms(), (0.8, 0.9, 2.5, 0.04), rtol=1e-6)
    assert image.header.get_xyzt_units() == ("mm", "sec")
    assert float(image.header["toffset"]) == pytest.approx(0.01)


def test_a_series_comes_back_with_its_frames_from_time_0_on_and_equal_ones_give_equal_bytes(tmp_path):
    frames = RNG.random((3, 4, 5, 2)).astype(np.float32)
    for name, times_s in {"a": [0.1, 0.2, 0.3], "b": [0.1, 0.2, 0.3], "bare": None}.items():
        series = Series(frames, STRAIGHT, None if times_s is None else np.array(times_s))
        write_series(series, tmp_path / f"{name}.nii.gz")
    back = read_series(tmp_path / "a.nii.gz")
    np.testing.assert_array_equal(back.frames, frames)
    np.testing.assert_allclose(back.times_s, [0, 0.1, 0.2], rtol=1e-6)
    assert read_series(tmp_path / "bare.nii.gz").times_s is None
    assert (tmp_path / "a.nii.gz").read_bytes() == (tmp_path / "b.nii.gz").read_bytes()


@pytest.mark.parametrize("times_s", [[0.0, 0.0, 0.0], [0.2, 0.1, 0.0], [0.0, 0.01, 0.1], [0.0, np.nan, 0.1]])
def test_a_series_whose_times_are_no_steps_is_not_written(tmp_path, times_s):
    with pytest.raises(MedsegError, match=r"a\.nii cannot hold frames at .* not even"):
        write_series(Series(np.zeros((3, 2, 2, 1)), STRAIGHT, np.array(times_s)), tmp_path / "a.nii")
    assert not list(tmp_path.iterdir())


def test_a_series_under_another_suffix_is_not_written(tmp_path):
    with pytest.raises(MedsegError, match="cannot write a series to"):
        write_series(Series(np.zeros((3, 2, 2, 1)), STRAIGHT), tmp_path / "a.mha")


def test_gzip_itself_reads_what_we_write(tmp_path):
    write_volume(Volume(VOXELS, STRAIGHT), tmp_path / "a.nii.gz")
    content = gzip.decompress((tmp_path / "a.nii.gz").read_bytes())
    assert content[352:] == VOXELS.tobytes(order="F")


def test_a_sheared_affine_is_not_told_as_a_quaternion(tmp_path):
    sheared = np.array([[1, 0.3, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    write_volume(Volume(VOXELS, sheared), tmp_path / "a.nii.gz")
    image = nib.load(tmp_path / "a.nii.gz")
    assert image.get_qform(coded=True) == (None, 0)
    np.testing.assert_allclose(image.affine, sheared)


@pytest.mark.parametrize(
    ("voxels", "stored"),
    [
        (VOXELS > 0, "u1"),
        (VOXELS.astype("i8"), "i4"),
        (VOXELS.astype("f2"), "f4"),
        (VOXELS.astype("u8") % 7, "i4"),
        (VOXELS.astype("i8") * 2**40, "i8"),
    ],
)
def test_what_few_programs_read_is_written_as_the_nearest_they_do(tmp_path, voxels, stored):
    write_volume(Volume(voxels, STRAIGHT), tmp_path / "a.nii.gz")
    image = nib.load(tmp_path / "a.nii.gz")
    assert image.get_data_dtype() == np.dtype(stored)
    np.testing.assert_array_equal(np.asarray(image.dataobj), voxels)


def test_an_axis_longer_than_nifti_1_knows_is_written_as_nifti_2(tmp_path):
    write_volume(Volume(np.zeros((40000, 1, 1), np.uint8), np.eye(4)), tmp_path / "a.nii.gz")
    assert nib.load(tmp_path / "a.nii.gz").shape == (40000, 1, 1)
    assert read_grid(tmp_path / "a.nii.gz").shape == (40000, 1, 1)


def test_equal_volumes_give_equal_bytes(tmp_path):
    for name in ("a.nii.gz", "b.nii.gz"):
        write_volume(Volume(VOXELS, STRAIGHT), tmp_path / name)
    assert (tmp_path / "a.nii.gz").read_bytes() == (tmp_path / "b.nii.gz").read_bytes()
    assert (tmp_path / "a.nii.gz").read_bytes()[3:8] == bytes(5)  # no name, no time


def test_other_suffixes_are_refused_before_anything_is_written(tmp_path):
    with pytest.raises(MedsegError, match=r"name it \.nii\.gz"):
        write_volume(Volume(VOXELS, STRAIGHT), tmp_path / "a.mha")
    with pytest.raises(MedsegError, match=r"name it \.png"):
        write_picture(Picture(np.zeros((2, 2), np.uint8)), tmp_path / "a.bmp")
    assert not list(tmp_path.iterdir())


@pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "a.tif"])
def test_a_disk_that_is_full_leaves_the_old_file_and_no_other(tmp_path, name):
    def write(pixels: np.ndarray) -> None:
        if name == "a.tif":
            write_picture(Picture(pixels), tmp_path / name)
        else:
            write_volume(Volume(pixels[..., None], STRAIGHT), tmp_path / name)

    write(np.zeros((4, 5), np.uint8))
    before = (tmp_path / name).read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
    try:
        with pytest.raises(MedsegError, match=rf"cannot write .*{name}: File too large"):
            write(RNG.integers(0, 255, (1000, 1000), np.uint8))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_bytes() == before


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(MedsegError, match="cannot write"):
        write_volume(Volume(VOXELS, STRAIGHT), tmp_path / "file" / "a.nii.gz")
    (tmp_path / "a.nii.gz").mkdir()
    with pytest.raises(MedsegError, match="cannot write"):
        write_volume(Volume(VOXELS, STRAIGHT), tmp_path / "a.nii.gz")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.nii.gz", "file"]


def test_missing_folders_are_made(tmp_path):
    write_text(tmp_path / "x" / "y" / "a.txt", "é\n")
    assert (tmp_path / "x" / "y" / "a.txt").read_bytes() == "é\n".encode()


def test_what_breaks_off_leaves_the_old_file(tmp_path):
    write_text(tmp_path / "a.txt", "old")
    stopped = replacing(tmp_path / "a.txt")
    stopped.__enter__().write_text("half")
    assert len(list(tmp_path.iterdir())) == 2
    stop = KeyboardInterrupt()
    assert not stopped.__exit__(KeyboardInterrupt, stop, None)
    assert [path.read_text() for path in tmp_path.iterdir()] == ["old"]


def test_the_path_beside_keeps_the_suffix_and_the_folder(tmp_path):
    with replacing(tmp_path / "a.nii.gz") as beside:
        assert (beside.parent, beside.name[-7:]) == (tmp_path, ".nii.gz")
        assert beside.name != "a.nii.gz"
        beside.write_text("")
    assert [path.name for path in tmp_path.iterdir()] == ["a.nii.gz"]


@pytest.mark.parametrize(
    ("name", "case"),
    [
        ("s0001.nii.gz", "s0001"),
        ("x/y/s01.ct.NII", "s01.ct"),
        ("a.tif", "a"),
        ("a.tiff", "a"),
        ("b.PNG", "b"),
        ("patient.1", "patient.1"),
        ("s0001", "s0001"),
        (".nii.gz", ".nii.gz"),
    ],
)
def test_a_case_is_called_by_its_file_without_the_suffix(name, case):
    assert case_name(Path(name)) == case


@pytest.mark.parametrize("suffix", [".png", ".tif"])
@pytest.mark.parametrize(
    ("dtype", "shape"), [("u1", (4, 5)), ("u2", (4, 5)), ("u1", (4, 5, 3)), ("u1", (4, 5, 4)), ("u1", (4, 5, 2))]
)
def test_pictures_come_back_with_their_bits_and_colours(tmp_path, suffix, dtype, shape):
    pixels = RNG.integers(0, np.iinfo(dtype).max, shape).astype(dtype)
    write_picture(Picture(pixels), tmp_path / f"a{suffix}")
    picture = read_picture(tmp_path / f"a{suffix}")
    assert picture.pixels.dtype == np.dtype(dtype)
    np.testing.assert_array_equal(picture.pixels, pixels)
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / f"a{suffix}")), pixels)


def test_two_colours_become_0_and_255(tmp_path):
    mask = RNG.random((4, 5)) > 0.5
    write_picture(Picture(mask), tmp_path / "a.png")
    np.testing.assert_array_equal(read_picture(tmp_path / "a.png").pixels, mask * 255)
    Image.fromarray(mask).save(tmp_path / "b.png")
    assert Image.open(tmp_path / "b.png").mode == "1"
    np.testing.assert_array_equal(read_picture(tmp_path / "b.png").pixels, mask * 255)


def test_a_palette_picture_gives_its_indices(tmp_path):
    ids = RNG.integers(0, 3, (4, 5)).astype(np.uint8)
    image = Image.fromarray(ids).convert("P")
    image.putpalette([0, 0, 0, 255, 0, 0, 0, 0, 255])
    image.putdata(ids.ravel().tolist())
    image.save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_picture(tmp_path / "a.png").pixels, ids)


def test_float_pixels_are_kept_by_tiff_and_refused_by_png(tmp_path):
    pixels = RNG.normal(size=(4, 5)).astype(np.float32)
    write_picture(Picture(pixels), tmp_path / "a.tif")
    np.testing.assert_array_equal(read_picture(tmp_path / "a.tif").pixels, pixels)
    with pytest.raises(MedsegError, match="cannot hold float32"):
        write_picture(Picture(pixels), tmp_path / "a.png")
    for pixels in (np.zeros((4, 5, 3), np.uint16), np.zeros((4, 5, 7), np.uint8), np.zeros((4, 5))):
        with pytest.raises(MedsegError, match="cannot hold"):
            write_picture(Picture(pixels), tmp_path / "b.tif")
    assert [path.name for path in tmp_path.iterdir()] == ["a.tif"]


@pytest.mark.parametrize(
    ("tags", "pixel_nm"),
    [
        ({282: 2e6, 283: 2e6, 296: 3}, 5.0),  # pixels per cm
        ({282: 2.54e6, 283: 2.54e6, 296: 2}, 10.0),  # per inch
        ({282: 300.0, 283: 300.0, 296: 2}, None),  # a printer's
        ({282: 2e6, 283: 1e6, 296: 3}, None),  # not square
        ({282: 2e6, 283: 2e6, 296: 1}, None),  # no unit
        ({282: 0.2, 283: 0.2, 296: 1, 270: "ImageJ=1.53\nunit=nm\n"}, 5.0),
        ({282: 50.0, 283: 50.0, 296: 1, 270: "ImageJ=1.53\nunit=\\u00B5m\n"}, 20.0),
    ],
)
def test_a_tiff_tells_the_edge_of_its_pixels_where_it_states_a_unit(tmp_path, tags, pixel_nm):
    Image.fromarray(np.zeros((4, 5), np.uint8)).save(tmp_path / "a.tif", tiffinfo=tags)
    assert read_picture(tmp_path / "a.tif").pixel_nm == (pixel_nm and pytest.approx(pixel_nm))


def test_the_edge_of_a_pixel_survives_a_tiff(tmp_path):
    write_picture(Picture(np.zeros((4, 5), np.uint8), 12.5), tmp_path / "a.tif")
    assert read_picture(tmp_path / "a.tif").pixel_nm == pytest.approx(12.5)


def png_header(width: int, height: int, bits: int, colour: int) -> bytes:
    body = b"IHDR" + struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + body + struct.pack(">I", zlib.crc32(body)) + bytes(4) + b"IDAT"
    )


def test_each_hostile_picture_ends_in_one_line_that_names_it(tmp_path):
    Image.fromarray(RNG.integers(0, 255, (40, 50), np.uint8)).save(tmp_path / "whole.png")
    pages = [Image.fromarray(np.zeros((4, 5), np.uint8))] * 3
    pages[0].save(tmp_path / "pages.tif", save_all=True, append_images=pages[1:])
    files = {
        "bomb.png": (png_header(30000, 30000, 8, 0), "pixels; cut it into tiles"),
        "half.png": ((tmp_path / "whole.png").read_bytes()[:500], "cannot read"),
        "text.png": (b"hello", "no PNG, TIFF or JPEG"),
        "empty.tif": (b"", "no PNG, TIFF or JPEG"),
        "deep.png": (png_header(4, 5, 16, 2), "16 bits per colour"),
    }
    for name, (content, _) in files.items():
        (tmp_path / name).write_bytes(content)
    files |= {"none.png": (b"", "no file"), "pages.tif": (b"", "3 pages")}
    for name, (_, words) in files.items():
        with pytest.raises(MedsegError, match=words) as caught:
            read_picture(tmp_path / name)
        assert name in str(caught.value)


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::RuntimeWarning")  # Pillow's own
@pytest.mark.parametrize("kind", ["PNG", "TIFF", "JPEG"])
def test_only_our_error_comes_of_a_picture_damaged_at_random(tmp_path, kind):
    Image.fromarray(RNG.integers(0, 255, (20, 30, 3), np.uint8)).save(tmp_path / "whole", kind)
    whole = (tmp_path / "whole").read_bytes()
    for number in range(300):
        content = bytearray(whole)
        for place in RNG.integers(len(whole) if number % 2 else 100, size=3):
            content[place if kind != "TIFF" or number % 2 else -place] = RNG.integers(256)
        (tmp_path / "damaged").write_bytes(content[: None if number % 5 else RNG.integers(len(whole))])
        with contextlib.suppress(MedsegError):
            read_picture(tmp_path / "damaged")


def test_a_picture_that_its_bytes_cannot_hold_is_refused_before_it_is_made(tmp_path):
    write_picture(Picture(np.zeros((7, 9), np.uint8)), tmp_path / "a.png")
    content = bytearray((tmp_path / "a.png").read_bytes())
    content[16:24] = struct.pack(">2I", 12_000, 12_000)
    content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(MedsegError, match="promises 12000 x 12000 pixels"):
        read_picture(tmp_path / "a.png")
    write_picture(Picture(np.zeros((5000, 5000), np.uint8)), tmp_path / "zeros.png")
    assert read_picture(tmp_path / "zeros.png").pixels.shape == (5000, 5000)


def test_libtiff_says_nothing_of_its_own_and_other_errors_are_heard_again(tmp_path, capfd):
    pixels = Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8))
    pixels.save(tmp_path / "a.tif", compression="tiff_lzw")
    content = (tmp_path / "a.tif").read_bytes()
    (tmp_path / "a.tif").write_bytes(content.replace(struct.pack("<HHI", 273, 4, 1), struct.pack("<HHI", 999, 4, 1)))
    with pytest.raises(MedsegError, match="cannot read"):
        read_picture(tmp_path / "a.tif")
    assert capfd.readouterr().err == ""
    os.write(2, b"heard")
    assert capfd.readouterr().err == "heard"
