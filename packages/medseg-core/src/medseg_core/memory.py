"""How much memory may still be taken: on a GPU, on this machine, and in the container that this process runs in."""

import math
from collections.abc import Iterator
from pathlib import Path

import torch

ROOT = Path("/")
KILO = 1024


def free_bytes(device: torch.device) -> float:
    """What `device` can still give this process, in bytes; infinite where the system does not say.

    On a CPU the lesser of what the machine has available and what the control groups of this process allow, whose
    cached files count as free.
    """
    if device.type == "cuda":
        idle = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + idle
    lines = _text(ROOT / "proc/meminfo").splitlines()
    available = [KILO * float(line.split()[1]) for line in lines if line.startswith("MemAvailable")]
    return min([*available, *_group_bytes()], default=math.inf)


def _group_bytes() -> Iterator[float]:
    """What each control group above this process leaves it; version 2 stands under one root, version 1 under memory."""
    for line in _text(ROOT / "proc/self/cgroup").splitlines():
        _, kinds, path = line.split(":", 2)
        if kinds == "":
            yield from _left(ROOT / "sys/fs/cgroup", path, "memory.max", "memory.current", "inactive_file")
        elif "memory" in kinds.split(","):
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
            yield from _left(ROOT / "sys/fs/cgroup/memory", path, *names)


def _left(base: Path, path: str, limit: str, usage: str, cached: str) -> Iterator[float]:
    folder = base / path.lstrip("/")
    for group in [folder, *folder.parents]:
        if not group.is_relative_to(base):
            return
        most, used = _text(group / limit).strip(), _text(group / usage).strip()
        if most.isdigit() and used.isdigit():
            fields = dict(line.split() for line in _text(group / "memory.stat").splitlines())
            yield max(0.0, float(most) - float(used) + float(fields.get(cached, 0)))


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii")
    except OSError:  # another system, or a group that this process may not see
        return ""
