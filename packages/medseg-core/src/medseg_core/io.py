"""Volumes, series and pictures from files and to files; what is written is whole or is not there."""

import logging
import os
import secrets
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path

import nibabel as nib
import numpy as np
from isal import igzip
from PIL import Image, TiffImagePlugin, UnidentifiedImageError

from medseg_core import dicom, itk
from medseg_core.errors import MedsegError
from medseg_core.grid import Grid
from medseg_core.nifti import BEST_RATIO, opened, read_stored, scaled
from medseg_core.volume import Picture, Series, Volume

SUFFIXES = (
    *(".nii.gz", ".nii", ".seg.nrrd", *itk.SUFFIXES, *dicom.SUFFIXES),
    *(".png", ".tiff", ".tif", ".jpeg", ".jpg"),
)
ORTHOGONAL = 1e-4  # largest cosine between axes that a quaternion, which knows no shear, still describes
PRINT_NM = 20_000.0  # pixels above this (1270 dpi and coarser) are a printer's resolution, not a microscope's
INCH_NM, CM_NM = 25_400_000.0, 10_000_000.0
STDERR, PILLOW = threading.Lock(), logging.getLogger("PIL")
UNITS_NM = {"nm": 1.0, "um": 1e3, "µm": 1e3, "\\u00b5m": 1e3, "micron": 1e3, "microns": 1e3, "mm": 1e6}

log = logging.getLogger(__name__)


def read_volume(path: Path) -> Volume:
    """A volume from NIfTI, NRRD (.nrrd, .nhdr, .seg.nrrd), MetaImage (.mha, .mhd), or a DICOM series.

    Voxels keep the file's axis and memory order and dtype, in native byte order. Where a NIfTI header gives a slope or
    an intercept the values are float32 (float64 for stored float64). Trailing axes of length 1 are dropped and a plane
    gets a third axis. Metres and microns of NIfTI become mm.

    A series is a folder of it or one of its files, and needs `pip install 'medseg-core[dicom]'`; `dicom.read_dicom`
    says which values it gives, and takes one of several series. What else holds for the others, `itk.read_itk` says.

    Raises:
        MedsegError: missing, unreadable, of no such format, cut short, damaged, no real numbers, more than three axes,
            an affine that is not finite or singular, a header that promises more than the file can hold, or slices that
            are no stack.
    """
    path = Path(path)
    if _is_series(path):
        return dicom.read_dicom(path)
    if path.suffix.lower() in itk.SUFFIXES:
        return itk.read_itk(path)
    with opened(path) as (header, stream):
        header.grid()
        return Volume(scaled(header, read_stored(header, stream)), header.affine)


def read_grid(path: Path) -> Grid:
    """Where a volume lies, from its headers alone; formats and errors as `read_volume`."""
    path = Path(path)
    if _is_series(path):
        return dicom.dicom_grid(path)
    if path.suffix.lower() in itk.SUFFIXES:
        return itk.itk_grid(path)
    with opened(path) as (header, _):
        return header.grid()


def _is_series(path: Path) -> bool:
    """A folder, or a file of DICOM, whose names often have no suffix."""
    suffix = path.suffix.lower()
    if suffix not in (".nii", ".gz", *itk.SUFFIXES):
        with suppress(OSError):
            return path.is_dir() or suffix in dicom.SUFFIXES or dicom.is_dicom(path)
    return False


def read_series(path: Path) -> Series:
    """Frames over time, from a file with the axes X Y Z T; a volume is a series of one frame.

    Dtype, scale and errors as `read_volume`. Times are None where the header gives no step or no unit of time.
    """
    with opened(path) as (header, stream):
        if len(header.shape) > 4:
            raise MedsegError(f"{path} has shape {header.shape} where a series has four axes; split it")
        values = scaled(header, read_stored(header, stream))
    frames = np.moveaxis(values, 3, 0) if values.ndim == 4 else values[None]
    times_s = None if header.frame_s is None else header.frame_s * np.arange(len(frames))
    try:
        return Series(frames, header.affine, times_s)
    except MedsegError as error:
        raise MedsegError(f"{path}: {error}") from None


