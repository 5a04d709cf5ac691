"""Training on windows of labelled micrographs, and validation on whole ones."""

import logging
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from medseg_core.augment import recipe
from medseg_core.cases import Case, keep_split, read_split
from medseg_core.checkpoint import Card, freeze, load_model, read_card
from medseg_core.device import choose_device
from medseg_core.distributed import from_first, gather, share
from medseg_core.draw import Batch, Samples
from medseg_core.errors import MedsegError, meant
from medseg_core.infer import infer
from medseg_core.io import write_picture
from medseg_core.losses import cross_entropy, dice_balanced_ce, dice_ce, dice_loss, focal_loss
from medseg_core.run import RunFolder
from medseg_core.trainer import At, Result, Score, Trainer
from medseg_core.volume import Picture
from medseg_sem_al import __version__
from medseg_sem_al.colours import UNSEEN
from medseg_sem_al.confusion import confusion, overall, per_class
from medseg_sem_al.index import Index, read_index
from medseg_sem_al.models import MODELS
from medseg_sem_al.panels import colours_of, panel
from medseg_sem_al.samples import Shelf, Windows, intensity_of, standardised
from medseg_sem_al.settings import LabelConfig, SegConfig, TileConfig
from medseg_sem_al.start import Start

PACKAGE = "medseg-sem-al"
LOSSES = {"dice_ce": dice_ce, "dice_balanced_ce": dice_balanced_ce, "ce": cross_entropy, "dice": dice_loss}
LOSSES |= {"focal": focal_loss}

log = logging.getLogger(__name__)


def train(
    index_file: Path,
    out: Path,
    config: SegConfig,
    *,
    start: Start | None = None,
    splits: Path | None = None,
    resume: str = "",
    overwrite: bool = False,
) -> Result:
    """Fits a network and leaves a run folder, with the split that was used.

    Args:
        index_file: what `index` made.
        splits: a split file; without one the index's own parts hold.
        resume: "last" goes on, a path goes on from a kept checkpoint, "" begins.

    Raises:
        MedsegError: nothing to train on, weights that do not fit, a folder in use.
    """
    index = read_index(index_file)
    cases = divided(index, config.datasets, splits, index_file)
    labelled = [case for case in cases if case.split == "train"]
    if not labelled:
        raise MedsegError(f"no labelled picture of {index_file} is left to train on; see --splits and --datasets")
    card = card_of(index, cases, config)
    choose_device(config.device)
    torch.manual_seed(config.seed)
    model = MODELS[card.model](**card.arguments)
    said = (start or Start()).fill(model)  # a state of the run comes over it
    samples = windows_of(index, labelled, card, config)
    run = RunFolder.open(out, config, resume=resume, overwrite=overwrite, inputs=(index_file, splits))
    log.info("Begun from %s; %d windows of %d pictures in an epoch", said, len(samples), len(labelled))
    return fit(model, SegStep(config.loss, len(card.channels)), samples, index, cases, card, config, run)


def fit(
    model: nn.Module,
    step: "SegStep",
    samples: Samples,
    index: Index,
    cases: Sequence[Case],
    card: Card,
    config: LabelConfig,
    run: RunFolder,
) -> Result:
    """Trains in the run's folder, validated on those of the cases that are in "val", where there are any."""
    val = [case for case in cases if case.split == "val"]
    with run.held():
        from_first(partial(keep_split, run.path / "split.json", cases, seed=config.seed))
        trainer = Trainer(model, step, config=config, card=card, run=run, groups=groups_of(model, config))
        return trainer.fit(samples, MeanIoU(index, val, card, step, run.path) if val else None)


def load_segmenter(run: Path) -> tuple[nn.Module, Card]:
    """The network of a run of `train`, or of its weights file, in eval mode.

    Raises:
        MedsegError: no such run, or weights that make no classes.
    """
    card = read_card(run)
    if card.package != PACKAGE or card.head != "softmax":
        said = f"{run} holds a {card.model} of {card.package}, which makes no classes of micrographs"
        raise MedsegError(f"{said}; give a run of medseg sem-al train")
    return load_model(run, MODELS)


