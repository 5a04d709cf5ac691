"""Sums over voxels and their gradient, block by block: beside the gradient a loss needs the memory of a few blocks.

Legend: N cases, K classes, V voxels of a case, B voxels of a block, S voxels of a strip.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numba import njit
from torch import Tensor

from medseg_core.errors import MedsegError

BLOCK, GPU_BLOCK = 2**19, 2**24  # logits at a time: near a core's cache, enough work for a GPU
MAX_BLOCKS = 2**12  # many small steps cost more than they save
STRIP = 512  # voxels at a time within a block

Sums = tuple[Tensor, ...]
Grads = tuple[Tensor | None, ...]


@dataclass(frozen=True)
class Measure:
    """What is summed over voxels, and how it moves; the head says of which numbers.

    Args:
        values: gives a tuple of what is summed.
        slopes: gives the derivative of each, broadcastable to it; None for what does not move.
        by_class: for `Softmax`, whether each is summed over the voxels of a class or over all.
    """

    values: Callable[..., Sums]
    slopes: Callable[..., Grads]
    by_class: tuple[bool, ...] = ()


class Head(Protocol):
    """How logits are meant. Each method takes logits (N, K, B) and a target of the same cases and voxels."""

    def sums(self, logits: Tensor, target: Tensor, known: Tensor | None) -> Sums:
        """Over the voxels of each case: (N, K), or (N, 1) for a sum over all classes."""

    def pull(self, logits: Tensor, target: Tensor, known: Tensor | None, grads: Grads) -> Tensor:
        """The gradient of the logits, (N, K, B), from that of each sum; None is 0."""


@dataclass(frozen=True)
class Softmax:
    """Exclusive classes; the target is ids (N, B), and voxels with the id `ignore` count nowhere.

    The measure's values are functions of log p, its slopes derivatives by log p as functions of p, where p (N, B) is
    the probability of the true class. After its sums come those of each class's p, and of voxels by class.
    """

    measure: Measure
    ignore: int | None

    def sums(self, logits: Tensor, target: Tensor, known: Tensor | None) -> Sums:
        y_NB, skip_NB = self._ids(target, known)
        p_NKB = _wide(logits, copy=True)  # in place from here on
        log_true_NB = _shift(p_NKB, y_NB)
        if known is not None:
            log_rest_NB = p_NKB.masked_fill(_apart(known), -torch.inf).logsumexp(1)
            log_true_NB = torch.where(y_NB == 0, log_rest_NB, log_true_NB)
        total_NB = p_NKB.exp_().sum(1)
        p_NKB /= total_NB[:, None]
        log_true_NB -= total_NB.log_()
        summed = [*self.measure.values(log_true_NB), torch.ones_like(log_true_NB)]
        if skip_NB is not None:
            summed = [value_NB.masked_fill(skip_NB, 0) for value_NB in summed]
            p_NKB.masked_fill_(skip_NB[:, None], 0)
        *sums, true_NK = (
            _by_class(value_NB, y_NB, p_NKB.shape[1]) if each else value_NB.sum(1, keepdim=True)
            for value_NB, each in zip(summed, (*self.measure.by_class, True), strict=True)
        )
        return *sums, p_NKB.sum(2), true_NK

    def pull(self, logits: Tensor, target: Tensor, known: Tensor | None, grads: Grads) -> Tensor:
        *of_values, of_probs, _ = grads
        y_NB, skip_NB = self._ids(target, known)
        p_NKB = _wide(logits, copy=True)  # in place from here on
        p_true_NB = _shift(p_NKB, y_NB).exp_()
        total_NB = p_NKB.exp_().sum(1)
        if known is not None:
            p_true_NB = torch.where(y_NB == 0, p_NKB.masked_fill(_apart(known), 0).sum(1), p_true_NB)
        p_true_NB /= total_NB
        p_NKB /= total_NB[:, None]
        slope_NB = torch.zeros_like(p_true_NB)
        for slope, grad in zip(self.measure.slopes(p_true_NB), of_values, strict=True):
            if grad is not None:
                slope_NB.addcmul_(slope, grad.gather(1, y_NB) if grad.shape[1] > 1 else grad)
        if skip_NB is not None:
            slope_NB.masked_fill_(skip_NB, 0)
            p_NKB.masked_fill_(skip_NB[:, None], 0)
        grad_NK = p_NKB.new_zeros(p_NKB.shape[:2]) if of_probs is None else of_probs.contiguous()
        if known is None:
            return _pull(p_NKB, grad_NK, slope_NB, y_NB, slope_NB)
        rest_NKB = _wide(logits).masked_fill(_apart(known), -torch.inf).softmax(1)
        pull_NKB = _pull(p_NKB, grad_NK, slope_NB, y_NB, slope_NB.masked_fill(y_NB == 0, 0))
        return pull_NKB.addcmul_(rest_NKB, slope_NB.masked_fill(y_NB > 0, 0)[:, None])

    def _ids(self, target: Tensor, known: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Ids, 0 where nobody drew the class or the voxel does not count; and which voxels do not count."""
        y_NB = target.long().contiguous()
        skip_NB = None if self.ignore is None else y_NB == self.ignore
        if skip_NB is not None:
            y_NB = y_NB.masked_fill(skip_NB, 0)
        if known is not None:
            y_NB = y_NB.masked_fill(~known.gather(1, y_NB), 0)
        return y_NB, skip_NB


