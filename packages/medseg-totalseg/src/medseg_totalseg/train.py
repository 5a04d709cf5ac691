"""Training on slices of a prepared cohort."""

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from medseg_core import figures
from medseg_core.augment import recipe
from medseg_core.cases import Case, read_split, split_cases, write_split
from medseg_core.checkpoint import Card
from medseg_core.draw import Batch, Draw
from medseg_core.errors import MedsegError, meant
from medseg_core.infer import decide
from medseg_core.labelmaps import write_labels
from medseg_core.losses import LOSSES
from medseg_core.metrics import count, scores
from medseg_core.run import RunFolder
from medseg_core.store import Arrays
from medseg_core.trainer import At, Result, Score, Trainer
from medseg_totalseg import __version__
from medseg_totalseg.dataset import discover, names_of
from medseg_totalseg.labels import choose, mirror_pairs, select
from medseg_totalseg.models import MODELS
from medseg_totalseg.predict import infer_planes
from medseg_totalseg.prepare import Cohort, is_cache, prepare, read_cohort
from medseg_totalseg.settings import PrepareConfig, TotalsegConfig
from medseg_totalseg.slices import Slices, normalise

log = logging.getLogger(__name__)

OVERLAP = 0.01  # share of the foreground in two structures, from which classes are not taken as exclusive
NUM_PICTURES = 4
DEFAULT_LOSS = {"softmax": "dice_balanced_ce", "sigmoid": "dice_bce"}


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

    A cohort of one patient trains without validation: its last weights are kept as best.

    Args:
        data: a cache that `prepare` made, or a released folder, which is prepared into `out/cache` first.
        splits: a split file; without one meta.csv's split holds, else patients are drawn by the seed.
        resume: "last" goes on, a path goes on from a kept checkpoint, "" begins.

    Raises:
        MedsegError: nothing to train on, a folder in use, settings that do not fit the data.
    """
    _check(data, config)
    run = RunFolder.open(out, config, resume=resume, overwrite=overwrite)
    plan = _plan(_cohort(data, run.path, config), config, splits)
    write_labels(run.path / "labels.json", plan.card.labels)
    write_split(run.path / "split.json", plan.cases, seed=config.seed)
    samples, held_out = plan.samples("train"), plan.arrays("val")
    _save_sheet(samples, plan, run.path / "augmented.png", num=16)
    trainer = plan.trainer(run)
    return trainer.fit(samples, Validation(held_out, plan, run.path / "samples") if held_out else None)


def rehearse(data: Path, out: Path, config: TotalsegConfig, *, splits: Path | None = None) -> Mapping[str, Any]:
    """One batch and one step of what `train` would do: shapes, values, labels, memory, and `out/batch.png`."""
    _check(data, config)
    plan = _plan(_cohort(data, out, config), config, splits)
    samples, trainer = plan.samples("train"), plan.trainer(None)
    draws = [Draw(i, 0, i, config.seed) for i in range(min(config.batch_size, len(samples)))]
    batch = torch.utils.data.default_collate([samples[draw] for draw in draws])
    _save_sheet(samples, plan, out / "batch.png", num=len(draws))
    parts = trainer.update([batch])
    image, label = batch["image"], batch["label"]
    present = np.unique(label.numpy()) if label.ndim == image.ndim - 1 else np.flatnonzero(label.amax((0, 2, 3)))
    ids = [plan.card.channels[c] for c in present.tolist()]
    return {
        "training slices": len(samples),
        "training cases": [case.id for case in plan.cases if case.split == "train"],
        "validation cases": [case.id for case in plan.cases if case.split == "val"],
        "image": f"{tuple(image.shape)} from {float(image.min()):.3f} to {float(image.max()):.3f}",
        "label": f"{tuple(label.shape)} {label.dtype}",
        "labels present": [plan.card.labels.get(i, "background") for i in ids],
        "head and loss": f"{plan.card.head}, {plan.loss}",
        "spacing_mm": list(plan.cohort.spacing_mm),
        "parameters": sum(p.numel() for p in trainer.model.parameters()),
        "precision": f"{trainer.precision} on {trainer.device}",
        **parts,
        "picture": str(out / "batch.png"),
    }


@dataclass(frozen=True)
class Plan:
    """What a training will do, decided from the cohort and the settings before anything is computed."""

    cohort: Cohort
    config: TotalsegConfig
    cases: tuple[Case, ...]
    card: Card
    loss: str

    def arrays(self, split: str) -> list[Arrays]:
        """The stored arrays of one part of the split."""
        return [Arrays(case.files["arrays"]) for case in self.cases if case.split == split]

    def samples(self, split: str) -> Slices:
        """Augmented slices of one part of the split."""
        config = self.config
        return Slices(
            self.arrays(split),
            size=config.size,
            intensity=self.card.intensity,
            channels=self.card.channels,
            head=self.card.head,
            how=recipe(config),
            mirror=mirror_pairs(self.cohort.labels),
            foreground=config.foreground,
        )

    def trainer(self, run: RunFolder | None) -> Trainer:
        """The network at its start, and the loop around it."""
        torch.manual_seed(self.config.seed)
        model = MODELS[self.card.model](**self.card.arguments)
        return Trainer(model, SegmentStep(self.card.head, self.loss), config=self.config, card=self.card, run=run)


class SegmentStep:
    """The loss of a batch of slices, and the Dice that its hard decisions have over the structures in the batch."""

    def __init__(self, head: str, loss: str) -> None:
        self.head, self.loss = head, LOSSES[head][loss]

    def __call__(self, model: nn.Module, batch: Batch, at: At) -> Mapping[str, Tensor]:
        """See `medseg_core.trainer.Step`."""
        logits = model(batch["image"])
        with torch.no_grad():
            dice = _batch_dice(logits, batch["label"], self.head)
        return {"loss": self.loss(logits, batch["label"], known=batch.get("known")), "dice": dice}


class Validation:
    """Dice, IoU and accuracy of whole held-out volumes: the mean over cases of the mean over their structures.

    A structure that is missed or invented counts 0; one that is on neither side counts nowhere.
    """

    def __init__(self, cases: Sequence[Arrays], plan: Plan, pictures: Path) -> None:
        self.cases, self.plan, self.pictures = cases, plan, pictures

    def __call__(self, model: nn.Module, at: At) -> Score:
        """See `medseg_core.trainer.Validate`."""
        card, device = self.plan.card, next(model.parameters()).device
        means = []
        for number, case in enumerate(self.cases):
            image = normalise(case["image"], card.intensity)
            mask = infer_planes(model, image, card, reduce=decide(card), batch_size=8, device=str(device))
            counts = count(mask, case["label"], ids=_known(case, card))
            found = scores(counts)
            means.append([np.nanmean(found[name]) for name in ("dice", "iou", "accuracy")])
            if number < NUM_PICTURES:
                self._draw(case, image, mask, at)
        dice, iou, accuracy = np.nanmean(means, axis=0).tolist()
        return Score(dice, {"dice": dice, "iou": iou, "accuracy": accuracy})

    def _draw(self, case: Arrays, image: np.ndarray, mask: np.ndarray, at: At) -> None:
        name = case.folder.name
        figure = figures.overlay(
            np.asarray(case["label"]),
            mask,
            self.plan.card.labels,
            image=image,
            window=(0.0, 1.0),
            spacing=self.plan.cohort.spacing_mm,
            affine=np.diag([*self.plan.cohort.spacing_mm, 1.0]),
            title=f"{name}, epoch {at.epoch + 1}",
        )
        figures.save(figure, self.pictures / f"epoch_{at.epoch + 1:04d}_{name}.png", dpi=80)


def _check(data: Path, config: TotalsegConfig) -> None:
    """What can be refused before anything is written."""
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


def _cohort(data: Path, out: Path, config: TotalsegConfig) -> Cohort:
    if is_cache(data):
        return read_cohort(data)
    own = PrepareConfig(**{f.name: getattr(config, f.name) for f in dataclasses.fields(PrepareConfig)})
    outcome = prepare(data, out / "cache", own)
    if outcome.failed:
        log.warning("left out: %s", "; ".join(f"{case}: {why}" for case, why in outcome.failed.items()))
    return read_cohort(out / "cache")


def _plan(cohort: Cohort, config: TotalsegConfig, splits: Path | None) -> Plan:
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
    card = Card(
        package="medseg-totalseg",
        version=__version__,
        model="unet2d",
        arguments={"in_channels": 1, "num_classes": len(channels), "widths": list(config.widths)},
        inputs=("ct",),
        head=head,
        channels=channels,
        labels=labels,
        grid={"orientation": "RAS", "spacing_mm": list(cohort.spacing_mm), "size": config.size},
        intensity={"percentiles": list(config.percentiles)}
        if config.percentiles
        else {"window_hu": list(config.window_hu)},
    )
    return Plan(cohort, config, tuple(_split(cohort, config, splits)), card, loss)


def _split(cohort: Cohort, config: TotalsegConfig, splits: Path | None) -> Sequence[Case]:
    if splits:
        return read_split(splits, cohort.cases)
    return split_cases(cohort.cases, val=config.val, seed=config.seed)


def _known(case: Arrays, card: Card) -> list[int]:
    """The ids that are scored in a case: those that somebody looked for."""
    annotated = case.about["annotated"]
    return [i for i in card.labels if annotated is None or i in annotated]


def _batch_dice(logits: Tensor, label: Tensor, head: str) -> Tensor:
    """The mean Dice of the structures that the batch's label has; without any, 1 where nothing was predicted."""
    num_classes = logits.shape[1]
    if head == "softmax":
        mask = logits.argmax(1)
        both, found, true = (
            torch.bincount(ids.flatten(), minlength=num_classes)[1:].float()
            for ids in (torch.where(mask == label, mask, 0), mask, label)
        )
    else:
        mask, label = logits > 0, label.bool()
        axes = (0, *range(2, logits.ndim))
        both, found, true = ((m).sum(axes).float() for m in (mask & label, mask, label))
    present = true > 0
    if not present.any():
        return (found.sum() == 0).float()
    return (2 * both / (found + true).clamp(min=1))[present].mean()


def _save_sheet(samples: Slices, plan: Plan, path: Path, *, num: int) -> None:
    """What the network sees: samples as they are drawn, with their labels."""
    drawn = [samples[Draw(i * len(samples) // num, 0, i, plan.config.seed)] for i in range(min(num, len(samples)))]
    images = np.stack([_upright(sample["image"][0].numpy()) for sample in drawn])
    labels = np.stack([_upright(_ids(sample["label"], plan.card)) for sample in drawn])
    figures.save(figures.sheet(images, labels, plan.card.labels), path)


def _upright(plane_XY: np.ndarray) -> np.ndarray:
    """A plane in RAS as radiologists look at it: the patient's right on the left, the front on top."""
    return plane_XY.T[::-1, ::-1]


def _ids(label: Tensor, card: Card) -> np.ndarray:
    """(H, W) label ids of a target of channel indices or of yes-or-no planes."""
    if card.head == "softmax":
        return np.asarray(card.channels)[label.numpy()]
    ids = torch.tensor(card.channels)[:, None, None]
    return (label.long() * ids).amax(0).numpy()
