"""The whole way on phantom patients, from cines to a report."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from medseg_cardiac.dataset import discover
from medseg_cardiac.evaluate import evaluate_run, headline
from medseg_cardiac.phantom import phantom
from medseg_cardiac.settings import EvaluateConfig, MotionConfig, RegistrationConfig, SegmentationConfig
from medseg_cardiac.splits import split
from medseg_cardiac.train import train_motion, train_registration, train_segmentation

SMALL: dict[str, Any] = {"size": 64, "crop": 64, "patience": 0, "save_seconds": 1e9}


def demo(out: Path, *, quick: bool = False) -> Mapping[str, Any]:
    """Makes patients, trains the three networks, and scores patients that they have not seen in `out/report.html`.

    Args:
        out: begun where it is not there, gone on with where it is.
        quick: a run of seconds, which shows that everything works and scores badly.
    """
    begun = time.monotonic()
    data = phantom(out / "data", num_cases=3 if quick else 14, size=64 if quick else 96, num_slices=2 if quick else 3)
    if not (out / "splits.json").exists():
        split(data, out / "splits.json", seed=1)
    how: dict[str, Any] = {"splits": out / "splits.json", "resume": "last"}
    moving = MotionConfig(epochs=1 if quick else 40, val_every=8, pairs_per_slice=2 if quick else 4, **SMALL)
    train_motion(data, out / "motion", moving, **how)
    late = RegistrationConfig(epochs=1 if quick else 20, val_every=5, lr=1e-3, **SMALL)
    train_registration(data, out / "registration", late, **how)
    runs = {"motion": out / "motion", "registration": out / "registration"}
    infarct = SegmentationConfig(epochs=1 if quick else 40, width=8 if quick else 16, val_every=5, lr=2e-3, **SMALL)
    train_segmentation(data, out / "segmentation", infarct, **runs, **how)
    evaluation, _ = evaluate_run(data, out / "segmentation", out, EvaluateConfig(), overwrite=True)
    minutes = (time.monotonic() - begun) / 60
    patients = len(discover(data))
    return {"patients": patients, **headline(evaluation), "report": str(out / "report.html"), "minutes": minutes}
