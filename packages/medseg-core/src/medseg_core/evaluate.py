"""Masks held against labels: rows per case and structure, means with intervals over cases, paired comparisons.

One policy for empty sides, everywhere. A structure in mask and label is scored (`both`). One that only the label has is
`missed`, one that only the mask has is `invented`: both are rows, and their overlap and surface agreement (Dice, IoU,
NSD) are 0, so they pull means down. Distances (HD95, ASSD) do not exist there and stay empty; every mean stands beside
its n, n_missed and n_invented. A structure on neither side (`absent`) has no row and no influence.
"""

import csv
import io
import json
import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import plotly.graph_objects as go

from medseg_core import figures, scene
from medseg_core.errors import MedsegError, meant
from medseg_core.intervals import compare, resampled, summarise, values_of
from medseg_core.io import write_text
from medseg_core.metrics import checked_pair, count, scores, status
from medseg_core.surface import surface_metrics

More = Callable[["Pair"], Mapping[str, float]]
Baseline = Callable[["Pair"], np.ndarray]

ABOUT = ("case", "label", "name", "status", "model")
OVERLAP = ("dice", "iou", "sensitivity", "specificity", "precision")


@dataclass(frozen=True, eq=False)
class Pair:
    """One case: what was predicted and what is true, on one grid.

    Args:
        id: the case's name.
        mask, label: (X, Y, Z) or (H, W) predicted and true ids, 0 is background.
        spacing: length of a voxel along each array axis, in `unit`.
        unit: "mm", "nm" or "px"; the names of distances end in it.
        images: arrays of the same shape (pictures may have a last axis of colours); the first lies under the overlays.
        known: ids that were annotated in this case; None means all. The others are not scored here.
        affine: index -> RAS+ mm, used to turn pictures and surfaces the way people look at them.
    """

    id: str
    mask: np.ndarray
    label: np.ndarray
    spacing: tuple[float, ...]
    unit: str = "mm"
    images: Mapping[str, np.ndarray] = field(default_factory=dict)
    known: Collection[int] | None = None
    affine: np.ndarray | None = None


@dataclass(frozen=True, eq=False)
class Evaluation:
    """The scores of a cohort.

    Args:
        rows: one mapping per case and structure on at least one side: `case, label, name, status`, then measures (nan
            where undefined). Measures of a whole case have the name "".
        groups: structure -> group.
        baselines: what else was scored on the same cases, by name.
        cases: every case, also one without any row.
        pictures: case -> overlay file, where an output folder was given.
        worst: the case whose surfaces are in `scene`: the one with the lowest mean Dice.
        about: how the numbers were made (unit, tolerance, convention).
    """

    rows: tuple[Mapping[str, Any], ...]
    groups: Mapping[str, str] = field(default_factory=dict)
    baselines: Mapping[str, "Evaluation"] = field(default_factory=dict)
    cases: tuple[str, ...] = ()
    pictures: Mapping[str, Path] = field(default_factory=dict)
    worst: str = ""
    scene: go.Figure | None = None
    about: Mapping[str, Any] = field(default_factory=dict)

    @property
    def measures(self) -> tuple[str, ...]:
        """What is known of structures, by name; of whole cases, where there are no structures."""
        return _measures([row for row in self.rows if row["name"]] or self.rows)

    def summary(self, *, seed: int = 0) -> list[dict[str, Any]]:
        """Means with 95 % intervals over cases, a row per structure, group and measure, overall first.

        A structure's mean is over the cases that have it. A group's mean, and that of all structures, is the mean over
        cases of each case's mean over its structures: every patient counts the same (see `medseg_core.intervals`).

        Returns:
            `kind` (all, group, structure, case), `name`, `measure`, `mean`, `std` (over cases, n - 1), `low`, `high`,
            `n` (values), `n_cases`, `n_missed`, `n_invented`.
        """
        cases = sorted({row["case"] for row in self.rows})
        weights = resampled(len(cases), seed=seed)
        return [
            {"kind": kind, "name": name, "measure": measure, **summarise(rows, measure, cases=cases, weights=weights)}
            for kind, name, rows in self._parts()
            for measure in _measures(rows)
        ]

    def against(self, other: "Evaluation", measure: str, *, seed: int = 0) -> dict[str, float]:
        """This evaluation minus another, paired by case and structure: see `medseg_core.intervals.compare`.

        Raises:
            MedsegError: no case and structure has the measure in both.
        """
        mine, theirs = values_of(self.rows, measure), values_of(other.rows, measure)
        if not mine.keys() & theirs.keys():
            known = _measures(self.rows)
            raise MedsegError(
                f"nothing to compare: no case and structure has {measure!r} in both{meant(measure, known)}; "
                f"measures here: {', '.join(known)}"
            )
        return compare(mine, theirs, seed=seed)

    def document(self, *, seed: int = 0) -> dict[str, Any]:
        """All of `summary.json`: strict JSON values, None where a number is undefined."""
        entries = [{"model": "", **entry} for entry in self.summary(seed=seed)]
        for name, baseline in self.baselines.items():
            entries += [{"model": name, **entry} for entry in baseline.summary(seed=seed)]
        counts = {
            status: sum(row["status"] == status for row in self.rows) for status in ("both", "missed", "invented")
        }
        return _strict({"cases": len(self.cases), **counts, "about": self.about, "summary": entries})

    def _parts(self) -> list[tuple[str, str, list[Mapping[str, Any]]]]:
        """Kind, name and rows of everything that gets a mean."""
        structures: dict[str, list[Mapping[str, Any]]] = {}
        for row in sorted(self.rows, key=lambda row: row["label"] if isinstance(row["label"], int) else math.inf):
            structures.setdefault(row["name"], []).append(row)
        whole_cases = structures.pop("", [])
        groups: dict[str, list[Mapping[str, Any]]] = {}
        for name, rows in structures.items():
            groups.setdefault(self.groups.get(name, ""), []).extend(rows)
        parts = [("all", "all", [row for rows in structures.values() for row in rows])]
        parts += [("group", name, rows) for name, rows in groups.items() if name]
        parts += [("structure", name, rows) for name, rows in structures.items()]
        return [part for part in [*parts, ("case", "", whole_cases)] if part[2]]


