"""Masks against reference labels, or a run against the cases it has not seen."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from medseg_core.cases import Case
from medseg_core.checkpoint import read_card
from medseg_core.errors import MedsegError
from medseg_core.evaluate import Evaluation, Pair, evaluate
from medseg_core.io import read_volume
from medseg_core.labelmaps import LabelMap, find_label_maps
from medseg_core.progress import track
from medseg_core.report import write_report
from medseg_totalseg.dataset import discover
from medseg_totalseg.labels import choose, groups, select
from medseg_totalseg.predict import find_images, predict_files
from medseg_totalseg.settings import EvaluateConfig, PredictConfig

log = logging.getLogger(__name__)


def evaluate_files(
    pred: Path,
    ref: Path,
    out: Path,
    config: EvaluateConfig,
    *,
    images: Path | None = None,
    overwrite: bool = False,
    labels: Mapping[int, str] | None = None,
    notes: Sequence[str] = (),
    pictures: Sequence[Path] = (),
) -> Evaluation:
    """Scores every case that PRED and REF share, into `out/cases.csv`, `out/summary.json` and `out/report.html`.

    Args:
        pred, ref: multilabel files, folders of masks, or released `s0000/segmentations`, paired by case name.
        images: scans to lay under the overlays, found by case name; a released REF brings its own.
        labels: id -> name; None chooses by `config.labels` from the names that are found.

    Raises:
        MedsegError: nothing to pair, an output in use, a pair on two grids.
    """
    predicted, true = find_label_maps(pred), find_label_maps(ref)
    shared = _shared(predicted, true, pred, ref)
    if (out / "cases.csv").exists() and not overwrite:
        raise MedsegError(f"{out} holds an evaluation; add --overwrite to replace it, or choose another --out")
    labels = labels or choose({name for case in shared for name in true[case].names()}, config.labels)
    labels = select(labels, config.structures)
    scans = {case.id: case.files["ct"] for case in find_images(images or ref, missing_ok=images is None)}
    pairs = _pairs(shared, predicted, true, scans, labels, config)
    evaluation = evaluate(track(pairs, "Evaluating", total=len(shared)), labels, out=out, groups=groups(labels))
    write_report(out, evaluation, title=f"{len(shared)} cases", pictures=pictures, notes=notes)
    return evaluation
