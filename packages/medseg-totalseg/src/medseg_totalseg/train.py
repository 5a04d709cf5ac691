"""Training on slices or patches of a prepared cohort."""

import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from medseg_core import figures
from medseg_core.cases import write_split
from medseg_core.checkpoint import Card
from medseg_core.device import peak_memory_mb
from medseg_core.distributed import from_first
from medseg_core.draw import Batch, Draw
from medseg_core.labelmaps import write_labels
from medseg_core.losses import LOSSES
from medseg_core.run import RunFolder
from medseg_core.trainer import At, Result, Trainer
from medseg_totalseg.patches import Patches
from medseg_totalseg.plan import Plan, check, cohort_of, complete, make_plan
from medseg_totalseg.settings import TotalsegConfig
from medseg_totalseg.slices import Slices
from medseg_totalseg.validation import Validation


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

    A cohort of one patient trains without validation: its last weights are kept as best. Started by torchrun, all
    processes share each batch and the held-out cases, and the first one writes.

    Args:
        data: a cache that `prepare` made, or a released folder, which is prepared into `out/cache` first.
        splits: a split file; without one meta.csv's split holds, else patients are drawn by the seed.
        resume: "last" goes on, a path goes on from a kept checkpoint, "" begins.

    Raises:
        MedsegError: nothing to train on, a folder in use, settings that do not fit the data.
    """
    config = complete(config)
    check(data, config)
    run = RunFolder.open(out, config, resume=resume, overwrite=overwrite, inputs=(data, splits))
    with run.held():  # from here on: to prepare scans may take long
        plan = make_plan(cohort_of(data, run.path, config), config, splits)
        samples, held_out = plan.samples("train"), plan.arrays("val")
        from_first(partial(_describe, samples, plan, run.path))
        trainer = _trainer(plan, run)
        return trainer.fit(samples, Validation(held_out, plan, run.path / "samples") if held_out else None)


def rehearse(data: Path, out: Path, config: TotalsegConfig, *, splits: Path | None = None) -> Mapping[str, Any]:
    """Two steps of what `train` would do: shapes, values, labels, parameters, memory, times, and `out/batch.png`."""
    config = complete(config)
    check(data, config)
    plan = make_plan(cohort_of(data, out, config), config, splits)
    samples, trainer = plan.samples("train"), _trainer(plan, None)
    draws = [Draw(i, 0, i, config.seed) for i in range(min(config.batch_size, len(samples)))]
    begun = time.perf_counter()
    batch = torch.utils.data.default_collate([samples[draw] for draw in draws])
    sample_s = (time.perf_counter() - begun) / len(draws)
    from_first(partial(_save_sheet, samples, plan, out / "batch.png", num=len(draws)))
    parts = trainer.update([batch])
    begun = time.perf_counter()
    trainer.update([batch])  # the first one also warms up
    step_s = time.perf_counter() - begun
    image, label = batch["image"], batch["label"]
    planes = tuple(range(2, image.ndim))
    present = np.unique(label.numpy()) if plan.card.head == "softmax" else np.flatnonzero(label.amax((0, *planes)))
    ids = [plan.card.channels[c] for c in present.tolist()]
    return {
        f"training {plan.kind}": len(samples),
        "training cases": [case.id for case in plan.cases if case.split == "train"],
        "validation cases": [case.id for case in plan.cases if case.split == "val"],
        "image": f"{tuple(image.shape)} from {float(image.min()):.3f} to {float(image.max()):.3f}",
        "label": f"{tuple(label.shape)} {label.dtype}",
        "labels present": [plan.card.labels.get(i, "background") for i in ids],
        "head and loss": f"{plan.card.head}, {plan.loss}",
        "spacing_mm": list(plan.cohort.spacing_mm),
        "network": f"{plan.card.model} of widths {', '.join(map(str, plan.card.arguments['widths']))}",
        "parameters": sum(p.numel() for p in trainer.model.parameters()),
        "precision": f"{trainer.precision} on {trainer.device}",
        "peak_memory_mb": round(peak_memory_mb(trainer.device)),
        "seconds_per_step": round(step_s, 3),
        "seconds_per_sample": round(sample_s, 4),
        "steps_per_epoch": -(-len(samples) // (config.batch_size * config.accumulate)),
        **parts,
        "picture": str(out / "batch.png"),
    }


class SegmentStep:
    """The loss of a batch, and the Dice that its hard decisions have over the structures in the batch.

    With deep supervision (Lee et al., 2015) the loss is a weighted mean over the levels that answer, each half as
    heavy as the next finer one, against the label at its own scale.

    Args:
        head, loss: keys of `medseg_core.losses.LOSSES`.
        deep: whether the model is called with `deep=True`.
    """

    def __init__(self, head: str, loss: str, *, deep: bool = False) -> None:
        self.head, self.loss, self.deep = head, LOSSES[head][loss], deep

    def __call__(self, model: nn.Module, batch: Batch, at: At) -> Mapping[str, Tensor]:
        """See `medseg_core.trainer.Step`."""
        label = batch["label"]
        levels: Sequence[Tensor] = model(batch["image"], deep=True) if self.deep else [model(batch["image"])]
        with torch.no_grad():
            dice = _batch_dice(levels[0], label, self.head)
        losses = [self.loss(y, shrunk(label, y.shape[2:]), known=batch.get("known")) for y in levels]
        weights = [0.5**level for level in range(len(levels))]
        loss = sum(weight * loss for weight, loss in zip(weights, losses, strict=True)) / sum(weights)
        return {"loss": loss, "dice": dice}


def shrunk(label: Tensor, size: Sequence[int]) -> Tensor:
    """A label (..., *space) on a coarser grid of `size`, which divides space: of each block the voxel in its middle."""
    steps = [edge // n for edge, n in zip(label.shape[-len(size) :], size, strict=True)]
    return label[(..., *(slice(step // 2, None, step) for step in steps))]


def _describe(samples: Slices | Patches, plan: Plan, out: Path) -> None:
    """What people look at before anything is learnt."""
    write_labels(out / "labels.json", plan.card.labels)
    write_split(out / "split.json", plan.cases, seed=plan.config.seed)
    _save_sheet(samples, plan, out / "augmented.png", num=16)


def _trainer(plan: Plan, run: RunFolder | None) -> Trainer:
    """The network at its start, and the loop around it."""
    step = SegmentStep(plan.card.head, plan.loss, deep=plan.config.deep_supervision)
    return Trainer(plan.network(), step, config=plan.config, card=plan.card, run=run)


def _batch_dice(logits: Tensor, label: Tensor, head: str) -> Tensor:
    """The mean Dice of the structures that the batch's label has; without any, 1 where nothing was predicted.

    Nothing here waits for a GPU, as `bincount` would.
    """
    if head == "softmax":
        mask = logits.argmax(1)
        agreed = torch.where(mask == label, mask, 0)
        both, found, true = (_counts(ids, logits.shape[1])[1:] for ids in (agreed, mask, label))
    else:
        mask, label = logits > 0, label.bool()
        axes = (0, *range(2, logits.ndim))
        both, found, true = (yes.sum(axes) for yes in (mask & label, mask, label))
    present = true > 0
    dice = (2 * both / (found + true).clamp(min=1)).where(present, 0).sum() / present.sum().clamp(min=1)
    return torch.where(present.any(), dice, (found.sum() == 0).float())


def _counts(ids: Tensor, num: int) -> Tensor:
    """(num,) how often each id from 0 on occurs."""
    flat = ids.flatten()
    return torch.zeros(num, dtype=torch.int64, device=ids.device).scatter_add_(0, flat, torch.ones_like(flat))


def _save_sheet(samples: Slices | Patches, plan: Plan, path: Path, *, num: int) -> None:
    """What the network sees: samples as they are drawn, with their labels; of a patch the plane with most labels."""
    drawn = [samples[Draw(i * len(samples) // num, 0, i, plan.config.seed)] for i in range(min(num, len(samples)))]
    planes = [_plane(sample["image"][0].numpy(), _ids(sample["label"], plan.card)) for sample in drawn]
    images, labels = (np.stack([_upright(plane) for plane in kind]) for kind in zip(*planes, strict=True))
    figures.save_if_possible(figures.sheet(images, labels, plan.card.labels), path)


def _plane(image: np.ndarray, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A slice as it is; of a patch the axial plane in which most is labelled."""
    if image.ndim == 2:
        return image, ids
    k = int(np.count_nonzero(ids, axis=(0, 1)).argmax())
    return image[:, :, k], ids[:, :, k]


def _upright(plane_XY: np.ndarray) -> np.ndarray:
    """A plane in RAS as radiologists look at it: the patient's right on the left, the front on top."""
    return plane_XY.T[::-1, ::-1]


def _ids(label: Tensor, card: Card) -> np.ndarray:
    """(*space) label ids of a target of channel indices or of yes-or-no channels."""
    if card.head == "softmax":
        return np.asarray(card.channels)[label.numpy()]
    ids = torch.tensor(card.channels).reshape(-1, *[1] * (label.ndim - 1))
    return (label.long() * ids).amax(0).numpy()
