"""Parts of a picture. Axes: H W of a picture."""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

Box = tuple[int, int, int, int]
"""(top, left, bottom, right) in pixels, the last two beyond the part."""


def boxes(size: Sequence[int], edge: int) -> list[Box]:
    """(top, left, bottom, right) of parts of about this edge that cover a picture; of the whole for edge 0."""
    ends = []
    for length in size:
        num = max(round(length / edge), 1) if edge else 1
        ends.append(np.linspace(0, length, num + 1).round().astype(int).tolist())
    rows, columns = (list(pairwise(some)) for some in ends)
    return [(top, left, bottom, right) for top, bottom in rows for left, right in columns]


def part_of(box: Sequence[int]) -> tuple[slice, slice]:
    """Rows and columns of a box."""
    top, left, bottom, right = box
    return slice(top, bottom), slice(left, right)


def within(boxes: Sequence[Sequence[int]], shape: Sequence[int]) -> np.ndarray:
    """(H, W) bool: what lies in one of the boxes."""
    inside = np.zeros(shape, bool)
    for box in boxes:
        inside[part_of(box)] = True
    return inside
