"""Training on slices of a prepared cohort, and validation by patient."""

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from medseg_core.augment import recipe
from medseg_core.cases import Case, keep_split, read_split, split_cases
from medseg_core.checkpoint import Card
from medseg_core.device import autocast, choose_device, choose_precision
from medseg_core.distributed import from_first, gather, share
from medseg_core.draw import Batch
from medseg_core.errors import MedsegError
from medseg_core.losses import bce, multilabel_dice, multilabel_focal, multilabel_iou, multilabel_tversky
from medseg_core.run import RunFolder
from medseg_core.store import Arrays
from medseg_core.trainer import At, Result, Score, Trainer
from medseg_fusion import __version__
from medseg_fusion.models import MODELS
from medseg_fusion.models.vgg import REPLICATED, load_vgg, vgg_weights
from medseg_fusion.prepare import read_cohort
from medseg_fusion.settings import FusionConfig
from medseg_fusion.slices import Slices, intensity_of, scaled, size_of

PACKAGE = "medseg-fusion"
THRESHOLDS = tuple(round(0.05 * n, 2) for n in range(2, 19))  # 0.1 to 0.9
SURE = 1e-6  # of probabilities whose loss is told
ALONG = 8  # slices that the network sees at once in validation and prediction

log = logging.getLogger(__name__)


def train(
    cache: Path,
    out: Path,
    config: FusionConfig,
    *,
    splits: Path | None = None,
    resume: str = "",
    overwrite: bool = False,
) -> Result:
    """Fits a network and leaves a run folder, with the split that was used and the threshold that validation chose.

    Args:
        cache: what `prepare` made.
        splits: a split file; without one the cache's own parts hold, else patients are drawn by the seed.
        resume: "last" goes on, a path goes on from a kept checkpoint, "" begins.

    Raises:
        MedsegError: nothing to train on, patients without masks or of two units, a folder in use.
    """
    cases = _divided([case for case in read_cohort(cache) if _has_mask(case)], cache, config, splits)
    train_on, val_on = (
        [Arrays(case.files["arrays"]) for case in cases if case.split == part] for part in ("train", "val")
    )
    if not train_on:
        raise MedsegError(f"no patient of {cache} with a mask is left to train on; see --splits and --val-ratio")
    card = card_of(train_on + val_on, config)
    choose_device(config.device)
    model = network(card, config)  # whatever is wrong with the settings is told before a run is touched
    run = RunFolder.open(out, config, resume=resume, overwrite=overwrite, inputs=(cache, splits))
    with run.held():
        from_first(partial(keep_split, run.path / "split.json", cases, seed=config.seed))
        options: dict[str, Any] = {
            "size": config.size or size_of(train_on),
            "intensity": card.intensity,
            "how": recipe(config),
            "tumour_share": config.tumour_share,
            "drop_chance": config.drop_chance,
            "misalign_mm": config.misalign_mm,
            "num_samples": config.epoch_slices,
        }
        samples = Slices(train_on, **options)
        samples.identity = _identity(cases)
        log.info(
            "%d slices of %d patients, %d with tumour; %d in an epoch",
            *(len(samples.places), len(train_on), samples.has_tumour.sum(), len(samples)),
        )
        step = FusionStep(config)
        trainer = Trainer(model, step, config=config, card=card, run=run)
        return trainer.fit(samples, PatientDice(val_on, card, step) if val_on else None)


def card_of(cases: Sequence[Arrays], config: FusionConfig) -> Card:
    """What prediction needs to know, from the cohort and the settings.

    Raises:
        MedsegError: patients in HU and SUV beside patients in 8 bits, or an empty window.
    """
    units = sorted({arrays.about["unit"] for arrays in cases})
    if len(units) > 1:
        raise MedsegError(f"patients in {' and in '.join(units)}; a network learns one of them: prepare them apart")
    arguments: dict[str, Any] = {"in_channels": 2, "num_classes": 1, "width": config.width}
    arguments |= {"modality": config.modality} if config.net == "single" else {}
    arguments |= {"attention": config.attention} if config.net in ("four_way", "v1") else {}
    arguments |= {"norm": config.norm} if config.net != "v1" else {}
    spacing = np.median([arrays.about["spacing"] for arrays in cases], axis=0)
    return Card(
        package=PACKAGE,
        version=__version__,
        model=config.net,
        arguments=arguments,
        inputs=("ct", "pet"),
        head="sigmoid",
        channels=(1,),
        labels={1: "tumour"},
        grid={"spacing": np.round(spacing, 4).tolist()},
        intensity={**intensity_of(units[0], config.window_hu, config.clip_suv), "missing": _may_miss(config)},
        chosen={"threshold": 0.5},
    )


def network(card: Card, config: FusionConfig) -> nn.Module:
    """The network at its start, the same for equal seeds, with the VGG weights that are asked for."""
    torch.manual_seed(config.seed)
    model = MODELS[card.model](**card.arguments)
    file = vgg_weights(config.vgg) if config.net in ("four_way", "v1") else None
    for trunk in (model.vgg_ct, model.vgg_pet) if file else ():
        load_vgg(trunk, file, shares=REPLICATED)
    return model


