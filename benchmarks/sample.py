"""One training sample: a plane from the cache beside the original's way, which reads every gzipped file for each plane.

    python benchmarks/sample.py [--edge 224] [--depth 200] [--planes 300]

A scan of `--edge` squared by `--depth` voxels with 117 masks is written as a released folder and prepared. The
original's sample: `nibabel get_fdata()` of the scan and of each mask, percentile window, threshold, stack; its resize
is left out, for the plane has its size already. Ours: image and 117-class target of that plane, not augmented.
"""

import argparse
import os
import platform
import tempfile
import time
from pathlib import Path

import nibabel as nib
import numpy as np

from medseg_core.draw import Draw
from medseg_core.io import write_volume
from medseg_core.store import Arrays
from medseg_core.volume import Volume
from medseg_totalseg.labels import CLASS_LISTS
from medseg_totalseg.prepare import prepare
from medseg_totalseg.settings import PrepareConfig
from medseg_totalseg.slices import Slices

LABELS = CLASS_LISTS["v2"]


def main() -> None:
    """Prints the seconds of both ways, their ratio, and that they give the same target."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--edge", type=int, default=224)
    parser.add_argument("--depth", type=int, default=200)
    parser.add_argument("--planes", type=int, default=300, help="samples that ours is averaged over")
    given = parser.parse_args()
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}")
    with tempfile.TemporaryDirectory() as folder:
        case = released(Path(folder) / "data" / "s0000", (given.edge, given.edge, given.depth))
        begun = time.perf_counter()
        prepare(case, Path(folder) / "cache", PrepareConfig())
        size = f"{given.edge}x{given.edge}x{given.depth}"
        print(f"prepare, once: {time.perf_counter() - begun:.2f} s for 117 masks of {size}")
        samples = Slices(
            [Arrays(Path(folder) / "cache" / "s0000")],
            size=given.edge,
            intensity={"window_hu": (-1000.0, 1000.0)},
            channels=(0, *LABELS),
            head="softmax",
        )
        middle = given.depth // 2
        begun = time.perf_counter()
        _, masks = original_sample(case, middle)
        original_s = time.perf_counter() - begun
        label = samples[Draw(middle, 0, 0, 0)]["label"].numpy()
        order = np.random.default_rng(0).integers(0, given.depth, given.planes)
        begun = time.perf_counter()
        for place, plane in enumerate(order):
            samples[Draw(int(plane), 0, place, 0)]
        ours_s = (time.perf_counter() - begun) / given.planes
        same = all(np.array_equal(masks[k - 1] > 0, label == k) for k in LABELS)
        print(f"original {original_s:.2f} s, ours {1e3 * ours_s:.3f} ms a sample at {given.edge} px: ", end="")
        print(f"{original_s / ours_s:.0f} times, targets {'equal' if same else 'DIFFER'}")


def released(folder: Path, shape: tuple[int, int, int]) -> Path:
    """A case of 117 balls that touch but do not overlap, gzipped as released ones are, at 1.5 mm RAS."""
    rng = np.random.default_rng(0)
    affine = np.diag((1.5, 1.5, 1.5, 1.0))
    label = np.zeros(shape, np.uint8)
    for number in LABELS:
        radius = rng.uniform(4, 0.12 * min(shape))
        centre = rng.uniform(0.15, 0.85, 3) * shape
        at = tuple(slice(max(0, int(c - radius)), int(c + radius) + 2) for c in centre)
        index = np.ogrid[tuple(slice(a.start, min(a.stop, n)) for a, n in zip(at, shape, strict=True))]
        inside = sum((i - c) ** 2 for i, c in zip(index, centre, strict=True)) <= radius**2
        label[at][inside] = number
    hu = rng.normal(0, 20, shape) + 10.0 * label - 500 * (label == 0)
    write_volume(Volume(hu.astype(np.int16), affine), folder / "ct.nii.gz")
    for number, name in LABELS.items():
        mask = (label == number).astype(np.uint8)
        write_volume(Volume(mask, affine), folder / "segmentations" / f"{name}.nii.gz")
    return folder


def original_sample(case: Path, plane: int) -> tuple[np.ndarray, np.ndarray]:
    """(H, W) image and (117, H, W) masks, float32: every file read whole, as the original's dataset does."""
    image = nib.load(case / "ct.nii.gz").get_fdata()[:, :, plane]
    low, high = np.percentile(image, (1, 99))
    image = np.clip((image - low) / (high - low), 0, 1).astype(np.float32)
    files = (case / "segmentations" / f"{name}.nii.gz" for name in LABELS.values())
    return image, np.stack([(nib.load(file).get_fdata()[:, :, plane] > 0).astype(np.float32) for file in files])


if __name__ == "__main__":
    main()
