"""NRRD and MetaImage, the formats of 3D Slicer and ITK, read from their specifications.

teem.sourceforge.net/nrrd/format.html and itk.org/Wiki/ITK/MetaIO/Documentation, geometry as ITK understands them. ITK's
own readers are not used: a damaged MetaImage can end the process (NDims = 400) or give wrong voxels without an error
(a bad zlib stream).
"""

import io
import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PureWindowsPath
from typing import BinaryIO

import numpy as np
from isal import igzip_lib

from medseg_core.errors import MedsegError, meant
from medseg_core.grid import Grid
from medseg_core.nifti import BEST_RATIO, PIECE, Header, Stream, read_stored
from medseg_core.volume import Volume

SUFFIXES = (".nrrd", ".nhdr", ".mha", ".mhd")
AXES_MOST = 16  # as in both formats' own libraries
HEADER_MOST = 1 << 22  # bytes; a segmentation of a thousand segments has a header of half a megabyte
SQUARE = 1e-3  # largest cosine between axes; matrices are printed with four digits and more
NRRD_TYPES = {
    name: code
    for code, names in {
        "i1": "signed char,int8,int8_t",
        "u1": "uchar,unsigned char,uint8,uint8_t",
        "i2": "short,short int,signed short,signed short int,int16,int16_t",
        "u2": "ushort,unsigned short,unsigned short int,uint16,uint16_t",
        "i4": "int,signed int,int32,int32_t",
        "u4": "uint,unsigned int,uint32,uint32_t",
        "i8": "longlong,long long,long long int,signed long long,signed long long int,int64,int64_t",
        "u8": "ulonglong,unsigned long long,unsigned long long int,uint64,uint64_t",
        "f4": "float",
        "f8": "double",
    }.items()
    for name in names.split(",")
}
META_TYPES = {
    f"MET_{name}": code
    for code, names in {
        "i1": "CHAR",
        "u1": "UCHAR",
        "i2": "SHORT",
        "u2": "USHORT",
        "i4": "INT LONG",
        "u4": "UINT ULONG",
        "i8": "LONG_LONG",
        "u8": "ULONG_LONG",
        "f4": "FLOAT",
        "f8": "DOUBLE",
    }.items()
    for name in names.split()
}
SPACES = {  # to RAS
    **dict.fromkeys(("right-anterior-superior", "ras"), (1.0, 1.0, 1.0)),
    **dict.fromkeys(("left-anterior-superior", "las"), (-1.0, 1.0, 1.0)),
    **dict.fromkeys(("left-posterior-superior", "lps"), (-1.0, -1.0, 1.0)),
}
SPATIAL = {"domain", "space", "???", "none"}  # kinds of NRRD axes along which the patient lies

Fields = dict[str, str]
Vector = Sequence[float] | None  # mm from a voxel to the next, None along an axis that is not in space


def read_itk(path: Path) -> Volume:
    """A volume from .nrrd, .nhdr, .seg.nrrd, .mha or .mhd, raw or gzip, in the file's axis order and dtype.

    Axes of length 1 beyond the third are dropped; a plane gets a third axis of 1 mm. Without a named space the axes of
    an NRRD file are taken for left, posterior, superior, as ITK takes them. Detached voxels must lie beside the header
    or below.

    Raises:
        MedsegError: missing, unreadable, damaged, cut short, another encoding; several channels, layers or frames; axes
            that are not perpendicular; units other than mm; voxels elsewhere or in several files; or a header that
            promises more than the file can hold, before anything is allocated.
    """
    with _opened(path) as (header, stream):
        grid = header.grid()
        return Volume(read_stored(header, stream), grid.affine)


def itk_grid(path: Path) -> Grid:
    """Where a volume lies, from its header alone; errors as `read_itk`."""
    with _opened(path) as (header, _):
        return header.grid()


