"""NIfTI files as a checked header and a stream of voxels, inflated by ISA-L; hostile files end in one clear line."""

import io
import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from gzip import BadGzipFile
from pathlib import Path

import nibabel as nib
import numpy as np
from isal import igzip, igzip_lib

from medseg_core.errors import MedsegError, meant
from medseg_core.grid import Grid

BEST_RATIO = 1032  # no deflate stream expands further (zlib technical details: 258 bytes from 2 bits)
MM_PER_UNIT = {1: 1000.0, 2: 1.0, 3: 0.001}  # NIfTI-1 codes of metre, millimetre, micron; mm where nothing is stated
SECONDS_PER_UNIT = {8: 1.0, 16: 1e-3, 24: 1e-6}
PIECE = 1 << 18  # bytes; pieces that stay in the cache inflate four times faster than whole volumes

STARTS = {b"\x89PNG": "PNG", b"PK": "zip", b"ObjectType": "MetaImage", b"NRRD": "NRRD", b"II*": "TIFF", b"<": "XML"}
QUIET = logging.Logger("nibabel's own words about a header; ours name the file", level=logging.CRITICAL + 1)
Stream = io.RawIOBase | io.BufferedIOBase


@dataclass(frozen=True)
class Header:
    """What a file says about its voxels.

    Args:
        shape: all axes, without trailing ones beyond the third.
        dtype: as stored, with its byte order.
        slope, intercept: value = slope * stored + intercept; (1, 0) where the file gives none.
        start: bytes before the first voxel.
        frame_s: seconds between frames, None where the file does not say.
    """

    path: Path
    shape: tuple[int, ...]
    dtype: np.dtype
    affine: np.ndarray
    slope: float
    intercept: float
    start: int
    frame_s: float | None

    @property
    def num_bytes(self) -> int:
        """What the voxels take, uncompressed."""
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def scaled(self) -> bool:
        """Whether stored numbers differ from values."""
        return (self.slope, self.intercept) != (1.0, 0.0)

    def grid(self) -> Grid:
        """Shape and place of a volume.

        Raises:
            MedsegError: more than three axes, or an affine that is not one; named by file.
        """
        if len(self.shape) != 3:
            raise MedsegError(
                f"{self.path} has shape {self.shape} where a volume has three axes; "
                "take one frame out of it, or read it with read_series if the fourth axis is time"
            )
        try:
            return Grid(self.shape, self.affine)  # type: ignore[arg-type]
        except MedsegError as error:
            raise MedsegError(f"{self.path}: {error}") from None


@contextmanager
def opened(path: Path) -> Iterator[tuple[Header, Stream]]:
    """Header and stream of one file, the stream standing at the first voxel.

    Raises:
        MedsegError: at any point, for a file that is missing, unreadable, no NIfTI, damaged, cut short, or that
            promises more than it can hold. Nothing is allocated before that is known.
    """
    path = Path(path)
    try:
        with path.open("rb", buffering=0) as file:
            zipped = file.read(2) == b"\x1f\x8b"
            size = file.seek(0, 2)
            file.seek(0)
            inflated = igzip.IGzipFile(fileobj=file) if zipped else file
            # what IGzipFile reads through fills our memory; its own `readinto` copies what it has read
            stream: Stream = getattr(inflated, "_buffer", inflated)
            header, num_read = _header(path, stream)
            _check_promise(header, size=size, zipped=zipped)
            _take(stream, header.start - num_read)
            yield header, stream
    except EOFError:
        raise MedsegError(f"{path} is cut short: its gzip stream ends early; copy or export it again") from None
    except (BadGzipFile, igzip_lib.error) as error:
        raise MedsegError(f"{path} is damaged: {error}; copy or export it again") from None
    except FileNotFoundError:
        near = meant(path.name, (p.name for p in path.parent.iterdir())) if path.parent.is_dir() else ""
        raise MedsegError(f"there is no file {path}{near}") from None
    except IsADirectoryError:
        raise MedsegError(f"{path} is a folder; name one .nii.gz file in it") from None
    except OSError as error:
        raise MedsegError(f"cannot read {path}: {error.strerror or error}") from None


def fill(header: Header, stream: Stream, block: np.ndarray) -> None:
    """Reads the next `block.nbytes` bytes into a contiguous array.

    Raises:
        MedsegError: the file ends before.
    """
    room = memoryview(block.reshape(-1, order="A").view(np.uint8))
    filled = 0
    while filled < len(room):
        num = stream.readinto(room[filled : filled + PIECE])
        if not num:
            raise MedsegError(
                f"{header.path} is cut short: the header promises {header.num_bytes} bytes of voxels and "
                "the file ends before; copy or export it again"
            )
        filled += num


