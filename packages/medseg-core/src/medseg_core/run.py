"""A run folder: what a training leaves on disk, opened anew, gone on with, or refused."""

import dataclasses
import json
import platform
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import torch

from medseg_core.config import as_dict
from medseg_core.errors import MedsegError
from medseg_core.io import replacing, write_text

METRICS, TIMINGS = "metrics.jsonl", "timings.jsonl"


@dataclass(frozen=True)
class RunFolder:
    """An opened run folder; `start` is the saved state to go on from, if there is one."""

    path: Path
    start: Path | None = None

    @classmethod
    def open(
        cls, path: Path, config: Any, *, resume: bool | str | Path = False, overwrite: bool = False
    ) -> "RunFolder":
        """Opens `path` for a run with these settings.

        Args:
            resume: True, or "last", goes on from the last state and begins where there is none; a path, from there.
            overwrite: replaces what is there.

        Raises:
            MedsegError: the folder holds a run and neither flag is given, something else lies there, or the settings
                of the run differ in more than what may change.
        """
        path = Path(path)
        if overwrite and path.exists():
            _remove(path)
        last = path / "last" / "state.safetensors"
        if resume and not isinstance(resume, bool) and str(resume) != "last":
            start = _state_file(Path(resume))
        else:
            start = last if last.is_file() else None
        if start and not resume:
            raise MedsegError(f"{path} holds a run; add --resume to go on with it, or --overwrite to replace it")
        if start:
            _refuse_other_settings(path, config)
        elif path.exists() and any(path.iterdir()) and not (path / "config.json").is_file():
            raise MedsegError(f"{path} is not empty and holds no run; choose another folder, or add --overwrite")
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise MedsegError(f"cannot make the run folder {path}: {error.strerror}") from None
        write_text(path / "config.json", json.dumps(as_dict(config), indent=2) + "\n")
        write_text(path / "run.json", json.dumps(_circumstances(config), indent=2) + "\n")
        return cls(path, start)

    @property
    def best(self) -> Path:
        """The weights that predict."""
        return self.path / "best.safetensors"

    @property
    def state(self) -> Path:
        """The one file a run goes on from."""
        return self.path / "last" / "state.safetensors"

    def keep_checkpoint(self, epoch: int, *, keep: int) -> None:
        """Keeps the state as of this epoch, and of the older ones the newest `keep - 1`."""
        folder = self.path / "checkpoints" / f"epoch_{epoch:04d}"
        folder.mkdir(parents=True, exist_ok=True)
        with replacing(folder / self.state.name) as beside:
            shutil.copyfile(self.state, beside)
        for old in sorted(folder.parent.glob("epoch_*"))[:-keep]:
            shutil.rmtree(old)

    def append(self, name: str, entry: Mapping[str, Any]) -> None:
        """One more line of JSON in the log `name`."""
        with (self.path / name).open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")

    def cut_logs(self, epoch: int) -> None:
        """Forgets what was logged after this epoch, so killed and unkilled runs leave equal files."""
        for log in (self.path / name for name in (METRICS, TIMINGS, "train.log")):
            if log.is_file():
                lines = log.read_text(encoding="utf-8").splitlines(keepends=True)
                kept = [line for line in lines if 0 < _epoch_of(line) <= epoch]
                if kept != lines:
                    write_text(log, "".join(kept))


def read_history(run: Path) -> dict[str, list[Any]]:
    """Every logged number of a run by name, a value per epoch (None where an epoch has none).

    Names are `epoch`, `step`, `lr`, `train_loss`, `val_dice`, `seconds`, `samples_per_second`, `peak_memory_mb`, ...
    """
    rows: dict[int, dict[str, Any]] = {}
    for log in (Path(run) / METRICS, Path(run) / TIMINGS):
        if log.is_file():
            for line in log.read_text(encoding="utf-8").splitlines():
                entry = json.loads(line)
                rows.setdefault(entry["epoch"], {}).update(entry)
    names = dict.fromkeys(name for row in rows.values() for name in row)
    return {name: [row.get(name) for row in rows.values()] for name in names}


def _epoch_of(line: str) -> int:
    found = re.match(r'(?:\{"epoch": |Epoch )(\d+)', line)
    return int(found[1]) if found else 0


def _state_file(path: Path) -> Path:
    file = path / "state.safetensors" if path.is_dir() else path
    if not file.is_file():
        raise MedsegError(f"no saved state at {file}; kept checkpoints are RUN/checkpoints/epoch_NNNN")
    return file


def _refuse_other_settings(path: Path, config: Any) -> None:
    file = path / "config.json"
    before = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    now = as_dict(config)
    exact = {f.name for f in dataclasses.fields(config) if f.metadata.get("exact", True)}
    for name in sorted(exact & before.keys()):
        if before[name] != now[name]:
            raise MedsegError(
                f"{path} was begun with {name} {before[name]}, not {now[name]}; use the same, or another --out"
            )


def _remove(path: Path) -> None:
    if path.is_dir() and any(path.iterdir()) and not (path / "config.json").is_file():
        raise MedsegError(f"{path} holds no run, so --overwrite leaves it alone; choose another folder")
    shutil.rmtree(path)


def _circumstances(config: Any) -> dict[str, Any]:
    """What one needs to repeat the run: versions, commit, machine, command."""
    wanted = ("medseg-", "torch", "numpy", "scipy", "nibabel")
    versions = {d.metadata["Name"]: d.version for d in distributions() if (d.metadata["Name"] or "").startswith(wanted)}
    return {
        "command": shlex.join(Path(a).name if i == 0 else a for i, a in enumerate(sys.argv)),
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "versions": dict(sorted(versions.items())),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "commit": _commit(),
        "cuda": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "threads": torch.get_num_threads(),
        "seed": getattr(config, "seed", None),
    }


def _commit() -> str | None:
    """The commit of the checkout that the code runs from; None for an installed package."""
    here = Path(__file__)
    command = ["git", "log", "-1", "--format=%H", "--", here.name]
    try:
        done = subprocess.run(command, cwd=here.parent, capture_output=True, text=True, check=True, timeout=5)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None
