"""The first NeAR's recipe beside ours on the same shapes, and each of the two changes between them alone.

    python benchmarks/original_recipe.py --out recipe                       # goes on where it was
    python benchmarks/original_recipe.py --out recipe --curriculum 0.5      # half of the points near it, always
    python benchmarks/original_recipe.py --out quick --num-train 2 --num-scored 1 --epochs 20 --resolution 64

Adrenal glands of MedMNIST. The two recipes differ in two things, and each is also changed alone:

band   swapped: dilation of the label minus the label, so only its outside, and the voxel (d, h, w) asked for at
       x = d, y = h, z = w, where x runs along w. true: dilation minus erosion, each voxel asked for where it is.
net    original: norms over all points that are asked together. pointwise: over each point. They begin with the same
       weights; the pointwise one also enlarges its maps without aligned corners.

Seeds, numbers of points and updates are equal. Of every fit are told, as means over the scored shapes, which are some
of those it was fitted to:

positives   % of training points inside, in the first and in the last epoch, whose shares near the surface differ
own         Dice at training points as drawn in the first and in the last epoch, asked together as in training
uniform     Dice at resolution^3 points of the whole cube, asked in eight chunks, as the original did
gap         own, of the last epoch, minus uniform
alone       how far logits of points of that cube move when each is asked for by itself: mean of the absolute change
            over the standard deviation of the logits, and % of the points that change sides; half of them are inside
"""

import argparse
import json
import logging
import os
import platform
import sys
import time
from collections.abc import Mapping
from itertools import product
from pathlib import Path

import numpy as np
import torch
from scipy.ndimage import binary_dilation

from medseg_core.checkpoint import Card, load_model
from medseg_core.draw import Batch, Draw
from medseg_core.io import write_text
from medseg_core.run import RunFolder
from medseg_core.trainer import Trainer
from medseg_near import __version__
from medseg_near.fit import ROOM, FieldStep
from medseg_near.models import MODELS
from medseg_near.models.field import Shapes
from medseg_near.points import Points, frame_of, inside, share_at
from medseg_near.prepare import prepare
from medseg_near.settings import FitConfig, PrepareConfig
from medseg_near.shapes import Shape, read_shapes

DATA = "shapes3d/adrenalmnist3d_64_trainval.npz"
RECIPES = {  # name -> net, band
    "original": ("original", "swapped"),
    "band corrected": ("original", "true"),
    "net corrected": ("pointwise", "swapped"),
    "ours": ("pointwise", "true"),
}
NUM_ALONE = 200  # points that are asked for by themselves


class SwappedShell(Points):
    """Points as the original drew them: those near the surface from outside of it alone, at transposed places."""

    def __getitem__(self, draw: Draw) -> Batch:
        shape, frame, rng = self.shapes[draw.index], self.frames[draw.index], draw.numpy()
        num_near = round(share_at(draw.epoch, self.config) * self.num_points)
        points = rng.uniform(-1, 1, (self.num_points, 3))
        band = self.bands(draw.index)
        near = np.unravel_index(band[rng.integers(len(band), size=num_near)], shape.label.shape)
        points[:num_near] = frame.points(np.stack(near, 1))[:, ::-1]
        return {
            "case": torch.tensor(draw.index),
            "points": torch.from_numpy(points.astype(np.float32)),
            "inside": torch.from_numpy(inside(shape.label, frame.voxels(points)).astype(np.float32)),
        }

    def _band(self, index: int) -> np.ndarray:
        return shell_of(np.asarray(self.shapes[index].label), round(self.config.band_radius))


def shell_of(label: np.ndarray, steps: int) -> np.ndarray:
    """(M,) flat places of the voxels outside that are reached from inside by so many steps through faces."""
    return np.flatnonzero(binary_dilation(label, iterations=steps) & ~label)


def fitted(shapes: list[Shape], recipe: str, folder: Path, options: argparse.Namespace) -> tuple[Shapes, Points]:
    """The model at the end of its training, which goes on where it was, and what it was trained on."""
    net, band = RECIPES[recipe]
    half_mm = ROOM * max(shape.half_mm for shape in shapes)
    settings = {"epochs": options.epochs, "points": options.points, "lr": options.lr, "curriculum": options.curriculum}
    config = FitConfig(net=net, accumulate=1, device=options.device, **settings)
    kind = SwappedShell if band == "swapped" else Points
    samples = kind(shapes, config, half_mm=half_mm, num_points=options.points)
    arguments = {"num_cases": len(shapes), "half_mm": half_mm, "net": net}
    card = Card(package="medseg-near", version=__version__, model="shapes", arguments=arguments)
    torch.manual_seed(config.seed)
    run = RunFolder.open(folder, config, resume="last")
    Trainer(Shapes(**arguments), FieldStep(config), config=config, card=card, run=run).fit(samples)
    return load_model(folder, MODELS)[0].to(options.device), samples


