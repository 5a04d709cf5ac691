"""From cine DICOM and contours to the layout that all other commands read.

OUT/images/cmr/<case>/slice_NN.nii.gz                     (H, W, 1, T), H along the columns' count, W along the rows'
OUT/labels/cmr_Myo_mask/<case>/slice_NN.nii.gz            epicardium minus endocardium at ED
OUT/labels/cmr_LV_mask/<case>_{ED,ES}/slice_NN.nii.gz     endocardium, filled
OUT/cases.json                                            ED and ES of each slice
OUT/journal.jsonl                                         what is done; the same call goes on where it was
"""

import logging
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from medseg_cardiac.contours import Drawn, find_contours, match_frames, rasterise, read_contour
from medseg_cardiac.dataset import CASES, CINE
from medseg_cardiac.sources import CONTOURS, find_patients
from medseg_core.archive import unpacked
from medseg_core.cases import Case, write_cases
from medseg_core.cohort import JOURNAL, Outcome, for_each, read_journal
from medseg_core.dicom_cine import CinePlane, read_cine
from medseg_core.distributed import from_first
from medseg_core.errors import MedsegError
from medseg_core.io import write_series, write_volume
from medseg_core.volume import Series, Volume

OUTSIDE = 0.02  # of the endocardium beyond the epicardium, from where on one of the contours is no good
FOLDERS = {"myo": "labels/cmr_Myo_mask/{}", "lv_ed": "labels/cmr_LV_mask/{}_ED", "lv_es": "labels/cmr_LV_mask/{}_ES"}

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Slice:
    """What becomes of one plane: frames in their place, (H, W) masks by role, and the frames of ED and ES."""

    name: str
    series: Series
    masks: Mapping[str, np.ndarray] = field(default_factory=dict)
    ed: int | None = None
    es: int | None = None


def prepare(
    source: Path,
    out: Path,
    *,
    contours: Path | None = None,
    series: str | None = None,
    executor: Executor | None = None,
) -> Outcome:
    """Writes the slices of each patient's cine, and masks of the contours, so that `discover` finds them.

    Slices are numbered from the lowest along their normal, frames by trigger time. Each file has the affine of its
    slice; slices may be uneven, and each is as thick as half the way to its neighbours on both sides, so that areas
    times thickness add up to the volume; a slice alone is as thick as its header says. ED is the frame with an inner
    and an outer contour (of several the one with the largest pool), ES the one with an inner contour only (of several
    the smallest). Finished patients are skipped, and a bad one costs only itself.

    Args:
        source, contours: see `sources.find_patients`.
        out: new, or begun by the same call.
        series: the SeriesInstanceUID to take where there are several, or "all" to take them as one.
        executor: runs the patients, any of `concurrent.futures`.

    Raises:
        MedsegError: no DICOM, or a folder `out` of something else.
    """
    out = Path(out)
    from_first(partial(_refuse_others, out))
    cases = find_patients(source, contours=contours)
    without = [case.id for case in cases if CONTOURS not in case.files]
    if contours is not None and without:
        log.warning("%s: no contours for %s", contours, ", ".join(without))
    config = {"contours": contours is not None, "series": series or ""}
    outcome = for_each(cases, partial(_prepare_case, out=out, series=series), out=out, config=config, executor=executor)
    from_first(partial(_write_list, out))
    return outcome


def _refuse_others(out: Path) -> None:
    if out.is_dir() and any(out.iterdir()) and not (out / JOURNAL).is_file():
        raise MedsegError(f"{out} exists and is not of `prepare`; give a new folder")


def _prepare_case(case: Case, *, out: Path, series: str | None) -> Mapping[str, Any]:
    """All of a patient is read before anything is written."""
    with unpacked(case.files["dicom"]) as folder:
        try:
            planes = read_cine(folder, series=series)
        except MedsegError as error:
            fix = ("by series=UID, or name one of its files", "by --series UID, or all as one by --series all")
            raise MedsegError(str(error).replace(*fix)) from None
    if planes[0].series.frames.shape[0] < 2:
        raise MedsegError(f"{case.files['dicom']} has one frame for each slice, so nothing moves; give a cine")
    drawn = _drawn(case, planes)
    slices = [
        _slice(f"slice_{k:02d}", plane, drawn, step_mm)
        for k, (plane, step_mm) in enumerate(zip(planes, _steps_mm(planes), strict=True))
    ]
    for each in slices:
        write_series(each.series, out / CINE / case.id / f"{each.name}.nii.gz")
        for role, mask in each.masks.items():
            path = out / FOLDERS[role].format(case.id) / f"{each.name}.nii.gz"
            write_volume(Volume(mask[:, :, None].astype(np.uint8), each.series.affine), path)
    phases = {phase: {s.name: t for s in slices if (t := getattr(s, phase)) is not None} for phase in ("ed", "es")}
    masks = {role: sum(role in s.masks for s in slices) for role in FOLDERS}
    return {"slices": len(slices), "frames": len(slices[0].series.frames), **masks, **phases}


