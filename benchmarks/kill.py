"""A training that is killed again and again ends in the bytes of one that never was.

    python benchmarks/kill.py [--kills 20] [--workers 0,2] [--processes 1] [--seconds 90] [--signal KILL]

One run is left alone; another gets SIGKILL at random moments, with its state saved every second, and goes on each time;
with --signal TERM it is asked to stop instead, which saves.
Averaged weights, accumulation, clipping, augmentation, dropout and batch normalisation are on. The exit code is 1 where
`best.safetensors`, `last/state.safetensors` or `metrics.jsonl` differ, or fewer kills struck than were asked for.
"""

import argparse
import contextlib
import difflib
import hashlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from medseg_core.augment import PRESETS, augment
from medseg_core.checkpoint import Card, load_state
from medseg_core.distributed import place
from medseg_core.draw import Batch, Draw
from medseg_core.losses import dice_ce
from medseg_core.run import RunFolder
from medseg_core.settings import TrainConfig
from medseg_core.trainer import At, Score, Trainer

FILES = ("best.safetensors", "last/state.safetensors", "metrics.jsonl")
SAMPLES, BATCH_SIZE, EPOCHS, EDGE = 120, 8, 12, 32


def main() -> None:
    """Print what struck when, and whether the files agree."""
    parser = argparse.ArgumentParser(description="Kill a training again and again, and compare what it leaves.")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--workers", default="0,2", help="numbers of loader workers, each a run of its own")
    parser.add_argument("--processes", type=int, default=1, help="more than one are started by torchrun")
    parser.add_argument("--seconds", type=float, default=90.0, help="about how long a run without kills trains")
    parser.add_argument("--signal", choices=("KILL", "TERM"), default="KILL")
    parser.add_argument("--seed", type=int, default=0, help="of the moments of the kills")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--train", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.train:
        train(arguments.train, arguments.device, workers=int(arguments.workers), seconds=arguments.seconds)
        return
    good = True
    for workers in map(int, arguments.workers.split(",")):
        with tempfile.TemporaryDirectory() as folder:
            good &= compare(Path(folder), arguments, workers=workers)
    sys.exit(0 if good else 1)


def compare(folder: Path, arguments: argparse.Namespace, *, workers: int) -> bool:
    """One run left alone, one killed; whether they agree, told on the way."""
    begun = time.monotonic()
    start(folder / "whole", arguments, workers=workers).communicate()
    whole = time.monotonic() - begun
    moments = random.Random(arguments.seed)
    struck = []
    while True:
        child = start(folder / "killed", arguments, workers=workers)
        begins = child.stdout.readline()  # of the first update since the start
        if len(struck) < arguments.kills and begins:
            time.sleep(moments.uniform(0, 1.2 * arguments.seconds / arguments.kills))
            if child.poll() is None:
                strike(child.pid, arguments.signal)
                child.communicate()
                struck.append(load_state(folder / "killed/last/state.safetensors")[1]["position"]["step"])
                continue
        child.communicate()
        break
    equal = {name: digest(folder / "whole" / name) == digest(folder / "killed" / name) for name in FILES}
    steps = load_state(folder / "whole/last/state.safetensors")[1]["position"]["step"]
    ran = f"{arguments.processes} processes, {workers} workers: {steps} updates in {whole:.0f} s"
    print(f"{ran}, {len(struck)} times SIG{arguments.signal}")
    print(f"  steps saved when they struck: {' '.join(map(str, struck))}")
    print(f"  equal: {equal}", flush=True)
    if not equal["metrics.jsonl"]:
        whole, killed = ((folder / run / "metrics.jsonl").read_text().splitlines() for run in ("whole", "killed"))
        print("\n".join(difflib.unified_diff(whole, killed, "whole", "killed", lineterm="", n=0)), flush=True)
    return all(equal.values()) and len(struck) == arguments.kills and len(set(struck)) > 1