def write_volume(volume: Volume, path: Path) -> None:
    """A volume to .nii or .nii.gz (ISA-L, level 2), whole or not at all; equal volumes give equal bytes.

    The affine goes into sform and, unless it is sheared, into qform; the unit is mm. The dtype is kept, but: bool
    becomes uint8, float16 float32, and 64-bit integers int32 where they fit, which most viewers need.

    Raises:
        MedsegError: another suffix, or a disk that is full, read-only or missing.
    """
    path = Path(path)
    if not path.name.endswith((".nii", ".nii.gz")):
        raise MedsegError(f"cannot write a volume to {path}; name it .nii.gz or .nii")
    voxels = _storable(volume.voxels)
    _write(voxels, _header(voxels, volume.affine), path)


def write_series(series: Series, path: Path) -> None:
    """Frames to .nii or .nii.gz with the axes X Y Z T and the step of time in seconds; all else as `write_volume`.

    NIfTI holds the first time and one step, the mean, so times that are not even come back as if they were. A series
    without times, or of one frame, has no unit of time.

    Raises:
        MedsegError: another suffix, times that do not grow or lie more than half a step off, or a disk that refuses.
    """
    path = Path(path)
    if not path.name.endswith((".nii", ".nii.gz")):
        raise MedsegError(f"cannot write a series to {path}; name it .nii.gz or .nii")
    voxels = np.moveaxis(_storable(series.frames), 0, 3)
    header = _header(voxels, series.affine)
    if series.times_s is not None and len(series.times_s) > 1:
        first, last = np.asarray(series.times_s, dtype=np.float64)[[0, -1]].tolist()
        step_s = (last - first) / (len(series.times_s) - 1)
        off = np.abs(series.times_s - first - step_s * np.arange(len(series.times_s))).max()
        if not (step_s > 0 and off <= step_s / 2):
            raise MedsegError(
                f"{path} cannot hold frames at {np.round(series.times_s, 4).tolist()} s, which are not even; leave "
                "times_s out, or resample the frames"
            )
        header["pixdim"][4], header["toffset"] = step_s, first
        header.set_xyzt_units("mm", "sec")
    _write(voxels, header, path)


def _write(voxels: np.ndarray, header: nib.Nifti1Header, path: Path) -> None:
    with replacing(path) as beside, beside.open("wb") as file:
        # neither name nor time in the stream: equal volumes, equal bytes
        zipped = igzip.IGzipFile("", "wb", 2, file, 0) if path.suffix == ".gz" else nullcontext(file)
        with zipped as stream:
            stream.write(header.binaryblock + bytes(4))
            stream.write(memoryview(np.asfortranarray(voxels).T).cast("B"))


def read_picture(path: Path) -> Picture:
    """A picture from .png, .tif or .jpg: (H, W) or (H, W, C), uint8, uint16, int32 or float32 as stored.

    Two-colour pictures become 0 and 255. A palette picture gives its indices: that is how label maps are stored.
    `pixel_nm` comes from a TIFF that states its unit; a print resolution such as 300 dpi is none.

    Raises:
        MedsegError: missing, no picture, cut short, several pages, 16-bit colour (Pillow would drop 8 of the bits),
            more pixels than Pillow's bomb limit, or than the bytes of a PNG can hold.
    """
    path = Path(path)
    try:
        with _quiet(path), Image.open(path, formats=("PNG", "TIFF", "JPEG")) as image:
            if getattr(image, "n_frames", 1) > 1:
                raise MedsegError(f"{path} holds {image.n_frames} pages where one picture is meant; split it")
            if _deep_colour(image, path):
                raise MedsegError(f"{path} has 16 bits per colour; convert it to 8-bit colour or to 16-bit grey")
            _check_promise(image, path)
            kept = image.mode in ("L", "LA", "P", "RGB", "RGBA", "F") or image.mode.startswith("I")
            pixels = np.array(image if kept else image.convert("L" if image.mode == "1" else "RGB"))
            return Picture(pixels.astype(pixels.dtype.newbyteorder("="), copy=False), _pixel_nm(image))
    except FileNotFoundError:
        raise MedsegError(f"there is no file {path}") from None
    except UnidentifiedImageError:
        raise MedsegError(f"{path} is no PNG, TIFF or JPEG picture; convert it") from None
    except Image.DecompressionBombError:
        raise MedsegError(f"{path} has more than {2 * Image.MAX_IMAGE_PIXELS} pixels; cut it into tiles") from None
    except MedsegError:
        raise
    except MemoryError:
        raise MedsegError(f"{path} needs more memory than there is; cut it into tiles, or save it again") from None
    except Exception as error:  # there is none that Pillow does not raise over damaged bytes
        reason = getattr(error, "strerror", None) or error
        raise MedsegError(f"cannot read {path}: {reason or type(error).__name__}; save it again") from None


