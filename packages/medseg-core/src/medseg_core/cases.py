"""Who is in a cohort: cases with their files and patients, lists of them as JSON, splits that keep patients whole."""

import hashlib
import json
import logging
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

from medseg_core.config import unique
from medseg_core.errors import MedsegError, meant
from medseg_core.io import write_text

Split = Literal["train", "val", "test", ""]
SPLITS = get_args(Split)
FORMAT = 1
NAME = r"[^/\\\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]+"
NO_PATH = "[\0\ud800-\udfff]"  # what comes of a byte that is no UTF-8 is among the latter
LONGEST_NAME = 200  # bytes; disks take 255, and suffixes come on top

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Case:
    """One scan or picture with what belongs to it.

    Args:
        id: names the case and the files made of it, so no slashes.
        files: by role, {"ct": ..., "label": ...}.
        group: what must not be divided by a split, usually the patient; "" where each case stands for itself.
        split: "train", "val", "test", or "" where none is given.
        notes: anything JSON holds.

    Raises:
        MedsegError: an id that cannot name a file (slashes, control characters, more than 200 bytes), or an unknown
            split.
    """

    id: str
    files: Mapping[str, Path]
    group: str = ""
    split: Split = ""
    notes: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not isinstance(self.id, str) or not re.fullmatch(NAME, self.id) or self.id in (".", "..") or _long(self.id):
            raise MedsegError(f"case id {self.id!r} cannot name a file; use letters, digits, '.', '_' and '-'")
        if self.split not in SPLITS:
            raise MedsegError(f"case {self.id} has split {self.split!r}; it must be train, val, test or empty")

    @property
    def unit(self) -> str:
        """What a split keeps whole: the group, or the case itself."""
        return self.group or self.id


def read_cases(path: Path) -> list[Case]:
    """The cases of a JSON file, `{"cases": [{"id": ..., "files": {"ct": ...}, ...}]}`, in its order.

    Relative files are taken from the folder of the list.

    Raises:
        MedsegError: missing, no JSON, another structure, or an id that comes twice, be it in other letters (`A1` and
            `a1` are one file on macOS and Windows); the case is named.
    """
    path = Path(path)
    content = _read_json(path, ("cases",))
    if not isinstance(content["cases"], list) or not content["cases"]:
        raise MedsegError(f"{path} lists no cases; write {{'cases': [{{'id': ..., 'files': {{...}}}}]}}")
    cases = [_case(path, number, entry) for number, entry in enumerate(content["cases"], 1)]
    twice = [name for name, num in Counter(case.id for case in cases).items() if num > 1]
    if twice:
        raise MedsegError(f"{path} lists case {twice[0]!r} twice; give each an id of its own")
    names: dict[str, str] = {}
    for case in cases:
        first = names.setdefault(unicodedata.normalize("NFC", case.id).casefold(), case.id)
        if first != case.id:
            raise MedsegError(f"{path} lists {first!r} and {case.id!r}, which are one file on many disks; rename one")
    return cases


def write_cases(path: Path, cases: Sequence[Case], *, about: Mapping[str, Any] | None = None) -> None:
    """The list that `read_cases` reads; files beneath its folder are written relative, so both can move together.

    Args:
        about: entries of the list itself, anything JSON holds, which `read_cases` passes over.

    Raises:
        MedsegError: a file whose name is no UTF-8, or a disk that refuses.
    """
    path = Path(path)
    home = path.parent.resolve()
    entries = []
    for case in cases:
        files = {role: _portable(Path(file), home) for role, file in case.files.items()}
        bad = next((file for file in files.values() if re.search(NO_PATH, file)), None)
        if bad:
            raise MedsegError(f"case {case.id}: the name of {bad} is no UTF-8; rename that file")
        entries.append(
            {"id": case.id, "files": files, "group": case.group, "split": case.split, "notes": {**case.notes}}
        )
    write_text(
        path, json.dumps({"format": FORMAT, **(about or {}), "cases": entries}, indent=1, ensure_ascii=False) + "\n"
    )


