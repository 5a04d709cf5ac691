"""The slices of a cohort as the networks see them: cut out, at one pixel size, 0 to 1, packed for training.

Axes: T frames, h w the window.
"""

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from medseg_cardiac.dataset import Patient, Plane, discover
from medseg_cardiac.phases import find_phases, find_shared_phases
from medseg_cardiac.planes import Cine, read_cine, read_head, read_mask
from medseg_cardiac.settings import DataConfig
from medseg_cardiac.window import Window, window_about, window_through
from medseg_core.cases import Case, read_split, split_cases
from medseg_core.cohort import for_each
from medseg_core.errors import MedsegError
from medseg_core.store import Arrays, write_arrays

ROLES = ("myo", "lv_ed", "lv_es", "mi")  # masks on the cine's grid, in the order of a slice's layers
LGE_ROLES = ("lge_myo", "lge_mi")

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Slice:
    """One packed slice: where its arrays lie, and what is known of it.

    Args:
        case, name: whose, and which.
        about: ed, es, and the roles that it has.
    """

    arrays: Arrays
    case: str
    name: str
    about: Mapping[str, Any]

    @property
    def frames(self) -> np.ndarray:
        """(T, h, w) float16, 0 to 1."""
        return self.arrays[f"cine-{self.name}"]

    @property
    def lge(self) -> np.ndarray:
        """(h, w) float16, 0 to 1, on the cine's window by geometry alone."""
        return self.arrays[f"lge-{self.name}"]

    def mask(self, role: str) -> np.ndarray:
        """(h, w) bool; nothing where the slice has no such mask."""
        layer = (*ROLES, *LGE_ROLES).index(role)
        return self.arrays[f"masks-{self.name}"][layer] > 0

    def has(self, *roles: str) -> bool:
        """Whether all of these are there."""
        return set(roles) <= set(self.about["has"])


@dataclass(frozen=True)
class Seen:
    """A plane as it is read: the cine, its masks, and its window.

    Args:
        frames: (T, h, w) float32, 0 to 1.
        masks: (h, w) bool by role.
    """

    plane: Plane
    cine: Cine
    window: Window
    frames: np.ndarray
    masks: Mapping[str, np.ndarray]
    ed: int
    es: int


def see(plane: Plane, *, pixel_mm: float, size: int, intensity: Mapping[str, Any], axes: str = "auto") -> Seen:
    """Reads a plane into its window: about the myocardium, else the pool, else the middle.

    ED and ES are those of the plane, else found in it alone (`phases.find_phases`); see `with_phases`.

    Raises:
        MedsegError: unreadable, a single frame, a mask on another grid, an empty myocardium, no such frame.
    """
    cine = read_cine(plane.places["cine"], axes=axes)
    shape = cine.frames.shape[1:]
    masks = {role: read_mask(plane.places[role], shape) for role in ROLES if role in plane.places}
    if "myo" in masks and not masks["myo"].any():
        raise MedsegError(f"{plane.places['myo'].path}: the myocardium of {plane.name} is empty; draw it")
    ed, es = plane.ed, plane.es
    if ed is None or es is None:
        found = find_phases(cine.frames, masks.get("myo"))
        ed, es = found[0] if ed is None else ed, found[1] if es is None else es
    if max(ed, es) >= len(cine.frames):
        last = len(cine.frames) - 1
        raise MedsegError(f"{plane.name} has no frame {max(ed, es)}; they are counted from 0 to {last}")
    if (cine.frames[ed] == cine.frames[es]).all():
        raise MedsegError(f"ED and ES of {plane.name}, frames {ed} and {es}, are equal, so nothing moves; give others")
    middle = next((masks[role] for role in ("myo", "lv_ed") if role in masks), None)
    centre = (np.array(shape) - 1) / 2 if middle is None else np.argwhere(middle).mean(0)
    window = window_about(centre, cine.spacing_mm, pixel_mm=pixel_mm, size=size)
    frames = normalised(window.take(cine.frames), cine.frames, intensity)
    taken = {role: window.take_mask(mask) for role, mask in masks.items()}
    if "myo" in taken and not taken["myo"].any():
        num = int(masks["myo"].sum())
        raise MedsegError(
            f"{plane.places['myo'].path}: {num} pixels of myocardium in {plane.name} vanish on pixels of {pixel_mm:g} "
            "mm; draw the whole wall"
        )
    return Seen(plane, cine, window, frames, taken, ed, es)