def evaluate(
    pairs: Iterable[Pair],
    labels: Mapping[int, str],
    *,
    more: More | None = None,
    baselines: Mapping[str, Baseline] | None = None,
    out: Path | None = None,
    groups: Mapping[str, str] | None = None,
    tolerance: float = 3.0,
    convention: str = "voxel",
) -> Evaluation:
    """Score every pair, one at a time: a pair is let go before the next is asked for; `progress.track` shows them.

    Args:
        labels: id -> structure name; other ids in the arrays are not looked at, nor is 0.
        more: further measures of a whole case, put under the structure "".
        baselines: name -> what makes its mask from a pair; "empty", which predicts nothing, is always among them.
        out: gets `cases.csv`, `baselines.csv`, `summary.json`, `summary.csv` and `pictures/0001.png`, ...; with it the
            surfaces of the worst case are kept for the report.
        groups: structure -> group.
        tolerance: of the NSD, in the unit of the pair.
        convention: where a surface lies, "voxel" or "surface" (see `medseg_core.surface`).

    Raises:
        MedsegError: a case is named twice, or a mask does not fit its label.
    """
    labels = _named_once(labels)
    how = {"tolerance": tolerance, "convention": convention}
    makers: dict[str, Baseline] = {"empty": _nothing, **(baselines or {})}
    rows: dict[str, list[dict[str, Any]]] = {name: [] for name in ("", *makers)}
    gallery = _Gallery(labels, Path(out) if out is not None else None)
    for pair in pairs:
        if pair.id in gallery.cases:
            raise MedsegError(f"case {pair.id} comes twice; give every case a name of its own")
        pair = _checked(pair)  # noqa: PLW2901
        of_case = _score_all(pair, labels, makers, more, how)
        for name, found in of_case.items():
            rows[name] += found
        gallery.add(pair, of_case[""])
        unit = pair.unit
        del pair
    if not gallery.cases:
        raise MedsegError("there is no case to evaluate: `pairs` is empty")
    shared = {"groups": groups or {}, "cases": tuple(gallery.cases), "about": {"unit": unit, **how}}
    scored = {name: Evaluation(_present(found), **shared) for name, found in rows.items()}
    evaluation = replace(scored.pop(""), baselines=scored, **gallery.looks())
    if out is not None:
        _write(evaluation, rows, Path(out))
    return evaluation


