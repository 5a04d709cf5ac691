import contextlib
import gzip
import zlib
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from medseg_core.errors import MedsegError
from medseg_core.io import case_name, read_grid, read_volume
from medseg_core.itk import itk_grid, read_itk

RNG = np.random.default_rng(0)
VOXELS = RNG.integers(-1000, 1000, (4, 5, 6)).astype(np.int16)
RAW = VOXELS.tobytes(order="F")
TURNED = nib.eulerangles.euler2mat(0.1, 0.2, 0.3) * (0.8, 0.9, 2.5)  # columns: mm along X, Y, Z
CORNER = np.array([1.0, 2.0, 3.0])
LPS = np.diag([-1, -1, 1, 1]) @ nib.affines.from_matvec(TURNED, CORNER)  # of a file that counts to the left, back, head

NRRD = {
    "type": "short",
    "dimension": "3",
    "space": "left-posterior-superior",
    "sizes": "4 5 6",
    "space directions": " ".join(f"({','.join(map(repr, step))})" for step in TURNED.T.tolist()),
    "kinds": "domain domain domain",
    "endian": "little",
    "encoding": "raw",
    "space origin": "(1,2,3)",
}
META = {
    "ObjectType": "Image",
    "NDims": "3",
    "BinaryData": "True",
    "BinaryDataByteOrderMSB": "False",
    "CompressedData": "False",
    "TransformMatrix": " ".join(map(repr, (TURNED / (0.8, 0.9, 2.5)).T.ravel().tolist())),
    "Offset": "1 2 3",
    "ElementSpacing": "0.8 0.9 2.5",
    "DimSize": "4 5 6",
    "ElementType": "MET_SHORT",
    "ElementDataFile": "LOCAL",
}


def nrrd(path: Path, content: bytes = RAW, **changes) -> Path:
    """By hand; underscores in names of fields are spaces, and None leaves one out."""
    fields = NRRD | {name.replace("_", " "): value for name, value in changes.items()}
    lines = [f"{name}: {value}" for name, value in fields.items() if value is not None]
    path.write_bytes("\n".join(["NRRD0004", "# by hand", *lines, "Note:=x: y", "", ""]).encode() + content)
    return path


def meta(path: Path, content: bytes = RAW, **changes) -> Path:
    """By hand; the file of voxels comes last, as it must."""
    fields = META | changes
    fields["ElementDataFile"] = fields.pop("ElementDataFile")
    lines = [f"{name} = {value}" for name, value in fields.items() if value is not None]
    path.write_bytes("\n".join([*lines, ""]).encode() + content)
    return path


def assert_is(path: Path, voxels: np.ndarray = VOXELS, affine: np.ndarray = LPS) -> None:
    volume = read_volume(path)
    assert volume.voxels.dtype == voxels.dtype
    assert volume.voxels.dtype.isnative
    assert volume.voxels.flags.f_contiguous
    np.testing.assert_array_equal(volume.voxels, voxels)
    np.testing.assert_allclose(volume.affine, affine, atol=1e-12)
    np.testing.assert_array_equal(read_grid(path).affine, volume.affine)
    assert read_grid(path).shape == volume.voxels.shape


def test_voxels_and_place_come_out_in_ras(tmp_path):
    assert_is(nrrd(tmp_path / "a.nrrd"))
    assert_is(meta(tmp_path / "a.mha"))


def test_compressed_voxels_are_the_same(tmp_path):
    assert_is(nrrd(tmp_path / "a.seg.nrrd", gzip.compress(RAW), encoding="gzip"))
    assert_is(nrrd(tmp_path / "b.nrrd", gzip.compress(RAW) + b"trailing", encoding="gz"))
    assert_is(meta(tmp_path / "a.mha", zlib.compress(RAW), CompressedData="True"))
    assert_is(meta(tmp_path / "b.mha", gzip.compress(RAW), CompressedData="True"))