def with_phases(planes: Sequence[Plane], *, axes: str = "auto") -> list[Plane]:
    """Planes of one patient; where no case list gives ED and ES, they are found once, by the blood of all slices.

    Slices that share no phases, such as those of different lengths, stay as they are: `see` looks at each alone.
    """
    if all(plane.ed is not None and plane.es is not None for plane in planes):
        return list(planes)
    cines, myos = [], []
    for plane in planes:
        try:
            cine = read_cine(plane.places["cine"], axes=axes)
            myo = read_mask(plane.places["myo"], cine.frames.shape[1:]) if "myo" in plane.places else np.zeros(0)
        except MedsegError:  # told where the slice is used
            continue
        if myo.any():
            cines.append(cine.frames)
            myos.append(myo)
    try:
        ed, es = find_shared_phases(cines, myos)
    except MedsegError:
        return list(planes)
    return [replace(p, ed=ed if p.ed is None else p.ed, es=es if p.es is None else p.es) for p in planes]


def normalised(values: np.ndarray, whole: np.ndarray, intensity: Mapping[str, Any]) -> np.ndarray:
    """Values between two percentiles of the whole sequence as 0 to 1, cut there; one outlier moves nothing."""
    low, high = np.percentile(whole, intensity["percentiles"])
    return np.clip((values - low) / max(high - low, 1e-6), 0, 1).astype(np.float32)


def pack(data: Path, out: Path, config: DataConfig, *, needs: Sequence[str] = ()) -> list[Slice]:
    """Packs every slice of a data folder below `out`, which goes on where it was; a bad slice costs only itself.

    Args:
        needs: roles that a slice must have besides its cine; those without are passed over and counted.

    Raises:
        MedsegError: no patients, or no slice that has what is needed.
    """
    patients = [patient for patient in discover(data, axes=config.axes) if patient.planes]
    if not patients:
        raise MedsegError(f"{data} holds no cine that can be read; `medseg cardiac check {data}` says why")
    pixel_mm = config.pixel_mm or _median_pixel(patients, config.axes)
    cases = [Case(patient.id, {}) for patient in patients]
    by_id = {patient.id: patient for patient in patients}
    how = {"pixel_mm": pixel_mm, "size": config.size, "intensity": {"percentiles": list(config.percentiles)}}
    work = partial(_pack_patient, by_id=by_id, out=out, axes=config.axes, **how)
    outcome = for_each(cases, work, out=out, config={**how, "axes": config.axes})
    for case, why in outcome.failed.items():
        log.warning("left out: %s: %s", case, why)
    slices = [one for case in cases if case.id not in outcome.failed for one in slices_of(out / case.id)]
    if not slices:
        case, why = next(iter(outcome.failed.items()))
        raise MedsegError(f"no slice of {data} can be used; first {case}: {why}")
    usable = [one for one in slices if one.has(*needs)]
    if len(usable) < len(slices):
        log.info("%d of %d slices have %s", len(usable), len(slices), " and ".join(needs))
    if not usable:
        raise MedsegError(
            f"no slice of {data} has {' and '.join(('cine', *needs))}; `medseg cardiac check {data}` tells"
        )
    return usable


def slices_of(folder: Path) -> list[Slice]:
    """The packed slices of one patient."""
    arrays = Arrays(folder)
    return [Slice(arrays, arrays.about["case"], about["name"], about) for about in arrays.about["slices"]]


