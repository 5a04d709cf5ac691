"""Training on slices of a prepared cohort."""

import dataclasses
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from medseg_core import augment, figures
from medseg_core.cases import read_split, split_cases, write_split
from medseg_core.checkpoint import Card
from medseg_core.draw import Batch, Draw
from medseg_core.errors import MedsegError, meant
from medseg_core.infer import decide, infer
from medseg_core.io import write_text
from medseg_core.losses import LOSSES
from medseg_core.metrics import count, scores
from medseg_core.run import RunFolder
from medseg_core.store import Arrays
from medseg_core.trainer import At, Result, Score, Step, Trainer, Validate
from medseg_totalseg import __version__
from medseg_totalseg.labels import mirror_pairs, select
from medseg_totalseg.models import MODELS
from medseg_totalseg.prepare import Cohort, is_cache, prepare, read_cohort
from medseg_totalseg.settings import PrepareConfig, TotalsegConfig
from medseg_totalseg.slices import Slices, normalise

log = logging.getLogger(__name__)

OVERLAP = 0.01  # share of the foreground in two structures at once, from which classes are not taken as exclusive
NUM_PICTURES = 4


def train(
    data: Path,
    out: Path,
    config: TotalsegConfig,
    *,
    splits: Path | None = None,
    resume: str = "",
    overwrite: bool = False,
) -> Result:
    """Fits the network to a cohort and leaves a run folder.

    A single case, or a cohort of one patient, trains without validation: its last weights are kept as best.

    Args:
        data: a cache that `prepare` made, or a released folder, which is prepared into `out/cache` first.
        splits: a split file; without one meta.csv's split holds, else patients are drawn by the seed.
        resume: "last" goes on, a path goes on from a kept checkpoint, "" begins.

    Raises:
        MedsegError: nothing to train on, a folder in use, settings that do not fit the data.
    """
    run = RunFolder.open(out, config, resume=resume, overwrite=overwrite)
    cohort = _cohort(data, run.path, config)
    trainer, samples, validate = _setup(cohort, config, splits, run)
    return trainer.fit(samples, validate)


def rehearse(data: Path, out: Path, config: TotalsegConfig, *, splits: Path | None = None) -> Mapping[str, Any]:
    """One batch and one step of what `train` would do: shapes, values, labels, memory, and a picture of the batch."""
    cohort = _cohort(data, out, config)
    trainer, samples, _ = _setup(cohort, config, splits, None)
    place = range(min(config.batch_size, len(samples)))
    batch = torch.utils.data.default_collate([samples[Draw(i, 0, i, config.seed)] for i in place])
    out.mkdir(parents=True, exist_ok=True)
    figures.save(_sheet(batch, cohort.labels), out / "batch.png")
    return _facts(trainer, batch, samples)
