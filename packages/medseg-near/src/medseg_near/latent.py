"""The latent of a shape that a run has not seen: found with the decoder left as it is. Axes: L numbers of a latent."""

import csv
import math
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from medseg_core.draw import Draw
from medseg_core.errors import MedsegError
from medseg_near.fit import FieldStep
from medseg_near.models.field import Shapes
from medseg_near.points import Points
from medseg_near.settings import FitConfig
from medseg_near.shapes import Shape


def fit_latent(model: Shapes, shape: Shape, config: FitConfig, *, steps: int, lr: float, seed: int) -> Tensor:
    """(L,) the latent whose field is likest a label, from the mean of those that are known (Park et al., 2019).

    Args:
        model: in eval mode; nothing of it changes.
        config: of the run: its loss, and how points are drawn, `points` of them each time.
        steps: updates by Adam, at a rate that falls to 0 as a cosine.
        lr: of the first update.
        seed: equal seeds find equal latents.
    """
    device = model.latents.weight.device
    points = Points([shape], config, half_mm=model.half_mm, num_points=config.points)
    latent_NL = model.latents.weight.detach().mean(0, keepdim=True).clone().requires_grad_()
    optimizer, step = torch.optim.Adam([latent_NL], lr=lr), FieldStep(config)

    def asked(_: Tensor, points_NP3: Tensor, picture_NPC: Tensor | None) -> tuple[Tensor, Tensor]:
        return model.decoder.at(model.decoder.maps(latent_NL), points_NP3, picture_NPC), latent_NL

    for number in range(steps):
        epoch = number * config.epochs // steps
        batch = {name: value[None].to(device) for name, value in points[Draw(0, epoch, number, seed)].items()}
        for group in optimizer.param_groups:
            group["lr"] = lr * (1 + math.cos(math.pi * number / steps)) / 2
        (gradient,) = torch.autograd.grad(step(asked, batch, None)["loss"], latent_NL)
        latent_NL.grad = gradient
        optimizer.step()
    return latent_NL.detach()[0]


def read_latents(run: Path) -> dict[str, np.ndarray]:
    """Case -> (L,) float32, of the `latents.csv` of a run; nothing where there is none.

    Raises:
        MedsegError: a table that was changed.
    """
    file = (run if run.is_dir() else run.parent) / "latents.csv"
    if not file.is_file():
        return {}
    with file.open(encoding="utf-8", newline="") as stream:
        head, *rows = csv.reader(stream)
        try:
            found = {case: np.array(numbers, np.float32) for case, *numbers in rows}
        except ValueError:
            raise MedsegError(f"{file} holds words where numbers are meant; copy it from its run again") from None
    if any(len(latent) != len(head) - 1 for latent in found.values()):
        raise MedsegError(f"{file} has rows of different lengths; copy it from its run again")
    return found
