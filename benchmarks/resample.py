"""A CT to the model's grid, and its label map home: `resample` beside SciPy, SimpleITK and PyTorch.

    python benchmarks/resample.py [--edge 256] [--rounds 5]

An int16 volume of `--edge` squared by 150 slices, LPS, 0.8 x 0.8 x 2 mm, goes to RAS at about 1.5 mm over the same
field of view, and back; a label map of 117 ids comes home. The ways take turns, so that a busy moment of the machine
meets all of them, and the median of each is shown; all run on one thread where nothing else is said. SimpleITK's images
are made beforehand, so its conversions from and to NumPy are not counted. Answers are compared before any is timed:
images to 1e-3 HU, labels exactly but for ties (shares of a vote that differ by less than 1e-6). One-hot maps are
resampled by PyTorch, which is several times faster at it than SciPy.
"""

import argparse
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping

import nibabel.orientations as axes
import numpy as np
import scipy
import torch
from scipy import ndimage
from torch.nn.functional import interpolate

from medseg_core.grid import Grid
from medseg_core.volume import Volume, resample

try:
    import SimpleITK
except ImportError:
    SimpleITK = None

HU = 1e-3
TIE = 1e-6
NUM_IDS = 117
ORDER = {"linear": 1, "cubic": 3}
Ways = Mapping[str, Callable[[], np.ndarray]]


