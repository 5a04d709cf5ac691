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
from roifile import ROI_TYPE, ImagejRoi, roiread

from medseg_core.errors import MedsegError
from medseg_core.io import replacing
from medseg_sem_al.colours import UNSEEN

MOST_OUTLINES = 2000  # the largest; ImageJ's list gets slow
AREAS = (ROI_TYPE.POLYGON, ROI_TYPE.RECT, ROI_TYPE.OVAL, ROI_TYPE.FREEHAND, ROI_TYPE.TRACED)


def write_outlines(ids: np.ndarray, names: Sequence[str], path: Path) -> int:
    """An ImageJ ROI zip: each connected part of a class by its outer border, the largest first.

    Filled one after the other they are the mask again, but for what lies inside of smaller parts.

    Returns:
        How many parts were left out, the smallest, as ImageJ gets slow above 2000.
    """
    found = sorted(outlines(ids, len(names)), key=lambda one: -one[0])
    kept = found[:MOST_OUTLINES]
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        for number, (_, k, points_P2) in enumerate(kept):
            roi = ImagejRoi.frompoints(points_P2.astype(np.float32), name=f"{number + 1:04d}_{names[k]}")
            entry = zipfile.ZipInfo(f"{number + 1:04d}_{names[k]}.roi", (1980, 1, 1, 0, 0, 0))
            archive.writestr(entry, roi.tobytes())
    with replacing(path) as beside:
        beside.write_bytes(content.getvalue())
    return len(found) - len(kept)


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
        MedsegError: unreadable, or with an outline that has no area or names no class.
    """
    try:
        found = roiread(path)
    except Exception as error:  # of a broken file the readers raise whatever they meet
        said = f"{path.name} is no list of outlines ({error})"
        raise MedsegError(f"{said}; save it in the ROI manager by More > Save") from None
    ids, known = np.full(tuple(size), UNSEEN, np.uint8), "|".join(map(re.escape, sorted(names, key=len, reverse=True)))
    for roi in found:
        name = re.fullmatch(rf"(?:\d+_)?({known})(?:-\d+)?", roi.name)
        if name is None:
            said = f"{path.name}: the outline {roi.name} names no class"
            raise MedsegError(f"{said}; rename it in the ROI manager to one of {', '.join(names)}")
        if roi.roitype not in AREAS:
            raise MedsegError(f"{path.name}: {roi.name} has no area; draw around what is meant, or remove it")
        _fill(ids, roi.coordinates(multi=True), names.index(name[1]))
    return ids


def _fill(ids: np.ndarray, lines: Sequence[np.ndarray], value: int) -> None:
    """Pixels whose centre lies within an odd number of closed lines get the value, as in ImageJ."""
    height, width = ids.shape
    starts_P2, ends_P2 = np.concatenate(lines), np.concatenate([np.roll(points_P2, -1, 0) for points_P2 in lines])
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
