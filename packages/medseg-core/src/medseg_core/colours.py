"""A colour for every label id: always the same, told apart by normal and by colour-blind eyes."""

from collections.abc import Iterable
from functools import cache

import numpy as np

OKABE_ITO = ((230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (0, 114, 178), (213, 94, 0), (204, 121, 167))
NUM_COLOURS = 255
# sRGB (linear) as people without green- and without red-sensitive cones see it (Machado et al., 2009, severity 1.0).
DEUTAN = ((0.367322, 0.860646, -0.227968), (0.280085, 0.672501, 0.047413), (-0.011820, 0.042940, 0.968881))
PROTAN = ((0.152286, 1.052583, -0.204868), (0.114503, 0.786281, 0.099216), (-0.003882, -0.048116, 1.051998))


def colour_of(label_id: int) -> tuple[int, int, int]:
    """Red, green and blue (0 to 255) of a label id: always the same, black for 0, distinct for the ids 1 to 255.

    The first seven are the colour-blind safe ones of Okabe and Ito (2008); larger ids begin again at 1.
    """
    return (0, 0, 0) if label_id == 0 else _colours()[(label_id - 1) % NUM_COLOURS]


def colour_table(ids: Iterable[int]) -> np.ndarray:
    """(max id + 1, 3) uint8, row i the colour of id i; ids not named stay black."""
    ids = [i for i in ids if i > 0]
    table = np.zeros((max(ids, default=0) + 1, 3), np.uint8)
    for i in ids:
        table[i] = colour_of(i)
    return table


@cache
def _colours() -> tuple[tuple[int, int, int], ...]:
    """Farthest-point choice (as Glasbey et al., 2007) in Oklab (Ottosson, 2020), for normal and colour-blind eyes."""
    levels = np.arange(16, dtype=np.int64) * 17
    grid = np.stack(np.meshgrid(levels, levels, levels, indexing="ij"), -1).reshape(-1, 3)
    lab = _oklab(_linear(grid))
    vivid = (lab[:, 0] > 0.42) & (lab[:, 0] < 0.93) & (np.hypot(lab[:, 1], lab[:, 2]) > 0.06)
    rgb = np.concatenate([np.array(OKABE_ITO), grid[vivid]])
    seen = [_oklab(_linear(rgb) @ np.array(eye).T) for eye in (np.eye(3), DEUTAN, PROTAN)]
    weights = (1.0, 2.5, 2.5)
    nearest = np.full(len(rgb), np.inf)
    chosen: list[int] = []
    for number in range(NUM_COLOURS):
        pick = number if number < len(OKABE_ITO) else int(nearest.argmax())
        chosen.append(pick)
        away = [w * np.linalg.norm(lab - lab[pick], axis=1) for lab, w in zip(seen, weights, strict=True)]
        nearest = np.minimum(nearest, np.min(away, axis=0))
    return tuple((int(r), int(g), int(b)) for r, g, b in rgb[chosen])


def _linear(rgb: np.ndarray) -> np.ndarray:
    """sRGB 0..255 to linear light 0..1 (IEC 61966-2-1)."""
    value = rgb / 255.0
    return np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)


def _oklab(linear: np.ndarray) -> np.ndarray:
    to_lms = [[0.4122214708, 0.5363325363, 0.0514459929], [0.2119034982, 0.6806995451, 0.1073969566]]
    to_lms.append([0.0883024619, 0.2817188376, 0.6299787005])
    to_lab = [[0.2104542553, 0.7936177850, -0.0040720468], [1.9779984951, -2.4285922050, 0.4505937099]]
    to_lab.append([0.0259040371, 0.7827717662, -0.8086757660])
    return np.cbrt(linear @ np.array(to_lms).T) @ np.array(to_lab).T