def test_detached_voxels_lie_beside_the_header_or_below(tmp_path):
    (tmp_path / "below").mkdir()
    (tmp_path / "a.raw").write_bytes(RAW)
    (tmp_path / "below" / "a.gz").write_bytes(gzip.compress(RAW))
    (tmp_path / "headed.raw").write_bytes(b"twelve bytes" + RAW)
    assert_is(nrrd(tmp_path / "a.nhdr", b"", data_file="a.raw"))
    assert_is(nrrd(tmp_path / "b.nhdr", b"", encoding="gzip", datafile="./below/a.gz"))
    assert_is(nrrd(tmp_path / "c.nhdr", b"", data_file="headed.raw", byte_skip="12"))
    assert_is(nrrd(tmp_path / "d.nhdr", b"", data_file="headed.raw", byte_skip="-1"))
    assert_is(meta(tmp_path / "a.mhd", b"", ElementDataFile="a.raw"))
    assert_is(meta(tmp_path / "b.mhd", b"", ElementDataFile="headed.raw", HeaderSize="12"))
    assert_is(meta(tmp_path / "c.mhd", b"", HeaderSize="-1", ElementDataFile="headed.raw"))


TYPES = {"i1": "int8", "u1": "uchar", "u2": "ushort", "i4": "int", "u4": "uint32_t", "i8": "long long int"}
TYPES |= {"u8": "uint64", "f4": "float", "f8": "double"}
META_TYPES = {"i1": "CHAR", "u1": "UCHAR", "u2": "USHORT", "i4": "LONG", "u4": "UINT", "i8": "LONG_LONG"}
META_TYPES |= {"u8": "ULONG_LONG", "f4": "FLOAT", "f8": "DOUBLE"}


@pytest.mark.parametrize("code", TYPES)
@pytest.mark.parametrize("order", "<>")
def test_every_type_is_kept_in_native_byte_order(tmp_path, code, order):
    voxels = (VOXELS % 100).astype(code)
    raw = voxels.astype(np.dtype(order + code)).tobytes(order="F")
    assert_is(nrrd(tmp_path / "a.nrrd", raw, type=TYPES[code], endian="little" if order == "<" else "big"), voxels)
    kind, big = f"MET_{META_TYPES[code]}", str(order == ">")
    assert_is(meta(tmp_path / "a.mha", raw, ElementType=kind, BinaryDataByteOrderMSB=big), voxels)


def test_bytes_need_no_byte_order(tmp_path):
    voxels = (VOXELS % 100).astype(np.uint8)
    assert_is(nrrd(tmp_path / "a.nrrd", voxels.tobytes(order="F"), type="uint8", endian=None), voxels)


@pytest.mark.parametrize(
    ("space", "to_ras"),
    [("right-anterior-superior", [1, 1, 1]), ("LAS", [-1, 1, 1]), ("left-posterior-superior", [-1, -1, 1])],
)
def test_the_named_space_says_where_left_and_front_are(tmp_path, space, to_ras):
    affine = np.diag([*to_ras, 1]) @ nib.affines.from_matvec(TURNED, CORNER)
    assert_is(nrrd(tmp_path / "a.nrrd", space=space), affine=affine)


def test_what_is_not_said_has_a_default(tmp_path):
    bare = {"space": None, "space_directions": None, "space_origin": None, "kinds": None}
    assert_is(nrrd(tmp_path / "a.nrrd", **bare), affine=np.diag([-1, -1, 1, 1]))
    assert_is(nrrd(tmp_path / "b.nrrd", **bare, spacings="0.8 0.9 2.5"), affine=np.diag([-0.8, -0.9, 2.5, 1]))
    bare = dict.fromkeys(("BinaryData", "BinaryDataByteOrderMSB", "CompressedData", "TransformMatrix", "Offset"))
    assert_is(meta(tmp_path / "a.mha", **bare), affine=np.diag([-0.8, -0.9, 2.5, 1]))
    size = {"ElementSpacing": None, "ElementSize": "0.8 0.9 2.5"}
    assert_is(meta(tmp_path / "b.mha", **bare, **size), affine=np.diag([-0.8, -0.9, 2.5, 1]))


def test_windows_line_ends_and_other_separators_read_the_same(tmp_path):
    for path in (nrrd(tmp_path / "a.nrrd", b""), meta(tmp_path / "a.mha", b"")):
        path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n") + RAW)
        assert_is(path)
    path = meta(tmp_path / "b.mha", b"")
    path.write_bytes(path.read_bytes().replace(b" = ", b": ") + RAW)
    assert_is(path)


