"""Long work, shown: a bar on a terminal or in Jupyter, plain lines in a log."""

import logging
import time
from collections.abc import Iterable, Iterator, Sized
from typing import TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from medseg_core.distributed import place

T = TypeVar("T")
LOG_SECONDS = 30.0

log = logging.getLogger(__name__)


def track(items: Iterable[T], what: str, *, total: int | None = None) -> Iterator[T]:
    """The same items, with progress shown on standard error.

    Args:
        what: the work in words, "Preparing cases".
        total: how many, where `items` has no length.
    """
    total = len(items) if total is None and isinstance(items, Sized) else total
    if place()[0]:  # the first of many processes speaks for all
        yield from items
        return
    console = Console(stderr=True)
    if not (console.is_terminal or console.is_jupyter):
        yield from _logged(items, what, total)
        return
    with Progress(*_columns(), console=console) as bar:
        yield from bar.track(items, total=total, description=what)


def _logged(items: Iterable[T], what: str, total: int | None) -> Iterator[T]:
    started = said = time.monotonic()
    number = 0
    for number, item in enumerate(items, 1):
        yield item
        if time.monotonic() - said > LOG_SECONDS:
            said = time.monotonic()
            log.info("%s: %d of %s, %.0f s", what, number, total if total is not None else "?", said - started)
    log.info("%s: %d done, %.1f s", what, number, time.monotonic() - started)


class Bar:
    """A bar that is advanced by hand and says what it is at; shown on a terminal or in Jupyter only.

    The log has its own lines. Of many processes the first alone shows it.
    """

    def __init__(self, what: str, *, total: int, start: int = 0) -> None:
        console = Console(stderr=True)
        shown = place()[0] == 0 and (console.is_terminal or console.is_jupyter)
        self.bar = Progress(*_columns(), console=console, disable=not shown)
        self.task = self.bar.add_task(what, total=total, completed=start)

    def __enter__(self) -> "Bar":
        self.bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.bar.stop()

    def advance(self, what: str) -> None:
        """One more is done; `what` replaces the words beside the bar."""
        self.bar.update(self.task, advance=1, description=what)


def _columns() -> tuple[ProgressColumn, ...]:
    return (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
