"""Corrupted shapes repaired: ours beside doing nothing, morphology, median filtering and majority vote.

    python benchmarks/repair.py --out repair                       # two hours of one thread; goes on where it was
    python benchmarks/repair.py --out quick --num-train 8 --num-test 2 --epochs 1
    python benchmarks/repair.py --out repair --known               # the same network, refine --put-back --sharpen
    python benchmarks/repair.py --out latents --net pointwise --num-train 120 --epochs 60

Adrenal glands of MedMNIST. A model is fitted to clean shapes; other shapes, which it has not seen, are corrupted by
each kind of annotators' error, and by none ("clean": what a method does to a label that needs no repair). Dice and NSD
at one voxel are against the clean label, on the whole crop, with 95 % intervals of the difference over the shapes. Each
peer is shown at the radius that is best for that very kind and measure, chosen on the scored shapes; ours has no such
choice. Errors in training are of the same kinds (`--set errors=...` leaves some out), in other places and amounts.
"""

import argparse
import json
import logging
import os
import platform
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from scipy import ndimage

from medseg_core.io import write_text
from medseg_core.surface import surface_metrics
from medseg_near.fit import fit
from medseg_near.noise import KINDS, corrupt
from medseg_near.prepare import prepare
from medseg_near.refine import Refiner
from medseg_near.settings import FitConfig, PrepareConfig, RefineConfig
from medseg_near.shapes import Shape, read_shapes

DATA = "shapes3d/adrenalmnist3d_64_trainval.npz"
HARM = 0.01  # Dice that a clean label may lose before it counts as harmed
RADII = (1, 2, 3)
LATENTS = {"points": 4096, "accumulate": 1, "lr": 1e-3, "val_every": 20}
DENOISING = {"points": 16_384, "accumulate": 1, "batch_size": 2, "lr": 2e-3, "warmup": 0.02, "val_every": 4}
DENOISING |= {"optimizer": "adamw", "weight_decay": 1e-2, "clip": 1.0, "ema": 0.998}
Repair = Callable[[np.ndarray], np.ndarray]


def ball(radius: int) -> np.ndarray:
    """(2 r + 1)^3 bool."""
    return ((np.indices((2 * radius + 1,) * 3) - radius) ** 2).sum(0) <= radius**2


def closed(noisy: np.ndarray, *, radius: int) -> np.ndarray:
    """Closing, then opening."""
    wide = np.pad(noisy, radius)
    done = ndimage.binary_opening(ndimage.binary_closing(wide, ball(radius)), ball(radius))
    return done[(slice(radius, -radius),) * 3]


def median(noisy: np.ndarray, *, radius: int) -> np.ndarray:
    """The median of the ball about each voxel."""
    return ndimage.median_filter(noisy.astype(np.uint8), footprint=ball(radius), mode="constant") > 0


def majority(noisy: np.ndarray, *, radius: int) -> np.ndarray:
    """The vote of a Gaussian neighbourhood."""
    return ndimage.gaussian_filter(noisy.astype(np.float32), radius / 2, mode="constant") >= 0.5


PEERS: dict[str, Repair] = {"nothing": lambda noisy: noisy} | {
    f"{name} {radius}": partial(method, radius=radius)
    for name, method in (("morphology", closed), ("median", median), ("majority", majority))
    for radius in RADII
}


def scores(mask: np.ndarray, label: np.ndarray) -> dict[str, float]:
    """Dice, and NSD at one voxel of 1 mm."""
    total = int(mask.sum()) + int(label.sum())
    told = surface_metrics(mask.astype("u1"), label.astype("u1"), ids=[1], spacing=(1, 1, 1), tolerance_mm=1.0)
    nsd = float(next(value for name, value in told.items() if name.startswith("nsd"))[0])
    return {"dice": 2 * int((mask & label).sum()) / total if total else 1.0, "nsd": 0.0 if np.isnan(nsd) else nsd}


def placed(shape: Shape, noisy: np.ndarray) -> Shape:
    """A shape with another label in its place; the middle is that of what is left, as a user's would be."""
    return replace(shape, id=f"{shape.id} noisy", label=noisy)


def cell(shape: Shape, kind: str, number: int, refiner: Refiner, amount: float) -> dict[str, dict[str, float]]:
    """All methods on one shape and one kind of error."""
    clean = np.asarray(shape.label)
    rng = np.random.default_rng([0, number, (*KINDS, "clean").index(kind), 0])
    noisy = clean if kind == "clean" else corrupt(clean, kind, amount=amount, spacing_mm=shape.spacing_mm, rng=rng)
    found = {name: scores(repair(noisy), clean) for name, repair in PEERS.items()}
    refined, _ = refiner.refine(placed(shape, noisy))
    return {**found, "ours": scores(refined.mask, clean)}


