"""Lesions missed and invented in a whole-body pair: `lesion_metrics` beside the way of the autoPET challenge.

    python benchmarks/lesions.py [--rounds 3]

400x400x326 voxels with 60 reference lesions, of which the mask has 50, and 15 others. The ways take turns and must find
the same numbers and volumes, with 18 neighbours: a comparison of the whole array for each lesion, which is how the
challenge's script goes about it; all lesions of a side together by NumPy's `unique` and `isin`; ours. Panoptica pairs
lesions at an IoU of 0.5, with 26 neighbours, beside ours asked for the same; where it is not installed it is named and
left out. The first round only warms up.
"""

import argparse
import importlib.util
import math
import os
import platform
import statistics
import time
from collections.abc import Callable

import cc3d
import numpy as np

from medseg_core.lesions import lesion_metrics

SHAPE = (400, 400, 326)
SPACING_MM = (2.04, 2.04, 3.0)
NUM_LESIONS, NUM_FOUND, NUM_INVENTED = 60, 50, 15
MEASURES = ("lesions_missed", "lesions_invented", "missed_volume", "invented_volume")
PAIRED = ("lesions_found", "lesions_missed", "lesions_invented", "lesion_pq")
Way = Callable[[np.ndarray, np.ndarray], np.ndarray]


def lesions(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """A mask and a label of balls 2 to 15 voxels in radius, in Fortran order as read from files."""
    rng = np.random.default_rng(seed)
    mask, label = (np.zeros(SHAPE, np.uint8, order="F") for _ in range(2))
    for n in range(NUM_LESIONS + NUM_INVENTED):
        radius = rng.uniform(2, 15)
        centre = rng.uniform(20, np.array(SHAPE) - 20)
        moved = centre + rng.uniform(-1, 1, 3) * radius / 4
        for side, place, is_there in (
            (label, centre, n < NUM_LESIONS),
            (mask, moved, n >= NUM_LESIONS - NUM_FOUND),
        ):
            box = tuple(slice(math.ceil(x - radius), math.floor(x + radius) + 1) for x in place)
            offsets = (x - middle for x, middle in zip(np.ogrid[box], place, strict=True))
            if is_there:
                side[box][sum(x**2 for x in offsets) <= radius**2] = 1
    return mask, label


def one_by_one(mask: np.ndarray, label: np.ndarray) -> np.ndarray:
    """Lesions of each side that have no voxel on the other, from a comparison of the whole array for each."""
    nums, volumes = [], []
    for side, other in ((label, mask), (mask, label)):
        parts = cc3d.connected_components(side, connectivity=18)
        num, voxels = 0, 0
        for part in range(1, int(parts.max()) + 1):
            here = parts == part
            if not (here & (other > 0)).any():
                num, voxels = num + 1, voxels + np.count_nonzero(here)
        nums.append(num)
        volumes.append(voxels * math.prod(SPACING_MM))
    return np.array(nums + volumes)


def at_once(mask: np.ndarray, label: np.ndarray) -> np.ndarray:
    """The same from NumPy's `unique` and `isin`, which take the lesions of a side together."""
    nums, volumes = [], []
    for side, other in ((label, mask), (mask, label)):
        parts = cc3d.connected_components(side, connectivity=18)
        touched = np.unique(parts * other)
        alone = ~np.isin(parts, np.union1d(touched, [0]))
        nums.append(int(parts.max()) - np.count_nonzero(touched))
        volumes.append(np.count_nonzero(alone) * math.prod(SPACING_MM))
    return np.array(nums + volumes)


def by_panoptica(mask: np.ndarray, label: np.ndarray) -> np.ndarray:
    """Pairs at an IoU of 0.5, what is left of each side, and panoptic quality."""
    peer = importlib.import_module("panoptica")
    evaluator = peer.Panoptica_Evaluator(
        expected_input=peer.InputType.SEMANTIC,
        instance_approximator=peer.ConnectedComponentsInstanceApproximator(),
        instance_matcher=peer.NaiveThresholdMatching(matching_threshold=0.5),
        instance_metrics=[peer.Metric.IOU],
        global_metrics=[],
    )
    (found,) = evaluator.evaluate(mask, label).values()
    return np.array([found.tp, found.fn, found.fp, found.pq])


def ours(mask: np.ndarray, label: np.ndarray) -> np.ndarray:
    """The same as `one_by_one` from `lesion_metrics`."""
    found = lesion_metrics(mask, label, ids=[1], spacing=SPACING_MM, connectivity=18)
    return np.array([found[name].item() for name in MEASURES])


def ours_paired(mask: np.ndarray, label: np.ndarray) -> np.ndarray:
    """The same as `by_panoptica` from `lesion_metrics`."""
    found = lesion_metrics(mask, label, ids=[1], spacing=SPACING_MM, min_iou=0.5)
    return np.array([found[name].item() for name in PAIRED])


def main() -> None:
    """Prints a row per way."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    mask, label = lesions(0)
    touching: dict[str, Way] = {"a comparison per lesion": one_by_one, "unique and isin": at_once, "medseg_core": ours}
    paired: dict[str, Way] = {"medseg_core, IoU 0.5": ours_paired}
    if importlib.util.find_spec("panoptica"):
        paired = {"panoptica, IoU 0.5": by_panoptica, **paired}
    else:
        print("panoptica is not installed: left out")
    taken: dict[str, list[float]] = {name: [] for name in touching | paired}
    for number in range(options.rounds + 1):
        for ways in (touching, paired):
            *peers, mine = ways
            found = {}
            for name, way in ways.items():
                begun = time.perf_counter()
                found[name] = way(mask, label)
                if number:
                    taken[name].append(time.perf_counter() - begun)
            for name in peers:
                np.testing.assert_allclose(found[mine], found[name], rtol=1e-9, err_msg=name)
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} CPUs, numpy {np.__version__}")
    missed, invented, *_ = ours(mask, label)
    print(f"{'x'.join(map(str, SHAPE))}, of {NUM_LESIONS} lesions {missed:.0f} missed, {invented:.0f} invented")
    print(f"{'':28}{'ms':>10}{'x ours':>10}   (median of {options.rounds})")
    for ways in (touching, paired):
        best = statistics.median(taken[list(ways)[-1]])
        for name in ways:
            value = statistics.median(taken[name])
            print(f"{name:28}{value * 1e3:10.1f}{value / best:10.1f}")


if __name__ == "__main__":
    main()
