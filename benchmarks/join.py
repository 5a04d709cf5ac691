"""One label map of 117 gzipped masks: `join_masks` beside NiBabel, as most scripts use it and at its best.

    python benchmarks/join.py [--rounds 3] [--data FOLDER]

On full-size masks made up here, and on the real ones of two folders under `--data` or $MEDSEG_TEST_DATA. The ways take
turns, so that a busy moment of the machine meets all of them; the median of each is shown, and all must give the same
label map, in which the largest id of a voxel wins. All run on one core, on warm files. NiBabel at its best keeps the
stored dtype and works in the files' memory order: in the two forms that proved fastest, of which the second needs masks
of uint8.
"""

import argparse
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import nibabel as nib
import numpy as np

from medseg_core.grid import Grid
from medseg_core.io import read_grid
from medseg_core.join import join_masks

SHAPE = (256, 256, 300)
NUM_MASKS = 117
PROMISED = 5  # times faster than NiBabel at its best, on full-size masks
Files = Mapping[int, Path]


def main() -> None:
    """Prints a table a case."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--data", type=Path, default=os.environ.get("MEDSEG_TEST_DATA"))
    given = parser.parse_args()
    print(
        f"{platform.processor() or platform.machine()}, {os.cpu_count()} CPUs, numpy {np.__version__}, "
        f"nibabel {nib.__version__}, Python {platform.python_version()}"
    )
    with tempfile.TemporaryDirectory() as folder:
        files, grid = full_size(Path(folder))
        compare("full size", files, grid, rounds=given.rounds, promised=PROMISED)
    for case in ("ts_s0001", "ts_s0002"):
        place = Path(given.data or ".") / "ct_multiorgan" / case
        if not place.is_dir():
            print(f"{case}: no such folder; give --data or set MEDSEG_TEST_DATA")
            continue
        files = dict(enumerate(sorted((place / "segmentations").glob("*.nii.gz")), 1))
        compare(case, files, read_grid(place / "ct.nii.gz"), rounds=given.rounds)


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


def by_get_fdata(files: Files, grid: Grid) -> np.ndarray:
    """What most scripts do."""
    label = np.zeros(grid.shape, np.uint8)
    for number in sorted(files):
        label[nib.load(files[number]).get_fdata() > 0.5] = number
    return label


def by_index(files: Files, grid: Grid) -> np.ndarray:
    """The stored dtype, and one memory order for masks and label map."""
    label = np.zeros(grid.shape, np.uint8, order="F")
    for number in sorted(files):
        label[np.asanyarray(nib.load(files[number]).dataobj) > 0] = number
    return label


def by_maximum(files: Files, grid: Grid) -> np.ndarray:
    """Arithmetic in place of an index: ids come in ascending order."""
    label = np.zeros(grid.shape, np.uint8, order="F")
    for number in sorted(files):
        mask = np.asanyarray(nib.load(files[number]).dataobj)
        np.maximum(label, mask * np.uint8(number), out=label, casting="unsafe")
    return label


def by_medseg(files: Files, grid: Grid) -> np.ndarray:
    """The first layer of `join_masks`, which also counts voxels and overlaps."""
    return join_masks(files, grid).layers[0]


WAYS: dict[str, Callable[[Files, Grid], np.ndarray]] = {
    "medseg_core join_masks": by_medseg,
    "nibabel, out[dataobj > 0] = id": by_index,
    "nibabel, np.maximum": by_maximum,
    "nibabel, get_fdata() > 0.5": by_get_fdata,
}


def compare(what: str, files: Files, grid: Grid, *, rounds: int, promised: float = 0) -> None:
    """Prints a row per way; the first round warms up."""
    taken: dict[str, list[float]] = {name: [] for name in WAYS}
    for number in range(rounds + 1):
        expected = None
        for name, way in WAYS.items():
            begun = time.perf_counter()
            label = way(files, grid)
            if number:
                taken[name].append(time.perf_counter() - begun)
            expected = label if expected is None else expected
            assert np.array_equal(label, expected), name
    medians = {name: statistics.median(values) for name, values in taken.items()}
    joined, dtype = join_masks(files, grid), nib.load(files[1]).get_data_dtype()
    size_mb = sum(path.stat().st_size for path in files.values()) / 1e6
    print(
        f"\n{what}: {len(files)} masks of {'x'.join(map(str, grid.shape))} {dtype}, {size_mb:.1f} MB; "
        f"{len(joined.overlaps)} pairs overlap"
    )
    print(f"{'':32}{'ms':>10}{'x ours':>10}{'promised':>10}   (median of {rounds})")
    for name, value in medians.items():
        ratio = value / medians["medseg_core join_masks"]
        promise = f"{promised:10}" if promised and name.startswith("nibabel") else ""
        print(f"{name:32}{value * 1e3:10.1f}{ratio:10.1f}{promise}{'  MISSED' if promise and ratio < promised else ''}")


if __name__ == "__main__":
    main()