def depth_of(card: Card) -> int:
    """D, the frames that a network sees at once."""
    return int(card.arguments.get("in_channels", 1))


def check_fits(index: Index, card: Card, where: Path) -> None:
    """Raises a MedsegError where a network knows other classes, or stacks, than those of the index at `where`."""
    theirs = [card.labels[k] for k in sorted(card.labels)]
    if list(index.classes.names) != theirs:
        said = f"{where} has the classes {', '.join(index.classes.names)}, the run {', '.join(theirs)}"
        raise MedsegError(f"{said}; index with the same --colors")
    if index.depth != (depth := depth_of(card)):
        raise MedsegError(f"{where} has stacks of {index.depth}, the run saw {depth}; index with --depth {depth}")


def divided(index: Index, datasets: Sequence[str], splits: Path | None, where: Path) -> list[Case]:
    """The labelled pictures of these data sets, each with its part.

    Raises:
        MedsegError: a data set that is not there, or no labels.
    """
    known = sorted({case.notes["dataset"] for case in index.cases})
    for name in datasets:
        if name not in known:
            raise MedsegError(f"{where} has no data set {name!r}{meant(name, known)}; it has {', '.join(known)}")
    cases = [case for case in index.cases if "label" in case.files]
    if len(index.classes.names) < 2 or not cases:
        raise MedsegError(f"{where} has no labels of two classes; put masks beside the images and index again")
    cases = read_split(splits, cases) if splits else cases
    return [case for case in cases if not datasets or case.notes["dataset"] in datasets]


def card_of(index: Index, cases: Sequence[Case], config: SegConfig) -> Card:
    """What prediction needs to know, from the index and the settings.

    Values are scaled by the statistics of what may be seen: the pictures to train on, and those without masks.
    """
    seen = [case for case in cases if case.split == "train"]
    seen += [case for case in index.cases if "label" not in case.files]
    num = len(index.classes.names)
    arguments: dict[str, Any] = {"in_channels": index.depth, "num_classes": num}
    is_original = config.encoder == "six_levels"
    if is_original and (config.decoder != "unet" or config.dropout):
        raise MedsegError("six_levels has a decoder of its own and no dropout; leave out --decoder and --dropout")
    if not is_original:
        arguments |= {"encoder": config.encoder, "decoder": config.decoder}
        arguments |= {"width": config.width} if config.encoder == "unet" else {}
        arguments |= {"dropout": config.dropout} if config.dropout else {}
    pixels = sorted({case.notes["pixel_nm"] for case in seen if "pixel_nm" in case.notes})
    return Card(
        package=PACKAGE,
        version=__version__,
        model="six_levels" if is_original else "segmenter",
        arguments=arguments,
        inputs=("sem",),
        head="softmax",
        channels=tuple(range(num)),
        labels=dict(enumerate(index.classes.names)),
        grid={"pixel_nm": pixels},
        intensity=intensity_of(seen),
        chosen={"colours": [list(colour) for colour in colours_of(index.classes)]},
    )


def windows_of(index: Index, cases: Sequence[Case], card: Card, config: LabelConfig) -> Windows:
    """What is trained on."""
    return Windows(
        index,
        cases,
        size=config.size,
        intensity=dict(card.intensity),
        how=recipe(config),
        sampler=config.sampler,
        num_samples=config.epoch_windows,
    )


def groups_of(model: nn.Module, config: LabelConfig) -> list[dict[str, Any]] | None:
    """Parameter groups of the mode; a frozen encoder keeps its running statistics too."""
    if config.mode == "frozen":
        freeze(model.encoder)
    if config.mode != "differential":
        return None
    inside = {id(parameter) for parameter in model.encoder.parameters()}
    rest = [parameter for parameter in model.parameters() if id(parameter) not in inside]
    return [{"params": list(model.encoder.parameters()), "lr": config.encoder_lr}, {"params": rest}]


