"""Damaged volumes and pictures: every reader answers or refuses in one line, quietly, soon, and in little memory."""

import gzip
import io
import re
import struct
import zlib
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image
from tests.fuzzing import Rng, Tally, Twist, changed, odd_number, odd_text

from medseg_core.info import describe
from medseg_core.io import read_grid, read_picture, read_series, read_volume
from medseg_core.labelmaps import label_map
from medseg_core.volume import Volume

VOXELS = np.random.default_rng(0).integers(0, 4, (4, 5, 6))
AFFINE = nib.affines.from_matvec(nib.eulerangles.euler2mat(0.1, 0.2, 0.3) * (0.8, 0.9, 2.5), (1, 2, 3))
NRRD = (
    "NRRD0004\ntype: short\ndimension: 3\nspace: left-posterior-superior\nsizes: 4 5 6\nspace directions: (0.8,0,0) "
    "(0,0.9,0) (0,0,2.5)\nkinds: domain domain domain\nendian: little\nencoding: {}\nspace origin: (1,2,3)\n\n"
)
META = (
    "ObjectType = Image\nNDims = 3\nBinaryData = True\nBinaryDataByteOrderMSB = False\nCompressedData = {}\n"
    "TransformMatrix = 1 0 0 0 1 0 0 0 1\nOffset = 1 2 3\nElementSpacing = 0.8 0.9 2.5\nDimSize = 4 5 6\n"
    "ElementType = MET_SHORT\nElementDataFile = LOCAL\n"
)


def nifti(voxels: np.ndarray = VOXELS, dtype: str = "i2", kind: type = nib.Nifti1Image, **fields) -> bytes:
    image = kind(voxels.astype(dtype), AFFINE, dtype=np.dtype(dtype))
    for name, value in fields.items():
        image.header[name] = value
    return image.to_bytes()


def picture(mode: str, kind: str, **options) -> bytes:
    pixels = np.random.default_rng(1).integers(0, 4, (7, 9))
    image = Image.fromarray(pixels.astype({"I;16": "u2", "F": "f4"}.get(mode, "u1")))
    image = image if mode in ("I;16", "F", "L") else image.convert(mode)
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


RAW = VOXELS.astype("<i2").tobytes(order="F")
VOLUMES = {
    "i2.nii": nifti(),
    "u1.nii": nifti(dtype="u1", scl_slope=1, scl_inter=0),
    "big.nii": nib.Nifti1Image(VOXELS.astype(">f4"), AFFINE, nib.Nifti1Header(endianness=">")).to_bytes(),
    "scaled.nii": nifti(scl_slope=0.5, scl_inter=-3),
    "f8.nii": nifti(dtype="f8"),
    "i8.nii.gz": gzip.compress(nifti(dtype="i8"), mtime=0),
    "qform.nii": nifti(sform_code=0),
    "base.nii": nifti(sform_code=0, qform_code=0),
    "two.nii.gz": gzip.compress(nifti(kind=nib.Nifti2Image), mtime=0),
    "series.nii.gz": gzip.compress(nifti(VOXELS.reshape(4, 5, 2, 3), xyzt_units=10), mtime=0),
    "series.nii": nifti(VOXELS.reshape(4, 5, 2, 3), dtype="f4", xyzt_units=10),
    "raw.nrrd": NRRD.format("raw").encode() + RAW,
    "gzip.nrrd": NRRD.format("gzip").encode() + gzip.compress(RAW, mtime=0),
    "raw.mha": META.format("False").encode() + RAW,
    "zlib.mha": META.format("True").encode() + zlib.compress(RAW),
}
PICTURES = {
    "grey.png": picture("L", "PNG"),
    "deep.png": picture("I;16", "PNG"),
    "palette.png": picture("P", "PNG"),
    "two.png": picture("1", "PNG"),
    "colour.png": picture("RGB", "PNG", dpi=(300, 300)),
    "glass.png": picture("RGBA", "PNG"),
    "raw.tif": picture("L", "TIFF", resolution_unit=3, x_resolution=2e6, y_resolution=2e6),
    "lzw.tif": picture("I;16", "TIFF", compression="tiff_lzw"),
    "zip.tiff": picture("RGB", "TIFF", compression="tiff_adobe_deflate"),
    "float.tif": picture("F", "TIFF"),
    "colour.jpg": picture("RGB", "JPEG"),
    "grey.jpeg": picture("L", "JPEG"),
}


