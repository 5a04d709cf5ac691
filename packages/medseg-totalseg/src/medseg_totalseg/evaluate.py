"""Masks against reference labels, or a run against cases it has not seen."""

import json
import logging
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
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


@dataclass
class _Pairs:
    """The pairs of an evaluation, read one at a time; a bad one is put down in `failed` and costs only itself."""

    predicted: Mapping[str, LabelMap]
    true: Mapping[str, LabelMap]
    scans: Mapping[str, Path]
    labels: Mapping[int, str]
    config: EvaluateConfig
    failed: dict[str, str] = field(default_factory=dict)

    @property
    def cases(self) -> list[str]:
        """What is on both sides."""
        return sorted(self.predicted.keys() & self.true.keys())

    def __iter__(self) -> Iterator[Pair]:
        for number, case in enumerate(track(self.cases, "Evaluating"), 1):
            try:
                yield self._pair(case, f"case {number:04d}" if self.config.anonymous else case)
            except MedsegError as error:
                log.warning("%s: %s", case, error)
                self.failed[case] = str(error)

    def _pair(self, case: str, name: str) -> Pair:
        ids = {label: i for i, label in self.labels.items()}
        mask, label = self.predicted[case].read(ids), self.true[case].read(ids)
        differs = label.grid.differs(mask.grid)
        if differs:
            fix = "predict on the scan that the labels were drawn on"
            raise MedsegError(f"{self.predicted[case].path} and {self.true[case].path}: {differs}; {fix}")
        images = {"ct": read_volume(self.scans[case]).voxels} if case in self.scans else {}
        if images and images["ct"].shape != label.voxels.shape:
            log.warning("%s: the scan has another shape than its labels; its overlay goes without", case)
            images = {}
        known = self.true[case].annotated if self.config.missing == "ignore" else None
        return Pair(
            name,
            mask.voxels,
            label.voxels,
            spacing=label.spacing_mm,
            images=images,
            known=None if known is None else [ids[n] for n in known if n in ids],
            affine=label.affine,
        )


def evaluate_files(
    pred: Path,
    ref: Path,
    out: Path,
    config: EvaluateConfig,
    *,
    images: Path | None = None,
    overwrite: bool = False,
    labels: Mapping[int, str] | None = None,
    only: Collection[str] | None = None,
    title: str = "",
    notes: Sequence[str] = (),
    pictures: Sequence[Path] = (),
) -> tuple[Evaluation, Mapping[str, str]]:
    """Scores every case that PRED and REF share, into `out/cases.csv`, `out/summary.json` and `out/report.html`.

    Args:
        pred, ref: multilabel files, folders of masks, or released `s0000/segmentations`, paired by case name.
        images: scans to lay under the overlays, by case name; a released REF brings its own.
        labels: id -> name; None chooses by `config.labels` from the names that are found.
        only: cases to look at; None takes all.

    Returns:
        The evaluation, and what went wrong by case.

    Raises:
        MedsegError: nothing to pair, or an output in use.
    """
    out = Path(out)
    if (out / "cases.csv").exists() and not overwrite:
        raise MedsegError(f"{out} holds an evaluation; add --overwrite to replace it, or choose another --out")
    predicted, true = find_label_maps(pred), find_label_maps(ref)
    if only is not None:
        true = {case: found for case, found in true.items() if case in only}
    predicted, true = _paired_if_single(predicted, true)
    labels = select(labels or _labels(predicted, true, config), config.structures)
    scans = {case.id: case.files["ct"] for case in _scans(images or ref, required=images is not None)}
    pairs = _Pairs(predicted, true, scans, labels, config)
    notes = [*notes, *_without_partner(predicted, true, pred, ref)]
    if not pairs.cases:
        raise MedsegError(f"{pred} and {ref} share no case name: {_some(predicted)} against {_some(true)}")
    evaluation = evaluate(pairs, labels, out=out, groups=groups(labels))
    notes += [f"{case} could not be scored: {why}" for case, why in pairs.failed.items()]
    write_report(out, evaluation, title=title or f"{pred.name} against {ref.name}", pictures=pictures, notes=notes)
    return evaluation, pairs.failed


