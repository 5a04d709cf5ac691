"""All that is wrong with labels, before any work is done on them."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from medseg_core.errors import MedsegError
from medseg_core.progress import track
from medseg_core.runs import aligned
from medseg_near.prepare import check_window, crop, release, said_of_parts
from medseg_near.settings import PrepareConfig
from medseg_near.shapes import Shape
from medseg_near.sources import Found, find_structures, some

FEW = 27  # voxels; a shape of fewer has no surface to speak of
TORN = 0.5  # share of the largest part, below which the parts are no mere specks
FLAT = 0.99  # share of a crop at one end of the window, from where on it shows nothing

Finding = dict[str, str]
Told = Iterator[tuple[str, str]]


@dataclass(frozen=True)
class Checked:
    """What `check` found.

    Args:
        shapes: a row each: id, structure, size (of the whole file), spacing_mm, crop, voxels, ml, parts, largest (the
            share of the largest part), cut (whether it reaches the edge of its file), image (whether it has one).
        findings: `{"case", "severity", "text"}`: "error" for what is refused, "warning" for what nobody should trust
            unseen, "note" for what is worth knowing. The case "" is the whole cohort.
    """

    shapes: tuple[dict[str, Any], ...]
    findings: tuple[Finding, ...]

    @property
    def bad(self) -> bool:
        """Whether something is an error."""
        return any(finding["severity"] == "error" for finding in self.findings)

    def table(self, *, most: int = 40) -> str:
        """The shapes as text, a line each below their heads, `most` of them."""
        head = ("shape", "file", "mm", "crop", "voxels", "ml", "parts", "largest", "edge", "CT")
        lines = [_line(row) for row in self.shapes[:most]]
        more = [f"and {len(self.shapes) - most} more"] * (len(self.shapes) > most)
        return "\n".join([*aligned({title: [line[k] for line in lines] for k, title in enumerate(head)}), *more])


def check(
    labels: Path,
    *,
    label: str = "",
    images: Path | None = None,
    names: Path | None = None,
    config: PrepareConfig | None = None,
) -> Checked:
    """Reads every structure as `prepare` does, and says what is there and what is wrong with it.

    Args:
        labels, label, images, names: see `sources.find_structures`.
        config: margin and window of the crops.

    Raises:
        MedsegError: nothing there, or not one case with what was asked for.
    """
    config = config or PrepareConfig()
    check_window(config)
    found = find_structures(labels, label=label, images=images, names=names)
    rows, findings = [], [_finding(name, "error", why) for name, why in found.refused.items()]
    for case in track(found.cases, "Checking shapes"):
        try:
            shape, facts = crop(case, config)
        except MedsegError as error:
            findings.append(_finding(case.id, "error", str(error)))
            continue
        rows.append(_row(shape, facts, case.notes["structure"]))
        findings += [_finding(case.id, severity, text) for severity, text in _of_shape(shape, facts)]
    release()
    findings += [_finding("", severity, text) for severity, text in _of_all(rows, found)]
    return Checked(tuple(rows), tuple(findings))


def _finding(case: str, severity: str, text: str) -> Finding:
    return {"case": case, "severity": severity, "text": text}


def _of_shape(shape: Shape, facts: Mapping[str, Any]) -> Told:
    if facts["voxels"] < FEW:
        yield "warning", f"{facts['voxels']} voxels are too few for a shape; is it a speck?"
    if facts["largest"] < TORN:
        yield "warning", f"{facts['parts']} parts, and the largest has {facts['largest']:.1%} of the voxels"
    if shape.image is not None:
        low, high = (float((shape.image == end).mean()) for end in (0, 1))
        if max(low, high) > FLAT:
            share, side = max((low, "below"), (high, "above"))
            yield "warning", f"{share:.0%} of its CT is {side} the window; is it in HU? set --window-hu"


def _of_all(rows: Sequence[Mapping[str, Any]], found: Found) -> Told:
    """What is said once for the whole cohort."""
    if said := said_of_parts({row["id"]: row for row in rows}):
        yield "note", said
    cut = [row["id"] for row in rows if row["cut"]]
    if cut:
        yield "note", f"{len(cut)} structures reach the edge of their file, which may have cut them: {some(cut, 6)}"
    bare = [row["id"] for row in rows if not row["image"]]
    if bare and len(bare) < len(rows):
        yield "warning", f"{len(bare)} of {len(rows)} shapes have no CT, so none can be fitted to: {some(bare, 6)}"
    unknown = sum(case.notes["kind"] in ("medmnist", "array") for case in found.cases)
    if unknown:
        yield "note", f"nothing says how large the voxels of {unknown} shapes are; 1 mm is taken"
    steps = np.array([row["spacing_mm"] for row in rows])
    if len(rows) and (steps.max(1) > 3 * steps.min(1)).any():
        thick = [row["id"] for row, step in zip(rows, steps, strict=True) if step.max() > 3 * step.min()]
        yield "warning", f"slices of {len(thick)} shapes are more than three pixels thick: {some(thick, 6)}"
    if len(rows) == 1:
        yield "note", "a single shape: its latent can be fitted, but nothing of it carries over to others"


def _row(shape: Shape, facts: Mapping[str, Any], structure: str) -> dict[str, Any]:
    return {
        "id": shape.id,
        "structure": structure,
        "size": list(shape.whole.shape),
        "spacing_mm": list(shape.spacing_mm),
        "crop": list(shape.grid.shape),
        **facts,
        "image": shape.image is not None,
    }


def _line(row: Mapping[str, Any]) -> tuple[str, ...]:
    size, crop_size = ("x".join(map(str, row[key])) for key in ("size", "crop"))
    spacing = "x".join(f"{mm:.3g}" for mm in row["spacing_mm"])
    numbers = (str(row["voxels"]), f"{row['ml']:.3g}", str(row["parts"]), f"{row['largest']:.1%}")
    return (row["id"], size, spacing, crop_size, *numbers, *("yes" if row[key] else "-" for key in ("cut", "image")))
