"""How unsure a network is of each pixel.

Axes: N pictures, K classes, H W of a picture, M networks of an ensemble, P pixels.

| measure | of a pixel | source |
|---|---|---|
| entropy | - sum p log p, divided by log K | Shannon, 1948 |
| confidence | 1 - the largest p | Lewis and Gale, 1994 |
| margin | 1 - (the largest p - the second) | Scheffer et al., 2001 |
| variance | of p over the networks, mean over classes | Beluch et al., 2018 |
| bald | entropy of the mean p - mean entropy, divided by log K | Houlsby et al., 2011 |

Each is 0 where the networks are sure, and 1 at most. A picture's score is the mean over its pixels; of a measure whose
name begins with `boundary-`, over those beside a pixel of another predicted class, and so still higher the less sure
these are.
"""

import math
from collections.abc import Callable, Mapping
from importlib.metadata import entry_points

import numpy as np
from numba import njit
from scipy.ndimage import maximum_filter, minimum_filter
from scipy.special import rel_entr
from scipy.stats import rankdata

from medseg_core.errors import MedsegError, meant

Measure = Callable[[np.ndarray], np.ndarray]
"""(N, K, H, W) probabilities -> (N, H, W); of `OF_ENSEMBLES`, (M, N, K, H, W)."""

GROUP = "medseg.sem_al.measures"  # entry points of others' measures
BLOCK = 1024  # pixels at a time, which stay in the cache
LEAST = np.float32(1e-30)
ROOT, FRACTION = np.int32(0x3F3504F3), np.int32(23)  # bits of the square root of 1/2; bits of a fraction
FAST = {"contract", "reassoc", "nsz", "nnan", "ninf"}
BOUNDARY = "boundary-"


def entropy(probs_NKHW: np.ndarray) -> np.ndarray:
    """(N, H, W) float32."""
    return at_once(probs_NKHW)[0]


def confidence(probs_NKHW: np.ndarray) -> np.ndarray:
    """(N, H, W) float32."""
    return at_once(probs_NKHW)[1]


def margin(probs_NKHW: np.ndarray) -> np.ndarray:
    """(N, H, W) float32."""
    return at_once(probs_NKHW)[2]


def variance(probs_MNKHW: np.ndarray) -> np.ndarray:
    """(N, H, W) float32."""
    return probs_MNKHW.var(0, dtype=np.float32).mean(1)


def bald(probs_MNKHW: np.ndarray) -> np.ndarray:
    """(N, H, W) float32, as the mean relative entropy of each p to their mean: no large numbers are subtracted."""
    probs_MNKHW = probs_MNKHW.astype(np.float64)
    apart = rel_entr(probs_MNKHW, probs_MNKHW.mean(0)).sum(2).mean(0) / math.log(probs_MNKHW.shape[2])
    return np.maximum(apart, 0).astype(np.float32)


MEASURES: dict[str, Measure] = {"entropy": entropy, "confidence": confidence, "margin": margin}
OF_ENSEMBLES: dict[str, Measure] = {"variance": variance, "bald": bald}


def measure_named(name: str, *, ensemble: bool) -> Measure:
    """(M, N, K, H, W) -> (N, H, W), by a name here or an entry point of the group `medseg.sem_al.measures`.

    `boundary-` before it is left out: that says where, not what, is looked at.

    Raises:
        MedsegError: no such measure, or one of several networks where there is one.
    """
    name = name.removeprefix(BOUNDARY)
    if name in OF_ENSEMBLES:
        if not ensemble:
            raise MedsegError(f"{name} needs several networks; give --model several times, or --dropout-passes 10")
        return OF_ENSEMBLES[name]
    others = {point.name: point for point in entry_points(group=GROUP)}
    known = [*MEASURES, *OF_ENSEMBLES, *others]
    if name not in known:
        raise MedsegError(f"there is no measure {name!r}{meant(name, known)}; there are {', '.join(known)}")
    single = MEASURES[name] if name in MEASURES else others[name].load()
    return lambda probs_MNKHW: single(probs_MNKHW.mean(0))


def at_once(probs_NKHW: np.ndarray) -> np.ndarray:
    """(3, N, H, W) float32: entropy, confidence and margin, in one pass over the probabilities."""
    num, classes, height, width = probs_NKHW.shape
    probs_NKP = np.ascontiguousarray(probs_NKHW, np.float32).reshape(num, classes, height * width)
    out_N3P = np.empty((num, 3, height * width), np.float32)
    for probs_KP, out_3P in zip(probs_NKP, out_N3P, strict=True):
        _at_once(probs_KP, out_3P, np.float32(1 / math.log(classes)))
    return np.moveaxis(out_N3P.reshape(num, 3, height, width), 1, 0)


@njit(nogil=True, cache=True, error_model="numpy", fastmath=FAST)
def _at_once(probs_KP, out_3P, scale):
    """Block by block, so that the loops over pixels are vector instructions."""
    num_classes, num = probs_KP.shape
    first, second, total, rest = np.empty((4, BLOCK), np.float32)
    for start in range(0, num, BLOCK):
        size = min(BLOCK, num - start)
        first[:size], second[:size], total[:size] = 0, 0, 0
        for k in range(num_classes):
            probs = probs_KP[k, start : start + size]
            for i in range(size):
                second[i] = max(second[i], min(first[i], probs[i]))
                first[i] = max(first[i], probs[i])
            _subtract_p_log_p(probs, total, rest)
        for i in range(size):
            out_3P[0, start + i] = max(total[i], np.float32(0)) * scale
            out_3P[1, start + i] = np.float32(1) - first[i]
            out_3P[2, start + i] = np.float32(1) - (first[i] - second[i])


@njit(nogil=True, cache=True, error_model="numpy", fastmath=FAST, inline="always")
def _subtract_p_log_p(probs, total, rest):
    """p = 2^e m, m about 1: log p = e log 2 + 2 artanh((m - 1) / (m + 1)), the latter by five terms of its series."""
    bits = rest.view(np.int32)
    for i in range(len(probs)):
        rest[i] = max(probs[i], LEAST)
    for i in range(len(probs)):
        power = (bits[i] - ROOT) >> FRACTION
        bits[i] -= power << FRACTION
        total[i] -= probs[i] * np.float32(power) * np.float32(math.log(2))
    for i in range(len(probs)):
        t = (rest[i] - np.float32(1)) / (rest[i] + np.float32(1))
        tt = t * t
        series = np.float32(1 / 7) + tt * np.float32(1 / 9)
        series = np.float32(1) + tt * (np.float32(1 / 3) + tt * (np.float32(1 / 5) + tt * series))
        total[i] -= probs[i] * np.float32(2) * t * series


def boundary(ids_HW: np.ndarray) -> np.ndarray:
    """(H, W) bool: pixels with one of another class among their eight neighbours."""
    return maximum_filter(ids_HW, 3) != minimum_filter(ids_HW, 3)


def combined(scores: Mapping[str, np.ndarray], weights: Mapping[str, float]) -> np.ndarray:
    """(N,) in (0, 1]: the weighted mean of the ranks of (N,) scores, so that no measure counts for its scale."""
    ranks = [weight * rankdata(scores[name]) for name, weight in weights.items()]
    return np.sum(ranks, axis=0) / (sum(weights.values()) * len(ranks[0]))