def twist_nifti(content: bytes, rng: Rng) -> bytes:
    """A field of the header at an extreme; under gzip also a length or a sum that lies."""
    zipped = content[:2] == b"\x1f\x8b"
    if zipped and rng.random() < 0.2:
        return content[:-8] + struct.pack("<II", *(int(rng.integers(2**32)) for _ in "ab"))
    inner = gzip.decompress(content) if zipped else content
    kind = nib.Nifti2Header if len(inner) > 600 and inner[4:7] == b"n+2" else nib.Nifti1Header
    header = kind(inner[: kind.template_dtype.itemsize], check=False)
    names = header.structarr.dtype.names
    likely = ("dim", "pixdim", "vox_offset", "datatype", "srow_x", "quatern_b", "sform_code", "scl_slope", "xyzt_units")
    field = header.structarr[str(rng.choice(likely if rng.random() < 0.6 else names))]
    flat = field.reshape(-1)
    if flat.dtype.kind in "SV":
        flat[:] = rng.bytes(flat.dtype.itemsize)
    else:
        odd, at = np.float64(min(odd_number(rng), 1e300)), rng.integers(len(flat))
        with np.errstate(over="ignore"):
            if flat.dtype.kind == "f":
                flat[at] = odd
            else:
                limits = np.iinfo(flat.dtype)
                flat[at] = min(max(int(np.nan_to_num(odd)), limits.min), limits.max)
    inner = header.structarr.tobytes() + inner[len(header.structarr.tobytes()) :]
    return gzip.compress(inner, mtime=0) if zipped else inner


def twist_lines(content: bytes, rng: Rng) -> bytes:
    """One value of a header of `name: value` lines turned into something that nobody meant, doubled, or taken out."""
    spans = [m.span() for m in re.finditer(rb"(?<=[:=] )[^\n]+", content[:600])]
    first, last = spans[rng.integers(len(spans))]
    line = content.rfind(b"\n", 0, first) + 1
    match int(rng.integers(4)):
        case 0:
            return content[:line] + content[last + 1 :]
        case 1:
            return content[: last + 1] + content[line : last + 1] + content[last + 1 :]
    words = content[first:last].split(b" ")
    odd = str(odd_number(rng)) if rng.random() < 0.6 else odd_text(rng)
    words[rng.integers(len(words))] = odd.encode("utf-8", "surrogatepass")
    return content[:first] + b" ".join(words) + content[last:]


def twist_png(content: bytes, rng: Rng) -> bytes:
    """A chunk with other content and a right sum, twice, missing, or out of its place."""
    if content[1:4] != b"PNG":
        return content
    chunks, at = [], 8
    while at + 12 <= len(content):
        (size,) = struct.unpack(">I", content[at : at + 4])
        chunks.append((content[at + 4 : at + 8], content[at + 8 : at + 8 + size]))
        at += 12 + size
    n = int(rng.integers(len(chunks)))
    kind, body = chunks[n]
    match int(rng.integers(5)):
        case 0:
            chunks.insert(int(rng.integers(len(chunks))), chunks.pop(n))
        case 1:
            chunks.insert(n, chunks[n])
        case 2:
            del chunks[n]
        case 3:
            more = (b"tRNS", b"PLTE", b"pHYs", b"gAMA", b"acTL", b"fcTL", b"iCCP", b"zTXt", b"eXIf", b"sBIT")
            chunks.insert(n, (more[rng.integers(len(more))], rng.bytes(int(rng.integers(0, 40)))))
        case _ if kind == b"IHDR":
            sizes = rng.choice((0, 1, 7, 9, 10_000, 13_000, 2**31 - 1, 2**32 - 1), 2).tolist()
            chunks[n] = (kind, struct.pack(">2I", *sizes) + bytes(rng.integers(0, (17, 7, 2, 2, 2), 5).tolist()))
        case _:
            inner = zlib.decompress(body) if kind == b"IDAT" else body
            inner = inner[: rng.integers(len(inner) + 1)] + rng.bytes(int(rng.integers(0, 9)))
            chunks[n] = (kind, zlib.compress(inner) if kind == b"IDAT" else inner)
    packed = (struct.pack(">I", len(b)) + k + b + struct.pack(">I", zlib.crc32(k + b)) for k, b in chunks)
    return content[:8] + b"".join(packed)