class SegStep:
    """The loss of a batch, and how right its decisions are.

    Args:
        loss: one of `LOSSES`.
        num_classes: K.
    """

    def __init__(self, loss: str, num_classes: int) -> None:
        self.loss, self.num_classes = LOSSES[loss], num_classes

    def __call__(self, model: nn.Module, batch: Batch, at: At) -> Mapping[str, Tensor]:
        """See `medseg_core.trainer.Step`."""
        logits = model(batch["image"]).float()
        return {"loss": self.loss_of(logits, batch["label"]), **self.scores(logits, batch["label"])}

    def loss_of(self, logits: Tensor, label: Tensor) -> Tensor:
        """Of (N, K, H, W) logits and (N, H, W) ids; pixels of id 255 count nowhere."""
        return self.loss(logits, label.long(), ignore=UNSEEN)

    @torch.no_grad()
    def scores(self, logits: Tensor, label: Tensor) -> dict[str, Tensor]:
        """Dice, IoU and accuracy of a batch, means over the classes in it."""
        known = label != UNSEEN
        places = label[known].long() * self.num_classes + logits.argmax(1)[known]
        counts = torch.bincount(places, minlength=self.num_classes**2).reshape(self.num_classes, self.num_classes)
        both, total = counts.diag(), counts.sum(0) + counts.sum(1)
        there = total > 0
        dice, iou = 2 * both[there] / total[there], both[there] / (total - both)[there]
        return {"dice": dice.mean(), "iou": iou.mean(), "accuracy": both.sum() / counts.sum().clamp(min=1)}


class MeanIoU:
    """The mean IoU over classes, of all validation pictures together, as whole pictures; beside the majority class.

    Args:
        cases: with masks.
        card: says how values are scaled.
        step: whose loss is told.
        out: of the run, which gets `samples/`.
    """

    def __init__(self, index: Index, cases: Sequence[Case], card: Card, step: SegStep, out: Path) -> None:
        self.shelf, self.card, self.step, self.out = Shelf(index, cases), card, step, out

    def __call__(self, model: nn.Module, at: At) -> Score:
        """See `medseg_core.trainer.Validate`."""
        mine = [self._counted(model, number, at) for number in share(range(len(self.shelf.cases)))]
        found = [row for part in gather(mine) for row in part]
        counts = np.sum([row[1] for row in found], axis=0)
        told = {**overall(counts), "loss": float(np.mean([row[0] for row in found]))}
        told["iou"] = told.pop("miou")
        scores = per_class(counts)["iou"]
        told |= {f"iou_{name}": float(scores[k]) for k, name in self.card.labels.items() if np.isfinite(scores[k])}
        blank = bool((counts.sum(0) > 0).sum() == 1 and (counts.sum(1) > 0).sum() > 1)
        return Score(told["iou"], told, blank=blank)

    def _counted(self, model: nn.Module, number: int, at: At) -> tuple[float, np.ndarray]:
        image, label = self.shelf[number]
        label = label - np.uint8(1)
        logits = logits_of(model, image, self.card)
        mask = logits.argmax(0).astype(np.uint8)
        if number == 0:
            shown = panel(image[len(image) // 2], label, mask, self.card.chosen["colours"])
            write_picture(Picture(shown), self.out / "samples" / f"{self.shelf.cases[0].id}_{at.epoch + 1:04d}.png")
        loss = self.step.loss_of(torch.from_numpy(logits)[None], torch.from_numpy(label)[None])
        return float(loss), confusion(mask, label, len(self.card.channels))


def logits_of(model: nn.Module, image: np.ndarray, card: Card, config: TileConfig | None = None) -> np.ndarray:
    """(K, H, W) float32 of a whole picture, tile by tile.

    Args:
        image: (D, H, W) in [0, 1].
        card: says how values are scaled.
    """
    config = config or TileConfig()
    return infer(
        model,
        standardised(image, dict(card.intensity)),
        window=tuple(min(config.window, edge) for edge in image.shape[1:]),
        reduce=lambda logits: logits,
        overlap=config.overlap,
        device=str(next(model.parameters()).device),
        precision="auto",
        mirror=(0, 1) if config.mirror else (),
    )
