"""What a training tells while it runs: a bar, a line per epoch, the logs, the curves and an optional second logger."""

import logging
import time
from collections.abc import Mapping
from typing import Any

from medseg_core import figures
from medseg_core.errors import MedsegError
from medseg_core.progress import Bar
from medseg_core.run import METRICS, TIMINGS, RunFolder, read_history
from medseg_core.settings import TrainConfig

log = logging.getLogger(__name__)

CURVES_SECONDS = 20.0


class Journal:
    """Open for the length of a training; without a run folder it only shows the bar."""

    def __init__(self, run: RunFolder | None, config: TrainConfig, *, total: int, start: int) -> None:
        self.run, self.config = run, config
        self.bar = Bar("Training", total=total, start=start)
        self.writer = _writer(config.logger, run) if run else None
        self.begun = time.monotonic()
        self.drawn = 0.0

    def __enter__(self) -> "Journal":
        self.bar.__enter__()
        return self

    def __exit__(self, *exception: object) -> None:
        self.bar.__exit__(*exception)
        if self.run:
            self._draw_curves()
        if self.writer:
            self.writer.close()

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
        log.info(text)
        if self.run:
            with (self.run.path / "train.log").open("a", encoding="utf-8") as file:
                file.write(text + "\n")

    def _draw_curves(self) -> None:
        assert self.run is not None
        history = read_history(self.run.path)
        if history:
            figures.save(figures.curves(history), self.run.path / "curves.png")
        self.drawn = time.monotonic()


class _TensorBoard:
    def __init__(self, run: RunFolder) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise MedsegError(
                "--logger tensorboard needs TensorBoard; pip install 'medseg-core[tensorboard]'"
            ) from None
        self.writer = SummaryWriter(str(run.path / "tensorboard"))

    def write(self, numbers: Mapping[str, float], epoch: int) -> None:
        for name, value in numbers.items():
            self.writer.add_scalar(
                name.replace("_", "/", 1) if name.startswith(("train_", "val_")) else name, value, epoch
            )

    def close(self) -> None:
        self.writer.close()


class _Wandb:
    def __init__(self, run: RunFolder) -> None:
        try:
            import wandb
        except ImportError:
            raise MedsegError("--logger wandb needs Weights & Biases; pip install 'medseg-core[wandb]'") from None
        self.run = wandb.init(dir=str(run.path), name=run.path.name, mode="offline", resume="allow")

    def write(self, numbers: Mapping[str, float], epoch: int) -> None:
        self.run.log(dict(numbers), step=epoch)

    def close(self) -> None:
        self.run.finish()


def _writer(kind: str, run: RunFolder) -> Any:
    return {"none": lambda _: None, "tensorboard": _TensorBoard, "wandb": _Wandb}[kind](run)


def _said(row: Mapping[str, float], prefix: str) -> str:
    return " ".join(f"{n.removeprefix(prefix)} {v:.3f}" for n, v in row.items() if n.startswith(prefix))
