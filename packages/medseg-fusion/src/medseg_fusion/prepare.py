"""From patients as they lie to a cache: CT, PET and mask of each on one grid, read slice by slice.

CACHE/cases.json             patients, what each holds, and splits that a source brings along
CACHE/journal.jsonl          what is done; the same call goes on where it was
CACHE/<patient>/ct.npy       int16 HU (A, B, S), or uint8; `[..., k]` is one read from the disk
CACHE/<patient>/pet.npy      float32 SUV, or uint8
CACHE/<patient>/label.npy    uint8, 1 where tumour is; missing where there is no mask
CACHE/<patient>/about.json   unit, spacing, affine, the CT's own grid, names of the slices
"""

import logging
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from medseg_core.cases import Case, read_cases, write_cases
from medseg_core.cohort import Outcome, for_each, forget, processes, read_journal
from medseg_core.config import as_dict
from medseg_core.distributed import from_first
from medseg_core.errors import MedsegError
from medseg_core.store import Arrays, write_arrays
from medseg_fusion.patients import COVERED, HU_SUV, Patient, doubt_of_suv, read_patient
from medseg_fusion.settings import PrepareConfig
from medseg_fusion.sources import CASES, find_patients

log = logging.getLogger(__name__)


def prepare(data: Path, out: Path, config: PrepareConfig) -> Outcome:
    """Writes a cache; finished patients are skipped, and a bad one costs only itself.

    Args:
        data: see `sources.find_patients`.
        out: the cache, new or begun with the same settings.

    Raises:
        MedsegError: no patients, or a folder that holds something else.
    """
    out = Path(out)
    found = find_patients(data)
    from_first(partial(_refuse_others, out))
    settings = {name: value for name, value in as_dict(config).items() if name != "workers"}
    from_first(partial(_forget_damaged, out))
    work = partial(_write, out=out, config=config)
    with processes(config.workers) if config.workers > 1 else nullcontext() as pool:
        outcome = for_each(found.cases, work, out=out, config=settings, executor=pool, again=True)
    from_first(partial(_finish, out, found.cases))
    return replace(outcome, failed={**found.refused, **outcome.failed})


def read_cohort(cache: Path) -> list[Case]:
    """The patients of a cache, with the file `arrays` (a folder for `medseg_core.store.Arrays`).

    Raises:
        MedsegError: no cache, or one without patients.
    """
    if not (Path(cache) / CASES).is_file():
        raw = Path(cache).is_dir() and any(Path(cache).iterdir()) and not list(Path(cache).glob("journal*.jsonl"))
        make = f"{cache} --out cache" if raw else f"DATA --out {cache}"
        raise MedsegError(f"{cache} is no cache of prepared patients; make one: medseg fusion prepare {make}")
    cases = read_cases(Path(cache) / CASES)
    if any("arrays" not in case.files for case in cases):
        make = f"medseg fusion prepare {cache} --out cache"
        raise MedsegError(f"{cache} lists patients and is no cache; make one: {make}")
    return cases


def facts(patient: Patient) -> dict[str, Any]:
    """What a table says of a patient; `tumour_slices` and `tumour_ml` where there is a mask, ml where there are mm."""
    told: dict[str, Any] = {"unit": patient.unit, "size": list(patient.ct.shape), "spacing": list(patient.spacing)}
    told |= {
        name: [float(array.min()), float(array.max())] for name, array in (("ct", patient.ct), ("pet", patient.pet))
    }
    if patient.label is not None:
        told["tumour_slices"] = int(patient.label.any((0, 1)).sum())
        told["tumour_share"] = float(patient.label.mean())
        if patient.unit == HU_SUV:
            told["tumour_ml"] = float(patient.label.sum() * np.prod(patient.spacing) / 1000)
    return told


def _refuse_others(out: Path) -> None:
    if out.is_dir() and any(out.iterdir()) and not list(out.glob("journal*.jsonl")):
        raise MedsegError(f"{out} exists and is no cache of `prepare`; give a new folder")


def _forget_damaged(out: Path) -> None:
    """Patients whose arrays were removed or cut short are prepared again."""
    damaged = []
    for name in read_journal(out):
        try:
            arrays = Arrays(out / name)
            for array in arrays.names:
                arrays[array]
        except MedsegError as error:
            log.warning("%s: %s; done again", name, error)
            damaged.append(name)
    if damaged:
        forget(out, damaged)


def _write(case: Case, *, out: Path, config: PrepareConfig) -> Mapping[str, Any]:
    patient = read_patient(case, spacing_mm=config.spacing_mm)
    if patient.covered < COVERED:
        log.warning("%s: PET covers %.0f %% of the CT", case.id, 100 * patient.covered)
    if doubt := doubt_of_suv(patient):
        log.warning("%s: %s", case.id, doubt)
    arrays = {"ct": patient.ct, "pet": patient.pet}
    arrays |= {} if patient.label is None else {"label": patient.label}
    where: dict[str, Any] = {"spacing": list(patient.spacing), "slices": list(patient.slices)}
    if patient.affine is not None and patient.home is not None:
        home = {"shape": list(patient.home.shape), "affine": patient.home.affine.tolist()}
        where |= {"affine": patient.affine.tolist(), "home": home}
    about = {"unit": patient.unit, "covered": patient.covered, **where}
    write_arrays(out / case.id, {name: np.asfortranarray(array) for name, array in arrays.items()}, about)
    return facts(patient)


def _finish(out: Path, cases: tuple[Case, ...]) -> None:
    """The list of all patients that are done, of this call and of those before it."""
    done = read_journal(out)
    listed = {case.id: case for case in (read_cases(out / CASES) if (out / CASES).is_file() else [])}
    for case in cases:
        if case.id in done:
            files = {"arrays": out / case.id}
            listed[case.id] = Case(case.id, files, group=case.group, split=case.split, notes=dict(done[case.id]))
    if listed:
        write_cases(out / CASES, list(listed.values()))
