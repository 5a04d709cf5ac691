"""What the networks say of every unit of a pool, kept as it comes: a whole picture, or a part of one.

OUT/journal.jsonl    a line for each picture: of its units the box, the scores and the predicted classes
OUT/features.npy     (N, F) float32, a row for each unit, where a chooser asks for it

Axes: N units, K classes, H W of a picture, F features.
"""

import logging
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from medseg_core.cases import Case
from medseg_core.cohort import answers, clear_journal, for_each
from medseg_core.config import as_dict
from medseg_core.errors import MedsegError
from medseg_sem_al.colours import UNSEEN
from medseg_sem_al.committee import Committee
from medseg_sem_al.index import Index
from medseg_sem_al.parts import Box, boxes, part_of
from medseg_sem_al.settings import QueryConfig
from medseg_sem_al.strategies import Plan, Units
from medseg_sem_al.uncertainty import BOUNDARY, MEASURES, boundary, measure_named

FEATURES = "features.npy"

log = logging.getLogger(__name__)


class EmptyPoolError(MedsegError):
    """Nothing is left that could be asked for."""


@dataclass(frozen=True)
class Pool:
    """Units that may be asked for, in a fixed order.

    Args:
        names: (case id, box) of each.
        units: what is known of them.
        failed: why pictures are not in it.
    """

    names: Sequence[tuple[str, Box]]
    units: Units
    failed: Mapping[str, str]


def cases_of(index: Index, region: int) -> tuple[list[Case], list[Case]]:
    """Pictures to ask for, and those that are labelled and taught.

    Those without labels are the pool; where parts are asked for, those that are labelled in part are too. Pictures of
    the validation and test parts are in neither.
    """
    taught = [case for case in index.cases if "label" in case.files and case.split == "train"]
    pool = [case for case in index.cases if "label" not in case.files]
    pool += [case for case in taught if region and "labelled" in case.notes]
    return pool, taught


def score_pool(index: Index, committee: Committee, plan: Plan, config: QueryConfig, out: Path) -> Pool:
    """Looks at every picture of the pool, and goes on where an earlier call was.

    Raises:
        MedsegError: nothing to ask for, or a journal of other settings.
    """
    check_pool(index, committee, plan, config.region)
    pool, taught = cases_of(index, config.region)
    looked = {case.id: case for case in [*pool, *(taught if plan.choosers else [])]}
    cases = [looked[name] for name in sorted(looked)]
    starts = np.cumsum([0, *(len(boxes(case.notes["size"], config.region)) for case in cases)])
    rows = {case.id: int(start) for case, start in zip(cases, starts[:-1], strict=True)}
    features = _features_file(out, int(starts[-1]), committee) if plan.choosers else None
    work = partial(_looked_at, index=index, committee=committee, plan=plan, region=config.region)
    settings = {**as_dict(config), "num": None, "seed": None, "weights": committee.digests, "pictures": len(cases)}
    outcome = for_each(
        cases, lambda case: work(case, features=features, row=rows[case.id]), out=out, config=settings, again=True
    )
    return _gathered(out, rows, features, _measures_of(plan), outcome.failed)


def check_pool(index: Index, committee: Committee, plan: Plan, region: int) -> None:
    """Raises a MedsegError where nothing can be asked for, or these networks have no such measure."""
    if not cases_of(index, region)[0]:
        raise EmptyPoolError(
            "every picture has its labels: the pool is empty; put images without masks beside the others"
        )
    for name in plan.measures:
        measure_named(name, ensemble=committee.is_ensemble)


def _features_file(out: Path, num: int, committee: Committee) -> np.ndarray:
    """A file that memory maps, so that it holds pools of any size."""
    file = out / FEATURES
    width = len(committee.features(np.zeros((committee.depth, 64, 64), np.float32)))
    with suppress(OSError, ValueError):  # none yet, or damaged
        found = np.load(file, mmap_mode="r+", allow_pickle=False)
        if found.shape == (num, width):
            return found
    clear_journal(out)  # what it knows has lost its features
    out.mkdir(parents=True, exist_ok=True)
    return np.lib.format.open_memmap(file, "w+", np.float32, (num, width))