@contextmanager
def _opened(path: Path) -> Iterator[tuple[Header, Stream]]:
    """Header and stream of voxels, the stream standing at the first one."""
    path = Path(path)
    try:
        header, voxels, packed = _described(path)
        with voxels.open("rb", buffering=0) as file:
            size = file.seek(0, 2)
            start = header.start if header.start >= 0 else size - header.num_bytes
            _check_promise(header, holds=(size - max(start, 0)) * (BEST_RATIO if packed else 1), size=size)
            file.seek(start)
            yield header, _Inflated(file) if packed else file
    except EOFError:
        raise MedsegError(f"{path} is cut short: its compressed voxels end early; copy or export it again") from None
    except igzip_lib.error as error:
        raise MedsegError(f"{path} is damaged: {error}; copy or export it again") from None
    except FileNotFoundError as error:
        missing = Path(error.filename)
        near = meant(missing.name, (p.name for p in path.parent.iterdir())) if path.parent.is_dir() else ""
        beside = "" if missing == path else f", in which the voxels of {path} should be"
        raise MedsegError(f"there is no file {missing}{beside}{near}") from None
    except OSError as error:
        raise MedsegError(f"cannot read {path}: {error.strerror or error}") from None


def _check_promise(header: Header, *, holds: int, size: int) -> None:
    if header.num_bytes > holds:
        raise MedsegError(
            f"{header.path} promises {' x '.join(map(str, header.shape))} voxels of {header.dtype}, and {size} bytes "
            f"hold at most {max(0, holds) // header.dtype.itemsize} of them: it is cut short, or its header is "
            "damaged; copy or export it again"
        )


def _described(path: Path) -> tuple[Header, Path, bool]:
    """The header, the file that holds the voxels, and whether they are compressed."""
    with path.open("rb") as file:
        head = file.read(HEADER_MOST)
    end = re.search(rb"^[ \t]*ElementDataFile[ \t]*[=:][^\n]*(?:\n|\Z)", head, re.MULTILINE)
    try:
        with np.errstate(all="ignore"):  # what is not finite is refused by the grid
            if re.match(rb"NRRD000[1-5]\r?\n", head):
                return _nrrd(path, head)
            if end:
                return _meta(path, head[: end.end()])
    except (ValueError, KeyError, OverflowError) as error:
        reason = f"{error} is missing" if isinstance(error, KeyError) else error
        raise MedsegError(f"{path} has a damaged header: {reason}; export it again") from None
    raise MedsegError(f"{path} is neither NRRD nor MetaImage (it starts with {head[:8]!r}); export it again")


def _fields(text: bytes, separator: str) -> Fields:
    """What stands in the lines of a header, by names in small letters without spaces; no `key:=value`, no comments."""
    fields: Fields = {}
    for line in text.decode("utf-8", "replace").splitlines():
        if not line.strip() or line.startswith("#") or ":=" in line:
            continue
        name, *value = re.split(separator, line.strip(), maxsplit=1)
        name = name.lower().replace(" ", "")
        if not value:
            raise ValueError(f"there is no value in {line[:60]!r}")
        if name in fields:
            raise ValueError(f"{name!r} stands there twice")
        fields[name] = value[0].strip()
    return fields


def _nrrd(path: Path, head: bytes) -> tuple[Header, Path, bool]:
    end = re.search(rb"\r?\n\r?\n", head)
    text = head[head.index(b"\n") + 1 : end.start() if end else len(head)]
    fields = _fields(text, r":(?:\s|$)")
    sizes = [int(size) for size in fields["sizes"].split()]
    kind, encoding = fields["type"].lower(), fields["encoding"].lower()
    if kind not in NRRD_TYPES or encoding not in ("raw", "gzip", "gz"):
        raise MedsegError(f"{path} holds {kind} as {encoding} where raw or gzip numbers are meant; save it again")
    order = {"little": "<", "big": ">"}[fields["endian"].lower()] if NRRD_TYPES[kind][1] != "1" else "|"
    skipped, packed = int(fields.get("byteskip", 0)), encoding != "raw"
    if "lineskip" in fields or (skipped and packed) or skipped < -1:
        raise MedsegError(f"{path} skips lines or packed bytes before its voxels; save it again, attached")
    detached = fields.get("datafile")
    if not detached and not end:
        raise ValueError("it ends before its voxels begin")
    start = skipped if detached or skipped < 0 else end.end() + skipped  # type: ignore[union-attr]
    shape, affine = _placed(path, sizes, *_nrrd_place(path, fields, sizes))
    header = Header(path, shape, np.dtype(order + NRRD_TYPES[kind]), affine, 1.0, 0.0, start, None)
    return header, _beside(path, detached) if detached else path, packed


