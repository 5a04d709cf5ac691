"""The LV contour of ED carried to ES on real patients, by ours, trained without the patient, and by registration.

    python benchmarks/propagation.py --out results            # about an hour on two cores; goes on where it was
    python benchmarks/propagation.py --out quick --epochs 8 --seeds 1

Leave one patient out: the motion net learns from the other patients' cines and their drawn pools at ED and ES, and has
never seen the patient that it is scored on, whose drawn pool at ES nobody has but the score. Each method sees the same
crops, and moves the points of the drawn contour at ED by its displacement; the moved polygon is filled and compared
with the expert's at ES. "refined" is what `predict --refine 40` makes of the network's answer. Peers are tuned on these
very slices (see PEERS), ours is not. Milliseconds are medians per pair of frames, of one process with all cores.
"""

import argparse
import json
import logging
import os
import platform
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch

from medseg_cardiac.cohort import Seen, see
from medseg_cardiac.contours import outline, rasterise
from medseg_cardiac.dataset import Patient, discover
from medseg_cardiac.fields import num_folds
from medseg_cardiac.prepare import prepare
from medseg_cardiac.refine import refined
from medseg_cardiac.settings import MotionConfig
from medseg_cardiac.tracking import carried_points, dice_of
from medseg_cardiac.train import load_of, train_motion
from medseg_core.device import autocast, choose_precision
from medseg_core.io import write_text

PIXEL_MM, SIZE, INTENSITY = 1.3672, 96, {"percentiles": (1.0, 99.0)}
RECIPE = {"size": 128, "crop": 96, "pixel_mm": PIXEL_MM, "pairs_per_slice": 16, "contours": 2.0}
OURS = {"network": 0, "refined": 40}  # steps of refinement
Register = Callable[[np.ndarray, np.ndarray], np.ndarray]  # moving and fixed frame -> (2, h, w) on the fixed one


def unmoved(_: np.ndarray, fixed: np.ndarray) -> np.ndarray:
    """The contour stays."""
    return np.zeros((2, *fixed.shape))


def demons(moving: np.ndarray, fixed: np.ndarray, *, sigma: float = 1.5, iterations: int = 50) -> np.ndarray:
    """Fast symmetric forces demons over three resolutions; histogram matching made it worse."""
    import SimpleITK as sitk  # noqa: N813

    field = None
    for factor in (4, 2, 1):
        images = [sitk.GetImageFromArray(picture) for picture in (fixed, moving)]
        if factor > 1:
            images = [sitk.Shrink(sitk.SmoothingRecursiveGaussian(i, factor / 2), [factor] * 2) for i in images]
        method = sitk.FastSymmetricForcesDemonsRegistrationFilter()
        method.SetNumberOfIterations(iterations)
        method.SetSmoothDisplacementField(True)
        method.SetStandardDeviations(sigma)
        if field is None:
            field = method.Execute(*images)
        else:
            field = method.Execute(*images, sitk.Resample(field, images[0], sitk.Transform(), sitk.sitkLinear, 0.0))
    return np.moveaxis(sitk.GetArrayFromImage(field), -1, 0)[::-1]


def b_spline(moving: np.ndarray, fixed: np.ndarray, *, mesh: int = 2) -> np.ndarray:
    """Free-form deformation with correlation over three resolutions, whose mesh is refined from 2 to 8 cells."""
    import SimpleITK as sitk  # noqa: N813

    images = [sitk.GetImageFromArray(picture) for picture in (fixed, moving)]
    method = sitk.ImageRegistrationMethod()
    method.SetMetricAsCorrelation()
    method.SetInterpolator(sitk.sitkLinear)
    method.SetOptimizerAsLBFGS2(1e-5, numberOfIterations=100)
    method.SetShrinkFactorsPerLevel([4, 2, 1])
    method.SetSmoothingSigmasPerLevel([2, 1, 0])
    method.SmoothingSigmasAreSpecifiedInPhysicalUnitsOff()
    start = sitk.BSplineTransformInitializer(images[0], [mesh] * 2, order=3)
    method.SetInitialTransformAsBSpline(start, inPlace=True, scaleFactors=[1, 2, 4])
    found = method.Execute(*images)
    field = sitk.TransformToDisplacementField(found, sitk.sitkVectorFloat64, images[0].GetSize())
    return np.moveaxis(sitk.GetArrayFromImage(field), -1, 0)[::-1]


PEERS: dict[str, Register] = {"unmoved": unmoved, "demons": demons, "b-spline": b_spline}


def ours(run: Path, *, refine: int = 0) -> Register:
    """The network of a run, in the arithmetic that `predict` takes, and steps of refinement."""
    model, cpu = load_of(run, "motion").to(memory_format=torch.channels_last), torch.device("cpu")
    precision = choose_precision("auto", cpu)

    def register(moving: np.ndarray, fixed: np.ndarray) -> np.ndarray:
        pair = [torch.from_numpy(picture)[None, None] for picture in (moving, fixed)]
        with torch.inference_mode(), autocast(cpu, precision):
            flow = model(*pair)
        return (refined(*pair, flow.clone(), steps=refine) if refine else flow)[0].numpy()

    return register


