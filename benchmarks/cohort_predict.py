"""Seconds of a cohort's prediction: case after case, and with reading, computing and writing overlapped.

    python benchmarks/cohort_predict.py [--data DIR] [--cases 6] [--repeats 3] [--device cpu] [--threads 2]

Without --data, made-up scans of 320 x 320 x 160 voxels; with it, every ct.nii.gz below DIR, in turn until there are
enough cases. A case is read, resampled to 3 mm, segmented plane by plane by the 2D U-Net of 118 classes (weights as
they are drawn), brought back to its grid and written as .nii.gz. Both ways take turns and must write the same bytes.
"No more than" is what overlapping can reach at best: the sum of the three stages over the longest of them. Where the
network computes on the very cores that read and write, less is to be had than on a GPU.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from train_step import machine

from medseg_core.cases import Case
from medseg_core.checkpoint import Card
from medseg_core.cohort import for_each
from medseg_core.device import autocast, choose_device
from medseg_core.infer import decide, infer
from medseg_core.io import read_volume, write_volume
from medseg_core.stages import Stages
from medseg_core.volume import Volume, resample
from medseg_totalseg.models.unet2d import UNet2d

NUM_CLASSES = 118
CARD = Card(package="benchmark", version="0", model="unet2d", head="softmax", channels=tuple(range(NUM_CLASSES)))


class Work:
    """The stages of a case, each with its seconds noted."""

    def __init__(self, out: Path, device: torch.device) -> None:
        torch.manual_seed(0)
        self.net = UNet2d(1, NUM_CLASSES).eval().to(device)
        self.out, self.device = out, device
        self.seconds: dict[str, float] = defaultdict(float)

    def read(self, case: Case) -> Volume:
        """The scan."""
        return self.timed("read", lambda: read_volume(case.files["ct"]))

    def compute(self, case: Case, scan: Volume) -> Volume:
        """The mask on the scan's grid."""
        return self.timed("compute", lambda: self.segment(scan))

    def write(self, case: Case, mask: Volume) -> None:
        """The mask as a file."""
        self.timed("write", lambda: write_volume(mask, self.out / f"{case.id}.nii.gz"))

    def in_turn(self, case: Case) -> None:
        """All three."""
        self.write(case, self.compute(case, self.read(case)))

    def timed(self, name: str, work: Callable[[], Any]) -> Any:
        """What `work` gives, its seconds added to those of `name`."""
        begun = time.perf_counter()
        result = work()
        self.seconds[name] += time.perf_counter() - begun
        return result

    def segment(self, scan: Volume) -> Volume:
        """Planes of the scan at 3 mm, and back."""
        grid = scan.grid.oriented("RAS", (3.0, 3.0, 3.0))
        image = np.clip(resample(scan, grid).voxels, -1000, 1000) / 1000
        window = (*(-(-n // 16) * 16 for n in image.shape[:2]), 1)
        planes = lambda x_NCHW1: self.net(x_NCHW1[..., 0])[..., None]  # noqa: E731
        ids = infer(planes, image[None], window=window, reduce=decide(CARD), device=str(self.device))
        return resample(Volume(ids, grid.affine), scan.grid, how="label")


def make(folder: Path, num: int) -> list[Path]:
    """Scans of a wavy body with noise, 0.9 x 0.9 x 2.5 mm."""
    rng, files = np.random.default_rng(0), []
    x, y, z = np.meshgrid(*(np.linspace(-1, 1, n, dtype=np.float32) for n in (320, 320, 160)), indexing="ij")
    body = np.where(x**2 + y**2 < 0.8, 60 + 40 * np.sin(9 * x) * np.cos(7 * y + 3 * z), -1000)
    for n in range(num):
        noisy = (body + rng.normal(0, 20, body.shape).astype(np.float32)).astype(np.int16)
        files.append(folder / f"s{n}" / "ct.nii.gz")
        write_volume(Volume(noisy, np.diag([0.9, 0.9, 2.5, 1.0])), files[-1])
    return files


def once(cases: list[Case], device: torch.device, *, staged: bool) -> tuple[float, dict[str, float], list[bytes]]:
    """Seconds of the whole, seconds of each stage, and what was written."""
    with tempfile.TemporaryDirectory() as place:
        work = Work(Path(place), device)
        with torch.inference_mode(), autocast(device, "fp32"):
            work.net(torch.zeros(1, 1, 64, 64, device=device))  # what a first call sets up belongs to neither way
        begun = time.perf_counter()
        for_each(cases, Stages(work.read, work.compute, work.write) if staged else work.in_turn, out=Path(place))
        seconds = time.perf_counter() - begun
        return seconds, work.seconds, [file.read_bytes() for file in sorted(Path(place).glob("*.nii.gz"))]


def main() -> None:
    """Print both ways and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--cases", type=int, default=6)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    device = choose_device(given.device)
    print(f"{machine(device)}, {os.cpu_count()} CPUs, {given.threads} threads, load {os.getloadavg()[0]:.1f}")
    with tempfile.TemporaryDirectory() as place:
        files = sorted(given.data.rglob("ct.nii.gz")) if given.data else make(Path(place), given.cases)
        cases = [Case(id=f"c{n}", files={"ct": files[n % len(files)]}) for n in range(given.cases)]
        turns = [[once(cases, device, staged=staged) for staged in (False, True)] for _ in range(given.repeats)]
    if any(way[2] != turns[0][0][2] for turn in turns for way in turn):
        raise SystemExit("the two ways wrote different files")
    in_turn, staged = (statistics.median(turn[way][0] for turn in turns) for way in (0, 1))
    stages = {name: statistics.median(turn[0][1][name] for turn in turns) for name in ("read", "compute", "write")}
    print(f"{len(cases)} cases: " + ", ".join(f"{name} {seconds:.1f} s" for name, seconds in stages.items()))
    best = sum(stages.values()) / max(stages.values())
    print(f"in turn {in_turn:.1f} s, overlapped {staged:.1f} s: {in_turn / staged:.2f}x (no more than {best:.2f}x)")


if __name__ == "__main__":
    main()
