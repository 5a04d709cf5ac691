"""The same work for every case, kept in a journal: goes on where it was, and one bad case costs only itself."""

import json
import logging
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import BrokenExecutor, Executor, Future, ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass, is_dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from medseg_core.cases import Case
from medseg_core.config import as_dict
from medseg_core.distributed import gather, place, share
from medseg_core.errors import MedsegError
from medseg_core.io import write_text
from medseg_core.progress import track
from medseg_core.stages import Stages, run_stages

JOURNAL = "journal.jsonl"
FORMAT = 1
Work = Callable[[Case], Mapping[str, Any] | None]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Outcome:
    """What became of a cohort, by case id.

    Args:
        done: finished now.
        skipped: finished by an earlier call.
        failed: why, in one line; tried again by the next call.
    """

    done: tuple[str, ...]
    skipped: tuple[str, ...]
    failed: Mapping[str, str]


def for_each(
    cases: Sequence[Case],
    work: Work | Stages,
    *,
    out: Path,
    config: Any = None,
    executor: Executor | None = None,
    again: bool = False,
) -> Outcome:
    """Calls `work` on every case that the journal under `out` does not know as done.

    A case is done when its line is in the journal, which is flushed line by line: after a crash the same call goes
    on. A MedsegError costs its case; any other exception is a bug, and is raised once what runs is written down.

    Args:
        work: its answer is kept in the journal and must be what JSON holds; see `read_journal`. As `Stages`, one case
            is read while another is computed and a third is written.
        out: folder of the journal, made where missing.
        config: settings, a dataclass or what JSON holds. A journal begun with other ones is refused.
        executor: runs the work, any of `concurrent.futures`; None works here, case by case.
        again: what is done is done again, and told, where a file of the case has another size or date than then.

    Raises:
        MedsegError: other settings, a disk that refuses, two cases of one id, a worker process that was killed, or
            stages together with an executor.
    """
    if isinstance(work, Stages) and executor is not None:
        raise MedsegError("stages overlap in this very process; leave the executor out, or share cases with torchrun")
    names = [case.id for case in cases]  # of all processes; this one works on its share
    twice = {name for name in names if names.count(name) > 1} if len(set(names)) < len(names) else ()
    if twice:
        raise MedsegError(f"two cases are called {min(twice)!r}; give each an id of its own")
    settings = json.loads(json.dumps(as_dict(config) if is_dataclass(config) else config, default=_plain))
    rank, _ = place()
    journal = Path(out) / (f"journal-{rank}.jsonl" if rank else JOURNAL)
    known = _begun(journal, settings)
    mine = share(cases)  # before looking what is done: by then another process may have added to it
    changed = {case.id for case in mine if again and _is_changed(case, known.get(case.id))}
    for name in sorted(changed):
        log.warning("%s: its files are others than those it was done with; done again", name)
    todo = [case for case in mine if case.id not in known or case.id in changed]
    skipped = [case.id for case in mine if case.id in known and case.id not in changed]
    if skipped:
        log.info("%s: %d of %d cases are done already", out, len(skipped), len(mine))
    tally = _Tally(journal, again=again)
    if isinstance(work, Stages):
        steps: Iterator[Any] = run_stages(todo, work, tally.tell)
    else:
        results = _in_turn(todo, work) if executor is None else _spread(todo, work, executor)
        steps = (tally.tell(case, answer) for case, answer in results)
    try:
        with _terminable():
            for _ in track(steps, "Cases", total=len(todo)):
                pass
    except (KeyboardInterrupt, SystemExit):
        if rank == 0:
            log.warning("stopped; the same call without --overwrite goes on")
        raise
    parts = gather([tally.done, skipped, tally.failed])
    done, skipped = ([name for part in parts for name in part[kind]] for kind in (0, 1))
    return Outcome(tuple(done), tuple(skipped), {name: why for part in parts for name, why in part[2].items()})


def read_journal(out: Path) -> dict[str, Mapping[str, Any]]:
    """What `work` answered for each case that is done under `out`, by case id; {} where it answered nothing."""
    return dict(answers(out))


