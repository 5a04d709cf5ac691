"""Training of the three networks, each into a run folder of its own."""

import hashlib
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from medseg_cardiac import __version__
from medseg_cardiac.alignment import aligned
from medseg_cardiac.cohort import Slice, divided, identity, pack
from medseg_cardiac.models import MODELS
from medseg_cardiac.samples import InfarctSlices, MotionPairs, RegistrationPairs
from medseg_cardiac.settings import FitConfig, MotionConfig, RegistrationConfig, SegmentationConfig
from medseg_cardiac.steps import MotionStep, RegistrationStep, infarct_step
from medseg_cardiac.tracking import systole
from medseg_cardiac.validation import (
    InfarctValidation,
    MotionValidation,
    RegistrationValidation,
    warped_mask,
)
from medseg_core.augment import recipe
from medseg_core.cases import Case, keep_split
from medseg_core.checkpoint import Card, load_model, load_weights, read_card
from medseg_core.distributed import from_first
from medseg_core.draw import Samples
from medseg_core.errors import MedsegError
from medseg_core.labelmaps import write_labels
from medseg_core.progress import track
from medseg_core.run import RunFolder
from medseg_core.trainer import Result, Step, Trainer, Validate

PACKAGE = "medseg-cardiac"
INFARCT = {1: "infarct"}
SAME_PIXEL = 0.01  # relative difference of pixel sizes up to which a motion net sees what it was trained on

log = logging.getLogger(__name__)


def train_motion(data: Path, out: Path, config: MotionConfig, **how: Any) -> Result:
    """Fits the motion net to pairs of frames; no label is needed, and pools drawn at ED and ES score it.

    Args:
        data: a folder that `dataset.discover` reads.
        out: becomes a run folder; the packed slices lie in `out/cache`.
        how: `splits`, a split file, without which patients are drawn by the seed; `resume`, "last" goes on, a path goes
            on from a kept checkpoint, "" begins; `overwrite`.

    Raises:
        MedsegError: nothing to train on, a folder in use, settings that do not fit the data.
    """
    with _begun(data, out, config, **how) as job:
        samples = MotionPairs(
            job.parts["train"],
            frames=config.frames,
            synthetic=config.synthetic,
            drawn=config.drawn if config.contours else 0.0,
            per_slice=config.pairs_per_slice,
            **job.views(),
        )
        arguments = {"passes": config.passes, "diffeomorphic": config.diffeomorphic}
        card = job.card("motion", arguments, inputs=("moving", "fixed"))
        return job.fit(card, MotionStep(config), samples, MotionValidation(job.parts["val"]))


def train_registration(data: Path, out: Path, config: RegistrationConfig, **how: Any) -> Result:
    """Fits the registration net, which brings LGE onto the cine's frame at ED; arguments as for `train_motion`.

    It is scored on what is drawn in both: the LGE's myocardium, moved, against the cine's.
    """
    with _begun(data, out, config, needs=("lge", "lge_myo", "myo"), **how) as job:
        samples = RegistrationPairs(job.parts["train"], **job.views())
        card = job.card("registration", {"diffeomorphic": config.diffeomorphic}, inputs=("lge", "ed"))
        return job.fit(card, RegistrationStep(config), samples, RegistrationValidation(job.parts["val"]))


def train_segmentation(
    data: Path, out: Path, config: SegmentationConfig, *, motion: Path, registration: Path | None = None, **how: Any
) -> Result:
    """Fits the U-Net that finds infarct in two frames, behind a motion net that stays as it is.

    The infarct drawn on LGE is first brought to the cine by the registration net; without one, by geometry alone.

    Args:
        data, out, how: as for `train_motion`; slices need an LGE with its infarct, and the cine's myocardium.
        motion: a run of `train_motion`, or its weights file; its weights become part of this run's.
        registration: a run of `train_registration`, or its weights file.
    """
    seen = card_of(motion, "motion")
    register = None if registration is None else load_of(registration, "registration")
    with _begun(data, out, config, needs=("lge_mi", "myo"), more=(motion, registration), **how) as job:
        infarcts = {
            part: [infarct_of(one, register) for one in track(job.parts[part], f"Infarcts of {part} to the cine")]
            for part in ("train", "val")
        }
        flows = {part: _flows(job.parts[part], motion, config) for part in ("train", "val")}
        told = hashlib.sha256(b"".join(np.packbits(mask).tobytes() for mask in infarcts["train"])).hexdigest()
        samples = InfarctSlices(job.parts["train"], infarcts["train"], flows["train"], **job.views(more=told))
        arguments = {
            "in_channels": 4,
            "num_classes": 1,
            "width": config.width,
            "sees": config.sees,
            "refine": config.refine,
        }
        card = job.card(
            "cascade",
            {**arguments, "motion": dict(seen.arguments)},
            inputs=("ed", "es"),
            head="sigmoid",
            channels=(1,),
            labels=INFARCT,
        )
        _check_pixels(seen, card, motion)
        validation = InfarctValidation(job.parts["val"], infarcts["val"], flows["val"])
        return job.fit(card, infarct_step, samples, validation, begin=partial(_with_motion, motion=motion))


