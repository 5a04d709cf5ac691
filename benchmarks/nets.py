"""The networks of totalseg side by side: parameters, memory, seconds and Dice, on a phantom cohort and on a real scan.

    python benchmarks/nets.py --device cuda --seconds 180               as in the README: the networks' own widths
    python benchmarks/nets.py --seconds 60 --widths 8,16,32,64 --size 64 --patch 48,48,48     a small one, for a CPU

Each network trains for about --seconds on each of the two (or for --epochs). The phantom is scored on patients that
were held out. The real scan is one case: the network is scored on what it was trained on, which is overfitting and
says only that it can learn all of it. Predicting nothing scores 0 on both. --case names another prepared folder or
released case than $MEDSEG_TEST_DATA/ct_multiorgan/ts_s0001; without either the phantom stands alone.
"""

import argparse
import json
import os
import platform
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from medseg_core.run import read_history
from medseg_totalseg.phantom import PHANTOM_LABELS

NETS = ("unet2d", "unet2d-attention", "unet3d")
COLUMNS = ("net", "data", "parameters", "input", "MB", "s/step", "steps", "train Dice", "Dice", "missed")


def main() -> None:
    """Print a row for each network and each of the two."""
    given = arguments()
    load = os.getloadavg()[0]
    print(f"{device_of(given.device)}, {os.cpu_count()} cores, torch {torch.__version__}, load {load:.1f}")
    print("Dice: phantom, held-out patients; real scan, the very scan it was trained on. Predicting nothing scores 0.")
    print("| " + " | ".join(COLUMNS) + " |\n|" + "---|" * len(COLUMNS))
    with tempfile.TemporaryDirectory() as folder:
        work = given.work or Path(folder)
        medseg("phantom", "--out", work / "phantom", "--num-cases", 8, as_json=False)
        data = {"phantom": work / "phantom"} | ({"real": given.case} if given.case else {})
        data = {name: cases for name, cases in data.items() if name in given.data.split(",")}
        for net in given.nets.split(","):
            for name, cases in data.items():
                row = measure(net, name, cases, work / f"{net}-{name}", given)
                print("| " + " | ".join(map(str, row)) + " |", flush=True)


def arguments() -> argparse.Namespace:
    """What was asked for."""
    parser = argparse.ArgumentParser(description="The networks of totalseg side by side.")
    parser.add_argument("--nets", default=",".join(NETS))
    parser.add_argument("--data", default="phantom,real")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--seconds", type=float, default=60.0, help="of training, for each network and data")
    parser.add_argument("--epochs", type=int, help="instead of --seconds")
    parser.add_argument("--widths", default="none")
    parser.add_argument("--size", default="128")
    parser.add_argument("--patch", default="96,96,96")
    parser.add_argument("--num-workers", default="0")
    parser.add_argument("--deep-supervision", action="store_true")
    parser.add_argument("--case", type=Path, default=real_case())
    parser.add_argument("--work", type=Path, help="keeps what was trained")
    return parser.parse_args()


def real_case() -> Path | None:
    """The scan of the test data, where there is one."""
    folder = os.environ.get("MEDSEG_TEST_DATA")
    return Path(folder) / "ct_multiorgan" / "ts_s0001" if folder else None


def measure(net: str, name: str, data: Path, work: Path, given: argparse.Namespace) -> Sequence[Any]:
    """One row of the table."""
    cache = work.parent / f"cache-{name}"
    chosen = ["--structures", ",".join(PHANTOM_LABELS.values())] if name == "phantom" else []
    medseg("prepare", data, "--out", cache, *chosen)
    flags = ["--net", net, "--device", given.device, "--size", given.size, "--patch", given.patch]
    flags += ["--widths", given.widths, "--num-workers", given.num_workers, "--patches-per-case", 16]
    flags += ["--deep-supervision"] if given.deep_supervision else []
    dry = medseg("train", cache, "--out", work / "dry", *flags, "--dry-run")
    epoch_s = dry["steps_per_epoch"] * dry["seconds_per_step"]
    epochs = given.epochs or max(1, round(given.seconds / epoch_s))
    schedule = ["--epochs", epochs, "--val-every", max(1, epochs // 5), "--overwrite"]
    medseg("train", cache, "--out", work / "run", *flags, *schedule)
    history = read_history(work / "run")
    steps = history["step"][-1]
    step_s = sum(history["seconds"][1:]) / max(steps - history["step"][0], 1) if epochs > 1 else dry["seconds_per_step"]
    scores = scored(name, data, work, given.device)
    return (
        net, name, f"{dry['parameters']:,}", dry["image"].split(" from")[0], round(max(history["peak_memory_mb"])),
        f"{step_s:.3f}", steps, f"{history['train_dice'][-1]:.3f}", f"{scores['dice']:.3f}",
        f"{scores['missed']} of {scores['structures']}",
    )  # fmt: skip


def scored(name: str, data: Path, work: Path, device: str) -> Mapping[str, Any]:
    """`evaluate` on the phantom's test patients, or on the one real scan."""
    if name == "phantom":
        return medseg("evaluate", "--data", data, "--model", work / "run", "--out", work / "scores", "--overwrite")
    masks = work / "masks"
    medseg("predict", data, "--model", work / "run", "--out", masks, "--device", device, "--overwrite")
    return medseg("evaluate", masks, data, "--out", work / "scores", "--overwrite")


def medseg(*words: object, as_json: bool = True) -> Mapping[str, Any]:
    """The numbers that a command of the package prints; each runs in a process of its own, for its own peak memory."""
    command = ["medseg", "totalseg", *map(str, words), *(["--json"] if as_json else [])]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    return json.loads(done.stdout) if as_json else {}


def device_of(name: str) -> str:
    """The GPU or processor in words."""
    if name.startswith("cuda") or (name == "auto" and torch.cuda.is_available()):
        return torch.cuda.get_device_name()
    return platform.processor() or platform.machine()


if __name__ == "__main__":
    main()