@torch.inference_mode()
def scores(model: Shapes, samples: Points, row: int, resolution: int) -> dict[str, float]:
    """The measures of one shape."""
    maps = model.decoder.maps(model.latents.weight[row : row + 1])
    told: dict[str, float] = {}
    for when, epoch in (("first", 0), ("last", samples.config.epochs - 1)):
        sample = samples[Draw(row, epoch, row, samples.config.seed)]
        true = sample["inside"].numpy() > 0.5
        found = model.decoder.at(maps, sample["points"][None].to(maps[0].device))[0].cpu().numpy()
        told |= {f"positives_{when}": 100 * true.mean(), f"own_{when}": dice(found > 0, true)}
    points, logits = in_chunks(model, maps, resolution)
    shape = samples.shapes[row]
    true = inside(np.asarray(shape.label), frame_of(shape, model.half_mm).voxels(points))
    told["uniform"] = dice(logits > 0, true)
    told["gap"] = told["own_last"] - told["uniform"]
    rng = np.random.default_rng([0, row, 0, 0])
    some = np.concatenate([rng.choice(np.flatnonzero(side), NUM_ALONE // 2) for side in (true, ~true)])
    lone = torch.from_numpy(points[some].astype(np.float32)).to(maps[0].device)
    alone = np.array([model.decoder.at(maps, one[None, None]).item() for one in lone])
    told["alone"] = np.abs(alone - logits[some]).mean() / logits.std()
    told["alone_flips"] = 100 * ((alone > 0) != (logits[some] > 0)).mean()
    return {name: float(value) for name, value in told.items()}


def in_chunks(model: Shapes, maps: list[torch.Tensor], resolution: int) -> tuple[np.ndarray, np.ndarray]:
    """The (P, 3) points of the whole cube, octant by octant, and their (P,) logits, asked an octant at a time."""
    halves = np.array_split(np.linspace(-1, 1, resolution), 2)
    points, logits = [], []
    for sides in product(halves, repeat=3):
        points.append(np.stack(np.meshgrid(*sides, indexing="ij"), -1).reshape(-1, 3))
        chunk = torch.from_numpy(points[-1].astype(np.float32)).to(maps[0].device)
        logits.append(model.decoder.at(maps, chunk[None])[0].float().cpu().numpy())
    return np.concatenate(points), np.concatenate(logits)


def dice(found: np.ndarray, true: np.ndarray) -> float:
    """Of two masks; 0 where both are empty."""
    return 2 * int((found & true).sum()) / max(1, int(found.sum()) + int(true.sum()))


def table(rows: Mapping[str, list[Mapping[str, float]]]) -> dict[str, dict[str, float]]:
    """Means over the scored shapes."""
    return {name: {key: float(np.mean([row[key] for row in some])) for key in some[0]} for name, some in rows.items()}


def shares(text: str) -> tuple[float, ...]:
    """`0.5,0.3,0.1` as numbers."""
    return tuple(float(part) for part in text.split(","))


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="a folder for each size: fits, cells, results.json")
    parser.add_argument("--num-train", type=int, default=24, help="shapes that are fitted")
    parser.add_argument("--num-scored", type=int, default=8, help="shapes of them that are scored")
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--points", type=int, default=4096, help="points of a shape in an update")
    parser.add_argument("--resolution", type=int, default=128, help="points along each edge of the uniform cube")
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--curriculum", type=shares, default=(0.5, 0.3, 0.1), help="shares of points near the surface")
    parser.add_argument("--recipes", nargs="*", default=list(RECIPES), choices=list(RECIPES))
    parser.add_argument("--device", default="cpu")
    return parser.parse_args()


def main() -> None:
    """Fits what is not fitted yet, scores what is not scored, and prints the table."""
    options = parsed()
    logging.basicConfig(level="INFO", format="%(message)s")
    names = [f"train_{i:04d}" for i in range(options.num_train)]
    cache = options.out / "cache"
    prepare(Path(os.environ["MEDSEG_TEST_DATA"]) / DATA, cache, PrepareConfig(), only=names)
    shapes = [shape for shape in read_shapes(cache) if shape.id in names]
    drawn = f"{options.lr:g}_{'-'.join(map(str, options.curriculum))}"
    home = options.out / f"{options.num_train}x{options.epochs}x{options.points}_{drawn}"
    scored = sorted({round(i) for i in np.linspace(0, len(shapes) - 1, min(options.num_scored, len(shapes)))})
    rows: dict[str, list[Mapping[str, float]]] = {}
    seconds: dict[str, float] = {}
    for recipe in RECIPES:
        here = home / recipe.replace(" ", "_")
        files = {row: here / "cells" / f"{shapes[row].id}_{options.resolution}.json" for row in scored}
        if recipe in options.recipes and not all(file.exists() for file in files.values()):
            start = time.perf_counter()
            model, samples = fitted(shapes, recipe, here / "run", options)
            for row, file in files.items():
                if not file.exists():
                    write_text(file, json.dumps(scores(model, samples, row, options.resolution)))
            seconds[recipe] = time.perf_counter() - start
        if done := [json.loads(file.read_text()) for file in files.values() if file.exists()]:
            rows[recipe] = done
            print(recipe, {key: round(value, 4) for key, value in table(rows)[recipe].items()}, flush=True)
    machine = {"cpu": platform.processor() or platform.machine(), "cores": os.cpu_count(), "torch": torch.__version__}
    machine |= {"device": options.device, "threads": torch.get_num_threads()}
    found = table(rows)
    document = {"command": " ".join(sys.argv), "machine": machine, "seconds_of_this_call": seconds}
    document |= {"recipes": RECIPES, "table": found, "rows": rows}
    write_text(home / "results.json", json.dumps(document, indent=1) + "\n")
    columns = ("positives_first", "positives_last", "own_first", "own_last", "uniform", "gap", "alone", "alone_flips")
    print(f"{'':16}{'net':>10}{'band':>9}" + "".join(f"{name:>17}" for name in columns))
    for name, row in found.items():
        net, band = RECIPES[name]
        print(f"{name:16}{net:>10}{band:>9}" + "".join(f"{row[key]:17.4g}" for key in columns))


if __name__ == "__main__":
    main()
