"""Motion, strain and infarct on phantom patients whose truth is known, none of them seen in training.

    python benchmarks/heart.py --out heart             # under an hour on two cores; goes on where it was
    python benchmarks/heart.py --out quick --cases 12 --epochs 3,3,6

Motion is learnt from pairs of frames without any label. Its error is the distance between displacement and truth over
the myocardium from ED to ES, in pixels of 1.4 mm; the error of strain is that of a patient's largest mean radial and
smallest mean circumferential Green-Lagrange strain over the cycle, in percent of length. Infarct is learnt from labels
drawn on a misaligned LGE, which the registration net brings to the cine, and is scored against the true one in the
cine. The same network without motion ("ed": the frame at ED alone) stands beside it: motion must be what earns it.
"""

import argparse
import json
import logging
import os
import platform
import sys
from pathlib import Path

import numpy as np
import torch

from medseg_cardiac.dataset import Patient, discover
from medseg_cardiac.evaluate import evaluate_run, headline
from medseg_cardiac.phantom import phantom, read_truth
from medseg_cardiac.predictor import Predictor
from medseg_cardiac.settings import EvaluateConfig, MotionConfig, RegistrationConfig, SegmentationConfig
from medseg_cardiac.splits import split
from medseg_cardiac.strain import joined
from medseg_cardiac.train import train_motion, train_registration, train_segmentation
from medseg_core.io import write_text

SMALL = {"size": 128, "crop": 96, "patience": 0}


def motion_rows(data: Path, patients: list[Patient], run: Path) -> list[dict]:
    """Of each patient: error of displacement, moved and unmoved, of strain, and folds."""
    predictor, rows = Predictor(run), []
    for patient in patients:
        found, _ = predictor.patient(patient, track=True)
        errors, lengths, folds = [], [], 0
        for one in found:
            seen = one.seen
            truth = read_truth(data, patient.id, seen.plane.name)[seen.es]
            wall = seen.window.home(seen.masks["myo"].astype(np.float32), one.shape) > 0.5
            errors.append(np.linalg.norm(one.flow_home(seen.es) - truth, axis=0)[wall])
            lengths.append(np.linalg.norm(truth, axis=0)[wall])
            folds += one.folds
        strain = joined([one.strain(predictor.pixel_mm) for one in found]).peaks()
        about = json.loads((data / "truth" / f"{patient.id}.json").read_text())["strain"]
        true = {"peak_radial": max(about["radial"]), "peak_circumferential": min(about["circumferential"])}
        rows.append(
            {"case": patient.id, "error_px": float(np.concatenate(errors).mean()), "folds": folds,
             "unmoved_px": float(np.concatenate(lengths).mean()),
             **{f"{name}_error": 100 * abs(strain[name] - true[name]) for name in true},
             **{f"{name}_true": 100 * true[name] for name in true}}
        )  # fmt: skip
    return rows


def means(rows: list[dict]) -> dict[str, float]:
    """Of every number over patients."""
    return {name: float(np.mean([row[name] for row in rows])) for name in rows[0] if name != "case"}


def scores(data: Path, run: Path, out: Path) -> dict[str, object]:
    """The headline of an evaluation of held-out patients, with the trivial answers beside it."""
    evaluation, failed = evaluate_run(data, run, out, EvaluateConfig(workers=1), overwrite=True)
    assert not failed, failed
    return headline(evaluation)


def main() -> None:
    """Trains what is not trained yet, and scores it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--cases", type=int, default=60)
    parser.add_argument("--epochs", default="24,20,60", help="of motion, registration, infarct")
    parser.add_argument("--width", type=int, default=16, help="of the U-Net; the default network has 64")
    parser.add_argument("--diffeomorphic", action="store_true")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--only", default="motion,registration,infarct")
    options = parser.parse_args()
    logging.basicConfig(level="INFO", format="%(message)s")
    out, device = options.out, {"device": options.device}
    data = phantom(out / "data", num_cases=options.cases)
    if not (out / "splits.json").exists():
        split(data, out / "splits.json", ratios=(0.7, 0.1, 0.2))
    test = set(json.loads((out / "splits.json").read_text())["test"])
    patients = [patient for patient in discover(data) if patient.id in test]
    epochs = [int(n) for n in options.epochs.split(",")]
    how = {"splits": out / "splits.json", "resume": "last"}
    result: dict = {}
    if "motion" in options.only:
        more = {"diffeomorphic": options.diffeomorphic, "val_every": 4, **SMALL, **device}
        train_motion(data, out / "motion", MotionConfig(epochs=epochs[0], **more), **how)
        rows = motion_rows(data, patients, out / "motion")
        result["motion"] = {"n": len(rows), **means(rows), "rows": rows}
        print("motion", {name: round(value, 3) for name, value in means(rows).items()}, flush=True)
    if "registration" in options.only:
        more = {"lr": 1e-3, "val_every": 5, **SMALL, **device}
        train_registration(data, out / "registration", RegistrationConfig(epochs=epochs[1], **more), **how)
        result["registration"] = scores(data, out / "registration", out / "scores_registration")
        print("registration", result["registration"], flush=True)
    if "infarct" in options.only:
        runs = {"motion": out / "motion", "registration": out / "registration"}
        for sees in ("motion", "ed"):
            more = {"lr": 1e-3, "width": options.width, "val_every": 5, "sees": sees, **SMALL, **device}
            train_segmentation(data, out / f"sees_{sees}", SegmentationConfig(epochs=epochs[2], **more), **runs, **how)
            result[f"infarct, sees {sees}"] = scores(data, out / f"sees_{sees}", out / f"scores_{sees}")
            print(sees, result[f"infarct, sees {sees}"], flush=True)
    machine = {"cpu": platform.processor() or platform.machine(), "cores": os.cpu_count(), "torch": torch.__version__}
    document = {"command": " ".join(sys.argv), "machine": machine, **result}
    write_text(out / "results.json", json.dumps(document, indent=1, default=float) + "\n")


if __name__ == "__main__":
    main()
