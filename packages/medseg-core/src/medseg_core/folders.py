"""Folders of masks held against folders of labels: paired by name, scored case by case, told in one report."""

import hashlib
import logging
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from medseg_core.audit import Audit
from medseg_core.cases import Case
from medseg_core.cohort import answers, clear_journal, for_each, forget, processes
from medseg_core.config import as_dict
from medseg_core.distributed import gather, place
from medseg_core.errors import MedsegError
from medseg_core.evaluate import Evaluation, named_once, write_tables
from medseg_core.gallery import draw_overlay, surfaces_of
from medseg_core.io import SUFFIXES, case_name
from medseg_core.labelmaps import NAMES_FILE, LabelMap, find_label_maps
from medseg_core.masks import CONNECTIVITIES
from medseg_core.report import shown_cases, write_report
from medseg_core.score import check_kinds
from medseg_core.scoring import EMPTY, LABEL, MODEL, RIVAL, ROLES, how_of, read_pair, rows_of, score_case
from medseg_core.settings import ScoreConfig
from medseg_core.table import Rows

TABLES = ("cases.csv", "baselines.csv", "summary.csv", "summary.json", "comparison.csv")
REPORT, PICTURES = "report.html", "pictures"
STAMP = "files"  # in the journal, beside a case's answer

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Plan:
    """Who is scored against whom, and what came of looking for partners."""

    cases: Sequence[Case]
    labels: Mapping[int, str] | None
    rival: str
    notes: Sequence[str]
    refused: Mapping[str, str]
    unpaired: int
    unlisted: Sequence[str]


def evaluate_folders(
    pred: Path,
    ref: Path,
    out: Path,
    config: ScoreConfig,
    *,
    labels: Mapping[int, str] | None = None,
    compare: Path | None = None,
    images: Path | Mapping[str, Path] | None = None,
    groups: Mapping[str, str] | None = None,
    only: Collection[str] | None = None,
    executor: Executor | None = None,
    overwrite: bool = False,
    title: str = "",
    notes: Sequence[str] = (),
    pictures: Sequence[Path] = (),
) -> tuple[Evaluation, Mapping[str, str]]:
    """Scores every case that PRED and REF share, into tables, `summary.json` and `report.html` under `out`.

    Goes on where an interrupted call stopped, and scores again what was written anew since; a bad case costs only
    itself. Under torchrun the processes share the cases, and the first of them writes the report.

    Args:
        pred, ref: volumes, pictures, folders of masks or released cases, paired by name; see `find_label_maps`.
        labels: id -> name; None takes the names that folders or `labels.json` bring, else ids as they are stored.
        compare: masks of another model on the same cases, to be compared measure by measure.
        images: what lies under the overlays: a folder, or files by case; nnU-Net's `case_0000` belongs to `case`.
        groups: structure -> group.
        only: cases to look at; None takes all.
        executor: scores the cases, any of `concurrent.futures`, instead of `config.workers` processes.
        title, notes, pictures: of the report.

    Returns:
        The evaluation, and what went wrong by case.

    Raises:
        MedsegError: nothing to pair, or an output in use.
    """
    out = Path(out)
    _check(config)
    plan = _plan(Path(pred), Path(ref), labels, compare=compare, images=images, only=only)
    if config.anonymous:
        notes = [*notes, f"{plan.unpaired} cases without a partner on the other side"] if plan.unpaired else notes
        title = title or "Prediction against reference"
        plan = replace(plan, notes=(), rival=plan.rival and "other model")
    _make_ready(out, plan, overwrite=overwrite)
    settings = {"pred": str(pred), "ref": str(ref), "compare": str(compare or ""), **as_dict(config)}
    settings |= {"labels": {str(i): name for i, name in (plan.labels or {}).items()}, "only": sorted(only or ())}
    settings.pop("workers")
    work = partial(_scored, labels=plan.labels, config=config)
    with _pool(config.workers, len(plan.cases)) if executor is None else nullcontext(executor) as pool:
        outcome = for_each(plan.cases, work, out=out, config=settings, executor=pool)
    failed = {**plan.refused, **outcome.failed}
    evaluation, alias = _gathered(out, plan, config, groups or {}, failed)
    if not evaluation.rows:
        why = next(iter(failed.values()), "no structure is on either side of any case; check the labels")
        raise MedsegError(f"nothing could be scored in {len(plan.cases)} cases; first: {why}")
    try:
        if place()[0] == 0:
            write_tables(evaluation, out)
            evaluation = replace(evaluation, **_looks(evaluation, plan, config, alias, out))
            told = [*notes, *plan.notes, *(_failure(case, why, alias, config) for case, why in failed.items())]
            title = title or f"{Path(pred).name} against {Path(ref).name}"
            write_report(out, evaluation, title=title, pictures=pictures, notes=told)
    finally:
        gather("")  # who is done first must not end the others
    return evaluation, failed


