"""The training loop: exact to the bit after any interruption.

Every sample and every update draws its randomness from its place in the run, and the learning rate is a function of
that place; so weights, averages, moments and a position are the whole state.

Several processes, started by torchrun, share every batch. They draw the samples that one process would, and their
gradient is that of the whole batch where the loss is a mean over cases and no layer looks across cases.
"""

import dataclasses
import logging
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from medseg_core.checkpoint import Card, load_state, save_model, save_state
from medseg_core.device import autocast, peak_memory_mb, repeatable
from medseg_core.distributed import gather, place
from medseg_core.draw import Batch, Samples
from medseg_core.engine import Engine, Told
from medseg_core.errors import MedsegError
from medseg_core.faults import memory_named, misfit_named, not_finite, refuse_other_state, tell_batch_norm
from medseg_core.journal import Journal
from medseg_core.loader import Loader, Part
from medseg_core.parallel import agree
from medseg_core.run import RunFolder
from medseg_core.settings import TrainConfig

log = logging.getLogger(__name__)

PLATEAU = 5  # validations without gain before the plateau schedule halves the learning rate
BLANK = 3  # validations without any structure in the masks before that is told aloud


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
    """A validation: `value` is higher-is-better and alone decides; `metrics` are told; `chosen` goes into the card.

    `blank` says that the model predicted nothing in any case: such a model may score well and has learnt nothing.
    """

    value: float
    metrics: Mapping[str, float] = field(default_factory=dict)
    chosen: Mapping[str, Any] = field(default_factory=dict)
    blank: bool = False


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
    sums: dict[str, float] = field(default_factory=dict)  # of this process
    samples: int = 0
    best: dict[str, Any] | None = None
    stale: int = 0  # validations without gain
    blank: int = 0  # validations without any structure
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
        device = config.device if device == "auto" else device
        self.engine = Engine(model, config, groups=groups, device=device)
        self.model, self.average, self.optimizer = self.engine.model, self.engine.average, self.engine.optimizer
        self.device, self.precision = self.engine.device, self.engine.precision
        self.config, self.card, self.run, self.step = config, card, run, step
        self.position = Position()
        self.total_steps = 1
        self.told: list[Told] = []  # updates whose numbers are on their way
        self.fault: MedsegError | None = None

    def fit(self, samples: Samples, validate: Validate | None = None) -> Result:
        """Trains to the last epoch, from the run's saved state where there is one.

        Raises:
            MedsegError: no samples, a loss that is not finite, a lack of memory, a loader worker that died, a disk
                that refuses, or a state of another model or case list.
        """
        if not len(samples):
            raise MedsegError("there is nothing to train on; the training split is empty")
        loader = Loader(samples, self.config, pin=self.device.type == "cuda")
        self.total_steps = -(-loader.num_batches // self.config.accumulate) * self.config.epochs
        about = {
            "samples": len(samples),
            "data": getattr(samples, "identity", None),
            "precision": self.precision,
            "processes": place()[1],
            "threads": torch.get_num_threads(),
        }
        with ExitStack() as stack:
            if self.run:
                stack.enter_context(self.run.held())
            self._restore(about)
            if self._ended():
                return self._result()
            if validate is None:
                log.info("no validation cases: the last weights are kept as best")
            tell_batch_norm(self.model, self.config)
            first = self.run if place()[0] == 0 else None
            stack.enter_context(repeatable(self.device, wanted=self.config.deterministic))
            journal = Journal(first, self.config, total=self.total_steps, start=self.position.step)
            stack.enter_context(journal)
            return self._train(loader, validate, journal, stack.enter_context(_stop_request()), about)

    def update(self, batches: Sequence[Batch]) -> dict[str, float]:
        """One step of the optimizer on the gradient averaged over the samples of `batches`.

        With several processes each gives its own batches, as many samples as the others.
        """
        ranks = place()[1]
        sizes = [len(next(iter(batch.values()))) for batch in batches]
        told = self._launch([Part(b, (), size, size * ranks) for b, size in zip(batches, sizes, strict=True)])
        if bad := told.bad():
            raise not_finite(*bad, step=told.step, lr=told.lr, epoch=self.position.epoch, run=None)
        sums, num = told.sums()
        return {name: total / num for name, total in sums.items()}

    @property
    def lr(self) -> float:
        """The learning rate of the first group at the last update."""
        return self.engine.lr

    @property
    def judged(self) -> nn.Module:
        """The model that validation sees and that is kept: the average where there is one."""
        return self.model if self.average is None else self.average

    def _train(
        self, loader: Loader, validate: Validate | None, journal: Journal, stop: threading.Event, about: dict[str, Any]
    ) -> Result:
        if self.position.step == 0:
            self._save(about)
        while not self._ended():
            finished = self._epoch(loader, stop, journal, about)
            if finished:
                self._close_epoch(validate, journal)
            self._save(about)
            if not finished:
                return dataclasses.replace(self._result(), reason="stopped")
        gather(None)  # none goes on before the first has written all
        return self._result()

    def _epoch(self, loader: Loader, stop: threading.Event, journal: Journal, about: dict[str, Any]) -> bool:
        """The rest of an epoch; False where a stop was asked for."""
        position, size = self.position, self.config.accumulate
        first, saved = place()[0] == 0, time.monotonic()
        for parts in _chunks(loader.epoch(position.epoch, start=position.update * size), size):
            self.told.append(self._launch(parts))
            position.update += 1
            self._settle(waiting=1 if self.device.type == "cuda" else 0)
            journal.advance(position.epoch, position.sums.get("loss", 0.0) / max(position.samples, 1))
            due = first and time.monotonic() - saved > self.config.save_seconds
            stopped, save = self._agreed(stop.is_set(), due)
            if stopped:
                return False
            if save:
                self._save(about)
                saved = time.monotonic()
        return True

    def _launch(self, parts: Sequence[Part]) -> Told:
        at = self._at()
        self.engine.set_lr(at.progress, self.position.reductions)
        with memory_named(self.config, step=at.step):
            told = self.engine.update(parts, self.step, at)
        self.position.step += 1
        return told

    def _settle(self, *, waiting: int = 0) -> None:
        """Adds up what the updates said, but for the last so many, which the device may still be at."""
        while len(self.told) > waiting:
            told = self.told.pop(0)
            if (bad := told.bad()) and not self.fault:
                self.fault = not_finite(*bad, step=told.step, lr=told.lr, epoch=self.position.epoch, run=self.run)
            sums, num = told.sums()
            for name, total in sums.items():
                self.position.sums[name] = self.position.sums.get(name, 0.0) + total
            self.position.samples += num

    def _agreed(self, *flags: bool) -> tuple[bool, ...]:
        """What some process asks for; all of them end here where one has met a loss that is not finite."""
        failed, *raised = agree(self.fault is not None, *flags)
        if failed:
            raise self.fault or MedsegError("another process met a loss that is not finite; its message says where")
        return tuple(raised)

    def _close_epoch(self, validate: Validate | None, journal: Journal) -> None:
        """Validates, logs, keeps the best, and moves to the next epoch."""
        position, config = self.position, self.config
        self._settle()
        self._agreed()
        self.engine.set_lr((position.step - 1) / self.total_steps, position.reductions)  # a resumed run may not know it
        sums, samples = _added(gather([position.sums, position.samples]))
        row = {f"train_{name}": total / samples for name, total in sums.items()}
        last = position.epoch + 1 == config.epochs
        if validate is None:
            self._keep_best(Score(0.0))
        elif last or (position.epoch + 1) % config.val_every == 0:
            score = self._validated(validate)
            row |= {"val_score": score.value} | {f"val_{name}": value for name, value in score.metrics.items()}
            self._weigh(score)
        row = {"epoch": position.epoch + 1, "step": position.step, "lr": self.lr, **row}
        journal.close_epoch(row, samples=samples, memory_mb=peak_memory_mb(self.device))
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
        if place()[1] > 1:
            score = Score(**gather(dataclasses.asdict(score))[0])
        if not np.isfinite(score.value):
            raise MedsegError(f"the validation score is {score.value} at epoch {at.epoch + 1}; it must be a number")
        self.position.blank = self.position.blank + 1 if score.blank else 0
        if self.position.blank >= BLANK:
            log.warning(
                "the model has predicted nothing at %d validations running: take a --loss with a Dice or a balanced"
                " part, more --epochs, or another --lr (now %g)",
                *(self.position.blank, self.config.lr),
            )
        return score

    def _weigh(self, score: Score) -> None:
        position = self.position
        if position.best is None or score.value > position.best["value"]:
            position.stale = 0
            position.best = {**dataclasses.asdict(score), "metrics": dict(score.metrics), "chosen": dict(score.chosen)}
            self._keep_best(score)
            return
        position.stale += 1
        if position.stale % PLATEAU == 0:
            position.reductions += 1

    def _keep_best(self, score: Score) -> None:
        if self.run and place()[0] == 0:
            card = dataclasses.replace(
                self.card, chosen={**self.card.chosen, **score.chosen}, weights="ema" if self.average else "raw"
            )
            save_model(self.run.best, self.judged, card)

    def _at(self) -> At:
        """The place of the coming update, with every generator seeded by it."""
        position = self.position
        rng = self.engine.seed(position.step)
        return At(position.epoch, position.step, position.step / self.total_steps, rng, self.average)

    def _ended(self) -> bool:
        return self.position.epoch >= self.config.epochs or self.position.reason == "no gain"

    def _result(self) -> Result:
        position = self.position
        best = Score(**position.best) if position.best else None
        return Result(best, position.epoch, position.step, position.reason or "stopped")  # type: ignore[arg-type]

    def _save(self, about: Mapping[str, Any]) -> None:
        self._settle()
        self._agreed()
        ranks = gather([self.position.sums, self.position.samples])
        if not self.run or place()[0]:
            return
        position = {**dataclasses.asdict(self.position), "sums": {}, "samples": 0}
        about = {**about, "position": position, "ranks": ranks, "scaler": self.engine.scaler.state_dict()}
        save_state(self.run.state, self.engine.state(), about)
        every = self.config.save_every
        if every and self.position.update == 0 and self.position.epoch and self.position.epoch % every == 0:
            self.run.keep_checkpoint(self.position.epoch, keep=self.config.keep)

    def _restore(self, about: dict[str, Any]) -> None:
        """Takes up the run's saved state; `about` says what must be the same."""
        if not (self.run and self.run.start):
            return
        parts, saved = load_state(self.run.start)
        refuse_other_state(self.run.start, saved, about)
        rank, size = place()
        if saved.get("processes", 1) != size:
            log.warning("begun with %d processes, goes on with %d: not to the same bits", saved["processes"], size)
        with misfit_named(self.run.start):
            torch.set_num_threads(saved["threads"])
            about["threads"] = saved["threads"]
            self.engine.restore(parts)
            self.engine.scaler.load_state_dict(saved["scaler"])
            self.position = Position(**saved["position"])
            ranks = saved["ranks"] if len(saved["ranks"]) == size else [_added(saved["ranks"]), *[({}, 0)] * (size - 1)]
            self.position.sums, self.position.samples = ranks[rank]
        if not self.run.best.is_file():  # of a state from another run, or lost: the next validation is the best again
            self.position.best = None
        if rank == 0:
            self.run.cut_logs(self.position.epoch)
            self.run.record(self.config)
        if self.position.reason == "finished" and self.position.epoch < self.config.epochs:
            self.position.reason = ""


def _added(ranks: Sequence[Sequence[Any]]) -> tuple[dict[str, float], int]:
    """The sums of all processes, in the order of ranks."""
    sums: dict[str, float] = {}
    for own, _ in ranks:
        for name, total in own.items():
            sums[name] = sums.get(name, 0.0) + total
    return sums, sum(samples for _, samples in ranks)


def _chunks(parts: Iterator[Part], size: int) -> Iterator[list[Part]]:
    chunk = []
    for part in parts:
        chunk.append(part)
        if len(chunk) == size:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


@contextmanager
def _stop_request() -> Iterator[threading.Event]:
    """An event that SIGTERM and Ctrl-C set: the update under way is finished, the state saved, the run left.

    A second Ctrl-C ends it at once; the last saved state stays.
    """
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def ask(number: int, _: Any) -> None:
        if stop.is_set() and number == signal.SIGINT:
            raise KeyboardInterrupt
        stop.set()

    before = {s: signal.signal(s, ask) for s in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
