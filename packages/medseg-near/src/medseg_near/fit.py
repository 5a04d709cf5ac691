"""Fitting of shapes into a run folder: a net that undoes errors in labels, or a decoder and a latent for each."""

import csv
import io
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from medseg_core.cases import Case, keep_split
from medseg_core.checkpoint import Card, load_model
from medseg_core.device import choose_device
from medseg_core.distributed import from_first, gather, share
from medseg_core.draw import Batch, Samples
from medseg_core.errors import MedsegError, meant
from medseg_core.io import write_text
from medseg_core.losses import multilabel_dice, multilabel_focal
from medseg_core.run import RunFolder
from medseg_core.trainer import At, Result, Score, Step, Trainer, Validate
from medseg_near import __version__
from medseg_near.denoise import POINTS, DenoiseStep, Errors, Repairs, cell_of
from medseg_near.models import MODELS
from medseg_near.models.denoiser import Denoiser
from medseg_near.models.field import Shapes
from medseg_near.noise import KINDS
from medseg_near.occupancy import asking, cube, narrow
from medseg_near.points import CPU_POINTS, Points, expected_positives, frame_of, inside, picture_at
from medseg_near.settings import FitConfig
from medseg_near.shapes import Shape, label_of, read_shapes
from medseg_near.splits import read_parts

PACKAGE = "medseg-near"
ROOM = 1.1  # of the largest structure's half box: what lies outside is learnt too
FOCAL_ALPHA = 0.25

log = logging.getLogger(__name__)


def fit(
    cache: Path,
    out: Path,
    config: FitConfig,
    *,
    splits: Path | None = None,
    only: Sequence[str] = (),
    resume: str = "",
    overwrite: bool = False,
) -> Result:
    """Fits the shapes of a cache; of a net with latents `latents.csv` then says each case's numbers.

    Args:
        cache: what `prepare` made.
        out: becomes a run folder.
        splits: `{seed, unit, train, val, test}`: train is learnt, val scores the denoising net; without it all are
            learnt and some of them scored.
        only: ids of the shapes to learn.
        resume: "last" goes on, a path goes on from a kept checkpoint, "" begins.

    Raises:
        MedsegError: no shapes, no CT where appearance is wanted, a folder in use.
    """
    shapes = {shape.id: shape for shape in read_shapes(cache)}
    train, val = read_parts(cache, splits) if splits else (list(shapes), [])
    for name in set(only) - set(train):
        raise MedsegError(f"{splits or cache} has no shape {name!r} to learn{meant(name, train)}")
    learnt = [shapes[name] for name in train if not only or name in only]
    _check([*learnt, *(shapes[name] for name in val)], config)
    run = RunFolder.open(out, config, resume=resume, overwrite=overwrite, inputs=(cache,))
    with run.held():
        parts = [*((name.id, "train") for name in learnt), *((name, "val") for name in val)]
        cases = [Case(name, {}, split=part) for name, part in parts]
        from_first(lambda: keep_split(run.path / "split.json", cases, seed=config.seed))
        torch.manual_seed(config.seed)
        how = _denoising if config.net == "denoising" else _latents
        plan = how(learnt, [shapes[name] for name in val], config, label=label_of(cache))
        trainer = Trainer(plan.model, plan.step, config=config, card=plan.card, run=run)
        result = trainer.fit(plan.samples, plan.validate)
        model, _ = load_model(run.path, MODELS)
        if isinstance(model, Shapes):
            from_first(lambda: write_latents(run.path / "latents.csv", learnt, model))
    return result


@dataclass(frozen=True, eq=False)
class _Plan:
    """What the trainer is given."""

    model: nn.Module
    card: Card
    step: Step
    samples: Samples
    validate: Validate


def _card(model: str, arguments: dict[str, Any], inputs: tuple[str, ...], grid: dict[str, Any]) -> Card:
    return Card(
        package=PACKAGE,
        version=__version__,
        model=model,
        arguments=arguments,
        inputs=inputs,
        head="sigmoid",
        channels=(1,),
        labels={1: "structure"},
        grid=grid,
    )


def _latents(shapes: Sequence[Shape], _: Sequence[Shape], config: FitConfig, *, label: str) -> _Plan:
    half_mm, on_cpu = ROOM * max(shape.half_mm for shape in shapes), choose_device(config.device).type == "cpu"
    num_points = config.points or (CPU_POINTS if on_cpu else config.resolution**3)
    arguments: dict[str, Any] = {"num_cases": len(shapes), "in_channels": int(config.appearance), "num_classes": 1}
    arguments |= {"half_mm": half_mm, "latent": config.latent, "net": config.net}
    inputs = ("case", "points", *(("ct",) if config.appearance else ()))
    card = _card("shapes", arguments, inputs, {"half_mm": half_mm, "label": label})
    samples = Points(shapes, config, half_mm=half_mm, num_points=num_points)
    told = expected_positives(shapes[0], config, half_mm=half_mm, share=config.curriculum[0])
    log.info("%d shapes in cubes of %.0f mm, %d points each", len(shapes), 2 * half_mm, num_points)
    log.info("by geometry %.1f %% of the first points of %s are inside", 100 * told, shapes[0].id)
    return _Plan(Shapes(**arguments), card, FieldStep(config), samples, Validation(shapes, config))


