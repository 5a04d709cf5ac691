"""Which units of a pool differ from each other, and from those that have labels. Axes: N units, F features, L labelled.

| chooser | what it takes | source |
|---|---|---|
| core-set | always the one farthest from all that are labelled or taken | Sener and Savarese, 2018 |
| cluster | of as many clusters as are asked for, the most uncertain unit of each | k-means |
| hybrid | core-set among the five times as many most uncertain ones | |
"""

import heapq
from collections.abc import Callable
from importlib.metadata import entry_points

import numpy as np
from numba import njit

from medseg_core.errors import MedsegError, meant

Chooser = Callable[[np.ndarray, int], np.ndarray]
"""(N, F) features, and how many -> places, the first first. Those here take scores_N and known_LF too."""

GROUP = "medseg.sem_al.choosers"  # entry points of others' choosers
PART = 64  # features at a time, after which a distance may be given up
PRESELECTED = 5  # times as many as are asked for: the most uncertain, among which hybrid chooses
MANY = 4096  # units that k-means sees at once


def core_set(features_NF: np.ndarray, num: int, *, known_LF: np.ndarray, **_: np.ndarray) -> np.ndarray:
    """See `k_centre`."""
    return k_centre(features_NF, num, known_LF=known_LF)


def cluster(features_NF: np.ndarray, num: int, *, scores_N: np.ndarray, **_: np.ndarray) -> np.ndarray:
    """The unit of highest score of each of `num` clusters, those of the largest cluster first."""
    from sklearn.cluster import MiniBatchKMeans  # takes a second

    num = min(num, len(features_NF))
    found = MiniBatchKMeans(num, random_state=0, n_init=3, batch_size=MANY).fit(features_NF).labels_
    sizes = np.bincount(found, minlength=num)
    places = [np.flatnonzero(found == k) for k in np.argsort(-sizes, kind="stable") if sizes[k]]
    picked = [int(some[scores_N[some].argmax()]) for some in places]
    rest = np.setdiff1d(np.argsort(-scores_N, kind="stable"), picked, assume_unique=True)  # keeps the order
    return np.array([*picked, *rest[: num - len(picked)]], np.int64)


def hybrid(features_NF: np.ndarray, num: int, *, scores_N: np.ndarray, known_LF: np.ndarray) -> np.ndarray:
    """k-centre among the most uncertain."""
    unsure = np.argsort(-scores_N, kind="stable")[: PRESELECTED * num]
    return unsure[k_centre(features_NF[unsure], num, known_LF=known_LF)]


CHOOSERS: dict[str, Callable[..., np.ndarray]] = {"core-set": core_set, "cluster": cluster, "hybrid": hybrid}


def chooser_named(name: str) -> Callable[..., np.ndarray]:
    """(features_NF, num, scores_N=, known_LF=) -> places, by a name here or an entry point of `medseg.sem_al.choosers`.

    Raises:
        MedsegError: no such chooser.
    """
    others = {point.name: point for point in entry_points(group=GROUP)}
    known = [*CHOOSERS, *others]
    if name not in known:
        raise MedsegError(f"there is no chooser {name!r}{meant(name, known)}; there are {', '.join(known)}")
    if name in CHOOSERS:
        return CHOOSERS[name]
    other: Chooser = others[name].load()
    return lambda features_NF, num, **_: other(features_NF, num)


def k_centre(features_NF: np.ndarray, num: int, *, known_LF: np.ndarray | None = None) -> np.ndarray:
    """Greedy k-centre (Gonzalez, 1985): always the unit farthest from all before, by Euclidean distance.

    A distance to the nearest centre can only fall: a unit whose last known one is below another's true one need not be
    looked at (Minoux, 1978), which spares nearly all of them.

    Args:
        num: how many; fewer come where fewer are there.
        known_LF: what distances count from too. Without any, the first is that farthest from the mean.

    Returns:
        (num,) places; of equal distances the first.
    """
    features_NF = np.ascontiguousarray(features_NF, np.float32)
    num, first = min(num, len(features_NF)), np.zeros(0, np.int64)
    if known_LF is None or not len(known_LF):  # nothing to be far from yet
        first = np.square(features_NF - features_NF.mean(0)).sum(1).argmax(keepdims=True)[:num]
        known_LF = features_NF[first]
    centres_CF = np.zeros((len(known_LF) + num - len(first), features_NF.shape[1]), np.float32)
    centres_CF[: len(known_LF)] = known_LF
    return np.concatenate([first, _farthest(features_NF, centres_CF, len(known_LF), first)])


@njit(nogil=True, cache=True, fastmath={"contract", "reassoc", "nsz"})
def _farthest(features_NF, centres_CF, num_centres, taken):
    """Fills the centres; `seen` says with how many of them a unit's gap, the top of the heap the widest, reckons."""
    seen = np.zeros(len(features_NF), np.int64)
    heap = [(np.float32(-np.inf), n) for n in range(len(features_NF)) if n not in taken]
    picked = np.empty(len(centres_CF) - num_centres, np.int64)
    for place in range(len(picked)):
        while seen[heap[0][1]] < num_centres:
            gap, n = -heap[0][0], heap[0][1]
            for c in range(seen[n], num_centres):
                gap = min(gap, _square_distance(features_NF[n], centres_CF[c], gap))
            seen[n] = num_centres
            heapq.heapreplace(heap, (-gap, n))
        picked[place] = heapq.heappop(heap)[1]
        centres_CF[num_centres] = features_NF[picked[place]]
        num_centres += 1
    return picked


@njit(nogil=True, cache=True, fastmath={"contract", "reassoc", "nsz"})
def _square_distance(one_F, other_F, limit):
    """Given up as soon as it is no lower than the limit."""
    total = np.float32(0)
    for start in range(0, len(one_F), PART):
        for f in range(start, min(start + PART, len(one_F))):
            step = one_F[f] - other_F[f]
            total += step * step
        if total >= limit:
            break
    return total
