"""A run on labelled micrographs: per class and data set, beside the majority class.

OUT/report.html, cases.csv, summary.csv, summary.json   as in medseg-core; a case is a picture, a structure is a class
OUT/results.json         mean IoU with its interval, scores of each class, of all pictures and of each data set
OUT/confusion.csv, .png  rows are true classes, columns predicted ones, in pixels
OUT/panels/X.png         image | truth | prediction | error
"""

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from medseg_core import figures
from medseg_core.cases import Case, of_split, warned_of_training
from medseg_core.config import strict
from medseg_core.errors import MedsegError
from medseg_core.evaluate import evaluate, write_tables
from medseg_core.io import write_picture, write_text
from medseg_core.pairs import Pair
from medseg_core.progress import track
from medseg_core.report import write_report
from medseg_core.table import write_csv
from medseg_core.volume import Picture
from medseg_sem_al.colours import UNSEEN
from medseg_sem_al.confusion import confusion, miou_interval, overall, per_class
from medseg_sem_al.index import Index, read_index, shares_of
from medseg_sem_al.panels import panel
from medseg_sem_al.predict import Predictor
from medseg_sem_al.settings import TileConfig
from medseg_sem_al.train import check_fits

REPORT, RESULTS = "report.html", "results.json"
TOLERANCE = 3.0  # of NSD, in pixels


