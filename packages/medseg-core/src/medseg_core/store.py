"""The arrays of one case in a folder of .npy files, read by memory map; travels to workers as a path."""

import json
import os
import re
import secrets
import shutil
import warnings
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from medseg_core.errors import MedsegError, meant

ABOUT = "about.json"
FORMAT = 1
NAME = r"[\w-]+"


def write_arrays(folder: Path, arrays: Mapping[str, np.ndarray], about: Mapping[str, Any]) -> None:
    """Writes beside and renames: the folder is whole or is not there. An older one of the same kind is replaced.

    Args:
        arrays: by name (letters, digits, `_`, `-`); any dtype but object. Fortran order is kept.
        about: what JSON holds; read back as `Arrays(folder).about`.

    Raises:
        MedsegError: the folder holds something else, or the disk refuses.
    """
    folder = Path(folder)
    if folder.exists() and not (folder / ABOUT).is_file() and (not folder.is_dir() or any(folder.iterdir())):
        raise MedsegError(f"{folder} exists and holds no arrays of ours; name another folder, or remove it")
    token = f".{os.getpid()}-{secrets.token_hex(4)}"
    beside, aside = (folder.with_name(f"{token}-{kind}-{folder.name}") for kind in ("new", "old"))
    try:
        beside.mkdir(parents=True)
        for name, array in arrays.items():
            assert re.fullmatch(NAME, name), f"array name {name!r}"
            np.save(beside / f"{name}.npy", array, allow_pickle=False)
        content = {"format": FORMAT, "arrays": sorted(arrays), "about": dict(about)}
        (beside / ABOUT).write_text(json.dumps(content, indent=1), encoding="utf-8")
        if folder.exists():
            folder.rename(aside)
        beside.rename(folder)
    except OSError as error:
        raise MedsegError(
            f"cannot write {folder}: {error.strerror or error}; free space or name another disk"
        ) from None
    finally:
        if aside.exists() and not folder.exists():
            aside.rename(folder)
        for left in (beside, aside):
            shutil.rmtree(left, ignore_errors=True)


class Arrays:
    """The arrays that `write_arrays` left in a folder, as read-only memory maps opened when first asked for.

    Attributes:
        folder: where they lie.
        names: of the arrays, sorted.
        about: what was written with them.

    Raises:
        MedsegError: no such folder, not written by `write_arrays`, an unknown name, or a damaged file.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        try:
            content = json.loads((self.folder / ABOUT).read_text(encoding="utf-8"))
            self.about: dict[str, Any] = dict(content["about"].items())
            self.names = tuple(content["arrays"])
            newer = content["format"] > FORMAT
            if not all(re.fullmatch(NAME, name) for name in self.names):
                raise ValueError
        except OSError as error:
            raise MedsegError(
                f"{folder} holds no prepared arrays ({ABOUT}: {error.strerror}); prepare it first"
            ) from None
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            raise MedsegError(
                f"{self.folder / ABOUT} was not written by medseg, or is damaged; prepare it again"
            ) from None
        if newer:
            raise MedsegError(
                f"{folder} was written by a newer medseg (format {content['format']}); update medseg-core"
            )

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self.names:
            raise MedsegError(
                f"{self.folder} has no array {name!r}, only {', '.join(self.names)}{meant(name, self.names)}"
            )
        file = self.folder / f"{name}.npy"
        try:
            about = file.stat()
            return _opened(file, about.st_ino, about.st_mtime_ns)
        except OSError as error:
            raise MedsegError(f"cannot read {file}: {error.strerror or error}; prepare the case again") from None
        except Exception:  # NumPy reads the words before an array with Python's parser, and checks little
            raise MedsegError(f"{file} is damaged or cut short; prepare the case again") from None

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __reduce__(self) -> tuple[type["Arrays"], tuple[Path]]:
        return Arrays, (self.folder,)

    def __repr__(self) -> str:
        return f"Arrays({str(self.folder)!r})"


@lru_cache(maxsize=256)
def _opened(file: Path, inode: int, mtime_ns: int) -> np.ndarray:  # noqa: ARG001 (a file put in its place is another)
    """Bounded: a map holds a file descriptor, of which a process has 1024 where a cohort has thousands of arrays."""
    with warnings.catch_warnings():  # NumPy's parser may complain of a damaged header before it fails
        warnings.simplefilter("ignore")
        return np.load(file, mmap_mode="r", allow_pickle=False)
