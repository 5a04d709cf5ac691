"""The training loop: exact to the bit after any interruption.

Every sample and every update draws its randomness from its place in the run, and the learning rate is a function of
that place; so weights, averages, moments and a position are the whole state.
"""

import copy
import dataclasses
import logging
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from medseg_core.checkpoint import Card, load_state, moments, restore_moments, save_model, save_state, train_mode
from medseg_core.device import autocast, choose_device, choose_precision, peak_memory_mb
from medseg_core.draw import Batch, Draw, Samples
from medseg_core.errors import MedsegError
from medseg_core.journal import Journal
from medseg_core.loader import Loader
from medseg_core.run import RunFolder
from medseg_core.schedule import lr_at
from medseg_core.settings import TrainConfig

log = logging.getLogger(__name__)

PLATEAU = 5  # validations without gain before the plateau schedule halves the learning rate


@dataclass(frozen=True)
class At:
    """Where the run is: epoch and update from 0, progress 0 to 1, this update's randomness, the averaged model."""

    epoch: int
    step: int
    progress: float
    rng: torch.Generator
    teacher: nn.Module | None


@dataclass(frozen=True)
class Score:
    """A validation: `value` is higher-is-better and alone decides; `metrics` are told; `chosen` goes into the card."""

    value: float
    metrics: Mapping[str, float] = field(default_factory=dict)
    chosen: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Result:
    """How a run ended."""

    best: Score | None
    epochs: int
    steps: int
    reason: Literal["finished", "no gain", "stopped"]


Step = Callable[[nn.Module, Batch, At], Mapping[str, Tensor]]
Validate = Callable[[nn.Module, At], Score]


@dataclass
class Position:
    """Where a run stands; plain values, saved with the weights."""

    epoch: int = 0
    step: int = 0
    update: int = 0  # of this epoch
    sums: dict[str, float] = field(default_factory=dict)
    samples: int = 0
    best: dict[str, Any] | None = None
    stale: int = 0  # validations without gain
    reductions: int = 0
    reason: str = ""


