"""Masks that a person corrects, as pictures with the colours of the classes. Axes: H W of a picture."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from medseg_core.io import replacing

BLANK = (255, 255, 255)  # what has no label


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
