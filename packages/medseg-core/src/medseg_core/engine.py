"""One update of a model: forward, backward, optimizer and average, with its numbers read when the device has them.

Waiting for a GPU's numbers after every update would leave it idle while the next is prepared; here they come one
update late, and a loss that is not finite stops the run before anything of it is saved.
"""

import copy
import itertools
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from medseg_core.checkpoint import moments, restore_moments, train_mode
from medseg_core.device import autocast, choose_device, choose_precision
from medseg_core.distributed import place
from medseg_core.draw import Batch
from medseg_core.errors import MedsegError
from medseg_core.loader import Part
from medseg_core.parallel import average_buffers, broadcast, sum_gradients
from medseg_core.schedule import lr_at
from medseg_core.settings import TrainConfig

LAYOUTS = {4: torch.channels_last, 5: torch.channels_last_3d}  # number of axes -> channels last


class Engine:
    """A model with its optimizer and its average on their device; arguments as for `medseg_core.trainer.Trainer`."""

    def __init__(
        self, model: nn.Module, config: TrainConfig, *, groups: Sequence[dict[str, Any]] | None, device: str
    ) -> None:
        self.config = config
        self.device = choose_device(device)
        self.precision = choose_precision(config.precision, self.device)
        self.model = _synced(model.to(self.device), self.device) if config.sync_batchnorm else model.to(self.device)
        if config.channels_last:
            for tensor in _tensors(self.model):
                if tensor.ndim in LAYOUTS:
                    tensor.data = tensor.data.contiguous(memory_format=LAYOUTS[tensor.ndim])
        broadcast(self.model)
        self.average = copy.deepcopy(self.model).requires_grad_(requires_grad=False).eval() if config.ema else None
        self.wrapped = torch.compile(self.model) if config.compile else self.model
        self.optimizer = _optimizer(config, groups or [{"params": list(self.model.parameters())}])
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.precision == "fp16")

    def seed(self, step: int) -> torch.Generator:
        """Every generator starts anew from this update's place, in each process from another one."""
        words = np.random.SeedSequence([self.config.seed, step, place()[0], 0]).generate_state(2)
        seed = int(words[0]) << 32 | int(words[1])
        torch.default_generator.manual_seed(seed)  # torch.manual_seed also queues for devices that never start
        if self.device.type == "cuda":
            torch.cuda.default_generators[self.device.index or 0].manual_seed(seed)
        random.seed(seed)
        np.random.seed(words)  # noqa: NPY002  others' code may draw from it
        return torch.Generator(self.device).manual_seed(seed)

    def set_lr(self, progress: float, reductions: int) -> None:
        """The learning rate of every group as of this place in the run."""
        for group in self.optimizer.param_groups:
            group["lr"] = lr_at(self.config, group["highest"], progress, reductions)

    @property
    def lr(self) -> float:
        """The learning rate of the first group at the last update."""
        return self.optimizer.param_groups[0]["lr"]

    def update(self, parts: Sequence[Part], step: Any, at: Any) -> "Told":
        """One step of the optimizer on the gradient averaged over the samples of `parts`, over all processes."""
        train_mode(self.model)
        total = sum(part.total for part in parts)
        said = []
        for part in parts:
            with autocast(self.device, self.precision):
                numbers = step(self.wrapped, self._moved(part.batch), at)
            self.scaler.scale(numbers["loss"] * (part.num / total)).backward()
            said.append(numbers)
        sum_gradients(self.model)
        if self.config.clip:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        average_buffers(self.model)
        if self.average is not None:
            self._follow(min(self.config.ema, (1 + at.step) / (10 + at.step)))
        return Told.of(said, parts, step=at.step, lr=self.lr)

    def state(self) -> dict[str, Mapping[str, Tensor]]:
        """Weights, moments and averages: with a position the whole state of a run."""
        parts = {"model": self.model.state_dict(), "moments": moments(self.model, self.optimizer)}
        return parts if self.average is None else {**parts, "average": self.average.state_dict()}

    def restore(self, parts: Mapping[str, Mapping[str, Tensor]]) -> None:
        """The way back from `state`."""
        self.model.load_state_dict(dict(parts["model"]))
        if self.average is not None:
            self.average.load_state_dict(dict(parts["average"]))
        restore_moments(self.model, self.optimizer, parts.get("moments", {}))

    @torch.no_grad()
    def _follow(self, decay: float) -> None:
        assert self.average is not None
        pairs = list(zip(_tensors(self.average), _tensors(self.model), strict=True))
        means, values = zip(*[pair for pair in pairs if pair[0].is_floating_point()], strict=True)
        torch._foreach_lerp_(means, values, 1 - decay)
        for mean, value in pairs:
            if not mean.is_floating_point():
                mean.copy_(value)

    def _moved(self, batch: Batch) -> Batch:
        moved = {name: tensor.to(self.device, non_blocking=True) for name, tensor in batch.items()}
        if self.config.channels_last:
            for name, tensor in moved.items():
                if tensor.ndim in LAYOUTS:
                    moved[name] = tensor.contiguous(memory_format=LAYOUTS[tensor.ndim])
        return moved