def _nrrd_place(path: Path, fields: Fields, sizes: list[int]) -> tuple[list[Vector], np.ndarray]:
    """Steps along the axes and origin, in RAS mm."""
    space = fields.get("space", "left-posterior-superior")
    units = set(re.findall(r'"([^"]*)"', fields.get("spaceunits", "") + fields.get("units", ""))) - {"", "mm", "???"}
    if space.lower() not in SPACES or units:
        said = f"the units {', '.join(sorted(units))}" if units else f"the space {space!r}"
        raise MedsegError(f"{path} has {said} where RAS, LAS or LPS in mm is meant; save it again in 3D Slicer")
    if "spacedirections" in fields:
        found = re.findall(r"none|\([^()]*\)", fields["spacedirections"])
        steps = [None if one == "none" else _vector(one) for one in found]
    elif "axismins" in fields or "space" in fields:
        raise MedsegError(f"{path} has no space directions; save it again in 3D Slicer")
    else:
        spacings = [float(s) for s in fields.get("spacings", "1 " * len(sizes)).split()]
        steps = [None if math.isnan(s) else [s * (i == j) for j in range(3)] for i, s in enumerate(spacings)]
    kinds = fields.get("kinds", "??? " * len(sizes)).split()
    steps = [step if kind.lower() in SPATIAL else None for step, kind in zip(steps, kinds, strict=True)]
    to_ras = np.array(SPACES[space.lower()])
    origin = _vector(fields["spaceorigin"]) if "spaceorigin" in fields else []
    return [step and _three(step) * to_ras for step in steps], _three(origin) * to_ras


def _meta(path: Path, head: bytes) -> tuple[Header, Path, bool]:
    fields = _fields(head, r"\s*[=:]\s*")
    sizes = [int(size) for size in fields["dimsize"].split()]
    kind, name = fields["elementtype"], fields["elementdatafile"]
    channels, skipped = int(fields.get("elementnumberofchannels", 1)), int(fields.get("headersize", 0))
    if kind not in META_TYPES or channels != 1 or not _true(fields.get("binarydata", "True")):
        raise MedsegError(f"{path} holds {channels} x {kind} where one binary number per voxel is meant; save it again")
    num_axes, packed, local = int(fields["ndims"]), _true(fields.get("compresseddata", "")), name.upper() == "LOCAL"
    if num_axes != len(sizes) or num_axes > AXES_MOST:
        raise ValueError(f"NDims = {num_axes} and {len(sizes)} sizes")
    if skipped < -1 or (skipped and packed) or (skipped > 0 and local):
        raise ValueError(f"HeaderSize = {skipped} where voxels are compressed or follow the header")
    big = _true(fields.get("binarydatabyteordermsb", fields.get("elementbyteordermsb", "")))
    matrix = _first(fields, ("transformmatrix", "rotation", "orientation"), np.eye(num_axes))
    spacing = _first(fields, ("elementspacing", "elementsize"), np.ones(num_axes))
    origin = _first(fields, ("offset", "position", "origin"), np.zeros(num_axes))
    to_ras = np.array(SPACES["lps"])
    steps = [_three(step) * to_ras for step in matrix * spacing[:, None]]
    shape, affine = _placed(path, sizes, [*steps[:3], *[None for _ in steps[3:]]], _three(origin) * to_ras)
    start = len(head) if local and not skipped else skipped
    header = Header(path, shape, np.dtype((">" if big else "<") + META_TYPES[kind]), affine, 1.0, 0.0, start, None)
    return header, path if local else _beside(path, name), packed


