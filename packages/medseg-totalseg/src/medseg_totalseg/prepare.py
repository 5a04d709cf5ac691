"""From a released folder to a cache: per case one image and one label map on the cohort's grid, read plane by plane.

    CACHE/dataset.json              labels, spacing, missing policy, overlap, failed cases
    CACHE/journal.jsonl             what is done; the same call goes on where it was
    CACHE/<case>/{image,label}.npy  int16 HU and label ids, (X, Y, Z) in RAS; `[:, :, k]` is one read from the disk
    CACHE/<case>/label2.npy, ...    further structures of voxels that lie in several
    CACHE/<case>/about.json         source grid, annotated ids, voxels per id, overlaps
"""

import json
import logging
import multiprocessing
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from medseg_core.cases import Case
from medseg_core.cohort import Outcome, for_each
from medseg_core.config import as_dict
from medseg_core.errors import MedsegError
from medseg_core.io import read_grid, read_volume, write_text
from medseg_core.join import Joined, join_masks
from medseg_core.progress import track
from medseg_core.store import Arrays, write_arrays
from medseg_core.volume import Volume, resample
from medseg_totalseg.dataset import discover, masks_of, names_of
from medseg_totalseg.labels import choose, select
from medseg_totalseg.settings import PrepareConfig

DATASET = "dataset.json"
FORMAT = 1
ORIENTATION = "RAS"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Cohort:
    """What `prepare` left.

    Args:
        folder: the cache.
        labels: id -> name of the structures that were taken.
        spacing_mm: of every array, along right-left, back-front, feet-head.
        missing: "empty", or "ignore" where a structure without a file was not annotated.
        cases: with the file `arrays` (a folder for `medseg_core.store.Arrays`), their group and split.
        overlap: share of the labelled voxels that lie in more than one structure.
        failed: case -> reason.
    """

    folder: Path
    labels: Mapping[int, str]
    spacing_mm: tuple[float, float, float]
    missing: str
    cases: tuple[Case, ...]
    overlap: float
    failed: Mapping[str, str]

    def facts(self) -> dict[str, Any]:
        """The numbers a command tells."""
        return {
            "cases": len(self.cases),
            "structures": len(self.labels),
            "spacing_mm": list(self.spacing_mm),
            "overlap": self.overlap,
        }


@dataclass(frozen=True)
class _Plan:
    """What is the same for every case, and is stored with the cohort."""

    labels: Mapping[int, str]
    spacing_mm: tuple[float, float, float]
    missing: str


def prepare(data: Path, out: Path, config: PrepareConfig, *, executor: Executor | None = None) -> Outcome:
    """Packs the masks of each case into one label map beside its image, on one orientation and spacing.

    Finished cases are skipped, a bad one costs only itself. Where masks overlap, the largest id has the voxel in `label`,
    the next in `label2`; the share is counted and told, for it decides between exclusive classes and one yes or no each.

    Args:
        data: a released folder, or a single case.
        out: the cache, new or begun with the same settings.
        executor: runs the cases, instead of `config.workers` processes.

    Raises:
        MedsegError: no cases, names that no class list holds, or a cache of other settings or of other scans.
    """
    data, out = Path(data), Path(out)
    cases = discover(data)
    plan = _plan(cases, out, config)
    settings = {k: v for k, v in as_dict(config).items() if k != "workers"} | {"ids": sorted(plan.labels)}
    own = _pool(config.workers) if executor is None and config.workers > 1 else nullcontext(executor)
    with own as pool:
        work = partial(prepare_case, out=out, plan=plan)
        outcome = for_each(cases, work, out=out, config=settings, executor=pool)
    _check_same_scans([case for case in cases if case.id in outcome.skipped], out)
    done = [case for case in cases if case.id not in outcome.failed]
    overlap = _overlap(Arrays(out / case.id).about for case in done)
    failed = {name: reason for name, reason in outcome.failed.items()}
    _write_dataset(out, plan, config, overlap=overlap, cases=[c.id for c in done], failed=failed)
    log.info("%s of the labelled voxels lie in more than one structure", f"{overlap:.2%}")
    return outcome