def planes_of(patients: list[Patient]) -> list[Seen]:
    """Every slice as all methods see it."""
    how = {"pixel_mm": PIXEL_MM, "size": SIZE, "intensity": INTENSITY}
    return [see(plane, **how) for patient in patients for plane in patient.planes]


def scored(register: Register, planes: list[Seen], *, repeats: int = 3) -> list[dict]:
    """Dice, milliseconds and folds of each slice."""
    rows = []
    for seen in planes:
        moving, fixed = seen.frames[seen.es], seen.frames[seen.ed]
        times = []
        for _ in range(repeats):
            begun = time.perf_counter()
            flow = register(moving, fixed)
            times.append(1000 * (time.perf_counter() - begun))
        lines = [carried_points(line, flow) for line in outline(seen.masks["lv_ed"])]
        moved = np.bitwise_xor.reduce([rasterise(line, fixed.shape) for line in lines])
        folds = int(num_folds(torch.from_numpy(np.array(flow, np.float64))[None]))
        rows.append(
            {"case": seen.plane.case, "slice": seen.plane.name, "dice": dice_of(moved, seen.masks["lv_es"]),
             "ms": float(np.median(times)), "folds": folds}
        )  # fmt: skip
    return rows


def interval(differences: np.ndarray, *, rounds: int = 10_000) -> tuple[float, float]:
    """95 % bootstrap interval of the mean over slices."""
    rng = np.random.default_rng([0, 0, 0, 0])
    means = rng.choice(differences, (rounds, len(differences))).mean(1)
    return tuple(np.percentile(means, (2.5, 97.5)).tolist())


def fold_of(data: Path, out: Path, held_out: str, names: list[str], config: MotionConfig) -> Path:
    """The run trained without a patient, finished; goes on where it was."""
    train = [name for name in names if name != held_out]
    split = {"seed": config.seed, "unit": "case", "train": train, "val": [], "test": [held_out]}
    write_text(out / f"without_{held_out}.json", json.dumps(split))
    run = out / f"without_{held_out}_seed_{config.seed}"
    train_motion(data, run, config, splits=out / f"without_{held_out}.json", resume="last")
    return run


def told(results: dict[str, list[dict]]) -> dict:
    """A row for each method and seed, and what the means over seeds of network and refinement are better by."""
    dice = {name: np.array([row["dice"] for row in rows]) for name, rows in results.items()}
    means = {way: np.mean([dice[name] for name in dice if name.startswith(way)], 0) for way in OURS}
    table = {}
    for name, rows in results.items():
        ahead = {way: mine - dice[name] for way, mine in means.items()}
        table[name] = {
            "dice": dice[name].mean(),
            "ms": np.median([row["ms"] for row in rows]),
            "folds": sum(row["folds"] for row in rows),
            "n": len(rows),
            **{f"{way}_minus_it": (gap.mean(), *interval(gap)) for way, gap in ahead.items()},
            "slices": dice[name].round(3).tolist(),
        }
    return table


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="what `medseg cardiac prepare` made; else made of the test data")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=208)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--device", default="cpu", help="of the training")
    parser.add_argument("--only", help="train one patient's fold and stop")
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE", help="another setting of the training")
    parser.add_argument("--peers", default=",".join(PEERS))
    options = parser.parse_args()
    if options.data is None:
        options.data = options.out / "data"
        prepare(Path(os.environ["MEDSEG_TEST_DATA"]) / "cmr_cine", options.data)
    return options


def main() -> None:
    """Trains what is not trained yet, then scores ours and the peers in one go."""
    options = parsed()
    logging.basicConfig(level="INFO", format="%(message)s")
    patients = discover(options.data)
    names, more = [patient.id for patient in patients], dict(pair.split("=") for pair in options.set)
    more = {name: json.loads(value) for name, value in more.items()}
    results: dict[str, list[dict]] = {}
    for seed in range(options.seeds):
        config = MotionConfig(**{**RECIPE, "epochs": options.epochs, "seed": seed, "device": options.device, **more})
        folds = [patient for patient in patients if options.only in (None, patient.id)]
        runs = [fold_of(options.data, options.out, patient.id, names, config) for patient in folds]
        for way, steps in OURS.items():
            parts = [scored(ours(run, refine=steps), planes_of([p])) for run, p in zip(runs, folds, strict=True)]
            rows = results[f"{way}, seed {seed}"] = [row for part in parts for row in part]
            dice = [row["dice"] for row in rows]
            print(way, seed, np.mean(dice).round(4), np.round(dice, 3).tolist(), flush=True)
    if options.only:
        return
    for name in filter(None, options.peers.split(",")):
        results[name] = scored(PEERS[name], planes_of(patients))
    table = told(results)
    machine = {"cpu": platform.processor() or platform.machine(), "cores": os.cpu_count(), "torch": torch.__version__}
    document = {"command": " ".join(sys.argv), "machine": machine, "config": asdict(config), "table": table}
    write_text(options.out / "results.json", json.dumps({**document, "rows": results}, indent=1, default=float) + "\n")
    for name, row in table.items():
        ahead = "  ".join("{} {:+.4f} [{:+.4f}, {:+.4f}]".format(way, *row[f"{way}_minus_it"]) for way in OURS)
        print(f"{name:16} Dice {row['dice']:.4f} {row['ms']:7.1f} ms  folds {row['folds']:4d}  minus it: {ahead}")


if __name__ == "__main__":
    main()
