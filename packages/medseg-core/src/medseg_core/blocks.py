"""Sums over voxels, block by block: a loss needs the memory of one block beside its gradient."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

BLOCK, GPU_BLOCK = 2**18, 2**24  # logits at a time: a CPU's cache, enough work for a GPU
MAX_BLOCKS = 64  # many small steps cost more than they save


class BlockSums(torch.autograd.Function):
    """Sums of a measure over blocks of voxels, measured again in the backward pass instead of kept.

    `measure(logits (N, K, B), *voxelwise (..., B))` gives a tuple of sums over its block, without the voxel axis.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, measure: Callable, *voxelwise: Tensor | None) -> tuple[Tensor, ...]:
        ctx.save_for_backward(logits, *voxelwise)
        ctx.measure = measure
        totals: list[Tensor] = []
        for x_NKB, parts, _ in _blocks(logits, voxelwise):
            sums = measure(x_NKB, *parts)
            totals = [total + part for total, part in zip(totals, sums, strict=True)] if totals else list(sums)
        return tuple(totals)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        logits, *voxelwise = ctx.saved_tensors
        result = torch.empty_like(logits)
        for x_NKB, parts, place in _blocks(logits, voxelwise):
            with torch.enable_grad():
                sums = ctx.measure(x_NKB.requires_grad_(), *parts)
            moved = [(total, grad) for total, grad in zip(sums, grads, strict=True) if total.requires_grad]
            result[..., place] = torch.autograd.grad([t for t, _ in moved], x_NKB, [g for _, g in moved])[0]
        return result, None, *(None for _ in voxelwise)


def _blocks(logits: Tensor, voxelwise: Sequence[Tensor | None]) -> Iterator[tuple[Tensor, list[Tensor | None], slice]]:
    """Logits in float32 or better with what lies at the same voxels, a block at a time; and where the block is."""
    per_voxel, num_voxels = logits.shape[0] * logits.shape[1], logits.shape[2]
    size = max(BLOCK if logits.device.type == "cpu" else GPU_BLOCK, logits.numel() // MAX_BLOCKS)
    step = max(1, size // per_voxel)
    for start in range(0, num_voxels, step):
        place = slice(start, start + step)
        x_NKB = logits.detach()[..., place].to(torch.promote_types(logits.dtype, torch.float32))
        yield x_NKB, [None if part is None else part[..., place] for part in voxelwise], place