def write_picture(picture: Picture, path: Path) -> None:
    """A picture to .png or .tif, whole or not at all; bool becomes 0 and 255, and TIFF keeps `pixel_nm`.

    Raises:
        MedsegError: another suffix, a dtype the format cannot hold, or a disk that refuses.
    """
    path = Path(path)
    if path.suffix.lower() not in (".png", ".tif", ".tiff"):
        raise MedsegError(f"cannot write a picture to {path}; name it .png or .tif")
    pixels = np.ascontiguousarray(picture.pixels)
    pixels = np.where(pixels, np.uint8(255), np.uint8(0)) if pixels.dtype == bool else pixels
    tiff = path.suffix.lower() != ".png"
    kinds = {2: [np.uint8, np.uint16, *[np.float32] * tiff], 3: [np.uint8] * (pixels.shape[-1] in (2, 3, 4))}
    if pixels.dtype not in kinds[pixels.ndim]:
        raise MedsegError(
            f"{path} cannot hold {pixels.dtype} pixels of shape {pixels.shape}; "
            "use uint8 with up to 4 channels, uint16 in grey, or float32 in grey as .tif"
        )
    per_cm = CM_NM / picture.pixel_nm if picture.pixel_nm else 0.0
    options = {"resolution_unit": 3, "x_resolution": per_cm, "y_resolution": per_cm} if per_cm and tiff else {}
    with replacing(path) as beside:
        Image.fromarray(pixels).save(beside, **options)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path beside `path` with the same suffix; renamed onto it if the block ends well, removed if it does not.

    Missing folders are made.

    Raises:
        MedsegError: instead of any OSError of the block: full, read-only, a folder in the way.
    """
    path = Path(path)
    beside = path.with_name(f".{os.getpid()}-{secrets.token_hex(4)}-{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield beside
        beside.replace(path)
    except OSError as error:
        raise MedsegError(f"cannot write {path}: {error.strerror or error}; nothing was left behind") from None
    finally:
        with suppress(OSError):  # renamed, or never made
            beside.unlink()


def write_text(path: Path, text: str) -> None:
    """UTF-8 text, whole or not at all; errors as `replacing`."""
    with replacing(path) as beside:
        beside.write_text(text, encoding="utf-8", newline="\n")


def is_picture(path: Path) -> bool:
    """Whether a name has the suffix of a format that `read_picture` takes."""
    return Path(path).suffix.lower() in (".png", ".tiff", ".tif", ".jpeg", ".jpg")


def case_name(path: Path) -> str:
    """The name without the suffix of a format we read: `s01.ct.nii.gz` -> `s01.ct`, the folder `s.01` -> `s.01`."""
    name = Path(path).name
    suffix = next((s for s in SUFFIXES if name.lower().endswith(s)), "")
    return name[: len(name) - len(suffix)] or name


def _storable(voxels: np.ndarray) -> np.ndarray:
    kind, width = voxels.dtype.kind, voxels.dtype.itemsize
    if kind == "b":
        return voxels.view(np.uint8)
    if kind == "f" and width not in (4, 8):
        return voxels.astype(np.float32 if width == 2 else np.float64)
    if kind in "iu" and width == 8:
        limits = np.iinfo(np.int32)
        if voxels.min() >= limits.min and voxels.max() <= limits.max:
            return voxels.astype(np.int32)
        log.warning("%s voxels beyond int32 are written as they are; few viewers read them", voxels.dtype)
    return voxels.astype(voxels.dtype.newbyteorder("<"), copy=False)


def _header(voxels: np.ndarray, affine: np.ndarray) -> nib.Nifti1Header:
    header = (nib.Nifti1Header if max(voxels.shape) < 2**15 else nib.Nifti2Header)(endianness="<")
    header.set_data_dtype(voxels.dtype)
    header.set_data_shape(voxels.shape)
    axes = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    straight = np.abs(axes.T @ axes - np.eye(3)).max() < ORTHOGONAL
    header.set_qform(affine, code=1 if straight else 0)
    header.set_sform(affine, code=1)
    header.set_xyzt_units("mm")
    header["vox_offset"] = header.single_vox_offset
    header["magic"] = header.single_magic
    return header


@contextmanager
def _quiet(path: Path) -> Iterator[None]:
    """Without Pillow's warnings, and without what libtiff writes to the standard error of the whole process."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if path.suffix.lower() not in (".tif", ".tiff"):
            yield
            return
        with STDERR, Path(os.devnull).open("wb") as nowhere:
            kept, level = os.dup(2), PILLOW.level
            try:
                os.dup2(nowhere.fileno(), 2)
                PILLOW.setLevel(logging.CRITICAL + 1)
                yield
            finally:
                PILLOW.setLevel(level)
                os.dup2(kept, 2)
                os.close(kept)


