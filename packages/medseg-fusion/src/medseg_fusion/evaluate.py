"""A run on patients of its split: by patient, by lesion and by slice, beside plain thresholds of SUV.

OUT/report.html, cases.csv, summary.csv, summary.json   as in medseg-core, a case is a patient
OUT/results.json       overall, per patient and per slice, for readers of the original's file
OUT/predictions/       with `save_predictions`: a PNG of 0 and 255 for each slice
OUT/panels/            with `save_predictions`: CT | PET | truth | prediction of each slice with tumour on either side
"""

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from medseg_core.cases import Case, of_split, warned_of_training
from medseg_core.config import strict
from medseg_core.errors import MedsegError
from medseg_core.evaluate import Evaluation, evaluate
from medseg_core.intervals import NUM_RESAMPLES
from medseg_core.io import write_picture, write_text
from medseg_core.pairs import Pair
from medseg_core.progress import track
from medseg_core.report import write_report
from medseg_core.store import Arrays
from medseg_core.volume import Picture
from medseg_fusion.measures import agreement, burden, thresholds
from medseg_fusion.patients import BITS
from medseg_fusion.predict import Predictor
from medseg_fusion.prepare import read_cohort
from medseg_fusion.settings import PredictConfig
from medseg_fusion.slices import scaled

RESULTS, REPORT = "results.json", "report.html"
MEASURES = ("overlap", "surface", "lesions")
GAP = 4  # pixels between the pictures of a panel


def evaluate_run(
    cache: Path,
    run: Path,
    out: Path,
    *,
    split: str = "val",
    save_predictions: bool = False,
    config: PredictConfig | None = None,
    overwrite: bool = False,
) -> Evaluation:
    """Scores the patients that the run's own split.json has in `split`, or all that have masks.

    Args:
        cache: what `prepare` made.
        split: train, val, test or all.

    Raises:
        MedsegError: no such patients, or an output in use.
    """
    out = Path(out)
    if (out / REPORT).exists() and not overwrite:
        raise MedsegError(f"{out} holds an evaluation; add --overwrite to replace it, or choose another --out")
    predictor = Predictor(run, config)
    labelled = [case for case in read_cohort(cache) if "label" in Arrays(case.files["arrays"]).names]
    cases, trained_on = of_split(labelled, run, split)
    for case in cases:
        predictor.check_unit(case.id, Arrays(case.files["arrays"]).about["unit"])
    if (out / REPORT).exists():
        for folder in ("predictions", "panels"):  # of the evaluation that is replaced, perhaps of another split
            shutil.rmtree(out / folder, ignore_errors=True)
    slices: list[dict[str, Any]] = []
    pairs = _pairs(cases, predictor, slices, out if save_predictions else None)
    unit = predictor.card.intensity["unit"]
    how: dict[str, Any] = {"measures": MEASURES, "more": burden, "baselines": thresholds(unit), "out": out}
    evaluation = evaluate(pairs, {1: "tumour"}, **how)
    found = results(evaluation, slices)
    write_text(out / RESULTS, json.dumps(strict(found), indent=1) + "\n")
    notes = warned_of_training(cases, trained_on)
    bare = "A patient without tumour has no Dice where nothing was found, and 0 where something was."
    notes.append(f"Threshold {predictor.threshold:g}, on the grid of the cache. {bare}")
    notes += [
        f"{name} differs from that of the label by {row['bias']:+.3g} on average, in 95 % of patients by "
        f"{row['low']:+.3g} to {row['high']:+.3g} (of {row['n']})."
        for name, row in found["overall_metrics"]["agreement"].items()
    ]
    write_report(out, evaluation, title=f"{Path(run).name} on {Path(cache).name}, split {split}", notes=notes)
    return evaluation


