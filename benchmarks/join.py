"""One label map of 117 gzipped masks: `join_masks` beside `nibabel get_fdata() > 0.5`, on full-size and on real masks.

    python benchmarks/join.py [--naive 10] [--data FOLDER]

The naive loop is timed on the first `--naive` masks of the full-size case and scaled to all; on the real folders it is
timed whole. Both label maps are compared voxel by voxel.
"""

import argparse
import os
import platform
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import nibabel as nib
import numpy as np

from medseg_core.grid import Grid
from medseg_core.io import read_grid
from medseg_core.join import join_masks

SHAPE = (256, 256, 300)
NUM_MASKS = 117


def main() -> None:
    """Prints one line a case: seconds of both, their ratio, and that the values agree."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--naive", type=int, default=10, help="masks of the full-size case that the naive loop reads")
    parser.add_argument("--data", type=Path, default=os.environ.get("MEDSEG_TEST_DATA"))
    given = parser.parse_args()
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}")
    with tempfile.TemporaryDirectory() as folder:
        files, grid = full_size(Path(folder))
        size_mb = sum(path.stat().st_size for path in files.values()) / 1e6
        compare(f"{NUM_MASKS} masks of {SHAPE}, uint8, {size_mb:.1f} MB", files, grid, num_naive=given.naive)
    for case in ("ts_s0001", "ts_s0002"):
        place = Path(given.data or ".") / "ct_multiorgan" / case
        if not place.is_dir():
            print(f"{case}: no such folder; give --data or set MEDSEG_TEST_DATA")
            continue
        files = dict(enumerate(sorted((place / "segmentations").glob("*.nii.gz")), 1))
        grid = read_grid(place / "ct.nii.gz")
        dtype = nib.load(files[1]).get_data_dtype()
        compare(f"{case}: {len(files)} masks of {grid.shape}, {dtype}", files, grid, num_naive=len(files))


def full_size(folder: Path) -> tuple[dict[int, Path], Grid]:
    """Masks of 117 wavy balls, 5 to 35 voxels in radius, spread over the body, as nibabel writes them (level 1)."""
    rng = np.random.default_rng(0)
    affine = np.diag((1.5, 1.5, 1.5, 1.0))
    files = {}
    for number in range(1, NUM_MASKS + 1):
        radius = rng.uniform(5, 35)
        centre = rng.uniform(0.15, 0.85, 3) * SHAPE
        low = np.maximum(0, centre - 1.3 * radius).astype(int)
        high = np.minimum(SHAPE, centre + 1.3 * radius).astype(int)
        at = (
            np.stack(np.meshgrid(*(np.arange(a, b) for a, b in zip(low, high, strict=True)), indexing="ij"), -1)
            - centre
        )
        wave = 1 + 0.15 * np.sin(at[..., 0] / 2.1) * np.cos(at[..., 1] / 1.7 + at[..., 2] / 2.9)
        mask = np.zeros(SHAPE, np.uint8, order="F")
        mask[tuple(map(slice, low, high))] = np.linalg.norm(at, axis=-1) < radius * wave
        files[number] = folder / f"structure_{number}.nii.gz"
        nib.save(nib.Nifti1Image(mask, affine), files[number])
    return files, Grid(SHAPE, affine)


def naive(files: Mapping[int, Path], shape: tuple[int, ...]) -> np.ndarray:
    """What most scripts do."""
    label = np.zeros(shape, np.uint8)
    for number in sorted(files):
        label[nib.load(files[number]).get_fdata() > 0.5] = number
    return label


def compare(what: str, files: Mapping[int, Path], grid: Grid, *, num_naive: int) -> None:
    """Times both on warm files, the best of three for ours; the naive time is scaled where it saw a part."""
    join_masks(files, grid)
    ours = np.inf
    for _ in range(3):
        start = time.perf_counter()
        joined = join_masks(files, grid)
        ours = min(ours, time.perf_counter() - start)
    some = dict(list(files.items())[:num_naive])
    start = time.perf_counter()
    label = naive(some, grid.shape)
    theirs = (time.perf_counter() - start) * len(files) / len(some)
    same = np.array_equal(label, join_masks(some, grid).layers[0])
    scaled = "" if len(some) == len(files) else f" (scaled from {len(some)} masks)"
    print(
        f"{what}: ours {ours:.3f} s, get_fdata {theirs:.3f} s{scaled}, {theirs / ours:.1f}x; "
        f"values {'equal' if same else 'DIFFER'}; {len(joined.layers)} layers, {len(joined.overlaps)} pairs overlap"
    )


if __name__ == "__main__":
    main()
