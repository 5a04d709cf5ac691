"""Anatomical rules of a label map: how they are written, and what each asks for.

Axes: X Y Z, voxels in the file's own order.

Components are connected through faces, edges or corners; distances are those of voxel centres. A rule looks at one
class of a fused label map and answers with voxels: those that should lose the class, or, of holes, those that should
get it. It never answers with the whole class, nor with more of it than it may remove.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

import numpy as np
from scipy.ndimage import binary_dilation, find_objects

from medseg_core.errors import MedsegError, meant
from medseg_core.masks import components, fill_holes, in_fortran_order, keep_largest
from medseg_core.nearest import distances
from medseg_near.audit import rim
from medseg_near.settings import MergeConfig
from medseg_near.whole_heart import WHOLE_HEART

WRITTEN = {
    "touch": "CLASS:OTHER or CLASS:OTHER/OTHER, like LAA:LA",
    "near": "CLASS:OTHER/OTHER:DISTANCEmm, like coronary:aorta/myocardium:3mm",
    "keep": "CLASS=NUMBER with a number of at least 1, like aorta=2",
    "fill": "a CLASS, like myocardium",
    "priority": "a CLASS, like coronary",
}
ROUNDING = 1e-6  # of a distance: spacings come from float32 headers

Kind = Literal["touch", "near", "keep", "fill"]
Outcome = Literal["changed", "nothing to do", "left", "class absent", "no target"]
Box = tuple[slice, ...]
T = TypeVar("T")


@dataclass(frozen=True)
class Rule:
    """One rule for one class.

    Args:
        kind: "touch" and "near" remove components that lie apart from all of `others`, "keep" those beyond the largest,
            "fill" gives holes to the class.
        label: id of the class.
        others: ids of the classes that it must touch or be near to.
        most: components that stay.
        within_mm: the largest distance that is near.
        text: as it is told, "touch LAA:LA".
    """

    kind: Kind
    label: int
    others: tuple[int, ...] = ()
    most: int = 0
    within_mm: float = 0.0
    text: str = ""


@dataclass(frozen=True)
class Rules:
    """All of a merge.

    Args:
        labels: id -> name.
        priority: every id of `labels`; of two classes that claim a voxel the earlier one has it.
        steps: in the order they are applied.
        max_removed: the largest share of a class that one of them may remove.
        left_out: rules of the defaults that name a class which `labels` lacks.
    """

    labels: Mapping[int, str]
    priority: tuple[int, ...]
    steps: tuple[Rule, ...]
    max_removed: float = 1.0
    left_out: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Verdict:
    """What a rule asks for.

    Args:
        outcome: "changed"; "nothing to do"; "left", as it would remove too much; "class absent"; "no target", as none
            of the others is there.
        box: where `voxels` lie in the map.
        voxels: bool; they lose the class, or by "fill" get it.
        num_components: connected parts of `voxels`; for holes, through faces.
        share: of the class, that it would remove.
    """

    outcome: Outcome
    box: Box = (slice(0, 0),) * 3
    voxels: np.ndarray | None = None
    num_components: int = 0
    share: float = 0.0


def read_rules(config: MergeConfig, labels: Mapping[int, str] = WHOLE_HEART) -> Rules:
    """The rules of the settings, for the classes of a list.

    Names are read without regard to case; an id stands for its class too. A rule that is a default and names a class
    which the list lacks is left out: other anatomy needs no other defaults. The order is touch, near, keep, fill.

    Raises:
        MedsegError: an unknown class (with the nearest right name), a rule written otherwise, a class twice in
            `priority` or `keep`, or two names that are one.
    """
    names = {name.casefold(): i for i, name in labels.items()}
    if len(names) < len(labels) or not labels or min(labels) < 1:
        raise MedsegError(f"the class list {dict(labels)} must have ids from 1 on and a name of its own for each")
    reader = _Reader(labels, names, MergeConfig())
    steps = []
    for kind in ("touch", "near", "keep", "fill"):
        steps += reader.read(kind, getattr(config, kind), reader.rule)
    priority = reader.read("priority", config.priority, reader.only)
    for what, ids in (("priority", priority), ("keep", [rule.label for rule in steps if rule.kind == "keep"])):
        twice = [i for i in ids if ids.count(i) > 1]
        if twice:
            raise MedsegError(f"{what} names {labels[twice[0]]!r} twice; leave one")
    rest = [i for i in sorted(labels) if i not in priority]
    return Rules(dict(labels), (*priority, *rest), tuple(steps), config.max_removed, tuple(reader.left_out))


class _Reader:
    """Text to rules."""

    def __init__(self, labels: Mapping[int, str], names: Mapping[str, int], defaults: MergeConfig) -> None:
        self.labels, self.names, self.defaults = labels, names, defaults
        self.left_out: list[str] = []

    def read(self, kind: str, texts: Sequence[str] | None, parse: Callable[[str, str], T]) -> list[T]:
        """What is written, without the defaults whose classes are not all there."""
        found = []
        for text in texts or ():
            try:
                found.append(parse(kind, text.strip()))
            except _UnknownClassError:
                if text not in (getattr(self.defaults, kind) or ()):
                    raise
                self.left_out.append(f"{kind} {text}")
        return found

    def only(self, kind: str, text: str) -> int:
        """The id of a class that stands alone."""
        return self._id(kind, text, text)

    def rule(self, kind: str, text: str) -> Rule:
        """One of the four kinds."""
        told = f"{kind} {text}"
        if kind == "fill":
            return Rule("fill", self.only(kind, text), text=told)
        if kind == "keep":
            match = re.fullmatch(r"([^=]+)=\s*0*([1-9]\d{0,8})\s*", text)
            if match:
                return Rule("keep", self._id(kind, text, match[1]), most=int(match[2]), text=told)
        elif match := re.fullmatch(r"([^:]+):([^:]+)" + r":\s*(\d+\.?\d*|\.\d+)\s*mm" * (kind == "near"), text):
            label, others = self._id(kind, text, match[1]), self._ids(kind, text, match[2])
            if label in others:
                raise MedsegError(f"{kind} {text!r} holds {self.labels[label]} against itself; name another class")
            if kind == "touch":
                return Rule("touch", label, others, text=told)
            return Rule("near", label, others, within_mm=float(match[3]), text=told)
        raise MedsegError(f"{kind} {text!r} must be {WRITTEN[kind]}")

    def _ids(self, kind: str, text: str, names: str) -> tuple[int, ...]:
        return tuple(dict.fromkeys(self._id(kind, text, name) for name in names.split("/")))

    def _id(self, kind: str, text: str, name: str) -> int:
        name = name.strip()
        if not name or set(name) & set("=:/"):
            raise MedsegError(f"{kind} {text!r} must be {WRITTEN[kind]}")
        if name.casefold() in self.names:
            return self.names[name.casefold()]
        if name.isdecimal() and int(name) in self.labels:
            return int(name)
        raise _UnknownClassError(f"{kind} {text!r} names no class of the list: {name!r}{nearest(name, self.labels)}")


class _UnknownClassError(MedsegError):
    """A name that the class list lacks."""


def nearest(name: str, labels: Mapping[int, str]) -> str:
    """`; did you mean 'LAA'?`, whatever the case of the letters, or the classes there are."""
    found = meant(name.casefold(), [known.casefold() for known in labels.values()])
    for known in labels.values():
        found = found.replace(repr(known.casefold()), repr(known))
    return found or f"; it has {', '.join(list(labels.values())[:20])}"


def boxes_of(ids: np.ndarray) -> list[Box | None]:
    """Of each id from 1 on the box that holds it, None where it is absent; walks along the memory of the map."""
    if in_fortran_order(ids):
        return [box and box[::-1] for box in find_objects(ids.T)]
    return find_objects(ids)


def judge(
    rule: Rule,
    ids: np.ndarray,
    boxes: Sequence[Box | None],
    *,
    spacing_mm: Sequence[float],
    max_removed: float = 1.0,
) -> Verdict:
    """What a rule asks for of a fused label map.

    Args:
        ids: (X, Y, Z) label map, unsigned.
        boxes: of each id, as `boxes_of` gives them.
        spacing_mm: along X, Y, Z.
        max_removed: the largest share of the class that may go; never all of it.
    """
    box = _box_of(rule.label, boxes)
    if box is None:
        return Verdict("class absent")
    if rule.kind == "fill":
        filled = fill_holes(ids[box], ids={rule.label}) != ids[box]
        num_holes = int(components(filled, connectivity=6).max(initial=0))
        return Verdict("changed" if num_holes else "nothing to do", box, filled, num_holes)
    if rule.kind in ("touch", "near"):
        if not any(_box_of(other, boxes) for other in rule.others):
            return Verdict("no target")
        reach_mm = rule.within_mm * (1 + ROUNDING)
        box = _grown(box, ids.shape, [max(1, math.floor(reach_mm / edge)) for edge in spacing_mm])
    mask = ids[box] == rule.label
    if rule.kind == "keep":
        gone = mask & ~keep_largest(mask, n=rule.most)
    else:
        targets = np.isin(ids[box], rule.others)
        gone = _apart_of(rule, components(mask), targets, spacing_mm)
    share = np.count_nonzero(gone) / np.count_nonzero(mask)
    if not share:
        return Verdict("nothing to do")
    num = int(components(gone).max())
    return Verdict("left" if share == 1 or share > max_removed else "changed", box, gone, num, share)


def _apart_of(rule: Rule, parts: np.ndarray, targets: np.ndarray, spacing_mm: Sequence[float]) -> np.ndarray:
    """The voxels of the parts that lie apart from all targets."""
    found = _touching(parts, targets) if rule.kind == "touch" else _near(parts, targets, rule.within_mm, spacing_mm)
    apart = np.ones(int(parts.max()) + 1, bool)
    apart[found] = apart[0] = False
    return apart[parts]


def _box_of(label: int, boxes: Sequence[Box | None]) -> Box | None:
    return boxes[label - 1] if label <= len(boxes) else None


def _grown(box: Box, shape: Sequence[int], voxels: Sequence[int]) -> Box:
    sides = zip(box, shape, voxels, strict=True)
    return tuple(slice(max(0, side.start - by), min(n, side.stop + by)) for side, n, by in sides)


def _touching(parts: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Numbers of the parts with a target among the 26 neighbours of a voxel."""
    return np.unique(parts[binary_dilation(targets, np.ones((3, 3, 3), bool))])


def _near(parts: np.ndarray, targets: np.ndarray, within_mm: float, spacing_mm: Sequence[float]) -> np.ndarray:
    """Numbers of the parts with a target within a distance; the nearest voxels of two masks lie on their rims."""
    parts, targets = np.ascontiguousarray(parts), np.ascontiguousarray(targets)
    points, others = np.flatnonzero(rim(parts > 0)), np.flatnonzero(rim(targets))
    if not others.size:
        return points[:0]
    apart_mm = distances(points, others, parts.shape, np.asarray(spacing_mm, np.float64))
    return np.unique(parts.flat[points[apart_mm <= within_mm * (1 + ROUNDING)]])