def evaluate_run(
    index_file: Path,
    run: Path,
    out: Path,
    *,
    split: str = "test",
    config: TileConfig | None = None,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Scores the pictures that the run's own split.json has in `split`, or all that have masks.

    Args:
        index_file: what `index` made, of the same classes.
        split: train, val, test or all.

    Returns:
        What `results.json` holds.

    Raises:
        MedsegError: no such pictures, other classes, or an output in use.
    """
    out = Path(out)
    if (out / REPORT).exists() and not overwrite:
        raise MedsegError(f"{out} holds an evaluation; add --overwrite to replace it, or choose another --out")
    predictor, index = Predictor(run, config), read_index(index_file)
    check_fits(index, predictor.card, index_file)
    cases, trained_on = of_split([case for case in index.cases if "label" in case.files], run, split)
    if (out / REPORT).exists():  # of another split, perhaps
        shutil.rmtree(out / "panels", ignore_errors=True)
    counts: dict[str, np.ndarray] = {}
    commonest = _commonest(index, trained_on)
    nm = [case.notes.get("pixel_nm") for case in cases]
    unit = "nm" if all(nm) else "px"
    evaluation = evaluate(
        _pairs(index, cases, predictor, counts, out, unit),
        {k + 1: name for k, name in enumerate(predictor.names)},
        baselines={"majority": lambda pair: np.full(pair.label.shape, commonest + 1, np.uint8)},
        tolerance=TOLERANCE * (max(nm) if unit == "nm" else 1),
    )
    write_tables(evaluation, out)
    found = results(cases, counts, predictor.names, commonest)
    write_text(out / RESULTS, json.dumps(strict(found), indent=1) + "\n")
    total = np.sum(list(counts.values()), axis=0)
    names = predictor.names
    rows = [{"true": names[k], **dict(zip(names, row.tolist(), strict=True))} for k, row in enumerate(total)]
    write_csv(out / "confusion.csv", rows, ["true", *names])
    pictures = [figures.save(_drawn(total, names), out / "confusion.png"), *_shown(counts, out)]
    title = f"{Path(run).name} on {Path(index_file).stem}, split {split}"
    write_report(out, evaluation, title=title, notes=_notes(found, trained_on, cases), pictures=pictures)
    return found


def results(
    cases: Sequence[Case], counts: Mapping[str, np.ndarray], names: Sequence[str], commonest: int
) -> dict[str, Any]:
    """Scores of all pictures together, and of those of each data set.

    Args:
        counts: case -> (K, K) of `confusion`.
        commonest: the class of the majority baseline.
    """
    datasets = list(dict.fromkeys(case.notes["dataset"] for case in cases))
    parts = {name: [case for case in cases if case.notes["dataset"] == name] for name in datasets}
    told = _scores(cases, counts, names, commonest)
    return {**told, "datasets": {name: _scores(part, counts, names, commonest) for name, part in parts.items()}}


def _scores(
    cases: Sequence[Case], counts: Mapping[str, np.ndarray], names: Sequence[str], commonest: int
) -> dict[str, Any]:
    stacked = np.stack([counts[case.id] for case in cases])
    total = stacked.sum(0)
    low, high = miou_interval(stacked, [case.unit for case in cases])
    classes = {
        name: {word: float(values[k]) for word, values in per_class(total).items()} for k, name in enumerate(names)
    }
    groups = len({case.unit for case in cases})
    numbers = {
        **overall(total, commonest=commonest),
        "miou_low": low,
        "miou_high": high,
        "pictures": len(cases),
        "groups": groups,
    }
    return {**numbers, "classes": classes}


def _pairs(
    index: Index, cases: Sequence[Case], predictor: Predictor, counts: dict[str, np.ndarray], out: Path, unit: str
) -> Iterator[Pair]:
    """Ids from 1 on, as 0 has no score in core and is a class here; 0 where nobody labelled."""
    for case in track(cases, "Evaluating"):
        stack, label = index.stack(case), index.label(case)
        image, mask = stack[len(stack) // 2], predictor.mask(stack)
        counts[case.id] = confusion(mask, label, len(predictor.names))
        write_picture(Picture(panel(image, label, mask, predictor.colours)), out / "panels" / f"{case.id}.png")
        edge = case.notes["pixel_nm"] if unit == "nm" else 1.0
        found = np.where(label == UNSEEN, np.uint8(0), mask + np.uint8(1))
        yield Pair(case.id, found, label + np.uint8(1), (edge, edge), unit, images={"sem": image})


def _commonest(index: Index, trained_on: set[str]) -> int:
    """The class that most pixels of the training pictures have."""
    cases = [case for case in index.cases if "shares" in case.notes]
    cases = [case for case in cases if case.id in trained_on] or cases
    return int(shares_of(cases).argmax())


def _shown(counts: Mapping[str, np.ndarray], out: Path) -> list[Path]:
    """Panels of the worst and of the median picture."""
    ranked = sorted(counts, key=lambda name: overall(counts[name])["miou"])
    chosen = dict.fromkeys((ranked[0], ranked[len(ranked) // 2]))
    return [out / "panels" / f"{name}.png" for name in chosen]


def _notes(found: Mapping[str, Any], trained_on: set[str], cases: Sequence[Case]) -> list[str]:
    notes = warned_of_training(cases, trained_on)
    ends = f"[{found['miou_low']:.3f}, {found['miou_high']:.3f}] over {found['groups']} groups of"
    ends = ends if found["groups"] > 1 else "without an interval, as they are of one group, over"
    told = f"Mean IoU {found['miou']:.3f} {ends} {found['pictures']} pictures, all pixels together"
    notes.append(f"{told}; {found['majority']:.3f} for the commonest class of the training pictures everywhere.")
    notes.append("Panels: image, truth, prediction, error (orange); of the worst picture and of the median one.")
    return notes


def _drawn(total: np.ndarray, names: Sequence[str]) -> Figure:
    """Shares of each true class."""
    shares = total / np.maximum(total.sum(1, keepdims=True), 1)
    edge = 1.6 + 0.9 * len(names)
    figure = Figure(figsize=(edge + 0.6, edge), layout="constrained")
    axes = figure.subplots()
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for (row, column), value in np.ndenumerate(shares):
        colour = "white" if value > 0.5 else "black"
        axes.text(column, row, f"{100 * value:.1f} %", ha="center", va="center", color=colour, fontsize=9)
    axes.set_xticks(range(len(names)), names, rotation=30, ha="right")
    axes.set_yticks(range(len(names)), names)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    return figure