def _check(config: ScoreConfig) -> None:
    """What would else fail in every case."""
    check_kinds(config.measures)
    allowed = sorted(n for numbers in CONNECTIVITIES.values() for n in numbers)
    if config.connectivity not in (None, *allowed):
        raise MedsegError(f"connectivity {config.connectivity} does not exist; it is one of {allowed}, or none")


def _plan(
    pred: Path,
    ref: Path,
    labels: Mapping[int, str] | None,
    *,
    compare: Path | None,
    images: Path | Mapping[str, Path] | None,
    only: Collection[str] | None,
) -> _Plan:
    true = {case: found for case, found in find_label_maps(ref).items() if only is None or case in only}
    mine = _paired_if_single(find_label_maps(pred), true)
    theirs = _paired_if_single(find_label_maps(Path(compare)), true) if compare else {}
    every = [*true.values(), *mine.values(), *theirs.values()]
    chosen = named_once(labels) if labels is not None else _names_of(every)
    unlisted = sorted({name for one in every for name in one.names()} - set((chosen or {}).values()))
    shared = sorted(true.keys() & mine.keys())
    if not shared:
        raise MedsegError(f"{pred} and {ref} share no case name: {_some(mine)} against {_some(true)}")
    scans = _images(images, shared)
    cases, refused = [], {}
    for case in shared:
        files = {MODEL: mine[case].path, LABEL: true[case].path} | scans.get(case, {})
        try:
            cases.append(Case(case, files | ({RIVAL: theirs[case].path} if case in theirs else {})))
        except MedsegError as error:
            refused[case] = str(error)
    notes = _without_partner(mine, true, pred, ref) + (_without_partner(theirs, true, compare, ref) if compare else [])
    rival = ""
    if compare:
        rival = Path(compare).name if Path(compare).name not in (pred.name, EMPTY) else str(compare)
    return _Plan(cases, chosen, rival, notes, refused, len(true.keys() ^ mine.keys()), unlisted)


def _names_of(found: Sequence[LabelMap]) -> dict[int, str] | None:
    """id -> name from a `labels.json` beside label maps, else the names of masks, numbered; None where none are.

    A name that the first list lacks gets an id of its own: what only one side names is missed or invented.

    Raises:
        MedsegError: names without ids on one side and ids without names on the other.
    """
    listed = [one.ids for one in found if one.ids]
    bare = [one for one in found if one.annotated is None]
    masks = [one for one in found if one.masks is not None]
    if masks and bare and not listed:
        fix = "say which id is which: --labels FILE, or a labels.json beside the files"
        raise MedsegError(f"{masks[0].path} has names and {bare[0].path} has ids; {fix}")
    names = {name: i for name, i in listed[0].items() if i} if listed else {}
    free = max((i for ids in listed for i in ids.values()), default=0)
    for n, name in enumerate(sorted({name for one in found for name in one.names()} - names.keys()), 1):
        if not bare:
            names[name] = free + n
    return named_once({i: name for name, i in names.items()}) or None


