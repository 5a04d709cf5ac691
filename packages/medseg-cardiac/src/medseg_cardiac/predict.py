"""Masks, fields, strain and films of patients, as files."""

import hashlib
import json
import logging
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from medseg_cardiac import pictures
from medseg_cardiac.animation import animate
from medseg_cardiac.contours import outline
from medseg_cardiac.dataset import CINE, Patient, discover, stack_of, write_masks
from medseg_cardiac.itk_fields import write_field
from medseg_cardiac.predictor import NO_PLACE, Found, Predictor
from medseg_cardiac.segments import cavity_of
from medseg_cardiac.settings import PredictConfig
from medseg_cardiac.strain import as_json, joined
from medseg_cardiac.tracking import carried_points
from medseg_core import figures
from medseg_core.cases import Case
from medseg_core.checkpoint import digest
from medseg_core.cohort import JOURNAL, Outcome, clear_journal, for_each, read_journal
from medseg_core.config import as_dict
from medseg_core.distributed import from_first
from medseg_core.errors import MedsegError
from medseg_core.io import case_name, write_text

KEPT = ("images", "labels")  # of a data folder, for what is read

log = logging.getLogger(__name__)


def predict_files(
    patients: Sequence[Patient], run: Path, out: Path, config: PredictConfig, *, overwrite: bool = False
) -> Outcome:
    """Writes what was asked for, of every patient, below `out`; a bad patient or slice costs only itself.

    `<case>.nii.gz` (or `<case>/<slice>.nii.gz`, as the myocardium lies) is the infarct on the grid of the myocardium
    mask, `infarct/<case>.json` and `.png` its mass and its bull's-eye. On request `flow/<case>/<slice>.mha`,
    `strain/<case>.json` and `.png`, `contours/<case>/<slice>.gif` and `lv_es/<case>.nii.gz`. A motion net finds no
    infarct: it writes strain and contours, unless something else was asked for.

    Raises:
        MedsegError: no patient, no such run, or an output folder that holds something else, the inputs among it.
    """
    if not patients:
        raise MedsegError("there is no patient to predict; give a cine and its myocardium, or a data folder")
    by_id = {patient.id: patient for patient in patients}
    inputs = {name: _inputs(patient) for name, patient in by_id.items()}
    from_first(partial(_check_out, Path(out), patients, inputs, overwrite=overwrite))
    predictor = Predictor(run, config=config)
    if overwrite:
        from_first(partial(clear_journal, out))
    wanted = _wanted(predictor)
    weights = digest(run)
    work = partial(_do, by_id=by_id, inputs=inputs, predictor=predictor, out=Path(out), wanted=wanted)
    cases = [Case(patient.id, {}) for patient in patients]
    return for_each(cases, work, out=out, config={**as_dict(config), "weights": weights})


def find_patients(
    data: Path | None,
    cine: Path | None,
    myo: Path | None,
    *,
    slice_index: int | None = None,
    only: Collection[str] | None = None,
    axes: str = "auto",
) -> list[Patient]:
    """The patients of a data folder, or the one of a cine and its myocardium.

    Args:
        slice_index: takes one slice alone, from 0.
        only: ids of the patients to take.

    Raises:
        MedsegError: neither or both, or no such slice.
    """
    if (data is None) == (cine is None) or (cine is None) != (myo is None):
        raise MedsegError("predict takes a data folder, or --cine FILE with --myo FILE, and not both")
    if data is not None and slice_index is not None:
        raise MedsegError("--slice goes with --cine and --myo; of a data folder all slices are predicted")
    if cine is not None and myo is not None:
        patient = stack_of(cine, myo, axes=axes, index=slice_index)
        if slice_index is not None and len(patient.planes) > 1:
            if not 0 <= slice_index < len(patient.planes):
                most = len(patient.planes) - 1
                raise MedsegError(f"{cine} has no slice {slice_index}; --slice counts from 0 to {most}")
            patient = Patient(patient.id, (patient.planes[slice_index],), patient.notes)
        return [patient]
    assert data is not None
    patients = discover(data, axes=axes)
    return [patient for patient in patients if only is None or patient.id in only]