class Trainer:
    """Fits a model by calling `step(model, batch, at)`, which returns `{"loss": scalar, ...}`; the rest is logged.

    Args:
        model: moved to the device; kept bare, wrapped only for compilation.
        config: the settings of the loop.
        card: what the weights are, written beside them.
        run: where to leave them; None writes nothing.
        groups: parameter groups with their own `lr` or `weight_decay`; None is one group of all that trains.
        device: overrides the config's.
    """

    def __init__(
        self,
        model: nn.Module,
        step: Step,
        *,
        config: TrainConfig,
        card: Card,
        run: RunFolder | None = None,
        groups: Sequence[dict[str, Any]] | None = None,
        device: str = "auto",
    ) -> None:
        self.device = choose_device(config.device if device == "auto" else device)
        self.precision = choose_precision(config.precision, self.device)
        self.config, self.card, self.run, self.step = config, card, run, step
        self.model = model.to(self.device)
        if config.channels_last:
            self.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.average = _frozen_copy(self.model) if config.ema else None
        self.wrapped = torch.compile(self.model) if config.compile else self.model
        self.optimizer = _optimizer(config, groups or [{"params": [p for p in model.parameters() if p.requires_grad]}])
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.precision == "fp16")
        self.position = Position()
        self.total_steps = 1

    def fit(self, samples: Samples, validate: Validate | None = None) -> Result:
        """Trains to the last epoch, from the run's saved state where there is one.

        Raises:
            MedsegError: no samples, a loss that is not finite, or a state of another model or case list.
        """
        if not len(samples):
            raise MedsegError("there is nothing to train on; the training split is empty")
        loader = Loader(samples, self.config, pin=self.device.type == "cuda")
        updates = -(-loader.num_batches // self.config.accumulate)
        self.total_steps = updates * self.config.epochs
        about = {"samples": len(samples), "precision": self.precision, "threads": torch.get_num_threads()}
        self._restore(about)
        if self._ended():
            return self._result()
        if validate is None:
            log.info("no validation cases: the last weights are kept as best")
        journal = Journal(self.run, self.config, total=self.total_steps, start=self.position.step)
        with journal, _stop_request() as stop:
            if self.position.step == 0:
                self._save(about)
            while not self._ended():
                if not self._epoch(loader, stop, journal, about):
                    self._save(about)
                    return dataclasses.replace(self._result(), reason="stopped")
                self._close_epoch(validate, journal)
                self._save(about)
        return self._result()

    def update(self, batches: Sequence[Batch]) -> dict[str, float]:
        """One step of the optimizer on the gradient averaged over the samples of `batches`."""
        position, config = self.position, self.config
        at = self._at()
        self._set_lr(at.progress)
        train_mode(self.model)
        sizes = [len(next(iter(batch.values()))) for batch in batches]
        sums: dict[str, Tensor] = {}
        for batch, size in zip(batches, sizes, strict=True):
            with autocast(self.device, self.precision):
                parts = self.step(self.wrapped, self._moved(batch), at)
            share = size / sum(sizes)
            if not torch.isfinite(parts["loss"]):
                raise MedsegError(f"the loss is {parts['loss'].item()} at step {position.step} (lr {self.lr:.1e})")
            self.scaler.scale(parts["loss"] * share).backward()
            for name, value in parts.items():
                sums[name] = sums.get(name, 0.0) + value.detach().float() * share
        if config.clip:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.model.parameters(), config.clip)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        if self.average is not None:
            _follow(self.average, self.model, min(config.ema, (1 + position.step) / (10 + position.step)))
        position.step += 1
        return {name: float(value) for name, value in sums.items()}

    @property
    def lr(self) -> float:
        """The learning rate of the first group at the last update."""
        return self.optimizer.param_groups[0]["lr"]

    @property
    def judged(self) -> nn.Module:
        """The model that validation sees and that is kept: the average where there is one."""
        return self.model if self.average is None else self.average

    def _epoch(self, loader: Loader, stop: threading.Event, journal: Journal, about: dict[str, Any]) -> bool:
        """The rest of an epoch; False where a stop was asked for."""
        position, size = self.position, self.config.accumulate
        saved = time.monotonic()
        for batches in _chunks(loader.epoch(position.epoch, start=position.update * size), size):
            try:
                parts = self.update([batch for _, batch in batches])
            except MedsegError as error:
                samples = [draw.index for draws, _ in batches for draw in draws]
                raise MedsegError(f"{error}, samples {samples}; lower --lr, or train with --precision fp32") from None
            num = sum(len(draws) for draws, _ in batches)
            for name, value in parts.items():
                position.sums[name] = position.sums.get(name, 0.0) + value * num
            position.samples += num
            position.update += 1
            journal.advance(position.epoch, position.sums["loss"] / position.samples)
            if stop.is_set():
                return False
            if time.monotonic() - saved > self.config.save_seconds:
                self._save(about)
                saved = time.monotonic()
        return True

    def _close_epoch(self, validate: Validate | None, journal: Journal) -> None:
        """Validates, logs, keeps the best, and moves to the next epoch."""
        position, config = self.position, self.config
        row = {f"train_{name}": total / position.samples for name, total in position.sums.items()}
        last = position.epoch + 1 == config.epochs
        if validate is None:
            self._keep_best(Score(0.0))
        elif last or (position.epoch + 1) % config.val_every == 0:
            score = self._validated(validate)
            row |= {"val_score": score.value} | {f"val_{name}": value for name, value in score.metrics.items()}
            self._weigh(score)
        row = {"epoch": position.epoch + 1, "step": position.step, "lr": self.lr, **row}
        journal.close_epoch(row, samples=position.samples, memory_mb=peak_memory_mb(self.device))
        position.epoch, position.update, position.samples, position.sums = position.epoch + 1, 0, 0, {}
        if position.epoch == config.epochs:
            position.reason = "finished"
        elif config.patience and position.stale >= config.patience:
            position.reason = "no gain"

    def _validated(self, validate: Validate) -> Score:
        at = self._at()
        model = self.judged.eval()
        with torch.no_grad(), autocast(self.device, self.precision):
            score = validate(model, at)
        if not np.isfinite(score.value):
            raise MedsegError(f"the validation score is {score.value} at epoch {at.epoch + 1}; it must be a number")
        return score

    def _weigh(self, score: Score) -> None:
        position = self.position
        if position.best is None or score.value > position.best["value"]:
            position.stale = 0
            position.best = {"value": score.value, "metrics": dict(score.metrics), "chosen": dict(score.chosen)}
            self._keep_best(score)
            return
        position.stale += 1
        if position.stale % PLATEAU == 0:
            position.reductions += 1

    def _keep_best(self, score: Score) -> None:
        if self.run:
            card = dataclasses.replace(
                self.card, chosen={**self.card.chosen, **score.chosen}, weights="ema" if self.average else "raw"
            )
            save_model(self.run.best, self.judged, card)

    def _at(self) -> At:
        """The place of the coming update, with every generator seeded by it."""
        position = self.position
        words = np.random.SeedSequence([self.config.seed, position.step, 0, 0]).generate_state(2)
        seed = int(words[0]) << 32 | int(words[1])
        torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(words)  # noqa: NPY002  others' code may draw from it
        rng = torch.Generator(self.device).manual_seed(seed)
        return At(position.epoch, position.step, position.step / self.total_steps, rng, self.average)

    def _set_lr(self, progress: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = lr_at(self.config, group["highest"], progress, self.position.reductions)

    def _moved(self, batch: Batch) -> Batch:
        moved = {name: tensor.to(self.device, non_blocking=True) for name, tensor in batch.items()}
        if self.config.channels_last:
            moved = {k: t.contiguous(memory_format=torch.channels_last) if t.ndim == 4 else t for k, t in moved.items()}
        return moved

    def _ended(self) -> bool:
        return self.position.epoch >= self.config.epochs or self.position.reason == "no gain"

    def _result(self) -> Result:
        position = self.position
        best = Score(**position.best) if position.best else None
        return Result(best, position.epoch, position.step, position.reason or "stopped")  # type: ignore[arg-type]

    def _save(self, about: Mapping[str, Any]) -> None:
        if not self.run:
            return
        parts: dict[str, Mapping[str, Tensor]] = {
            "model": self.model.state_dict(),
            "moments": moments(self.model, self.optimizer),
        }
        if self.average is not None:
            parts["average"] = self.average.state_dict()
        scaler = self.scaler.state_dict()
        save_state(self.run.state, parts, {**about, "position": dataclasses.asdict(self.position), "scaler": scaler})
        every = self.config.save_every
        if every and self.position.update == 0 and self.position.epoch and self.position.epoch % every == 0:
            self.run.keep_checkpoint(self.position.epoch, keep=self.config.keep)

    def _restore(self, about: dict[str, Any]) -> None:
        """Takes up the run's saved state; `about` says what must be the same."""
        if not (self.run and self.run.start):
            return
        parts, saved = load_state(self.run.start)
        for name in ("samples", "precision"):
            if saved[name] != about[name]:
                raise MedsegError(
                    f"{self.run.start} was saved with {name} {saved[name]}, not {about[name]}; use the same"
                )
        torch.set_num_threads(saved["threads"])
        about["threads"] = saved["threads"]
        self.model.load_state_dict(parts["model"])
        if self.average is not None:
            self.average.load_state_dict(parts["average"])
        restore_moments(self.model, self.optimizer, parts.get("moments", {}))
        self.scaler.load_state_dict(saved["scaler"])
        self.position = Position(**saved["position"])
        self.run.cut_logs(self.position.epoch)
        if self.position.reason == "finished" and self.position.epoch < self.config.epochs:
            self.position.reason = ""


def _optimizer(config: TrainConfig, groups: Sequence[dict[str, Any]]) -> torch.optim.Optimizer:
    groups = [{"lr": config.lr, "weight_decay": config.weight_decay, **group} for group in groups]
    for group in groups:
        group["params"] = [p for p in group["params"] if p.requires_grad]
        group["highest"] = group["lr"]
    match config.optimizer:
        case "adam":
            return torch.optim.Adam(groups)
        case "adamw":
            return torch.optim.AdamW(groups)
        case _:
            return torch.optim.SGD(groups, momentum=0.99, nesterov=True)


def _frozen_copy(model: nn.Module) -> nn.Module:
    return copy.deepcopy(model).requires_grad_(requires_grad=False).eval()


@torch.no_grad()
def _follow(average: nn.Module, model: nn.Module, decay: float) -> None:
    for mean, value in zip(average.state_dict().values(), model.state_dict().values(), strict=True):
        if mean.is_floating_point():
            mean.lerp_(value, 1 - decay)
        else:
            mean.copy_(value)


def _chunks(batches: Iterator[tuple[Sequence[Draw], Batch]], size: int) -> Iterator[list[tuple[Sequence[Draw], Batch]]]:
    chunk = []
    for batch in batches:
        chunk.append(batch)
        if len(chunk) == size:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


@contextmanager
def _stop_request() -> Iterator[threading.Event]:
    """An event that SIGTERM and Ctrl-C set: the update under way is finished, the state saved, the run left."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {s: signal.signal(s, lambda *_: stop.set()) for s in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
