"""Stage 2 over folders: refined masks and base label maps paired by case, fused, cleaned, written and counted."""

import logging
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from medseg_core.cases import Case
from medseg_core.cohort import Outcome, answers, for_each, processes
from medseg_core.config import as_dict
from medseg_core.distributed import from_first
from medseg_core.errors import MedsegError
from medseg_core.io import write_volume
from medseg_core.labelmaps import NAMES_FILE, LabelMap, find_label_maps, label_map, write_labels
from medseg_core.table import write_csv
from medseg_core.volume import Volume
from medseg_near.fuse import CLASS, EFFECT, fuse, present
from medseg_near.outputs import make_ready, stamp_of
from medseg_near.rules import Rules, nearest, read_rules
from medseg_near.settings import MergeConfig
from medseg_near.whole_heart import WHOLE_HEART

RULES_CSV, CLASSES_CSV = "rules.csv", "classes.csv"
BASE = "base"  # role of a case's file; refined ones are "0", "1", ... as given
SHOWN = 5

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Source:
    """One REFINED: masks of one class, or label maps where `label` is None."""

    label: int | None
    path: Path
    maps: Mapping[str, LabelMap]


@dataclass(frozen=True)
class _Plan:
    """What every case needs.

    Args:
        wanted: of each REFINED its class, None for label maps.
        assumed: nobody gave the class list, so ids beyond it mean another one.
    """

    rules: Rules
    wanted: tuple[int | None, ...]
    assumed: bool
    out: Path


def merge_files(
    refined: Sequence[str | Path],
    base: Path,
    out: Path,
    config: MergeConfig,
    *,
    labels: Mapping[int, str] | None = None,
    overwrite: bool = False,
    executor: Executor | None = None,
) -> Outcome:
    """Writes `<case>.nii.gz` of every case, `labels.json`, `rules.csv` (every effect) and `classes.csv` under `out`.

    Goes on where an interrupted call stopped, does again what has new inputs, and a bad case costs only itself.

    Args:
        refined: `CLASS=PATH` for masks of one class (0 and one other value), named after the case or
            `<case>-<class>`; or a path of label maps, which refine the classes named beside them (`labels.json`, files
            of a folder of masks), else those whose ids they hold. A class of its own wins over label maps. A base case
            that none of them has is left out; without any, the rules alone clean the base.
        base: label maps, a file or a folder; see `medseg_core.labelmaps.find_label_maps`.
        labels: id -> name; None takes the `labels.json` beside the base, or the names of masks, else the ten classes
            of the heart, `whole_heart.WHOLE_HEART`.
        executor: merges the cases, instead of `config.workers` processes.

    Raises:
        MedsegError: a rule or class that cannot be, nothing to pair, or an output folder that holds something else.
    """
    out = Path(out)
    bases = find_label_maps(Path(base), names=frozenset((labels or WHOLE_HEART).values()))
    listed = labels or _listed(bases)
    rules = read_rules(config, listed or WHOLE_HEART)
    for text in rules.left_out:
        log.info("%s is left out: the class list lacks a class of it", text)
    sources = [_source(str(text), rules.labels) for text in refined]
    given = [source.label for source in sources if source.label is not None]
    twice = next((i for i in given if given.count(i) > 1), None)
    if twice is not None:
        raise MedsegError(f"{rules.labels[twice]} is given twice; give one path of masks for each class")
    cases = _paired(bases, sources, rules.labels, base=Path(base))
    from_first(partial(make_ready, out, cases, verb="merge", overwrite=overwrite))
    plan = _Plan(rules, tuple(source.label for source in sources), not listed, out)
    settings = {key: value for key, value in as_dict(config).items() if key != "workers"}
    settings |= {"labels": {str(i): name for i, name in rules.labels.items()}}
    settings |= {"refined": [str(text) for text in refined]}
    pool = processes(config.workers) if executor is None and config.workers > 1 else nullcontext(executor)
    with pool as chosen:
        outcome = for_each(cases, partial(_merged, plan=plan), out=out, config=settings, executor=chosen)
    from_first(partial(_write_tables, out, rules.labels))
    return outcome


