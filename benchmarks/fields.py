"""Shapes as fields of their latents: how true they are, and what 256^3 and 512^3 points of them cost.

    python benchmarks/fields.py --out fields                       # the real run; it goes on where it was
    python benchmarks/fields.py --out quick --cohorts iliac --epochs 2 --edges 32 64 128

Adrenal glands (1 mm), and the vessels of a CT (3 mm) and of an atlas (0.9 mm). Those of like size share a cube and are
fitted together, once by each net. Then, always on a uniform grid of the whole cube:

1. 128^3: Dice of each with its label, every point asked; memory and seconds of the fit.
2. 256^3: `narrow`, with the label as its seed and the laying of it on the grid counted, beside the dense ways: eight
   chunks of 128^3 points at once, as the original asks, and all points in the small chunks that `asking` takes. They
   take turns in one process, which the large chunks fill with some 10 GB; the median of the narrow ones is shown, and
   how many voxels differ from the dense answer.
3. 512^3: `narrow` in a process of its own, with the largest memory that it ever held, the share of its time that is not
   the field's, and random points about the vessel asked again.

Every fit and every measurement is a process of its own and a file of its own in `cells`.
"""

import argparse
import json
import logging
import multiprocessing
import os
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from train_step import machine

from medseg_core.checkpoint import load_model
from medseg_core.config import as_dict
from medseg_core.io import write_text
from medseg_near.fit import fit
from medseg_near.latent import read_latents
from medseg_near.models import MODELS
from medseg_near.models.field import Shapes
from medseg_near.occupancy import Ask, asking, cube, dense, narrow, on_grid
from medseg_near.points import Frame, frame_of, inside
from medseg_near.prepare import prepare
from medseg_near.settings import FitConfig, PrepareConfig
from medseg_near.shapes import box_of, read_shapes

CT, ATLAS = "ct_multiorgan/ts_s0001/segmentations", "ct_more/spl_abdomen_labels/derived/seg_multilabel.nii.gz"
SHAPES = "shapes3d/adrenalmnist3d_64_trainval.npz"
COHORTS: dict[str, tuple[str, tuple[str, ...]]] = {
    "adrenals": (SHAPES, tuple(f"train_{number:04d}" for number in range(4))),
    "trunk": (CT, ("aorta", "inferior_vena_cava", "portal_vein_and_splenic_vein")),
    "iliac": (CT, ("iliac_artery_left", "iliac_artery_right", "iliac_vena_left", "iliac_vena_right")),
    "arteries": (ATLAS, ("aorta", "splenic_artery", "superior_mesenteric_artery", "inferior_mesenteric_artery")),
    "veins": (ATLAS, ("inferior_vena_cava", "portal_vein_and_superior_mesenteric_vein", "splenic_vein")),
}
CHECKED = 262_144  # points asked again at the finest
ABOUT = 8  # voxels around the box of a vessel, where they lie


# ---- what a cell knows


class Field:
    """A fitted structure: its shape, and its field on a grid of the cube."""

    def __init__(self, out: Path, net: str, cohort: str, name: str, threads: int) -> None:
        torch.set_num_threads(threads)
        run = out / f"run_{net}_{cohort}"
        self.model, _ = load_model(run, MODELS)
        assert isinstance(self.model, Shapes)
        self.latent = torch.from_numpy(read_latents(run)[name])
        self.shape = next(shape for shape in read_shapes(out / f"cache_{cohort}") if shape.id == name)
        self.frame = frame_of(self.shape, self.model.half_mm)

    def ask(self, grid: Frame) -> Ask:
        """The logits at its voxels."""
        return asking(self.model, self.latent, grid)

    def seed(self, edge: int) -> np.ndarray:
        """The label, laid on a grid."""
        return on_grid(np.asarray(self.shape.label), self.frame, cube(edge), (edge,) * 3)

    def true(self, edge: int) -> np.ndarray:
        """(edge, edge, edge) bool, the label between its voxels as the fit takes it."""
        line = np.linspace(-1, 1, edge)
        every = np.stack(np.meshgrid(line, line, line, indexing="ij"), -1).reshape(-1, 3)
        return inside(np.asarray(self.shape.label), self.frame.voxels(every)).reshape((edge,) * 3)

    def in_chunks(self, edge: int, chunk: int) -> np.ndarray:
        """(edge, edge, edge) float32 logits, chunk^3 points through the network at once."""
        logits, grid = np.empty((edge,) * 3, np.float32), cube(edge)
        with torch.inference_mode():
            maps = self.model.decoder.maps(self.latent[None])
            for corner in product(range(0, edge, chunk), repeat=3):
                voxels = np.stack(np.meshgrid(*(np.arange(a, a + chunk) for a in corner), indexing="ij"), -1)
                points = torch.from_numpy(grid.points(voxels.reshape(-1, 3).astype(float)).astype(np.float32))
                found = self.model.decoder.at(maps, points[None])[0].numpy()
                logits[tuple(slice(a, a + chunk) for a in corner)] = found.reshape((chunk,) * 3)
        return logits


