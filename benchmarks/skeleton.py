"""Skeletons of all structures of a label map: `medseg_core.skeleton` beside scikit-image, a structure at a time.

    python benchmarks/skeleton.py [--rounds 5] [--full 3] [--data FOLDER]

On 117 fat structures and 117 vessels of 256x256x300 voxels, and on the real label maps under --data. scikit-image gets
each structure cut out to its box; --full says how many of each synthetic map it also thins as most scripts do, in the
whole array, and the time of those is scaled to all. The ways take turns in processor time, and the voxels must be the
same, but for one voxel of each part that scikit-image takes away wholly.
"""

import argparse
import importlib.util
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
from counts import NUM_STRUCTURES, SHAPE, ellipsoids
from scipy.ndimage import find_objects

from medseg_core.masks import components
from medseg_core.skeleton import cldice, skeleton

REAL = {
    "59 structures of ts_s0001": "ct_multiorgan/ts_s0001/seg_multilabel_v1_104.nii.gz",
    "95 structures of spl_abdomen": "ct_more/spl_abdomen_labels/derived/seg_multilabel.nii.gz",
}


def vessels(seed: int) -> np.ndarray:
    """117 winding tubes, 4 to 12 voxels wide and 100 to 300 long, in Fortran order as read from files."""
    rng = np.random.default_rng(seed)
    label = np.zeros(SHAPE, np.uint8, order="F")
    for i in range(1, NUM_STRUCTURES + 1):
        radius = rng.uniform(2, 6)
        num = rng.integers(200, 600)
        heading = np.cumsum(rng.normal(0, 0.12, (num, 3)), axis=0) + rng.normal(0, 1, 3)
        path = np.cumsum(0.5 * heading / np.linalg.norm(heading, axis=1)[:, None], axis=0)
        path += rng.uniform(0.2, 0.8, 3) * SHAPE - path[num // 2]
        for point in path[np.all((path > radius + 1) & (path < np.array(SHAPE) - radius - 1), axis=1)]:
            low, high = np.ceil(point - radius).astype(int), np.floor(point + radius).astype(int) + 1
            box = tuple(map(slice, low, high))
            at = zip(np.ogrid[box], point, strict=True)
            label[box][sum((x - middle) ** 2 for x, middle in at) <= radius**2] = i
    return label


def by_scikit_image(label: np.ndarray) -> np.ndarray:
    """Each structure in its box."""
    peer = importlib.import_module("skimage.morphology")
    thin = np.zeros_like(label)
    for i, box in enumerate(find_objects(label), 1):
        if box is not None:
            around = tuple(slice(max(0, side.start - 1), side.stop + 1) for side in box)
            thin[around][peer.skeletonize(label[around] == i, method="lee") > 0] = i
    return thin


def in_whole_array(label: np.ndarray, num: int) -> float:
    """Seconds that scikit-image takes for all structures without a box, from the first `num` of them."""
    peer = importlib.import_module("skimage.morphology")
    ids = np.unique(label)[1:]
    begun = time.process_time()
    for i in ids[:num]:
        peer.skeletonize(label == i, method="lee")
    return (time.process_time() - begun) * len(ids) / num


def num_gone(thin: np.ndarray, expected: np.ndarray, label: np.ndarray) -> int:
    """Parts of which the peer leaves nothing and we leave a voxel; nothing else may differ."""
    parts = components(label)
    gone = np.setdiff1d(parts[label > 0], parts[expected > 0])
    more = thin != expected
    assert np.array_equal(np.sort(parts[more]), gone)
    assert not expected[more].any()
    return len(gone)


def compare(what: str, label: np.ndarray, *, rounds: int, num_full: int) -> None:
    """Prints a row per way, and that they agree."""
    ids = np.unique(label)[1:].tolist()
    ways: dict[str, Callable[[], object]] = {
        "skeleton": lambda: skeleton(label),
        "cldice, two skeletons": lambda: cldice(label, label, ids=ids),
    }
    has_peer = importlib.util.find_spec("skimage") is not None
    if has_peer:
        ways["scikit-image, in boxes"] = lambda: by_scikit_image(label)
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds + 1):
        for name, way in ways.items():
            begun = time.process_time()
            way()
            if number:  # the first round only warms up
                taken[name].append(time.process_time() - begun)
    medians = {name: statistics.median(values) for name, values in taken.items()}
    if has_peer and num_full:
        medians[f"scikit-image, whole (from {num_full})"] = in_whole_array(label, num_full)
    shape = "x".join(map(str, label.shape))
    print(f"\n{what} ({len(ids)} to see), {shape}, {np.mean(label > 0):.1%} foreground")
    for name, value in medians.items():
        print(f"{name:32}{value * 1e3:12.1f}{value / medians['skeleton']:10.1f}")
    if has_peer:
        gone = num_gone(skeleton(label), by_scikit_image(label), label)
        print(f"voxels equal; scikit-image takes {gone} parts away wholly")


def main() -> None:
    """Prints a table per label map."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--full", type=int, default=3, help="structures that scikit-image thins in the whole array")
    parser.add_argument("--data", type=Path, default=os.environ.get("MEDSEG_TEST_DATA"))
    options = parser.parse_args()
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} CPUs, numpy {np.__version__}")
    if importlib.util.find_spec("skimage") is None:
        print("scikit-image is not installed: left out")
    print(f"{'':32}{'CPU ms':>12}{'x ours':>10}   (median of {options.rounds})")
    for what, label in (("117 ellipsoids", ellipsoids(0)[1]), ("117 vessels", vessels(0))):
        compare(what, label, rounds=options.rounds, num_full=options.full)
    for what, file in REAL.items():
        path = Path(options.data or ".") / file
        if path.is_file():
            label = np.asanyarray(nib.load(path).dataobj).astype(np.uint16, order="K")
            compare(what, label, rounds=options.rounds, num_full=0)
        else:
            print(f"{what}: no {file}; give --data or set MEDSEG_TEST_DATA")


if __name__ == "__main__":
    main()
