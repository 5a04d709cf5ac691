"""Lesions found, missed and invented: connected parts of two label maps held against each other.

A lesion is a connected part of one id (`medseg_core.masks.components`); one in the label is a reference lesion, one in
the mask a predicted lesion. Lesions match only within an id. Two conventions say when; their numbers differ, so name
`min_iou` and the connectivity beside them.

- `min_iou=0`: any common voxel, however many lesions share it (WMH challenge, Kuijf et al., 2019, with 26 neighbours;
  autoPET, Gatidis et al., 2024, with 18). There is no one count of true positives: a reference lesion is found if a
  predicted voxel lies in it, a predicted one is true if a reference voxel lies in it. One prediction over three
  reference lesions finds three and is one true prediction; three predictions in one lesion find one and are three.
- `min_iou>0`: pairs, in which each lesion stands at most once and whose IoU is at least `min_iou`. Above 0.5 there is
  one way to pair (Kirillov et al., 2019, who ask for more than 0.5: `np.nextafter(0.5, 1)`); up to there the pairs with
  the largest sum of IoUs are taken, and of equal sums the most pairs.

Sensitivity is found / reference lesions, precision true / predicted lesions, and F1 their harmonic mean. Panoptic
quality is the sum of the pairs' IoUs over half the number of all lesions; over F1 it is their mean IoU, the
segmentation quality.

For empty sides the table in `medseg_core.metrics` holds: F1 and panoptic quality stand where Dice does. Numbers and
volumes of what is not there are 0.
"""

import math
from collections.abc import Iterable, Sequence

import numpy as np
from numba import njit
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import min_weight_full_bipartite_matching

from medseg_core.errors import MedsegError
from medseg_core.masks import LARGEST_ID, components, in_fortran_order
from medseg_core.metrics import checked_ids, checked_pair

BLOCK = 2**20  # voxels whose overlaps are held before equal ones are put together
TIE = 1e-9  # of IoU, for each pair: of equal sums the one of more pairs is the larger


def lesion_metrics(
    mask: np.ndarray,
    label: np.ndarray,
    *,
    ids: Iterable[int],
    spacing: Sequence[float],
    connectivity: int | None = None,
    min_iou: float = 0.0,
    min_voxels: int = 1,
) -> dict[str, np.ndarray]:
    """Detection of the lesions of each id; the text of this module defines it.

    Args:
        mask, label: (X, Y, Z) or (H, W) predicted and true ids, whole numbers from 0 to 65535; types and memory orders
            may differ.
        ids: (L,); 0 is not one.
        spacing: voxel edges, one per axis of the array.
        connectivity: 6, 18 or 26 in 3D, 4 or 8 in 2D; None is 26 or 8.
        min_iou: 0 for any common voxel, or the least IoU of a pair, up to 1.
        min_voxels: smaller parts, on either side, are background.

    Returns:
        Each (L,) float64 in the order of `ids`: `lesions_ref`, `lesions_pred`, `lesions_found` and `lesions_missed` of
        the reference, `lesions_invented` of the predicted; `lesion_sensitivity`, `lesion_precision`, `lesion_f1` and,
        with `min_iou`, `lesion_pq`, in [0, 1]; `missed_volume` and `invented_volume`, in the unit of the spacing cubed
        (in 2D areas, squared), of the lesions without any common voxel, whatever `min_iou`.

    Raises:
        MedsegError: arrays of different shape, not label maps, or an id, spacing, connectivity, `min_iou` or
            `min_voxels` that does not exist.
    """
    mask, label = checked_pair(mask, label)
    chosen = checked_ids(ids)
    _check(mask.ndim, chosen, spacing, min_iou, min_voxels)
    (mask_ids, label_ids), (mask_voxels, label_voxels), (a, b), common = _overlaps(mask, label, connectivity)
    mask_ids[mask_voxels < min_voxels] = label_ids[label_voxels < min_voxels] = 0
    alike = (mask_ids[a] == label_ids[b]) & (mask_ids[a] > 0)
    a, b, common = a[alike], b[alike], common[alike]

    def summed(of: np.ndarray, amount: np.ndarray | float) -> np.ndarray:
        weights = np.broadcast_to(np.asarray(amount, np.float64), of.shape)
        return np.bincount(of, weights, LARGEST_ID + 1)[chosen].astype(np.float64)  # without any, it gives integers

    size = math.prod(map(float, spacing))
    missed_volume = size * summed(label_ids, np.where(_marked(b, label_ids), 0, label_voxels))
    invented_volume = size * summed(mask_ids, np.where(_marked(a, mask_ids), 0, mask_voxels))
    if min_iou > 0:
        iou = common / (mask_voxels[a] + label_voxels[b] - common)
        a, b, iou = _paired(*(part[iou >= min_iou] for part in (a, b, iou)))
    num_ref, num_pred = summed(label_ids, 1), summed(mask_ids, 1)
    found, true = summed(label_ids, _marked(b, label_ids)), summed(mask_ids, _marked(a, mask_ids))
    sensitivity, precision = _share(found, num_ref), _share(true, num_pred)
    quality = {"lesion_pq": _share(summed(label_ids[b], iou), (num_ref + num_pred) / 2)} if min_iou > 0 else {}
    return {
        "lesions_ref": num_ref,
        "lesions_pred": num_pred,
        "lesions_found": found,
        "lesions_missed": num_ref - found,
        "lesions_invented": num_pred - true,
        "lesion_sensitivity": sensitivity,
        "lesion_precision": precision,
        "lesion_f1": _harmonic(sensitivity, precision),
        **quality,
        "missed_volume": missed_volume,
        "invented_volume": invented_volume,
    }