def _wanted(predictor: Predictor) -> set[str]:
    config = predictor.config
    wanted = {name for name in ("flow", "strain", "contours") if getattr(config, name)}
    if not predictor.finds_infarct and not wanted:
        log.info("a motion net finds no infarct: strain and contours are written")
        return {"strain", "contours"}
    return wanted | ({"infarct"} if predictor.finds_infarct else set())


def _check_out(out: Path, patients: Sequence[Patient], inputs: Mapping[str, str], *, overwrite: bool) -> None:
    files = {place.path for patient in patients for plane in patient.planes for place in plane.places.values()}
    kept = {
        folder for path in files for folder in path.parents if folder.name in KEPT and (folder / ".." / CINE).is_dir()
    }
    if any(_is_in(path, out) for path in files) or any(_is_in(out, folder) for folder in kept):
        raise MedsegError(f"{out} is where the data lies that is read; choose another --out")
    if overwrite or not out.is_dir():
        return
    if not (out / JOURNAL).is_file():
        if any(out.iterdir()):
            raise MedsegError(
                f"{out} is not empty and was not begun by predict; choose another --out, or add --overwrite"
            )
        return
    for case, row in read_journal(out).items():
        if case in inputs and row.get("inputs") != inputs[case]:
            raise MedsegError(
                f"{out} holds {case}, predicted from other files or another slice; choose another --out, or add "
                "--overwrite"
            )


def _is_in(path: Path, folder: Path) -> bool:
    return path.resolve().is_relative_to(folder.resolve())


def _inputs(patient: Patient) -> str:
    """Another text for other files, other slices, or ED and ES of another case list."""
    facts = []
    for plane in patient.planes:
        for role in ("cine", "myo"):
            if role in plane.places:
                place = plane.places[role]
                about = place.path.stat()
                facts.append((plane.name, role, place.index, place.path.name, about.st_size, about.st_mtime_ns))
        facts.append((plane.name, plane.ed, plane.es))
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]


def _do(
    case: Case,
    *,
    by_id: Mapping[str, Patient],
    inputs: Mapping[str, str],
    predictor: Predictor,
    out: Path,
    wanted: set[str],
) -> dict[str, Any]:
    found, left_out = predictor.patient(by_id[case.id], track=wanted != {"infarct"})
    told: dict[str, Any] = {
        "slices": len(found),
        "left_out": left_out,
        "folds": sum(one.folds for one in found),
        "inputs": inputs[case.id],
    }
    if "infarct" in wanted:
        told |= _infarct(case.id, found, predictor, out)
    if "flow" in wanted:
        _flow(case.id, found, out)
    if "strain" in wanted:
        told |= _strain(case.id, found, predictor, out)
    if "contours" in wanted:
        _contours(case.id, found, predictor, out)
    return told


def _infarct(case: str, found: Sequence[Found], predictor: Predictor, out: Path) -> dict[str, Any]:
    masks = {k: one.infarct(predictor.config.threshold) for k, one in enumerate(found)}
    _write_masks(masks, found, out / case)
    infarct = predictor.infarct(found)
    about = {"case": case, "orientation": predictor.directions(found).said, **infarct.as_json()}
    write_text(out / "infarct" / f"{case}.json", json.dumps(about, indent=1, allow_nan=False) + "\n")
    values = 100 * infarct.values("transmurality")
    title = f"{case}: transmurality, {100 * infarct.share_of_lv:.0f} % of the LV"
    figures.save_if_possible(pictures.bullseye(values, title=title), out / "infarct" / f"{case}.png")
    return {"infarct_g": _plain(infarct.mass_g), "share_of_lv": _plain(infarct.share_of_lv)}


