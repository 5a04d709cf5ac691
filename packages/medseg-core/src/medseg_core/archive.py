"""Zips of DICOM and other files, unpacked for as long as they are looked at."""

import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from medseg_core.errors import MedsegError
from medseg_core.nifti import BEST_RATIO

MOST_BYTES = 16 * 2**30  # of one patient; a cine of 15 slices and 50 frames takes 0.1 GB
MOST_FILES = 100_000
PIECE = 1 << 20


@contextmanager
def unpacked(path: Path) -> Iterator[Path]:
    """A folder of files: itself, or a temporary one with what a zip holds, gone afterwards.

    Of a member's name only the last part is used, so none is written elsewhere; hidden files are left out.

    Raises:
        MedsegError: no zip, encrypted, damaged, too large, or one that promises more than its bytes can hold. Errors
            of the block name the zip, not the temporary folder.
    """
    if path.is_dir():
        yield path
        return
    with tempfile.TemporaryDirectory() as folder:
        homes = _unpack(path, Path(folder))
        try:
            yield Path(folder)
        except MedsegError as error:
            said = str(error)
            for name, home in homes.items():
                said = said.replace(str(home), str(path / name))
            raise MedsegError(said.replace(folder, str(path))) from None


def _unpack(path: Path, folder: Path) -> dict[PurePosixPath, Path]:
    """The folders in the zip, and where each now lies."""
    homes: dict[PurePosixPath, Path] = {}
    try:
        with zipfile.ZipFile(path) as archive:
            members = [m for m in archive.infolist() if not m.is_dir() and not _hidden(m.filename)]
            _check_promise(path, members)
            for member in members:
                name = PurePosixPath(member.filename.replace("\\", "/"))
                home = homes.setdefault(name.parent, folder / f"{len(homes):04d}")
                home.mkdir(exist_ok=True)
                _copy(archive, member, home / name.name)
            return homes
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, EOFError, ValueError) as error:
        raise MedsegError(f"{path} is no zip, or damaged: {error}; copy or pack it again") from None
    except OSError as error:
        raise MedsegError(f"cannot unpack {path}: {error.strerror or error}") from None


def _hidden(name: str) -> bool:
    parts = PurePosixPath(name.replace("\\", "/")).parts
    return any(part.startswith(".") and part not in (".", "..") for part in parts) or "__MACOSX" in parts


def _check_promise(path: Path, members: list[zipfile.ZipInfo]) -> None:
    total = sum(member.file_size for member in members)
    if len(members) > MOST_FILES or total > MOST_BYTES:
        raise MedsegError(
            f"{path} holds {len(members)} files of {total / 2**30:.1f} GiB, more than the scans of one patient; give "
            "one zip per patient"
        )
    for member in members:
        if member.flag_bits & 1:
            raise MedsegError(f"{path} is encrypted; unpack it first and give the folder")
        if member.file_size > BEST_RATIO * (member.compress_size + 1):
            raise MedsegError(f"{path}: a file promises {member.file_size} bytes, which it cannot hold; pack it again")


def _copy(archive: zipfile.ZipFile, member: zipfile.ZipInfo, path: Path) -> None:
    """No more than the member promised: `zipfile` stops there and compares the checksum."""
    with archive.open(member) as stream, path.open("wb") as file:
        while piece := stream.read(PIECE):
            file.write(piece)
