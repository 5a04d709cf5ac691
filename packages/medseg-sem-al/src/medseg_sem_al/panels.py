"""Pictures of masks: painted, over the image, and where they are wrong. Axes: H W of a picture."""

from collections.abc import Sequence

import numpy as np

from medseg_core.colours import colour_of
from medseg_sem_al.colours import UNSEEN, Classes, rgb

GAP, TALLEST = 6, 512  # pixels between the parts of a panel, and rows of a part
RIGHT, WRONG = (40, 40, 40), (255, 80, 0)


def colours_of(classes: Classes) -> list[tuple[int, int, int]]:
    """A colour for each class: the first one that its masks had; one of core's where they had greys or indices."""
    found: list[tuple[int, int, int]] = []
    for number in range(len(classes.names)):
        codes = [code for code, k in classes.codes.items() if k == number and isinstance(code, str)]
        found.append(rgb(codes[0]) if codes else colour_of(number))
    return found


def painted(ids: np.ndarray, colours: Sequence[Sequence[int]]) -> np.ndarray:
    """(H, W, 3) uint8 of ids; white where nobody looked."""
    table = np.full((256, 3), 255, np.uint8)
    table[: len(colours)] = colours
    return table[ids]


def overlaid(grey: np.ndarray, ids: np.ndarray, colours: Sequence[Sequence[int]]) -> np.ndarray:
    """(H, W, 3) uint8: the picture, its classes in colour with a third of their strength, their borders in full.

    A black class leaves the picture as it is.

    Args:
        grey: (H, W) in [0, 1].
    """
    paint, ground = painted(ids, colours).astype(np.float32), 255 * grey[..., None]
    border = np.zeros(ids.shape, bool)
    border[:-1] |= ids[:-1] != ids[1:]
    border[:, :-1] |= ids[:, :-1] != ids[:, 1:]
    mixed = np.where(border[..., None], paint, 0.65 * ground + 0.35 * paint)
    bare = (ids == UNSEEN) | (~border & ~paint.any(-1))
    mixed = np.where(bare[..., None], ground, mixed)
    return np.clip(np.rint(mixed), 0, 255).astype(np.uint8)


def panel(grey: np.ndarray, label: np.ndarray, mask: np.ndarray, colours: Sequence[Sequence[int]]) -> np.ndarray:
    """image | truth | prediction | error, side by side, (h, w, 3) uint8; large ones are thinned out.

    Args:
        grey: (H, W) in [0, 1].
        label, mask: (H, W) ids.
    """
    step = -(-grey.shape[0] // TALLEST)
    grey, label, mask = (part[::step, ::step] for part in (grey, label, mask))
    ground = np.repeat(np.clip(np.rint(255 * grey), 0, 255).astype(np.uint8)[..., None], 3, -1)
    wrong = (label != mask) & (label != UNSEEN)
    error = np.where(wrong[..., None], np.uint8(WRONG), np.uint8(RIGHT))
    return beside([ground, painted(label, colours), painted(mask, colours), error])


def beside(parts: Sequence[np.ndarray]) -> np.ndarray:
    """Pictures (H, W, 3) of one height in a row, with white gaps."""
    gap = np.full((parts[0].shape[0], GAP, 3), 255, np.uint8)
    return np.concatenate([piece for part in parts for piece in (part, gap)][:-1], 1)
