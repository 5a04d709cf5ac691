"""Work on cases in three stages that overlap: one case is read while another is computed and a third is written."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from medseg_core.cases import Case
from medseg_core.errors import MedsegError

Tell = Callable[[Case, Any], None]


@dataclass(frozen=True)
class Stages:
    """Work for `for_each` that overlaps: threads read ahead and write behind, the calling thread computes.

    Three cases at most are in memory: one read ahead, one computed, one written. Let `compute` return no more than what
    `write` needs.

    Args:
        read: case -> what was loaded.
        compute: (case, what was loaded) -> a result; it may use torch and the GPU.
        write: (case, result) -> the answer kept in the journal. What it writes must appear whole or not at all, as with
            `write_volume`.
    """

    read: Callable[[Case], Any]
    compute: Callable[[Case, Any], Any]
    write: Callable[[Case, Any], Mapping[str, Any] | None]


def run_stages(todo: Sequence[Case], stages: Stages, tell: Tell) -> Iterator[Case]:
    """Each case, when it was computed.

    Args:
        tell: is given a case with its answer or its MedsegError in the order of `todo`, by the thread that writes, as
            soon as the case is written.

    Raises:
        Exception: a bug in a stage, or what `tell` raised, once what was under way is written and told.
    """
    ahead, behind, waiting = ThreadPoolExecutor(1, "read"), ThreadPoolExecutor(1, "write"), iter(todo)
    writing: Future | None = None
    try:
        reading = _next(ahead, stages, waiting)
        while reading is not None:
            case, loading = reading
            loaded = loading.result()
            reading = _next(ahead, stages, waiting)
            result = _or_error(stages.compute, case, loaded)
            before, writing = writing, behind.submit(_write, stages, case, result, tell)
            del loading, loaded, result  # what is done is let go while the next case is worked on
            if before is not None:
                before.result()  # waits: one result is written at a time, and none queues up
            yield case
        if writing is not None:
            writing.result()
    finally:
        ahead.shutdown(cancel_futures=True)
        behind.shutdown()


def _next(ahead: ThreadPoolExecutor, stages: Stages, waiting: Iterator[Case]) -> tuple[Case, Future] | None:
    case = next(waiting, None)
    return None if case is None else (case, ahead.submit(_or_error, lambda c, _: stages.read(c), case, None))


def _or_error(stage: Callable[[Case, Any], Any], case: Case, given: Any) -> Any:
    """What the stage makes of what it is given; an error of an earlier stage, or its own, goes on in its place."""
    if isinstance(given, MedsegError):
        return given
    try:
        return stage(case, given)
    except MedsegError as error:
        return error.with_traceback(None)  # whose frames hold volumes


def _write(stages: Stages, case: Case, result: Any, tell: Tell) -> None:
    tell(case, _or_error(stages.write, case, result))
