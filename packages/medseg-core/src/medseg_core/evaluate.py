"""Masks held against labels: rows per case and structure, means with intervals over cases, paired comparisons.

One policy for empty sides, everywhere. A structure in mask and label is scored (`both`). One that only the label has is
`missed`, one that only the mask has is `invented`: both are rows, and their overlap and surface agreement (Dice, IoU,
NSD) are 0, so they pull means down. Distances (HD95, ASSD) do not exist there and stay empty; every mean stands beside
its n, n_missed and n_invented. A structure on neither side (`absent`) has no row and no influence.
"""

import heapq
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import plotly.graph_objects as go

from medseg_core.config import strict
from medseg_core.errors import MedsegError, meant
from medseg_core.gallery import Gallery
from medseg_core.intervals import case_means, holm, intervals, wilcoxon
from medseg_core.io import write_text
from medseg_core.pairs import Pair, score_pair
from medseg_core.table import Rows, write_csv

More = Callable[["Pair"], Mapping[str, float]]
Baseline = Callable[["Pair"], np.ndarray]
HEAD = ("case", "label", "name", "status")
Part = tuple[str, str, np.ndarray]  # kind, name, (R,) bool


@dataclass(frozen=True, eq=False)
class Evaluation:
    """The scores of a cohort.

    Args:
        rows: one mapping per case and structure on at least one side: `case, label, name, status`, then measures (nan
            where undefined). Measures of a whole case have the name "".
        absent: structures on neither side, `case, label, name, status`.
        groups: structure -> group.
        baselines: what else was scored on the same cases, by name.
        rival: the one of them that is another model, to be compared measure by measure; "" where there is none.
        cases: every case, also one without any row.
        pictures: case -> overlay file.
        worst: the case whose surfaces are in `scene`: the one with the lowest mean Dice.
        about: how the numbers were made (unit, tolerance, convention).
        audit: what was found out about geometry and labels, see `medseg_core.audit`.
    """

    rows: Rows
    absent: Rows = field(default_factory=Rows)
    groups: Mapping[str, str] = field(default_factory=dict)
    baselines: Mapping[str, "Evaluation"] = field(default_factory=dict)
    rival: str = ""
    cases: tuple[str, ...] = ()
    pictures: Mapping[str, Path] = field(default_factory=dict)
    worst: str = ""
    scene: go.Figure | None = None
    about: Mapping[str, Any] = field(default_factory=dict)
    audit: Mapping[str, Any] = field(default_factory=dict)
    _summaries: dict[int, list[dict[str, Any]]] = field(default_factory=dict, init=False, repr=False)

    @property
    def measures(self) -> tuple[str, ...]:
        """What is known of structures, by name; of whole cases, where there are no structures."""
        return self.rows.measures(of_structures=True) or self.rows.measures(of_structures=False)

    def summary(self, *, seed: int = 0) -> list[dict[str, Any]]:
        """Means with 95 % intervals over cases, a row per structure, group and measure, overall first.

        A structure's mean is over the cases that have it. A group's mean, and that of all structures, is the mean over
        cases of each case's mean over its structures: every patient counts the same (see `medseg_core.intervals`).

        Returns:
            `kind` (all, group, structure, case), `name`, `measure`, `mean`, `std` (over cases, n - 1), `low`, `high`,
            `n` (values), `n_cases`, `n_missed`, `n_invented`.
        """
        if seed not in self._summaries:
            self._summaries[seed] = self._summarised(seed)
        return self._summaries[seed]

    def case_means(self, measure: str) -> dict[str, float]:
        """Case -> mean over its structures, nan for a case of none; where there are no structures, its own value."""
        case, _ = self.rows.codes()
        return dict(
            zip(self.rows.cases, case_means(self.rows.column(measure), case, len(self.rows.cases)), strict=True)
        )

    def against(self, other: "Evaluation", measure: str, *, seed: int = 0) -> dict[str, float]:
        """This evaluation minus another, paired by case and structure.

        Differences are averaged per case, then over cases; p is two-sided, from Wilcoxon's signed-rank test over cases.

        Returns:
            `mean`, `mean_other`, `difference`, `low`, `high`, `p` (these three nan below two cases), `n_cases`, `n`
            pairs, and `n_alone`: values without a partner, such as a structure that only one side invented.

        Raises:
            MedsegError: no case and structure has the measure in both.
        """
        everything = "all", "all", np.ones(len(self.rows), bool)
        found = self._compared(other, [(everything, measure)], seed)
        if not found:
            known = self.measures
            raise MedsegError(
                f"nothing to compare: no case and structure has {measure!r} in both{meant(measure, known)}; "
                f"measures here: {', '.join(known)}"
            )
        return {key: value for key, value in found[0].items() if key not in ("kind", "name", "measure")}

    def comparison(self, other: "Evaluation", *, seed: int = 0) -> list[dict[str, Any]]:
        """As `against`, for all structures together, each group, each structure, and each measure.

        Returns:
            `kind`, `name`, `measure`, the entries of `against`, and `p_holm`: p corrected for the number of structures
            (or groups) that were tested for this measure (Holm, 1979). What has no pair is left out.
        """
        parts = [(part, measure) for part in self._parts() for measure in self._measures_of(part)]
        found = self._compared(other, parts, seed)
        families: dict[tuple[str, str], list[dict[str, Any]]] = {}
        for entry in found:
            families.setdefault((entry["kind"], entry["measure"]), []).append(entry)
        for family in families.values():
            corrected = holm(np.array([entry["p"] for entry in family])).tolist()
            for entry, p in zip(family, corrected, strict=True):
                entry["p_holm"] = p
        return found

    def headline(self) -> dict[str, Any]:
        """The overall Dice with its interval, beside predicting nothing, and how much was missed and invented."""

        def overall(evaluation: Evaluation) -> Mapping[str, Any]:
            rows = evaluation.summary()
            return next((row for row in rows if (row["kind"], row["measure"]) == ("all", "dice")), {})

        mine = overall(self)
        numbers = {name: mine.get(key) for name, key in (("dice", "mean"), ("dice_low", "low"), ("dice_high", "high"))}
        if "empty" in self.baselines:
            numbers["dice_of_predicting_nothing"] = overall(self.baselines["empty"]).get("mean")
        if self.rival:
            gap = self.against(self.baselines[self.rival], "dice")
            numbers |= {"compared_with": self.rival, "difference": gap["difference"], "p": gap["p"]}
            numbers |= {"difference_low": gap["low"], "difference_high": gap["high"]}
        left = {"not_scored": len(self.audit["not_scored"]), "unpaired": self.audit["unpaired"]} if self.audit else {}
        counts = {"structures": "n", "missed": "n_missed", "invented": "n_invented"}
        return numbers | {"cases": len(self.cases), **left, **{name: mine.get(key, 0) for name, key in counts.items()}}

    @cached_property
    def rivalry(self) -> list[dict[str, Any]]:
        """The comparison with the rival; empty without one."""
        return self.comparison(self.baselines[self.rival]) if self.rival else []

    def document(self, *, seed: int = 0) -> dict[str, Any]:
        """All of `summary.json`: strict JSON values, None where a number is undefined."""
        entries = [{"model": "", **entry} for entry in self.summary(seed=seed)]
        for name, baseline in self.baselines.items():
            entries += [{"model": name, **entry} for entry in baseline.summary(seed=seed)]
        counts = {status: int(self.rows.has_status(status).sum()) for status in ("both", "missed", "invented")}
        found = {"cases": len(self.cases), **counts, "about": self.about, "audit": self.audit, "summary": entries}
        return strict(found | ({"comparison": self.rivalry} if self.rival else {}))

    def _parts(self) -> list[Part]:
        """Everything that gets a mean, and which rows are in it."""
        _, name = self.rows.codes()
        first_label = dict(zip(name[::-1].tolist(), self.rows.labels[::-1], strict=True))
        places = [n for n, word in enumerate(self.rows.names) if word]
        places.sort(key=lambda n: first_label[n] if isinstance(first_label[n], int) else math.inf)
        structures = [("structure", self.rows.names[n], name == n) for n in places]
        groups: dict[str, np.ndarray] = {}
        for _, word, inside in structures:
            group = self.groups.get(word, "")
            groups[group] = groups.get(group, False) | inside
        whole_cases = name == self.rows.names.index("") if "" in self.rows.names else np.zeros(len(name), bool)
        parts = [("all", "all", ~whole_cases), *(("group", group, inside) for group, inside in groups.items() if group)]
        return [part for part in [*parts, *structures, ("case", "", whole_cases)] if part[2].any()]

    def _measures_of(self, part: Part) -> tuple[str, ...]:
        return self.rows.measures(of_structures=part[0] != "case")

    def _summarised(self, seed: int) -> list[dict[str, Any]]:
        case, num = _sorted_cases(self.rows)
        missed, invented = self.rows.has_status("missed"), self.rows.has_status("invented")
        columns, entries = [], []
        for part in self._parts():
            kind, name, inside = part
            states = {"n_missed": int((missed & inside).sum()), "n_invented": int((invented & inside).sum())}
            for measure in self._measures_of(part):
                values = self.rows.column(measure)[inside]
                columns.append(case_means(values, case[inside], num))
                n = int(np.isfinite(values).sum())
                entries.append(({"kind": kind, "name": name, "measure": measure}, {"n": n}, states))
        ends = intervals(np.array(columns).reshape(len(columns), num).T, seed=seed).T.tolist()
        summary = []
        for (head, n, states), means, (low, high) in zip(entries, columns, ends, strict=True):
            there = means[np.isfinite(means)]
            mean = float(there.mean()) if len(there) else math.nan
            std = float(there.std(ddof=1)) if len(there) > 1 else math.nan
            numbers = {"mean": mean, "std": std, "low": low, "high": high, **n, "n_cases": len(there)}
            summary.append(head | numbers | states)
        return summary

    def _compared(self, other: "Evaluation", parts: Sequence[tuple[Part, str]], seed: int) -> list[dict[str, Any]]:
        """What `comparison` tells, of each part and measure that has a pair."""
        case, num = _sorted_cases(self.rows)
        partner = _partners(self.rows, other.rows)
        paired = partner >= 0
        entries, gaps = [], []
        for (kind, name, inside), measure in parts:
            mine, column = self.rows.column(measure), other.rows.column(measure)
            theirs = np.where(paired, column[partner], math.nan) if len(column) else np.full(len(mine), math.nan)
            both = inside & np.isfinite(mine) & np.isfinite(theirs)
            if not both.any():
                continue
            means, means_other = (case_means(values[both], case[both], num) for values in (mine, theirs))
            theirs_alone = np.isfinite(column) & _inside(other.rows, kind, name, self.groups)
            alone = int((inside & np.isfinite(mine)).sum() + theirs_alone.sum() - 2 * both.sum())
            gaps.append(means - means_other)
            told = {"mean": float(np.nanmean(means)), "mean_other": float(np.nanmean(means_other))}
            counts = {"n_cases": int(np.isfinite(means).sum()), "n": int(both.sum()), "n_alone": alone}
            entries.append(({"kind": kind, "name": name, "measure": measure, **told}, counts))
        ends = intervals(np.array(gaps).reshape(len(gaps), num).T, seed=seed).T.tolist()
        return [
            head | {"difference": float(np.nanmean(gap)), "low": low, "high": high, "p": wilcoxon(gap)} | counts
            for (head, counts), gap, (low, high) in zip(entries, gaps, ends, strict=True)
        ]


