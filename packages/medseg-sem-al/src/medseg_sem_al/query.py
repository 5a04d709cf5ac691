"""Asks networks which pictures of a pool to label next, and lays out what a person needs to label them.

OUT/selection.json    file, box, score, rank and every part of each that was chosen, and how
OUT/selection.png     all of them at a glance: prediction, and where it is unsure
OUT/proposals/X.png, X.tif, X.zip   the predicted mask with its palette, and as outlines for ImageJ
OUT/heat/X.png        where it is unsure, from 0 (black) to 1 (yellow)
OUT/scores.png        scores of the whole pool
OUT/SHA256SUMS        of all of these: what was edited since is not written over
OUT/pool/             see `pool`; a call that was stopped goes on by it
"""

import json
import logging
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from medseg_core import figures
from medseg_core.cohort import JOURNAL
from medseg_core.config import as_dict, strict
from medseg_core.errors import MedsegError
from medseg_core.io import write_picture, write_text
from medseg_core.progress import track
from medseg_core.volume import Picture
from medseg_sem_al.colours import UNSEEN
from medseg_sem_al.committee import Committee
from medseg_sem_al.index import Index, read_index
from medseg_sem_al.outlines import MOST_OUTLINES, write_outlines
from medseg_sem_al.panels import overlaid
from medseg_sem_al.parts import Box, within
from medseg_sem_al.pool import Pool, check_pool, maps_of, score_pool
from medseg_sem_al.proposals import write_indexed
from medseg_sem_al.settings import QueryConfig
from medseg_sem_al.strategies import Plan, choose, plan_of
from medseg_sem_al.sums import SUMS, changed, sums_of, write_sums
from medseg_sem_al.train import check_fits

SELECTION, POOL = "selection.json", "pool"
MOST_SHOWN, THUMB = 24, 256  # units on the contact sheet, and pixels of an edge there

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Chosen:
    """A unit to be labelled.

    Args:
        rank: from 1.
        case: of the index.
        box: (top, left, bottom, right) of the part that is meant.
        why: what chose it.
        score: combined rank, in (0, 1], the higher the more uncertain.
        scores: of each measure.
    """

    rank: int
    case: str
    box: Box
    why: str
    score: float
    scores: Mapping[str, float]


def query(
    index_file: Path, runs: Sequence[Path], out: Path, config: QueryConfig, *, overwrite: bool = False
) -> dict[str, Any]:
    """Chooses from the pictures of an index that have no labels, and writes what stands above.

    Args:
        index_file: what `index` made.
        runs: of `train` and its like; several are an ensemble.

    Returns:
        What `selection.json` holds.

    Raises:
        MedsegError: an empty pool, other classes, an unknown strategy, or a folder in use.
    """
    out, index, plan = Path(out), read_index(index_file), plan_of(config)
    _check_out(out, overwrite=overwrite)
    committee = Committee(runs, config)
    check_fits(index, committee.card, index_file)
    check_pool(index, committee, plan, config.region)
    if overwrite:
        for file in [*sums_of(out), out / SUMS]:
            file.unlink(missing_ok=True)
        shutil.rmtree(out / POOL, ignore_errors=True)
    pool = score_pool(index, committee, plan, config, out / POOL)
    chosen = ask(pool, plan, config)
    told = lay_out(index, committee, pool, chosen, plan, out)
    document = {**told, "models": [str(run) for run in runs], "weights": committee.digests, "settings": as_dict(config)}
    write_text(out / SELECTION, json.dumps(strict(document), indent=1, ensure_ascii=False) + "\n")
    write_sums(out, written(out))
    return document


def ask(pool: Pool, plan: Plan, config: QueryConfig, *, progress: float = 0.0) -> list[Chosen]:
    """The units to label, the first one first."""
    rng = np.random.default_rng([config.seed, len(pool.units), 0, 0])
    picks = choose(pool.units, config.num, plan, rng, progress=progress)
    found = []
    for rank, (place, why, score) in enumerate(picks, 1):
        case, box = pool.names[place]
        scores = {name: float(values[place]) for name, values in pool.units.scores.items()}
        found.append(Chosen(rank, case, box, why, score, scores))
    return found


def lay_out(
    index: Index, committee: Committee, pool: Pool, chosen: Sequence[Chosen], plan: Plan, out: Path
) -> dict[str, Any]:
    """Writes proposals, heat maps and pictures of what was chosen; returns what is told of it."""
    shown = list[tuple[Chosen, np.ndarray, np.ndarray]]()
    for name in track(dict.fromkeys(one.case for one in chosen), "Proposals"):
        mine = [one for one in chosen if one.case == name]
        ground, heat = _propose(index, committee, mine, plan, out)
        shown += [(one, ground, heat) for one in mine if one.rank <= MOST_SHOWN]
    figures.save(_sheet(sorted(shown, key=lambda row: row[0].rank)), out / "selection.png")
    figures.save(_histogram(pool, chosen), out / "scores.png")
    by_id = {case.id: case for case in index.cases}
    rows = [
        {
            "rank": one.rank,
            "case": one.case,
            "file": str(by_id[one.case].files["image"]),
            "box": list(one.box),
            "why": one.why,
            "score": one.score,
            **one.scores,
        }
        for one in chosen
    ]
    return {"asked": len(chosen), "pool": len(pool.units), "failed": dict(pool.failed), "chosen": rows}


