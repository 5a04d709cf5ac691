"""What a training will do, decided from the cohort and the settings before anything is computed."""

import dataclasses
import hashlib
import inspect
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from medseg_core.augment import recipe
from medseg_core.cases import Case, read_split, split_cases
from medseg_core.checkpoint import Card
from medseg_core.errors import MedsegError, meant
from medseg_core.losses import LOSSES
from medseg_core.store import Arrays
from medseg_totalseg import __version__
from medseg_totalseg.dataset import discover, names_of
from medseg_totalseg.inference import BATCH_SIZE
from medseg_totalseg.labels import choose, mirror_pairs, select
from medseg_totalseg.models import MODELS
from medseg_totalseg.patches import Patches
from medseg_totalseg.prepare import Cohort, is_cache, prepare, read_cohort
from medseg_totalseg.settings import PrepareConfig, TotalsegConfig
from medseg_totalseg.slices import Slices

log = logging.getLogger(__name__)

OVERLAP = 0.01  # share of the foreground in two structures, from which classes are not taken as exclusive
IN_3D = frozenset({"unet3d"})  # networks of patches, which take strides
DEFAULT_LOSS = {"softmax": "dice_balanced_ce", "sigmoid": "dice_bce"}


@dataclass(frozen=True)
class Plan:
    """The cohort, the settings, and what follows from both."""

    cohort: Cohort
    config: TotalsegConfig
    cases: tuple[Case, ...]
    card: Card
    loss: str

    @property
    def kind(self) -> str:
        """What the network takes: slices or patches."""
        return "patches" if "patch" in self.card.grid else "slices"

    def arrays(self, split: str) -> list[Arrays]:
        """The stored arrays of one part of the split."""
        return [Arrays(case.files["arrays"]) for case in self.cases if case.split == split]

    def samples(self, split: str) -> Slices | Patches:
        """Augmented samples of one part of the split."""
        config, arrays = self.config, self.arrays(split)
        options: dict[str, Any] = {
            "intensity": self.card.intensity,
            "channels": self.card.channels,
            "head": self.card.head,
            "how": recipe(config),
            "mirror": mirror_pairs(self.cohort.labels),
            "foreground": config.foreground,
        }
        samples: Slices | Patches
        if self.kind == "slices":
            samples = Slices(arrays, size=config.size, **options)
        else:
            samples = Patches(arrays, patch=config.patch, per_case=config.patches_per_case, **options)
        samples.identity = self.identity()
        return samples

    def identity(self) -> str:
        """Another text for other cases to train and validate on, by grid and voxels per structure, or other roles."""
        facts = [
            (case.id, case.split, about.get("affine"), [about.get("voxels", {}).get(str(i)) for i in self.card.labels])
            for case in sorted(self.cases, key=lambda case: case.id)
            if case.split in ("train", "val")
            for about in (Arrays(case.files["arrays"]).about,)
        ]
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()

    def network(self) -> torch.nn.Module:
        """The network at its start, the same for equal seeds."""
        torch.manual_seed(self.config.seed)
        return MODELS[self.card.model](**self.card.arguments)


def complete(config: TotalsegConfig) -> TotalsegConfig:
    """The settings with what the network decides in place of none, as a run folder keeps them."""
    widths, batch_size = config.widths, config.batch_size
    if widths is None:
        widths = inspect.signature(MODELS[config.net]).parameters["widths"].default
    if batch_size is None:
        batch_size = BATCH_SIZE["patches" if config.net in IN_3D else "slices"]
    return dataclasses.replace(config, widths=widths, batch_size=batch_size)