class FusionStep:
    """The loss of a batch, and how right its decisions at 0.5 are, beside the share of background."""

    def __init__(self, config: FusionConfig) -> None:
        self.config = config

    def __call__(self, model: nn.Module, batch: Batch, at: At) -> Mapping[str, Tensor]:
        """See `medseg_core.trainer.Step`."""
        logits, label = model(batch["image"], batch["present"]).float(), batch["label"]
        parts = self.losses(logits, label)
        with torch.no_grad():
            mask, true = logits > 0, label > 0
            both, either = (mask & true).sum(), (mask | true).sum()
            scores = {"dice": 2 * both / (both + either).clamp(min=1), "iou": both / either.clamp(min=1)}
            scores |= {"accuracy": (mask == true).float().mean(), "background": 1 - true.float().mean()}
        told = parts if len(parts) > 1 else {}
        return {"loss": torch.stack(list(parts.values())).sum(), **told, **scores}

    def losses(self, logits: Tensor, label: Tensor) -> dict[str, Tensor]:
        """Its parts, of (N, 1, ...) logits and (N, 1, ...) label; their sum is the loss."""
        config = self.config
        if config.loss == "combined":
            dice = config.dice_weight * multilabel_dice(logits, label)
            return {"dice_loss": dice, "ce": config.ce_weight * bce(logits, label)}
        if config.loss == "tversky":
            how = {"alpha": config.tversky_alpha, "beta": config.tversky_beta}
            return {"tversky": multilabel_tversky(logits, label, **how)}
        if config.loss == "focal":
            return {"focal": multilabel_focal(logits, label, gamma=config.focal_gamma, alpha=config.focal_alpha)}
        return {config.loss: {"dice": multilabel_dice, "ce": bce, "iou": multilabel_iou}[config.loss](logits, label)}


class PatientDice:
    """The mean Dice of patients with tumour, at the threshold that is best for them, which the card then holds.

    Patients without tumour have no Dice: the share of them in whom something is found is told beside it. The loss is
    that of whole patients; IoU and accuracy are at the chosen threshold, and background is what nothing would have.

    Args:
        cases: with masks.
        card: says how values are scaled.
        step: whose loss is told.
    """

    def __init__(self, cases: Sequence[Arrays], card: Card, step: FusionStep) -> None:
        self.cases, self.card, self.step = list(cases), card, step

    def __call__(self, model: nn.Module, at: At) -> Score:
        """See `medseg_core.trainer.Validate`."""
        found = [row for part in gather([self._counted(model, arrays) for arrays in share(self.cases)]) for row in part]
        loss, size = np.array([row[:2] for row in found]).T
        both, mask, true = np.moveaxis(np.array([row[2] for row in found], float), 2, 0)  # (patients, thresholds) each
        ill = true[:, 0] > 0
        dice = 2 * both[ill] / np.maximum(mask[ill] + true[ill], 1)
        means = dice.mean(0) if ill.any() else -mask.mean(0)
        best, half = int(means.argmax()), THRESHOLDS.index(0.5)
        wrong = (mask + true - 2 * both)[:, best] / size
        told = {}
        if ill.any():
            iou = (both / np.maximum(mask + true - both, 1))[ill, best].mean()
            told |= {"dice": means[best], "dice_at_half": means[half], "iou": iou}
        told |= {"loss": loss.mean(), "accuracy": 1 - wrong.mean(), "background": 1 - (true[:, 0] / size).mean()}
        if not ill.all():
            told["invented"] = (mask[~ill, best] > 0).mean()
        numbers = {name: float(value) for name, value in told.items()}
        return Score(float(means[best]), numbers, {"threshold": THRESHOLDS[best]})

    def _counted(self, model: nn.Module, arrays: Arrays) -> tuple[float, int, list[list[int]]]:
        """Loss, voxels, and of each threshold the voxels of mask and label together, of the mask, and of the label."""
        probs = probabilities(model, arrays["ct"], arrays["pet"], self.card)
        label = arrays["label"] > 0
        logits = torch.from_numpy(probs).clamp(SURE, 1 - SURE).logit()
        parts = self.step.losses(logits[None, None], torch.from_numpy(label.astype(np.uint8))[None, None])
        masks = (probs >= threshold for threshold in THRESHOLDS)
        counts = [[int((mask & label).sum()), int(mask.sum()), int(label.sum())] for mask in masks]
        return float(sum(parts.values())), label.size, counts


@torch.inference_mode()
def probabilities(
    model: nn.Module, ct: np.ndarray, pet: np.ndarray, card: Card, *, present: Sequence[bool] = (True, True)
) -> np.ndarray:
    """(A, B, S) float32 of tumour, slice by slice.

    Args:
        ct, pet: (A, B, S) in the units of the card.
        present: whether CT and PET are there.
    """
    device = next(model.parameters()).device
    found = np.empty(ct.shape, np.float32)
    there = torch.tensor(present, dtype=torch.float32, device=device)
    for start in range(0, ct.shape[2], ALONG):
        part = slice(start, start + ALONG)
        image = np.moveaxis(scaled(ct[..., part], pet[..., part], card.intensity), 3, 0)
        image_N2AB = torch.from_numpy(np.ascontiguousarray(image)).to(device)
        with autocast(device, choose_precision("auto", device)):
            logits = model(image_N2AB, there.expand(len(image_N2AB), 2))
        found[..., part] = np.moveaxis(logits[:, 0].float().sigmoid().cpu().numpy(), 0, 2)
    return found


def _may_miss(config: FusionConfig) -> list[str]:
    """Which modality a network can do without: the one that it never looks at, or either that was dropped."""
    if config.net == "single":
        return ["pet" if config.modality == "ct" else "ct"]
    return ["ct", "pet"] if config.drop_chance else []


def _has_mask(case: Case) -> bool:
    return "label" in Arrays(case.files["arrays"]).names


def _divided(cases: Sequence[Case], cache: Path, config: FusionConfig, splits: Path | None) -> list[Case]:
    if not cases:
        raise MedsegError(f"no patient of {cache} has a mask; put one beside each CT and prepare again")
    return read_split(splits, cases) if splits else split_cases(cases, val=config.val_ratio, seed=config.seed)


def _identity(cases: Sequence[Case]) -> str:
    """Another text for other patients, or other roles."""
    facts = sorted((case.id, case.split, case.notes.get("tumour_share")) for case in cases)
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()
