"""Masks that a person corrects: indexed pictures with the colours of the classes, and outlines for ImageJ.

Axes: H W of a picture, P points of an outline.
"""

import io
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from contourpy import contour_generator
from PIL import Image
from roifile import ImagejRoi

from medseg_core.io import replacing

BLANK = (255, 255, 255)  # what has no label
MOST_OUTLINES = 2000  # the largest; ImageJ's list gets slow


def write_indexed(ids: np.ndarray, colours: Sequence[Sequence[int]], path: Path) -> None:
    """A palette picture, .png or .tif, whose values are the ids; 255, which nobody labelled, is white.

    ImageJ and GIMP show and keep the palette.

    Args:
        ids: (H, W) uint8.
    """
    palette = np.tile(np.uint8(BLANK), (256, 1))
    palette[: len(colours)] = colours
    picture = Image.fromarray(ids, "P")
    picture.putpalette(palette.tobytes())
    with replacing(path) as beside:
        picture.save(beside)


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