def check(data: Path, config: TotalsegConfig) -> None:
    """What can be refused before anything is written; `config` is complete.

    Raises:
        MedsegError: a slice or a patch that the network cannot take, a loss or a structure that does not exist.
    """
    if config.net in IN_3D:
        with torch.device("meta"), torch.no_grad():  # the network's own words, and nothing is computed
            MODELS[config.net](1, 2, widths=config.widths)(torch.empty(1, 1, *config.patch))
    else:
        stride = 2 ** (len(config.widths) - 1)
        if config.size % stride:
            below = config.size // stride * stride
            near = " or ".join(str(n) for n in (below, below + stride) if n)
            raise MedsegError(
                f"size {config.size} must be a multiple of {stride} for {len(config.widths)} widths; try {near}"
            )
    known = sorted({name for losses in LOSSES.values() for name in losses} | {"auto"})
    if config.loss not in known:
        raise MedsegError(f"there is no loss {config.loss!r}{meant(config.loss, known)}; there are {', '.join(known)}")
    if not is_cache(data):
        select(choose(names_of(discover(data)), config.labels), config.structures)


def cohort_of(data: Path, out: Path, config: TotalsegConfig) -> Cohort:
    """The cache itself, or the released folder prepared into `out/cache`."""
    if is_cache(data):
        return read_cohort(data)
    own = PrepareConfig(**{f.name: getattr(config, f.name) for f in dataclasses.fields(PrepareConfig)})
    outcome = prepare(data, out / "cache", own)
    if outcome.failed:
        log.warning("left out: %s", "; ".join(f"{case}: {why}" for case, why in outcome.failed.items()))
    return read_cohort(out / "cache")


def make_plan(cohort: Cohort, config: TotalsegConfig, splits: Path | None) -> Plan:
    """Head, loss, classes, network and split.

    Args:
        config: complete.
        splits: a split file; None keeps the cohort's own split, and draws the rest.

    Raises:
        MedsegError: a loss that the head does not have, or no case to train on.
    """
    head = config.head
    if head == "auto":
        head = "sigmoid" if cohort.overlap > OVERLAP else "softmax"
    loss = DEFAULT_LOSS[head] if config.loss == "auto" else config.loss
    if loss not in LOSSES[head]:
        raise MedsegError(
            f"head {head} has no loss {loss!r}{meant(loss, LOSSES[head])}; it has {', '.join(LOSSES[head])}"
        )
    log.info("%.2f%% of the foreground lies in two structures: head %s, loss %s", 100 * cohort.overlap, head, loss)
    labels = select(cohort.labels, config.structures)
    channels = ((0,) if head == "softmax" else ()) + tuple(labels)
    arguments: dict[str, Any] = {"in_channels": 1, "num_classes": len(channels), "widths": list(config.widths)}
    if config.deep_supervision:
        arguments["deep_supervision"] = True
    if config.net in IN_3D:
        arguments["strides"] = strides_for(cohort.spacing_mm, len(config.widths) - 1)
        extent: dict[str, Any] = {"patch": list(config.patch)}
    else:
        extent = {"size": config.size}
    card = Card(
        package="medseg-totalseg",
        version=__version__,
        model=config.net,
        arguments=arguments,
        inputs=("ct",),
        head=head,
        channels=channels,
        labels=labels,
        grid={"orientation": "RAS", "spacing_mm": list(cohort.spacing_mm), **extent},
        intensity={"percentiles": list(config.percentiles)}
        if config.percentiles
        else {"window_hu": list(config.window_hu)},
    )
    cases = tuple(_split(cohort, config, splits))
    if not any(case.split == "train" for case in cases):
        raise MedsegError(f"no case of {cohort.folder} is in the training split; put some there with --splits")
    return Plan(cohort, config, cases, card, loss)


def strides_for(spacing_mm: Sequence[float], num: int) -> list[list[int]]:
    """By how much each level of a 3D network shrinks its input along each axis.

    An axis is halved unless its voxels are, at that level, at least twice as long as the shortest (Isensee et al.,
    2021).

    >>> strides_for((1.0, 1.0, 5.0), 3)
    [[2, 2, 1], [2, 2, 1], [2, 2, 2]]
    """
    strides, spacing = [], np.array(spacing_mm, float)
    for _ in range(num):
        stride = np.where(spacing < 2 * spacing.min(), 2, 1)
        spacing = spacing * stride
        strides.append(stride.tolist())
    return strides


def _split(cohort: Cohort, config: TotalsegConfig, splits: Path | None) -> Sequence[Case]:
    if splits:
        return read_split(splits, cohort.cases)
    return split_cases(cohort.cases, val=config.val, seed=config.seed)
