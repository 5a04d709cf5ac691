"""A run folder: what a training leaves on disk, opened anew, gone on with, or refused."""

import dataclasses
import errno
import fcntl
import json
import logging
import os
import platform
import re
import shlex
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

from medseg_core.config import as_dict, strict
from medseg_core.distributed import from_first, place
from medseg_core.errors import MedsegError
from medseg_core.io import replacing, write_text

METRICS, TIMINGS, LOG = "metrics.jsonl", "timings.jsonl", "train.log"
SETTINGS, CIRCUMSTANCES = "config.json", "run.json"
LOCK = ".lock"
LOCK_TRIES, LOCK_SECONDS = 5, 0.05  # who asks whether a run is held takes its lock for a moment

log = logging.getLogger(__name__)

_held: dict[Path, "RunFolder"] = {}  # by this process, which its own locks would not stop


@dataclass(frozen=True)
class RunFolder:
    """An opened run folder; `start` is the saved state to go on from, if there is one."""

    path: Path
    start: Path | None = None

    @classmethod
    def open(
        cls,
        path: Path,
        config: Any,
        *,
        resume: bool | str | Path = False,
        overwrite: bool = False,
        inputs: Sequence[Path | None] = (),
    ) -> "RunFolder":
        """Opens `path` for a run with these settings; of several processes the first does it for all.

        Args:
            resume: True, or "last", goes on from the last state and begins where there is none; a path, from there. A
                state of another run takes that run's logs along.
            overwrite: replaces the run that is there.
            inputs: files and folders that the run reads; a run that holds one of them is not replaced.

        Raises:
            MedsegError: the folder holds a run and neither flag is given, something else lies there, a process trains
                there, or the settings of the run, or of the one that the state is from, differ in more than what may
                change.
        """
        if overwrite:
            from_first(lambda: _spare(Path(path), inputs))
        told = from_first(lambda: _opened(Path(path), config, resume=resume, overwrite=overwrite))
        return cls(Path(path), Path(told) if told else None)

    @property
    def best(self) -> Path:
        """The weights that predict."""
        return self.path / "best.safetensors"

    @property
    def state(self) -> Path:
        """The one file a run goes on from."""
        return self.path / "last" / "state.safetensors"

    def record(self, config: Any) -> None:
        """Writes down that the run goes on, and with which settings: once nothing speaks against it any more."""
        _record(self.path, config, goes_on=True)

    @contextmanager
    def held(self) -> Iterator[None]:
        """This process works here until the block ends; the system itself lets go for a process that was killed.

        Of several processes the first holds the folder for all. Blocks of one object may lie in each other.

        Raises:
            MedsegError: another process is at work here, or the folder cannot be written.
        """
        file, key = self.path / LOCK, self.path.resolve()
        if place()[0] or _held.get(key) is self:
            yield
            return
        if key in _held:
            raise MedsegError(_held_by(self.path))
        _make(self.path)
        try:
            opened = file.open("a+", encoding="utf-8")
        except OSError as error:
            raise MedsegError(f"cannot write {file}: {error.strerror}") from None
        # not flock: the workers of a killed process would inherit it and outlive their parent by seconds
        with opened as own:
            for again in range(LOCK_TRIES):
                if _lock(own.fileno(), fcntl.LOCK_EX):
                    break
                if again == LOCK_TRIES - 1:
                    raise MedsegError(_held_by(self.path))
                time.sleep(LOCK_SECONDS)
            own.truncate(0)
            own.write(_myself())
            own.flush()
            _held[key] = self
            try:
                yield
            finally:
                del _held[key]

    def keep_checkpoint(self, epoch: int, *, keep: int) -> None:
        """Keeps the state as of this epoch, and of the older ones the newest `keep - 1`."""
        folder = self.path / "checkpoints" / f"epoch_{epoch:04d}"
        folder.mkdir(parents=True, exist_ok=True)
        with replacing(folder / self.state.name) as beside:
            shutil.copyfile(self.state, beside)
        for old in sorted(folder.parent.glob("epoch_*"))[:-keep]:
            shutil.rmtree(old)

    def append(self, name: str, entry: str | Mapping[str, Any]) -> None:
        """One more line in the log `name`: text as it is, numbers as JSON, unrounded.

        Raises:
            MedsegError: a disk that refuses.
        """
        line = entry if isinstance(entry, str) else json.dumps(strict(entry), allow_nan=False)
        try:
            with (self.path / name).open("a", encoding="utf-8") as file:
                file.write(line + "\n")
        except OSError as error:
            raise MedsegError(
                f"cannot write {self.path / name}: {error.strerror}; make room, then go on with --resume"
            ) from None

    def cut_logs(self, epoch: int) -> None:
        """Forgets what was logged after this epoch or half-written, so killed and unkilled runs leave equal files."""
        for log_file in (self.path / name for name in (METRICS, TIMINGS, LOG)):
            if log_file.is_file():
                lines = log_file.read_bytes().splitlines(keepends=True)
                kept = [line for line in lines if line.endswith(b"\n") and 0 < _epoch_of(line) <= epoch]
                if kept != lines:
                    with replacing(log_file) as beside:
                        beside.write_bytes(b"".join(kept))


