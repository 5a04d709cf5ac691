"""118 classes on a scan of 512 x 512 x 824 by sliding windows: memory of the process and seconds, each in its own.

    python benchmarks/inference.py [--threads 2] [--only large|small]

The net costs next to nothing: it blurs 3 x 3 x 3 voxels and gives each class a level, so that the arg-max is the level
nearest to the blurred image. What is measured is thus windows, blending and arg-max. The small scan also goes through a
buffer of all logits in plain PyTorch, and through MONAI's SlidingWindowInferer where it is installed; labels are
compared voxel by voxel with those of the buffer (MONAI's windows lie elsewhere, so near their borders it differs).
"""

import argparse
import itertools
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from train_step import machine

from medseg_core.checkpoint import Card
from medseg_core.infer import decide, infer
from medseg_core.volume import Volume, resample
from medseg_core.windows import logits_bytes, plan_windows, thriftier

NUM_CLASSES = 118
CT = (512, 512, 824)
CT_SPACING_MM = (0.8, 0.8, 1.0)
WORKING_MM = (1.5, 1.5, 1.5)
SMALL = (160, 160, 200)
CARD = Card(package="benchmark", version="0", model="levels", head="softmax", channels=tuple(range(NUM_CLASSES)))


class Levels(nn.Module):
    """Logits a x - a^2 / 2 for the level a of each class: the largest is that of the level nearest to x.

    Args:
        blur: edges of the box that is averaged over, padded with zeros as a convolution is.
    """

    def __init__(self, blur: tuple[int, int, int]) -> None:
        super().__init__()
        self.blur, self.half = blur, tuple(edge // 2 for edge in blur)
        level = torch.linspace(0, 1, NUM_CLASSES).view(-1, 1, 1, 1)
        self.register_buffer("slope", level)
        self.register_buffer("bias", -level.square() / 2)

    def forward(self, x_NCW: Tensor) -> Tensor:
        """(N, 1, *W) -> (N, K, *W)."""
        return torch.addcmul(self.bias, F.avg_pool3d(x_NCW, self.blur, 1, self.half), self.slope)


def scan(shape: tuple[int, int, int]) -> np.ndarray:
    """Waves of three lengths between 0 and 1000, with a little noise: int16."""
    x, y, z = (np.arange(n, dtype=np.float32) for n in shape)
    waves = (np.sin(a / length)[:, None] for a, length in ((x, 31.0), (y, 23.0)))
    plane = 500 + 150 * (next(waves) + next(waves)[:, 0])
    rng = np.random.default_rng(0)
    image = np.empty(shape, np.int16)
    for k in range(shape[2]):
        image[:, :, k] = plane + 150 * np.sin(z[k] / 17) + rng.integers(-40, 40, shape[:2], dtype=np.int16)
    return image


def planes() -> np.ndarray:
    """A 2D net: whole planes of the scan as it comes."""
    image = scan(CT).astype(np.float32) / 1000
    return infer(Levels((3, 3, 1)).eval(), image[None], window=(*CT[:2], 1), reduce=decide(CARD))


def there_and_back(edge: int) -> np.ndarray:
    """A 3D net: the scan stays in memory, is resampled to 1.5 mm, and the mask comes back to its grid."""
    volume = Volume(scan(CT), np.diag([*CT_SPACING_MM, 1.0]))
    grid = volume.grid.oriented("RAS", WORKING_MM)
    image = resample(volume, grid).voxels / 1000
    print(f"    1.5 mm grid: {' x '.join(map(str, image.shape))}", file=sys.stderr)
    tell_plans(image.shape, edge)
    ids = infer(Levels((3, 3, 3)).eval(), image[None], window=(edge,) * 3, reduce=decide(CARD))
    del image
    return resample(Volume(ids, grid.affine), volume.grid, how="label").voxels


def tell_plans(shape: tuple[int, ...], edge: int) -> None:
    """The arithmetic, for each way to do with less."""
    for plan in thriftier(plan_windows(shape, (edge,) * 3, overlap=0.5, batch_size=4)):
        num = sum(len(batch) for tile in plan.tiles() for batch in tile.batches)
        need = logits_bytes(plan, NUM_CLASSES) / 1e9
        how = f"batch {plan.batch_size}, {plan.num_tiles} tiles, {num} windows"
        print(f"    windows of {edge}: {how}: {need:.2f} GB of logits", file=sys.stderr)


def ours() -> np.ndarray:
    """The small scan, in one tile."""
    return infer(Levels((3, 3, 3)).eval(), small(), window=(96,) * 3, reduce=decide(CARD), batch_size=1)


def ours_in_tiles() -> np.ndarray:
    """The small scan with as little memory as can be."""
    options = {"window": (96,) * 3, "reduce": decide(CARD), "logits_gb": 0.1}
    return infer(Levels((3, 3, 3)).eval(), small(), **options)


def small() -> np.ndarray:
    """(1, X, Y, Z) float32."""
    return scan(SMALL).astype(np.float32)[None] / 1000


def net_alone() -> np.ndarray:
    """The net on every window of the small scan, and nothing else."""
    plan, net = plan_windows(SMALL, (96,) * 3, overlap=0.5, batch_size=1), Levels((3, 3, 3)).eval()
    x = torch.from_numpy(small()[None, :, :96, :96, :96].copy())
    with torch.inference_mode():
        for _ in range(plan.num_windows):
            net(x)
    return np.zeros(SMALL, np.uint8)


def full_buffer() -> np.ndarray:
    """All logits of the small scan in one array, windows added in the same order, one arg-max at the end."""
    plan, net, image = plan_windows(SMALL, (96,) * 3, overlap=0.5, batch_size=1), Levels((3, 3, 3)).eval(), small()
    total = torch.zeros(NUM_CLASSES, *SMALL)
    with torch.inference_mode():
        for corner in itertools.chain.from_iterable(plan.tiles()[0].batches):
            at = tuple(slice(start, start + 96) for start in corner)
            weight = torch.ones(())
            for axis, start in enumerate(corner):
                weight = weight[..., None] * torch.from_numpy(plan.weights[axis][start])
            total[:, *at].addcmul_(net(torch.from_numpy(image[:, *at].copy())[None])[0], weight[None])
        return total.argmax(0).to(torch.uint8).numpy()


def monai() -> np.ndarray:
    """MONAI's inferer with the same window, overlap and width of the weights."""
    from monai.inferers import SlidingWindowInferer

    inferer = SlidingWindowInferer((96,) * 3, 1, 0.5, mode="gaussian", sigma_scale=0.125)
    with torch.inference_mode():
        logits = inferer(torch.from_numpy(small())[None], Levels((3, 3, 3)).eval())
        return logits[0].argmax(0).to(torch.uint8).numpy()


LARGE: dict[str, Callable[[], np.ndarray]] = {
    "2D net, whole planes": planes,
    "3D windows of 96, 1.5 mm, and back": lambda: there_and_back(96),
    "3D windows of 128, 1.5 mm, and back": lambda: there_and_back(128),
}
LITTLE: dict[str, Callable[[], np.ndarray]] = {
    "buffer of all logits": full_buffer,
    "medseg": ours,
    "medseg, least memory": ours_in_tiles,
    "MONAI SlidingWindowInferer": monai,
    "the net alone": net_alone,
}


def run_one(name: str, out: Path, threads: int) -> None:
    """One variant in this process; its labels go to `out`, its numbers to standard output."""
    torch.set_num_threads(threads)
    clock, processor = time.perf_counter(), time.process_time()
    labels = {**LARGE, **LITTLE}[name]()
    seconds = time.perf_counter() - clock, time.process_time() - processor
    np.save(out, labels)
    unit = 1e3 if sys.platform != "darwin" else 1e6
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6 / unit
    print(json.dumps({"clock": seconds[0], "processor": seconds[1], "peak_gb": peak}))


def table(names: list[str], threads: int) -> None:
    """A line a variant: the most memory its process held, its seconds, and labels unlike those of the first."""
    print(f"{'':38}{'peak GB':>9}{'clock s':>9}{'CPU s':>9}   labels that differ")
    with tempfile.TemporaryDirectory() as place:
        first = None
        for n, name in enumerate(names):
            out = Path(place) / f"{n}.npy"
            words = [sys.executable, __file__, "--one", name, "--out", str(out), "--threads", str(threads)]
            done = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=False)
            if done.returncode:
                print(f"{name:38}  failed")
                continue
            told, labels = json.loads(done.stdout.splitlines()[-1]), np.load(out, mmap_mode="r")
            differ = "" if first is None else f"{np.count_nonzero(labels != first)} of {labels.size}"
            first = labels if first is None and name == "buffer of all logits" else first
            print(f"{name:38}{told['peak_gb']:9.2f}{told['clock']:9.1f}{told['processor']:9.1f}   {differ}", flush=True)
            if first is not labels:
                out.unlink()


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--only", choices=["large", "small"])
    parser.add_argument("--one", choices=[*LARGE, *LITTLE], help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        run_one(given.one, given.out, given.threads)
        return
    device = torch.device("cpu")
    print(f"{machine(device)}, {given.threads} threads, torch {torch.__version__}, load {os.getloadavg()[0]:.1f}")
    if given.only != "large":
        print(f"\n{' x '.join(map(str, SMALL))}, windows of 96, overlap 0.5")
        table(list(LITTLE), given.threads)
    if given.only != "small":
        print(f"\n{' x '.join(map(str, CT))}")
        table(list(LARGE), given.threads)


if __name__ == "__main__":
    main()
