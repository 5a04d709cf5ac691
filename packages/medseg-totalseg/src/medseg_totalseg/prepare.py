"""From a released folder to a cache: per case one image and one label map on the cohort's grid, read plane by plane.

CACHE/dataset.json              labels, spacing, missing policy, overlap, failed cases
CACHE/journal.jsonl             what is done; the same call goes on where it was
CACHE/<case>/{image,label}.npy  int16 HU and label ids, (X, Y, Z) in RAS; `[:, :, k]` is one read from the disk
CACHE/<case>/label2.npy, ...    further structures of voxels that lie in several
CACHE/<case>/places.npy         some voxels of each structure, on which patches are centred
CACHE/<case>/about.json         source grid, voxels per id, overlaps, annotated ids (null: all of them)
"""

import json
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from medseg_core.cases import Case
from medseg_core.cohort import Outcome, answers, for_each, forget, processes
from medseg_core.config import as_dict
from medseg_core.distributed import from_first
from medseg_core.errors import MedsegError
from medseg_core.io import read_grid, read_volume, write_text
from medseg_core.join import Joined, join_masks
from medseg_core.progress import track
from medseg_core.store import Arrays, write_arrays
from medseg_core.volume import Volume, resample
from medseg_totalseg.dataset import discover, masks_of, names_of
from medseg_totalseg.labels import choose, select
from medseg_totalseg.places import places_of
from medseg_totalseg.settings import PrepareConfig

DATASET = "dataset.json"
FORMAT = 1
ORIENTATION = "RAS"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Cohort:
    """What `prepare` left.

    Args:
        folder: the cache.
        labels: id -> name of the structures that were taken.
        spacing_mm: of every array, along right-left, back-front, feet-head.
        missing: "empty", or "ignore" where a structure without a file was not annotated.
        cases: with the file `arrays` (a folder for `medseg_core.store.Arrays`), their group and split.
        overlap: share of the labelled voxels that lie in more than one structure.
        failed: case -> reason.
    """

    folder: Path
    labels: Mapping[int, str]
    spacing_mm: tuple[float, float, float]
    missing: str
    cases: tuple[Case, ...]
    overlap: float
    failed: Mapping[str, str]

    def facts(self) -> dict[str, Any]:
        """The numbers a command tells."""
        return {
            "cases": len(self.cases),
            "structures": len(self.labels),
            "spacing_mm": list(self.spacing_mm),
            "overlap": self.overlap,
        }


@dataclass(frozen=True)
class _Plan:
    """What is the same for every case, and is stored with the cohort."""

    labels: Mapping[int, str]
    spacing_mm: tuple[float, float, float]
    missing: str


def prepare(data: Path, out: Path, config: PrepareConfig, *, executor: Executor | None = None) -> Outcome:
    """Packs the masks of each case into one label map beside its image, on one orientation and spacing.

    Finished cases are skipped, a bad one costs only itself; processes that torchrun started share the cases. Where
    masks overlap, the largest id has the voxel in `label`, the next in `label2`; the share is counted and told, for the
    head of a network depends on it.

    Args:
        data: a released folder, or a single case.
        out: the cache, new or begun with the same settings.
        executor: runs the cases, instead of `config.workers` processes.

    Raises:
        MedsegError: no cases, names that no class list holds, or a cache of other settings or of other scans.
    """
    out = Path(out)
    from_first(partial(_refuse_others, out))
    cases = discover(data)
    names = names_of(cases)
    if not names:
        raise MedsegError(f"{data}: no case holds a mask; put {cases[0].id}/segmentations/<name>.nii.gz there")
    labels = select(choose(names, config.labels), config.structures)
    settings = {k: v for k, v in as_dict(config).items() if k != "workers"} | {"names": sorted(labels.values())}
    plan = _Plan(labels, _spacing(cases, out, config), config.missing)
    from_first(lambda: None if is_cache(out) else _write_dataset(out, plan, {}))
    from_first(partial(_forget_lost, out))
    pool = processes(config.workers) if executor is None and config.workers > 1 else nullcontext(executor)
    with pool as chosen:
        outcome = for_each(cases, partial(_prepare_case, out=out, plan=plan), out=out, config=settings, executor=chosen)
    failed = dict(outcome.failed)
    from_first(lambda: _write_dataset(out, plan, {"failed": failed, **_summary(cases, outcome, out)}))
    return outcome