def read_history(run: Path) -> dict[str, list[Any]]:
    """Every logged number of a run by name, a value per epoch (None where an epoch has none).

    Names are `epoch`, `step`, `lr`, `train_loss`, `val_dice`, `seconds`, `samples_per_second`, `peak_memory_mb`, ...
    A last line that a killed process left half-written counts as not there.

    Raises:
        MedsegError: another line that is damaged, or a file that cannot be read.
    """
    rows: dict[int, dict[str, Any]] = {}
    for file in (Path(run) / METRICS, Path(run) / TIMINGS):
        for number, line in enumerate(_whole_lines(file), 1):
            try:
                entry = json.loads(line)
                rows.setdefault(int(entry["epoch"]), {}).update(entry)
            except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
                raise MedsegError(f"line {number} of {file} is damaged ({line[:40]!r}); take it out") from None
    names = dict.fromkeys(name for row in rows.values() for name in row)
    return {name: [row.get(name) for row in rows.values()] for name in names}


def _whole_lines(file: Path) -> list[bytes]:
    try:
        return file.read_bytes().split(b"\n")[:-1] if file.is_file() else []
    except OSError as error:
        raise MedsegError(f"cannot read {file}: {error.strerror}") from None


def read_json(file: Path) -> dict[str, Any]:
    """The table that a file of a run folder holds, `config.json` say.

    Raises:
        MedsegError: it is missing, unreadable, or holds no table.
    """
    try:
        content = json.loads(Path(file).read_text(encoding="utf-8"))
    except OSError as error:
        reason = error.strerror
    except (ValueError, RecursionError) as error:
        reason = str(error)
    else:
        if isinstance(content, dict):
            return content
        reason = f"it holds a {type(content).__name__} and no table"
    raise MedsegError(f"cannot read {file} ({reason}); put back what the run began with, or begin another run")


def is_held(run: Path) -> bool:
    """Whether a living process trains in this folder, here or on a machine that shares its disk."""
    if Path(run).resolve() in _held:  # to open the file and close it again would let go of our own lock
        return True
    try:
        with (Path(run) / LOCK).open("rb") as other:
            return not _lock(other.fileno(), fcntl.LOCK_SH)
    except OSError:  # no such file: nobody ever trained here
        return False


def _lock(descriptor: int, kind: int) -> bool:
    """Whether the lock could be had; a disk without locks gives it to everybody."""
    try:
        fcntl.lockf(descriptor, kind | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES):
            return False
        log.debug("this disk knows no locks (%s)", error.strerror)
    return True


def _held_by(path: Path) -> str:
    who = _myself() if path.resolve() in _held else (path / LOCK).read_text(encoding="utf-8", errors="replace")
    return f"{path}: {who or 'another process'} is at work here; wait for its end, or choose another folder"


def _myself() -> str:
    return f"process {os.getpid()} on {socket.gethostname()}"


def _opened(path: Path, config: Any, *, resume: bool | str | Path, overwrite: bool) -> str | None:
    """The state to go on from; the folder is there, with settings and circumstances, or nothing has changed."""
    if resume and overwrite:
        raise MedsegError(f"--resume goes on with {path} and --overwrite replaces it; give one of them")
    if is_held(path):
        raise MedsegError(_held_by(path))
    if path.exists() and not path.is_dir():
        raise MedsegError(f"{path} is a file; choose another folder for the run")
    if overwrite and path.exists():
        _remove(path)
    start = _start(path, resume)
    if start and not resume:
        raise MedsegError(f"{path} holds a run; add --resume to go on with it, or --overwrite to replace it")
    origin = _run_of(start) if start else None
    if origin != path.resolve() and path.exists() and any(path.iterdir()) and not _holds_run(path):
        raise MedsegError(f"{path} is not empty and holds no run; choose another folder")
    if start:
        _refuse_other_settings(path, config)
    if origin and origin != path.resolve():
        if (path / "last" / "state.safetensors").is_file():
            raise MedsegError(f"{path} holds a run, and {start} is of another one; choose another --out")
        _refuse_other_settings(origin, config)
        _take_logs(origin, path)
    _make(path)
    if not (start and (path / SETTINGS).is_file()):
        _record(path, config, goes_on=False)
    return str(start) if start else None


def _record(path: Path, config: Any, *, goes_on: bool) -> None:
    write_text(path / CIRCUMSTANCES, json.dumps(_circumstances(path, config, goes_on=goes_on), indent=2) + "\n")
    write_text(path / SETTINGS, json.dumps(as_dict(config), indent=2) + "\n")