@dataclass(frozen=True)
class Told:
    """What the step said about each part of an update, on its way from the device."""

    names: tuple[str, ...]
    values: Tensor  # (parts, names) float64 on the CPU; whole once `arrived` has passed
    arrived: torch.cuda.Event | None
    parts: Sequence[Part]
    step: int
    lr: float

    @classmethod
    def of(cls, said: Sequence[Mapping[str, Tensor]], parts: Sequence[Part], *, step: int, lr: float) -> "Told":
        """Sends the numbers on their way."""
        names, device = tuple(said[0]), said[0]["loss"].device
        rows = [[numbers[name].detach().to(device, torch.float64) for name in names] for numbers in said]
        values = torch.stack([torch.stack(row) for row in rows])
        if device.type != "cuda":
            return cls(names, values.cpu(), None, parts, step, lr)
        landed, arrived = torch.empty(values.shape, dtype=values.dtype, pin_memory=True), torch.cuda.Event()
        landed.copy_(values, non_blocking=True)
        arrived.record(torch.cuda.current_stream(device))
        return cls(names, landed, arrived, parts, step, lr)

    def sums(self) -> tuple[dict[str, float], int]:
        """Each number added up over the samples that count, and how many these are; waits for the device."""
        num = [part.num for part in self.parts]
        sums = {
            name: math.fsum(value * n for value, n in zip(column, num, strict=True))
            for name, column in self._columns().items()
        }
        return sums, sum(num)

    def bad(self) -> tuple[Part, float] | None:
        """The first part whose loss is not finite, and that loss; waits for the device."""
        losses = zip(self.parts, self._columns()["loss"], strict=True)
        return next(((part, loss) for part, loss in losses if not math.isfinite(loss)), None)

    def _columns(self) -> dict[str, tuple[float, ...]]:
        if self.arrived is not None:
            self.arrived.synchronize()
        return dict(zip(self.names, zip(*self.values.tolist(), strict=True), strict=True))


def _optimizer(config: TrainConfig, groups: Sequence[dict[str, Any]]) -> torch.optim.Optimizer:
    groups = [{"lr": config.lr, "weight_decay": config.weight_decay, **group} for group in groups]
    for group in groups:
        group["params"] = [p for p in group["params"] if p.requires_grad]
        group["highest"] = group["lr"]
    match config.optimizer:
        case "adam":
            return torch.optim.Adam(groups, fused=True)
        case "adamw":
            return torch.optim.AdamW(groups, fused=True)
        case _:
            return torch.optim.SGD(groups, momentum=0.99, nesterov=True, fused=True)


def _tensors(model: nn.Module) -> Iterator[Tensor]:
    return itertools.chain(model.parameters(), model.buffers())


def _synced(model: nn.Module, device: torch.device) -> nn.Module:
    if device.type != "cuda":
        raise MedsegError(f"--sync-batchnorm needs GPUs and this is {device}; leave it out")
    return nn.SyncBatchNorm.convert_sync_batchnorm(model)
