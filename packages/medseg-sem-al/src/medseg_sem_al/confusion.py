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
    scores = per_class(counts)
    true = counts.sum(1)
    best = int(true.argmax()) if commonest is None else commonest
    alone = np.zeros_like(counts)
    alone[:, best] = true
    return {
        "miou": _mean(scores["iou"]),
        "dice": _mean(scores["dice"]),
        "accuracy": float(np.trace(counts) / max(counts.sum(), 1)),
        "majority": _mean(per_class(alone)["iou"]),
    }


def _mean(values: np.ndarray) -> float:
    known = values[np.isfinite(values)]
    return float(known.mean()) if known.size else float("nan")


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
    drawn = np.tensordot(draws, summed, 1)
    both, either = np.diagonal(drawn, axis1=1, axis2=2), drawn.sum(1) + drawn.sum(2)
    iou = np.divide(both, either - both, out=np.full(both.shape, np.nan), where=either > 0)
    low, high = np.percentile(np.nanmean(iou, 1), (2.5, 97.5))
    return float(low), float(high)