def _start(path: Path, resume: bool | str | Path) -> Path | None:
    """The saved state that is meant; a run that lost its own is not begun anew because somebody asked to go on."""
    if resume and not isinstance(resume, bool) and str(resume) != "last":
        return _state_file(Path(resume))
    last = path / "last" / "state.safetensors"
    if last.is_file():
        return last
    kept = sorted(path.glob("checkpoints/epoch_*/state.safetensors"))
    if resume and (kept or (path / "best.safetensors").is_file()):
        fix = f"go on with --resume {kept[-1].parent}" if kept else "begin again with --overwrite"
        raise MedsegError(f"{path} has lost its last/state.safetensors; {fix}")
    return None


def _make(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise MedsegError(f"cannot make the run folder {path}: {error.strerror}") from None


def _take_logs(origin: Path, path: Path) -> None:
    """What the other run had logged, for `cut_logs` to cut."""
    _make(path)
    for log_file in (origin / name for name in (METRICS, TIMINGS, LOG)):
        if log_file.is_file():
            with replacing(path / log_file.name) as beside:
                shutil.copyfile(log_file, beside)


def _epoch_of(line: bytes) -> int:
    found = re.match(rb'(?:\{"epoch": |Epoch )(\d+)', line)
    return int(found[1]) if found else 0


def _state_file(path: Path) -> Path:
    for file in (path / "state.safetensors", path / "last" / "state.safetensors") if path.is_dir() else (path,):
        if file.is_file():
            return file
    raise MedsegError(f"no saved state at {path}; kept checkpoints are RUN/checkpoints/epoch_NNNN")


def _run_of(state: Path) -> Path | None:
    """The run folder that a saved state lies in."""
    return next((folder for folder in state.resolve().parents[:3] if (folder / SETTINGS).is_file()), None)


def _holds_run(path: Path) -> bool:
    """Whether a training began here; other programs have a config.json too."""
    with suppress(MedsegError):
        if {"started", "versions"} <= read_json(path / CIRCUMSTANCES).keys():
            return True
    return (path / "last" / "state.safetensors").is_file()


def _refuse_other_settings(path: Path, config: Any) -> None:
    before = read_json(path / SETTINGS) if (path / SETTINGS).is_file() else {}
    now = as_dict(config)
    exact = {f.name for f in dataclasses.fields(config) if f.metadata.get("exact", True)}
    for name in sorted(exact & before.keys()):
        if before[name] != now[name]:
            said = f"{path} was begun with {name} {before[name]}, not {now[name]}"
            raise MedsegError(f"{said}; use the same, or another --out")


def _spare(path: Path, inputs: Sequence[Path | None]) -> None:
    for file in inputs:
        if file and Path(file).resolve().is_relative_to(path.resolve()):
            raise MedsegError(f"--overwrite would remove {file}, which the run reads; choose another --out")


def _remove(path: Path) -> None:
    """What is in the folder goes; the folder itself stays, as it may be a link or a disk."""
    if any(path.iterdir()) and not _holds_run(path):
        raise MedsegError(f"{path} holds no run, so --overwrite leaves it alone; choose another folder")
    try:
        for inside in path.iterdir():
            if inside.is_dir() and not inside.is_symlink():
                shutil.rmtree(inside)
            else:
                inside.unlink()
    except OSError as error:
        raise MedsegError(f"cannot replace {path}: {error.strerror} ({error.filename}); choose another --out") from None


def _circumstances(path: Path, config: Any, *, goes_on: bool) -> dict[str, Any]:
    """What one needs to repeat the run: versions, commit, machine, command; of a run that goes on, as of now."""
    import torch  # here alone, so that runs are listed without it

    wanted = ("medseg-", "torch", "numpy", "scipy", "nibabel")
    versions = {d.metadata["Name"]: d.version for d in distributions() if (d.metadata["Name"] or "").startswith(wanted)}
    return {
        "command": shlex.join(Path(a).name if i == 0 else a for i, a in enumerate(sys.argv)),
        **_times(path, goes_on=goes_on),
        "versions": dict(sorted(versions.items())),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "commit": _commit(),
        "cuda": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "processes": place()[1],
        "threads": torch.get_num_threads(),
        "seed": getattr(config, "seed", None),
    }


def _times(path: Path, *, goes_on: bool) -> dict[str, str]:
    now = time.strftime("%Y-%m-%dT%H:%M:%S%z")
    if not goes_on:
        return {"started": now}
    try:
        return {"started": read_json(path / CIRCUMSTANCES)["started"], "resumed": now}
    except (MedsegError, KeyError):  # lost: not worth the run
        return {"started": now, "resumed": now}


def _commit() -> str | None:
    """The commit of the checkout that the code runs from, "-dirty" where it was changed; None if it is installed."""
    here = Path(__file__)
    tracked = ["ls-files", "--error-unmatch", here.name]
    head = ["describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        for command in (tracked, head):
            done = subprocess.run(
                ["git", *command], cwd=here.parent, capture_output=True, text=True, check=True, timeout=5
            )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