def split_cases(cases: Sequence[Case], *, val: float, test: float = 0.0, seed: int = 42) -> list[Case]:
    """The same cases with a split each; a group is never divided.

    A split that all cases bring along is kept. Else groups are ordered by a hash of seed and name, so the answer
    depends on neither the order of the cases, the platform nor a library's version, and another case moves few.

    Args:
        val, test: shares of the groups, rounded, and at least one group each where the share is above 0 and groups
            are left for training; a single group trains.

    Raises:
        MedsegError: shares that leave nothing to train on, a split that some cases bring along and others do not,
            or one that divides a group.
    """
    if not (val >= 0 and test >= 0 and val + test < 1):
        raise MedsegError(f"val {val} and test {test} must be shares of at least 0 that leave some for training")
    given = [case for case in cases if case.split]
    if given and len(given) < len(cases):
        bare = next(case for case in cases if not case.split)
        raise MedsegError(f"{len(given)} of {len(cases)} cases have a split and {bare.id} has none; give all or none")
    if given:
        _check_whole(cases)
        return list(cases)
    names = sorted({case.unit for case in cases}, key=lambda name: (_hash(seed, name), name))
    num_test = min(_share(test, len(names)), max(0, len(names) - 2))
    num_val = min(_share(val, len(names)), max(0, len(names) - 1 - num_test))
    if (val and not num_val) or (test and not num_test):
        log.warning("%d patients or groups: %d are held out for val and %d for test", len(names), num_val, num_test)
    kinds: list[Split] = ["test"] * num_test + ["val"] * num_val + ["train"] * (len(names) - num_test - num_val)
    chosen = dict(zip(names, kinds, strict=True))
    return [replace(case, split=chosen[case.unit]) for case in cases]


def read_split(path: Path, cases: Sequence[Case]) -> list[Case]:
    """The cases with the splits of a file that `write_split` wrote; it may list cases that are not here.

    Raises:
        MedsegError: no such file, a case in none or two of its lists, or a group that it divides.
    """
    path = Path(path)
    content = _read_json(path, ("train", "val", "test"))
    places: dict[str, Split] = {}
    for kind in ("train", "val", "test"):
        for name in content[kind] if isinstance(content[kind], list) else [content[kind]]:
            if not isinstance(name, str):
                raise MedsegError(f"{path} has {name!r} in {kind}, where ids of cases stand in a list")
            if places.setdefault(name, kind) != kind:
                raise MedsegError(f"{path} has case {name!r} in {places[name]} and in {kind}; leave it in one")
    for case in cases:
        if case.id not in places:
            raise MedsegError(f"{path} does not say where case {case.id!r} belongs{meant(case.id, places)}; add it")
    chosen = [replace(case, split=places[case.id]) for case in cases]
    _check_whole(chosen)
    return chosen


def write_split(path: Path, cases: Sequence[Case], *, seed: int) -> None:
    """`{seed, unit, train, val, test}`: ids of cases, sorted; unit says what was kept whole, "group" or "case"."""
    lists = _lists(cases)
    unit = "group" if any(case.group for case in cases) else "case"
    write_text(path, json.dumps({"seed": seed, "unit": unit, **lists}, indent=1, ensure_ascii=False) + "\n")


def keep_split(path: Path, cases: Sequence[Case], *, seed: int) -> None:
    """`write_split` for a run: what it was begun with stays.

    Raises:
        MedsegError: the file is there and has other cases, or another split of them.
    """
    path = Path(path)
    if not path.is_file():
        write_split(path, cases, seed=seed)
        return
    lists = _lists(cases)
    begun = _read_json(path, tuple(lists))
    if any(begun[kind] != names for kind, names in lists.items()):
        raise MedsegError(f"{path} has another split, or other cases; go on with that one, or choose another --out")