def _write_masks(masks: Mapping[int, np.ndarray], found: Sequence[Found], out: Path) -> None:
    """On the grid of the myocardium; of an earlier prediction no slice is left."""
    places = [one.seen.plane.places["myo"] for one in found]
    written = write_masks(masks, places, out)
    if written.is_dir():
        kept = {f"{case_name(place.path)}.nii.gz" for place in places}
        for path in written.glob("*.nii.gz"):
            if path.name not in kept:
                path.unlink()


def _flow(case: str, found: Sequence[Found], out: Path) -> None:
    for one in found:
        affine = one.seen.cine.affine
        if affine is None:
            log.warning("%s %s: %s", case, one.seen.plane.name, NO_PLACE)
            affine = np.diag([*one.seen.cine.spacing_mm, 1.0, 1.0])
        write_field(one.flow_home(one.seen.es), affine, out / "flow" / case / f"{one.seen.plane.name}.mha")


def _strain(case: str, found: Sequence[Found], predictor: Predictor, out: Path) -> dict[str, Any]:
    parts = {one.seen.plane.name: one.strain(predictor.pixel_mm) for one in found}
    lengths = {len(part.radial) for part in parts.values()}
    slices = {name: as_json(part) for name, part in parts.items()}
    first = found[0].seen
    about: dict[str, Any] = {"case": case, "ed": first.ed, "es": first.es, "slices": slices}
    if len(lengths) > 1:
        log.warning("%s: slices have %s frames, so they share no curve", case, sorted(lengths))
        write_text(out / "strain" / f"{case}.json", json.dumps(about, indent=1) + "\n")
        return {}
    whole = joined(list(parts.values()))
    times_s = first.cine.times_s
    about |= {"times_s": None if times_s is None else times_s.tolist(), **as_json(whole)}
    write_text(out / "strain" / f"{case}.json", json.dumps(about, indent=1) + "\n")
    figure = pictures.strain_curves(times_s, whole.curves, ed=first.ed, es=first.es, title=f"{case}: strain of the LV")
    figures.save_if_possible(figure, out / "strain" / f"{case}.png")
    return {name: round(value, 4) + 0.0 for name, value in whole.peaks().items()}  # no -0


def _contours(case: str, found: Sequence[Found], predictor: Predictor, out: Path) -> None:
    """Films, a sheet of ED and ES, and the pool at ES on the grid of the myocardium mask."""
    directions = predictor.directions(found)
    tracked, pools = [], {}
    for k, one in enumerate(found):
        seen, flows = one.seen, one.flows
        assert flows is not None
        lines = wall_lines(seen.masks["myo"])
        moved = {name: np.stack([carried_points(line, flow) for flow in flows]) for name, line in lines.items()}
        name = seen.plane.name
        animate(
            seen.frames,
            out / "contours" / case / f"{name}.gif",
            contours=moved,
            directions=directions,
            times_s=seen.cine.times_s,
            marks={seen.ed: "ED", seen.es: "ES"},
        )
        at_es = {key: points[seen.es] for key, points in moved.items()}
        tracked.append(pictures.Tracked(name, seen.frames[seen.ed], seen.frames[seen.es], lines, at_es))
        pools[k] = one.pool_at(seen.es)
    _write_masks(pools, found, out / "lv_es" / case)
    sheet = pictures.contour_sheet(tracked, directions=directions, title=f"{case}: contours carried from ED to ES")
    figures.save_if_possible(sheet, out / "contours" / f"{case}.png")


def wall_lines(myo: np.ndarray) -> dict[str, np.ndarray]:
    """The outer outline of the myocardium, and the inner one where it has a cavity, (P, 2) each."""
    lines = {"epi": _longest(myo | cavity_of(myo))}
    cavity = cavity_of(myo)
    return {"endo": _longest(cavity), **lines} if cavity.any() else lines


def _longest(mask: np.ndarray) -> np.ndarray:
    return max(outline(mask), key=len)


def _plain(value: float) -> float | None:
    return round(value, 4) if np.isfinite(value) else None