def evaluate(
    pairs: Iterable[Pair],
    labels: Mapping[int, str],
    *,
    more: More | None = None,
    baselines: Mapping[str, Baseline] | None = None,
    out: Path | None = None,
    groups: Mapping[str, str] | None = None,
    **how: Any,
) -> Evaluation:
    """Score every pair, one at a time: a pair is let go before the next is asked for; `progress.track` shows them.

    Args:
        labels: id -> structure name; other ids in the arrays are not looked at, nor is 0.
        more: further measures of a whole case, put under the structure "".
        baselines: name -> what makes its mask from a pair; "empty", which predicts nothing, is always among them.
        out: gets `cases.csv`, `baselines.csv`, `summary.json`, `summary.csv` and `pictures/0001.png`, ...; with it the
            surfaces of the worst case are kept for the report.
        groups: structure -> group.
        how: measures, tolerance, percentile, convention and what else `medseg_core.score.score` takes.

    Raises:
        MedsegError: a case is named twice, or a mask does not fit its label.
    """
    labels = named_once(labels)
    makers: dict[str, Baseline] = {"empty": nothing, **(baselines or {})}
    rows: dict[str, list[Rows]] = {name: [Rows(), Rows()] for name in ("", *makers)}
    gallery = Gallery(labels, Path(out) if out is not None else None)
    unit = ""
    for pair in pairs:
        if pair.id in gallery.cases:
            raise MedsegError(f"case {pair.id} comes twice; give every case a name of its own")
        pair = pair.checked()  # noqa: PLW2901
        own: list[Mapping[str, Any]] = []
        for name, row in _scored(pair, labels, makers, more, how):
            rows[name][row["status"] == "absent"].append(row)
            own += [row] * (not name)
        gallery.add(pair, own)
        unit = pair.unit
        del pair
    if not gallery.cases:
        raise MedsegError("there is no case to evaluate: `pairs` is empty")
    about = {"unit": unit, "tolerance": 3.0, "convention": "voxel", **how}
    shared = {"groups": groups or {}, "cases": tuple(gallery.cases), "about": about}
    scored = {name: Evaluation(found, absent, **shared) for name, (found, absent) in rows.items()}
    evaluation = replace(scored.pop(""), baselines=scored, **gallery.looks())
    if out is not None:
        write_tables(evaluation, Path(out))
    return evaluation


