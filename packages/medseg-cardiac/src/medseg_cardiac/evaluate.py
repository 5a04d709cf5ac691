"""Scores with the trivial baseline beside them: masks against masks, or a run against patients it has not seen.

Axes: H W S a patient's slices as one volume.
"""

import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from medseg_cardiac.cohort import with_phases
from medseg_cardiac.dataset import Patient, Plane, discover
from medseg_cardiac.planes import Place, read_cine, read_head, read_mask
from medseg_cardiac.predict import predict_files
from medseg_cardiac.registered import Registered
from medseg_cardiac.settings import EvaluateConfig, PredictConfig
from medseg_core.checkpoint import read_card
from medseg_core.cohort import read_journal
from medseg_core.errors import MedsegError, meant
from medseg_core.evaluate import Evaluation, Pair
from medseg_core.evaluate import evaluate as score
from medseg_core.folders import REPORT
from medseg_core.io import case_name, read_volume
from medseg_core.progress import track
from medseg_core.report import write_report
from medseg_core.scoring import how_of

NAMES = {"cascade": "infarct", "motion": "left ventricle at ES", "registration": "myocardium of LGE on the cine"}
SPLITS = ("train", "val", "test", "all")
OURS = {"predictions", "pictures", "cases.csv", "summary.csv", "summary.json", "baselines.csv", REPORT}
SUFFIXES = (".nii.gz", ".nii")
UNMOVED, WALL = "unmoved", "whole wall"  # the baselines
NAMED = 8  # of the masks without a partner
SHOWN = 4  # patients whose pictures go into the report

log = logging.getLogger(__name__)


def evaluate_files(
    pred: Path, ref: Path, out: Path, config: EvaluateConfig, *, overwrite: bool = False
) -> tuple[Evaluation, Mapping[str, str]]:
    """Scores masks against reference masks, paired by name: `<case>.nii.gz`, or `<case>/<slice>.nii.gz`.

    Returns:
        The evaluation, and what went wrong by case.

    Raises:
        MedsegError: nothing to pair, or an output in use.
    """
    _check_config(config)
    mine, theirs = _entries(pred), _entries(ref)
    both = sorted(mine.keys() & theirs.keys())
    if not both:
        some = f"{', '.join(sorted(mine)[:3])} and {', '.join(sorted(theirs)[:3])}"
        raise MedsegError(f"{pred} and {ref} share no case by name: they hold {some}")
    alone = sorted(mine.keys() ^ theirs.keys())
    notes = [f"{len(alone)} without a partner on the other side: {', '.join(alone[:NAMED])}"] if alone else []
    makers = {case: partial(_pair_of_files, case, mine[case], theirs[case]) for case in both}
    title = f"{Path(pred).name} against {Path(ref).name}"
    return _scored(makers, "structure", out, config, overwrite=overwrite, title=title, notes=notes)


def headline(evaluation: Evaluation) -> dict[str, object]:
    """What a run came to on one screen: Dice with its interval, and Dice of the trivial baseline beside it."""
    told = evaluation.headline()
    for name in set(evaluation.baselines) & {WALL, UNMOVED}:
        rows = evaluation.baselines[name].summary()
        means = [row["mean"] for row in rows if (row["kind"], row["measure"]) == ("all", "dice")]
        told |= {f"dice_of_{name.replace(' ', '_')}": mean for mean in means}
    return told