def from_rows(rows: Sequence[Mapping[str, Any]], *, groups: Mapping[str, str] | None = None) -> Evaluation:
    """An evaluation of numbers made elsewhere: the same intervals, comparisons and report.

    Args:
        rows: `case` and any measures (None or "" where undefined); optional `label`, `name` (the structure, "" for the
            whole case), `status`, and `model`, which names the baseline that a row belongs to. Rows of status `absent`
            are left out.
    """
    sorted_out: dict[str, list[dict[str, Any]]] = {"": []}
    for row in rows:
        if "case" not in row:
            raise MedsegError(f"a row without `case`: {dict(row)}; every row names the case it belongs to")
        if row.get("status") != "absent":
            known = {"case": str(row["case"]), "label": row.get("label", ""), "name": row.get("name", "")}
            measures = _floats({key: value for key, value in row.items() if key not in ABOUT})
            kept = {**known, "status": row.get("status", ""), **measures}
            sorted_out.setdefault(row.get("model", ""), []).append(kept)
    cases = tuple(dict.fromkeys(str(row["case"]) for row in rows))
    shared = {"groups": groups or {}, "cases": cases}
    own, *others = [(name, Evaluation(tuple(found), **shared)) for name, found in sorted_out.items()]
    return replace(own[1], baselines=dict(others))


def _named_once(labels: Mapping[int, str]) -> dict[int, str]:
    """Without the background; every other id has a name of its own, by which its numbers are found again."""
    named = {int(i): name for i, name in labels.items() if int(i) != 0}
    ids_of: dict[str, int] = {}
    for i, name in named.items():
        if not name or name in ids_of:
            raise MedsegError(f"id {i} is named {name!r}, as id {ids_of.get(name, i)}; give every id a name of its own")
        ids_of[name] = i
    return named


def _checked(pair: Pair) -> Pair:
    """The pair with label maps of one shape, or an error that names the case."""
    try:
        mask, label = checked_pair(pair.mask, pair.label)
    except MedsegError as error:
        raise MedsegError(f"case {pair.id}: {error}") from None
    if len(pair.spacing) != label.ndim or not all(0 < edge < math.inf for edge in pair.spacing):
        raise MedsegError(f"case {pair.id}: spacing {pair.spacing} must be {label.ndim} positive lengths, one per axis")
    for name, image in pair.images.items():
        if image.shape[: label.ndim] != label.shape or image.ndim > 3:
            raise MedsegError(f"case {pair.id}: image {name!r} has shape {image.shape} and the label {label.shape}")
    return replace(pair, mask=mask, label=label)


def _nothing(pair: Pair) -> np.ndarray:
    return np.zeros(pair.label.shape, np.uint8)


def _score_all(
    pair: Pair, labels: Mapping[int, str], makers: Mapping[str, Baseline], more: More | None, how: Mapping[str, Any]
) -> dict[str, list[dict[str, Any]]]:
    """Rows of the model ("") and of each baseline; absent structures are rows of their own status here."""
    rows = {}
    for name, make in {"": None, **makers}.items():
        this = pair if make is None else _checked(replace(pair, mask=make(pair)))
        rows[name] = _score(this, labels, **how)
        if more:
            rows[name].append({"case": pair.id, "label": "", "name": "", "status": "", **_floats(more(this))})
    return rows


def _score(pair: Pair, labels: Mapping[int, str], *, tolerance: float, convention: str) -> list[dict[str, Any]]:
    ids = [i for i in labels if pair.known is None or i in pair.known]
    counts = count(pair.mask, pair.label, ids=ids)
    states, overlap = status(counts), scores(counts)
    surface = surface_metrics(
        pair.mask, pair.label, ids=ids, spacing=pair.spacing, tolerance_mm=tolerance, convention=convention
    )
    head, size, tail = _size_of_voxel(pair)
    columns = {
        **{name: overlap[name] for name in OVERLAP},
        f"{head}_ref_{tail}": counts.label * size,
        f"{head}_pred_{tail}": counts.mask * size,
        f"hd95_{pair.unit}": surface["hd95"],
        f"assd_{pair.unit}": surface["assd"],
        f"nsd_{tolerance:g}{pair.unit}": surface["nsd"],
    }
    rows = []
    for n, (i, state) in enumerate(zip(ids, states.tolist(), strict=True)):
        row = {"case": pair.id, "label": i, "name": labels[i], "status": state}
        rows.append(row if state == "absent" else row | {name: float(column[n]) for name, column in columns.items()})
    return rows


