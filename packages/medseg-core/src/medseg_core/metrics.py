"""Overlap of two label maps: all labels counted in one pass, scores from the counts, one policy for empty sides.

What stands for a structure that is empty on one side or on both:

| measure                                   | both   | missed      | invented    | absent |
|-------------------------------------------|--------|-------------|-------------|--------|
| dice, iou, nsd, cldice, lesion_f1         | number | 0           | 0           | nan    |
| sensitivity (of voxels, lesions, courses) | number | 0           | nan         | nan    |
| precision (of voxels, lesions, courses)   | number | nan         | 0           | nan    |
| specificity, accuracy                     | number | number      | number      | nan    |
| volume_difference                         | number | -1          | nan         | nan    |
| hd, hd95, assd, `empty="undefined"`       | number | nan         | nan         | nan    |
| hd, hd95, assd, `empty="worst"`           | number | diagonal    | diagonal    | nan    |

`missed` is on the label only, `invented` on the mask only, `absent` on neither. nan means that the number does not
exist (0/0, or a distance to nothing). It is left out of a mean, never put in as 0 or as 1, so a mean stands beside its
number of values and of missed and invented structures: a distance cannot show that a structure was missed, the count
does. Who wants one number that shows it takes the policy "worst", as challenges do: the array's diagonal, which no
distance exceeds. `absent` has no number, or an empty mask would score well on all that a scan does not show.
Specificity and accuracy are close to 1 wherever the background is large.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from operator import index

import numpy as np
from numba import njit

from medseg_core.errors import MedsegError
from medseg_core.masks import LARGEST_ID, along_memory, whole_ids

TILE = 32  # edge of the blocks in which arrays of different memory order are read: rows of both stay in the cache


@dataclass(frozen=True, eq=False)
class Counts:
    """Voxels of each label in a mask and a label, by place in `ids`.

    Args:
        ids: (L,) int64.
        both: (L,) int64, voxels that have the id on both sides: the true positives.
        mask, label: (L,) int64, voxels that have the id on that side.
        total: voxels of the whole array.
    """

    ids: np.ndarray
    both: np.ndarray
    mask: np.ndarray
    label: np.ndarray
    total: int


def count(mask: np.ndarray, label: np.ndarray, *, ids: Iterable[int] | None = None) -> Counts:
    """Counts every label in one pass over two label maps.

    They may differ in type and memory order; the same of both is fastest.

    Args:
        mask, label: (X, Y, Z) or (H, W) predicted and true ids, whole numbers from 0 to 65535 in any integer type or
            bool.
        ids: what to count, in this order; None is every id but 0 on either side, in ascending order.

    Raises:
        MedsegError: arrays of different shape, not label maps, or an id that no label map can hold.
    """
    mask, label = checked_pair(mask, label)
    tables = np.zeros((3, LARGEST_ID + 1), np.int64)
    views = along_memory(mask, label)
    if mask.dtype == label.dtype and all(view.flags.c_contiguous for view in views):
        flat = [view.ravel() for view in views]
        words = [ids_n[: len(ids_n) // 8 * 8].view(np.uint64) for ids_n in flat]
        ones = np.ones(8 // mask.itemsize, mask.dtype).view(np.uint64)[0]
        _add_words(*flat, *words, ones, tables)
    else:
        _add_tiles(*views, tables)
    both, on_mask, on_label = tables
    chosen = 1 + np.flatnonzero((on_mask + on_label)[1:]) if ids is None else checked_ids(ids)
    return Counts(chosen, both[chosen], on_mask[chosen], on_label[chosen], label.size)


def scores(counts: Counts) -> dict[str, np.ndarray]:
    """Scores of each label, (L,) float64, nan where one does not exist (see the table of this module).

    Returns:
        In [0, 1]: `dice` 2 both / (mask + label), `iou` both / either, `sensitivity` both / label, `specificity` the
        share of the voxels outside the label that are outside the mask, `precision` both / mask, `accuracy` the share
        of all voxels on which the sides agree. From -1 up: `volume_difference` (mask - label) / label,
        0 where sizes are equal.
    """
    both, mask, label = (part.astype(np.float64) for part in (counts.both, counts.mask, counts.label))
    either = mask + label - both
    neither = np.where(either > 0, counts.total - either, np.nan)
    return {
        "dice": _share(2 * both, mask + label),
        "iou": _share(both, either),
        "sensitivity": _share(both, label),
        "specificity": _share(neither, counts.total - label),
        "precision": _share(both, mask),
        "accuracy": _share(both + neither, np.full_like(both, counts.total)),
        "volume_difference": _share(mask - label, label),
    }


def status(counts: Counts) -> np.ndarray:
    """(L,) text: `both` sides have the id, the mask has `missed` or `invented` it, or it is `absent` from both."""
    on_mask, on_label = counts.mask > 0, counts.label > 0
    return np.select([on_mask & on_label, on_label, on_mask], ["both", "missed", "invented"], "absent")


def checked_pair(mask: np.ndarray, label: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mask and label as `masks.whole_ids` gives them, of one shape.

    Raises:
        MedsegError: they differ in shape, or one is not a label map.
    """
    mask, label = whole_ids(mask, "mask"), whole_ids(label, "label")
    if mask.shape != label.shape:
        raise MedsegError(
            f"mask has shape {mask.shape} and label {label.shape}; bring the mask to the label's grid: "
            "resample(mask, label.grid, how='label')"
        )
    return mask, label


