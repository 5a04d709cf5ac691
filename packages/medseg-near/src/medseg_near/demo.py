"""The whole way on phantom hearts, from clean labels of some to repaired labels of others.

OUT/data      hearts with coronary trees and their CT
OUT/cache     clean coronaries of those that are learnt, OUT/run their model
OUT/unseen    the others: clean, and broken by the noise model
OUT/refined   what the model makes of the broken ones
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from medseg_core.cases import Case, read_cases
from medseg_core.cohort import for_each
from medseg_core.errors import MedsegError
from medseg_core.evaluate import Evaluation
from medseg_core.folders import evaluate_folders
from medseg_core.io import read_volume, write_volume
from medseg_core.labelmaps import NAMES_FILE, write_labels
from medseg_core.masks import components
from medseg_core.report import write_report
from medseg_core.settings import ScoreConfig
from medseg_near.fit import fit
from medseg_near.look import scene_of, write_look
from medseg_near.noise import corrupted
from medseg_near.phantom import CORONARY, phantom
from medseg_near.prepare import prepare
from medseg_near.refine import refine_files
from medseg_near.settings import FitConfig, PrepareConfig, RefineConfig

KINDS, AMOUNT, SEED = ("breaks", "branches", "holes"), 0.5, 7
FIT = FitConfig(
    errors=KINDS, appearance=True, width=16, patch=32, points=4096, epochs=180, batch_size=2, accumulate=1, lr=3e-3,
    clip=1.0, warmup=0.02, val_every=180, num_scored=1, num_workers=0,
)  # fmt: skip
REFINE = RefineConfig(max_change="100%")
HEARTS = {"num_cases": 14, "size": 80, "spacing_mm": 1.0}
NUM_UNSEEN = 4
SCORE = ScoreConfig(tolerance=1.0, workers=1)  # a coronary is 2 to 4 mm wide: 3 mm would forgive it all
NAMES = {1: "coronary"}


def demo(out: Path, *, quick: bool = False) -> Mapping[str, Any]:
    """Makes hearts, learns the coronaries of most, breaks those of the others and repairs them: `out/report.html`.

    Args:
        out: begun where it is not there, gone on with where it is.
        quick: a run of seconds, which shows that everything works and repairs nothing.
    """
    begun, out = time.monotonic(), Path(out)
    hearts, num_unseen, learning = HEARTS, NUM_UNSEEN, FIT
    if quick:
        hearts, num_unseen = {"num_cases": 3, "size": 48, "spacing_mm": 2.0}, 1
        learning = replace(FIT, epochs=1, points=256, width=4)
    data = phantom(out / "data", **hearts)
    cases, images = read_cases(data / "cases.json"), data / "images"
    known, unseen = cases[:-num_unseen], cases[-num_unseen:]
    where: dict[str, Any] = {"label": "coronary", "images": images}
    prepare(data / "labels", out / "cache", PrepareConfig(), only=[case.id for case in known], **where)
    if fit(out / "cache", out / "run", learning, resume="last").reason == "stopped":
        raise MedsegError(f"stopped; the same call with --out {out} goes on")
    broken = _broken(unseen, out / "unseen")
    refine_files([broken], out / "run", out / "refined", REFINE, **where)
    told = _told(out, images, [case.id for case in unseen], num_known=len(known))
    return {"hearts": len(cases), **told, "minutes": (time.monotonic() - begun) / 60}


def _broken(cases: Sequence[Case], out: Path) -> Path:
    """Coronaries as masks, in `out/clean` as they are and in `out/broken`, which is returned, with errors."""
    outcome = for_each(
        cases, partial(_break, out=out), out=out, config={"kinds": KINDS, "amount": AMOUNT, "seed": SEED}
    )
    for name, why in outcome.failed.items():
        raise MedsegError(f"{name} could not be broken: {why}")
    for folder in ("clean", "broken"):
        if not (out / folder / NAMES_FILE).is_file():  # another date would make `refine` begin anew
            write_labels(out / folder / NAMES_FILE, NAMES)
    return out / "broken"


def _break(case: Case, *, out: Path) -> Mapping[str, Any]:
    volume = read_volume(case.files["label"])
    clean = np.asarray(volume.voxels == CORONARY)
    rng = np.random.default_rng([SEED, case.notes["number"], 0, 0])
    broken = corrupted(clean, KINDS, amount=AMOUNT, spacing_mm=volume.spacing_mm, rng=rng)
    for folder, mask in (("clean", clean), ("broken", broken)):
        write_volume(volume.like(mask.astype(np.uint8)), out / folder / f"{case.id}.nii.gz")
    return {}


def _told(out: Path, images: Path, cases: Sequence[str], *, num_known: int) -> dict[str, Any]:
    """Scores, pictures and the page, and the numbers that it begins with."""
    broken, clean = out / "unseen" / "broken", out / "unseen" / "clean"
    how: dict[str, Any] = {"labels": NAMES, "compare": broken, "images": images, "overwrite": True}
    evaluation, _ = evaluate_folders(out / "refined", clean, out, SCORE, only=cases, **how)
    parts: dict[str, list[int]] = {"before": [], "after": [], "clean": []}
    pictures, scene = [], {}
    for case in evaluation.cases:
        before, after, truth = (read_volume(folder / f"{case}.nii.gz") for folder in (broken, out / "refined", clean))
        masks = [np.asarray(volume.voxels > 0) for volume in (before, after, truth)]
        for counts, mask in zip(parts.values(), masks, strict=True):
            counts.append(int(components(mask).max(initial=0)))
        pictures.append(write_look(out, case, masks[0], masks[1], truth.affine, truth=masks[2]))
        if case == evaluation.worst:
            scene = scene_of(case, masks[0], masks[1], truth.affine, truth=masks[2])
    numbers = {f"parts_{side}": float(np.mean(counts)) for side, counts in parts.items()}
    for name, measure in (("dice", "dice"), ("nsd", "nsd_1mm")):
        rival = evaluation.baselines[evaluation.rival]
        numbers |= {f"{name}_before": _overall(rival, measure), f"{name}_after": _overall(evaluation, measure)}
    said = (
        "Trained on the clean coronary trees of {num_known} made-up hearts, to undo gaps, missed branches and holes. "
        "{unseen} others were broken by these, and refined: turn one of them under 3D.",
        "Dice {dice_before:.3f} before, {dice_after:.3f} after.",
        "NSD within 1 mm {nsd_before:.3f} before, {nsd_after:.3f} after.",
        "Parts of a tree {parts_before:.1f} before, {parts_after:.1f} after, {parts_clean:.1f} in truth.",
    )
    notes = [line.format(num_known=num_known, unseen=len(evaluation.cases), **numbers) for line in said]
    shown = replace(evaluation, **scene)
    page = write_report(out, shown, title="Broken coronary trees, before and after", pictures=pictures, notes=notes)
    return {"unseen": len(evaluation.cases), **numbers, "report": str(page)}


def _overall(evaluation: Evaluation, measure: str) -> float:
    found = (row for row in evaluation.summary() if (row["kind"], row["measure"]) == ("all", measure))
    return float(next(found)["mean"])
