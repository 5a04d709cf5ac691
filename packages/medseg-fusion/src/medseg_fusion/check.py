"""All that is wrong with patients, before any work is done on them."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medseg_core.cases import SPLITS, Case, read_split
from medseg_core.errors import MedsegError
from medseg_core.progress import track
from medseg_core.runs import aligned
from medseg_fusion.leaks import Slices
from medseg_fusion.patients import AIR_HU, BITS, COVERED, Patient, doubt_of_suv, read_patient
from medseg_fusion.prepare import facts
from medseg_fusion.sources import Found, find_patients

Finding = dict[str, str]
Told = Iterator[tuple[str, str]]
MOST = 10  # pairs of patients that are named
HEAD = ("patient", "split", "unit", "size", "CT", "PET", "PET covers", "slices with tumour", "tumour")


@dataclass(frozen=True)
class Checked:
    """What `check` found.

    Args:
        patients: a row each: id, split, unit, size, spacing (mm, or pixels), ct and pet (lowest and highest), covered
            (share of the CT where PET is), and with a mask tumour_slices, tumour_share and, in mm, tumour_ml.
        findings: `{"case", "severity", "text"}`: "error" for what is refused, "warning" for what nobody should trust
            unseen, "note" for what is worth knowing. The case "" is the whole cohort.
    """

    patients: tuple[dict[str, Any], ...]
    findings: tuple[Finding, ...]

    @property
    def bad(self) -> bool:
        """Whether something is an error."""
        return any(finding["severity"] == "error" for finding in self.findings)

    def table(self, *, most: int = 40) -> str:
        """The patients as text, a line each below their heads, `most` of them."""
        lines = [_line(row) for row in self.patients[:most]]
        more = [f"and {len(self.patients) - most} more"] * (len(self.patients) > most)
        return "\n".join([*aligned({title: [line[k] for line in lines] for k, title in enumerate(HEAD)}), *more])


def check(data: Path, *, splits: Path | None = None) -> Checked:
    """Reads every patient as `prepare` does, and says what is there and what is wrong with it.

    Args:
        data: see `sources.find_patients`.
        splits: a split that the patients are to be held against.

    Raises:
        MedsegError: nothing there, or a patient in two splits.
    """
    found = find_patients(data)
    cases = read_split(splits, found.cases) if splits else found.cases
    rows, findings, slices = [], [_finding(name, "error", why) for name, why in found.refused.items()], Slices()
    for case in track(cases, "Checking patients"):
        try:
            patient = read_patient(case)
        except MedsegError as error:
            findings.append(_finding(case.id, "error", str(error)))
            continue
        slices.add(patient)
        rows.append({"id": case.id, "split": case.split, **facts(patient), "covered": patient.covered})
        findings += [_finding(case.id, severity, text) for severity, text in _of_patient(patient)]
    findings += [_finding("", severity, text) for severity, text in _of_leaks(slices, cases)]
    findings += [_finding("", severity, text) for severity, text in _of_all(rows, found)]
    return Checked(tuple(rows), tuple(findings))


def _finding(case: str, severity: str, text: str) -> Finding:
    return {"case": case, "severity": severity, "text": text}


def _of_patient(patient: Patient) -> Told:
    if patient.covered < COVERED:
        yield "warning", f"PET covers {patient.covered:.0%} of the CT; beyond it PET is taken as 0"
    if patient.unit != BITS and patient.ct.min() > AIR_HU:
        yield "warning", f"the CT has nothing below {patient.ct.min():g}, so no air; is it in HU?"
    if doubt := doubt_of_suv(patient):
        yield "warning", doubt
    if patient.label is not None and not patient.label.any():
        yield "note", "the mask is empty: counted as a patient without tumour, never as a Dice of 1"


def _of_leaks(slices: Slices, cases: Sequence[Case]) -> Told:
    """Nearly equal slices of two patients: an error where the two are in different splits."""
    split = {case.id: case.split for case in cases}
    pairs = slices.alike()
    if len(pairs) > MOST:
        yield "note", f"{len(pairs)} pairs of patients have slices that are nearly the same; {MOST} of them are named"
    for (one, k), (other, n) in sorted(pairs, key=lambda pair: split[pair[0][0]] == split[pair[1][0]])[:MOST]:
        apart = split[one] != split[other]
        where = f"{one} in {split[one]} and {n} of {other} in {split[other]}" if apart else f"{one} and {n} of {other}"
        fix = "are they one patient? keep them in one split, or remove one"
        yield "error" if apart else "warning", f"nearly the same picture: slice {k} of {where}; {fix}"


def _of_all(rows: Sequence[Mapping[str, Any]], found: Found) -> Told:
    """What is said once for the whole cohort."""
    units = sorted({row["unit"] for row in rows})
    if len(units) > 1:
        yield "error", f"patients in {' and in '.join(units)}; a network learns one of them: prepare them apart"
    if units == [BITS]:
        yield "note", "8 bits per pixel: HU and SUV are lost, so thresholds of SUV, TLG and mm cannot be told"
    bare = len(found.cases) - sum("label" in case.files for case in found.cases)
    if bare:
        yield "note", f"{bare} of {len(found.cases)} patients have no mask: good for predict, not for train"
    for split in SPLITS:
        shares = [row["tumour_share"] for row in rows if row["split"] == split and "tumour_share" in row]
        if shares:
            name = f"{split}: " if split else ""
            yield (
                "note",
                f"{name}{len(shares)} patients with masks, tumour in {sum(shares) / len(shares):.2%} of voxels",
            )


def _line(row: Mapping[str, Any]) -> tuple[str, ...]:
    (ct, pet), whole = (row["ct"], row["pet"]), row["unit"] == BITS
    ranges = (f"{ct[0]:.0f} to {ct[1]:.0f}", f"{pet[0]:.{0 if whole else 1}f} to {pet[1]:.{0 if whole else 1}f}")
    size = "x".join(map(str, row["size"]))
    tumour = f"{row['tumour_ml']:.3g} ml" if "tumour_ml" in row else f"{row.get('tumour_share', 0):.2%}"
    has = "tumour_slices" in row
    marked = (f"{row['tumour_slices']} of {row['size'][2]}", tumour) if has else ("no mask", "-")
    return (row["id"], row["split"] or "-", row["unit"], size, *ranges, f"{row['covered']:.0%}", *marked)