def evaluate_run(
    data: Path,
    run: Path,
    out: Path,
    config: EvaluateConfig,
    *,
    split: str = "test",
    registration: Path | None = None,
    overwrite: bool = False,
) -> tuple[Evaluation, Mapping[str, str]]:
    """Scores a run on patients of a data folder; what it predicts lies in `out/predictions`.

    A segmentation run is scored on infarct (`cmr_MI_mask`, else the LGE's, which `registration` brings to the cine); a
    motion run on the pool that it carries from ED to ES; a registration run on the LGE's myocardium that it moves.

    Args:
        split: train, val or test as the run's own `split.json` says, or all. Patients that the run was trained on are
            scored only when asked for by name, and the report says so.

    Raises:
        MedsegError: no patient in that split, or an output in use.
    """
    _check_config(config)
    _check_out(Path(out), overwrite=overwrite)
    card = read_card(run)
    if card.model not in NAMES:
        raise MedsegError(
            f"{run} holds weights of {card.package}, {card.model}; give a run of `medseg cardiac train-...`"
        )
    wanted, notes = _of_split(discover(data, axes=config.axes), run, split)
    wanted = [replace(one, planes=tuple(with_phases(one.planes, axes=config.axes))) for one in wanted]
    predictions, failed, pictures = Path(out) / "predictions", {}, []
    if card.model != "registration":
        asked = PredictConfig(axes=config.axes, refine=config.refine, strain=True, contours=True)
        failed = dict(predict_files(wanted, run, predictions, asked, overwrite=overwrite).failed)
        pictures = _pictures(predictions, [patient.id for patient in wanted if patient.id not in failed])
    register = Registered(run if card.model == "registration" else registration, axes=config.axes)
    make = {"cascade": _infarct_pair, "motion": _pool_pair, "registration": _register_pair}[card.model]
    makers = {
        patient.id: partial(make, patient, predictions, register, config.axes)
        for patient in wanted
        if patient.id not in failed
    }
    curves = [Path(run) / "curves.png"] if (Path(run) / "curves.png").is_file() else []
    evaluation, more = _scored(
        makers,
        NAMES[card.model],
        out,
        config,
        overwrite=True,  # the predictions lie there already
        title=f"{Path(run).name} on {Path(data).name}, split {split}",
        notes=[*notes, *_folds(predictions)],
        pictures=[*pictures, *curves],
    )
    return evaluation, {**failed, **more}


def _scored(
    makers: Mapping[str, Callable[[], Pair]],
    name: str,
    out: Path,
    config: EvaluateConfig,
    *,
    title: str,
    notes: Sequence[str] = (),
    pictures: Sequence[Path] = (),
    overwrite: bool = False,
) -> tuple[Evaluation, Mapping[str, str]]:
    """Tables and report; a pair that cannot be made costs only itself."""
    _check_out(Path(out), overwrite=overwrite)
    failed: dict[str, str] = {}
    stays = UNMOVED if name != NAMES["cascade"] else WALL

    def pairs() -> Iterator[Pair]:
        for case, make in track(makers.items(), "Scoring", total=len(makers)):
            try:
                yield make()
            except MedsegError as error:
                failed[case] = str(error)

    baselines = {stays: lambda pair: pair.images["baseline"]} if name != "structure" else {}
    evaluation = score(pairs(), {1: name}, out=Path(out), baselines=baselines, **how_of(config))
    told = [*notes, *(f"{case} is not scored: {why}" for case, why in failed.items())]
    write_report(Path(out), evaluation, title=title, pictures=pictures, notes=told)
    return evaluation, failed


def _check_config(config: EvaluateConfig) -> None:
    """Shared settings that this package does not honour are refused, not passed over."""
    if config.anonymous:
        raise MedsegError("--anonymous would still leave names in pictures here; number the files of the cases instead")
    if config.missing != "empty":
        raise MedsegError("--missing ignore means nothing here: a slice without a reference is never scored")


def _check_out(out: Path, *, overwrite: bool) -> None:
    if overwrite or not out.is_dir():
        return
    if (out / REPORT).exists():
        raise MedsegError(f"{out} holds an evaluation; add --overwrite to replace it, or choose another --out")
    if any(path.name not in OURS for path in out.iterdir()):
        raise MedsegError(f"{out} holds other things than an evaluation; choose another --out, or add --overwrite")


def _infarct_pair(patient: Patient, predictions: Path, register: Registered, axes: str) -> Pair:
    planes = [plane for plane in patient.planes if "myo" in plane.places and {"mi", "lge_mi"} & set(plane.places)]
    labels, masks, walls = [], [], []
    for plane in planes:
        shape = _shape(plane, axes)
        walls.append(read_mask(plane.places["myo"], shape))
        labels.append(
            (read_mask(plane.places["mi"], shape) if "mi" in plane.places else register.infarct(plane)) & walls[-1]
        )
        masks.append(_predicted(predictions / patient.id, plane, shape))
    return _pair(patient.id, planes, masks, labels, baseline=walls, axes=axes)