def twists_of(name: str) -> tuple[Twist, ...]:
    if ".nii" in name:
        return (twist_nifti, twist_nifti)
    return (twist_png, twist_png) if name.endswith(".png") else (twist_lines,) * (name.endswith(("nrrd", "mha")))


def placed(path: Path) -> None:
    """Reads a volume and its grid, which agree and lie somewhere."""
    volume = read_volume(path)
    assert isinstance(volume, Volume)
    assert read_grid(path).differs(volume.grid, tolerance_mm=0) is None
    assert np.isfinite(volume.affine).all()
    assert min(volume.spacing_mm) > 0
    assert volume.voxels.dtype.isnative


def labels(path: Path) -> None:
    """Reads ids, which are whole and small."""
    held = label_map(path).read()
    ids = held.voxels if isinstance(held, Volume) else held.pixels
    assert ids.dtype in (np.uint8, np.uint16)


DOORS = {"volume": placed, "series": read_series, "picture": read_picture, "info": describe, "labels": labels}


def mutations(rng: Rng, num: int, seeds: dict[str, bytes], doors: list[str], folder: Path) -> Tally:
    tally = Tally()
    for n in range(num):
        name = list(seeds)[n % len(seeds)]
        path = folder / name
        path.write_bytes(changed(seeds[name], twists_of(name), rng))
        for door in doors:
            tally.through(DOORS[door], path, f"{name} through {door}")
        path.unlink()
    return tally


def slice_of_ct() -> bytes:
    """DICOM, by pydicom."""
    from pydicom import Dataset
    from pydicom.dataset import FileMetaDataset
    from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

    image, file = Dataset(), io.BytesIO()
    image.SOPClassUID, image.SOPInstanceUID, image.SeriesInstanceUID, image.Modality = CTImageStorage, "1.2", "1", "CT"
    image.Rows, image.Columns, image.PixelSpacing, image.SliceThickness = 5, 4, [0.9, 0.8], 2.5
    image.ImageOrientationPatient, image.ImagePositionPatient = [1, 0, 0, 0, 1, 0], [1, 2, 3]
    image.SamplesPerPixel, image.PhotometricInterpretation = 1, "MONOCHROME2"
    image.BitsAllocated, image.BitsStored, image.HighBit, image.PixelRepresentation = 16, 16, 15, 1
    image.RescaleSlope, image.RescaleIntercept = 1, -1024
    image.PixelData = VOXELS[:, :, 0].T.astype("<i2").tobytes()
    image["PixelData"].VR = "OW"
    image.file_meta = FileMetaDataset()
    image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    image.save_as(file, enforce_file_format=True)
    return file.getvalue()


def test_30_damaged_slices_of_dicom_are_read_or_refused_in_one_line(tmp_path, capfd):
    tally = mutations(np.random.default_rng(6), 30, {"one.dcm": slice_of_ct()}, ["volume", "info"], tmp_path)
    assert min(tally.values()) > 5, tally
    assert capfd.readouterr().err == ""


def test_200_damaged_volumes_are_read_or_refused_in_one_line(tmp_path, capfd):
    tally = mutations(np.random.default_rng(1), 200, VOLUMES, ["volume", "series", "info", "labels"], tmp_path)
    assert min(tally.values()) > 100, tally  # neither all sound nor all refused
    assert capfd.readouterr().err == ""


def test_100_damaged_pictures_are_read_or_refused_in_one_line(tmp_path, capfd):
    tally = mutations(np.random.default_rng(2), 100, PICTURES, ["picture", "info", "labels"], tmp_path)
    assert min(tally.values()) > 50, tally
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("name", [*VOLUMES, *PICTURES])
def test_the_sound_files_are_read(tmp_path, name):
    (tmp_path / name).write_bytes((VOLUMES | PICTURES)[name])
    assert describe(tmp_path / name)["warnings"] is not None