def divided(slices: Sequence[Slice], splits: Path | None, config: DataConfig) -> dict[str, list[Slice]]:
    """Slices by split: those of a split file, else drawn by patient with `val` held out.

    Raises:
        MedsegError: a split file that does not know a patient, or nothing to train on.
    """
    cases = [Case(name, {}) for name in dict.fromkeys(one.case for one in slices)]
    cases = read_split(splits, cases) if splits else split_cases(cases, val=config.val, seed=config.seed)
    split = {case.id: case.split for case in cases}
    parts: dict[str, list[Slice]] = {"train": [], "val": [], "test": []}
    for one in slices:
        parts[split[one.case]].append(one)
    if not parts["train"]:
        raise MedsegError("no patient with what is needed is in the training split; put some there with --splits")
    return parts


def identity(parts: Mapping[str, Sequence[Slice]]) -> str:
    """Another text for other slices to train and validate on."""
    facts = [(part, one.case, one.name, dict(one.about)) for part in ("train", "val") for one in parts[part]]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _median_pixel(patients: Sequence[Patient], axes: str) -> float:
    sizes, wrong = [], None
    for place in (plane.places["cine"] for patient in patients for plane in patient.planes):
        try:
            sizes.append(np.mean(read_head(place, axes=axes).spacing_mm))
        except MedsegError as error:  # told again where its slice is left out
            wrong = wrong or error
    if not sizes:
        raise wrong or MedsegError("no cine")
    return round(float(np.median(sizes)), 4)


def _pack_patient(case: Case, *, by_id: Mapping[str, Patient], out: Path, axes: str, **how: Any) -> Mapping[str, Any]:
    arrays: dict[str, np.ndarray] = {}
    abouts, bad = [], []
    for plane in with_phases(by_id[case.id].planes, axes=axes):
        try:
            seen = see(plane, axes=axes, **how)
        except MedsegError as error:
            log.warning("left out: %s %s: %s", case.id, plane.name, error)
            bad.append(f"{plane.name}: {error}")
            continue
        try:
            lge = see_lge(seen, intensity=how["intensity"])
        except MedsegError as error:
            log.warning("without its LGE: %s %s: %s", case.id, plane.name, error)
            bad.append(f"LGE of {plane.name}: {error}")
            lge = {}
        masks = {**seen.masks, **{role: lge[role] for role in LGE_ROLES if role in lge}}
        empty = np.zeros(seen.frames.shape[1:], bool)
        arrays[f"cine-{plane.name}"] = seen.frames.astype(np.float16)
        arrays[f"masks-{plane.name}"] = np.stack([masks.get(role, empty) for role in (*ROLES, *LGE_ROLES)]).astype("u1")
        if "lge" in lge:
            arrays[f"lge-{plane.name}"] = lge["lge"].astype(np.float16)
        abouts.append({"name": plane.name, "ed": seen.ed, "es": seen.es, "has": sorted({"cine", *masks, *lge})})
    if not abouts:
        raise MedsegError(f"none of its slices can be used; first {bad[0]}")
    write_arrays(out / case.id, arrays, {"case": case.id, "slices": abouts, "pixel_mm": how["pixel_mm"]})
    return {"slices": len(abouts), "left_out": bad}


def see_lge(seen: Seen, *, intensity: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """LGE and its masks in the cine's window, where the plane has them."""
    places = seen.plane.places
    if "lge" not in places:
        return {}
    lge = read_cine(places["lge"])
    shapes = seen.cine.frames.shape[1:], lge.frames.shape[1:]
    spacings = seen.cine.spacing_mm, lge.spacing_mm
    window = window_through(seen.window, seen.cine.affine, lge.affine, shapes=shapes, spacings_mm=spacings)
    found = {role: window.take_mask(read_mask(places[role], shapes[1])) for role in LGE_ROLES if role in places}
    return {"lge": normalised(window.take(lge.frames[0]), lge.frames[0], intensity), **found}