def _denoising(shapes: Sequence[Shape], val: Sequence[Shape], config: FitConfig, *, label: str) -> _Plan:
    cell_mm, num_points = config.cell_mm or cell_of(shapes), config.points or POINTS
    arguments = {"in_channels": 1 + config.appearance, "num_classes": 1, "width": config.width, "cell_mm": cell_mm}
    inputs = ("label", *(("ct",) if config.appearance else ()))
    card = _card("denoiser", arguments, inputs, {"cell_mm": cell_mm, "label": label})
    if not val:
        log.warning("scores are of shapes that are learnt; --splits with a val part tells how others fare")
    log.info("%d shapes read every %.3g mm, %d points each", len(shapes), cell_mm, num_points)
    samples = Errors(shapes, config, num_points=num_points, cell_mm=cell_mm)
    return _Plan(Denoiser(**arguments), card, DenoiseStep(), samples, Repairs(val or shapes, config))


class FieldStep:
    """Soft Dice and focal loss at the points of each case, and the length of the latents."""

    def __init__(self, config: FitConfig) -> None:
        self.config = config

    def __call__(self, model: nn.Module, batch: Batch, _: At) -> Mapping[str, Tensor]:
        """See `medseg_core.trainer.Step`."""
        config, wanted_NKP = self.config, batch["inside"][:, None]
        logits_NP, latent_NL = model(batch["case"], batch["points"], batch.get("picture"))
        logits_NKP = logits_NP[:, None]
        parts = {
            "dice_loss": multilabel_dice(logits_NKP, wanted_NKP),
            "focal": multilabel_focal(logits_NKP, wanted_NKP, gamma=config.gamma, alpha=FOCAL_ALPHA),
            "latent": latent_NL.float().norm(dim=1).mean(),
        }
        loss = config.dice * parts["dice_loss"] + config.focal * parts["focal"] + config.penalty * parts["latent"]
        with torch.no_grad():
            both = ((logits_NP > 0) & (wanted_NKP[:, 0] > 0.5)).sum()
            hard = 2 * both / ((logits_NP > 0).sum() + (wanted_NKP > 0.5).sum()).clamp(min=1)
        return {"loss": loss, **parts, "dice": hard, "positives": batch["inside"].mean()}


class Validation:
    """Mean Dice of shapes on the whole cube, every point alike, which is never how points are drawn for training."""

    def __init__(self, shapes: Sequence[Shape], config: FitConfig) -> None:
        num = config.num_scored or len(shapes)
        self.rows = sorted({round(i) for i in np.linspace(0, len(shapes) - 1, min(num, len(shapes)))})
        self.shapes, self.resolution = list(shapes), config.resolution

    def __call__(self, model: nn.Module, at: At) -> Score:
        """See `medseg_core.trainer.Validate`."""
        latents = model.latents.weight.detach()
        mine = [dice_on_cube(model, latents[row], self.shapes[row], self.resolution) for row in share(self.rows)]
        parts = gather(mine)
        dice = [value for part in parts for value in part]
        return Score(float(np.mean(dice)), {"dice": float(np.mean(dice)), "dice_worst": float(np.min(dice))})


def dice_on_cube(model: Shapes, latent: Tensor, shape: Shape, resolution: int) -> float:
    """Dice of a latent's shape with a label, on `resolution`^3 points of the cube."""
    frame, grid = frame_of(shape, model.half_mm), cube(resolution)
    size = (resolution,) * 3
    every = np.stack(np.meshgrid(*(np.linspace(-1, 1, resolution),) * 3, indexing="ij"), -1).reshape(-1, 3)
    true = inside(np.asarray(shape.label), frame.voxels(every)).reshape(size)
    look = None if shape.image is None or not model.decoder.in_channels else _looking(shape, frame, grid)
    found, _ = narrow(asking(model, latent, grid, look), size, seed=true)
    total = int(found.sum()) + int(true.sum())
    return 2 * int((found & true).sum()) / total if total else 0.0


def _looking(shape: Shape, frame: Any, grid: Any) -> Any:
    return lambda voxels: picture_at(shape, frame.voxels(grid.points(voxels.astype(float))))


def write_latents(path: Path, shapes: Sequence[Shape], model: Shapes) -> None:
    """One row a case: its id, and the numbers of its latent."""
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(["case", *(f"z{i}" for i in range(model.latents.embedding_dim))])
    for shape, latent in zip(shapes, model.latents.weight.detach().cpu().numpy(), strict=True):
        rows.writerow([shape.id, *(f"{value:.9g}" for value in latent)])
    write_text(path, text.getvalue())


def _check(shapes: Sequence[Shape], config: FitConfig) -> None:
    if not shapes:
        raise MedsegError("there is no shape to fit; prepare some first")
    unknown = [kind for kind in config.errors if kind not in KINDS]
    if config.net == "denoising" and (unknown or not config.errors):
        wrong = f"error {unknown[0]!r} does not exist{meant(unknown[0], KINDS)}" if unknown else "no error is given"
        raise MedsegError(f"{wrong}; --errors takes some of {', '.join(KINDS)}")
    if len(shapes) == 1:
        log.warning("a single shape teaches no shape model: what comes out can only repeat it")
    bare = [shape.id for shape in shapes if shape.image is None]
    if config.appearance and bare:
        raise MedsegError(f"{bare[0]} has no CT, so --appearance cannot see it; prepare with --images")
