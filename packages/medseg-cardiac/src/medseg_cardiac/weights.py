"""The three networks before any training, as files, and how large they are."""

import logging
from pathlib import Path
from typing import Any

import torch
from torch import nn

from medseg_cardiac import __version__
from medseg_cardiac.models import MODELS
from medseg_cardiac.train import PACKAGE
from medseg_core.checkpoint import Card, save_model
from medseg_core.errors import MedsegError

NETS: dict[str, dict[str, Any]] = {
    "motion": {"passes": 2},
    "registration": {},
    "attention-unet": {"in_channels": 4, "num_classes": 1, "width": 64},
}
BYTES, MB = 4, 1e6
MOMENTS = 3  # weights, and two moments of each, are what a training goes on from

log = logging.getLogger(__name__)


def init_weights(out: Path, *, seed: int = 42, overwrite: bool = False) -> list[dict[str, Any]]:
    """Writes `motion.safetensors`, `registration.safetensors` and `attention-unet.safetensors`, drawn by the seed.

    They are starting points, not trained: `predict` refuses them.

    Returns:
        A row for each network and one for their sum: parameters, MB of the weights and of a state to go on from.

    Raises:
        MedsegError: a file that is there already.
    """
    for name in NETS:
        file = Path(out) / f"{name}.safetensors"
        if file.exists() and not overwrite:
            raise MedsegError(f"{file} exists; choose another --out, or add --overwrite")
    rows = []
    for name, arguments in NETS.items():
        torch.manual_seed(seed)
        model = MODELS[name](**arguments)
        card = Card(package=PACKAGE, version=__version__, model=name, arguments=arguments, chosen={"trained": False})
        save_model(Path(out) / f"{name}.safetensors", model, card)
        rows.append(_row(name, model))
    rows.append({key: sum(row[key] for row in rows) if key != "network" else "sum" for key in rows[0]})
    return [{key: round(value, 2) if isinstance(value, float) else value for key, value in row.items()} for row in rows]


def _row(name: str, model: nn.Module) -> dict[str, Any]:
    num = sum(parameter.numel() for parameter in model.parameters())
    buffers = sum(buffer.numel() * buffer.element_size() for buffer in model.buffers())
    weights = num * BYTES + buffers
    return {
        "network": name,
        "parameters": num,
        "weights_mb": weights / MB,
        "state_mb": (weights + (MOMENTS - 1) * num * BYTES) / MB,
    }
