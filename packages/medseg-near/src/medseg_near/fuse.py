"""Refined classes and their base fused into one label map, cleaned by rules whose every effect is counted.

Axes: X Y Z, voxels in the file's own order.

Every class is a layer: its refined mask, or what the base says of a class that was not refined. A voxel belongs to the
layer of highest priority that claims it. A rule that takes a voxel from a class takes it out of that layer, so it falls
to the next one that claims it, and to the background where none does. Rules act on the fused map, again and again until
none changes anything: merging the result once more changes nothing.

No class vanishes: a rule that would remove more than `max_removed` of one is not applied, a refined mask that is empty
gives way to the base, and a class that others cover wholly is drawn above them. Each is flagged. Only of two classes
that claim the very same voxels one is lost, and flagged.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from medseg_core.masks import LARGEST_ID, components
from medseg_core.metrics import count
from medseg_near.rules import Rule, Rules, Verdict, boxes_of, judge

MOST_ROUNDS = 20
EFFECT = ("class", "rule", "outcome", "flagged", "num_components")
EFFECT += ("added_voxels", "removed_voxels", "added_ml", "removed_ml", "note")
CLASS = ("class", "id", "base_voxels", "merged_voxels", "base_ml", "merged_ml", "base_components", "merged_components")
CLASS += ("dice",)


@dataclass(frozen=True, eq=False)
class Merged:
    """A fused label map and how it came about.

    Args:
        label: (X, Y, Z) uint8 or uint16 ids.
        effects: what each step did to each class: its refined mask against the base ("refined"), what others of higher
            priority cover ("priority"), every rule, and what came back as others went ("uncovered"). For a class, the
            voxels in the base plus all added minus all removed are the voxels in `label`.
        classes: of each class the voxels, ml and components before and after, and Dice against the base.
        flags: sentences; what would have removed a class, or could not be done.
    """

    label: np.ndarray
    effects: tuple[Mapping[str, Any], ...]
    classes: tuple[Mapping[str, Any], ...]
    flags: tuple[str, ...]


def fuse(base: np.ndarray, refined: Mapping[int, np.ndarray], rules: Rules, *, spacing_mm: Sequence[float]) -> Merged:
    """One label map of a base and refined classes; the text of this module says how.

    Args:
        base: (X, Y, Z) ids in uint8 or uint16; ids that `rules` has no name for stay below all classes.
        refined: id -> (X, Y, Z) bool.
        spacing_mm: along X, Y, Z.
    """
    dtype = np.uint8 if max(*rules.labels, int(base.max(initial=0))) < 2**8 else np.uint16
    base = base.astype(dtype, copy=False)
    tally = _Tally(rules.labels, ml=float(np.prod(spacing_mm)) / 1000)
    emptied = [i for i, mask in refined.items() if not mask.any()]
    layers = _Layers(base, {i: mask for i, mask in refined.items() if i not in emptied}, rules.priority)
    fused, hidden = _shown(layers)
    counts = count(fused, base)
    per_id = dict(zip(counts.ids.tolist(), zip(counts.mask.tolist(), counts.label.tolist(), strict=True), strict=True))
    for i in sorted(per_id.keys() | layers.crops.keys()):
        if i:
            num_shown, num_base = per_id.get(i, (0, 0))
            added, removed = layers.changes(i, base)
            if i in layers.crops:
                tally.add(i, "refined", added, removed)
            elif i in emptied:
                tally.add(i, "refined", outcome="left", why="the refined mask is empty, so the base is kept")
            outcome, why = hidden.get(i, ("", ""))
            tally.add(i, "priority", 0, num_base + added - removed - num_shown, outcome=outcome, why=why)
    settled = _apply(rules, fused, layers, tally, spacing_mm=spacing_mm)
    flags = tally.flags() + ["the rules work against each other and never come to an end"] * (not settled)
    return Merged(fused, tuple(tally.rows()), tuple(_compared(fused, base, tally)), tuple(flags))


class _Layers:
    """What each class claims: one map of the classes that were not refined, and a crop for each that was."""

    def __init__(self, base: np.ndarray, refined: Mapping[int, np.ndarray], priority: Sequence[int]) -> None:
        gone = np.zeros(LARGEST_ID + 1, bool)
        gone[list(refined)] = True
        self.below = np.where(gone[base], base.dtype.type(0), base)
        self.crops = {}
        for i, mask in refined.items():
            box = boxes_of(mask.view(np.uint8))[0]
            self.crops[i] = (np.array([[side.start] for side in box]), box, mask[box].copy())
        self.rank = np.full(LARGEST_ID + 1, len(priority))
        self.rank[list(priority)] = np.arange(len(priority))
        self.rank[0] += 1

    def fused(self) -> np.ndarray:
        """(X, Y, Z): the strongest claim of each voxel."""
        ids = self.below.copy(order="K")
        for i, (_, box, mask) in self.crops.items():
            ids[box][mask & (self.rank[i] < self.rank[ids[box]])] = i
        return ids

    def changes(self, label: int, base: np.ndarray) -> tuple[int, int]:
        """Voxels that the layer adds to the base, and those it lacks."""
        if label not in self.crops:
            return 0, 0
        _, box, mask = self.crops[label]
        both = int(np.count_nonzero(mask & (base[box] == label)))
        return int(np.count_nonzero(mask)) - both, int(np.count_nonzero(base == label)) - both

    def strongest(self, points: np.ndarray) -> np.ndarray:
        """(P,) ids that claim (3, P) voxels."""
        ids = self.below[tuple(points)]
        for i, (start, _, mask) in self.crops.items():
            local = points - start
            within = ((local >= 0) & (local < np.reshape(mask.shape, (3, 1)))).all(axis=0)
            within[within] = mask[tuple(local[:, within])]
            ids[within & (self.rank[i] < self.rank[ids])] = i
        return ids

    def claim(self, label: int, points: np.ndarray, *, claimed: bool) -> None:
        """Puts (3, P) voxels into a layer, or takes them out of it."""
        if label in self.crops:
            start, _, mask = self.crops[label]
            mask[tuple(points - start)] = claimed
        else:
            self.below[tuple(points)] = label if claimed else 0


class _Tally:
    """Rows of counts by class and step."""

    def __init__(self, labels: Mapping[int, str], *, ml: float) -> None:
        self.labels, self.ml = labels, ml
        self.steps: dict[tuple[int, str], dict[str, Any]] = {}

    def name(self, label: int) -> str:
        return self.labels.get(label, str(label)) if label else "background"

    def add(
        self,
        label: int,
        rule: str,
        added: int = 0,
        removed: int = 0,
        *,
        num: int = 0,
        outcome: str = "",
        why: str = "",
        went: Mapping[int, int] | None = None,
    ) -> None:
        """Counts what a step did; one that comes again adds to its row.

        Args:
            num: components.
            why: flags the row.
            went: id -> removed voxels that have it now.
        """
        row = self.steps.setdefault((label, rule), dict.fromkeys(("added", "removed", "num"), 0) | {"went": {}})
        for what, value in (("added", added), ("removed", removed), ("num", num)):
            row[what] += value
        for i, gained in (went or {}).items():
            row["went"][i] = row["went"].get(i, 0) + gained
        changed = row["added"] + row["removed"] > 0
        row |= {"outcome": outcome if why else "changed" if changed else outcome or "nothing to do", "why": why}

    def flags(self) -> list[str]:
        return [f"{self.name(label)}, {rule}: {row['why']}" for (label, rule), row in self.steps.items() if row["why"]]

    def rows(self) -> list[dict[str, Any]]:
        found = []
        for (label, rule), row in self.steps.items():
            went = ", ".join(f"{num} to {self.name(i)}" for i, num in sorted(row["went"].items()))
            added, removed = row["added"], row["removed"]
            values = (self.name(label), rule, row["outcome"], bool(row["why"]), row["num"], added, removed)
            note = "; ".join(filter(None, (row["why"], went)))
            found.append(dict(zip(EFFECT, (*values, added * self.ml, removed * self.ml, note), strict=True)))
        return found


def _shown(layers: _Layers) -> tuple[np.ndarray, dict[int, tuple[str, str]]]:
    """The layers fused, and outcome and reason for each class that others cover wholly.

    Such a class is drawn above them where that hides no other.
    """
    ids = layers.fused()
    claiming = present(layers.below) | layers.crops.keys()
    hidden = claiming - present(ids)
    told = {}
    for i in sorted(hidden, key=lambda i: layers.rank[i]):
        before = layers.rank[i]
        layers.rank[i] = layers.rank.min() - 1
        trial = layers.fused()
        still = claiming - present(trial)
        if still < hidden:
            hidden, ids = still, trial
            told[i] = ("left", "others cover all of it, so it is drawn above them")
        else:
            layers.rank[i] = before
    lost = ("lost", "others cover all of it, and would vanish below it: no voxel is left for it")
    return ids, told | dict.fromkeys(hidden, lost)


def present(ids: np.ndarray) -> set[int]:
    """The ids that a label map holds, background aside."""
    return {i for i, box in enumerate(boxes_of(ids), 1) if box is not None}


def _apply(rules: Rules, fused: np.ndarray, layers: _Layers, tally: _Tally, *, spacing_mm: Sequence[float]) -> bool:
    """Changes `fused` and `layers` by all rules, until no rule changes anything; False where that has no end."""
    boxes = boxes_of(fused)
    waiting = set(rules.steps)
    for _ in range(MOST_ROUNDS):
        for rule in rules.steps:
            if rule not in waiting:
                continue
            waiting.remove(rule)
            verdict = judge(rule, fused, boxes, spacing_mm=spacing_mm, max_removed=rules.max_removed)
            if verdict.outcome != "changed":
                tally.add(rule.label, rule.text, outcome=verdict.outcome, why=_why(verdict, rules))
                continue
            affected = _change(rule, verdict, fused, layers, tally)
            boxes = boxes_of(fused)
            waiting |= {
                other
                for other in rules.steps
                if other != rule and (other.kind == "fill" or affected & {other.label, *other.others})
            }
        if not waiting:
            return True
    return False


def _why(verdict: Verdict, rules: Rules) -> str:
    if verdict.outcome != "left":
        return ""
    what = "the whole class" if verdict.share == 1 else f"{verdict.share:.0%} of the class"
    bound = f", more than max_removed {rules.max_removed:g}" if verdict.share < 1 else ""
    return f"it would remove {what}{bound}, so it is not applied"


def _change(rule: Rule, verdict: Verdict, fused: np.ndarray, layers: _Layers, tally: _Tally) -> set[int]:
    """Does and counts what a rule asks for; returns the ids that gained or lost voxels."""
    points = np.array(np.nonzero(verdict.voxels)) + np.array([[side.start] for side in verdict.box])
    num = points.shape[1]
    layers.claim(rule.label, points, claimed=rule.kind == "fill")
    fused[tuple(points)] = new = layers.strongest(points)
    if rule.kind == "fill":
        tally.add(rule.label, rule.text, num, 0, num=verdict.num_components)
        return {rule.label}
    went = dict(zip(*(each.tolist() for each in np.unique(new, return_counts=True)), strict=True))
    tally.add(rule.label, rule.text, 0, num, num=verdict.num_components, went=went)
    for i, gained in went.items():
        if i:
            tally.add(i, "uncovered", gained)
    return {rule.label, *went}


def _compared(fused: np.ndarray, base: np.ndarray, tally: _Tally) -> list[dict[str, Any]]:
    counts = count(fused, base)
    boxes = [boxes_of(ids) for ids in (base, fused)]
    found = []
    for i, both, after, before in zip(
        *(getattr(counts, n).tolist() for n in ("ids", "both", "mask", "label")), strict=True
    ):
        if i:
            parts = [_num_components(ids, i, at) for ids, at in zip((base, fused), boxes, strict=True)]
            values = (tally.name(i), i, before, after, before * tally.ml, after * tally.ml, *parts)
            found.append(dict(zip(CLASS, (*values, 2 * both / (before + after)), strict=True)))
    return found


def _num_components(ids: np.ndarray, label: int, boxes: Sequence[Any]) -> int:
    box = boxes[label - 1] if label <= len(boxes) else None
    return 0 if box is None else int(components(ids[box] == label).max())
