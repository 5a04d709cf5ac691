"""NIfTI files: `write_volume` and `read_volume` beside NiBabel, in time, size and memory.

    python benchmarks/files.py [--rounds 5] [--data FOLDER]

A CT of 512x512x133 int16, the same with the noise of a scanner, its label map, and the mask of its largest structure;
from the chest scan under `--data` or $MEDSEG_TEST_DATA, whose CT is there at a quarter of the size and is resampled to
the size of its mask, or made up where there is none. The ways take turns, so that a busy moment of the machine meets
all of them, and the median of each is shown. NiBabel writes at its default level. Both files are read by both and must
give the same values, dtype and affine; ours may be 5 % larger. Memory is the peak of a process of its own above what it
held before the call, less the array that it gives back (Linux only); our reader may take a megabyte of it.
"""

import argparse
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import nibabel as nib
import numpy as np
from scipy import ndimage

from medseg_core.io import read_volume, write_volume
from medseg_core.volume import Volume, resample

NOISE_HU = 15
MB = 1e6
LARGEST, FASTER = 1.05, 2.5  # the promises: size and speed of writing beside NiBabel's
READERS: Mapping[str, Callable[[Path], np.ndarray]] = {
    "medseg_core": lambda path: read_volume(path).voxels,
    "nibabel, dataobj": lambda path: np.asanyarray(nib.load(path).dataobj),
    "nibabel, get_fdata": lambda path: nib.load(path).get_fdata(),
}


def main() -> None:
    """Prints two tables a volume."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--data", type=Path, default=os.environ.get("MEDSEG_TEST_DATA"))
    parser.add_argument("--peak", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.peak:
        print(peak_beyond(*given.peak))
        return
    print(
        f"{platform.processor() or platform.machine()}, {os.cpu_count()} CPUs, numpy {np.__version__}, "
        f"nibabel {nib.__version__}, Python {platform.python_version()}"
    )
    with tempfile.TemporaryDirectory() as folder:
        for what, volume in real(given.data) if given.data else made_up():
            shape = "x".join(map(str, volume.grid.shape))
            both = written(f"write {what}, {shape} {volume.voxels.dtype}", volume, Path(folder), rounds=given.rounds)
            read(f"read {what}", both, rounds=given.rounds)


def real(data: Path) -> list[tuple[str, Volume]]:
    """A chest CT with contrast and its 89 structures; see SOURCES.md of the data."""
    case = Path(data) / "ct_more" / "lidc0001"
    label = read_volume(case / "mask.nii.gz")
    ct = resample(read_volume(case / "derived" / "ct.nii.gz"), label.grid, how="cubic").voxels
    return volumes(np.maximum(ct, -1024), label)


def made_up() -> list[tuple[str, Volume]]:
    """Blobs in a body in air."""
    rng, shape = np.random.default_rng(0), (512, 512, 133)
    rough = ndimage.gaussian_filter(rng.normal(0, 1, (64, 64, 34)), 2)
    smooth = ndimage.zoom(rough / rough.std(), np.divide(shape, rough.shape), order=1)
    x, y, _ = np.ogrid[-1:1:512j, -1:1:512j, :133]
    body = (x / 0.8) ** 2 + (y / 0.6) ** 2 < 1
    label = np.where(body, np.clip(smooth * 30 + 45, 0, 89), 0).astype(np.uint8, order="F")
    return volumes(np.where(body, smooth * 150, -1024), Volume(label, np.diag((-0.7, -0.7, 2.5, 1.0))))


def volumes(ct: np.ndarray, label: Volume) -> list[tuple[str, Volume]]:
    """What is written, by name: int16 in Fortran order as scanners' files are."""
    noise = np.random.default_rng(0).normal(0, NOISE_HU, ct.shape) * (ct > -1000)
    largest = np.bincount(label.voxels.ravel())[1:].argmax() + 1
    return [
        ("CT", label.like(np.rint(ct).astype(np.int16, order="F"))),
        ("CT with noise", label.like(np.rint(ct + noise).astype(np.int16, order="F"))),
        ("label map", label),
        ("mask", label.like((label.voxels == largest).astype(np.uint8, order="F"))),
    ]