def strike(pid: int, name: str) -> None:
    """SIGKILL for a process and all that come from it; SIGTERM for it alone, as a scheduler does."""
    if name == "TERM":
        os.kill(pid, signal.SIGTERM)
        return
    for one in family(pid):
        with contextlib.suppress(ProcessLookupError):
            os.kill(one, signal.SIGKILL)


def family(pid: int) -> list[int]:
    """A process and its descendants; torchrun gives each of its own a session, which no signal to a group reaches."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # gone by now
            parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
    found = [pid]
    for one in found:
        found += [child for child, parent in parents.items() if parent == one]
    return found


def digest(file: Path) -> bytes:
    """Of all its bytes."""
    return hashlib.sha256(file.read_bytes()).digest()


def start(run: Path, arguments: argparse.Namespace, *, workers: int) -> subprocess.Popen:
    """A training in a process group of its own, resumed where it has begun."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(arguments.processes)]
    command = [sys.executable, *(torchrun if arguments.processes > 1 else []), __file__, "--train", str(run)]
    words = ["--workers", str(workers), "--seconds", str(arguments.seconds), "--device", arguments.device]
    return subprocess.Popen([*command, *words], stdout=subprocess.PIPE, text=True, start_new_session=True)


class Discs:
    """Noisy discs, augmented; each a pure function of its draw."""

    def __len__(self) -> int:
        return SAMPLES

    def __getitem__(self, draw: Draw) -> Batch:
        rng = draw.numpy()
        rows, columns = np.ogrid[:EDGE, :EDGE]
        centre, radius = rng.uniform(10, 22, 2), 4 + draw.index % 6
        label = ((rows - centre[0]) ** 2 + (columns - centre[1]) ** 2 < radius**2).astype(np.int64)
        image = (label + rng.normal(0, 0.5, label.shape)).astype(np.float32)[None]
        image, label = augment(image, label, rng, how=PRESETS["strong"])
        return {"image": torch.from_numpy(image), "label": torch.from_numpy(label)}


class Net(nn.Module):
    """Four convolutions with all that has a state or draws random numbers."""

    def __init__(self, in_channels: int = 1, num_classes: int = 2) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            *(nn.Conv2d(in_channels, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.Dropout2d(0.2)),
            *(nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.Dropout(0.2)),
            nn.Conv2d(16, num_classes, 1),
        )

    def forward(self, x_NCHW: Tensor) -> Tensor:
        return self.layers(x_NCHW)


class NoisyStep:
    """Dice and cross entropy under noise of the update's own generator; slow enough to last the asked seconds."""

    def __init__(self, pause: float) -> None:
        self.pause, self.told = pause, False

    def __call__(self, model: nn.Module, batch: Batch, at: At) -> Mapping[str, Tensor]:
        if not self.told and place()[0] == 0:
            print(at.step, flush=True)
            self.told = True
        time.sleep(self.pause)
        image = batch["image"] + 0.1 * torch.randn(batch["image"].shape, generator=at.rng, device=batch["image"].device)
        return {"loss": dice_ce(model(image), batch["label"])}


def validate(model: nn.Module, _: At) -> Score:
    """Minus the loss on fixed samples."""
    samples, device = Discs(), next(model.parameters()).device
    drawn = [samples[Draw(index, 0, index, 1)] for index in range(16)]
    batch = torch.utils.data.default_collate(drawn)
    return Score(-float(dice_ce(model(batch["image"].to(device)).float(), batch["label"].to(device))))


def train(out: Path, device: str, *, workers: int, seconds: float) -> None:
    """The training itself; goes on where `out` has a state."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    config = TrainConfig(
        epochs=EPOCHS, batch_size=BATCH_SIZE, accumulate=2, clip=1.0, ema=0.99, warmup=0.1, num_workers=workers,
        save_seconds=1.0, precision="fp32", device=device,
    )  # fmt: skip
    card = Card(package="benchmark", version="0", model="net")
    batches = EPOCHS * SAMPLES // BATCH_SIZE
    run = RunFolder.open(out, config, resume=True)
    Trainer(Net(), NoisyStep(seconds / batches), config=config, card=card, run=run).fit(Discs(), validate)


if __name__ == "__main__":
    main()