def best_peers(rows: list[Mapping], measure: str) -> dict[str, float]:
    """The mean of each peer at its best radius."""
    means = {name: np.mean([row[name][measure] for row in rows]) for name in PEERS}
    best: dict[str, float] = {}
    for name, value in means.items():
        best[name.split()[0]] = max(value, best.get(name.split()[0], 0))
    return best


def table(rows: Mapping[str, list[Mapping]]) -> dict[str, dict]:
    """By kind and measure: ours, the peers, and what ours is better by than the best of them on the same shapes."""
    told: dict[str, dict] = {}
    for kind, some in rows.items():
        for measure in ("dice", "nsd"):
            peers = best_peers(some, measure)
            ours = np.array([row["ours"][measure] for row in some])
            best = max(PEERS, key=lambda name: np.mean([row[name][measure] for row in some]))
            gain = ours - np.array([row[best][measure] for row in some])
            spread = 1.96 * gain.std(ddof=1) / len(gain) ** 0.5 if len(gain) > 1 else float("nan")
            told[f"{kind}, {measure}"] = {"ours": ours.mean(), **peers, "gain": gain.mean(), "plus_minus": spread}
    clean = np.array([row["ours"]["dice"] for row in rows["clean"]])
    told["harm"] = {"mean": 1 - clean.mean(), "rate": float((clean < 1 - HARM).mean()), "n": len(clean)}
    return told


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--num-train", type=int, default=1180)
    parser.add_argument("--num-test", type=int, default=20)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--amount", type=float, default=0.7)
    parser.add_argument("--net", default="denoising")
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE", help="another setting of the fit")
    parser.add_argument("--known", action="store_true", help="with --put-back and --sharpen of refine, for all labels")
    parser.add_argument("--device", default="cpu")
    return parser.parse_args()


def main() -> None:
    """Fits what is not fitted yet, repairs what is not repaired, and prints the table."""
    options = parsed()
    logging.basicConfig(level="INFO", format="%(message)s")
    source = Path(os.environ["MEDSEG_TEST_DATA"]) / DATA
    train, val = ([f"train_{i:04d}" for i in numbers] for numbers in (range(options.num_train), range(1180, 1188)))
    test = [f"val_{i:04d}" for i in range(options.num_test)]
    prepare(source, options.out / "cache", PrepareConfig(), only=[*train, *val, *test])
    parts = {"seed": 0, "unit": "case", "train": train, "val": val, "test": test}
    write_text(options.out / "splits.json", json.dumps(parts))
    more = {name: json.loads(value) for name, value in (pair.split("=") for pair in options.set)}
    settings = {**(DENOISING if options.net == "denoising" else LATENTS), **more}
    config = FitConfig(net=options.net, epochs=options.epochs, device=options.device, **settings)
    fit(options.out / "cache", options.out / "run", config, resume="last", splits=options.out / "splits.json")
    known = {"put_back": options.known, "sharpen": options.known}
    refiner = Refiner(options.out / "run", RefineConfig(max_change="none", device=options.device, **known))
    rows: dict[str, list[Mapping]] = {}
    shapes = {shape.id: shape for shape in read_shapes(options.out / "cache")}
    cells = options.out / ("cells_known" if options.known else "cells")
    for kind in (*KINDS, "clean"):
        for number, name in enumerate(test):
            file = cells / f"{kind}_{name}_{options.amount:g}.json"
            if not file.exists():
                write_text(file, json.dumps(cell(shapes[name], kind, number, refiner, options.amount)))
            rows.setdefault(kind, []).append(json.loads(file.read_text()))
        print(kind, {m: round(float(np.mean([row["ours"][m] for row in rows[kind]])), 3) for m in ("dice", "nsd")})
    found = table(rows)
    machine = {"cpu": platform.processor() or platform.machine(), "cores": os.cpu_count(), "torch": torch.__version__}
    document = {"command": " ".join(sys.argv), "machine": machine, "table": found, "rows": rows}
    name = "results_known.json" if options.known else "results.json"
    write_text(options.out / name, json.dumps(document, indent=1, default=float) + "\n")
    for name, row in found.items():
        print(f"{name:16}", "  ".join(f"{key} {value:.3f}" for key, value in row.items()))


if __name__ == "__main__":
    main()