def _check_promise(image: Image.Image, path: Path) -> None:
    """A PNG's rows, each with a byte before it, must fit into what its bytes can inflate to."""
    if image.format == "PNG":
        depth, colours = _png_head(path)
        size = path.stat().st_size
        num_bits = image.width * depth * {2: 3, 4: 2, 6: 4}.get(colours, 1)
        if image.height * (1 + num_bits // 8) > size * BEST_RATIO:
            raise MedsegError(
                f"{path} promises {image.width} x {image.height} pixels, which its {size} bytes cannot hold: it is cut "
                "short, or its header is damaged; save it again"
            )


def _png_head(path: Path) -> tuple[int, int]:
    """Bits per colour, and the type of colour."""
    with path.open("rb") as file:
        head = file.read(26)
    return head[24], head[25]


def _deep_colour(image: Image.Image, path: Path) -> bool:
    if image.format == "PNG":
        depth, colours = _png_head(path)
        return depth == 16 and colours in (2, 4, 6)
    bits = image.tag_v2.get(258, (8,)) if image.format == "TIFF" else (8,)
    return len(bits) > 1 and max(bits) > 8


def _pixel_nm(image: Image.Image) -> float | None:
    if not isinstance(image, TiffImagePlugin.TiffImageFile):
        return None
    per_x, per_y = (float(image.tag_v2.get(tag, 0) or 0) for tag in (282, 283))
    if per_x <= 0 or abs(per_x - per_y) > 0.01 * per_x:
        return None
    unit_nm = {2: INCH_NM, 3: CM_NM}.get(image.tag_v2.get(296, 2), 0.0)
    lines = str(image.tag_v2.get(270, "")).splitlines()  # ImageJ writes its unit here and pixels per unit there
    unit_nm = next((UNITS_NM.get(line[5:].strip().lower(), 0.0) for line in lines if line.startswith("unit=")), unit_nm)
    pixel_nm = unit_nm / per_x
    return pixel_nm if 0 < pixel_nm <= PRINT_NM else None