def summary(out: Path) -> list[dict[str, Any]]:
    """What each rule did over all cases that are done under `out`: a row for each class and rule, in their order."""
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for _, answer in answers(Path(out)):
        for effect in answer["effects"]:
            row = found.setdefault((effect["class"], effect["rule"]), _blank(effect))
            row["cases"] += 1
            row["changed"] += effect["outcome"] == "changed"
            for name in ("flagged", "num_components", "added_voxels", "removed_voxels", "added_ml", "removed_ml"):
                row[name] += effect[name]
    return list(found.values())


def flags(out: Path) -> dict[str, list[str]]:
    """Case -> what was left as it was or could not be done, in sentences, for the cases under `out` with any."""
    return {case: answer["flags"] for case, answer in answers(Path(out)) if answer["flags"]}


def _blank(effect: Mapping[str, Any]) -> dict[str, Any]:
    numbers = ("cases", "changed", "flagged", "num_components", "added_voxels", "removed_voxels")
    return {
        "class": effect["class"],
        "rule": effect["rule"],
        **dict.fromkeys(numbers, 0),
        "added_ml": 0.0,
        "removed_ml": 0.0,
    }


def _listed(bases: Mapping[str, LabelMap]) -> dict[int, str]:
    """The class list that the base brings; {} where it is that of the heart, or none."""
    for one in bases.values():
        if one.ids:
            return {i: name for name, i in sorted(one.ids.items(), key=lambda item: item[1]) if i}
    names = sorted({name for one in bases.values() for name in one.names()})
    return {} if set(names) <= set(WHOLE_HEART.values()) else dict(enumerate(names, 1))


def _source(text: str, labels: Mapping[int, str]) -> _Source:
    name, equals, path = text.partition("=")
    if not equals or Path(text).exists():
        return _Source(None, Path(text), find_label_maps(Path(text), names=frozenset(labels.values())))
    ids = {known.casefold(): i for i, known in labels.items()}
    if name.strip().casefold() not in ids:
        raise MedsegError(f"{text}: no class is called {name.strip()!r}{nearest(name.strip(), labels)}")
    return _Source(ids[name.strip().casefold()], Path(path), find_label_maps(Path(path)))


def _paired(
    bases: Mapping[str, LabelMap], sources: Sequence[_Source], labels: Mapping[int, str], *, base: Path
) -> list[Case]:
    """The base cases that a source has, with their files."""
    cases, unused = [], [set(source.maps) for source in sources]
    for case, one in bases.items():
        files = {BASE: one.path}
        for n, source in enumerate(sources):
            names = [case] if source.label is None else [case, f"{case}-{labels[source.label]}"]
            if len(bases) == len(source.maps) == 1:  # they belong together, whatever they are called
                names += source.maps
            key = next((name for name in names if name in source.maps), None)
            if key is not None:
                files[str(n)] = source.maps[key].path
                unused[n].discard(key)
        if len(files) > 1 or not sources:
            cases.append(Case(case, files))
    if not cases:
        raise MedsegError(
            f"{base} and {sources[0].path} share no case: {_some(bases)} against {_some(sources[0].maps)}"
        )
    left_out = bases.keys() - {case.id for case in cases}
    if left_out:
        log.warning("%d cases of %s have nothing refined and are left out: %s", len(left_out), base, _some(left_out))
    for source, names in zip(sources, unused, strict=True):
        if names:
            log.warning("%d maps of %s belong to no case of %s: %s", len(names), source.path, base, _some(names))
    return cases


def _some(names: Mapping[str, Any] | set[str]) -> str:
    return ", ".join(sorted(names)[:SHOWN]) + ", ..." * (len(names) > SHOWN)


