"""Planes inside files: which axis of a file is which, and masks back on the grid they came from.

Axes: T frames, S slices, H W the two axes of a plane in the file's own order.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from medseg_core.errors import MedsegError, meant
from medseg_core.io import case_name, read_grid, read_volume, write_volume
from medseg_core.nifti import Header, Stream, opened, read_stored, scaled

AXES = ("THW", "HWT", "HWS", "SHW", "HWST", "HWTS", "THWS", "SHWT")
LONGEST_FRAME_S = 0.25  # a step of more along a time axis without a unit may be anything; pixels are never so small
ALIKE = 0.01  # relative difference of two steps that are meant to be equal

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Place:
    """One plane inside a file.

    Args:
        path: the file.
        index: along its slice axis; None where the file holds one plane.
    """

    path: Path
    index: int | None = None


@dataclass(frozen=True)
class Head:
    """What a header says of the images of a file.

    Args:
        axes: one of `AXES`, as long as the file has axes.
        shape: H and W.
        num_slices, num_frames: 1 where there is no such axis.
        spacing_mm: along H, along W.
        thickness_mm: between slices; None where the file does not say.
        affine: (4, 4) index (h, w, s) -> RAS+ mm; None where time is one of the axes that the affine describes.
        frame_s: from frame to frame; None where the file does not say.
    """

    axes: str
    shape: tuple[int, int]
    num_slices: int
    num_frames: int
    spacing_mm: tuple[float, float]
    thickness_mm: float | None
    affine: np.ndarray | None
    frame_s: float | None


@dataclass(frozen=True, eq=False)
class Cine:
    """Frames of one plane.

    Args:
        frames: (T, H, W) as stored or, where the file gives a scale, float32; T = 1 for LGE.
        spacing_mm: along H, along W.
        thickness_mm: between slices; None where the file does not say.
        affine: (4, 4) index (h, w, 0) -> RAS+ mm of this plane; None for files such as (T, H, W), whose affine says
            nothing about the patient.
        times_s: (T,), None where the file does not say.
    """

    frames: np.ndarray
    spacing_mm: tuple[float, float]
    thickness_mm: float | None
    affine: np.ndarray | None
    times_s: np.ndarray | None


def read_head(place: Place, *, axes: str = "auto") -> Head:
    """What a file of images says, from its header alone; arguments and errors as `read_cine`, but any slice number."""
    with _opened(place, axes) as (_, head, _):
        return head


def read_cine(place: Place, *, axes: str = "auto") -> Cine:
    """The frames of one plane, of a cine or of a single picture such as LGE.

    Args:
        axes: one of `AXES`; "auto" takes four axes as HWST, and three as THW, as HWS where the last has length 1 or a
            slice is asked for. A header whose steps or shape say otherwise is refused.

    Raises:
        MedsegError: no NIfTI, no such slice, an axis order that the header betrays, or values that are no numbers.
    """
    with _opened(place, axes) as (header, head, stream):
        _check_index(place, head)
        values = scaled(header, read_stored(header, stream))
    values = values.reshape(values.shape + (1,) * (len(head.axes) - values.ndim))
    order = [head.axes.find(letter) for letter in "STHW"]
    missing = tuple(i for i, axis in enumerate(order) if axis < 0)
    stack = np.expand_dims(values.transpose([axis for axis in order if axis >= 0]), missing)
    k = place.index or 0
    frames = np.ascontiguousarray(stack[k])
    if frames.dtype.kind == "f" and not np.isfinite(frames).all():
        num = int(frames.size - np.isfinite(frames).sum())
        raise MedsegError(f"{place.path} has {num} values that are no numbers (NaN or infinite); export it again")
    affine = head.affine
    if affine is not None:
        affine = affine.copy()
        affine[:3, 3] += k * affine[:3, 2]
    times_s = None if head.frame_s is None else head.frame_s * np.arange(len(frames))
    return Cine(frames, head.spacing_mm, head.thickness_mm, affine, times_s)


def read_mask(place: Place, shape: tuple[int, int]) -> np.ndarray:
    """One plane of a mask: (H, W) bool, True where the stored number is not 0.

    Args:
        place: a file of one plane, (H, W), (H, W, 1) or (1, H, W); or a slice of a volume, (S, H, W) or (H, W, S).
        shape: H and W of the picture it belongs to.

    Raises:
        MedsegError: unreadable, on another grid, no such slice, NaN, or more values than 0 and one other.
    """
    voxels = read_volume(place.path).voxels
    axis = slice_axis(place, voxels.shape, shape)
    plane = voxels.take(place.index or 0, axis=axis)
    if plane.dtype.kind == "f" and not np.isfinite(plane).all():
        raise MedsegError(f"{place.path} has values that are no numbers (NaN or infinite); save it again as 0 and 1")
    values = np.unique(plane[plane != 0])
    if len(values) > 1:
        some = " ".join(f"{v:g}" for v in values[:5].tolist())
        raise MedsegError(
            f"{place.path} has {len(values)} values beside 0 ({some}) where a mask has one; write each structure into "
            "a file of its own"
        )
    return np.ascontiguousarray(plane != 0)


def slice_axis(place: Place, stored: Sequence[int], shape: tuple[int, int]) -> int:
    """Along which axis the slices of a mask lie, told by H and W of the picture: 0 or 2.

    Raises:
        MedsegError: a mask on another grid, one whose every axis is as long as the others, or no such slice.
    """
    fits = [axis for axis in (2, 0) if tuple(np.delete(stored, axis)) == tuple(shape)]
    seen = f"{place.path} has shape {tuple(stored)}"
    if not fits:
        turned = any(tuple(np.delete(stored, axis)) == tuple(shape[::-1]) for axis in (2, 0))
        fix = "swap its two in-plane axes" if turned else "resample it to the picture, nearest neighbour"
        raise MedsegError(f"{seen}, which is another grid than the {shape[0]} x {shape[1]} of its picture; {fix}")
    if len(fits) > 1:
        raise MedsegError(f"{seen}, so nobody can tell which axis is that of the slices; write one file per slice")
    num, (axis,) = stored[fits[0]], fits
    if place.index is None and num > 1:
        raise MedsegError(f"{seen}: {num} slices where one is meant; say which one with --slice 0 to {num - 1}")
    if place.index is not None and not 0 <= place.index < num:
        raise MedsegError(f"{seen}: it has {num} slices and none of number {place.index}, counted from 0")
    return axis


def write_masks(masks: Mapping[int, np.ndarray], reference: Sequence[Place], out: Path) -> Path:
    """Masks on the grid of the files they belong to: same shape, axis order and affine, as uint8 0 and 1.

    A volume becomes one file, whose other slices are 0; files of one plane become a folder of files of their names.

    Args:
        masks: (H, W) by position in `reference`.
        reference: planes of the masks they go with, such as the myocardium.
        out: with or without .nii.gz; of a folder the suffix is left out, to a file it is added.

    Returns:
        The file, or the folder.

    Raises:
        MedsegError: a reference that cannot be read or is on another grid, or a disk that refuses.
    """
    out = Path(out)
    volumes = {place.path for place in reference if place.index is not None}
    if volumes:
        assert len(volumes) == 1, "the slices of a volume lie in one file"
        path = out if out.name.endswith((".nii.gz", ".nii")) else out.with_name(out.name + ".nii.gz")
        _write_volume(volumes.pop(), {reference[k]: mask for k, mask in masks.items()}, path)
        return path
    folder = out.with_name(case_name(out)) if out.name.endswith((".nii.gz", ".nii")) else out
    for k, mask in masks.items():
        place = reference[k]
        _write_volume(place.path, {place: mask}, folder / f"{case_name(place.path)}.nii.gz")
    return folder


def num_slices_of(mask: Path, shape: tuple[int, int]) -> tuple[int, int]:
    """The slice axis of a mask volume and how many slices it has, from its header; errors as `slice_axis`."""
    stored = read_grid(mask).shape
    axis = slice_axis(Place(mask, 0), stored, shape)
    return axis, stored[axis]


def _write_volume(path: Path, masks: Mapping[Place, np.ndarray], out: Path) -> None:
    reference = read_volume(path)
    voxels = np.zeros(reference.voxels.shape, dtype=np.uint8, order="F")
    for place, mask in masks.items():
        axis = slice_axis(place, voxels.shape, mask.shape)
        where = [slice(None)] * 3
        where[axis] = place.index or 0
        voxels[tuple(where)] = mask != 0
    write_volume(reference.like(voxels), out)


@contextmanager
def _opened(place: Place, axes: str) -> Iterator[tuple[Header, Head, Stream]]:
    if axes != "auto" and axes not in AXES:
        raise MedsegError(f"--axes {axes!r} is none of auto, {', '.join(AXES)}{meant(axes.upper(), AXES)}")
    with opened(place.path) as (header, stream):
        yield header, _head(header, _order(header, axes, stack=place.index is not None)), stream


def _check_index(place: Place, head: Head) -> None:
    num = head.num_slices
    if place.index is None and num > 1:
        raise MedsegError(f"{place.path} holds {num} slices where one is meant; say which one with --slice")
    if place.index is not None and not 0 <= place.index < num:
        raise MedsegError(f"{place.path} holds {num} slices and none of number {place.index}, counted from 0")


def _head(header: Header, axes: str) -> Head:
    full = (*header.shape, *(1,) * (len(axes) - len(header.shape)))
    sizes = dict(zip(axes, full, strict=True))
    columns = [axes.index(letter) for letter in "HW"]
    steps = np.linalg.norm(header.affine[:3, :3], axis=0)
    affine = thickness = None
    at = axes.find("T")
    if "S" in axes[:3] and not 0 <= at < 3:
        affine = header.affine[:, [*columns, axes.index("S"), 3]]
        thickness = float(steps[axes.index("S")])
    frame_s = header.frame_s if at == 3 else float(steps[at]) if at >= 0 and 0 < steps[at] < LONGEST_FRAME_S else None
    return Head(
        axes=axes,
        shape=(sizes["H"], sizes["W"]),
        num_slices=sizes.get("S", 1),
        num_frames=sizes.get("T", 1),
        spacing_mm=(float(steps[columns[0]]), float(steps[columns[1]])),
        thickness_mm=thickness,
        affine=affine,
        frame_s=frame_s,
    )


def _order(header: Header, axes: str, *, stack: bool) -> str:
    """The axes of a file, as many as it has."""
    shape, num = header.shape, len(header.shape)
    if axes != "auto":
        if num > len(axes):
            raise MedsegError(f"{header.path} has shape {shape}, {num} axes where --axes {axes} names {len(axes)}")
        return axes
    if num > 4:
        raise MedsegError(f"{header.path} has shape {shape} where a cine has three axes or four; split it")
    seen = f"{header.path} has shape {shape} and steps of {_steps(header)} mm"
    told = _told(header)
    if num == 4:
        if "other" in told and "plane" not in told:
            raise MedsegError(f"{seen}: its first two axes are no plane; say what they are, as in --axes SHWT")
        return "HWST"
    if shape[2] == 1:
        return "HWS"
    if shape[0] == 1 or "plane" not in told:
        return "THW"
    if stack and "other" not in told:
        return "HWS"
    raise MedsegError(
        f"{seen}: its first axis is space, where a file of one slice has (T, H, W); give --axes HWT if its last axis "
        "is time, --axes HWS if it is the slices, or correct its header"
    )


def _told(header: Header) -> tuple[str, str]:
    """What steps and lengths say of the first two axes: "plane", "other" (a plane follows), or ""."""
    one, two, three = np.linalg.norm(header.affine[:3, :3], axis=0).tolist()
    first, last = (abs(a - b) <= ALIKE * max(a, b) for a, b in ((one, two), (two, three)))
    steps = "" if first == last else "plane" if first else "other"
    one, two, three = header.shape[:3]
    if (one == two) != (two == three):
        return steps, "plane" if one == two else "other"
    if 2 * three <= min(one, two):
        return steps, "plane"
    return steps, "other" if 2 * one <= min(two, three) else ""


def _steps(header: Header) -> str:
    return " x ".join(f"{step:.3g}" for step in np.linalg.norm(header.affine[:3, :3], axis=0).tolist())