@dataclass(frozen=True)
class Sigmoid:
    """A yes or no for each class; the target is (N, K, B). Values and slopes are functions of logits and target."""

    measure: Measure

    def sums(self, logits: Tensor, target: Tensor, known: Tensor | None) -> Sums:
        x_NKB = _wide(logits)
        return tuple(value_NKB.sum(2) for value_NKB in self.measure.values(x_NKB, target.to(x_NKB.dtype)))

    def pull(self, logits: Tensor, target: Tensor, known: Tensor | None, grads: Grads) -> Tensor:
        x_NKB = _wide(logits)
        pull_NKB = torch.zeros_like(x_NKB)
        for slope_NKB, grad_NK in zip(self.measure.slopes(x_NKB, target.to(x_NKB.dtype)), grads, strict=True):
            if slope_NKB is not None and grad_NK is not None:
                pull_NKB.addcmul_(slope_NKB, grad_NK[:, :, None])
        return pull_NKB


class BlockSums(torch.autograd.Function):
    """The sums of a head over all voxels; the backward pass computes the blocks again instead of keeping them."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, head: Head, target: Tensor, known: Tensor | None) -> Sums:
        ctx.save_for_backward(logits, target, known)
        ctx.set_materialize_grads(False)
        ctx.head = head

        def sums(cases: slice, voxels: slice) -> Sums:
            return head.sums(logits[cases, :, voxels], target[cases, ..., voxels], _of(cases, known))

        blocks = _blocks(logits)
        per_case = sum(cases == blocks[0][0] for cases, _ in blocks)
        return tuple(
            torch.cat([torch.stack(parts[i : i + per_case]).sum(0) for i in range(0, len(parts), per_case)])
            for parts in zip(*_each(sums, blocks, logits.device), strict=True)
        )

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        logits, target, known = ctx.saved_tensors
        result = torch.empty_like(logits)

        def pull(cases: slice, voxels: slice) -> None:
            given = tuple(_of(cases, grad) for grad in grads)
            block = logits[cases, :, voxels], target[cases, ..., voxels], _of(cases, known)
            result[cases, :, voxels] = ctx.head.pull(*block, given)

        _each(pull, _blocks(logits), logits.device)
        return result, None, None, None


def _of(cases: slice, by_case: Tensor | None) -> Tensor | None:
    return None if by_case is None else by_case[cases]


def _apart(known_NK: Tensor) -> Tensor:
    """(N, K, 1): the annotated classes without background, with which the others are one."""
    apart_NK = known_NK.clone()
    apart_NK[:, 0] = False
    return apart_NK[:, :, None]


def _wide(logits: Tensor, *, copy: bool = False) -> Tensor:
    """In float32 or better; a copy is in one piece."""
    dtype = torch.promote_types(logits.dtype, torch.float32)
    return torch.empty(logits.shape, dtype=dtype, device=logits.device).copy_(logits) if copy else logits.to(dtype)


def _blocks(logits: Tensor) -> list[tuple[slice, slice]]:
    """Cases and voxels of logits (N, K, V), a block at a time: rather long rows of one case than short ones of many."""
    num_cases, num_classes, num_voxels = logits.shape
    size = max(BLOCK if logits.device.type == "cpu" else GPU_BLOCK, logits.numel() // MAX_BLOCKS)
    cases = min(num_cases, max(1, size // (num_classes * num_voxels)))
    voxels = max(1, size // (num_classes * cases))
    starts = ((i, j) for i in range(0, num_cases, cases) for j in range(0, num_voxels, voxels))
    return [(slice(i, i + cases), slice(j, j + voxels)) for i, j in starts]


def _each(work: Callable, blocks: list[tuple[slice, slice]], device: torch.device) -> list:
    """What the work makes of each block, in order; on a CPU side by side, a block to each of torch's threads.

    Threads that share an operation meet at the end of each: on a busy machine, hundreds of times a wait for a core.
    """
    work, num_threads = torch.no_grad()(work), torch.get_num_threads()
    workers = min(num_threads, len(blocks)) if device.type == "cpu" else 1
    if workers == 1:
        return [work(*block) for block in blocks]
    try:
        with ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            return list(pool.map(work, *zip(*blocks, strict=True)))
    finally:
        torch.set_num_threads(num_threads)  # the number is each thread's own, but new ones start with the last set


def _shift(x_NKB: Tensor, y_NB: Tensor) -> Tensor:
    """Makes the largest logit of each voxel 0, in place, and returns the true class's: (N, B)."""
    if x_NKB.device.type != "cpu":
        x_NKB -= x_NKB.amax(1, keepdim=True)
        return x_NKB.gather(1, y_NB[:, None])[:, 0]
    true_NB = x_NKB.new_empty(y_NB.shape)
    if not _shift_on_cpu(x_NKB.numpy(), y_NB.numpy(), true_NB.numpy()):
        wrong, last = y_NB[(y_NB < 0) | (y_NB >= x_NKB.shape[1])][0].item(), x_NKB.shape[1] - 1
        raise MedsegError(
            f"the label holds the id {wrong}; the logits have 0 to {last}: renumber it, or ignore={wrong}"
        )
    return true_NB


