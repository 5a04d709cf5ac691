"""The settings of every command. Standard library and core's settings only: `--help` reads this file."""

from dataclasses import dataclass
from typing import Literal

from medseg_core.config import setting
from medseg_core.settings import TrainConfig


@dataclass(frozen=True, kw_only=True)
class PrepareConfig:
    """Data."""

    labels: str = setting("official", "Class list: official (v2: 117 names, v1: 104), folder, or a FILE.")
    structures: tuple[str, ...] = setting((), "Only these structures or groups: liver,spleen,vessels.")
    missing: Literal["empty", "ignore"] = setting("empty", "No file: the structure is empty, or was not annotated.")
    spacing_mm: tuple[float, float, float] | None = setting(
        None, "Spacing to work at; none is the cohort's median.", low=0.01, high=100
    )
    workers: int = setting(1, "Processes that prepare cases.", low=1, exact=False)
