"""SHA256SUMS of a folder, as `sha256sum -c` reads it: nothing that a person has changed since is ever written over."""

import hashlib
from collections.abc import Iterable
from pathlib import Path

from medseg_core.errors import MedsegError
from medseg_core.io import write_text

SUMS = "SHA256SUMS"


def write_sums(folder: Path, files: Iterable[Path]) -> None:
    """A line for each of these files below the folder."""
    lines = [f"{_sum(file)}  {file.relative_to(folder).as_posix()}\n" for file in sorted(files)]
    write_text(folder / SUMS, "".join(lines))


def sums_of(folder: Path) -> dict[Path, str]:
    """What is listed; {} without a list.

    Raises:
        MedsegError: a list that cannot be read.
    """
    try:
        lines = (folder / SUMS).read_text(encoding="utf-8").splitlines()
        return {folder / name: total for total, name in (line.split("  ", 1) for line in lines)}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise MedsegError(f"cannot read {folder / SUMS} ({error}); remove it if nothing there was edited") from None


def changed(folder: Path) -> list[Path]:
    """Files that are listed and hold something else than when the list was written."""
    return [file for file, total in sums_of(folder).items() if file.is_file() and _sum(file) != total]


def _sum(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