def _pool_pair(patient: Patient, predictions: Path, _: Registered, axes: str) -> Pair:
    planes = [plane for plane in patient.planes if {"myo", "lv_ed", "lv_es"} <= set(plane.places)]
    shapes = [_shape(plane, axes) for plane in planes]
    labels, unmoved = (
        [read_mask(p.places[r], s) for p, s in zip(planes, shapes, strict=True)] for r in ("lv_es", "lv_ed")
    )
    masks = [_predicted(predictions / "lv_es" / patient.id, p, s) for p, s in zip(planes, shapes, strict=True)]
    return _pair(patient.id, planes, masks, labels, baseline=unmoved, axes=axes)


def _register_pair(patient: Patient, _: Path, register: Registered, axes: str) -> Pair:
    planes = [plane for plane in patient.planes if {"myo", "lge", "lge_myo"} <= set(plane.places)]
    labels = [read_mask(plane.places["myo"], _shape(plane, axes)) for plane in planes]
    moved, unmoved = ([register.wall(plane, moved=way) for plane in planes] for way in (True, False))
    return _pair(patient.id, planes, moved, labels, baseline=unmoved, axes=axes)


def _pair(
    case: str,
    planes: Sequence[Plane],
    masks: Sequence[np.ndarray],
    labels: Sequence[np.ndarray],
    *,
    baseline: Sequence[np.ndarray],
    axes: str,
) -> Pair:
    """A patient's slices as one volume, with the frame at ED under them."""
    if not planes:
        raise MedsegError(f"no slice of {case} has a reference; `medseg cardiac check` says what is there")
    if len({mask.shape for mask in labels}) > 1:
        raise MedsegError(f"slices of {case} have different shapes, {sorted({m.shape for m in labels})}")
    cines = [read_cine(plane.places["cine"], axes=axes) for plane in planes]
    first = cines[0]
    images = [cine.frames[plane.ed or 0] for cine, plane in zip(cines, planes, strict=True)]
    stacked = {name: np.stack(part, -1).astype(np.uint8) for name, part in (("mask", masks), ("label", labels))}
    return Pair(
        id=case,
        **stacked,
        spacing=(*first.spacing_mm, first.thickness_mm or _thickness(case)),
        images={"ed": np.stack(images, -1), "baseline": np.stack(baseline, -1).astype(np.uint8)},
    )


def _thickness(case: str) -> float:
    log.warning("%s: the header gives no distance between slices; distances across slices count 10 mm each", case)
    return 10.0


def _shape(plane: Plane, axes: str) -> tuple[int, int]:
    return read_head(plane.places["cine"], axes=axes).shape


def _predicted(path: Path, plane: Plane, shape: tuple[int, int]) -> np.ndarray:
    """(H, W) bool of what `predict` wrote; nothing where it left a slice out."""
    place = plane.places["myo"]
    if path.is_dir():
        file = path / f"{case_name(place.path)}.nii.gz"
        return read_mask(Place(file), shape) if file.is_file() else np.zeros(shape, bool)
    return read_mask(Place(path.with_name(f"{path.name}.nii.gz"), place.index), shape)


def _pair_of_files(case: str, mine: Path, theirs: Path) -> Pair:
    if mine.is_dir() and theirs.is_dir():
        return _pair_of_slices(case, _entries(mine), _entries(theirs))
    (mask, spacing), (label, their_spacing) = _volume(mine), _volume(theirs)
    if mask.shape != label.shape:
        raise MedsegError(f"{mine} has shape {mask.shape} and {theirs} {label.shape}; predict on the reference's grid")
    if not np.allclose(spacing, their_spacing, rtol=0.01):
        raise MedsegError(f"{mine} has voxels of {spacing} mm and {theirs} of {their_spacing}; mend the headers")
    return Pair(id=case, mask=mask, label=label, spacing=their_spacing)