def read_stored(header: Header, stream: Stream) -> np.ndarray:
    """All voxels as stored, in native byte order: (X, Y, Z, ...) in Fortran order."""
    try:
        flat = np.empty(math.prod(header.shape), dtype=header.dtype)
    except MemoryError:
        raise MedsegError(f"{header.path} needs {header.num_bytes / 1e9:.0f} GB of memory; crop it first") from None
    fill(header, stream, flat)
    stream.read(1)  # the checksum stands after the last voxel
    if not flat.dtype.isnative:
        flat = flat.byteswap(inplace=True).view(flat.dtype.newbyteorder("="))
    return flat.reshape(header.shape, order="F")


def scaled(header: Header, stored: np.ndarray) -> np.ndarray:
    """Values of stored numbers: the same array where the file gives no scale, else float32 (float64 of float64).

    Raises:
        MedsegError: a scale that makes values beyond the type, as of a damaged header.
    """
    if not header.scaled:
        return stored
    values = stored.astype(np.float64 if stored.dtype == np.float64 else np.float32, copy=False)
    try:
        with np.errstate(over="raise", invalid="ignore"):  # stored infinities and nan stay
            values *= header.slope
            values += header.intercept
    except FloatingPointError:
        raise MedsegError(
            f"{header.path} has slope {header.slope:g} and intercept {header.intercept:g}, which make values beyond "
            f"{values.dtype}; export it again"
        ) from None
    return values


def _take(stream: Stream, num: int) -> bytes:
    """The next bytes, fewer only where the file ends."""
    parts = []
    while num > 0 and (part := stream.read(min(num, PIECE))):
        parts.append(part)
        num -= len(part)
    return b"".join(parts)


def _header(path: Path, stream: Stream) -> tuple[Header, int]:
    """The header and how many bytes it took."""
    block = _take(stream, 348)
    kinds = {348: nib.Nifti1Header, 540: nib.Nifti2Header}
    size = next((n for n in kinds for end in ("little", "big") if int.from_bytes(block[:4], end) == n), 0)
    if len(block) < 348 or not size:
        raise MedsegError(f"{path} is not a NIfTI file ({_looks(block)}); convert it to .nii.gz")
    try:
        raw = kinds[size](block + _take(stream, size - 348), check=False)
        sizes = raw["pixdim"][1:4].tolist()
        with np.errstate(all="ignore"):  # what is not finite is refused by the grid
            raw.check_fix(logger=QUIET)
            if bytes(raw["magic"])[:2] != b"n+":
                raise MedsegError(f"{path} is one half of a .hdr/.img pair; convert it to .nii.gz")
            header = _checked(path, raw)
        if not raw["sform_code"] and any(mm == 0 and n > 1 for mm, n in zip(sizes, header.shape, strict=False)):
            raise MedsegError(f"{path} has voxels of {sizes} mm, and no sform says better; correct its pixdim")
        return header, size
    except (nib.spatialimages.HeaderDataError, ValueError, OverflowError) as error:
        raise MedsegError(f"{path} has a damaged header: {error}; export it again") from None


def _checked(path: Path, raw: nib.Nifti1Header) -> Header:
    shape = tuple(int(n) for n in raw.get_data_shape())
    shape += (1,) * (3 - len(shape))
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    if min(shape) < 1:
        raise MedsegError(f"{path} has shape {shape}: it holds no voxels; export it again")
    dtype = raw.get_data_dtype()
    if dtype.kind not in "iuf" or dtype.itemsize > 8:
        name = raw.get_value_label("datatype")
        raise MedsegError(f"{path} holds {name} where one number per voxel is meant; convert it to int16 or float32")
    slope, intercept = raw.get_slope_inter()
    units = int(raw["xyzt_units"])
    affine = raw.get_best_affine()
    affine[:3] *= MM_PER_UNIT.get(units % 8, 1.0)
    step = float(raw["pixdim"][4]) * SECONDS_PER_UNIT.get(units - units % 8, 0.0)
    return Header(
        path=path,
        shape=shape,
        dtype=dtype,
        affine=affine,
        slope=1.0 if slope is None else float(slope),
        intercept=0.0 if intercept is None else float(intercept),
        start=int(raw.get_data_offset()),
        frame_s=step if math.isfinite(step) and step > 0 else None,
    )


def _check_promise(header: Header, *, size: int, zipped: bool) -> None:
    holds = size * BEST_RATIO if zipped else size
    if header.start + header.num_bytes > holds:
        raise MedsegError(
            f"{header.path} promises {' x '.join(map(str, header.shape))} voxels of {header.dtype}, and its {size} "
            f"bytes hold at most {max(0, holds - header.start) // header.dtype.itemsize} of them: it is cut short, "
            "or its header is damaged; copy or export it again"
        )


def _looks(block: bytes) -> str:
    if not block:
        return "it is empty"
    known = (kind for start, kind in STARTS.items() if block.startswith(start))
    return f"it looks like {'DICOM' if block[128:132] == b'DICM' else next(known, repr(block[:8]))}"
