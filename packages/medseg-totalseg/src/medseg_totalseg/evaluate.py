"""Masks against reference labels, or a run against cases it has not seen."""

import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from medseg_core.cases import Case
from medseg_core.checkpoint import read_card
from medseg_core.errors import MedsegError
from medseg_core.evaluate import Evaluation
from medseg_core.folders import REPORT, evaluate_folders
from medseg_core.labelmaps import find_label_maps
from medseg_totalseg.dataset import discover
from medseg_totalseg.labels import choose, groups, select
from medseg_totalseg.predict import find_images, predict_files
from medseg_totalseg.settings import EvaluateConfig, PredictConfig


def evaluate_files(
    pred: Path,
    ref: Path,
    out: Path,
    config: EvaluateConfig,
    *,
    images: Path | None = None,
    compare: Path | None = None,
    overwrite: bool = False,
    labels: Mapping[int, str] | None = None,
    only: Collection[str] | None = None,
    title: str = "",
    notes: Sequence[str] = (),
    pictures: Sequence[Path] = (),
) -> tuple[Evaluation, Mapping[str, str]]:
    """Scores every case that PRED and REF share; see `medseg_core.folders.evaluate_folders`.

    Args:
        pred, ref: multilabel files, folders of masks, or released `s0000/segmentations`, paired by case name.
        images: scans to lay under the overlays, by case name; a released REF brings its own.
        compare: masks of another model on the same cases.
        labels: id -> name; None chooses by `config.labels` from the names that are found.
        only: cases to look at; None takes all.

    Returns:
        The evaluation, and what went wrong by case.

    Raises:
        MedsegError: nothing to pair, or an output in use.
    """
    labels = select(labels or _labels(pred, ref, config), config.structures)
    scans = {case.id: case.files["ct"] for case in _scans(images or ref, required=images is not None)}
    return evaluate_folders(
        pred, ref, out, config, labels=labels, compare=compare, images=scans, groups=groups(labels), only=only,
        overwrite=overwrite, title=title, notes=notes, pictures=pictures,
    )  # fmt: skip


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
    if (Path(out) / REPORT).exists() and not overwrite:
        raise MedsegError(f"{out} holds an evaluation; add --overwrite to replace it, or choose another --out")
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
        overwrite=True,  # the predictions lie there already
        labels=card.labels,
        only={case.id for case in wanted},
        title=f"{Path(models[0]).name} on {Path(data).name}, split {split}",
        notes=notes,
        pictures=curves,
    )
    return evaluation, {**done.failed, **failed}


def _labels(pred: Path, ref: Path, config: EvaluateConfig) -> Mapping[int, str]:
    """The class list that holds the names on both sides, where they have names."""
    found = [*find_label_maps(ref).values(), *find_label_maps(pred).values()]
    return choose({name for one in found for name in one.annotated or ()}, config.labels)


def _scans(folder: Path, *, required: bool) -> list[Case]:
    """Scans by case name; a reference without any is no error."""
    try:
        return find_images(folder)
    except MedsegError:
        if required:
            raise
        return []


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
