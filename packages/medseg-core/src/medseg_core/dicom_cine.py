"""Cine DICOM as planes with their frames: images of one place are ordered in time, places along their normal.

What a file must say, and what is said where it does not, is as in `dicom`; trigger times are PS3.3 C.8.3.1.1.2 and, for
enhanced files, C.7.6.18.1.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from medseg_core.dicom import TELLING, _chosen, _found, _Image, _images, _quiet, _told, _values
from medseg_core.errors import MedsegError
from medseg_core.slices import ROUNDED_MM, _check_alike
from medseg_core.volume import Series

ALL = "all"
LATE = 1.75  # steps between two frames from which on one is missing between them; heart rates vary by less
ORDERED_BY = ("TemporalPositionIdentifier", "AcquisitionTime", "ContentTime", "InstanceNumber")


@dataclass(frozen=True, eq=False)
class CinePlane:
    """One place and its frames over the heart cycle.

    Args:
        series: (T, X, Y, 1), X along rows (columns count up) and Y along columns; Z is the normal X x Y, as thick as
            SliceThickness says. Times are trigger times, or None.
        names: of the file of each frame, without .dcm; contours drawn on a frame often bear its number.
    """

    series: Series
    names: tuple[str, ...]


def read_cine(path: Path, *, series: str | None = None) -> list[CinePlane]:
    """The planes of one cine, by position along their normal, which need neither be even nor stacked upright.

    Frames of a plane go by trigger time; where that is missing or comes twice, by temporal position, acquisition or
    content time, or instance number, the first that tells all of them apart. Values are as of `dicom.read_dicom`.

    Args:
        path: a folder, whose subfolders are looked into where it holds no images itself; or one file of the series.
        series: the SeriesInstanceUID to take, where there are several; "all" takes them as one, as scanners write that
            give each slice a series of its own.

    Raises:
        MedsegError: as `dicom.read_dicom`, but for places that are uneven or hold several images; images of one place
            that nothing tells apart in time; planes with fewer frames than others; a gap in the trigger times.
    """
    path = Path(path)
    with _quiet():
        chosen = _all(path) if series == ALL else _chosen(path, series, pixels=True)
        images = [image for file, source in chosen for image in _images(file, source)]
        try:
            _check_alike(images)
            planes = [_in_time(images) for images in _by_place(images)]
            _check_whole(planes)
        except MedsegError as error:
            raise MedsegError(f"{path}: {error}") from None
        try:
            values = _values([image for plane in planes for image in plane])
        except MemoryError:
            raise MedsegError(f"{path} needs more memory than there is; take fewer slices at once") from None
    num = len(planes[0])
    parts = [values[:, :, k : k + num] for k in range(0, values.shape[2], num)]
    return [_plane(plane, part) for plane, part in zip(planes, parts, strict=True)]


def _all(path: Path) -> list[tuple[Path, Any]]:
    """All images of a folder, or of its subfolders, whatever series they belong to."""
    folders = [path, *sorted(f for f in path.iterdir() if f.is_dir() and not f.name.startswith("."))]
    found = [(file, source) for folder in folders for _, file, source in _found(folder, pixels=True)]
    return found or _chosen(path, None, pixels=True)  # which says what is wrong


def _by_place(images: Sequence[_Image]) -> list[list[_Image]]:
    """Images that lie together to a tenth of a millimetre, from the lowest place along the normal on."""
    normal = np.cross(*images[0].axes)
    normal /= np.linalg.norm(normal)
    heights = np.array([image.origin @ normal for image in images])
    order = np.argsort(heights, kind="stable")
    planes: list[list[_Image]] = []
    for i in order:
        if planes and np.linalg.norm(images[i].origin - planes[-1][0].origin) < ROUNDED_MM:
            planes[-1].append(images[i])
        elif planes and heights[i] - planes[-1][0].origin @ normal < ROUNDED_MM:
            raise MedsegError(
                f"{planes[-1][0].name} and {images[i].name} lie side by side at one height; put images of each place "
                "into a folder of their own"
            )
        else:
            planes.append([images[i]])
    return planes


def _in_time(images: Sequence[_Image]) -> list[_Image]:
    """Images of one place by time."""
    if len(images) == 1:
        return list(images)
    keys = [[_trigger_ms(image) for image in images]]
    keys += [[_number(image, tag) for image in images] for tag in ORDERED_BY]
    if len({image.file for image in images}) == 1:
        keys.append([float(image.frame) for image in images])
    for key in keys:
        if None not in key and len(set(key)) == len(key):
            return [images[i] for i in np.argsort(np.array(key, dtype=np.float64), kind="stable")]
    one, other = _alike(images)
    with _told(other.file):
        if one.file != other.file and one.source.get("SOPInstanceUID") == other.source.get("SOPInstanceUID"):
            raise MedsegError(f"{one.name} and {other.name} are the same image; remove one of them")
        tag = next((tag for tag in TELLING if one.source.get(tag) != other.source.get(tag)), None)
    raise MedsegError(
        f"{one.name} and {other.name} lie at one place and time{f', and differ in {tag}' if tag else ''}; put images "
        "of each kind into a folder of their own"
    )


def _alike(images: Sequence[_Image]) -> tuple[_Image, _Image]:
    """Two images of one trigger time; the first two where none has any."""
    times: dict[float | None, _Image] = {}
    pairs = [(times.setdefault(_trigger_ms(image), image), image) for image in images]
    return next((pair for pair in pairs if pair[0] is not pair[1]), (images[0], images[1]))


def _trigger_ms(image: _Image) -> float | None:
    """Milliseconds since the R wave, of the file or of its frame."""
    with _told(image.file):
        groups = image.source.get("PerFrameFunctionalGroupsSequence") or []
        if image.frame < len(groups):
            timing = groups[image.frame].get("CardiacSynchronizationSequence") or [{}]
            value = timing[0].get("NominalCardiacTriggerDelayTime")
            if value is not None:
                return float(value)
    return _number(image, "TriggerTime")


def _number(image: _Image, tag: str) -> float | None:
    with _told(image.file):
        value = image.source.get(tag)
        return None if value is None or value == "" else float(value)


def _check_whole(planes: Sequence[Sequence[_Image]]) -> None:
    """Every plane has all frames of the cycle."""
    most = max(planes, key=len)
    for number, plane in enumerate(planes):
        if len(plane) < len(most):
            names = [plane[0].name, plane[-1].name]
            raise MedsegError(
                f"slice {number} ({names[0]} to {names[1]}) has {len(plane)} frames where {most[0].name} to "
                f"{most[-1].name} are {len(most)}: export the series again, or take that slice out"
            )
        times = [_trigger_ms(image) for image in plane]
        steps = np.diff(np.array(times, dtype=np.float64)) if None not in times else np.zeros(0)
        usual = float(np.quantile(steps, 0.5, method="lower")) if len(steps) else 0.0
        if usual > 0 and steps.max() > LATE * usual:
            late = int(steps.argmax())
            raise MedsegError(
                f"slice {number} has {steps[late]:.0f} ms from {plane[late].name} to {plane[late + 1].name} and "
                f"{usual:.0f} ms between other frames, so one is missing: export the series again, or take "
                "that slice out"
            )


def _plane(images: Sequence[_Image], values: np.ndarray) -> CinePlane:
    first = images[0]
    normal = np.cross(*first.axes)
    affine = np.eye(4)
    step = first.thickness * normal / np.linalg.norm(normal)
    affine[:3] = np.column_stack([*first.axes, step, first.origin]) + 0.0  # no -0.0
    times = [_trigger_ms(image) for image in images]
    known = None not in times and len(set(times)) == len(times)
    frames = np.moveaxis(values, 2, 0)[..., None]
    names = tuple(image.file.name.removesuffix(".dcm") for image in images)
    return CinePlane(Series(frames, affine, np.array(times, dtype=np.float64) / 1000 if known else None), names)