def of_split(cases: Sequence[Case], run: Path, split: str) -> tuple[list[Case], set[str]]:
    """The cases that a run's own split.json has in a part, or all of them, and the ids that the run was trained on.

    Args:
        cases: with labels.
        run: its folder, or a weights file in it.
        split: train, val, test or all.

    Raises:
        MedsegError: an unknown part, or one without cases.
    """
    if split not in (known := (*filter(None, SPLITS), "all")):
        raise MedsegError(f"there is no split {split!r}{meant(split, known)}; take of {', '.join(known)}")
    run = Path(run)
    file = (run if run.is_dir() else run.parent) / "split.json"
    parts = _read_json(file, ("train", "val", "test")) if file.is_file() else {}
    chosen = list(cases) if split == "all" else [case for case in cases if case.id in parts.get(split, ())]
    if not chosen:
        sizes = ", ".join(f"{len(parts.get(part, ()))} in {part}" for part in ("train", "val", "test"))
        said = f"of {len(cases)} cases with labels none is in split {split!r} of {run} ({sizes})"
        raise MedsegError(f"{said}; try --split all")
    return chosen, set(parts.get("train", ()))


def warned_of_training(cases: Sequence[Case], trained_on: Collection[str]) -> list[str]:
    """What a reader of scores must know where some of these cases were trained on, or nobody knows."""
    if not trained_on:
        return ["No split.json lies beside the weights: whether they were trained on these cases is not known."]
    seen = sorted({case.id for case in cases} & set(trained_on))
    return [f"Trained on {', '.join(seen)}: these scores say that it learnt, not how it does on others."] * bool(seen)


def _lists(cases: Sequence[Case]) -> dict[str, list[str]]:
    return {kind: sorted(case.id for case in cases if case.split == kind) for kind in SPLITS if kind}


def _check_whole(cases: Sequence[Case]) -> None:
    places: dict[str, Case] = {}
    for case in cases:
        first = places.setdefault(case.unit, case)
        if first.split != case.split:
            raise MedsegError(
                f"{case.unit!r} is in two splits: case {first.id} in {first.split}, case {case.id} in {case.split}; "
                "what was seen in training must not be scored, so move one of them"
            )


def _long(name: str) -> bool:
    return len(name.encode()) > LONGEST_NAME


def _share(part: float, num: int) -> int:
    return max(1, round(part * num)) if part > 0 else 0


def _hash(seed: int, name: str) -> bytes:
    return hashlib.sha256(f"{seed}:{name}".encode()).digest()


def _portable(file: Path, home: Path) -> str:
    place = Path(os.path.abspath(file))  # noqa: PTH100 resolve() would follow links out of a data set
    return place.relative_to(home).as_posix() if place.is_relative_to(home) else str(place)


def _read_json(path: Path, keys: tuple[str, ...]) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"), object_pairs_hook=unique)
        json.dumps(content, ensure_ascii=False).encode()  # fails for half of a character, which no file can hold
    except OSError as error:
        raise MedsegError(f"cannot read {path}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise MedsegError(f"{path} is not valid JSON: {error}; write it again") from None
    missing = [key for key in keys if not isinstance(content, dict) or key not in content]
    if missing:
        raise MedsegError(f"{path} has no {missing[0]!r}; it must be an object with {', '.join(keys)}")
    return content


def _case(path: Path, number: int, entry: Any) -> Case:
    kinds = {"id": str, "files": dict, "group": str, "split": str, "notes": dict}
    if not isinstance(entry, dict) or not {"id", "files"} <= set(entry):
        raise MedsegError(f"case {number} of {path} must be an object with id and files, got {str(entry)[:80]}")
    for key, value in entry.items():
        if key not in kinds:
            raise MedsegError(f"case {number} of {path} has an unknown entry {key!r}{meant(key, kinds)}")
        if not isinstance(value, kinds[key]):
            raise MedsegError(f"case {number} of {path}: {key} must be a {kinds[key].__name__}, got {str(value)[:80]}")
    files = entry["files"].items()
    wrong = [role for role, file in files if not isinstance(file, str) or not file or re.search(NO_PATH, file)]
    if wrong:
        raise MedsegError(
            f"case {number} of {path}: file {wrong[0]!r} must be a path, got {entry['files'][wrong[0]]!r}"
        )
    files = {role: path.parent / file for role, file in entry["files"].items()}
    try:
        return Case(**{**entry, "files": files})
    except MedsegError as error:
        raise MedsegError(f"{path}: {error}") from None