def main() -> None:
    """Prints a table a question: milliseconds of each way, and how many times ours that is."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--edge", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    torch.set_num_threads(1)
    itk = f"SimpleITK {SimpleITK.__version__}, " if SimpleITK else ""
    print(
        f"{platform.processor() or platform.machine()}, {os.cpu_count()} CPUs, numpy {np.__version__}, "
        f"scipy {scipy.__version__}, {itk}torch {torch.__version__}"
    )
    ct, mask = phantom(given.edge)
    there = Volume(resample(ct, mask.grid).voxels.round().astype(np.int16), mask.affine)
    print(f"{shown(ct)}, LPS -> {shown(mask)}, RAS; all over one field of view")
    for source, grid in ((ct, mask.grid), (there, ct.grid)):
        for how, promised in (("linear", {"SimpleITK": 4}), ("cubic", {"SciPy zoom": 4})):
            image(source, grid, how=how, promised=promised, rounds=given.rounds)
    coarser(ct, rounds=given.rounds)
    labels(mask, ct.grid, rounds=min(3, given.rounds))
    turned = mask.grid.oriented("PIR")
    ways = {
        "medseg_core": lambda: resample(mask, turned, how="label").voxels,
        "NiBabel and a copy": lambda: np.asfortranarray(axes.apply_orientation(mask.voxels, to_pir(mask))),
    }
    assert np.array_equal(*[way() for way in ways.values()])
    table("label, axes only", ways, rounds=given.rounds)


def phantom(edge: int) -> tuple[Volume, Volume]:
    """A smooth CT, and 117 blocky structures on the model's grid, both in Fortran order as read from files."""
    rng = np.random.default_rng(0)
    rough = rng.normal(0, 300, (edge // 8, edge // 8, 19))
    voxels = ndimage.zoom(rough, np.divide((edge, edge, 150), rough.shape), order=1).astype(np.int16, order="F")
    ct = Volume(voxels, np.diag((-0.8, -0.8, 2.0, 1.0)))
    shape = ct.grid.oriented("RAS", (1.5, 1.5, 1.5)).shape
    step = np.divide(ct.grid.shape, shape)
    turned = ct.grid.oriented("RAS").affine
    grid = Grid(shape, turned @ [*np.column_stack([np.diag(step), (step - 1) / 2]), (0, 0, 0, 1)])
    blobs = np.repeat(rng.integers(0, NUM_IDS + 1, [n // 12 + 1 for n in shape]), 12, axis=0)
    blobs = blobs.repeat(12, axis=1).repeat(12, axis=2)[tuple(map(slice, shape))]
    return ct, Volume(np.asfortranarray(blobs, dtype=np.uint8), grid.affine)


def image(volume: Volume, grid: Grid, *, how: str, promised: Mapping[str, float], rounds: int) -> None:
    """Ours beside SciPy at equal values; beyond the outermost centres each has edges of its own."""
    zoom = np.divide(grid.shape, volume.grid.shape)
    matrix = np.linalg.inv(volume.affine) @ grid.affine
    ways = {
        "medseg_core": lambda: resample(volume, grid, how=how).voxels,
        "SciPy zoom": lambda: ndimage.zoom(
            volume.voxels[::-1, ::-1].astype(np.float32), zoom, order=ORDER[how], mode="mirror", grid_mode=True
        ),
        "SciPy affine_transform": lambda: ndimage.affine_transform(
            *(volume.voxels.astype(np.float32), matrix), output_shape=grid.shape, order=ORDER[how], mode="mirror"
        ),
    }
    if how == "linear":
        ways["PyTorch interpolate"] = lambda: by_torch(volume.voxels[::-1, ::-1], grid.shape)
    if SimpleITK:
        moved = {"linear": SimpleITK.sitkLinear, "cubic": SimpleITK.sitkBSpline}[how]
        source, target = placed(volume), placed(Volume(np.zeros(grid.shape, np.uint8), grid.affine))
        ways["SimpleITK"] = lambda: by_itk(source, target, moved, threads=1)
        ways["SimpleITK, all threads"] = lambda: by_itk(source, target, moved, threads=os.cpu_count() or 1)
    inside = tuple(slice(n, -n or None) for n in map(int, np.ceil(zoom / 2)))
    ours = ways["medseg_core"]()[inside]
    for name, way in ways.items():
        if not (how == "cubic" and name.startswith("SimpleITK")):  # its spline has edges of another kind
            apart = np.abs(way()[inside] - ours).max()
            assert apart < (10 * HU if "PyTorch" in name else HU), (name, apart)  # whose positions are float32
    table(f"image, {how}, to {'x'.join(map(str, grid.shape))}", ways, rounds=rounds, promised=promised)


def coarser(ct: Volume, *, rounds: int) -> None:
    """A quarter of the voxels along each axis, smoothed before; as scikit-image's `resize` does it."""
    shape = tuple(n // 4 for n in ct.grid.shape)
    step = np.divide(ct.grid.shape, shape)
    grid = Grid(shape, ct.affine @ [*np.column_stack([np.diag(step), (step - 1) / 2]), (0, 0, 0, 1)])

    def by_scipy() -> np.ndarray:
        smooth = ndimage.gaussian_filter(ct.voxels.astype(np.float32), (step - 1) / 2, mode="mirror")
        return ndimage.zoom(smooth, 1 / step, order=1, mode="mirror", grid_mode=True)

    ways = {"medseg_core": lambda: resample(ct, grid, antialias=True).voxels, "SciPy, two calls": by_scipy}
    assert np.abs(ways["medseg_core"]() - by_scipy()).max() < HU
    table(f"image, linear, antialias, to {'x'.join(map(str, shape))}", ways, rounds=rounds)


def labels(mask: Volume, grid: Grid, *, rounds: int) -> None:
    """Ours beside the arg-max of one-hot maps, resampled linearly class by class: all at once would take 4.6 GB."""
    voxels = mask.voxels[::-1, ::-1]
    ways = {
        "medseg_core": lambda: resample(mask, grid, how="label").voxels,
        "one-hot maps, PyTorch": lambda: arg_max(voxels, grid.shape),
    }
    ours, theirs = (way() for way in ways.values())
    best, taken = np.zeros((2, *grid.shape))
    for i in range(NUM_IDS + 1):
        share = by_torch((voxels == i).astype(np.float64), grid.shape)
        np.maximum(best, share, out=best)
        np.copyto(taken, share, where=ours == i)
    assert (best - taken).max() < TIE
    what = f"label, {NUM_IDS} ids, to {'x'.join(map(str, grid.shape))}"
    table(what, ways, rounds=rounds, promised={"one-hot maps, PyTorch": 50})
    print(
        f"(equal but for ties, which PyTorch's rounding decides otherwise in {np.mean(ours != theirs):.4%} of voxels)"
    )


def arg_max(voxels: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """The id with the largest share, the smallest of those that tie."""
    best, ids = np.zeros(shape, np.float32, order="F"), np.zeros(shape, np.uint8, order="F")
    for i in range(NUM_IDS + 1):
        share = by_torch(voxels == i, shape)
        more = share > best
        np.copyto(best, share, where=more)
        np.copyto(ids, np.uint8(i), where=more)
    return ids


def by_torch(voxels: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Trilinear over the same field of view, in float32 or the float64 that came in; memory order as ours."""
    dtype = np.float64 if voxels.dtype == np.float64 else np.float32
    tensor = torch.from_numpy(np.ascontiguousarray(voxels.T, dtype=dtype))[None, None]
    return interpolate(tensor, shape[::-1], mode="trilinear", align_corners=False)[0, 0].numpy().T


def placed(volume: Volume) -> "SimpleITK.Image":
    """An image of SimpleITK, whose world is LPS+."""
    found = SimpleITK.GetImageFromArray(volume.voxels.T)
    lps = np.diag((-1.0, -1.0, 1.0)) @ volume.affine[:3]
    found.SetSpacing(volume.spacing_mm)
    found.SetDirection((lps[:, :3] / volume.spacing_mm).ravel().tolist())
    found.SetOrigin(lps[:, 3].tolist())
    return found


def by_itk(source: "SimpleITK.Image", target: "SimpleITK.Image", moved: int, *, threads: int) -> np.ndarray:
    """The values of its resampling filter, in float32."""
    SimpleITK.ProcessObject.SetGlobalDefaultNumberOfThreads(threads)
    still = SimpleITK.Transform()
    found = SimpleITK.Resample(source, target, still, moved, 0.0, SimpleITK.sitkFloat32)
    return SimpleITK.GetArrayViewFromImage(found).T.copy(order="F")


def to_pir(volume: Volume) -> np.ndarray:
    """NiBabel's recipe for another order of the axes."""
    return axes.ornt_transform(axes.io_orientation(volume.affine), axes.axcodes2ornt("PIR"))


def table(what: str, ways: Ways, *, rounds: int, promised: Mapping[str, float] | None = None) -> None:
    """Prints a row per way; the first round warms up."""
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds + 1):
        for name, way in ways.items():
            begun = time.perf_counter()
            way()
            if number:
                taken[name].append(time.perf_counter() - begun)
    medians = {name: statistics.median(values) for name, values in taken.items()}
    print(f"\n{what:36}{'ms':>10}{'x ours':>10}{'promised':>10}   (median of {rounds})")
    for name, value in medians.items():
        ratio, least = value / medians["medseg_core"], (promised or {}).get(name)
        note = "" if not least else f"{least:10}" + ("" if ratio >= least else "  MISSED")
        print(f"{name:36}{value * 1e3:10.1f}{ratio:10.1f}{note}")


def shown(volume: Volume) -> str:
    """256x256x150 int16 at 0.8 x 0.8 x 2 mm."""
    spacing = " x ".join(f"{mm:.3g}" for mm in volume.spacing_mm)
    return f"{'x'.join(map(str, volume.grid.shape))} {volume.voxels.dtype} at {spacing} mm"


if __name__ == "__main__":
    main()