def test_a_plane_gets_a_third_axis_of_one_mm(tmp_path):
    raw = VOXELS[..., 0].tobytes(order="F")
    flat = np.diag([-0.8, -0.9, 1, 1]) + np.outer([1, 0, 0, 0], [0, 0, 0, -1.0])
    plane = {"NDims": "2", "DimSize": "4 5", "ElementSpacing": "0.8 0.9", "Offset": "1 0", "TransformMatrix": "1 0 0 1"}
    assert_is(meta(tmp_path / "a.mha", raw, **plane), VOXELS[..., :1], flat)
    plane = {"dimension": "2", "sizes": "4 5", "kinds": None, "space": None, "space_directions": "(0.8,0) (0,0.9)"}
    assert_is(nrrd(tmp_path / "a.nrrd", raw, **plane, space_origin="(1,0)"), VOXELS[..., :1], flat)
    plane = {"dimension": "2", "sizes": "4 5", "kinds": None}  # in a space of three axes
    directions = NRRD["space directions"].rpartition(" ")[0]
    affine = LPS @ np.diag([1, 1, 1 / 2.5, 1])
    assert_is(nrrd(tmp_path / "b.nrrd", raw, **plane, space_directions=directions), VOXELS[..., :1], affine)


def test_axes_of_length_1_that_are_not_in_space_are_dropped(tmp_path):
    directions = NRRD["space directions"]
    first = {"sizes": "1 4 5 6", "kinds": "list domain domain domain", "space_directions": f"none {directions}"}
    assert_is(nrrd(tmp_path / "a.nrrd", dimension="4", **first))
    last = {"sizes": "4 5 6 1", "kinds": None, "space_directions": f"{directions} none"}
    assert_is(nrrd(tmp_path / "b.nrrd", dimension="4", **last))
    four = {"TransformMatrix": None, "Offset": "1 2 3 4", "ElementSpacing": "0.8 0.9 2.5 7"}
    affine = np.diag([-1, -1, 1, 1]) @ nib.affines.from_matvec(np.diag([0.8, 0.9, 2.5]), CORNER)
    assert_is(meta(tmp_path / "a.mha", NDims="4", DimSize="4 5 6 1", **four), affine=affine)