def written(what: str, volume: Volume, folder: Path, *, rounds: int) -> dict[str, Path]:
    """Times and compares the writers; gives back their files."""
    files = {name: folder / f"{name}.nii.gz" for name in ("medseg_core", "nibabel")}
    ways = {
        "medseg_core": lambda: write_volume(volume, files["medseg_core"]),
        "nibabel": lambda: nib.save(nib.Nifti1Image(volume.voxels, volume.affine), files["nibabel"]),
    }
    medians = timed(ways, rounds=rounds)
    for path in files.values():
        ours, theirs = read_volume(path), nib.load(path)
        for voxels, affine in ((ours.voxels, ours.affine), (np.asanyarray(theirs.dataobj), theirs.affine)):
            assert voxels.dtype == volume.voxels.dtype, path
            assert np.array_equal(voxels, volume.voxels), path
            assert np.abs(affine - volume.affine).max() < 1e-4, path
    sizes = {name: path.stat().st_size for name, path in files.items()}
    print(f"\n{what:40}{'ms':>10}{'x ours':>10}{'promised':>10}{'MB':>10}{'of theirs':>10}   (median of {rounds})")
    for name, value in medians.items():
        ratio = value / medians["medseg_core"]
        promise = f"{FASTER:10}" if name == "nibabel" else " " * 10
        size = f"{sizes[name] / MB:10.3f}{sizes[name] / sizes['nibabel']:10.3f}"
        missed = "  MISSED" * (name == "nibabel" and ratio < FASTER)
        print(f"{name:40}{value * 1e3:10.1f}{ratio:10.1f}{promise}{size}{missed}")
    assert sizes["medseg_core"] <= LARGEST * sizes["nibabel"], sizes
    return files


def read(what: str, files: Mapping[str, Path], *, rounds: int) -> None:
    """Times the readers on what NiBabel wrote, and asks what each of them takes of memory."""
    path = files["nibabel"]
    medians = timed({name: lambda reader=reader: reader(path) for name, reader in READERS.items()}, rounds=rounds)
    print(f"{what:40}{'ms':>10}{'x ours':>10}{'array MB':>10}{'more MB':>10}   (median of {rounds})")
    for name, value in medians.items():
        command = [sys.executable, __file__, "--peak", name, path]
        more = float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        array = READERS[name](path).nbytes
        numbers = f"{value * 1e3:10.1f}{value / medians['medseg_core']:10.1f}{array / MB:10.1f}{more / MB:10.1f}"
        print(f"{name:40}{numbers}")
        assert not (name == "medseg_core" and more > MB), more


def timed(ways: Mapping[str, Callable[[], object]], *, rounds: int) -> dict[str, float]:
    """Median seconds of each way, in turns; the first round only warms up."""
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds + 1):
        for name, way in ways.items():
            begun = time.perf_counter()
            way()
            if number:
                taken[name].append(time.perf_counter() - begun)
    return {name: statistics.median(values) for name, values in taken.items()}


def peak_beyond(name: str, path: str) -> float:
    """Bytes that a reader takes at its peak beside the array it gives back.

    From the kernel's own counts: `ru_maxrss` of a new process starts at what its parent held.
    """
    READERS[name](Path(path))  # imports what it imports when it is first used
    status = Path("/proc/self/status")
    if not status.exists():
        return float("nan")
    Path("/proc/self/clear_refs").write_text("5")  # the peak is that from here on
    before = kept(status, "VmRSS")
    array = READERS[name](Path(path))
    return kept(status, "VmHWM") - before - array.nbytes


def kept(status: Path, what: str) -> int:
    """One of the numbers of /proc/self/status, in bytes."""
    return next(int(line.split()[1]) * 1024 for line in status.read_text().splitlines() if line.startswith(what))


if __name__ == "__main__":
    main()