def _refuse_others(out: Path) -> None:
    if out.is_dir() and any(out.iterdir()) and not is_cache(out):
        raise MedsegError(f"{out} exists and is no cache of `prepare`; give a new folder")


def _forget_lost(out: Path) -> None:
    """What the journal calls done and the disk cannot give is done again."""
    lost = set()
    for name, _ in answers(out):
        try:
            arrays = Arrays(out / name)
            for array in arrays:
                arrays[array]
        except MedsegError:
            lost.add(name)
    if lost:
        log.warning("%s: damaged and prepared again: %s", out, ", ".join(sorted(lost)))
        forget(out, lost)


def _prepare_case(case: Case, *, out: Path, plan: _Plan) -> Mapping[str, Any]:
    """One case into `out/<id>`."""
    ct = read_volume(case.files["ct"])
    if ct.voxels.dtype.kind == "f" and not np.isfinite(ct.voxels).all():
        raise MedsegError(f"{case.files['ct']} holds voxels that are no numbers (NaN or infinite); export it again")
    masks = masks_of(case)
    if not masks:
        raise MedsegError(f"{case.files['segmentations']} holds no masks; put <name>.nii.gz there, or remove the case")
    files = {label: masks[name] for label, name in plan.labels.items() if name in masks}
    joined = join_masks(files, ct.grid)
    grid = ct.grid.oriented(ORIENTATION, plan.spacing_mm)
    arrays = {"image": np.asfortranarray(whole_hu(resample(ct, grid).voxels))}
    for number, layer in enumerate(joined.layers, 1):
        name = "label" if number == 1 else f"label{number}"
        arrays[name] = np.asfortranarray(resample(Volume(layer, ct.affine), grid, how="label").voxels)
    arrays["places"] = places_of([array for name, array in arrays.items() if name.startswith("label")])
    annotated = sorted(files) if plan.missing == "ignore" else None
    where = {"affine": grid.affine.tolist(), "spacing_mm": list(grid.spacing_mm)}
    about = _about(case, ct, joined) | where | {"annotated": annotated}
    write_arrays(out / case.id, arrays, about)
    return {"structures": sum(num > 0 for num in joined.voxels.values()), "overlaps": len(joined.overlaps)}


def whole_hu(values: np.ndarray) -> np.ndarray:
    """Intensities as they are stored: whole numbers, int16; what lies beyond is cut."""
    limits = np.iinfo(np.int16)
    return np.clip(np.rint(values), limits.min, limits.max).astype(np.int16)


def is_cache(folder: Path) -> bool:
    """Whether `prepare` has worked there."""
    return (Path(folder) / DATASET).is_file()


def read_cohort(folder: Path) -> Cohort:
    """What `prepare` left in a folder.

    Raises:
        MedsegError: nothing, a cohort that was not finished, or one of a newer medseg.
    """
    file = Path(folder) / DATASET
    content = _read_dataset(file)
    if "cases" not in content:
        raise MedsegError(f"{folder} was not prepared to the end; run the same `prepare` again, it goes on")
    cases = []
    try:
        for name in content["cases"]:
            about = Arrays(file.parent / name).about
            files = {"arrays": file.parent / name}
            cases.append(Case(id=name, files=files, group=about["group"], split=about["split"]))
        return Cohort(
            folder=file.parent,
            labels={int(label): name for label, name in content["labels"].items()},
            spacing_mm=content["spacing_mm"],
            missing=content["missing"],
            cases=tuple(cases),
            overlap=content["overlap"],
            failed=content["failed"],
        )
    except (ValueError, KeyError, TypeError, AttributeError):
        raise _damaged(file) from None