def from_rows(rows: Iterable[Mapping[str, Any]], *, groups: Mapping[str, str] | None = None) -> Evaluation:
    """An evaluation of numbers made elsewhere: the same intervals, comparisons and report.

    Args:
        rows: `case` and any measures (None or "" where undefined); optional `label`, `name` (the structure, "" for the
            whole case), `status`, and `model`, which names the baseline that a row belongs to.
    """
    sorted_out: dict[str, list[Rows]] = {"": [Rows(), Rows()]}
    cases: dict[str, None] = {}
    for row in rows:
        of_model = sorted_out.setdefault(row.get("model", ""), [Rows(), Rows()])
        of_model[row.get("status") == "absent"].append(row)
        cases[str(row["case"])] = None
    shared = {"groups": groups or {}, "cases": tuple(cases)}
    own, *others = [(name, Evaluation(found, absent, **shared)) for name, (found, absent) in sorted_out.items()]
    return replace(own[1], baselines=dict(others))


def named_once(labels: Mapping[int, str]) -> dict[int, str]:
    """Without the background; every other id has a name of its own, by which its numbers are found again."""
    named = {int(i): name for i, name in labels.items() if int(i) != 0}
    ids_of: dict[str, int] = {}
    for i, name in named.items():
        if not name or name in ids_of:
            raise MedsegError(f"id {i} is named {name!r}, as id {ids_of.get(name, i)}; give every id a name of its own")
        ids_of[name] = i
    return named