def _size_of_voxel(pair: Pair) -> tuple[str, float, str]:
    """What a number of voxels is called, what one is worth, and in which unit."""
    size = math.prod(map(float, pair.spacing))
    if len(pair.spacing) == 2:
        return "area", size, f"{pair.unit}2"
    return ("volume", size / 1000, "ml") if pair.unit == "mm" else ("volume", size, f"{pair.unit}3")


def _present(rows: Sequence[Mapping[str, Any]]) -> tuple[Mapping[str, Any], ...]:
    return tuple(row for row in rows if row["status"] != "absent")


class _Gallery:
    """What is kept of each case for people to look at: an overlay on disk, the surfaces of the worst case so far."""

    def __init__(self, labels: Mapping[int, str], out: Path | None) -> None:
        self.labels, self.out = labels, out
        self.cases: dict[str, None] = {}
        self.pictures: dict[str, Path] = {}
        self.worst, self.scene, self.lowest = "", None, math.inf

    def looks(self) -> dict[str, Any]:
        return {"pictures": self.pictures, "worst": self.worst, "scene": self.scene}

    def add(self, pair: Pair, rows: Sequence[Mapping[str, Any]]) -> None:
        self.cases[pair.id] = None
        if self.out is None:
            return
        names = {i: name for i, name in self.labels.items() if pair.known is None or i in pair.known}
        kind, image = next(iter(pair.images.items()), ("", None))
        drawn = figures.overlay(
            pair.label, pair.mask, names, image=image, window=figures.CT_WINDOW_HU if kind == "ct" else None,
            spacing=pair.spacing, affine=pair.affine, title=pair.id,
        )  # fmt: skip
        self.pictures[pair.id] = figures.save(drawn, self.out / "pictures" / f"{len(self.cases):04d}.png")
        dice = [row["dice"] for row in _present(rows) if row["name"]]
        if pair.label.ndim == 3 and dice and np.mean(dice) < self.lowest:
            self.lowest, self.worst = float(np.mean(dice)), pair.id
            place = {"spacing": pair.spacing, "affine": pair.affine, "unit": pair.unit}
            self.scene = scene.figure(pair.mask, pair.label, names, **place)


def _measures(rows: Iterable[Mapping[str, Any]]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(key for row in rows for key in row if key not in ABOUT))


def _floats(measures: Mapping[str, Any]) -> dict[str, float]:
    try:
        return {name: math.nan if value in (None, "") else float(value) for name, value in measures.items()}
    except (TypeError, ValueError):
        raise MedsegError(f"measures must be numbers, None or empty: {dict(measures)}") from None


def _strict(value: Any) -> Any:
    """JSON that every reader takes: no nan, no infinity."""
    if isinstance(value, Mapping):
        return {key: _strict(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_strict(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _write(evaluation: Evaluation, rows: Mapping[str, Sequence[Mapping[str, Any]]], out: Path) -> None:
    own, baselines = rows[""], [{"model": name, **row} for name in rows if name for row in rows[name]]
    document = evaluation.document()
    write_text(out / "cases.csv", _csv(own))
    write_text(out / "baselines.csv", _csv([row for row in baselines if row["status"] != "absent"]))
    write_text(out / "summary.csv", _csv(document["summary"]))
    write_text(out / "summary.json", json.dumps(document, indent=1, allow_nan=False) + "\n")


def _csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows as comma-separated text; an undefined number is an empty cell."""
    columns = dict.fromkeys(key for row in sorted(rows, key=len, reverse=True) for key in row)
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(_strict(list(rows)))
    return text.getvalue()
