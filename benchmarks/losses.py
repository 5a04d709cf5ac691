"""Dice plus cross entropy, forward and backward: `dice_ce` beside MONAI's DiceCELoss and cross entropy alone.

    hatch run bench:python benchmarks/losses.py [--rounds 5]

Every class is in every case and background is left out of Dice, so that MONAI's definition is ours; values and
gradients are compared in float64 and float32. The ways take turns, with one thread and with two. Memory is the rise of
a process of its own in one step, above the logits and labels.
"""

import argparse
import importlib.util
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from medseg_core.losses import dice_ce

SHAPES = ((2, 117, 256, 256), (8, 117, 256, 256), (2, 3, 128, 128, 128))
Way = Callable[[Tensor, Tensor], Tensor]


def ways() -> dict[str, Way]:
    """Name -> loss of logits (N, K, ...) and labels (N, ...)."""
    found: dict[str, Way] = {"medseg_core": dice_ce, "cross entropy alone": torch.nn.functional.cross_entropy}
    if importlib.util.find_spec("monai"):
        from monai.losses import DiceCELoss

        how = {"include_background": False, "to_onehot_y": True, "softmax": True, "smooth_nr": 1.0, "smooth_dr": 1.0}
        monai = DiceCELoss(**how)
        found["MONAI"] = lambda logits, label: monai(logits, label[:, None])
    else:
        print("MONAI is not installed: left out")
    return found


def sample(shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Logits that ask for a gradient, and labels with every class in every case."""
    rng = torch.Generator().manual_seed(0)
    logits = torch.randn(shape, generator=rng, dtype=dtype).requires_grad_()
    return logits, torch.randint(shape[1], (shape[0], *shape[2:]), generator=rng)


def step(way: Way, logits: Tensor, label: Tensor) -> tuple[float, Tensor]:
    """Value and gradient."""
    value = way(logits, label)
    (gradient,) = torch.autograd.grad(value, logits)
    return value.item(), gradient


def check() -> None:
    """Equal to MONAI, in float64 and in float32."""
    everything = ways()
    for shape, dtype, most in (((2, 117, 64, 64), torch.float64, 1e-6), ((2, 117, 64, 64), torch.float32, 1e-5)):
        logits, label = sample(shape, dtype)
        (ours, mine), (theirs, other) = (step(everything[name], logits, label) for name in ("medseg_core", "MONAI"))
        apart = (mine - other).abs().max() / other.abs().max()
        assert abs(ours - theirs) <= most * abs(theirs), (ours, theirs)
        assert apart <= most, apart
        print(f"{dtype}: value apart {abs(ours - theirs) / abs(theirs):.1e}, gradient {apart.item():.1e}, relative")


def kilobytes(what: str) -> int:
    """One of the numbers that Linux keeps of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(what))


def rise_mb(name: str, shape: tuple[int, ...]) -> float:
    """Memory of one step above what it is given, after a small step."""
    way = ways()[name]
    step(way, *sample((1, shape[1], *(16 for _ in shape[2:]))))
    given = sample(shape)
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = kilobytes("VmRSS")
    step(way, *given)
    return (kilobytes("VmHWM") - before) / 1024


def main() -> None:
    """Prints a table per shape."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rise", nargs=2, metavar=("WAY", "SHAPE"), help="memory of one way alone")
    given = parser.parse_args()
    if given.rise:
        print(rise_mb(given.rise[0], tuple(map(int, given.rise[1].split("x")))))
        return
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} CPUs, torch {torch.__version__}")
    everything = ways()
    if "MONAI" in everything:
        check()
    for shape in SHAPES:
        size = "x".join(map(str, shape))
        memory = {}
        for name in everything:
            run = [sys.executable, __file__, "--rise", name, size]
            memory[name] = float(subprocess.run(run, check=True, capture_output=True, text=True).stdout.split()[-1])
        for num_threads in (1, 2):
            torch.set_num_threads(num_threads)
            data = sample(shape)
            taken: dict[str, list[float]] = {name: [] for name in everything}
            for number in range(given.rounds + 1):
                for name, way in everything.items():
                    begun = time.perf_counter()
                    step(way, *data)
                    if number:  # the first round only warms up
                        taken[name].append(time.perf_counter() - begun)
            medians = {name: statistics.median(values) for name, values in taken.items()}
            print(f"{size}, {num_threads} thread{'s' * (num_threads > 1)} (median of {given.rounds})")
            for name, value in medians.items():
                ratio, share = value / medians["medseg_core"], memory[name] / memory["medseg_core"]
                print(f"  {name:20}{value * 1e3:9.0f} ms{ratio:7.2f} x{memory[name]:9.0f} MB{share:7.2f} x")


if __name__ == "__main__":
    main()
