"""DICOM series as volumes: slices are ordered by where they lie, and what is not one even, upright stack is refused.

Positions and directions follow PS3.3 C.7.6.2.1.1 (centres of pixels, LPS mm), values C.11.1.1 (slope * stored +
intercept), frames of enhanced files C.7.6.16. pydicom parses; it, Pillow and GDCM decode. Only the tags named here are
read, so no message can hold a patient's name.
"""

import logging
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from medseg_core.errors import MedsegError, meant
from medseg_core.grid import Grid
from medseg_core.jpeg import check_streams
from medseg_core.slices import Slice, stacked
from medseg_core.volume import Volume

if TYPE_CHECKING:
    from pydicom import Dataset

SUFFIXES = (".dcm", ".dicom", ".ima")
LPS_TO_RAS = np.array([-1.0, -1.0, 1.0])
SQUARE = 1e-3  # largest error of a direction's length and of the cosine between rows and columns
WHOLE_MOST = 2**30  # slopes and intercepts beyond, times 32 bits, leave int64
DEFER = 1 << 14  # bytes; longer values, which are voxels, are read when they are needed
DEFLATED = b"1.2.840.10008.1.2.1.99"
FRAMES = "PerFrameFunctionalGroupsSequence"
GROUPS = {  # where an enhanced file keeps, for each frame or for all of them, what others keep at the top
    "ImagePositionPatient": "PlanePositionSequence",
    "ImageOrientationPatient": "PlaneOrientationSequence",
    "PixelSpacing": "PixelMeasuresSequence",
    "SliceThickness": "PixelMeasuresSequence",
    "RescaleSlope": "PixelValueTransformationSequence",
    "RescaleIntercept": "PixelValueTransformationSequence",
}
TELLING = (  # what tells apart two images of one place, the best reason first
    *("TemporalPositionIdentifier", "TriggerTime", "EchoTime", "DiffusionBValue", "AcquisitionNumber", "ImageType"),
    *("AcquisitionTime", "ContentTime", "InstanceNumber"),
)
TAGS = (
    *("SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "SeriesDescription", "Modality"),
    *(FRAMES, "SharedFunctionalGroupsSequence", "NumberOfFrames", "ModalityLUTSequence"),
    *("Rows", "Columns", "SamplesPerPixel", "PhotometricInterpretation", "PlanarConfiguration"),
    *("BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation"),
    *("PixelData", "ExtendedOffsetTable", "ExtendedOffsetTableLengths"),
    *GROUPS,
    *TELLING,
)
EXPORT = "export the series again, or convert it with dcm2niix"


@dataclass(frozen=True, eq=False, kw_only=True)
class _Image(Slice):
    """A slice, where its stored numbers are, and how they become values."""

    file: Path
    source: "Dataset"
    frame: int
    slope: float
    intercept: float


def read_dicom(path: Path, *, series: str | None = None) -> Volume:
    """The volume of one series, whatever its files are called: classic slices, or frames of enhanced files.

    Voxels have the axes X (columns), Y (rows) and Z, along the slice normal (row x column direction), in Fortran order.
    Where all slopes and intercepts are whole numbers, as in CT, values are int16, or int32 where they need it; else
    float32, by the scale of each slice, as in PET (in the file's unit, mostly Bq/ml; no SUV is computed). A single
    slice is as thick as its SliceThickness, or 1 mm. MONOCHROME1 is not inverted. How even a stack must be,
    `slices.stacked` says.

    Files that are hidden, no DICOM, or no images (RTSTRUCT, SR, DICOMDIR, dose) are passed over.

    Args:
        path: a folder, whose subfolders are looked into where it holds no images itself; or one file of the series.
        series: the SeriesInstanceUID to take, where there are several.

    Raises:
        MedsegError: pydicom is missing; no images; several series; a file that is damaged, cut short, in colour, or in
            a transfer syntax that nothing installed decodes; no position, direction or pixel size; several images at
            one place; slices that are missing, tilted, or differ in direction, pixel size or shape.
    """
    with _quiet():
        images, grid = _stack(Path(path), series, pixels=True)
        try:
            return Volume(_values(images), grid.affine)
        except MemoryError:
            gigabytes = math.prod(grid.shape) * 4e-9
            raise MedsegError(f"{path} needs {gigabytes:.0f} GB of memory; convert and crop it first") from None


def dicom_grid(path: Path, *, series: str | None = None) -> Grid:
    """Where a series lies, from the headers alone; arguments and errors as `read_dicom`."""
    with _quiet():
        return _stack(Path(path), series, pixels=False)[1]


def is_dicom(path: Path) -> bool:
    """Whether a file is there, readable and says DICM where PS3.10 wants it."""
    return _head(path)[128:132] == b"DICM"


def _head(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(4096)
    except OSError:
        return b""


@contextmanager
def _quiet() -> Iterator[None]:
    """Without pydicom's words on values that break a rule, as half of the world's do, and on failed decoders."""
    with suppress(ImportError):
        import pydicom  # noqa: F401 - which sets the level of its logger
    logger = logging.getLogger("pydicom")
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            yield
    finally:
        logger.setLevel(level)


@contextmanager
def _told(file: Path) -> Iterator[None]:
    """One clear line instead of what damaged bytes make pydicom and its decoders say."""
    try:
        yield
    except MedsegError:
        raise
    except MemoryError:  # pydicom makes room for what a value says of its length
        raise MedsegError(f"{file} is damaged, or larger than memory; copy or export it again") from None
    except OSError as error:
        raise MedsegError(f"cannot read {file}: {error.strerror or error}") from None
    except Exception as error:  # there is none that they do not raise
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise MedsegError(f"{file} is damaged or cut short: {reason}; copy or export it again") from None


def _stack(path: Path, series: str | None, *, pixels: bool) -> tuple[list[_Image], Grid]:
    images = [image for file, source in _chosen(path, series, pixels) for image in _images(file, source)]
    _check_places(images)
    try:
        order, grid = stacked(images)
    except MedsegError as error:
        raise MedsegError(f"{path}: {error}") from None
    return [images[i] for i in order], grid


def _chosen(path: Path, series: str | None, pixels: bool) -> list[tuple[Path, "Dataset"]]:
    """The files of one series with their headers."""
    with _told(path):
        there, is_folder = path.exists(), path.is_dir()
        names = sorted(path.iterdir()) if is_folder else []
        inside = [name for name in names if name.is_dir() and not name.name.startswith(".")]
    if is_folder:
        found = _found(path, pixels) or [pair for folder in inside for pair in _found(folder, pixels)]
        if not found:
            raise MedsegError(
                f"{path} is a folder without DICOM images; name one .nii.gz file in it, or a folder that holds a series"
            )
    elif there:
        found = _found(path.parent, pixels, wanted=path)
        series = series or next(uid for uid, file, _ in found if file == path)
    else:
        near = meant(path.name, (p.name for p in path.parent.iterdir())) if path.parent.is_dir() else ""
        raise MedsegError(f"there is no file or folder {path}{near}")
    groups: dict[str, list[tuple[Path, Dataset]]] = {}
    for uid, file, source in found:
        groups.setdefault(uid, []).append((file, source))
    if series in groups or (series is None and len(groups) == 1):
        return groups[series or next(iter(groups))]
    known = "; ".join(_described(uid, group) for uid, group in sorted(groups.items()))
    if series is None:
        raise MedsegError(
            f"{path} holds {len(groups)} series: {known}; take one by series=UID, or name one of its files"
        )
    raise MedsegError(f"{path} holds no series {series!r}{meant(series, groups)}; it holds {known}")


def _described(uid: str, group: list[tuple[Path, "Dataset"]]) -> str:
    file, source = group[0]
    with _told(file):
        said = " ".join(str(source.get("SeriesDescription") or "no description").split())
        return f"{uid} ({source.get('Modality')}, {said}, {len(group)} files such as {file.name})"


def _found(folder: Path, pixels: bool, *, wanted: Path | None = None) -> list[tuple[str, Path, "Dataset"]]:
    """The DICOM images right in a folder with their series; `wanted` must be one of them."""
    with _told(folder):
        files = sorted(p for p in folder.iterdir() if not p.name.startswith(".") and p.is_file())
    found = []
    for file in dict.fromkeys([wanted, *files] if wanted else files):
        if is_dicom(file):
            source = _header(file, pixels)
            with _told(file):
                kind = _kind(source)
                if "Image Storage" in kind and "Rows" not in source:
                    raise MedsegError(f"{file} is cut short before its voxels; copy or export it again")
                if "Image Storage" in kind or (not kind.endswith("Storage") and "Rows" in source):
                    found.append((str(source.get("SeriesInstanceUID", "")), file, source))
                elif file == wanted:
                    raise MedsegError(f"{file} holds {kind or 'an object of no known kind'}, which is no image")
        elif file == wanted or file.suffix.lower() in SUFFIXES:
            raise MedsegError(
                f"{file} is no DICOM file (no DICM at byte 128); copy or export it again, or take it out of the folder"
            )
    return found


def _header(file: Path, pixels: bool) -> "Dataset":
    if DEFLATED in _head(file):
        raise MedsegError(f"{file} is deflated as a whole, which few programs read; rewrite it with dcmconv")
    try:
        import pydicom
    except ImportError:
        raise MedsegError(f"reading {file} needs pydicom; pip install 'medseg-core[dicom]'") from None
    with _told(file):
        return pydicom.dcmread(file, specific_tags=_tags(), stop_before_pixels=not pixels, defer_size=DEFER)


@cache
def _tags() -> list[int]:
    """TAGS as numbers; looking up the words for each file took a tenth of the time."""
    from pydicom.tag import Tag

    return [Tag(tag) for tag in TAGS]


def _kind(source: "Dataset") -> str:
    """The name of the SOP class, such as "CT Image Storage"; its number where it is a maker's own."""
    uid = source.get("SOPClassUID") or source.file_meta.get("MediaStorageSOPClassUID")
    return getattr(uid, "name", "")


def _images(file: Path, source: "Dataset") -> list[_Image]:
    """What one file holds."""
    with _told(file):
        shape, num_frames = _checked(file, source)
        frames = [[frame] for frame in source.get(FRAMES) or []]
        if len(frames) != num_frames and (frames or num_frames > 1):
            raise MedsegError(f"{file} holds {num_frames} frames, and says of {len(frames)} where they lie; {EXPORT}")
        shared = source.get("SharedFunctionalGroupsSequence") or []
        groups = [[*own, *shared] for own in frames or [[]]]
        return [_image(file, source, shape=shape, frame=frame, groups=group) for frame, group in enumerate(groups)]


def _checked(file: Path, source: "Dataset") -> tuple[tuple[int, int], int]:
    """Columns and rows, and the number of frames, of an image without colours that its file can hold."""
    rows, columns, bits = (int(source.get(tag) or 0) for tag in ("Rows", "Columns", "BitsAllocated"))
    num_frames = int(source.get("NumberOfFrames") or 1)
    if min(rows, columns, num_frames) < 1 or bits not in (8, 16, 32):
        raise MedsegError(
            f"{file} says {rows} rows, {columns} columns, {bits} bits: it is cut short, or no image of numbers; "
            "export it again"
        )
    colours = source.get("PhotometricInterpretation", "")
    if source.get("SamplesPerPixel", 1) != 1 or not colours.startswith("MONOCHROME"):
        raise MedsegError(f"{file} is in colour ({colours}) where a voxel is one number; take it out of the folder")
    if source.get("ModalityLUTSequence"):
        raise MedsegError(f"{file} gives its values by a table (Modality LUT); {EXPORT}")
    syntax = source.file_meta.get("TransferSyntaxUID")
    if not syntax:
        raise MedsegError(f"{file} does not say how its voxels are stored (TransferSyntaxUID); {EXPORT}")
    needed, size = rows * columns * num_frames * bits // 8, file.stat().st_size
    if not syntax.is_compressed and needed > size:
        raise MedsegError(f"{file} promises {needed} bytes of voxels and has {size}: it is cut short; copy it again")
    return (columns, rows), num_frames


def _image(file: Path, source: "Dataset", *, shape: tuple[int, int], frame: int, groups: "list[Dataset]") -> _Image:
    def numbers(tag: str, count: int, default: float | None = None) -> np.ndarray:
        inner = (group.get(GROUPS[tag]) for group in groups)
        value: Any = next((macro[0].get(tag) for macro in inner if macro and tag in macro[0]), source.get(tag))
        if value is None or value == "":
            if default is None:
                raise MedsegError(f"{file} has no {tag}, so nobody knows where it lies; {EXPORT}")
            return np.array([default])
        found = np.array(value, dtype=np.float64).reshape(-1)
        if len(found) != count or not np.isfinite(found).all():
            raise MedsegError(f"{file} has {tag} {found.tolist()} where {count} finite numbers are meant; {EXPORT}")
        return found

    directions = numbers("ImageOrientationPatient", 6).reshape(2, 3)
    spacing_y, spacing_x = numbers("PixelSpacing", 2).tolist()  # PS3.3 10.7.1.3: between rows, then between columns
    if np.abs(directions @ directions.T - np.eye(2)).max() > SQUARE or min(spacing_x, spacing_y) <= 0:
        raise MedsegError(
            f"{file} has pixels of {spacing_x:g} x {spacing_y:g} mm along {directions.tolist()}, which is no grid; "
            f"{EXPORT}"
        )
    thickness, slope = numbers("SliceThickness", 1, 1.0).item(), numbers("RescaleSlope", 1, 1.0).item()
    if slope == 0:
        raise MedsegError(f"{file} has RescaleSlope 0, so all its values are equal; {EXPORT}")
    return _Image(
        name=f"{file.name} frame {frame + 1}" if (source.get("NumberOfFrames") or 1) > 1 else file.name,
        shape=shape,
        axes=directions * LPS_TO_RAS * [[spacing_x], [spacing_y]],
        origin=numbers("ImagePositionPatient", 3) * LPS_TO_RAS,
        thickness=thickness if thickness > 0 else 1.0,
        file=file,
        source=source,
        frame=frame,
        slope=slope,
        intercept=numbers("RescaleIntercept", 1, 0.0).item(),
    )


def _check_places(images: list[_Image]) -> None:
    """No two images lie at one place, to a micron."""
    places: dict[tuple[float, ...], _Image] = {}
    pairs = [(places.setdefault(tuple(image.origin.round(3)), image), image) for image in images]
    one, other = next(((one, other) for one, other in pairs if one is not other), (None, None))
    if not one or not other:
        return
    with _told(other.file):
        if one.file != other.file and one.source.get("SOPInstanceUID") == other.source.get("SOPInstanceUID"):
            raise MedsegError(f"{one.file} and {other.file} are the same image; remove one of them")
        tag = next((tag for tag in TELLING if one.source.get(tag) != other.source.get(tag)), None)
        raise MedsegError(
            f"{one.file.parent} holds {len(images)} images at {len(places)} places: {one.name} and {other.name} lie at "
            f"one{f', and differ in {tag}' if tag else ''}. They are frames, phases or echoes: copy one image of each "
            "place into a folder of its own, or split them with dcm2niix"
        )


def _values(images: list[_Image]) -> np.ndarray:
    """Slope * stored + intercept of each slice: (X, Y, Z)."""
    whole = all(n.is_integer() and abs(n) < WHOLE_MOST for image in images for n in (image.slope, image.intercept))
    columns, rows = images[0].shape
    values = np.empty((len(images), rows, columns), dtype=np.int16 if whole else np.float32)
    for z, stored in _decoded(images):
        slope, intercept = images[z].slope, images[z].intercept
        if whole:
            exact = stored.astype(np.int64) * int(slope) + int(intercept)
            values = _wide_enough(values, int(exact.min()), int(exact.max()))
            values[z] = exact
        else:
            values[z] = stored.astype(np.float64) * slope + intercept
    return values.transpose(2, 1, 0)


def _wide_enough(values: np.ndarray, low: int, high: int) -> np.ndarray:
    """The same array, or a wider one where it cannot hold both ends."""
    kinds = (kind for kind in (np.int16, np.int32) if np.iinfo(kind).min <= low and high <= np.iinfo(kind).max)
    return values.astype(np.result_type(values, next(kinds, np.int64)), copy=False)


def _decoded(images: list[_Image]) -> Iterator[tuple[int, np.ndarray]]:
    """Each slice and its stored numbers, (rows, columns), file by file; frees what a file held."""
    from pydicom.pixels import iter_pixels

    files: dict[Path, dict[int, int]] = {}
    for z, image in enumerate(images):
        files.setdefault(image.file, {})[image.frame] = z
    for file, places in files.items():
        source = images[places[0]].source
        _check_decodable(file, source)
        with _told(file):
            check_streams(source)
            for frame, stored in zip(range(len(places)), iter_pixels(source, raw=True), strict=True):
                yield places[frame], stored
            del source.PixelData


def _check_decodable(file: Path, source: "Dataset") -> None:
    from pydicom.pixels import get_decoder

    syntax = source.file_meta.TransferSyntaxUID
    with suppress(NotImplementedError):
        if get_decoder(syntax).is_available:
            return
    raise MedsegError(
        f"{file} is compressed as {syntax.name}, which nothing installed here decodes; "
        "pip install 'medseg-core[dicom]', or decompress it with gdcmconv --raw"
    )
