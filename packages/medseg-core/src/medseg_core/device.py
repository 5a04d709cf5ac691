"""Which device computes, in which precision, and how much memory that took."""

import os
import resource
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

import torch

from medseg_core.errors import MedsegError

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def choose_device(name: str) -> torch.device:
    """`auto` takes CUDA where there is one; each process that torchrun started on a machine takes its own."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and "LOCAL_RANK" in os.environ and torch.cuda.is_available():
        name = f"cuda:{int(os.environ['LOCAL_RANK']) % torch.cuda.device_count()}"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise MedsegError(f"device {name!r} is not to be had ({str(error).splitlines()[0]}); use auto or cpu") from None
    return device


def choose_precision(name: str, device: torch.device) -> str:
    """`auto` is bf16 where the hardware multiplies it, fp16 on older GPUs, else fp32.

    It asks for the capability rather than a stopwatch: equal runs must choose equally.
    """
    if name == "fp16" and device.type == "cpu":
        raise MedsegError("precision fp16 needs a GPU; use bf16 or fp32 on a CPU")
    if name != "auto":
        return name
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    fast = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    return "bf16" if device.type == "cpu" and fast() else "fp32"


def autocast(device: torch.device, precision: str) -> AbstractContextManager:
    """The context in which a network computes in this precision."""
    return torch.autocast(device.type, dtype=DTYPES.get(precision), enabled=precision in DTYPES)


@contextmanager
def repeatable(device: torch.device, *, wanted: bool) -> Iterator[None]:
    """On a GPU: kernels that give the same bits every time, or those that a trial finds fastest.

    An operation that has no repeatable kernel is warned about by PyTorch.
    """
    if device.type != "cuda":
        yield
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS repeats itself only with it
    cudnn, fill = torch.backends.cudnn, torch.utils.deterministic.fill_uninitialized_memory
    before = cudnn.deterministic, cudnn.benchmark
    all_before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    cudnn.deterministic, cudnn.benchmark = wanted, not wanted
    torch.use_deterministic_algorithms(wanted, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False
    try:
        yield
    finally:
        cudnn.deterministic, cudnn.benchmark = before
        torch.use_deterministic_algorithms(all_before[0], warn_only=all_before[1])
        torch.utils.deterministic.fill_uninitialized_memory = fill


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that a GPU or the machine has no memory left."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    )


def peak_memory_mb(device: torch.device) -> float:
    """The most memory held so far: the GPU's, or the process's."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