def _images(images: Path | Mapping[str, Path] | None, cases: Sequence[str]) -> dict[str, dict[str, Path]]:
    """Case -> its image, by role: a `ct` is shown in the window of soft tissue."""
    if images is None:
        return {}
    if not isinstance(images, Mapping):
        folder = Path(images)
        if not folder.is_dir():
            raise MedsegError(f"there is no folder {folder} of images")
        files = (file for file in sorted(folder.iterdir()) if file.name.lower().endswith(SUFFIXES))
        images = {file.parent.name: file for file in folder.glob("*/ct.nii.gz")} | {case_name(f): f for f in files}
    found = {case: images.get(case) or images.get(f"{case}_0000") for case in cases}
    return {case: {"ct" if file.name.startswith("ct.") else "image": file} for case, file in found.items() if file}


def _make_ready(out: Path, plan: _Plan, *, overwrite: bool) -> None:
    """A folder that this command began goes on; a finished one, and other people's files, stay unless asked for.

    Cases whose files were written anew since they were scored are forgotten. Of many processes the first looks, and all
    hear what it found.
    """
    why = ""
    if place()[0] == 0:
        try:
            why = _refusal(out, plan, overwrite=overwrite)
        except MedsegError as error:  # of a damaged journal; the others must hear of it
            why = str(error)
    (why, *_) = gather(why)
    if why:
        raise MedsegError(why)


def _refusal(out: Path, plan: _Plan, *, overwrite: bool) -> str:
    """Why a folder cannot be used, or "" once it is ready."""
    begun = any(out.glob("journal*.jsonl"))
    if overwrite:
        if begun:  # else nothing there is ours
            clear_journal(out)
            ours = [*(out / name for name in (*TABLES, REPORT)), *out.glob(f"{PICTURES}/[0-9][0-9][0-9][0-9].png")]
            for file in ours:
                file.unlink(missing_ok=True)
        return ""
    if begun:
        _forget_changed(out, plan)
        if (out / REPORT).exists() and _is_finished(out, plan):
            return f"{out} holds an evaluation; add --overwrite to replace it, or choose another --out"
    elif out.is_dir() and any(out.iterdir()):
        return f"{out} is not empty and was not begun by evaluate; choose another --out, or add --overwrite"
    return ""


def _forget_changed(out: Path, plan: _Plan) -> None:
    cases = {case.id: case for case in plan.cases}
    changed = [name for name, answer in answers(out) if name in cases and answer.get(STAMP) != _stamp(cases[name])]
    if changed:
        log.warning("%d cases have changed since they were scored: %s", len(changed), _some(changed))
        forget(out, set(changed))


def _scored(case: Case, *, labels: Mapping[int, str] | None, config: ScoreConfig) -> Mapping[str, Any]:
    """The answer for the journal, with what says whether a later call may still believe it."""
    stamp = _stamp(case)
    return {STAMP: stamp, **score_case(case, labels=labels, config=config)}


def _stamp(case: Case) -> str:
    """Another one where a file that is scored, or the names beside it, was written anew."""
    files = [file for role, file in sorted(case.files.items()) if role in ROLES]
    beside = [file.with_name(NAMES_FILE) for file in files if not file.is_dir()]
    inside = [name for file in files if file.is_dir() for name in sorted(file.iterdir())]
    facts = [
        (file.name, (s := file.stat()).st_size, s.st_mtime_ns) for file in (*files, *beside, *inside) if file.exists()
    ]
    return hashlib.sha256(repr(facts).encode(errors="replace")).hexdigest()


def _is_finished(out: Path, plan: _Plan) -> bool:
    return {case.id for case in plan.cases} <= {case for case, _ in answers(out)}


@contextmanager
def _pool(workers: int, num_cases: int) -> Iterator[Executor | None]:
    """Processes, where several are wanted and several cases are there; under torchrun each process works by itself."""
    workers = workers or (os.cpu_count() or 1 if place()[1] == 1 else 1)
    if min(workers, num_cases) < 2:
        yield None
        return
    with processes(min(workers, num_cases)) as pool:
        yield pool


