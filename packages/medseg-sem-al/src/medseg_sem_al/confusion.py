"""What was taken for what, in pixels, and the scores that follow. Axes: K classes."""

from collections.abc import Sequence

import numpy as np

from medseg_core.intervals import NUM_RESAMPLES


def confusion(mask: np.ndarray, label: np.ndarray, num_classes: int) -> np.ndarray:
    """(K, K) int64: row is the true id, column the predicted one; pixels of other ids on either side count nowhere.

    Args:
        mask, label: of one shape, whole numbers from 0.
    """
    known = (label < num_classes) & (mask < num_classes)
    places = label[known].astype(np.int64) * num_classes + mask[known]
    return np.bincount(places, minlength=num_classes**2).reshape(num_classes, num_classes)


def per_class(counts: np.ndarray) -> dict[str, np.ndarray]:
    """(K,) `dice`, `iou`, `recall`, `precision`, nan where they divide by nothing, and `share` of the true pixels."""
    both, true, found = np.diag(counts).astype(float), counts.sum(1), counts.sum(0)
    with np.errstate(invalid="ignore", divide="ignore"):
        return {
            "dice": 2 * both / (true + found),
            "iou": both / (true + found - both),
            "recall": both / true,
            "precision": both / found,
            "share": true / counts.sum(),
        }


def overall(counts: np.ndarray, *, commonest: int | None = None) -> dict[str, float]:
    """`miou` and `dice`, means over the classes that are on either side; `accuracy`; `majority`, the same mean IoU of a
    mask that is one class everywhere.

    Args:
        commonest: that class; None is the commonest of these true pixels.
    """
    dice = per_class(counts)["dice"]
    true = counts.sum(1)
    alone = np.zeros_like(counts)
    alone[:, true.argmax() if commonest is None else commonest] = true
    return {
        "miou": float(mean_iou(counts)),
        "dice": float(dice[np.isfinite(dice)].mean()) if np.isfinite(dice).any() else float("nan"),
        "accuracy": float(np.trace(counts) / max(counts.sum(), 1)),
        "majority": float(mean_iou(alone)),
    }


def mean_iou(counts: np.ndarray) -> np.ndarray:
    """(...) of (..., K, K): the mean IoU over the classes that are on either side, nan where none is."""
    both, total = np.diagonal(counts, axis1=-2, axis2=-1), counts.sum(-2) + counts.sum(-1)
    there = total > 0
    iou = np.divide(both, total - both, out=np.zeros(both.shape), where=there)
    num = there.sum(-1)
    return np.divide(iou.sum(-1), num, out=np.full(num.shape, np.nan), where=num > 0)


def miou_interval(counts: np.ndarray, groups: Sequence[str], *, seed: int = 0) -> tuple[float, float]:
    """The 95 % bootstrap interval of the mean IoU of all pictures together: whole groups are drawn.

    Args:
        counts: (N, K, K) of each picture.
        groups: what pictures of one specimen share.

    Returns:
        Its ends; nan of a single group.
    """
    _, which = np.unique(groups, return_inverse=True)
    summed = np.zeros((which.max() + 1, *counts.shape[1:]))
    np.add.at(summed, which, counts)
    num = len(summed)
    if num < 2:
        return float("nan"), float("nan")
    draws = np.random.default_rng([seed, 0, 0, 0]).multinomial(num, np.full(num, 1 / num), NUM_RESAMPLES)
    low, high = np.percentile(mean_iou(np.tensordot(draws, summed, 1)), (2.5, 97.5))
    return float(low), float(high)