MOVING = {"space_directions": NRRD["space directions"] + " none"}
FOUR = {"TransformMatrix": None, "Offset": None, "ElementSpacing": None}
REFUSED = {  # changes of a healthy file and words of the message
    "no type": (nrrd, {"type": None}, "damaged header: 'type' is missing"),
    "block": (nrrd, {"type": "block"}, "holds block as raw"),
    "bzip2": (nrrd, {"encoding": "bzip2"}, "as bzip2 where raw or gzip"),
    "text": (nrrd, {"encoding": "ascii"}, "as ascii where raw or gzip"),
    "no endian": (nrrd, {"endian": None}, "'endian' is missing"),
    "negative": (nrrd, {"sizes": "4 -5 6"}, r"damaged header: sizes \[4, -5, 6\]"),
    "words": (nrrd, {"sizes": "4 five 6"}, "damaged header.*five"),
    "two sizes": (nrrd, {"sizes": "4 5"}, "damaged header"),
    "twice": (nrrd, {"data file": "a.raw", "datafile": "b.raw"}, "'datafile' stands there twice"),
    "sheared": (nrrd, {"space_directions": "(1,0,0) (0.1,1,0) (0,0,1)"}, "not perpendicular.*0.09"),
    "singular": (nrrd, {"space_directions": "(1,0,0) (0,1,0) (0,0,0)"}, "singular"),
    "nan": (nrrd, {"space_origin": "(nan,2,3)"}, "not finite"),
    "scanner": (nrrd, {"space": "scanner-xyz"}, "the space 'scanner-xyz'"),
    "microns": (nrrd, {"space_units": '"um" "um" "um"'}, "the units um"),
    "nowhere": (nrrd, {"space_directions": None}, "no space directions"),
    "lines": (nrrd, {"line_skip": "2"}, "skips lines or packed bytes"),
    "packed bytes": (nrrd, {"byte_skip": "2", "encoding": "gzip"}, "skips lines or packed bytes"),
    "skipped": (nrrd, {"byte_skip": "-2"}, "skips lines or packed bytes"),
    "colours": (nrrd, {"sizes": "3 4 10", "kinds": "RGB-color domain domain"}, "3 x 4 x 10 .* channels"),
    "frames": (nrrd, {"sizes": "4 5 6 2", "kinds": "domain domain domain time", **MOVING}, "4 x 5 x 6 x 2 .* frames"),
    "nrrd 9": (nrrd, {"sizes": "30000 30000 30000"}, "promises 30000 x 30000 x 30000 voxels of int16.*at most 120"),
    "absolute": (nrrd, {"data_file": "/etc/passwd"}, "'/etc/passwd', outside its folder"),
    "drive": (nrrd, {"data_file": r"C:\a.raw"}, "outside its folder"),
    "above": (nrrd, {"data_file": "below/../../a.raw"}, "outside its folder"),
    "list": (nrrd, {"data_file": "LIST 2"}, "in several files"),
    "pattern": (nrrd, {"data_file": "a%03d.raw 1 6 1"}, "in several files"),
    "absent": (nrrd, {"data_file": "b.raw"}, r"no file .*b\.raw, in which the voxels of .*; did you mean 'a.raw'"),
    "no size": (meta, {"DimSize": None}, "'dimsize' is missing"),
    "axes": (meta, {"NDims": "400"}, "NDims = 400 and 3 sizes"),  # ends ITK
    "many axes": (meta, {"NDims": "100000", "DimSize": "1 " * 100_000}, "NDims = 100000"),
    "zero": (meta, {"DimSize": "0 5 6"}, "damaged header"),
    "type": (meta, {"ElementType": "MET_FLOAT_MATRIX"}, "MET_FLOAT_MATRIX"),
    "channels": (meta, {"ElementNumberOfChannels": "3"}, "holds 3 x MET_SHORT"),
    "ascii": (meta, {"BinaryData": "False"}, "one binary number"),
    "tensor": (meta, {"NDims": "4", "DimSize": "4 5 2 3", **FOUR}, "4 x 5 x 2 x 3 .* frames"),
    "matrix": (meta, {"TransformMatrix": "1 0 0 0 1 0"}, "damaged header"),
    "leaning": (meta, {"TransformMatrix": "1 0.1 0 0 1 0 0 0 1"}, "not perpendicular"),
    "flat": (meta, {"ElementSpacing": "0 1 1"}, "singular"),
    "infinite": (meta, {"Offset": "inf 0 0"}, "not finite"),
    "header size": (meta, {"HeaderSize": "7"}, "HeaderSize = 7"),
    "packed header": (meta, {"HeaderSize": "-1", "CompressedData": "True"}, "HeaderSize = -1"),
    "meta 9": (meta, {"DimSize": "30000 30000 30000"}, "promises 30000 x 30000 x 30000 voxels of int16.*at most 120"),
    "meta above": (meta, {"ElementDataFile": "../a.raw"}, "outside its folder"),
    "slices": (meta, {"ElementDataFile": "LIST"}, "in several files"),
}


