"""A CT to the model's grid, and its mask home: `resample` beside SciPy's `affine_transform` and SimpleITK.

    python benchmarks/resample.py [--edge 256]

An int16 volume of `--edge` squared by 150 slices, LPS, 0.8 x 0.8 x 2 mm, goes to RAS at 1.5 mm; a label map of 117
ids comes home. SciPy's label map is the nearest voxel, which is another answer; ours weighs eight neighbours.
"""

import argparse
import os
import platform
import time
from collections.abc import Callable

import numpy as np
from scipy import ndimage

from medseg_core.grid import Grid
from medseg_core.volume import Volume, resample

try:
    import SimpleITK
except ImportError:
    SimpleITK = None

SPACING_MM = (1.5, 1.5, 1.5)


def main() -> None:
    """Prints one line a question: seconds of each, the ratio, and how far the values differ."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--edge", type=int, default=256)
    edge = parser.parse_args().edge
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}")
    rng = np.random.default_rng(0)
    rough = rng.normal(0, 300, (edge // 8, edge // 8, 19))
    voxels = ndimage.zoom(rough, np.divide((edge, edge, 150), rough.shape), order=1).astype(np.int16, order="F")
    ct = Volume(voxels, np.diag((-0.8, -0.8, 2.0, 1.0)))
    grid = ct.grid.oriented("RAS", SPACING_MM)
    blobs = ndimage.zoom(rng.integers(0, 118, np.maximum(1, np.array(grid.shape) // 12)), 12, order=0)
    padded = np.zeros(grid.shape, np.uint8, order="F")
    part = tuple(map(slice, blobs.shape))
    padded[part] = blobs[tuple(map(slice, grid.shape))]
    mask = Volume(padded, grid.affine)
    print(f"{ct.grid.shape} int16 -> {grid.shape}, and home")

    images = {"linear": 1, "cubic": 3}
    for how, order in images.items():
        say(f"image, {how}", lambda how=how: resample(ct, grid, how=how).voxels, lambda n=order: by_scipy(ct, grid, n))
    say("label home", lambda: resample(mask, ct.grid, how="label").voxels, lambda: by_scipy(mask, ct.grid, 0))
    say("axes only", lambda: resample(mask, mask.grid.oriented("PIR"), how="label").voxels, None)
    if SimpleITK:
        say("image, linear", lambda: resample(ct, grid).voxels, lambda: by_sitk(ct, grid), peer="SimpleITK, 1 thread")


def say(
    what: str, ours: Callable[[], np.ndarray], theirs: Callable[[], np.ndarray] | None, *, peer: str = "SciPy"
) -> None:
    """Best of three for ours after a first call that compiles, one call of the peer; both see warm memory."""
    ours()
    seconds, mine = min((timed(ours) for _ in range(3)), key=lambda pair: pair[0])
    line = f"{what}: ours {seconds:.3f} s"
    if theirs:
        slower, other = timed(theirs)
        inside = (slice(2, -2),) * 3
        apart = np.abs(mine[inside].astype(np.float64) - other[inside])
        line += f", {peer} {slower:.3f} s, {slower / seconds:.1f}x; "
        line += (
            f"{(apart > 0.5).mean():.2%} of voxels differ" if what.startswith("label") else f"apart {apart.max():.4f}"
        )
    print(line)


def timed(work: Callable[[], np.ndarray]) -> tuple[float, np.ndarray]:
    """Seconds and the answer."""
    start = time.perf_counter()
    answer = work()
    return time.perf_counter() - start, answer


def by_scipy(volume: Volume, grid: Grid, order: int) -> np.ndarray:
    """The same geometry, with mirrored edges; images in float32."""
    matrix = np.linalg.inv(volume.affine) @ grid.affine
    voxels = volume.voxels if order == 0 else volume.voxels.astype(np.float32)
    return ndimage.affine_transform(
        voxels, matrix[:3, :3], matrix[:3, 3], output_shape=grid.shape, order=order, mode="mirror"
    )


def by_sitk(volume: Volume, grid: Grid) -> np.ndarray:
    """SimpleITK's resampling filter; its world is LPS+."""
    SimpleITK.ProcessObject.SetGlobalDefaultNumberOfThreads(1)

    def placed(voxels: np.ndarray, affine: np.ndarray) -> "SimpleITK.Image":
        image = SimpleITK.GetImageFromArray(voxels.T)
        lps = np.diag((-1.0, -1.0, 1.0)) @ affine[:3]
        spacing = np.linalg.norm(affine[:3, :3], axis=0)
        image.SetSpacing(spacing.tolist())
        image.SetDirection((lps[:, :3] / spacing).ravel().tolist())
        image.SetOrigin(lps[:, 3].tolist())
        return image

    source = placed(volume.voxels, volume.affine)
    target = placed(np.empty(grid.shape, np.uint8), grid.affine)
    still = SimpleITK.Transform()
    return SimpleITK.GetArrayFromImage(
        SimpleITK.Resample(source, target, still, SimpleITK.sitkLinear, 0.0, SimpleITK.sitkFloat32)
    ).T


if __name__ == "__main__":
    main()
