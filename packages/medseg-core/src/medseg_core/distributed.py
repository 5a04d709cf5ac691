"""Which of many processes this one is, as torchrun tells it; work shared out, and what came of it put together."""

import atexit
import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

from medseg_core.errors import MedsegError

T = TypeVar("T")
PATIENCE = timedelta(days=7)  # a process that is done waits for the others


def place() -> tuple[int, int]:
    """Rank of this process and the number of processes: (0, 1) where nothing started several."""
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


def share(items: Sequence[T]) -> Sequence[T]:
    """This process's part: every item is in the part of exactly one."""
    rank, size = place()
    return items[rank::size]


def gather(value: Any) -> list[Any]:
    """What each process gave, in the order of ranks; all of them must call it. Values are what JSON holds.

    Raises:
        MedsegError: another process has ended.
    """
    _, size = place()
    if size == 1:
        return [value]
    import torch
    import torch.distributed as dist

    own = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
    lengths = [torch.zeros(1, dtype=torch.int64) for _ in range(size)]
    with connected():
        dist.all_gather(lengths, torch.tensor([len(own)]))
        padded = torch.zeros(int(max(lengths)), dtype=torch.uint8)
        padded[: len(own)] = own
        texts = [torch.empty_like(padded) for _ in range(size)]
        dist.all_gather(texts, padded)
    return [json.loads(bytes(text[:length].numpy())) for text, length in zip(texts, lengths, strict=True)]


def from_first(work: Callable[[], T]) -> T:
    """What `work` answers on the first process, for all; only that one calls it. Answers are what JSON holds.

    Raises:
        MedsegError: that of `work`, on every process.
    """
    answer, reason = None, None
    if place()[0] == 0:
        try:
            answer = work()
        except MedsegError as error:
            reason = str(error)
    answer, reason = gather([answer, reason])[0]
    if reason is not None:
        raise MedsegError(reason)
    return answer


@contextmanager
def connected() -> Iterator[None]:
    """The processes can speak to each other here: about tensors of the CPU by gloo, of GPUs by NCCL.

    Raises:
        MedsegError: another process has ended.
    """
    import torch
    import torch.distributed as dist

    if not dist.is_initialized():
        # Its functions have the group there is at its first import as a default, which would outlive `_disconnect`.
        import torch.distributed.nn

        own_gpu = torch.cuda.device_count() >= int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        dist.init_process_group("cpu:gloo,cuda:nccl" if own_gpu else "gloo", timeout=PATIENCE)
        atexit.register(_disconnect)
    try:
        yield
    except RuntimeError as error:  # DistBackendError is one; gloo raises it bare
        line = str(error).strip().splitlines()[0]
        raise MedsegError(f"another process has ended, its own message says why ({line})") from None


def _disconnect() -> None:
    """Else threads of the group may still let go of tensors while Python ends, which aborts the process."""
    import torch.distributed as dist

    if dist.is_initialized():
        dist.destroy_process_group()