def _propose(
    index: Index, committee: Committee, mine: Sequence[Chosen], plan: Plan, out: Path
) -> tuple[np.ndarray, np.ndarray]:
    """Files of one picture; thumbs of it with its prediction, and of its heat map."""
    case = next(case for case in index.cases if case.id == mine[0].case)
    stack = index.stack(case)
    maps, ids, _ = maps_of(committee, stack, list(plan.measures))
    heat = sum(weight * maps[name] for name, weight in plan.measures.items()) / sum(plan.measures.values())
    mask = np.where(within([one.box for one in mine], ids.shape), ids, np.uint8(UNSEEN))
    for suffix in (".png", ".tif"):
        write_indexed(mask, committee.colours, out / "proposals" / f"{case.id}{suffix}")
    num = write_outlines(mask, committee.names, out / "proposals" / f"{case.id}.zip")
    if num > MOST_OUTLINES:
        log.warning("%s: %d parts are too many for a ROI zip; correct the picture", case.id, num)
    coloured = np.rint(255 * colormaps["inferno"](np.clip(heat, 0, 1))[..., :3]).astype(np.uint8)
    write_picture(Picture(coloured), out / "heat" / f"{case.id}.png")
    return overlaid(stack[len(stack) // 2], ids, committee.colours), coloured


def _check_out(out: Path, *, overwrite: bool) -> None:
    """A folder that is new, or whose query was stopped; with `overwrite` one in which nobody else has put anything."""
    if out.is_dir() and any(out.iterdir()) and not (out / POOL / JOURNAL).is_file():
        raise MedsegError(f"{out} is not empty and was not begun by query; choose another --out")
    if (out / SELECTION).is_file() and not overwrite:
        raise MedsegError(f"{out} holds a selection; add --overwrite to choose anew, or take another --out")
    if edited := changed(out):
        raise MedsegError(f"{edited[0]} was edited since it was written; move it away first, or take another --out")
    if (out / SUMS).is_file() and (others := [file for file in written(out) if file not in sums_of(out)]):
        raise MedsegError(f"{others[0]} was put there by somebody; move it away first, or take another --out")


def written(out: Path) -> list[Path]:
    """What a person may look at or edit."""
    files = [file for folder in ("proposals", "heat") for file in (out / folder).glob("*")]
    tops = (out / name for name in (SELECTION, "selection.png", "scores.png"))
    return [*files, *(file for file in tops if file.is_file())]


def _sheet(shown: Sequence[tuple[Chosen, np.ndarray, np.ndarray]]) -> Figure:
    """Prediction and heat map of each, its part framed."""
    columns = min(4, len(shown))
    lines = -(-len(shown) // columns)
    figure = Figure(figsize=(3.6 * columns, 2.15 * lines), layout="constrained")
    grid = figure.subplots(lines, columns, squeeze=False)
    for axes in grid.ravel():
        axes.set_axis_off()
    for axes, (one, ground, heat) in zip(grid.ravel(), shown, strict=False):
        step = -(-max(ground.shape[:2]) // THUMB)
        both = np.concatenate([ground[::step, ::step], heat[::step, ::step]], 1)
        axes.imshow(both, interpolation="nearest")
        top, left, bottom, right = (edge / step for edge in one.box)
        if (bottom - top, right - left) != tuple(edge / step for edge in ground.shape[:2]):
            for shift in (0, both.shape[1] // 2):
                frame = Rectangle((left + shift, top), right - left, bottom - top, fill=False, color="white", lw=1.2)
                axes.add_patch(frame)
        axes.set_title(f"{one.rank}. {one.case}\n{one.why} {one.score:.2f}", fontsize=7, parse_math=False)
    return figure


def _histogram(pool: Pool, chosen: Sequence[Chosen]) -> Figure:
    """Scores of each measure over the pool, and which were chosen."""
    names = list(pool.units.scores)
    figure = Figure(figsize=(3.2 * len(names), 2.6), layout="constrained")
    for axes, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
        axes.hist(pool.units.scores[name], bins=30, color="tab:blue", alpha=0.6)
        for one in chosen:
            axes.axvline(one.scores[name], ymax=0.08, color="black", lw=1)
        axes.set_xlabel(f"{name} (ticks: what was chosen)", fontsize=8)
        figures.plain(axes)
    figure.axes[0].set_ylabel("units of the pool")
    return figure