def _gathered(
    out: Path, plan: _Plan, config: ScoreConfig, groups: Mapping[str, str], failed: Mapping[str, str]
) -> tuple[Evaluation, dict[str, str]]:
    """The evaluation of all that is in the journals, and case -> the name it has there."""
    names = sorted([*(case.id for case in plan.cases), *plan.refused])
    alias = {case: f"case {n:04d}" if config.anonymous else case for n, case in enumerate(names, 1)}
    rows: dict[str, list[Rows]] = {name: [Rows(), Rows()] for name in (MODEL, EMPTY, *([RIVAL] if plan.rival else []))}
    audit, scored, unit = Audit(plan.labels), [], ""
    for case, answer in answers(out):
        if case not in alias:
            continue
        scored.append(alias[case])
        audit.add(alias[case], answer["facts"])
        unit = answer["facts"]["unit"]
        for name, packed in answer["rows"].items():
            for row in rows_of(alias[case], packed, plan.labels):
                rows[name][row["status"] == "absent"].append(row)
    about = {"unit": unit, **how_of(config)}
    shared = {"groups": groups, "cases": tuple(scored), "about": about}
    made = {name: Evaluation(*found, **shared) for name, found in rows.items()}
    others = {plan.rival if name == RIVAL else name: made[name] for name in made if name != MODEL}
    found = audit.found() | {"not_scored": sorted(alias[case] for case in failed), "unpaired": plan.unpaired}
    if plan.unlisted:
        found["findings"].append(f"named in the files and not in the class list, not scored: {_some(plan.unlisted)}")
    return replace(made[MODEL], baselines=others, rival=plan.rival, audit=found), alias


def _looks(
    evaluation: Evaluation, plan: _Plan, config: ScoreConfig, alias: Mapping[str, str], out: Path
) -> dict[str, Any]:
    """Overlays of the worst cases, the median and the best, and the surfaces of the worst."""
    means = {case: mean for case, mean in evaluation.case_means("dice").items() if mean == mean}  # noqa: PLR0124
    ranked = sorted(means, key=lambda case: (means[case], case))
    of_alias = {alias[case.id]: case for case in plan.cases}
    names = plan.labels or {int(name): name for name in evaluation.rows.names if name}
    looks: dict[str, Any] = {"pictures": {}}
    for case in shown_cases(ranked).values():
        pair = read_pair(of_alias[case], labels=plan.labels, config=config)
        pair = replace(pair, id=case)
        looks["pictures"][case] = draw_overlay(pair, names, out / PICTURES / f"{len(looks['pictures']) + 1:04d}.png")
        if case == ranked[0] and pair.label.ndim == 3:
            looks |= {"worst": case, "scene": surfaces_of(pair, names)}
    return looks


def _failure(case: str, why: str, alias: Mapping[str, str], config: ScoreConfig) -> str:
    """A reason names files; who wants no names reads it in the log."""
    return f"{alias[case]} could not be scored" + ("" if config.anonymous else f": {why}")


def _paired_if_single(found: Mapping[str, LabelMap], true: Mapping[str, LabelMap]) -> Mapping[str, LabelMap]:
    """One file against one case belong together, whatever they are called."""
    if len(found) == len(true) == 1 and found.keys() != true.keys():
        (case,), (one,) = true, found.values()
        log.info("%s is scored against %s", one.case, case)
        return {case: one}
    return found


def _without_partner(predicted: Collection[str], true: Collection[str], pred: Path, ref: Path) -> list[str]:
    """What was left out, in a sentence for each side."""
    sides = ((predicted, true, pred, ref), (true, predicted, ref, pred))
    lone = [(here, there, sorted(set(mine) - set(other))) for mine, other, here, there in sides]
    notes = [
        f"{len(names)} in {here} without a partner in {there}: {_some(names)}" for here, there, names in lone if names
    ]
    for note in notes:
        log.warning(note)
    return notes


def _some(names: Collection[str], most: int = 5) -> str:
    return ", ".join(sorted(names)[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
