"""Several processes, started by torchrun, that train one model: equal weights, one gradient, common decisions.

Gradients are summed in one piece per type. DistributedDataParallel groups them anew after its first update, so beyond
two processes a run that goes on would add in another order than one that was never stopped.
"""

from collections.abc import Callable, Iterable

import torch
import torch.distributed as dist
from torch import Tensor, nn

from medseg_core.distributed import connected, place


def agree(*flags: bool) -> tuple[bool, ...]:
    """For each flag, whether some process raised it; all of them must call it."""
    if place()[1] == 1:
        return flags
    raised = torch.tensor(flags, dtype=torch.int32)
    with connected():
        dist.all_reduce(raised, dist.ReduceOp.MAX)
    return tuple(map(bool, raised.tolist()))


def sum_gradients(model: nn.Module) -> None:
    """Every process gets the sum of all gradients; a parameter that took no part counts 0."""
    if place()[1] == 1:
        return
    for parameter in model.parameters():
        if parameter.requires_grad and parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    _in_one_piece((p.grad for p in model.parameters() if p.grad is not None), dist.all_reduce)


def average_buffers(model: nn.Module) -> None:
    """Running statistics become the mean over processes, so that all of them hold one model after every update."""
    size = place()[1]
    if size > 1:
        floating = (buffer for buffer in model.buffers() if buffer.is_floating_point())
        _in_one_piece(floating, lambda flat: (dist.all_reduce(flat), flat.div_(size)))


def broadcast(model: nn.Module) -> None:
    """Every process gets the first one's parameters and buffers."""
    if place()[1] > 1:
        _in_one_piece(model.state_dict().values(), lambda flat: dist.broadcast(flat, 0))


@torch.no_grad()
def _in_one_piece(tensors: Iterable[Tensor], exchange: Callable[[Tensor], object]) -> None:
    """`exchange` works in place on one flat copy of all tensors of a type."""
    by_type: dict[torch.dtype, list[Tensor]] = {}
    for tensor in tensors:
        by_type.setdefault(tensor.dtype, []).append(tensor)
    for group in by_type.values():
        flat = torch.cat([tensor.reshape(-1) for tensor in group])
        with connected():
            exchange(flat)
        parts = flat.split([tensor.numel() for tensor in group])
        for tensor, part in zip(group, parts, strict=True):
            tensor.copy_(part.view_as(tensor))
