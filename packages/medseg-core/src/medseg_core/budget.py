"""Which windows fit into memory, known before any of it is taken."""

import dataclasses
import logging
import math
from collections.abc import Iterator

from torch import Tensor

from medseg_core.errors import MedsegError
from medseg_core.memory import free_bytes
from medseg_core.windows import Plan, logits_bytes, plan_windows, thriftier

SMALLEST_EDGE = 16  # of a window that is worth proposing

log = logging.getLogger(__name__)


def within(plan: Plan, y_NKW: Tensor, *, limit_bytes: float, copies: int = 1) -> Plan:
    """The plan with batches as large and tiles as few as the limit allows; the thriftiest where none keeps to it.

    Args:
        y_NKW: logits of one window, which are in memory already.
        limit_bytes: for all logits. It alone decides, so that equal calls compute equally.
        copies: of a batch's logits at the same time.

    Raises:
        MedsegError: less than that is free; with what to lower, and what is needed then.
    """
    num_classes, device = y_NKW.shape[1], y_NKW.device
    chosen = _first(plan, num_classes, limit_bytes, copies=copies)
    need = logits_bytes(chosen, num_classes, copies=copies)
    free = free_bytes(device) + 4 * y_NKW.numel()
    if device.type == "cpu":
        free -= math.prod(plan.size)  # the answer's, a byte a voxel at least
    if need > free:
        told = f"logits of {num_classes} classes need {need / 1e9:.2f} GB, {max(free, 0) / 1e9:.2f} GB are free"
        fix = _fix(plan, num_classes, free, copies=copies)
        raise MedsegError(f"{told} on {device}; {fix}")
    if chosen.num_tiles > 1:
        times = sum(len(batch) for tile in chosen.tiles() for batch in tile.batches) / chosen.num_windows
        whole = logits_bytes(dataclasses.replace(plan, batch_size=1), num_classes, copies=copies) / 1e9
        log.info("logits_gb below %.2f: %d tiles, %.2f times the windows", whole, chosen.num_tiles, times)
    return chosen


def _first(plan: Plan, num_classes: int, limit_bytes: float, *, copies: int) -> Plan:
    plans = list(thriftier(plan))
    needs = [logits_bytes(other, num_classes, copies=copies) for other in plans]
    fit = next((n for n, need in enumerate(needs) if need <= limit_bytes), needs.index(min(needs)))
    return plans[fit]


def _fix(plan: Plan, num_classes: int, free: float, *, copies: int) -> str:
    """The first setting to lower that helps, those that cost least first."""
    for text, other in _proposals(plan):
        best = _first(other, num_classes, free, copies=copies)
        need = logits_bytes(best, num_classes, copies=copies)
        if need <= free:
            gb = math.ceil(need / 1e6) / 1000
            tiles = f" and {best.num_tiles} tiles" if best.num_tiles > 1 else ""
            return f"{text}logits_gb to {gb}, which gives batches of {best.batch_size}{tiles}"
    return f"lower window (now {plan.window}), or take a machine with more memory"


def _proposals(plan: Plan) -> Iterator[tuple[str, Plan]]:
    yield "lower ", plan
    if plan.overlap > 0.25:
        other = plan_windows(plan.size, plan.window, overlap=0.25, batch_size=plan.batch_size)
        yield f"lower overlap (now {plan.overlap}) to 0.25 and ", other
    window = plan.window
    while max(window) > SMALLEST_EDGE:
        window = tuple(edge // 2 if edge > SMALLEST_EDGE else edge for edge in window)
        other = plan_windows(plan.size, window, overlap=plan.overlap, batch_size=plan.batch_size)
        yield f"lower window (now {plan.window}) to {window} and ", other