def _looked_at(
    case: Case, *, index: Index, committee: Committee, plan: Plan, region: int, features: np.ndarray | None, row: int
) -> Mapping[str, Any]:
    """Of each unit of a picture its box, whether it has labels, scores, and what is predicted there."""
    image = index.stack(case)
    label = index.label(case) if "label" in case.files else np.full(image.shape[1:], UNSEEN, np.uint8)
    found = boxes(image.shape[1:], region)
    is_known = [bool((label[part_of(box)] != UNSEEN).any()) for box in found]
    if features is not None:
        for number, box in enumerate(found):
            features[row + number] = committee.features(image[:, *part_of(box)])
        features.flush()
    if all(is_known):
        return {"units": [{"box": box, "known": True} for box in found]}
    maps, ids, border = maps_of(committee, image, _measures_of(plan))
    rows = []
    for box, known in zip(found, is_known, strict=True):
        part = part_of(box)
        scores = {
            name: _mean(values[part], border[part] if name.startswith(BOUNDARY) else None)
            for name, values in maps.items()
        }
        num = len(committee.names)
        counts = np.bincount(ids[part].ravel(), minlength=num)
        sums = np.bincount(ids[part].ravel(), maps["entropy"][part].ravel(), minlength=num)
        unsure = np.divide(sums, counts, out=np.zeros(num), where=counts > 0)
        told = {"shares": counts / counts.sum(), "unsure": unsure}
        rows.append(
            {"box": box, "known": known, "scores": scores} | {word: v.round(6).tolist() for word, v in told.items()}
        )
    return {"units": rows}


def maps_of(
    committee: Committee, image: np.ndarray, measures: Sequence[str]
) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]:
    """(H, W) of each measure, the (H, W) predicted ids, and where these change."""
    probs_MNKHW = committee.probabilities(image)[:, None]
    ids = probs_MNKHW.mean(0)[0].argmax(0).astype(np.uint8)
    is_ensemble = committee.is_ensemble
    maps = {name: measure_named(name, ensemble=is_ensemble)(probs_MNKHW)[0] for name in measures}
    return maps, ids, boundary(ids)


def _measures_of(plan: Plan) -> list[str]:
    """All that is computed: those that are cheap, and those that count."""
    return list(dict.fromkeys([*MEASURES, *plan.measures]))


def _mean(values: np.ndarray, where: np.ndarray | None) -> float:
    if where is not None:
        values = values[where]
    return float(f"{values.mean(dtype=np.float64):.8g}") if values.size else 0.0


def _gathered(
    out: Path, rows: Mapping[str, int], features: np.ndarray | None, measures: Sequence[str],
    failed: Mapping[str, str],
) -> Pool:  # fmt: skip
    """The pool's units from what the journal knows, a picture at a time."""
    names, places, known_places = list[tuple[str, Box]](), list[int](), list[int]()
    scores: dict[str, list[float]] = {name: [] for name in measures}
    shares, unsure = list[np.ndarray](), list[np.ndarray]()
    for case, answer in answers(out):
        if case not in rows or case in failed:
            continue
        for number, unit in enumerate(answer["units"]):
            (known_places if unit["known"] else places).append(rows[case] + number)
            if unit["known"]:
                continue
            names.append((case, tuple(unit["box"])))
            for name in measures:
                scores[name].append(unit["scores"][name])
            shares.append(np.array(unit["shares"], np.float32))
            unsure.append(np.array(unit["unsure"], np.float32))
    if not names:
        if failed:
            raise MedsegError(f"nothing of the pool can be asked for: {next(iter(failed.values()))}")
        raise EmptyPoolError("all parts of all pictures are labelled: the pool is empty; take another --region")
    if features is None:
        features, places, known_places = np.zeros((len(names), 0), np.float32), list(range(len(names))), []
    units = Units(
        {name: np.array(values) for name, values in scores.items()},
        np.stack(shares),
        np.stack(unsure),
        features[places],
        features[known_places],
    )
    return Pool(names, units, failed)
