"""The index of a folder of micrographs: pairs, classes, sizes, statistics, a split, and all that is wrong with it."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from medseg_core.alike import pairs_within
from medseg_core.cases import SPLITS, Case, read_cases, split_cases, write_cases
from medseg_core.config import as_dict
from medseg_core.errors import MedsegError
from medseg_core.io import case_name
from medseg_core.progress import track
from medseg_sem_al.colours import UNSEEN, Classes, Code, classes_of, guessed, read_classes
from medseg_sem_al.groups import groups_of, merged
from medseg_sem_al.images import Seen, facts_of, read_grey, read_mask, see
from medseg_sem_al.settings import IndexConfig
from medseg_sem_al.sources import Finding, Found, find_micrographs
from medseg_sem_al.stacks import MIDDLE, is_listed, lacking, places_of, read_stack, with_neighbours

ALIKE = 0.447  # root mean square between standardised means: a correlation of 0.9. Others reach 0.82, one moved by
# three pixels has 0.91 at least (33 shared images)
ABOUT = ("rule", "classes", "class_rule", "findings", "settings")


@dataclass(frozen=True)
class Index:
    """A data set.

    Args:
        cases: files `image` and `label`, and of stacks the frames beside, `frame-1` and `frame+1`; notes dataset, size,
            banner, mean, std, pixel_nm and, with a mask, shares: of each class of its labelled pixels, and, where these
            are not all, labelled: their share. Cases without a mask are the unlabelled pool and in no split.
        classes: names and codes.
        rule: by which files were found.
        findings: `{"case", "severity", "text"}`: "error" for what was left out, "warning", "note".
        settings: of `IndexConfig`.
    """

    cases: tuple[Case, ...]
    classes: Classes
    rule: str
    findings: tuple[Finding, ...] = ()
    settings: Mapping[str, Any] | None = None

    @property
    def bad(self) -> bool:
        """Whether something was left out."""
        return any(finding["severity"] == "error" for finding in self.findings)

    @property
    def depth(self) -> int:
        """D, the frames of a stack; 1 is a picture by itself."""
        return int((self.settings or {}).get("depth", 1))

    def image(self, case: Case) -> np.ndarray:
        """(H, W) float32 in [0, 1], without the banner.

        Raises:
            MedsegError: a picture that was changed since, and has another size.
        """
        return self._frame(case.files[MIDDLE], case)

    def stack(self, case: Case) -> np.ndarray:
        """(D, H, W) float32 in [0, 1], the picture in the middle.

        Raises:
            MedsegError: as `image`.
        """
        return read_stack(case, self.depth, lambda file: self._frame(file, case))

    def _frame(self, file: Path, case: Case) -> np.ndarray:
        rows, columns = case.notes["size"]
        grey = read_grey(file)[0][:rows]
        if grey.shape != (rows, columns):
            said = f"{file} is {grey.shape[1]} pixels wide and {grey.shape[0]} high without the banner"
            raise MedsegError(f"{said}, and was {columns} and {rows} when it was indexed; index again")
        return grey

    def label(self, case: Case) -> np.ndarray:
        """(H, W) uint8 ids; 255 where nobody labelled.

        Raises:
            MedsegError: the mask was changed since, and has codes that are no class.
        """
        pixels = read_mask(case.files["label"], tuple(case.notes["size"]), case.notes["banner"])
        ids, unknown = self.classes.decode(pixels)
        if unknown:
            raise MedsegError(f"{case.files['label']}: {_said_unknown(unknown, self.classes)}")
        return ids

    def write(self, path: Path) -> None:
        """One JSON, which also `medseg_core.cases.read_cases` reads; paths are relative to it."""
        about = {"rule": self.rule, "classes": self.classes.as_json(), "class_rule": self.classes.rule}
        about |= {"findings": list(self.findings), "settings": self.settings}
        write_cases(path, self.cases, about=about)


def read_index(path: Path) -> Index:
    """What `Index.write` wrote.

    Raises:
        MedsegError: no such file, or no index.
    """
    path = Path(path)
    cases = read_cases(path)
    content = json.loads(path.read_text(encoding="utf-8-sig"))
    if lacking := [name for name in ABOUT if name not in content]:
        raise MedsegError(f"{path} has no {lacking[0]!r}, so it is no index; make one by medseg sem-al index")
    if not isinstance(content["classes"], dict) or any("size" not in case.notes for case in cases):
        raise MedsegError(f"{path} is damaged: classes or sizes are missing; make it anew by medseg sem-al index")
    classes = replace(classes_of(content["classes"], str(path)), rule=content["class_rule"])
    return Index(tuple(cases), classes, content["rule"], tuple(content["findings"]), content["settings"])


def build_index(root: Path, config: IndexConfig, *, colours: Path | None = None) -> Index:
    """Reads every picture below a folder once.

    A picture that cannot be used is left out and told; it costs no other. Labelled ones get a split by group.

    Args:
        root: see `sources.find_micrographs`.
        colours: see `colours.read_classes`; without it few values are classes by themselves.

    Raises:
        MedsegError: nothing there, masks of too many values, or shares that are no split.
    """
    known = read_classes(colours) if colours else None
    shares = _shares(config.split)
    places_of(config.depth)  # refuses an even one
    found = find_micrographs(root, images=config.images, masks=config.masks)
    cases, seen, findings = _seen(found, config)
    total = sum((one.codes for one in seen if one.codes), Counter[Code]())
    classes = known or (guessed(total) if total else Classes((), rule="no masks"))
    kept = []
    for case, one in zip(cases, seen, strict=True):
        ids, unknown = _by_class(one.codes or Counter(), classes)
        if unknown:
            findings.append(_finding(case.id, "error", _said_unknown(unknown, classes)))
            continue
        if one.codes and not any(ids[: len(classes.names)]):
            findings.append(_finding(case.id, "warning", "its mask labels no pixel; it is in the unlabelled pool"))
        kept.append((_noted(case, one, ids, config), one))
    findings += [_finding("", severity, text) for severity, text in _of_all([case for case, _ in kept], classes)]
    grouped, twins = _grouped([case for case, _ in kept], [one for _, one in kept], config)
    findings += [_finding("", "warning", text) for text in twins]
    kinds = [(case.unit, tuple(case.notes["size"]), case.notes["banner"]) for case in grouped]
    stacked = with_neighbours(grouped, config.depth, kinds)
    findings += [_finding("", severity, text) for severity, text in _of_stacks(stacked, config.depth)]
    told = as_dict(config)
    return Index(tuple(_divided(stacked, shares, config.seed)), classes, found.rule, tuple(findings), told)


def _said_unknown(unknown: Counter[Code], classes: Classes) -> str:
    """Codes that are no class, counted, the nearest class beside each."""
    parts = []
    for code, num in unknown.most_common(3):
        near = classes.nearest(code)
        parts.append(f"{code} in {num} pixels" + (f", nearest is {near}" if near else ""))
    more = f", and {len(unknown) - 3} more" if len(unknown) > 3 else ""
    return f"unknown values {'; '.join(parts)}{more}; map them by --colors, or correct the mask"


def _seen(found: Found, config: IndexConfig) -> tuple[list[Case], list[Seen], list[Finding]]:
    """What could be read, and what is wrong with the rest."""
    cases, seen, findings = [], [], list(found.findings)
    for case in track(found.cases, "Reading micrographs"):
        try:
            one = see(case.files[MIDDLE], case.files.get("label"), banner=config.banner)
            if is_listed(case) and config.depth > 1:  # its frames need be no cases
                read_stack(case, config.depth, lambda file: read_grey(file)[0])
        except MedsegError as error:
            findings.append(_finding(case.id, "error", str(error)))
            continue
        cases.append(case)
        seen.append(one)
        if one.has_colours:
            findings.append(_finding(case.id, "warning", "a colour image; the mean of its channels is taken"))
        if one.banner and config.banner < 0:
            findings.append(_finding(case.id, "note", f"a banner of {one.banner} rows at the foot is cut off"))
    return cases, seen, findings


def _finding(case: str, severity: str, text: str) -> Finding:
    return {"case": case, "severity": severity, "text": text}


def _by_class(codes: Counter[Code], classes: Classes) -> tuple[list[int], Counter[Code]]:
    """Pixels of each class and, last, of what has no label; and of each code that is neither."""
    counts, unknown = [0] * (len(classes.names) + 1), Counter[Code]()
    for code, num in codes.items():
        number = classes.id_of(code)
        if number is None:
            unknown[code] += num
        else:
            counts[-1 if number == UNSEEN else number] += num
    return counts, unknown


def _noted(case: Case, seen: Seen, counts: Sequence[int], config: IndexConfig) -> Case:
    notes = {**case.notes, **facts_of(seen)}
    if pixel_nm := seen.pixel_nm or config.pixel_nm:
        notes["pixel_nm"] = pixel_nm
    *known, unlabelled = counts
    if not sum(known):
        return replace(case, notes=notes, files={role: file for role, file in case.files.items() if role != "label"})
    notes["shares"] = [round(num / sum(known), 6) for num in known]
    notes |= {"labelled": sum(known) / sum(counts)} if unlabelled else {}
    return replace(case, notes=notes)


def _of_all(cases: Sequence[Case], classes: Classes) -> Iterator[tuple[str, str]]:
    """What is said once for all."""
    labelled = [case for case in cases if "shares" in case.notes]
    bare = len(cases) - len(labelled)
    if bare and labelled:
        yield "note", f"{bare} of {len(cases)} images have no mask: the unlabelled pool"
    for number, name in enumerate(classes.names):
        num = sum(case.notes["shares"][number] > 0 for case in labelled)
        if num == 0 and labelled:
            yield "warning", f"no mask has {name}"
    if labelled and not any("pixel_nm" in case.notes for case in cases):
        yield "note", "no file says how large a pixel is: lengths will be in pixels; give --pixel-nm"


def _grouped(cases: Sequence[Case], seen: Sequence[Seen], config: IndexConfig) -> tuple[list[Case], list[str]]:
    """Cases with their groups, and what is nearly the same across groups, which then are one."""
    rows, places = [], []
    for place, one in enumerate(seen):
        if one.described.any():
            rows.append(one.described)
            places.append(place)
    fronts = [f"{case.notes['dataset']}/" for case in cases]
    stems = [case_name(case.files["image"]) for case in cases]
    groups = [front + group for front, group in zip(fronts, groups_of(stems, config.group), strict=True)]
    pairs = [(places[one], places[other]) for one, other in pairs_within(rows, ALIKE)]
    across = [(one, other) for one, other in pairs if groups[one] != groups[other]]
    told = [
        f"nearly the same picture: {cases[one].id} and {cases[other].id}; they stay in one split"
        for one, other in across
    ]
    whole = merged(groups, across)
    return [replace(case, group=group) for case, group in zip(cases, whole, strict=True)], told


def _of_stacks(cases: Sequence[Case], depth: int) -> Iterator[tuple[str, str]]:
    """What is said of neighbours."""
    listed = sum(map(is_listed, cases))
    if depth == 1 and listed:
        yield "note", f"{listed} pictures are listed with their neighbours; --depth 3 lets a network see them too"
    elif depth > 1 and not listed:
        yield "warning", "no picture has a neighbour: no two names differ by a last number within a group; see --group"
    elif depth > 1 and (num := sum(lacking(case, depth) for case in cases)):
        yield "note", f"{num} of {len(cases)} pictures lack a neighbour, and the nearest frame is taken again"


def _shares(split: Sequence[float]) -> tuple[float, float]:
    """Of validation and test.

    Raises:
        MedsegError: not three shares that add up to one, or none to train on.
    """
    if len(split) != 3 or abs(sum(split) - 1) > 0.01 or split[0] == 0:
        given = ",".join(f"{share:g}" for share in split)
        raise MedsegError(f"--split {given} must be three shares that add up to 1, such as 0.7,0.2,0.1")
    return split[1], split[2]


def _divided(cases: Sequence[Case], shares: tuple[float, float], seed: int) -> list[Case]:
    """Labelled cases with a split; the pool has none."""
    labelled = [case for case in cases if "label" in case.files]
    split = {case.id: case.split for case in split_cases(labelled, val=shares[0], test=shares[1], seed=seed)}
    return [replace(case, split=split.get(case.id, "")) for case in cases]


def statistics(index: Index) -> list[dict[str, Any]]:
    """A row for each data set, and one for all where there are several.

    Returns:
        data set, images, labelled, their counts per split, size (smallest and largest), mean and std of the values in
        [0, 1] over pixels, pixel_nm, and shares of each class over pixels.
    """
    names = list(dict.fromkeys(case.notes["dataset"] for case in index.cases))
    rows = [_row(name, [case for case in index.cases if case.notes["dataset"] == name], index) for name in names]
    return [*rows, _row("all", index.cases, index)] if len(names) > 1 else rows


def moments(cases: Sequence[Case]) -> tuple[float, float]:
    """Mean and standard deviation of all pixels of these pictures, in [0, 1]."""
    weights = [float(np.prod(case.notes["size"])) for case in cases]
    means, stds = (np.array([case.notes[word] for case in cases]) for word in ("mean", "std"))
    mean = float(np.average(means, weights=weights))
    return mean, max(float(np.average(stds**2 + means**2, weights=weights)) - mean**2, 0.0) ** 0.5


def shares_of(cases: Sequence[Case]) -> np.ndarray:
    """(K,) of each class of the labelled pixels of these pictures together."""
    areas = [np.prod(case.notes["size"]) * case.notes.get("labelled", 1.0) for case in cases]
    return np.average([case.notes["shares"] for case in cases], axis=0, weights=areas)


def _row(name: str, cases: Sequence[Case], index: Index) -> dict[str, Any]:
    labelled = [case for case in cases if "shares" in case.notes]
    sizes = np.array([case.notes["size"] for case in cases])
    mean, std = moments(cases)
    row: dict[str, Any] = {"dataset": name, "images": len(cases), "labelled": len(labelled)}
    row |= {part: sum(case.split == part for case in labelled) for part in SPLITS if part}
    row |= {"size": [sizes.min(0).tolist(), sizes.max(0).tolist()], "mean": mean, "std": std}
    row["pixel_nm"] = sorted({case.notes["pixel_nm"] for case in cases if "pixel_nm" in case.notes})
    if labelled:
        row["shares"] = dict(zip(index.classes.names, shares_of(labelled).tolist(), strict=True))
    return row