def checked_ids(ids: Iterable[int]) -> np.ndarray:
    """(L,) int64 ids from 0 to 65535.

    Raises:
        MedsegError: one is outside.
    """
    chosen = np.array([index(i) for i in ids], np.int64)
    wrong = chosen[(chosen < 0) | (chosen > LARGEST_ID)]
    if len(wrong):
        raise MedsegError(f"there is no id {wrong[0]}: ids run from 0 to {LARGEST_ID}")
    return chosen


def _share(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.divide(part, whole, out=np.full_like(part, np.nan), where=whole > 0)


@njit(nogil=True, cache=True)
def _add_words(mask, label, mask_words, label_words, ones, tables):
    """Adds flat (n,) ids to the tables of both, mask and label, and whole words of them at once where nothing changes.

    Background and the inside of organs are long runs of the same two ids: eight bytes of each side are compared with
    the ids of the run, which times `ones` fill a word.
    """
    lanes = 8 // mask.itemsize
    x, y, run = 0, 0, 0
    x_word, y_word = np.uint64(0), np.uint64(0)
    for w in range(len(mask_words)):
        if mask_words[w] == x_word and label_words[w] == y_word:
            run += lanes
            continue
        for i in range(w * lanes, (w + 1) * lanes):
            if mask[i] != x or label[i] != y:
                _add(tables, x, y, run)
                x, y, run = np.int64(mask[i]), np.int64(label[i]), 0
            run += 1
        x_word, y_word = np.uint64(x) * ones, np.uint64(y) * ones
    _add(tables, x, y, run)
    for i in range(len(mask_words) * lanes, len(mask)):
        _add(tables, mask[i], label[i], 1)


@njit(nogil=True, cache=True)
def _add_tiles(mask, label, tables):
    """Adds (X, Y, Z) ids of any strides to the tables of both, mask and label, block by block."""
    n0, n1, n2 = mask.shape
    x, y, run = 0, 0, 0
    for i0 in range(0, n0, TILE):
        for j0 in range(0, n1, TILE):
            for k0 in range(0, n2, TILE):
                for i in range(i0, min(i0 + TILE, n0)):
                    for j in range(j0, min(j0 + TILE, n1)):
                        mask_row, label_row = mask[i, j, k0 : k0 + TILE], label[i, j, k0 : k0 + TILE]
                        for k in range(len(mask_row)):
                            if mask_row[k] != x or label_row[k] != y:
                                _add(tables, x, y, run)
                                x, y, run = np.int64(mask_row[k]), np.int64(label_row[k]), 0
                            run += 1
    _add(tables, x, y, run)


@njit(nogil=True, cache=True)
def _add(tables, on_mask, on_label, voxels):
    tables[1, on_mask] += voxels
    tables[2, on_label] += voxels
    if on_mask == on_label:
        tables[0, on_mask] += voxels
