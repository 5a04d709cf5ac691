"""HD, HD95, ASSD and NSD of 117 structures in a 256x256x300 pair: `surface_metrics` beside its peers.

    hatch run bench:python benchmarks/surface.py [--monai 3] [--rounds 3]
    hatch run panoptica:python benchmarks/surface.py

The ways take turns. MONAI must agree with ours by voxels and surface-distance with ours by surface; panoptica has
another HD95 and another NSD, so it is timed only. MONAI is timed on the first few structures, as it takes a second for
each. A peer that is not installed is named and left out; panoptica wants an older NumPy and has an environment of its
own. Shown is the median of wall-clock and CPU milliseconds per structure, as not all of them keep to one core, and how
many times ours that is; the first round only warms up.
"""

import argparse
import importlib.util
import os
import platform
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
from counts import ellipsoids

from medseg_core.surface import CONVENTIONS, surface_metrics

SPACING_MM = (1.5, 1.5, 1.5)
TOLERANCE_MM = 3.0
Way = Callable[[np.ndarray, np.ndarray, list[int]], np.ndarray]


def ours(convention: str) -> Way:
    """(hd, hd95, assd, nsd) of each structure, from `surface_metrics`."""

    def measure(mask: np.ndarray, label: np.ndarray, ids: list[int]) -> np.ndarray:
        how = {"spacing": SPACING_MM, "tolerance_mm": TOLERANCE_MM, "convention": convention}
        return np.array([*surface_metrics(mask, label, ids=ids, **how).values()])

    return measure


def by_monai(mask: np.ndarray, label: np.ndarray, ids: list[int]) -> np.ndarray:
    """The same from MONAI's three functions, a structure at a time."""
    torch, monai = importlib.import_module("torch"), importlib.import_module("monai.metrics")
    rows = []
    for i in ids:
        sides = [torch.from_numpy(side == i)[None, None] for side in (mask, label)]
        how = {"include_background": True, "spacing": SPACING_MM}
        found = (
            monai.compute_hausdorff_distance(*sides, **how),
            monai.compute_hausdorff_distance(*sides, percentile=95, **how),
            monai.compute_average_surface_distance(*sides, symmetric=True, **how),
            monai.compute_surface_dice(*sides, class_thresholds=[TOLERANCE_MM], **how),
        )
        rows.append([value.item() for value in found])
    return np.array(rows).T


def by_surface_distance(mask: np.ndarray, label: np.ndarray, ids: list[int]) -> np.ndarray:
    """The same from DeepMind's package, a structure at a time."""
    peer = importlib.import_module("surface_distance")
    rows = []
    for i in ids:
        found = peer.compute_surface_distances(label == i, mask == i, SPACING_MM)
        areas = [found["surfel_areas_gt"].sum(), found["surfel_areas_pred"].sum()]
        hd, hd95 = (peer.compute_robust_hausdorff(found, percent) for percent in (100, 95))
        assd = np.average(peer.compute_average_surface_distance(found), weights=areas)
        rows.append([hd, hd95, assd, peer.compute_surface_dice_at_tolerance(found, TOLERANCE_MM)])
    return np.array(rows).T


def by_panoptica(mask: np.ndarray, label: np.ndarray, ids: list[int]) -> np.ndarray:
    """HD95, ASSD and NSD from panoptica's evaluator, all structures in one call; in its own definitions."""
    peer = importlib.import_module("panoptica")
    kinds = [peer.Metric.HD95, peer.Metric.ASSD, peer.Metric.NSD]
    matched = peer.InputType.MATCHED_INSTANCE
    quiet = {"log_times": False, "verbose": False}
    evaluator = peer.Panoptica_Evaluator(expected_input=matched, instance_metrics=kinds, global_metrics=[], **quiet)
    known = np.isin(np.arange(256), ids)
    sides = [np.where(known[side], side, 0) for side in (mask, label)]
    found = evaluator.evaluate(*sides, voxelspacing=SPACING_MM, verbose=False)["ungrouped"]
    every = importlib.import_module("panoptica.metrics").MetricMode.ALL
    return np.array([found.get_list_metric(kind, mode=every) for kind in kinds])


def present(peers: dict[str, tuple[str, Way]]) -> dict[str, Way]:
    """Those whose module is installed; the others are told by name."""
    ways = {}
    for name, (module, way) in peers.items():
        if importlib.util.find_spec(module):
            ways[name] = way
        else:
            print(f"{name} is not installed: left out")
    return ways


def main() -> None:
    """Prints a row per way."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--monai", type=int, default=3, help="structures that MONAI is timed on")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    warnings.filterwarnings("ignore")  # the peers' own, of what they use and will lose
    mask, label = ellipsoids(0)
    ids = np.intersect1d(mask, label)[1:].tolist()
    peers = {
        "MONAI": ("monai", by_monai),
        "surface-distance": ("surface_distance", by_surface_distance),
        "panoptica": ("panoptica", by_panoptica),
    }
    ways = {"voxel": ours("voxel"), "surface": ours("surface"), **present(peers)}
    peaks_mb = {name: peak_mb(ways[name], mask, label, ids) for name in CONVENTIONS}
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for number in range(options.rounds + 1):
        found = {}
        for name, way in ways.items():
            some = ids[: options.monai] if name == "MONAI" else ids
            begun = time.perf_counter(), time.process_time()
            found[name] = way(mask, label, some)
            if number:
                spent = time.perf_counter() - begun[0], time.process_time() - begun[1]
                taken[name].append((spent[0] / len(some), spent[1] / len(some)))
        for peer, convention in (("MONAI", "voxel"), ("surface-distance", "surface")):
            if peer in found:
                expected = found[convention][:, : found[peer].shape[1]]
                np.testing.assert_allclose(found[peer], expected, rtol=1e-6, atol=1e-6)
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} CPUs, numpy {np.__version__}")
    print(f"{len(ids)} structures in {'x'.join(map(str, mask.shape))}, {np.mean(label > 0):.0%} foreground")
    print(f"{'':18}{'ms a structure':>16}{'x voxel':>16}{'x surface':>16}   (wall / CPU, median of {options.rounds})")
    medians = {name: [1e3 * statistics.median(c) for c in zip(*rows, strict=True)] for name, rows in taken.items()}
    for name, spent in medians.items():
        ratios = [[a / b for a, b in zip(spent, medians[one], strict=True)] for one in CONVENTIONS]
        print(f"{name:18}" + "".join(f"{wall:9.1f} /{cpu:5.1f}" for wall, cpu in (spent, *ratios)))
    print(", ".join(f"{name}: {peak:.0f} MB over the input" for name, peak in peaks_mb.items()))


def peak_mb(way: Way, mask: np.ndarray, label: np.ndarray, ids: list[int]) -> float:
    """How far the memory of the process rises in one call, after a small one that compiles."""
    way(mask[:40, :40, :40], label[:40, :40, :40], ids)
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = kilobytes("VmRSS")
    way(mask, label, ids)
    return (kilobytes("VmHWM") - before) / 1024


def kilobytes(what: str) -> int:
    """One of the numbers that Linux keeps of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(what))


if __name__ == "__main__":
    main()