@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.parametrize("read", [read_itk, itk_grid])
def test_what_is_no_volume_ends_in_one_line_that_names_it(tmp_path, capfd, case, read):
    write, changes, words = REFUSED[case]
    (tmp_path / "a.raw").write_bytes(RAW)
    path = write(tmp_path / "x.any", **changes)
    with pytest.raises(MedsegError, match=words) as caught:
        read(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


def test_damaged_and_cut_files_end_in_one_line_that_names_them(tmp_path, capfd):
    sent, packed = gzip.compress(RAW), zlib.compress(RAW)
    raw, whole = nrrd(tmp_path / "raw.nrrd").read_bytes(), meta(tmp_path / "raw.mha").read_bytes()
    files = {
        "cut.nrrd": (raw[:-3], "at most 118 of them"),
        "cut.mha": (whole[:-3], "at most 118 of them"),
        "half.nrrd": (raw[:150], "damaged header"),
        "half.mha": (whole[:150], "neither NRRD nor MetaImage"),
        "empty.nrrd": (b"", "neither"),
        "text.mha": (b"hello", "neither NRRD nor MetaImage .*hello"),
        "cut_inside.nrrd": (nrrd(tmp_path / "a.nrrd", sent[:-9], encoding="gzip").read_bytes(), "cut short"),
        "cut_sum.nrrd": (nrrd(tmp_path / "a.nrrd", sent[:-3], encoding="gzip").read_bytes(), "cut short"),
        "sum.nrrd": (nrrd(tmp_path / "a.nrrd", sent[:-8] + bytes(8), encoding="gzip").read_bytes(), "damaged"),
        "few.nrrd": (nrrd(tmp_path / "a.nrrd", gzip.compress(RAW[:-2]), encoding="gzip").read_bytes(), "cut short"),
        "noise.nrrd": (nrrd(tmp_path / "a.nrrd", RNG.bytes(60), encoding="gzip").read_bytes(), "damaged"),
        "cut_inside.mha": (meta(tmp_path / "a.mha", packed[:-5], CompressedData="True").read_bytes(), "cut short"),
        "sum.mha": (meta(tmp_path / "a.mha", packed[:-4] + b"abcd", CompressedData="True").read_bytes(), "damaged"),
    }
    for name, (content, _) in files.items():
        (tmp_path / name).write_bytes(content)
    for name, (_, words) in {**files, "none.mha": (b"", r"no file .*none\.mha")}.items():
        with pytest.raises(MedsegError, match=words) as caught:
            read_volume(tmp_path / name)
        assert str(tmp_path / name) in str(caught.value)
        assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


def test_zeros_at_the_best_ratio_of_deflate_are_believed(tmp_path):
    packed = zlib.compressobj(9, zlib.DEFLATED, 31)
    content = packed.compress(bytes(200**3)) + packed.flush()
    assert 200**3 / len(content) > 900
    path = nrrd(tmp_path / "a.nrrd", content, sizes="200 200 200", type="uchar", encoding="gzip")
    assert not read_volume(path).voxels.any()


@pytest.mark.filterwarnings("ignore:overflow")  # of a damaged spacing
def test_only_our_error_comes_of_random_damage(tmp_path, capfd):
    for path in (
        nrrd(tmp_path / "a.nrrd", gzip.compress(RAW), encoding="gzip"),
        nrrd(tmp_path / "b.nrrd"),
        meta(tmp_path / "a.mha", zlib.compress(RAW), CompressedData="True"),
        meta(tmp_path / "b.mha"),
    ):
        whole = path.read_bytes()
        for number in range(150):
            content = bytearray(whole)
            for place in RNG.integers(len(whole) if number % 2 else len(whole) - len(RAW), size=3):
                content[place] = RNG.integers(256)
            path.write_bytes(content[: None if number % 5 else RNG.integers(len(content))])
            with contextlib.suppress(MedsegError):
                read_volume(path)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("name", "case"),
    [("a.nrrd", "a"), ("a.seg.nrrd", "a"), ("seg.nrrd", "seg"), ("a.b.MHA", "a.b"), ("a.nhdr", "a"), ("a.mhd", "a")],
)
def test_a_case_is_called_by_its_file_without_these_suffixes(name, case):
    assert case_name(Path(name)) == case


@pytest.mark.parametrize(
    ("file", "derived"),
    [
        ("slicer_ctchest/CTChest4.nrrd", "slicer_ctchest/derived/ct.nii.gz"),
        ("slicer_ctchest/Segmentation.seg.nrrd", "slicer_ctchest/derived/seg_multilabel.nii.gz"),
        ("spl_abdomen_labels/seg.nrrd", "spl_abdomen_labels/derived/seg_multilabel.nii.gz"),
    ],
)
def test_real_files_of_slicer_lie_where_their_derived_nifti_lie(data, file, derived):
    volume, other = read_volume(data / "ct_more" / file), read_volume(data / "ct_more" / derived)
    assert volume.grid.differs(other.grid, tolerance_mm=1e-3) is None
    np.testing.assert_array_equal(volume.voxels, other.voxels)


def test_segments_that_overlap_are_refused(data):
    with pytest.raises(MedsegError, match=r"2 x 128 x 128 x 34 .* layers \(of segments that overlap\)"):
        read_volume(data / "ct_more/slicer_ctchest/SegmentationOverlapping.seg.nrrd")
