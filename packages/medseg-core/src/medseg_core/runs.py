"""The folder of all runs: a name for a new one, the one to go on with, and what each of them came to.

Nothing here needs torch: a list of runs is there at once.
"""

import itertools
import json
import logging
import math
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

from safetensors import SafetensorError, safe_open

from medseg_core.distributed import from_first, place
from medseg_core.errors import MedsegError, printable
from medseg_core.run import CIRCUMSTANCES, METRICS, SETTINGS, is_held, read_history, read_json

T = TypeVar("T")
RUNS = Path("runs")
STATE = "last/state.safetensors"
COMMAND_WIDTH, NUM_NAMES = 24, 8  # least columns for a command; most names of folders that are no runs
MOST = 1e300  # a score beyond it, or one that is not finite, is damage

log = logging.getLogger(__name__)


@contextmanager
def run_path(out: Path | None, package: str, verb: str, *, resume: str = "") -> Iterator[Path]:
    """The folder of a run: `out`, or else a new `runs/<package>-<verb>-<date>-<time>` that no other run takes.

    Of several processes the first one decides for all. A new folder that the block leaves empty goes again.

    Args:
        resume: without `out`, a checkpoint means the run that it lies in, and "last" the one run of this command under
            `runs` that broke off.

    Raises:
        MedsegError: nothing to go on with, or several runs, or a folder that cannot be made.
    """
    if out is not None:
        yield Path(out)
        return
    there = RUNS.exists()
    path = Path(from_first(lambda: str(_chosen(f"{package}-{verb}", resume))))
    if place()[0] == 0:
        log.info("run folder: %s", path)
    try:
        yield path
    finally:
        if place()[0] == 0 and not resume:
            with suppress(OSError):  # it holds the run
                path.rmdir()
                if not there:
                    RUNS.rmdir()


def find_runs(folder: Path = RUNS) -> tuple[list[dict[str, Any]], list[str]]:
    """What `describe_run` says of each run in a folder, the newest first, and the names of folders that hold none.

    A run that a link stands for too is told once.

    Raises:
        MedsegError: no such folder.
    """
    try:
        inside = sorted(path for path in Path(folder).iterdir() if path.is_dir() and not path.name.startswith("."))
    except OSError as error:
        raise MedsegError(
            f"there are no runs in {folder} ({error.strerror}); trainings without --out leave theirs in {RUNS}"
        ) from None
    links_first = sorted(inside, key=lambda path: not path.is_symlink())
    once = {path.resolve(): path for path in links_first}
    runs = [describe_run(path) for path in sorted(once.values()) if is_run(path)]
    return sorted(runs, key=_age, reverse=True), [path.name for path in inside if not is_run(path)]


def is_run(path: Path) -> bool:
    """Whether a training has left anything in this folder."""
    with suppress(OSError):  # what may not be read cannot be told
        return any((Path(path) / name).is_file() for name in (SETTINGS, CIRCUMSTANCES, METRICS, STATE))
    return False


def describe_run(path: Path) -> dict[str, Any]:
    """What a run came to, as JSON holds it; None for what is not known.

    `state` is "running" while a living process trains, "finished", "no gain" (stopped early), "broken off", or
    "damaged", with the reasons in `why`. `best` is the highest validation score, `seconds` the time spent in epochs.
    """
    path, why = Path(path), []

    def tried(read: Callable[[Path], T], default: T) -> T:
        try:
            return read(path)
        except MedsegError as error:
            why.append(str(error))
            return default

    planned = tried(_planned, None)
    about = tried(_about, {})
    position = tried(_position, {})
    history = tried(read_history, {})
    rows, done = sum(step is not None for step in history.get("step", ())), position.get("epoch")
    if not why and done is not None and rows < done:
        why.append(f"{path / METRICS} holds {rows} of {done} epochs; the others are lost")
    epochs = rows if done is None else done
    best, best_epoch = _best(history, position)
    return {
        "name": path.resolve().name,
        "path": str(path),
        "started": _text(about.get("started")),
        "command": _text(about.get("command")),
        "epochs": epochs,
        "planned": planned,
        "best": best,
        "best_epoch": best_epoch,
        "seconds": sum(_numbers(history["seconds"])) if "seconds" in history else None,
        "state": _state(path, epochs, planned, position.get("reason"), damaged=bool(why)),
        "why": why,
    }


def way_on(state: Path) -> str:
    """What is left where this saved state of a run cannot be read: the newest kept checkpoint, or to begin again."""
    folders = state.parents[1:3]  # of RUN/last, and of RUN/checkpoints/epoch_NNNN
    kept = sorted(file for run in folders for file in run.glob(f"checkpoints/epoch_*/{state.name}") if file != state)
    return f"go on with --resume {kept[-1].parent}" if kept else "begin again with --overwrite"