def answers(out: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """As `read_journal`, by case and one at a time: the answers of a large cohort need not fit into memory together."""
    places: dict[str, tuple[Path, int]] = {}
    for journal in _journals(out):
        places |= {line["case"]: (journal, start) for start, line in _lines(journal) if line.get("status") == "done"}
    files = {journal: journal.open("rb") for journal in {journal for journal, _ in places.values()}}
    try:
        for case, (journal, start) in sorted(places.items()):
            files[journal].seek(start)
            yield case, json.loads(files[journal].readline()).get("answer") or {}
    finally:
        for file in files.values():
            file.close()


def processes(workers: int) -> ProcessPoolExecutor:
    """A pool for `for_each`; its processes are not forked, as a fork after torch has worked hangs.

    They end with the process that made them, also where that was killed and could tell nobody.
    """
    return ProcessPoolExecutor(
        workers, mp_context=multiprocessing.get_context("forkserver"), initializer=_end_with_parent
    )


@contextmanager
def dask_executor(address: str) -> Iterator[Executor | None]:
    """The workers of a Dask cluster for `for_each`; None without an address.

    Raises:
        MedsegError: Dask is not installed, or no scheduler answers.
    """
    if not address:
        yield None
        return
    try:
        from distributed import Client
    except ImportError:
        raise MedsegError("a Dask cluster needs Dask; pip install 'medseg-core[dask]'") from None
    try:
        client = Client(address, timeout="20s")
    except (OSError, ValueError, TimeoutError) as error:
        raise MedsegError(f"no Dask scheduler answers at {address} ({error}); start one: dask scheduler") from None
    with client:
        yield client.get_executor()


def _end_with_parent() -> None:
    def watch() -> None:
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def clear_journal(out: Path) -> None:
    """Forgets what is done under `out`: the next call does all of it again."""
    for journal in _journals(out):
        journal.unlink(missing_ok=True)


def forget(out: Path, cases: Collection[str]) -> None:
    """Takes cases out of the journals under `out`: the next call does them again."""
    for journal in _journals(out):
        kept = [line for _, line in _lines(journal) if line.get("case") not in cases]
        write_text(journal, "".join(json.dumps(line) + "\n" for line in kept))


class _Tally:
    """What was done and what failed now, kept in the journal as it is told."""

    def __init__(self, journal: Path, *, again: bool) -> None:
        self.journal, self.again = journal, again
        self.done: list[str] = []
        self.failed: dict[str, str] = {}

    def tell(self, case: Case, answer: Any) -> None:
        """One case with its answer or its MedsegError; one thread alone may call this."""
        if isinstance(answer, MedsegError):
            self.failed[case.id] = str(answer)
            log.error("%s: %s", case.id, answer)
            _append(self.journal, {"case": case.id, "status": "failed", "error": str(answer)})
        else:
            source = {"source": _source(case)} if self.again else {}
            _append(self.journal, {"case": case.id, "status": "done", "answer": answer, **source})
            self.done.append(case.id)


@contextmanager
def _terminable() -> Iterator[None]:
    """SIGTERM leaves by an exception, as Ctrl-C does: what is being written is finished or cleared away."""
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, _leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _leave(number: int, _: Any) -> NoReturn:
    raise SystemExit(128 + number)  # as the shell says of what a signal ended


def _in_turn(todo: Sequence[Case], work: Work) -> Iterator[tuple[Case, Any]]:
    for case in todo:
        try:
            answer: Any = work(case)
        except MedsegError as error:
            answer = error
        yield case, answer


def _spread(todo: Sequence[Case], work: Work, executor: Executor) -> Iterator[tuple[Case, Any]]:
    """Answers as they come. What goes wrong is raised last, when all that was running is told."""
    futures: dict[Future, Case] = {}
    wrong: BaseException | None = None
    try:
        try:
            for case in todo:
                futures[executor.submit(work, case)] = case
        except BrokenExecutor as error:  # a worker died while cases were handed out
            wrong = error
        for future in as_completed(list(futures)):
            case = futures.pop(future)  # and with it the answer, once it is told
            if future.cancelled():
                continue
            error = future.exception()
            if error is None or isinstance(error, MedsegError):
                yield case, error or future.result()
                continue
            wrong = wrong or error
            for waiting in futures:
                waiting.cancel()
    finally:
        for waiting in futures:
            waiting.cancel()
    if isinstance(wrong, BrokenExecutor):
        raise MedsegError(
            "a worker process was killed, most often for want of memory; what is done is kept: "
            "run the same command again with fewer workers"
        ) from wrong
    if wrong is not None:
        raise wrong


def _is_changed(case: Case, before: Mapping[str, Any] | None) -> bool:
    """Whether a file that is there is another one than before; None says nothing."""
    return before is not None and any(before.get(role) != now for role, now in _source(case).items())


def _source(case: Case) -> dict[str, list[int]]:
    """Of each file of a case its size and date, of a folder those of the files in it; nothing of what is not there."""
    found = {}
    for role, file in case.files.items():
        path = Path(file)
        parts = [p.stat() for p in (sorted(path.iterdir()) if path.is_dir() else [path]) if p.is_file()]
        if parts:
            found[role] = [sum(part.st_size for part in parts), max(part.st_mtime_ns for part in parts)]
    return found


def _begun(journal: Path, settings: Any) -> dict[str, Any]:
    """What any process has done with the same settings, and of which files; this one's journal is ready for more."""
    done: dict[str, Any] = {}
    for path in _journals(journal.parent):
        for _, line in _lines(path):
            if line.get("status") == "done":
                done[line["case"]] = line.get("source")
            elif line.get("config", settings) != settings:
                difference = _difference(line["config"], settings)
                raise MedsegError(f"{journal.parent} was begun with other settings: {difference}; take another folder")
    if next(_lines(journal), None) is None:
        write_text(journal, json.dumps({"format": FORMAT, "config": settings}) + "\n")
    else:
        _cut(journal)
    return done


def _journals(out: Path) -> list[Path]:
    """One of each process that worked here; processes may be more or fewer than today."""
    return sorted(Path(out).glob("journal*.jsonl"))


def _cut(journal: Path) -> None:
    """Takes off a last line that a crash left half-written."""
    try:
        with journal.open("rb+") as file:
            file.truncate(file.read().rfind(b"\n") + 1)
    except OSError as error:
        raise MedsegError(f"cannot write {journal}: {error.strerror}; run where it may be written") from None


def _append(journal: Path, line: Mapping[str, Any]) -> None:
    """One line, handed to the system when this returns."""
    text = json.dumps(line, default=_plain) + "\n"
    try:
        with journal.open("a", encoding="utf-8", newline="\n") as file:
            file.write(text)
    except OSError as error:
        raise MedsegError(f"cannot write {journal}: {error.strerror}; free space and run the same again") from None


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"work answered a {type(value).__name__}, which JSON does not hold")


def _difference(before: Any, now: Any) -> str:
    if not (isinstance(before, dict) and isinstance(now, dict)):
        return f"{before!r}, now {now!r}"
    key = next(key for key in [*now, *before] if before.get(key) != now.get(key) or (key in before) != (key in now))
    return f"{key} was {before.get(key, 'not there')!r}, now {now.get(key, 'not there')!r}"


def _lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Where the journal's whole lines begin and what they say, settings first; none where there is no journal."""
    start = 0
    try:
        with path.open("rb") as file:
            for number, text in enumerate(file):
                if not text.endswith(b"\n"):
                    return
                line = json.loads(text)
                if (number == 0 and (line["format"] != FORMAT or "config" not in line)) or (
                    number and {"case", "status"} - set(line)
                ):
                    raise ValueError("not written by this version")
                yield start, line
                start += len(text)
    except FileNotFoundError:
        return
    except OSError as error:
        raise MedsegError(f"cannot read {path}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError) as error:
        raise MedsegError(
            f"{path} is no journal of ours, or damaged ({error}); take another folder or remove it"
        ) from None
