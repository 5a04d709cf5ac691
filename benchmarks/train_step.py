"""Seconds of one training step of the 2D U-Net by precision and memory layout, beside MONAI's BasicUNet.

    python benchmarks/train_step.py [--repeats 5] [--threads 2] [--compile] [--shapes 8x128,2x256]

All variants take turns in one run, so that what else the machine does falls on each alike; medians are printed, of
the clock and of the processor's seconds over all threads (with --threads 1 the fairer one on a busy machine).
A step is forward under autocast, cross-entropy in float32, backward, and an update by Adam.
"""

import argparse
import copy
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medseg_core.device import autocast
from medseg_totalseg.models.unet2d import UNet2d

NUM_CLASSES = 118
REFERENCE = "UNet2d fp32"


def main() -> None:
    """Print a table for each shape."""
    parser = argparse.ArgumentParser(description="Seconds of one training step, by precision and layout.")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--compile", action="store_true", help="also torch.compile: a minute more for each net and shape"
    )
    parser.add_argument("--shapes", default="8x128,2x256", help="batch x edge, ...")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    device = torch.device(arguments.device)
    nets = peers()
    print(f"{machine(device)}, {arguments.threads} threads, torch {torch.__version__}, load {os.getloadavg()[0]:.1f}")
    for text in arguments.shapes.split(","):
        batch_size, edge = map(int, text.split("x"))
        image = torch.randn(batch_size, 1, edge, edge, device=device)
        label = torch.randint(NUM_CLASSES, (batch_size, edge, edge), device=device)
        steps = variants(nets, image, label, compiles=arguments.compile)
        show(f"{batch_size} x 1 x {edge} x {edge}", interleaved(steps, repeats=arguments.repeats))


def peers() -> dict[str, nn.Module]:
    """The nets at equal widths, normalisation and activation."""
    nets: dict[str, nn.Module] = {"UNet2d": UNet2d(1, NUM_CLASSES)}
    try:
        from monai.networks.nets import BasicUNet

        nets["BasicUNet"] = BasicUNet(2, 1, NUM_CLASSES, (32, 64, 128, 256, 512, 32), act="relu", norm="batch")
    except ImportError:
        print("MONAI is not installed and left out")
    for name, net in nets.items():
        print(f"{name}: {sum(p.numel() for p in net.parameters()):,} parameters")
    return nets


def variants(
    nets: Mapping[str, nn.Module], image: Tensor, label: Tensor, *, compiles: bool
) -> dict[str, Callable[[], None]]:
    """Name -> one training step on (image, label)."""
    steps = {}
    for name, net in nets.items():
        for precision in ("fp32", "bf16"):
            plain, last, compiled = (copy.deepcopy(net).to(image.device) for _ in range(3))
            title = f"{name} {precision}"
            steps[title] = step(plain, image, label, precision=precision)
            last = last.to(memory_format=torch.channels_last)
            flat = image.contiguous(memory_format=torch.channels_last)
            steps[f"{title} channels_last"] = step(last, flat, label, precision=precision)
            if compiles and name == "UNet2d":
                steps[f"{title} compiled"] = step(torch.compile(compiled), image, label, precision=precision)
    return steps


def step(net: nn.Module, image: Tensor, label: Tensor, *, precision: str) -> Callable[[], None]:
    """One update of `net`, finished when it returns."""
    optimizer = torch.optim.Adam(net.parameters(), 1e-3)

    def run() -> None:
        with autocast(image.device, precision):
            logits = net(image)
        F.cross_entropy(logits.float(), label).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if image.device.type == "cuda":
            torch.cuda.synchronize(image.device)

    return run


def interleaved(steps: Mapping[str, Callable[[], None]], *, repeats: int) -> dict[str, tuple[float, float]]:
    """Median seconds of each by the clock and by the processor, after one turn to warm up."""
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in steps}
    for turn in range(repeats + 1):
        for name, run in steps.items():
            clock, processor = time.perf_counter(), time.process_time()
            run()
            if turn:
                seconds[name].append((time.perf_counter() - clock, time.process_time() - processor))
    return {name: tuple(map(statistics.median, zip(*pairs, strict=True))) for name, pairs in seconds.items()}


def show(title: str, seconds: Mapping[str, tuple[float, float]]) -> None:
    """A line for each variant: its seconds, and how many times as fast as the reference that makes it."""
    reference = seconds[REFERENCE]
    print(f"\n{title:32}   clock         processor")
    for name, (clock, processor) in seconds.items():
        ratios = f"{reference[0] / clock:5.2f}x {processor:7.3f} s {reference[1] / processor:5.2f}x"
        print(f"{name:32} {clock:7.3f} s {ratios}")


def machine(device: torch.device) -> str:
    """Its processor or GPU, in words, with what it has for bf16."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    fields = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    flags = [flag for flag in ("amx_bf16", "avx512_bf16", "avx512f") if flag in fields.get("flags", "").split()]
    return f"{fields.get('model name', platform.processor())} ({' '.join(flags)})"


if __name__ == "__main__":
    main()
