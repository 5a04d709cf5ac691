"""What a training tells while it runs: a bar, a line per epoch, the logs, the curves and an optional second logger."""

import logging
import os
import secrets
import time
from collections.abc import Mapping
from typing import Any

from medseg_core import figures
from medseg_core.config import as_dict
from medseg_core.distributed import place
from medseg_core.errors import MedsegError
from medseg_core.io import write_text
from medseg_core.progress import Bar
from medseg_core.run import LOG, METRICS, TIMINGS, RunFolder, read_history
from medseg_core.settings import TrainConfig

log = logging.getLogger(__name__)

CURVES_SECONDS = 20.0


class Journal:
    """Open for the length of a training; without a run folder it only shows the bar and a line per epoch.

    Of many processes the first one has the folder and speaks.
    """

    def __init__(self, run: RunFolder | None, config: TrainConfig, *, total: int, start: int) -> None:
        self.run, self.config = run, config
        self.bar = Bar("Training", total=total, start=start)
        self.writer = _writer(run, config) if run else None
        self.begun = time.monotonic()
        self.drawn = 0.0

    def __enter__(self) -> "Journal":
        self.bar.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, *more: object) -> None:
        self.bar.__exit__(kind, *more)
        if self.writer:
            self.writer.close(failed=kind is not None)
        if self.run:
            self._draw_curves()

    def advance(self, epoch: int, loss: float) -> None:
        """One update is done."""
        self.bar.advance(f"Epoch {epoch + 1}/{self.config.epochs} loss {loss:.3f}")

    def close_epoch(self, row: Mapping[str, float], *, samples: int, memory_mb: float) -> None:
        """One epoch is done; `row` holds `epoch` from 1, `step`, `lr`, and its numbers as `train_...`, `val_...`."""
        seconds = time.monotonic() - self.begun
        self.begun = time.monotonic()
        epoch = row["epoch"]
        speed = {"seconds": seconds, "samples_per_second": samples / max(seconds, 1e-9), "peak_memory_mb": memory_mb}
        self._line(f"Epoch {epoch} Train {_said(row, 'train_')} lr {row['lr']:.1e} {seconds:.0f} s")
        if any(name.startswith("val_") for name in row):
            self._line(f"Epoch {epoch} Eval {_said(row, 'val_')}")
        if not self.run:
            return
        self.run.append(METRICS, row)
        self.run.append(TIMINGS, {"epoch": epoch, **speed})
        if self.writer:
            self.writer.write({**row, **speed}, int(epoch))
        if time.monotonic() - self.drawn > CURVES_SECONDS:
            self._draw_curves()

    def _line(self, text: str) -> None:
        if place()[0] == 0:
            log.info(text)
        if self.run:
            self.run.append(LOG, text)

    def _draw_curves(self) -> None:
        assert self.run is not None
        history = read_history(self.run.path)
        if history:
            figures.save_if_possible(figures.curves(history), self.run.path / "curves.png")
        self.drawn = time.monotonic()


class _TensorBoard:
    """Events beside the other logs, so that TensorBoard names the run by its folder."""

    def __init__(self, run: RunFolder, config: TrainConfig) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise MedsegError(
                "--logger tensorboard needs TensorBoard; pip install 'medseg-core[tensorboard]'"
            ) from None
        done = max(read_history(run.path).get("epoch", ()), default=0)
        self.writer = SummaryWriter(str(run.path), purge_step=done + 1)  # takes back what is done again

    def write(self, numbers: Mapping[str, float], epoch: int) -> None:
        for name, value in numbers.items():
            if name != "epoch":
                tag = name.replace("_", "/", 1) if name.startswith(("train_", "val_")) else name
                self.writer.add_scalar(tag, value, epoch)
        self.writer.flush()  # before the state is saved: an epoch that is not done again must not be lost

    def close(self, *, failed: bool) -> None:
        self.writer.close()


class _Wandb:
    """A W&B run of the folder's name, whose id lies in the folder: a run that goes on is the same one there.

    A killed process leaves next to nothing in its offline folder, so the newest one holds the run from its beginning.
    """

    def __init__(self, run: RunFolder, config: TrainConfig) -> None:
        os.environ.setdefault("WANDB_MODE", "offline")  # read at import too: else its telemetry asks the network
        try:
            import wandb
        except ImportError:
            raise MedsegError("--logger wandb needs Weights & Biases; pip install 'medseg-core[wandb]'") from None
        try:
            self.run = wandb.init(
                project=config.wandb_project,
                dir=str(run.path),
                name=run.path.resolve().name,
                id=_wandb_id(run),
                resume="allow",
                config=as_dict(config),
                settings=wandb.Settings(console="off", silent=True),
            )
        except wandb.Error as error:
            raise MedsegError(f"W&B does not start ({error}); leave WANDB_MODE out to log offline") from None
        history = read_history(run.path)
        for epoch, *values in zip(history.get("epoch", ()), *history.values(), strict=True):
            self.write({name: v for name, v in zip(history, values, strict=True) if v is not None}, epoch)

    def write(self, numbers: Mapping[str, float], epoch: int) -> None:
        self.run.log(dict(numbers), step=epoch)

    def close(self, *, failed: bool) -> None:
        self.run.finish(exit_code=int(failed))


def _writer(run: RunFolder, config: TrainConfig) -> Any:
    kinds: dict[str, Any] = {"none": lambda *_: None, "tensorboard": _TensorBoard, "wandb": _Wandb}
    return kinds[config.logger](run, config)


def _wandb_id(run: RunFolder) -> str:
    file = run.path / "wandb" / "id"
    if not file.is_file():
        write_text(file, secrets.token_hex(4))
    return file.read_text(encoding="utf-8").strip()


def _said(row: Mapping[str, float], prefix: str) -> str:
    return " ".join(f"{n.removeprefix(prefix)} {v:.3f}" for n, v in row.items() if n.startswith(prefix))