def _drawn(case: Case, planes: Sequence[CinePlane]) -> Mapping[str, Drawn]:
    """Contours by name of frame."""
    if CONTOURS not in case.files:
        return {}
    names = [name for plane in planes for name in plane.names]
    if len(set(names)) < len(names):
        raise MedsegError(
            f"{case.files['dicom']} has {len(names)} frames in {len(set(names))} names, so nobody knows where contours "
            f"belong; leave {case.files[CONTOURS]} out, or split it into a file per frame"
        )
    found = find_contours(case.files[CONTOURS])
    matched = match_frames(found, names)
    if not matched:
        raise MedsegError(
            f"{case.files[CONTOURS]} holds contours of {len(found)} frames such as {next(iter(found))}, and no file of "
            f"{case.files['dicom']} has such a number; its first is {names[0]}"
        )
    lost = sorted({each.frame for each in found.values()} - {each.frame for each in matched.values()})
    if lost:
        log.warning("%s: contours of %d frames that are not there, %s first", case.id, len(lost), lost[0])
    return matched


def _slice(name: str, plane: CinePlane, drawn: Mapping[str, Drawn], step_mm: float) -> _Slice:
    affine = plane.series.affine.copy()
    affine[:3, 2] *= step_mm / np.linalg.norm(affine[:3, 2])
    series = Series(plane.series.frames, affine, plane.series.times_s)
    pools, walls = {}, {}
    for t, frame in enumerate(plane.names):
        if frame in drawn and drawn[frame].inner:
            pools[t] = _filled(drawn[frame].inner, series)
            if drawn[frame].outer:
                walls[t] = _wall(drawn[frame], pools[t], series)
    return _Slice(name, series, **_phases(pools, walls))


def _phases(pools: Mapping[int, np.ndarray], walls: Mapping[int, np.ndarray]) -> dict[str, Any]:
    """ED, ES and their masks; without an outer contour ED is the larger of two pools."""
    sizes = {t: int(pool.sum()) for t, pool in pools.items()}
    told = walls or (sizes if len(sizes) > 1 else ())
    ed = max(told, key=sizes.__getitem__, default=None)
    es = min((t for t in sizes if t not in walls and t != ed), key=sizes.__getitem__, default=None)
    masks = {} if ed is None else {"lv_ed": pools[ed]}
    masks |= {"myo": walls[ed]} if ed in walls else {}
    masks |= {} if es is None else {"lv_es": pools[es]}
    return {"masks": masks, "ed": ed, "es": es}


def _filled(path: Path, series: Series) -> np.ndarray:
    """The pixels in a contour, on the axes of the file: its first axis counts columns, which contours call x."""
    mask = rasterise(read_contour(path)[:, ::-1], series.frames.shape[1:3])
    if not mask.any():
        raise MedsegError(f"{path} holds no pixel of a picture of {series.frames.shape[1:3]}; is it of this patient?")
    return mask


def _wall(drawn: Drawn, pool: np.ndarray, series: Series) -> np.ndarray:
    assert drawn.outer is not None
    whole = _filled(drawn.outer, series)
    beyond = np.count_nonzero(pool & ~whole) / np.count_nonzero(pool)
    if beyond > OUTSIDE:
        raise MedsegError(
            f"{beyond:.0%} of the area of {drawn.inner} lies outside {drawn.outer.name}; are the two of one frame?"
        )
    return whole & ~pool


def _steps_mm(planes: Sequence[CinePlane]) -> list[float]:
    """How thick a stack each slice stands for: the mean of the ways to its neighbours."""
    first = planes[0].series.affine[:3, 2]
    if len(planes) == 1:
        return [float(np.linalg.norm(first))]
    normal = first / np.linalg.norm(first)
    gaps = np.diff([plane.series.affine[:3, 3] @ normal for plane in planes])
    return [float(np.mean(gaps[max(0, k - 1) : k + 1])) for k in range(len(planes))]


def _write_list(out: Path) -> None:
    """All that is done, by this call and by earlier ones."""
    cases = []
    for name, answer in sorted(read_journal(out).items()):
        files = {"cine": out / CINE / name}
        files |= {role: out / folder.format(name) for role, folder in FOLDERS.items() if answer[role]}
        cases.append(Case(name, files, group=name, notes={"ed": answer["ed"], "es": answer["es"]}))
    if cases:
        write_cases(out / CASES, cases)