def infarct_of(one: Slice, register: nn.Module | None) -> np.ndarray:
    """(h, w) bool, the infarct drawn on LGE where the cine has it, inside the cine's myocardium.

    Where the wall is drawn on both, it helps to bring one to the other; `evaluate` never lets it.
    """
    mask = one.mask("lge_mi")
    if register is not None and one.has("lge"):
        walls = (one.mask("lge_myo"), one.mask("myo")) if one.has("lge_myo") else ()
        mask = warped_mask(mask, aligned(register, one.lge, one.frames[one.about["ed"]], walls=walls))
    return mask & one.mask("myo")


def _flows(slices: Sequence[Slice], motion: Path, config: SegmentationConfig) -> list[np.ndarray]:
    """(D, h, w) float16 from ED to ES of each slice."""
    if config.sees == "ed":
        return [np.zeros((2, *one.frames.shape[1:]), np.float16) for one in slices]
    net = load_of(motion, "motion")
    found = []
    for one in track(slices, "Motion of slices"):
        how = {"ed": one.about["ed"], "es": one.about["es"], "refine": config.refine, "myo": one.mask("myo")}
        found.append(systole(net, one.frames, **how).astype(np.float16))
    return found


def card_of(path: Path, kind: str) -> Card:
    """The card of a network of this kind.

    Raises:
        MedsegError: weights of another one.
    """
    card = read_card(path)
    if (card.package, card.model) != (PACKAGE, kind):
        told = f"{path} holds weights of {card.package}, {card.model}, where a {kind} net is meant"
        raise MedsegError(f"{told}; give a run of `medseg cardiac train-{kind}`")
    if card.chosen.get("trained") is False:
        raise MedsegError(f"{path} holds weights as they are before any training; train first, or give another run")
    return card


def load_of(path: Path, kind: str) -> nn.Module:
    """A trained network of this kind, in eval mode; errors as `card_of`."""
    card_of(path, kind)
    return load_model(path, MODELS)[0]


@dataclass(frozen=True)
class _Job:
    """A run folder that is held, the slices of each part, and the settings."""

    run: RunFolder
    config: FitConfig
    parts: Mapping[str, Sequence[Slice]]

    def views(self, *, more: str = "") -> dict[str, Any]:
        """What all samples are drawn with."""
        config = self.config
        return {
            "crop": min(config.crop, config.size),
            "how": recipe(config),
            "shading": config.shading,
            "identity": identity(self.parts) + more,
        }

    def card(self, model: str, arguments: Mapping[str, Any], **more: Any) -> Card:
        """What predicting needs to know."""
        config, first = self.config, self.parts["train"][0]
        return Card(
            package=PACKAGE,
            version=__version__,
            model=model,
            arguments=dict(arguments),
            grid={"pixel_mm": first.arrays.about["pixel_mm"], "size": config.size},
            intensity={"percentiles": list(config.percentiles)},
            **more,
        )

    def fit(
        self,
        card: Card,
        step: Step,
        samples: Samples,
        validate: Validate,
        *,
        begin: Callable[[nn.Module], None] | None = None,
    ) -> Result:
        """Trains the network that the card describes, which starts the same for equal seeds."""
        torch.manual_seed(self.config.seed)
        model = MODELS[card.model](**card.arguments)
        if begin:
            begin(model)
        trainer = Trainer(model, step, config=self.config, card=card, run=self.run)
        return trainer.fit(samples, validate if self.parts["val"] else None)


@contextmanager
def _begun(
    data: Path,
    out: Path,
    config: FitConfig,
    *,
    needs: Sequence[str] = (),
    more: Sequence[Path | None] = (),
    splits: Path | None = None,
    resume: str = "",
    overwrite: bool = False,
) -> Iterator[_Job]:
    run = RunFolder.open(out, config, resume=resume, overwrite=overwrite, inputs=(data, splits, *more))
    with run.held():
        slices = pack(data, run.path / "cache", config, needs=needs)
        parts = divided(slices, splits, config)
        cases = [Case(name, {}, split=part) for part in parts for name in dict.fromkeys(s.case for s in parts[part])]
        from_first(partial(keep_split, run.path / "split.json", cases, seed=config.seed))
        from_first(partial(write_labels, run.path / "labels.json", INFARCT))
        yield _Job(run, config, parts)


def _with_motion(model: nn.Module, *, motion: Path) -> None:
    load_weights(model.motion, motion)


def _check_pixels(motion: Card, card: Card, path: Path) -> None:
    """Motion is in pixels, so both networks see pixels of one size."""
    theirs, ours = motion.grid.get("pixel_mm"), card.grid["pixel_mm"]
    if theirs is not None and abs(theirs / ours - 1) > SAME_PIXEL:
        raise MedsegError(
            f"{path} was trained on pixels of {theirs:g} mm, this data has {ours:g}; add --pixel-mm {theirs:g}"
        )