def timed(work: Callable[[], Any]) -> tuple[Any, float]:
    """A result and its seconds."""
    began = time.perf_counter()
    return work(), time.perf_counter() - began


# ---- cells: each runs in a process of its own


def fitted(out: Path, net: str, cohort: str, config: FitConfig, threads: int) -> dict[str, Any]:
    """Fits a cohort, or goes on with it."""
    torch.set_num_threads(threads)
    logging.basicConfig(level="INFO", format="%(message)s")
    (source, names), cache, run = COHORTS[cohort], out / f"cache_{cohort}", out / f"run_{net}_{cohort}"
    some: dict[str, Any] = {"only": names} if source == SHAPES else {"label": ",".join(names)}
    prepare(Path(os.environ["MEDSEG_TEST_DATA"]) / source, cache, PrepareConfig(), **some)
    result = fit(cache, run, config, resume="last")
    rows = [json.loads(line) for line in (run / "timings.jsonl").read_text().splitlines()]
    model, _ = load_model(run, MODELS)
    return {
        "updates": result.steps,
        "seconds_per_update": statistics.median(row["seconds"] for row in rows) * len(rows) / result.steps,
        "minutes": sum(row["seconds"] for row in rows) / 60,
        "parameters": sum(p.numel() for p in model.decoder.parameters()),
        "cases": [shape.id for shape in read_shapes(cache)],
        "settings": as_dict(config),
        "half_mm": model.half_mm,
    }


def reconstructed(field: Field, edge: int) -> dict[str, Any]:
    """Dice on edge^3 points of the cube, every point asked."""
    found, seconds = timed(lambda: dense(field.ask(cube(edge)), (edge,) * 3) > 0)
    true = field.true(edge)
    total = int(found.sum()) + int(true.sum())
    return {"dice": 2 * int((found & true).sum()) / total, "voxels": int(true.sum()), "seconds": seconds}


