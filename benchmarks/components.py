"""The largest part of each of 117 labels: `keep_largest` in one pass beside a loop over the labels.

    hatch run bench:python benchmarks/components.py [--rounds 5] [--some 10]

The loops do what post-processing scripts do: for each label a binary mask, its connected parts, the largest kept. They
are timed on the first labels and scaled to all. One synthetic map of 256x256x300 voxels with speckle, and `ts_s0001`
where $MEDSEG_TEST_DATA names the data; every answer is compared voxel by voxel.
"""

import argparse
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import cc3d
import numpy as np
from counts import ellipsoids
from scipy import ndimage

from medseg_core.io import read_volume
from medseg_core.masks import keep_largest


def by_scipy(ids: np.ndarray, label: int) -> np.ndarray:
    """The largest part of one label as bool; of equal ones the first."""
    parts, _ = ndimage.label(ids == label, structure=np.ones((3, 3, 3)))
    return parts == 1 + np.argmax(np.bincount(parts.ravel())[1:])


def by_cc3d(ids: np.ndarray, label: int) -> np.ndarray:
    """As `by_scipy`."""
    parts = cc3d.connected_components(ids == label, connectivity=26)
    return parts == 1 + np.argmax(np.bincount(parts.ravel(order="K"))[1:])


PEERS: dict[str, Callable[[np.ndarray, int], np.ndarray]] = {"loop with SciPy": by_scipy, "loop with cc3d": by_cc3d}


def compare(what: str, ids: np.ndarray, *, rounds: int, some: int) -> None:
    """A row per way; the ways take turns."""
    labels = np.unique(ids)[1:].tolist()
    timed = labels[:some]
    taken: dict[str, list[float]] = {name: [] for name in ("medseg_core", *PEERS)}
    for number in range(rounds + 1):
        begun = time.perf_counter()
        kept = keep_largest(ids)
        spent = {"medseg_core": time.perf_counter() - begun}
        for name, way in PEERS.items():
            begun = time.perf_counter()
            found = [way(ids, label) for label in timed]
            spent[name] = (time.perf_counter() - begun) * len(labels) / len(timed)
            for label, largest in zip(timed, found, strict=True):
                assert largest.sum() == (kept == label).sum(), (name, label)
                tied = not np.array_equal(largest, kept == label)
                assert not tied or name != "loop with SciPy", (name, label)  # cc3d numbers along its own order
        if number:  # the first round only warms up
            for name, seconds in spent.items():
                taken[name].append(seconds)
    medians = {name: statistics.median(values) for name, values in taken.items()}
    print(f"{what}: {len(labels)} labels in {'x'.join(map(str, ids.shape))}, loops timed on {len(timed)}")
    for name, value in medians.items():
        print(f"{name:20}{value * 1e3:12.1f} ms{value / medians['medseg_core']:10.1f} x ours")


def main() -> None:
    """Prints a table per map."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--some", type=int, default=10, help="labels that the loops are timed on")
    given = parser.parse_args()
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} CPUs, numpy {np.__version__}")
    ids, _ = ellipsoids(0)
    speckle = np.random.default_rng(0)
    at = tuple(speckle.integers(0, n, 20_000) for n in ids.shape)
    ids[at] = speckle.integers(1, 118, 20_000)
    compare("synthetic", ids, rounds=given.rounds, some=given.some)
    if "MEDSEG_TEST_DATA" in os.environ:
        folder = Path(os.environ["MEDSEG_TEST_DATA"]) / "ct_multiorgan" / "ts_s0001"
        real = read_volume(folder / "seg_multilabel_v1_104_fast.nii.gz").voxels.astype(np.uint8, order="K")
        compare("ts_s0001", real, rounds=given.rounds, some=len(np.unique(real)))


if __name__ == "__main__":
    main()