def _true(text: str) -> bool:
    return text[:1] in ("T", "t", "1")


def _first(fields: Fields, names: Sequence[str], default: np.ndarray) -> np.ndarray:
    """The numbers of the first field that is there."""
    found = next((fields[name] for name in names if name in fields), None)
    return default if found is None else np.array(found.split(), dtype=np.float64).reshape(default.shape)


def _vector(text: str) -> list[float]:
    return [float(number) for number in text.strip("() ").split(",")]


def _three(numbers: Sequence[float]) -> np.ndarray:
    """The first three components; those of a plane end with 0."""
    return np.array([*numbers, 0.0, 0.0, 0.0][:3], dtype=np.float64)


def _placed(
    path: Path, sizes: list[int], steps: Sequence[Vector], origin: np.ndarray
) -> tuple[tuple[int, ...], np.ndarray]:
    """Shape and affine of the three axes in space."""
    if len(sizes) != len(steps) or min(sizes, default=0) < 1:
        raise ValueError(f"sizes {sizes} of {len(steps)} axes")
    kept = [(n, step) for n, step in zip(sizes, steps, strict=True) if n > 1 or step is not None]
    if any(step is None for _, step in kept) or len(kept) not in (2, 3):
        raise MedsegError(
            f"{path} has the axes {' x '.join(map(str, sizes))} where a volume has three in space: it holds layers (of "
            "segments that overlap), channels or frames; save each into a file of its own"
        )
    vectors = [step for _, step in kept]
    if len(kept) == 2:
        across = np.cross(*vectors)
        vectors.append(across / (np.linalg.norm(across) or 1.0))
    affine = np.eye(4)
    affine[:3] = np.column_stack([*vectors, origin]) + 0.0  # no -0.0
    lengths = np.linalg.norm(affine[:3, :3], axis=0)
    if lengths.all() and np.isfinite(lengths).all() and np.isfinite(affine).all():
        cosines = (affine[:3, :3] / lengths).T @ (affine[:3, :3] / lengths) - np.eye(3)
        if np.abs(cosines).max() > SQUARE:
            raise MedsegError(
                f"{path} has axes that are not perpendicular (cosine {np.abs(cosines).max():.3g}); resample it first"
            )
    return (*(n for n, _ in kept), *[1] * (3 - len(kept))), affine


def _beside(path: Path, name: str) -> Path:
    """The one file of voxels of a detached header."""
    parts = PureWindowsPath(name)  # knows both slashes
    if parts.anchor or ".." in parts.parts or "\0" in name:
        raise MedsegError(f"{path} says that its voxels are in {name!r}, outside its folder; put them beside it")
    if re.match(r"list(\s|$)", name, re.IGNORECASE) or "%" in name:
        raise MedsegError(f"{path} says that its voxels are in several files ({name!r}); save them as one")
    return path.parent / name


class _Inflated(io.RawIOBase):
    """What a gzip or zlib stream holds, from where its file stands; ISA-L checks the sum at the end."""

    def __init__(self, file: BinaryIO | io.FileIO) -> None:
        super().__init__()
        self.file = file
        start = file.tell()
        gzipped = file.read(2) == b"\x1f\x8b"
        file.seek(start)
        self.unpacker = igzip_lib.IgzipDecompressor(flag=igzip_lib.DECOMP_GZIP if gzipped else igzip_lib.DECOMP_ZLIB)

    def readable(self) -> bool:
        return True

    def readinto(self, room: memoryview) -> int:  # type: ignore[override]
        while not self.unpacker.eof:
            more = self.file.read(PIECE) if self.unpacker.needs_input else b""
            if self.unpacker.needs_input and not more:
                raise EOFError
            part = self.unpacker.decompress(more, len(room))
            if part:
                room[: len(part)] = part
                return len(part)
        return 0
