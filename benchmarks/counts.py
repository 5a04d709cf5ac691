"""Voxels of 117 structures in a mask and a label: `metrics.count` beside a loop over the classes and one `np.bincount`.

    python benchmarks/counts.py [ROUNDS]

The ways take turns on one synthetic pair of 256x256x300 voxels, so that a busy moment of the machine meets all of them;
the median of each is shown, and they must count the same. All run on one core.
"""

import os
import platform
import statistics
import sys
import time
from collections.abc import Callable

import numpy as np

from medseg_core.metrics import count

SHAPE = (256, 256, 300)
NUM_STRUCTURES = 117


def ellipsoids(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """A mask and a label of 117 organs, in Fortran order as read from files; each is moved by up to 2 voxels."""
    rng = np.random.default_rng(seed)
    mask, label = (np.zeros(SHAPE, np.uint8, order="F") for _ in range(2))
    for i in range(1, NUM_STRUCTURES + 1):
        radii = rng.uniform(6, 30, 3)
        centre = rng.uniform(radii + 4, np.array(SHAPE) - radii - 4)
        for side, place in ((label, centre), (mask, centre + rng.uniform(-2, 2, 3))):
            low, high = np.ceil(place - radii).astype(int), np.floor(place + radii).astype(int) + 1
            box = tuple(map(slice, low, high))
            parts = zip(np.ogrid[box], place, radii, strict=True)
            side[box][sum(((x - middle) / radius) ** 2 for x, middle, radius in parts) <= 1] = i
    return mask, label


def by_class(mask: np.ndarray, label: np.ndarray) -> np.ndarray:
    """(both, mask, label) of each structure, from boolean arrays."""
    rows = []
    for i in range(1, NUM_STRUCTURES + 1):
        on_mask, on_label = mask == i, label == i
        rows.append([np.count_nonzero(part) for part in (on_mask & on_label, on_mask, on_label)])
    return np.array(rows).T


def by_bincount(mask: np.ndarray, label: np.ndarray) -> np.ndarray:
    """(both, mask, label) of each structure, from a confusion matrix."""
    size = NUM_STRUCTURES + 1
    pairs = mask.ravel(order="K").astype(np.int64) * size + label.ravel(order="K")
    confusion = np.bincount(pairs, minlength=size**2).reshape(size, size)
    return np.array([confusion.diagonal(), confusion.sum(axis=1), confusion.sum(axis=0)])[:, 1:]


def by_medseg(mask: np.ndarray, label: np.ndarray) -> np.ndarray:
    """(both, mask, label) of each structure, from `metrics.count`."""
    counts = count(mask, label, ids=range(1, NUM_STRUCTURES + 1))
    return np.array([counts.both, counts.mask, counts.label])


WAYS: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "loop over the classes": by_class,
    "np.bincount": by_bincount,
    "medseg_core count": by_medseg,
}


def main() -> None:
    """Prints a row per way."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    mask, label = ellipsoids(0)
    expected = by_class(mask, label)
    taken: dict[str, list[float]] = {name: [] for name in WAYS}
    for number in range(rounds + 1):
        for name, way in WAYS.items():
            begun = time.perf_counter()
            found = way(mask, label)
            if number:  # the first round only warms up
                taken[name].append(time.perf_counter() - begun)
            assert np.array_equal(found, expected), name
    medians = {name: statistics.median(values) for name, values in taken.items()}
    ours = medians["medseg_core count"]
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} CPUs, numpy {np.__version__}")
    print(f"{NUM_STRUCTURES} structures in {'x'.join(map(str, SHAPE))}, {np.mean(label > 0):.0%} foreground")
    print(f"{'':24}{'ms':>10}{'x ours':>10}   (median of {rounds})")
    for name, value in medians.items():
        print(f"{name:24}{value * 1e3:10.1f}{value / ours:10.1f}")


if __name__ == "__main__":
    main()