def run_table(runs: Sequence[Mapping[str, Any]], *, width: int = 0) -> str:
    """A line for each run, and below the table why a run is damaged.

    Args:
        width: columns of the screen, 0 for no bound; a command that would hardly show is left out.
    """
    columns = {
        "name": [run["name"] for run in runs],
        "state": [run["state"] for run in runs],
        "epochs": [f"{run['epochs']}/{'?' if run['planned'] is None else run['planned']}" for run in runs],
        "best": ["-" if run["best"] is None else f"{run['best']:.4f}" for run in runs],
        "time": ["-" if run["seconds"] is None else _duration(run["seconds"]) for run in runs],
        "started": [(run["started"] or "-")[:16].replace("T", " ") for run in runs],
    }
    right = ("epochs", "best", "time")
    if not width or max(map(len, aligned(columns, right=right))) + COMMAND_WIDTH <= width:
        columns["command"] = [run["command"] or "-" for run in runs]
    lines = aligned(columns, right=right, width=width)
    return "\n".join([*lines, *(f"{run['name']}: {printable(reason)}" for run in runs for reason in run["why"])])


def aligned(columns: Mapping[str, Sequence[str]], *, right: Sequence[str] = (), width: int = 0) -> list[str]:
    """Columns under their titles, as lines that end at `width`, 0 for no bound."""
    padded = []
    for title, texts in columns.items():
        cells = [printable(text) for text in (title, *texts)]
        widest = max(map(len, cells))
        padded.append([cell.rjust(widest) if title in right else cell.ljust(widest) for cell in cells])
    lines = ["  ".join(row).rstrip() for row in zip(*padded, strict=True)]
    return [line if not 0 < width < len(line) else line[: width - 3] + "..." for line in lines]


def others_line(names: Sequence[str]) -> str:
    """The folders that hold no run, named on one line."""
    more = f" and {len(names) - NUM_NAMES} more" if len(names) > NUM_NAMES else ""
    return f"no run: {', '.join(map(printable, names[:NUM_NAMES]))}{more}"


def _chosen(command: str, resume: str) -> Path:
    if not resume:
        return _taken(command)
    if resume != "last":
        checkpoint = Path(resume)
        for folder in (*checkpoint.parents, *checkpoint.absolute().parents):
            if (folder / SETTINGS).is_file():
                return folder
        raise MedsegError(f"{resume} lies in no run folder; name the run with --out")
    pattern = re.compile(rf"{re.escape(command)}-\d{{8}}-\d{{6}}(-\d+)?")
    runs = find_runs(RUNS)[0] if RUNS.is_dir() else []
    left = [run["path"] for run in runs if run["state"] == "broken off" and pattern.fullmatch(run["name"])]
    if len(left) == 1:
        return Path(left[0])
    if left:
        raise MedsegError(f"{len(left)} runs broke off; name one with --out: {', '.join(left)}")
    raise MedsegError(
        f"no run {RUNS / command}-... broke off; name the one to go on with by --out, or leave --resume out"
    )


def _taken(command: str) -> Path:
    """A new folder, made at once: who starts in the same second gets another one."""
    name = f"{command}-{time.strftime('%Y%m%d-%H%M%S')}"
    for number in itertools.count(1):
        path = RUNS / (name if number == 1 else f"{name}-{number}")
        try:
            path.mkdir(parents=True)
        except FileExistsError:
            continue
        except OSError as error:
            raise MedsegError(f"cannot make the run folder {path}: {error.strerror}; name another with --out") from None
        return path
    raise AssertionError


def _planned(path: Path) -> int:
    epochs = read_json(path / SETTINGS).get("epochs")
    if not isinstance(epochs, int):
        raise MedsegError(f"{path / SETTINGS} has no number of epochs; put back the one that the run began with")
    return epochs


def _about(path: Path) -> dict[str, Any]:
    """When and by which command; a run without it is whole."""
    file = path / CIRCUMSTANCES
    return read_json(file) if file.is_file() else {}


def _position(path: Path) -> dict[str, Any]:
    """Where the saved state stands; empty where there is none."""
    file = path / STATE
    if not file.is_file():
        return {}
    try:
        with safe_open(file, "np") as content:
            position = json.loads(content.metadata()["medseg"])["position"]
        if not isinstance(position["epoch"], int):
            raise TypeError
    except (OSError, SafetensorError, ValueError, TypeError, KeyError, RecursionError, MemoryError) as error:
        raise MedsegError(f"{file} is damaged ({error or type(error).__name__}); {way_on(file)}") from None
    return position


def _best(history: Mapping[str, Sequence[Any]], position: Mapping[str, Any]) -> tuple[float | None, int | None]:
    """The highest validation score and its epoch, by the log or, where that is lost, by the saved state."""
    scored = [
        (score, epoch)
        for score, epoch in zip(history.get("val_score", ()), history.get("epoch", ()), strict=False)
        if _numbers([score])
    ]
    if scored:
        return max(scored, key=lambda pair: pair[0])
    best = position.get("best")
    return (best.get("value") if isinstance(best, dict) and _numbers([best.get("value")]) else None), None


def _state(path: Path, epochs: int, planned: int | None, reason: Any, *, damaged: bool) -> str:
    if is_held(path):
        return "running"
    if damaged or planned is None:
        return "damaged"
    if reason == "no gain":
        return "no gain"
    return "finished" if epochs >= planned else "broken off"


def _age(run: Mapping[str, Any]) -> float:
    try:
        return datetime.fromisoformat(run["started"]).timestamp()
    except (TypeError, ValueError, OverflowError):
        return -math.inf


def _numbers(values: Sequence[Any]) -> list[float]:
    return [v for v in values if isinstance(v, (int, float)) and not isinstance(v, bool) and abs(v) < MOST]


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    if seconds < 59.5:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"