def _check(num_axes: int, ids: np.ndarray, spacing: Sequence[float], min_iou: float, min_voxels: int) -> None:
    if (ids == 0).any():
        raise MedsegError("id 0 is the background, which has no lesions; leave it out of ids")
    if len(spacing) != num_axes or not all(0 < edge < np.inf for edge in spacing):
        raise MedsegError(f"spacing {tuple(spacing)} must be {num_axes} positive lengths, one per axis of the array")
    if not 0 <= min_iou <= 1:
        raise MedsegError(f"min_iou={min_iou} must lie between 0 and 1; take 0 for any common voxel, or 0.5")
    if not min_voxels >= 1:
        raise MedsegError(f"min_voxels={min_voxels} must be 1 or more; take 1 to keep every lesion")


def _share(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.divide(part, whole, out=np.full_like(part, np.nan), where=whole > 0)


def _harmonic(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The harmonic mean; 0 where one number is 0 and the other does not exist, nan where neither exists."""
    total = np.nan_to_num(a) + np.nan_to_num(b)
    mean = np.divide(2 * np.nan_to_num(a) * np.nan_to_num(b), total, out=np.zeros_like(total), where=total > 0)
    return np.where(np.isnan(a) & np.isnan(b), np.nan, mean)


def _marked(parts: np.ndarray, like: np.ndarray) -> np.ndarray:
    """True at each of these places, of as many as `like` has."""
    marks = np.zeros(like.shape, bool)
    marks[parts] = True
    return marks


def _paired(a: np.ndarray, b: np.ndarray, iou: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Those of the overlaps (N,) in which each a and each b stands at most once, of the largest sum of IoUs.

    SciPy's assignment of sparse pairs leaves nobody out. So every a and b may take a stand-in of its own instead, and
    the stand-ins of two that do pair take each other: the number of pairs is fixed, and 1 added to all changes nothing
    but that none is 0, which would not be a pair.
    """
    if not len(a):
        return a, b, iou
    row, column = (np.unique(part, return_inverse=True)[1] for part in (a, b))
    each_row, each_column = np.arange(row.max() + 1), np.arange(column.max() + 1)
    num = len(each_row) + len(each_column)
    rows = np.concatenate([row, each_row, len(each_row) + each_column, len(each_row) + column])
    columns = np.concatenate([column, len(each_column) + each_row, each_column, len(each_column) + row])
    worth = np.concatenate([1 + TIE + iou, np.ones(num + len(iou))])
    taken = min_weight_full_bipartite_matching(csr_matrix((worth, (rows, columns)), shape=(num, num)), maximize=True)
    partner = np.empty(num, np.int64)
    partner[taken[0]] = taken[1]
    pairs = partner[row] == column
    return a[pairs], b[pairs], iou[pairs]


def _overlaps(
    mask: np.ndarray, label: np.ndarray, connectivity: int | None
) -> tuple[Sequence[np.ndarray], Sequence[np.ndarray], Sequence[np.ndarray], np.ndarray]:
    """The parts of both sides, and which of them overlap.

    Parts are numbered from 1 in the mask and in the label; 0 is the background, of id 0.

    Returns:
        Ids of the A parts of the mask and of the B of the label, (A,) and (B,); their voxels; the two parts of each
        overlap, (N,) and (N,); its voxels (N,).
    """
    order = "F" if in_fortran_order(mask) else "C"
    sides = [np.asarray(side, order=order) for side in (mask, label)]
    parts = [components(side, connectivity=connectivity).ravel(order=order) for side in sides]
    places, voxels = zip(*(np.zeros((2, int(part.max(initial=0)) + 1), np.int64) for part in parts), strict=True)
    runs, lengths = np.empty((2, min(BLOCK, mask.size)), np.int64)
    seen = [(runs[:0], lengths[:0])]
    for start in range(0, mask.size, BLOCK):
        here = [part[start : start + BLOCK] for part in parts]
        num = _walk(*here, start, places, voxels, runs, lengths)
        seen.append(_put_together(runs[:num], lengths[:num]))
    pairs, common = _put_together(*map(np.concatenate, zip(*seen, strict=True)))
    flat = [side.ravel(order=order) for side in sides]
    ids = [np.append(0, side[place[1:]].astype(np.int64)) for side, place in zip(flat, places, strict=True)]
    return ids, voxels, np.divmod(pairs, len(voxels[1])), common


def _put_together(runs: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Runs of the same parts as one, of all their lengths."""
    once, which = np.unique(runs, return_inverse=True)
    return once, np.bincount(which, lengths, len(once)).astype(np.int64)


@njit(nogil=True, cache=True)
def _walk(mask_parts, label_parts, start, places, voxels, runs, lengths):
    """Goes along flat (n,) parts by runs of the same two, and adds up the voxels of each part.

    Args:
        start: place of the first voxel.
        places, voxels: of the parts of the mask and of those of the label; the places get that of a voxel in the part.
        runs, lengths: get those that are background on neither side, `part of mask * parts of label + part of label`.

    Returns:
        How many of those there are.
    """
    num, begun = 0, 0
    a, b = mask_parts[0], label_parts[0]
    for i in range(1, len(mask_parts) + 1):
        if i < len(mask_parts) and mask_parts[i] == a and label_parts[i] == b:
            continue
        places[0][a] = places[1][b] = start + begun
        voxels[0][a] += i - begun
        voxels[1][b] += i - begun
        if a != 0 and b != 0:
            runs[num] = np.int64(a) * len(voxels[1]) + np.int64(b)
            lengths[num] = i - begun
            num += 1
        if i < len(mask_parts):
            a, b, begun = mask_parts[i], label_parts[i], i
    return num
