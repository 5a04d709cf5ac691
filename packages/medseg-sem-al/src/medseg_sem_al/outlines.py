"""Masks as outlines in the zip of ImageJ's ROI manager, there and back.

Axes: H W of a picture, P points of an outline: x and y in pixels from the picture's upper left corner.
"""

import io
import re
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from contourpy import contour_generator
from roifile import ROI_OPTIONS, ROI_SUBTYPE, ROI_TYPE, ImagejRoi, roiread

from medseg_core.errors import MedsegError
from medseg_core.io import replacing
from medseg_sem_al.colours import UNSEEN

MOST_OUTLINES = 2000  # above that ImageJ's list gets slow
AREAS = (ROI_TYPE.POLYGON, ROI_TYPE.RECT, ROI_TYPE.OVAL, ROI_TYPE.FREEHAND, ROI_TYPE.TRACED)


def write_outlines(ids: np.ndarray, names: Sequence[str], path: Path) -> int:
    """An ImageJ ROI zip: each connected part of a class by its outer border, the largest first.

    Filled one after the other they are the mask again, but for what has no label and lies inside of a part. There is no
    zip of more than 2000.

    Returns:
        How many parts there are.
    """
    found = sorted(outlines(ids, len(names)), key=lambda one: -one[0])
    if len(found) > MOST_OUTLINES:
        return len(found)
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        for number, (_, k, points_P2) in enumerate(found, 1):
            roi = ImagejRoi.frompoints(points_P2.astype(np.float32), name=f"{number:04d}_{names[k]}")
            entry = zipfile.ZipInfo(f"{number:04d}_{names[k]}.roi", (1980, 1, 1, 0, 0, 0))
            archive.writestr(entry, roi.tobytes())
    with replacing(path) as beside:
        beside.write_bytes(content.getvalue())
    return len(found)


def outlines(ids: np.ndarray, num_classes: int) -> Iterator[tuple[float, int, np.ndarray]]:
    """Area, class and (P, 2) x and y of each outer border, in pixels from the upper left corner of the picture."""
    for k in range(num_classes):
        inside = np.pad((ids == k).astype(np.float32), 1)
        for points_P2 in contour_generator(z=inside).lines(0.5):
            x, y = points_P2[:-1].T
            area = 0.5 * float(x @ np.roll(y, -1) - y @ np.roll(x, -1))
            if area > 0:  # a hole runs the other way, and belongs to what lies in it
                yield area, k, points_P2[:-1] - 0.5  # from the centre of the padding's corner pixel


def read_outlines(path: Path, names: Sequence[str], size: Sequence[int]) -> np.ndarray:
    """(H, W) uint8 ids of outlines filled one after the other, in the order of the list; 255 where there is none.

    An outline is named after its class: `SE`, `0012_SE`, or `SE-1`, as ImageJ calls a second one.

    Args:
        size: H and W.

    Raises:
        MedsegError: unreadable, or with an outline that has no area, that names no class, or that ImageJ bends.
    """
    if path.suffix.lower() != ".zip":
        said = f"{path.name} is an outline without the name of its class, as ImageJ saves a single one"
        raise MedsegError(f"{said}; save two or more as a zip, or correct the picture")
    try:
        found = roiread(path)
    except Exception as error:  # of a broken file the reader raises whatever it meets
        said = f"{path.name} is no list of outlines ({error})"
        raise MedsegError(f"{said}; save it in the ROI manager by More > Save") from None
    ids = np.full(tuple(size), UNSEEN, np.uint8)
    for roi in found:
        try:
            _fill(ids, _lines(roi), names.index(_named(roi.name, names)))
        except Exception as error:
            said = f"{path.name}: the outline {roi.name or 'without a name'} {error}"
            raise MedsegError(said) from None
    return ids


def _named(name: str, names: Sequence[str]) -> str:
    """The class that an outline is of."""
    bare = re.sub(r"^\d+_", "", name)
    found = next((one for one in (name, bare, re.sub(r"-\d+$", "", bare)) if one in names), None)
    if found is None:
        raise ValueError(f"names no class; rename it in the ROI manager to one of {', '.join(names)}")
    return found


def _lines(roi: ImagejRoi) -> list[np.ndarray]:
    """Closed lines around what ImageJ fills, (P, 2) each."""
    if roi.roitype not in AREAS or roi.subtype in (ROI_SUBTYPE.TEXT, ROI_SUBTYPE.IMAGE):
        raise ValueError("has no area; draw around what is meant, or remove it")
    bent = "is bent; choose Edit > Selection > Interpolate, and Update it"
    if roi.options & ROI_OPTIONS.SPLINE_FIT or (roi.roitype == ROI_TYPE.RECT and roi.rounded_rect_arc_size):
        raise ValueError(bent)
    if roi.roitype == ROI_TYPE.OVAL:
        half_2 = np.array([roi.right - roi.left, roi.bottom - roi.top]) / 2
        turn_P = np.linspace(0, 2 * np.pi, 8 * int(half_2.sum() + 1), endpoint=False)
        return [np.array([roi.left, roi.top]) + half_2 * (1 + np.stack([np.cos(turn_P), np.sin(turn_P)], 1))]
    try:
        return roi.coordinates(multi=True)
    except NotImplementedError:  # curves of a composite
        raise ValueError(bent) from None


def _fill(ids: np.ndarray, lines: Sequence[np.ndarray], value: int) -> None:
    """Pixels whose centre lies within an odd number of closed lines get the value, as in ImageJ."""
    height, width = ids.shape
    lines = [points_P2.astype(np.float64) for points_P2 in lines]
    starts_P2, ends_P2 = np.concatenate(lines), np.concatenate([np.roll(points_P2, -1, 0) for points_P2 in lines])
    if not np.isfinite(starts_P2).all():
        raise ValueError("is damaged; remove it, and draw it anew")
    ends = np.sort([starts_P2[:, 1], ends_P2[:, 1]], 0)
    first_P, last_P = np.clip(np.ceil(ends - 0.5), 0, height).astype(int)  # rows whose centres an edge passes
    counts_P = last_P - first_P
    if not counts_P.any():
        return
    edge = np.repeat(np.arange(len(counts_P)), counts_P)
    row = np.arange(len(edge)) - np.repeat(counts_P.cumsum() - counts_P, counts_P) + first_P[edge]
    (x, y), (to_x, to_y) = starts_P2[edge].T, ends_P2[edge].T
    crossed = x + (row + 0.5 - y) * (to_x - x) / (to_y - y)
    column = np.clip(np.ceil(crossed - 0.5), 0, width).astype(int)
    top, bottom = int(row.min()), int(row.max()) + 1
    crossings = np.bincount((row - top) * (width + 1) + column, minlength=(bottom - top) * (width + 1))
    inside = crossings.reshape(bottom - top, width + 1)[:, :width].cumsum(1) % 2 == 1
    ids[top:bottom][inside] = value
