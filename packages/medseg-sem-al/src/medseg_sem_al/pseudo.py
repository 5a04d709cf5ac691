"""Semi-supervision: the averaged network teaches what it is sure of.

Axes: N windows, K classes, D frames of a stack, H W of a window.

As FixMatch for pictures (Sohn et al., 2020) with the mean teacher (Tarvainen and Valpola, 2017) and CutMix (French et
al., 2020): the teacher sees a window that was only moved and mirrored, the student the same one with other greys and
with boxes of other windows, and learns the teacher's classes where their probability is high.
"""

import logging
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medseg_core.augment import PRESETS, augment
from medseg_core.device import choose_device
from medseg_core.draw import Batch, Draw
from medseg_core.errors import MedsegError
from medseg_core.run import RunFolder
from medseg_core.trainer import At, Result
from medseg_sem_al.colours import UNSEEN
from medseg_sem_al.index import read_index
from medseg_sem_al.samples import Windows, standardised
from medseg_sem_al.settings import PseudoConfig
from medseg_sem_al.train import SegStep, check_fits, divided, fit, load_segmenter, windows_of

GREYS = ("brightness", "contrast", "gamma", "noise", "blur")
CHANCE = 0.8  # of each change of grey in the student's view
STILL = dict.fromkeys(("rotate_chance", "scale_chance", "shift_chance", "elastic_chance"), 0.0)
HARDER = replace(PRESETS["strong"], **STILL, **{f"{name}_chance": CHANCE for name in GREYS})
BOX = (0.25, 0.75)  # edge of a pasted box, as a share of the window's

log = logging.getLogger(__name__)


def pseudo(
    index_file: Path,
    out: Path,
    config: PseudoConfig,
    *,
    model: Path,
    splits: Path | None = None,
    resume: str = "",
    overwrite: bool = False,
) -> Result:
    """Trains on from a run with the pictures that have no masks.

    Args:
        index_file: what `index` made; its pictures without masks are the pool.
        model: a run of `train`, or its weights file, of the same classes; its network goes on as it is.

    Raises:
        MedsegError: no pool, no average to teach, weights that do not fit, a folder in use.
    """
    index = read_index(index_file)
    cases = divided(index, config.datasets, splits, index_file)
    pool = [replace(case, split="") for case in index.cases if "label" not in case.files]
    labelled = [case for case in cases if case.split == "train"]
    if not pool or not labelled:
        said = f"{index_file} has {len(labelled)} labelled pictures to train on and {len(pool)} without masks"
        raise MedsegError(f"{said}; pseudo needs both: put images without masks beside the others and index again")
    if not config.ema:
        raise MedsegError("the averaged weights are the teacher; set --ema to 0.99, not 0")
    net, card = load_segmenter(model)
    check_fits(index, card, index_file)
    choose_device(config.device)
    samples = Both(windows_of(index, labelled, card, config), windows_of(index, pool, card, moved_only(config)))
    run = RunFolder.open(out, config, resume=resume, overwrite=overwrite, inputs=(index_file, splits, model))
    log.info("Begun from %s; %d labelled pictures, %d without masks", model, len(labelled), len(pool))
    return fit(net, PseudoStep(config, len(card.channels)), samples, index, cases, card, config, run)


def moved_only(config: PseudoConfig) -> PseudoConfig:
    """The settings without changes of grey, each picture drawn as often: the teacher's view."""
    return replace(config, sampler="uniform", **{f"{name}_chance": 0.0 for name in GREYS})


class Both:
    """Samples of labelled windows with, for each, two views of a window of the pool; see `medseg_core.draw.Samples`.

    A sample has `image` and `label` as `Windows`; `weak` and `strong` (D, size, size) float32, which lie on each other;
    `beyond` (size, size) bool, outside of the picture there.

    Args:
        labelled: gives length and order.
        pool: changes no greys.
    """

    def __init__(self, labelled: Windows, pool: Windows) -> None:
        self.labelled, self.pool, self.how = labelled, pool, HARDER
        self.identity = f"{labelled.identity} {pool.identity}"

    def __len__(self) -> int:
        return len(self.labelled)

    def order(self, epoch: int, rng: np.random.Generator) -> np.ndarray:
        """That of the labelled windows."""
        return self.labelled.order(epoch, rng)

    def __getitem__(self, draw: Draw) -> Batch:
        place = draw.place + len(self)  # no labelled window has it
        rng = replace(draw, place=place).numpy()
        number = int(rng.integers(len(self.pool.shelf.cases)))
        grey, label = self.pool.plain(replace(draw, index=number, place=place))
        harder, _ = augment(grey, label, rng, how=self.how)
        weak, strong = (torch.from_numpy(standardised(view, self.pool.intensity)) for view in (grey, harder))
        views = {"weak": weak, "strong": strong, "beyond": torch.from_numpy(label == UNSEEN)}
        return {**self.labelled[draw], **views}


class PseudoStep(SegStep):
    """The loss of labelled windows, and the cross entropy of what the teacher is sure of."""

    def __init__(self, config: PseudoConfig, num_classes: int) -> None:
        super().__init__(config.loss, num_classes)
        self.config = config

    def __call__(self, model: nn.Module, batch: Batch, at: At) -> Mapping[str, Tensor]:
        """See `medseg_core.trainer.Step`."""
        with torch.no_grad():
            sure_NHW, ids_NHW = at.teacher(batch["weak"]).float().softmax(1).max(1)
            taught_NHW = (sure_NHW > self.config.sure) & ~batch["beyond"]
        strong, ids_NHW, taught_NHW = pasted(batch["strong"], ids_NHW, taught_NHW, self.config.mix_chance, at.rng)
        num = len(batch["image"])
        logits, student = model(torch.cat([batch["image"], strong])).float().split([num, len(strong)])
        surprise = F.cross_entropy(student, ids_NHW, reduction="none")
        unlabelled = (surprise * taught_NHW).mean()
        labelled = self.loss_of(logits, batch["label"])
        weight = self.config.pseudo_weight * rise(at.progress, self.config.ramp)
        told = {"labelled": labelled, "unlabelled": unlabelled, "sure": taught_NHW.float().mean()}
        return {"loss": labelled + weight * unlabelled, **told, **self.scores(logits, batch["label"])}


def pasted(
    image: Tensor, ids_NHW: Tensor, taught_NHW: Tensor, chance: float, rng: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """A box of the window before it, in some windows; classes and certainty come along."""
    num, height, width = ids_NHW.shape
    low, high = BOX
    drawn = torch.rand((num, 5), generator=rng, device=rng.device).to(image.device)
    box = torch.zeros_like(taught_NHW)
    for n, (does, edge, other, top, left) in enumerate(drawn.tolist()):
        if does < chance:
            h, w = (round((low + (high - low) * share) * size) for share, size in ((edge, height), (other, width)))
            y, x = round(top * (height - h)), round(left * (width - w))
            box[n, y : y + h, x : x + w] = True
    before = [torch.roll(part, 1, 0) for part in (image, ids_NHW, taught_NHW)]
    mixed = torch.where(box[:, None], before[0], image)
    return mixed, torch.where(box, before[1], ids_NHW), torch.where(box, before[2], taught_NHW)


def rise(progress: float, ramp: float) -> float:
    """From nearly 0 to 1 in the first `ramp` of the run: exp(-5 (1 - t)^2), as Laine and Aila (2017)."""
    return 1.0 if progress >= ramp else math.exp(-5 * (1 - progress / ramp) ** 2)