def _merged(case: Case, *, plan: _Plan) -> dict[str, Any]:
    """All of a case is read and checked before its one file is written."""
    base, told = _read_base(case.files[BASE], plan)
    masks = _read_refined(case, base, plan)
    merged = fuse(base.voxels, masks, plan.rules, spacing_mm=base.spacing_mm)
    write_volume(base.like(merged.label), plan.out / f"{case.id}.nii.gz")
    flagged = [*told, *merged.flags]
    for sentence in flagged:
        log.warning("%s: %s", case.id, sentence)
    return {
        "files": stamp_of(case),
        "refined": [plan.rules.labels[i] for i in sorted(masks)],
        "effects": list(merged.effects),
        "classes": list(merged.classes),
        "flags": flagged,
    }


def _read_base(path: Path, plan: _Plan) -> tuple[Volume, list[str]]:
    """The ids of the class list; what else the map holds is kept, unless its ids mean another thing."""
    held, ids = label_map(path), {name: i for i, name in plan.rules.labels.items()}
    told = []
    if held.masks is not None or any(ids.get(name, i) != i for name, i in (held.ids or {}).items()):
        lost = sorted(held.names() - ids.keys())
        if lost:
            told = [f"{', '.join(lost[:SHOWN])} of the base are not in the class list and become background"]
        return _volume(held, ids), told
    base = _volume(held, None)
    unnamed = sorted(present(base.voxels) - plan.rules.labels.keys())
    if unnamed and plan.assumed:
        raise MedsegError(f"{path} holds the id {unnamed[0]}, which the classes of the heart lack; give --labels FILE")
    if unnamed:
        told = [f"ids {', '.join(map(str, unnamed[:SHOWN]))} have no name; they are kept as they are"]
    return base, told


def _read_refined(case: Case, base: Volume, plan: _Plan) -> dict[int, np.ndarray]:
    """Class -> its mask, on the grid of the base; masks of one class win over label maps."""
    alone: dict[int, np.ndarray] = {}
    together: dict[int, tuple[np.ndarray, Path]] = {}
    for n, wanted in enumerate(plan.wanted):
        path = case.files.get(str(n))
        if path is None:
            continue
        held = label_map(path)
        found = _volume(held, None if wanted is not None else {name: i for i, name in plan.rules.labels.items()})
        difference = found.grid.differs(base.grid)
        if difference:
            raise MedsegError(
                f"{path} is not on the grid of the base: {difference}; refine writes on that of its input"
            )
        if wanted is not None:
            alone[wanted] = _one_class(found.voxels, path, plan.rules.labels[wanted])
            continue
        names = held.annotated
        ids = present(found.voxels) if names is None else set()
        for i, name in plan.rules.labels.items():
            if i in ids or (names is not None and name in names):
                if i in together:
                    raise MedsegError(f"{name} is in {together[i][1]} and in {path}; give one of them")
                together[i] = found.voxels == i, path
    return {i: mask for i, (mask, _) in together.items()} | alone


def _one_class(voxels: np.ndarray, path: Path, name: str) -> np.ndarray:
    values = sorted(present(voxels))
    if len(values) > 1:
        fix = "give label maps without CLASS="
        raise MedsegError(f"{path} holds the ids {values[:SHOWN]} where a mask of {name} has one; {fix}")
    return voxels != 0


def _volume(held: LabelMap, ids: Mapping[str, int] | None) -> Volume:
    found = held.read(ids)
    if not isinstance(found, Volume):
        raise MedsegError(f"{held.path} is a picture where a label map in 3D is needed; give a NIfTI file")
    return found


def _write_tables(out: Path, labels: Mapping[int, str]) -> None:
    """Of all that is done, by this call and by earlier ones."""
    effects, classes = [], []
    for case, answer in answers(out):
        effects += [{"case": case, **row} for row in answer["effects"]]
        classes += [{"case": case, **row} for row in answer["classes"]]
    write_csv(out / RULES_CSV, effects, ("case", *EFFECT))
    write_csv(out / CLASSES_CSV, classes, ("case", *CLASS))
    write_labels(out / NAMES_FILE, labels)