def _pair_of_slices(case: str, mine: Mapping[str, Path], theirs: Mapping[str, Path]) -> Pair:
    """Slices by name; one that was not predicted counts as empty."""
    strange = sorted(mine.keys() - theirs.keys())
    if strange:
        raise MedsegError(f"{case} has {', '.join(strange[:NAMED])}, which the reference has not; name slices alike")
    slices = [
        (_pair_of_files(name, mine[name], theirs[name]) if name in mine else _missed(name, theirs[name]))
        for name in sorted(theirs)
    ]
    if len({one.label.shape for one in slices}) > 1:
        raise MedsegError(f"slices of {case} have different shapes, {sorted({one.label.shape for one in slices})}")
    mask, label = (np.concatenate([getattr(one, name) for one in slices], 2) for name in ("mask", "label"))
    return Pair(id=case, mask=mask, label=label, spacing=slices[0].spacing)


def _missed(name: str, file: Path) -> Pair:
    label, spacing = _volume(file)
    log.warning("%s has no mask to score; it counts as empty", file)
    return Pair(id=name, mask=np.zeros_like(label), label=label, spacing=spacing)


def _volume(path: Path) -> tuple[np.ndarray, tuple[float, float, float]]:
    """(H, W, S) uint8 and the size of a voxel, of a volume or of a folder of a file per slice."""
    volumes = [read_volume(file) for file in (sorted(_entries(path).values()) if path.is_dir() else [path])]
    axis = 0 if volumes[0].grid.shape[0] == 1 else 2  # (1, H, W) is a plane too
    planes = [np.moveaxis(volume.voxels.reshape(volume.grid.shape), axis, 2) for volume in volumes]
    if len({plane.shape[:2] for plane in planes}) > 1:
        raise MedsegError(f"the files of {path} have different shapes")
    sizes = volumes[0].spacing_mm
    spacing = (*sizes[1:], sizes[0]) if axis == 0 else sizes
    return (np.concatenate(planes, 2) > 0).astype(np.uint8), spacing


def _entries(folder: Path) -> dict[str, Path]:
    """Case -> its file, or its folder of files."""
    folder = Path(folder)
    if not folder.is_dir():
        raise MedsegError(f"there is no folder {folder}; give one of <case>.nii.gz or of <case>/<slice>.nii.gz")
    inside = [f for f in sorted(folder.iterdir()) if not f.name.startswith(".")]
    files = {case_name(f): f for f in inside if f.name.endswith(SUFFIXES)}
    return files | {f.name: f for f in inside if f.is_dir() and any(g.name.endswith(SUFFIXES) for g in f.iterdir())}


def _of_split(patients: Sequence[Patient], run: Path, split: str) -> tuple[list[Patient], list[str]]:
    """The patients of a split, and what a reader must know."""
    file = Path(run) / "split.json"
    of_run = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    if split not in SPLITS:
        raise MedsegError(f"--split {split!r} is none of {', '.join(SPLITS)}{meant(split, SPLITS)}")
    wanted = [p for p in patients if split == "all" or p.id in of_run.get(split, ())]
    if not wanted:
        raise MedsegError(f"no patient is in split {split!r} of {run}; give another --split, or all")
    seen = sorted({p.id for p in wanted} & set(of_run.get("train", ())))
    trained = f"Trained on {', '.join(seen)}: these scores say that it learnt, not how it does on others."
    notes = [trained] if seen else []
    if not of_run.get("val"):
        notes.append("Trained without validation: the last weights were kept, not the best.")
    return wanted, notes


def _pictures(predictions: Path, cases: Sequence[str]) -> list[Path]:
    """Of the first patients the bull's-eye, the strain, the contours, and a film of one slice."""
    found = []
    for case in cases[:SHOWN]:
        found += [predictions / kind / f"{case}.png" for kind in ("infarct", "strain", "contours")]
    films = [film for case in cases[:SHOWN] for film in sorted((predictions / "contours" / case).glob("*.gif"))[:1]]
    return [path for path in (*found, *films[:2]) if path.is_file()]


def _folds(predictions: Path) -> list[str]:
    if not predictions.is_dir():
        return []
    folds = sum(int(row.get("folds", 0)) for row in read_journal(predictions).values())
    return [f"{folds} folds in the displacements of all frames"]
