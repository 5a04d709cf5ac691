"""What the trainer costs beside a bare PyTorch loop, and what each of its flags brings.

    python benchmarks/loop.py [--device cpu] [--batch 4] [--edge 128] [--steps 12] [--repeats 3] [--compile]

Both loops take the same samples through a DataLoader and do the same updates of the 2D U-Net for 118 classes by Adam
under Dice and cross entropy; the bare one has nothing else in it, not even a look at its loss. The trainer seeds every
update, watches the loss, adds up what is logged, and shows a bar; with `ema` it also averages weights. They take turns;
a row is the median over repeats of the time between updates once the first are done, saving and validation excluded.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from train_step import machine

from medseg_core.checkpoint import Card
from medseg_core.draw import Batch, Draw
from medseg_core.losses import dice_ce
from medseg_core.run import RunFolder
from medseg_core.settings import TrainConfig
from medseg_core.trainer import At, Trainer
from medseg_totalseg.models.unet2d import UNet2d

NUM_CLASSES = 118
SMALL, WHOLE = (8, 16, 32), (32, 64, 128, 256, 512)


def main() -> None:
    """Print a table for the network at its own widths, and one at small widths, where a fixed cost would show."""
    parser = argparse.ArgumentParser(description="The trainer beside a bare loop, and its flags.")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--edge", type=int, default=128)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--compile", action="store_true", help="also torch.compile, which takes a minute to begin")
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    threads, load = torch.get_num_threads(), os.getloadavg()[0]
    print(f"{machine(device)}, {threads} threads, torch {torch.__version__}, load {load:.1f}")
    for widths in (WHOLE, SMALL):
        show(arguments, widths, measured(arguments, widths))


def measured(arguments: argparse.Namespace, widths: tuple[int, ...]) -> dict[str, list[float]]:
    """Seconds of an update, of each way of training, in every repeat."""
    ways: dict[str, Callable[[], float]] = {
        "bare loop, fp32": lambda: bare(arguments, widths),
        "trainer, fp32": lambda: trained(arguments, widths),
        "trainer, fp32, ema": lambda: trained(arguments, widths, ema=0.99),
        "trainer, channels_last": lambda: trained(arguments, widths, channels_last=True),
        "trainer, bf16": lambda: trained(arguments, widths, precision="bf16"),
        "trainer, bf16, channels_last": lambda: trained(arguments, widths, precision="bf16", channels_last=True),
    }
    if arguments.device != "cpu":
        more = {"precision": "bf16", "channels_last": True, "deterministic": False}
        ways["trainer, bf16, channels_last, any kernels"] = lambda: trained(arguments, widths, **more)
    if arguments.compile and widths == WHOLE:
        ways["trainer, compile"] = lambda: trained(arguments, widths, compile=True)
        all_of_it = {"compile": True, "precision": "bf16", "channels_last": True}
        ways["trainer, bf16, channels_last, compile"] = lambda: trained(arguments, widths, **all_of_it)
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(arguments.repeats):
        for name, way in ways.items():
            seconds[name].append(way())
    return seconds


def show(arguments: argparse.Namespace, widths: tuple[int, ...], seconds: Mapping[str, list[float]]) -> None:
    """A line for each way: median seconds, and its ratio to the bare loop within each repeat."""
    print(
        f"\nwidths {widths}, {arguments.batch} x 1 x {arguments.edge} x {arguments.edge}, {arguments.repeats} repeats"
    )
    reference = seconds["bare loop, fp32"]
    for name, own in seconds.items():
        ratio = statistics.median(a / b for a, b in zip(own, reference, strict=True))
        print(f"{name:40} {1000 * statistics.median(own):9.2f} ms   {ratio:6.3f} of the bare loop", flush=True)


class Planes:
    """Random planes that lie ready, so that loading costs next to nothing."""

    def __init__(self, num: int, edge: int) -> None:
        drawn = torch.Generator().manual_seed(0)
        self.num = num
        self.image = torch.randn(16, 1, edge, edge, generator=drawn)
        self.label = torch.randint(NUM_CLASSES, (16, edge, edge), generator=drawn)

    def __len__(self) -> int:
        return self.num

    def __getitem__(self, draw: Draw | int) -> Batch:
        index = draw if isinstance(draw, int) else draw.index
        return {"image": self.image[index % 16], "label": self.label[index % 16]}


class Clock:
    """The mean time between updates, from the fifth to the last; waits for the device at these two only."""

    def __init__(self, device: torch.device, steps: int) -> None:
        self.device, self.marks, self.count = device, {5: 0.0, steps - 1: 0.0}, 0

    def tick(self) -> None:
        if self.count in self.marks:
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)
            self.marks[self.count] = time.perf_counter()
        self.count += 1

    def seconds(self) -> float:
        (first, begun), (last, ended) = sorted(self.marks.items())
        return (ended - begun) / (last - first)


def bare(arguments: argparse.Namespace, widths: tuple[int, ...]) -> float:
    """The loop that everybody writes first."""
    device = torch.device(arguments.device)
    torch.manual_seed(0)
    model = UNet2d(1, NUM_CLASSES, widths=widths).to(device).train()
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    samples = Planes(arguments.batch * arguments.steps, arguments.edge)
    clock = Clock(device, arguments.steps)
    for batch in DataLoader(samples, arguments.batch, shuffle=True, pin_memory=device.type == "cuda"):
        clock.tick()
        image, label = (batch[name].to(device, non_blocking=True) for name in ("image", "label"))
        dice_ce(model(image), label).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return clock.seconds()


def trained(arguments: argparse.Namespace, widths: tuple[int, ...], **more: object) -> float:
    """The same updates by the trainer, into a run folder."""
    config = TrainConfig(
        **{"epochs": 1, "batch_size": arguments.batch, "precision": "fp32", "device": arguments.device, **more}
    )
    card = Card(package="benchmark", version="0", model="unet2d")
    torch.manual_seed(0)
    model = UNet2d(1, NUM_CLASSES, widths=widths)
    clock = Clock(torch.device(arguments.device), arguments.steps)

    def step(model: nn.Module, batch: Batch, _: At) -> Mapping[str, Tensor]:
        clock.tick()
        return {"loss": dice_ce(model(batch["image"]), batch["label"])}

    with tempfile.TemporaryDirectory() as folder:
        run = RunFolder.open(Path(folder) / "run", config)
        samples = Planes(arguments.batch * arguments.steps, arguments.edge)
        result = Trainer(model, step, config=config, card=card, run=run).fit(samples)
    assert result.reason == "finished"
    return clock.seconds()


if __name__ == "__main__":
    main()
