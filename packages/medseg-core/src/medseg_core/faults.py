"""What goes wrong in a training, said with what is needed to mend it."""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from medseg_core.checkpoint import save_state
from medseg_core.device import is_out_of_memory
from medseg_core.distributed import place
from medseg_core.errors import MedsegError
from medseg_core.loader import Part
from medseg_core.run import RunFolder
from medseg_core.settings import TrainConfig

log = logging.getLogger(__name__)


def not_finite(part: Part, loss: float, *, step: int, lr: float, epoch: int, run: RunFolder | None) -> MedsegError:
    """The error for a loss that is not finite; its batch is kept in the run folder, for `load_state` to read."""
    samples = [draw.index for draw in part.draws]
    told = f"the loss is {loss} at step {step} (lr {lr:.1e})" + f", samples {samples}" * bool(samples)
    if run is not None:
        file = run.path / "failed" / f"batch-{place()[0]}.safetensors"
        about = {"loss": str(loss), "step": step, "lr": lr, "epoch": epoch, "samples": samples}
        save_state(file, {"batch": part.batch}, about)
        told += f", the batch is in {file}"
    return MedsegError(f"{told}; lower --lr, or train with --precision fp32")


@contextmanager
def memory_named(config: TrainConfig, *, step: int) -> Iterator[None]:
    """Turns a lack of memory into an error that says which setting to lower."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        size, parts = config.batch_size, config.accumulate
        fix = "take smaller samples"
        if size > place()[1]:
            fix = f"take --batch-size {size // 2} --accumulate {parts * 2}, the same in two halves, or smaller samples"
        if config.precision == "fp32":
            fix += ", or --precision bf16"
        raise MedsegError(f"out of memory at step {step} with batch_size {size}; {fix}") from None


def refuse_other_state(start: Path, saved: Mapping[str, Any], about: Mapping[str, Any]) -> None:
    """Raises a MedsegError where `start`, which holds `saved`, is no state, or one of other data or arithmetic."""
    if "position" not in saved:
        raise MedsegError(f"{start} holds weights to predict with; go on from RUN/last or RUN/checkpoints/epoch_NNNN")
    for name in ("samples", "precision"):
        if saved.get(name) != about[name]:
            raise MedsegError(f"{start} was saved with {name} {saved.get(name)}, not {about[name]}; use the same")
    if about["data"] and saved.get("data") not in (None, about["data"]):
        raise MedsegError(
            f"{start} was saved with other cases, or another split of them; give the same data and --splits, or"
            " another --out without --resume"
        )


@contextmanager
def misfit_named(start: Path) -> Iterator[None]:
    """Turns what a state of another network or of another version raises into an error that names its file."""
    try:
        yield
    except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
        told = " ".join(str(error).split()) or type(error).__name__
        raise MedsegError(
            f"{start} does not fit the network of these settings and this version ({told:.120});"
            " begin another run with another --out"
        ) from None


def tell_batch_norm(model: nn.Module, config: TrainConfig) -> None:
    """Says where batch normalisation makes many processes learn something else than one."""
    rank, size = place()
    names = [name for name, module in model.named_modules() if isinstance(module, _BatchNorm)]
    if size == 1 or rank or not names or config.sync_batchnorm:
        return
    log.warning(
        "batch normalisation (%d layers) sees %d of the %d samples of a batch in each process, so gradients are not"
        " those of one process; --sync-batchnorm makes them so on GPUs",
        *(len(names), -(-config.batch_size // size), config.batch_size),
    )