def evaluate_run(
    data: Path,
    models: Sequence[Path],
    out: Path,
    config: EvaluateConfig,
    *,
    split: str = "test",
    overwrite: bool = False,
) -> tuple[Evaluation, Mapping[str, str]]:
    """Predicts cases of a released folder into `out/predictions` and scores them.

    Args:
        split: train, val or test as the run's own `split.json` (or meta.csv for cases that it does not know) says, or
            all. Cases that the run was trained on are scored only when asked for by name, and the report says so.

    Raises:
        MedsegError: no case in that split.
    """
    cases = discover(data)
    trained = {case for model in models for case in _split_of(model, "train")}
    wanted = _wanted(cases, models, split)
    card = read_card(models[0])
    done = predict_files(
        data, models, Path(out) / "predictions", PredictConfig(), only={case.id for case in wanted}, overwrite=overwrite
    )
    seen = sorted(trained & {case.id for case in wanted})
    notes = (
        [f"Trained on {', '.join(seen)}: these scores say that it learnt, not how it does on others."] if seen else []
    )
    if not _split_of(models[0], "val"):
        notes.append("Trained without validation: the last weights were kept, not the best.")
    curves = [m / "curves.png" for m in models if (m / "curves.png").is_file()]
    evaluation, failed = evaluate_files(
        Path(out) / "predictions",
        data,
        out,
        config,
        overwrite=overwrite,
        labels=card.labels,
        only={case.id for case in wanted},
        title=f"{Path(models[0]).name} on {Path(data).name}, split {split}",
        notes=notes,
        pictures=curves,
    )
    return evaluation, {**done.failed, **failed}


def headline(evaluation: Evaluation) -> dict[str, Any]:
    """The overall Dice with its interval, beside predicting nothing, and how much was missed and invented."""
    mine, empty = _overall(evaluation), _overall(evaluation.baselines["empty"])
    return {
        "dice": mine.get("mean"),
        "dice_low": mine.get("low"),
        "dice_high": mine.get("high"),
        "dice_of_predicting_nothing": empty.get("mean"),
        "cases": len(evaluation.cases),
        "structures": mine.get("n", 0),
        "missed": mine.get("n_missed", 0),
        "invented": mine.get("n_invented", 0),
    }


def _overall(evaluation: Evaluation) -> Mapping[str, Any]:
    """The row of all structures together; empty where there are none."""
    rows = evaluation.summary()
    return next((row for row in rows if (row["kind"], row["measure"]) == ("all", "dice")), {})


def _labels(
    predicted: Mapping[str, LabelMap], true: Mapping[str, LabelMap], config: EvaluateConfig
) -> Mapping[int, str]:
    """The class list that holds the names on the reference's side, and of the masks where it has no names."""
    names = {name for side in (true, predicted) for found in side.values() for name in found.annotated or ()}
    return choose(names, config.labels)


def _paired_if_single(
    predicted: Mapping[str, LabelMap], true: Mapping[str, LabelMap]
) -> tuple[Mapping[str, LabelMap], Mapping[str, LabelMap]]:
    """One file against one case belong together, whatever they are called."""
    if len(predicted) == len(true) == 1 and predicted.keys() != true.keys():
        (case,), (found,) = true, predicted.values()
        log.info("%s is scored against %s", found.case, case)
        return {case: found}, true
    return predicted, true


def _scans(folder: Path, *, required: bool) -> list[Case]:
    """Scans by case name; a reference without any is no error."""
    try:
        return find_images(folder)
    except MedsegError:
        if required:
            raise
        return []


def _without_partner(predicted: Collection[str], true: Collection[str], pred: Path, ref: Path) -> list[str]:
    """What was left out, in a sentence for each side."""
    sides = ((predicted, true, pred, ref), (true, predicted, ref, pred))
    lone = [(here, there, sorted(set(mine) - set(other))) for mine, other, here, there in sides]
    notes = [
        f"{len(names)} in {here} without a partner in {there}: {_some(names)}" for here, there, names in lone if names
    ]
    for note in notes:
        log.warning(note)
    return notes


def _wanted(cases: Sequence[Case], models: Sequence[Path], split: str) -> list[Case]:
    """The cases of a split, by the first run's split file; meta.csv speaks for cases that it does not list."""
    if split == "all":
        return list(cases)
    of_run = {case: kind for kind in ("train", "val", "test") for case in _split_of(models[0], kind)}
    wanted = [case for case in cases if of_run.get(case.id, case.split) == split]
    if not wanted:
        kinds = sorted({of_run.get(case.id, case.split) or "none" for case in cases})
        raise MedsegError(
            f"no case is in split {split!r} (here are {', '.join(kinds)}); give --split {kinds[0]} or all"
        )
    return wanted


def _split_of(run: Path, kind: str) -> list[str]:
    file = Path(run) / "split.json"
    return json.loads(file.read_text(encoding="utf-8"))[kind] if file.is_file() else []


def _some(names: Collection[str], most: int = 5) -> str:
    return ", ".join(sorted(names)[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
