"""What a command may write over, and what it has to do again."""

import hashlib
import logging
from collections.abc import Sequence
from pathlib import Path

from medseg_core.cases import Case
from medseg_core.cohort import JOURNAL, answers, clear_journal, forget
from medseg_core.errors import MedsegError
from medseg_core.labelmaps import NAMES_FILE
from medseg_near.sources import some

log = logging.getLogger(__name__)


def make_ready(out: Path, cases: Sequence[Case], *, verb: str, overwrite: bool) -> None:
    """A folder that a command began goes on; inputs are never written over, other files only when asked for.

    Cases whose files were written anew since, as `stamp_of` in the answer "files" says, are done again.

    Args:
        verb: the command.

    Raises:
        MedsegError: `out` is where the cases' files lie, or holds what the command did not begin.
    """
    place = out.resolve()
    for path in (path.resolve() for case in cases for path in case.files.values()):
        if place == path or place in path.parents or (path.is_dir() and path in place.parents):
            raise MedsegError(f"{out} is where {path} lies, which is read; choose another --out")
    if not out.is_dir() or not any(out.iterdir()):
        return
    if overwrite:
        clear_journal(out)
    elif not (out / JOURNAL).is_file():
        raise MedsegError(f"{out} is not empty and was not begun by {verb}; choose another --out, or add --overwrite")
    known = {case.id: case for case in cases}
    again = {
        name
        for name, answer in answers(out)
        if name in known and (answer.get("files") != stamp_of(known[name]) or not (out / f"{name}.nii.gz").is_file())
    }
    if again:
        log.info(
            "%d cases have new inputs, or lost their output, and are done again: %s", len(again), some(sorted(again))
        )
        forget(out, again)


def stamp_of(case: Case) -> str:
    """Another text where a file was written anew, or another one is read."""
    files = [path for _, path in sorted(case.files.items())]
    files += [path.with_name(NAMES_FILE) for path in files if path.is_file()]
    files += [inner for path in files if path.is_dir() for inner in sorted(path.iterdir())]
    facts = [(path.name, (s := path.stat()).st_size, s.st_mtime_ns) for path in files if path.exists()]
    return hashlib.sha256(repr([sorted(case.files), facts]).encode(errors="replace")).hexdigest()[:16]