def nothing(pair: Pair) -> np.ndarray:
    """The trivial baseline: no structure anywhere."""
    return np.zeros(pair.label.shape, np.uint8)


def _scored(
    pair: Pair,
    labels: Mapping[int, str],
    makers: Mapping[str, Baseline],
    more: More | None,
    how: Mapping[str, Any],
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Rows of the model ("") and of each baseline, by name."""
    for name, make in {"": None, **makers}.items():
        this = pair if make is None else pair.with_mask(make(pair))
        yield from ((name, row) for row in score_pair(this, labels, **how))
        if more:
            yield name, {"case": pair.id, "label": "", "name": "", "status": "", **more(this)}


def _sorted_cases(rows: Rows) -> tuple[np.ndarray, int]:
    """(R,) place of each row's case among the sorted ones: what is drawn does not depend on their order."""
    case, _ = rows.codes()
    order = np.argsort(np.argsort(np.array(rows.cases, dtype=object))) if rows.cases else np.zeros(0, np.intp)
    return order[case], len(rows.cases)


def _partners(mine: Rows, theirs: Rows) -> np.ndarray:
    """(R,) place of the row of the same case and structure on the other side, -1 where there is none."""
    their_cases, their_names = ({word: n for n, word in enumerate(words)} for words in (theirs.cases, theirs.names))
    places = {key: n for n, key in enumerate(zip(*(codes.tolist() for codes in theirs.codes()), strict=True))}
    case, name = mine.codes()
    case = np.array([their_cases.get(word, -1) for word in mine.cases], np.intp)[case]
    name = np.array([their_names.get(word, -1) for word in mine.names], np.intp)[name]
    return np.array([places.get(key, -1) for key in zip(case.tolist(), name.tolist(), strict=True)], np.intp)


def _inside(rows: Rows, kind: str, name: str, groups: Mapping[str, str]) -> np.ndarray:
    """(R,) bool, the rows of another evaluation that belong to a part of this one."""
    words = [groups.get(word, "") if kind == "group" else word for word in rows.names]
    chosen = np.array([kind == "all" or word == name for word in words], bool)
    return chosen[rows.codes()[1]] if len(rows) else np.zeros(0, bool)


def write_tables(evaluation: Evaluation, out: Path) -> None:
    """`cases.csv` (absent structures too), `baselines.csv`, `summary.csv` and `.json`; of a rival `comparison.csv`."""
    order = {case: n for n, case in enumerate(evaluation.cases)}
    own = heapq.merge(evaluation.rows, evaluation.absent, key=lambda row: (order[row["case"]], _label(row)))
    write_csv(out / "cases.csv", own, (*HEAD, *evaluation.rows.columns))
    others = ((name, baseline.rows) for name, baseline in evaluation.baselines.items())
    of_others = ({"model": name, **row} for name, rows in others for row in rows)
    write_csv(out / "baselines.csv", of_others, ("model", *HEAD, *evaluation.rows.columns))
    document = evaluation.document()
    write_csv(out / "summary.csv", document["summary"], tuple(document["summary"][0]) if document["summary"] else ())
    write_text(out / "summary.json", json.dumps(document, indent=1, allow_nan=False) + "\n")
    if evaluation.rival:
        write_csv(out / "comparison.csv", document["comparison"], tuple(document["comparison"][0]))


def _label(row: Mapping[str, Any]) -> float:
    return row["label"] if isinstance(row["label"], int) else math.inf