def results(evaluation: Evaluation, slices: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Overall numbers over patients and over slices with tumour on either side, then those of each.

    Intervals of both are over patients: slices of one patient are no independent cases.
    """
    patients = [{**row} for row in evaluation.rows if row["name"]]
    bare = sum(row["dice"] is None for row in slices)
    overall = {
        "patients": {name: _told(patients, name, by="case") for name in ("dice", "iou")},
        "slices": {name: _told(slices, name, by="patient") for name in ("dice", "iou", "accuracy")},
    }
    overall["agreement"] = agreement(row for row in evaluation.rows if not row["name"])
    about = {"slices": len(slices), "slices_without_tumour_on_either_side": bare}
    about["patients_without_tumour_on_either_side"] = len(evaluation.absent)
    return {"overall_metrics": overall, **about, "per_patient_metrics": patients, "per_image_metrics": list(slices)}


def _told(rows: Sequence[Mapping[str, Any]], name: str, *, by: str) -> dict[str, float]:
    """n, mean, std, median, and the ends of a 95 % bootstrap interval of the mean over patients."""
    known = [(row[by], row[name]) for row in rows if row[name] is not None and np.isfinite(row[name])]
    if not known:
        return {"n": 0}
    values = np.array([value for _, value in known])
    _, patient = np.unique([who for who, _ in known], return_inverse=True)
    sums, counts = np.bincount(patient, values), np.bincount(patient)
    draws = np.random.default_rng([0, 0, 0, 0]).multinomial(len(sums), np.full(len(sums), 1 / len(sums)), NUM_RESAMPLES)
    low, high = np.percentile(draws @ sums / (draws @ counts), (2.5, 97.5)) if len(sums) > 1 else (np.nan, np.nan)
    spread = values.std(ddof=1) if len(values) > 1 else np.nan
    numbers = {"mean": values.mean(), "std": spread, "median": np.median(values), "low": low, "high": high}
    return {"n": len(values), **{key: float(value) for key, value in numbers.items()}}


def pair_of(case: Case, predictor: Predictor, *, present: Sequence[bool] = (True, True)) -> Pair:
    """A patient of a cache with the mask of a run, on the grid of the cache.

    Args:
        present: whether the network is given CT and PET.
    """
    arrays = Arrays(case.files["arrays"])
    ct, pet, label = (np.asarray(arrays[name]) for name in ("ct", "pet", "label"))
    mask = (predictor.probabilities(ct, pet, present=present) >= predictor.threshold).astype(np.uint8)
    spacing = tuple(arrays.about["spacing"])
    if arrays.about["unit"] == BITS:
        return Pair(case.id, mask, label, spacing, "px", images={"ct": ct})
    affine = np.array(arrays.about["affine"])
    return Pair(case.id, mask, label, spacing, images={"ct": ct, "pet": pet}, affine=affine)


def _pairs(
    cases: Sequence[Case], predictor: Predictor, slices: list[dict[str, Any]], out: Path | None
) -> Iterator[Pair]:
    for case in track(cases, "Evaluating"):
        pair, arrays = pair_of(case, predictor), Arrays(case.files["arrays"])
        for k, name in enumerate(_names(case, arrays)):
            slices.append({"filename": name, "patient": case.id, **_of_slice(pair.mask[..., k], pair.label[..., k])})
        if out is not None:
            _save(out, _names(case, arrays), pair.mask, arrays, predictor.card.intensity)
        yield pair


def _names(case: Case, arrays: Arrays) -> list[str]:
    """A name for each slice: that of the picture, or patient and number."""
    given = arrays.about["slices"]
    return given or [f"{case.id}_slice_{k:04d}.png" for k in range(arrays["ct"].shape[2])]


def _of_slice(mask: np.ndarray, label: np.ndarray) -> dict[str, Any]:
    """Dice and IoU are None where neither side has tumour: such slices are no success of segmentation."""
    both, total = int((mask & label).sum()), int(mask.sum()) + int(label.sum())
    dice, iou = (2 * both / total, both / (total - both)) if total else (None, None)
    return {"dice": dice, "iou": iou, "accuracy": float((mask == label).mean())}


def _save(out: Path, names: Sequence[str], mask: np.ndarray, arrays: Arrays, intensity: Mapping[str, Any]) -> None:
    is_volume = arrays.about["unit"] != BITS
    for k, name in enumerate(names):
        shown = _upright(255 * mask[..., k]) if is_volume else 255 * mask[..., k]
        write_picture(Picture(shown), (out / "predictions" / name).with_suffix(".png"))
        label = arrays["label"][..., k]
        if not (mask[..., k].any() or label.any()):
            continue
        planes = scaled(arrays["ct"][..., k], arrays["pet"][..., k], intensity)
        row = [*(255 * planes), 255 * label, 255 * mask[..., k]]
        row = [_upright(plane) for plane in row] if is_volume else row
        gap = np.full((row[0].shape[0], GAP), 128, np.uint8)
        parts = [part for plane in row for part in (np.rint(plane).astype(np.uint8), gap)]
        write_picture(Picture(np.concatenate(parts[:-1], 1)), (out / "panels" / name).with_suffix(".png"))


def _upright(plane: np.ndarray) -> np.ndarray:
    """A slice of RAS voxels as a picture: the front on top, the patient's right on the left."""
    return plane.T[::-1, ::-1]