def _spacing(cases: Sequence[Case], out: Path, config: PrepareConfig) -> tuple[float, float, float]:
    """The setting, else what the cache was begun with, else the median over the headers."""
    if config.spacing_mm:
        return config.spacing_mm
    if is_cache(out):
        return _read_dataset(out / DATASET)["spacing_mm"]
    found, wrong = [], []
    for case in track(cases, "Reading headers"):
        try:
            found.append(read_grid(case.files["ct"]).oriented(ORIENTATION).spacing_mm)
        except MedsegError as error:
            wrong.append(str(error))
    if not found:
        raise MedsegError(wrong[0] if len(wrong) == 1 else f"none of {len(wrong)} scans can be read; first: {wrong[0]}")
    x, y, z = np.round(np.median(found, axis=0), 4).tolist()
    return x, y, z


def _about(case: Case, ct: Volume, joined: Joined) -> dict[str, Any]:
    shared = np.count_nonzero(joined.layers[1]) if len(joined.layers) > 1 else 0
    return {
        "case": case.id,
        "group": case.group,
        "split": case.split,
        "source": {
            "shape": list(ct.grid.shape),
            "affine": ct.affine.tolist(),
            "orientation": ct.orientation,
            "spacing_mm": list(ct.spacing_mm),
            "bytes": case.files["ct"].stat().st_size,
        },
        "voxels": {str(label): num for label, num in joined.voxels.items()},
        "overlaps": [[a, b, num] for (a, b), num in sorted(joined.overlaps.items())],
        "labelled": int(np.count_nonzero(joined.layers[0])),
        "shared": int(shared),
    }


def _summary(cases: Sequence[Case], outcome: Outcome, out: Path) -> dict[str, Any]:
    """What the cases together say; `overlap` is the share of the labelled voxels that lie in several structures."""
    good = [case for case in cases if case.id not in outcome.failed]
    abouts = [Arrays(out / case.id).about for case in good]
    for case, about in zip(good, abouts, strict=True):
        if about["source"]["bytes"] != case.files["ct"].stat().st_size:
            raise MedsegError(f"{out} holds another {case.id} than {case.files['ct']}; prepare into another folder")
    labelled, shared = (sum(about[what] for about in abouts) for what in ("labelled", "shared"))
    pairs: Counter[tuple[int, int]] = Counter()
    for about in abouts:
        pairs.update({(a, b): num for a, b, num in about["overlaps"]})
    return {
        "cases": [case.id for case in good],
        "overlap": shared / max(labelled, 1),
        "overlaps": [[a, b, num] for (a, b), num in pairs.most_common()],
    }


def _write_dataset(out: Path, plan: _Plan, more: Mapping[str, Any]) -> None:
    content = {
        "format": FORMAT,
        "labels": {str(label): name for label, name in plan.labels.items()},
        "spacing_mm": list(plan.spacing_mm),
        "missing": plan.missing,
        **more,
    }
    write_text(out / DATASET, json.dumps(content, indent=1) + "\n")


def _read_dataset(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        if content["format"] > FORMAT:
            newer = f"{file.parent} was prepared by a newer medseg"
            raise MedsegError(f"{newer}; update medseg-totalseg, or prepare it again")
        return {**content, "spacing_mm": tuple(map(float, content["spacing_mm"]))}
    except OSError:
        raise MedsegError(f"{file.parent} is no prepared cohort (no {file.name}); `prepare` makes one") from None
    except (ValueError, KeyError, TypeError, RecursionError):
        raise _damaged(file) from None


def _damaged(file: Path) -> MedsegError:
    return MedsegError(f"{file} or a file of its cases is damaged; prepare the cohort again, into a new folder")