def refined(field: Field, edge: int, repeats: int) -> dict[str, Any]:
    """Narrow and dense, in turns."""
    size, ask = (edge,) * 3, field.ask(cube(edge))

    def by_surface() -> tuple[np.ndarray, int]:
        return narrow(ask, size, seed=field.seed(edge))

    (found, asked), _ = timed(by_surface)
    seconds = [timed(by_surface)[1] for _ in range(repeats)]
    small, in_small = timed(lambda: dense(ask, size) > 0)
    seconds += [timed(by_surface)[1] for _ in range(repeats)]
    large, in_large = timed(lambda: field.in_chunks(edge, edge // 2) > 0)
    seconds += [timed(by_surface)[1] for _ in range(repeats)]
    differ, median = int((found != large).sum()), statistics.median(seconds)
    return {
        "narrow_s": median,
        "dense_large_chunks_s": in_large,
        "dense_small_chunks_s": in_small,
        "ratio": in_large / median,
        "ratio_small_chunks": in_small / median,
        "asked": asked / found.size,
        "differ": differ / found.size,
        "differ_of_structure": differ / max(1, int(large.sum())),
        "differ_by_rounding": int((small != large).sum()) / max(1, int(large.sum())),
        "voxels": int(large.sum()),
    }


def alone(field: Field, edge: int) -> dict[str, Any]:
    """Narrow, and nothing that would need more memory."""
    told, ask = [], field.ask(cube(edge))

    def telling(voxels: np.ndarray) -> np.ndarray:
        answer, seconds = timed(lambda: ask(voxels))
        told.append(seconds)
        return answer

    seed, to_lay = timed(lambda: field.seed(edge))
    (found, asked), to_search = timed(lambda: narrow(telling, (edge,) * 3, seed=seed))
    box = box_of(found) or (slice(0, edge),) * 3
    low, high = [max(0, side.start - ABOUT) for side in box], [min(edge, side.stop + ABOUT) for side in box]
    again = np.random.default_rng([0, 0, 0, 0]).integers(low, high, (CHECKED, 3))
    return {
        "seconds": to_lay + to_search,
        "seed_s": to_lay,
        "field_s": sum(told),
        "overhead": (to_lay + to_search) / sum(told) - 1,
        "asked": asked / found.size,
        "points": asked,
        "voxels": int(found.sum()),
        "differ_of_checked": float(((ask(again) > 0) != found[tuple(again.T)]).mean()),
    }


CELLS: Mapping[str, Callable[..., dict[str, Any]]] = {"shape": reconstructed, "fine": refined, "finest": alone}


def measured(kind: str, place: tuple[Any, ...], more: tuple[Any, ...]) -> dict[str, Any]:
    """A cell, with the largest memory that its process held, in GB of 2^30 bytes."""
    found = fitted(*place, *more) if kind == "fit" else CELLS[kind](Field(*place), *more)
    unit = 2**30 if sys.platform == "darwin" else 2**20
    return {**found, "peak_rss_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit}


def cell(out: Path, name: str, kind: str, place: tuple[Any, ...], *more: Any) -> dict[str, Any]:
    """What a cell's file says, measured where there is none."""
    file = out / "cells" / f"{name}.json"
    if not file.exists():
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as fresh:
            write_text(file, json.dumps(fresh.submit(measured, kind, place, more).result()))
        print(name, file.read_text(), flush=True)
    return json.loads(file.read_text())


# ---- all of them


def cells(options: argparse.Namespace) -> Iterator[tuple[str, str, str, dict[str, Any]]]:
    """Kind, net and what it drew, structure or cohort, and what was measured."""
    out, threads, (coarse, fine, finest) = options.out, options.threads, options.edges
    given = {name: json.loads(value) for name, value in (pair.split("=", 1) for pair in options.set)}
    more = {name: tuple(value) if isinstance(value, list) else value for name, value in given.items()}
    settings = {"points": options.points, "lr": options.lr, "epochs": options.epochs, "val_every": 50, "device": "cpu"}
    settings |= {"batch_size": options.batch_size, "accumulate": 1, "curriculum": (0.5,), "save_seconds": 60.0}
    for net, cohort in product(options.net, options.cohorts):
        config = FitConfig(net=net, **{**settings, **more})
        done = cell(out, f"fit_{net}_{cohort}", "fit", (out, net, cohort), config, threads)
        if done["settings"] != json.loads(json.dumps(as_dict(config))):
            raise SystemExit(f"{out} holds fits of other settings; give another --out")
        of = f"{net}, {'adrenals' if cohort == 'adrenals' else 'vessels'}"
        yield "fit", of, cohort, done
        for number, name in enumerate(done["cases"]):
            tasks = {"shape": (coarse,)}
            tasks |= {"fine": (fine, options.repeats)} if number < options.dense else {}
            tasks |= {"finest": (finest,)} if options.dense and not number else {}
            for kind, how in tasks.items():
                place = (out, net, cohort, name, threads)
                yield kind, of, name, cell(out, f"{kind}_{net}_{cohort}_{name}_{how[0]}", kind, place, *how)


def told(rows: list[tuple[str, str, str, dict[str, Any]]]) -> dict[str, dict[str, float]]:
    """By net and what it drew: mean and worst Dice, median and least of the ratios, the largest memory."""
    found: dict[str, dict[str, float]] = {}
    for net in dict.fromkeys(row[1] for row in rows):
        of = {kind: [row[3] for row in rows if row[:2] == (kind, net)] for kind in ("fit", "shape", "fine", "finest")}
        dice = [one["dice"] for one in of["shape"]]
        found[net] = {
            "dice_mean": statistics.mean(dice),
            "dice_worst": min(dice),
            "fit_s_per_update": statistics.median(one["seconds_per_update"] for one in of["fit"]),
            "fit_minutes": sum(one["minutes"] for one in of["fit"]),
            "fit_peak_gb": max(one["peak_rss_gb"] for one in of["fit"]),
        }
        for name in ("seconds", "peak_rss_gb", "overhead") if of["finest"] else ():
            found[net][f"finest_{name}"] = max(one[name] for one in of["finest"])
        for name in ("ratio", "ratio_small_chunks") if of["fine"] else ():
            values = [one[name] for one in of["fine"]]
            found[net] |= {f"{name}_median": statistics.median(values), f"{name}_least": min(values)}
        for name in ("differ", "differ_of_structure") if of["fine"] else ():
            found[net][f"{name}_most"] = max(one[name] for one in of["fine"])
    return found


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--net", nargs="+", default=["pointwise", "triplane"])
    parser.add_argument("--cohorts", nargs="+", default=list(COHORTS), choices=list(COHORTS))
    parser.add_argument("--epochs", type=int, default=300)
    parser.add_argument("--points", type=int, default=4096)
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE", help="another setting of the fit")
    parser.add_argument("--dense", type=int, default=1, help="how many of a cohort are also refined, densely too")
    parser.add_argument("--repeats", type=int, default=1, help="narrow searches before, between and after")
    parser.add_argument("--edges", type=int, nargs=3, default=[128, 256, 512], metavar="N")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    return parser.parse_args()


def main() -> None:
    """Fits and measures what is missing, and prints the tables."""
    options = parsed()
    rows = list(cells(options))
    for kind in ("fit", "shape", "fine", "finest"):
        for _, net, name, row in (row for row in rows if row[0] == kind):
            values = (f"{key} {value:.4g}" for key, value in row.items() if isinstance(value, float | int))
            print(f"{kind:6} {net:19} {name:52}", "  ".join(values))
    table = told(rows)
    about = {"cpu": machine(torch.device("cpu")), "cores": os.cpu_count(), "threads": options.threads}
    document = {"command": " ".join(sys.argv), "machine": {**about, "torch": torch.__version__}, "table": table}
    document["rows"] = [{"kind": kind, "net": net, "of": of, **row} for kind, net, of, row in rows]
    write_text(options.out / "results.json", json.dumps(document, indent=1) + "\n")
    for net, row in table.items():
        print(f"{net:19}", "  ".join(f"{key} {value:.4g}" for key, value in row.items()))


if __name__ == "__main__":
    main()