def _by_class(values_NB: Tensor, y_NB: Tensor, num_classes: int) -> Tensor:
    """Sums over the voxels of each class: (N, K)."""
    sums_NK = values_NB.new_zeros(len(y_NB), num_classes)
    if values_NB.device.type != "cpu":
        return torch.bmm(_one_hot(y_NB, sums_NK), values_NB[:, :, None])[:, :, 0]
    _by_class_on_cpu(values_NB.numpy(), y_NB.numpy(), sums_NK.numpy())
    return sums_NK


def _one_hot(y_NB: Tensor, like_NK: Tensor) -> Tensor:
    """(N, K, B), for GPUs: thousands that add to the same few sums wait for each other, and never in the same order."""
    classes = torch.arange(like_NK.shape[1], device=y_NB.device)[:, None]
    return (y_NB[:, None] == classes).to(like_NK.dtype)


def _pull(p_NKB: Tensor, grad_NK: Tensor, slope_NB: Tensor, y_NB: Tensor, on_true_NB: Tensor) -> Tensor:
    """p * (grad - its mean under p) for sums of p, and slope * (one-hot - p) for log p of the true class; in place.

    The slope of what is true in several classes is left out of `on_true_NB` and added by the caller.
    """
    if p_NKB.device.type != "cpu":
        mean_NB = (p_NKB * grad_NK[:, :, None]).sum(1) + slope_NB
        p_NKB *= grad_NK[:, :, None] - mean_NB[:, None]
        return p_NKB.addcmul_(_one_hot(y_NB, grad_NK), on_true_NB[:, None])
    _pull_on_cpu(*(t.numpy() for t in (p_NKB, grad_NK, slope_NB, y_NB, on_true_NB)))
    return p_NKB


@njit(nogil=True, cache=True)
def _shift_on_cpu(x_NKB, y_NB, true_NB):
    """False if an id is no class."""
    num_cases, num_classes, num_voxels = x_NKB.shape
    room = np.empty(STRIP, x_NKB.dtype)
    for n in range(num_cases):
        for start in range(0, num_voxels, STRIP):
            strip = slice(start, min(start + STRIP, num_voxels))
            y_S, true_S = y_NB[n, strip], true_NB[n, strip]
            top_S = room[: len(y_S)]
            top_S[:] = x_NKB[n, 0, strip]
            for k in range(1, num_classes):
                x_S = x_NKB[n, k, strip]
                for i in range(len(x_S)):
                    top_S[i] = x_S[i] if x_S[i] > top_S[i] else top_S[i]
            for k in range(num_classes):
                x_S = x_NKB[n, k, strip]
                for i in range(len(x_S)):
                    x_S[i] -= top_S[i]
            for i in range(len(y_S)):
                if y_S[i] < 0 or y_S[i] >= num_classes:
                    return False
                true_S[i] = x_NKB[n, y_S[i], start + i]
    return True


@njit(nogil=True, cache=True)
def _by_class_on_cpu(values_NB, y_NB, sums_NK):
    """In float64, in four turns: what follows need not wait for what a neighbour of the same class has added."""
    for n in range(len(y_NB)):
        turns_4K = np.zeros((4, sums_NK.shape[1]))
        for i in range(y_NB.shape[1]):
            turns_4K[i & 3, y_NB[n, i]] += values_NB[n, i]
        sums_NK[n] = turns_4K.sum(axis=0)


@njit(nogil=True, cache=True)
def _pull_on_cpu(p_NKB, grad_NK, slope_NB, y_NB, on_true_NB):
    num_cases, num_classes, num_voxels = p_NKB.shape
    room = np.empty(STRIP, p_NKB.dtype)
    for n in range(num_cases):
        for start in range(0, num_voxels, STRIP):
            strip = slice(start, min(start + STRIP, num_voxels))
            y_S, on_true_S = y_NB[n, strip], on_true_NB[n, strip]
            mean_S = room[: len(y_S)]
            mean_S[:] = slope_NB[n, strip]
            for k in range(num_classes):
                p_S, grad = p_NKB[n, k, strip], grad_NK[n, k]
                for i in range(len(p_S)):
                    mean_S[i] += grad * p_S[i]
            for k in range(num_classes):
                p_S, grad = p_NKB[n, k, strip], grad_NK[n, k]
                for i in range(len(p_S)):
                    p_S[i] *= grad - mean_S[i]
            for i in range(len(y_S)):
                p_NKB[n, y_S[i], start + i] += on_true_S[i]
