"""Where labels come from: label maps and masks of every layout, MedMNIST files, and the folders of the first NeAR.

Each structure of each scan is a `Case` with the file `label`, maybe the file `image`, and in its notes how to read it:
`kind`, `case`, `structure`, `id` (None: the only one there).
"""

import csv
import fnmatch
import logging
import math
import os
import re
import zipfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np

from medseg_core.cases import Case
from medseg_core.errors import MedsegError, meant
from medseg_core.io import SUFFIXES, case_name, is_picture
from medseg_core.itk import HEADER_MOST
from medseg_core.labelmaps import LARGEST_ID, NAMES_FILE, LabelMap, find_label_maps, label_map, read_labels
from medseg_core.nifti import BEST_RATIO
from medseg_near.whole_heart import WHOLE_HEART

LABEL, IMAGE = "label", "image"  # roles
MASK, MAP, MEDMNIST, ARRAY = "mask", "map", "medmnist", "array"  # kinds
PARTS = ("train", "val", "test")  # of a MedMNIST file
SMALLEST = 8  # voxels along an axis of a MedMNIST shape, where a picture has colours

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Found:
    """The structures of a source, in its order.

    Args:
        cases: one a structure of a scan, grouped by scan; the id is "<case>", or "<case>-<structure>" where several
            were asked for.
        refused: id -> why it takes no part.
    """

    cases: tuple[Case, ...]
    refused: Mapping[str, str]


def find_structures(labels: Path, *, label: str = "", images: Path | None = None, names: Path | None = None) -> Found:
    """Looks at names and headers, not at voxels.

    Args:
        labels: what `medseg_core.labelmaps.find_label_maps` takes; a folder of the masks of one case; a MedMNIST `.npz`
            of 3D shapes; or a folder with `shape/<id>.npy`, `info.csv` (its rows give the order) and maybe
            `appearance/<id>.npy`.
        label: ids or names with commas between them, "9" or "aorta,iliac_artery_*"; "" where there is but one.
        images: a CT, or a folder of `<case>.nii.gz`, `<case>_0000.nii.gz` or `<case>/ct.nii.gz`.
        names: a class list, instead of the `labels.json` beside label maps and of the names in a `.seg.nrrd`. Without
            any, names are those of the public whole-heart labels, `WHOLE_HEART`.

    Raises:
        MedsegError: nothing there, or not one case with what was asked for.
    """
    labels = Path(os.path.abspath(labels))  # noqa: PTH100 resolve() would take the name of what a link leads to
    if not labels.exists():
        near = meant(labels.name, (p.name for p in labels.parent.iterdir())) if labels.parent.is_dir() else ""
        raise MedsegError(f"there is no file or folder {labels}{near}")
    labels = _the_archive(labels) or labels
    words = tuple(dict.fromkeys(filter(None, (word.strip() for word in label.split(",")))))
    known = None if names is None else {name: i for i, name in read_labels(names).items()}
    if labels.suffix.lower() == ".npz" or (labels / "shape").is_dir():
        if images is not None:
            raise MedsegError(f"{labels} does not say where its voxels lie, so no CT fits; leave --images out")
        found = _medmnist(labels, words) if labels.is_file() else _arrays(labels, words, known)
    else:
        found = _maps(labels, words, known, images)
    if not found.cases:
        why = next(iter(found.refused.values()), f"{labels} holds no case")
        raise MedsegError(why if len(found.refused) < 2 else f"nothing of {labels} can be taken; first: {why}")
    assumed = {c.notes["structure"]: c.notes["id"] for c in found.cases if c.notes.get("assumed")}
    if assumed:
        said = ", ".join(f"{name} is id {i}" for name, i in assumed.items())
        log.info("%s has no class list; as in public whole-heart labels, %s", labels, said)
    return Found(tuple(found.cases), found.refused)


def _the_archive(folder: Path) -> Path | None:
    """The one .npz file of a folder that holds no other labels."""
    files = [file for file in folder.iterdir() if not file.name.startswith(".")] if folder.is_dir() else []
    return files[0] if len(files) == 1 and files[0].suffix.lower() == ".npz" else None


@dataclass
class _Finder:
    """What is found and what is refused, case by case, for the words of `--label`."""

    words: Sequence[str]
    cases: list[Case] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)

    @property
    def several(self) -> bool:
        """Whether an id needs the structure's name too."""
        return len(self.words) > 1 or any(map(_is_pattern, self.words))

    @contextmanager
    def refusing(self, name: str) -> Iterator[None]:
        """An error in the block costs what is called so."""
        try:
            yield
        except MedsegError as error:
            self.refused[name] = str(error)

    def pick(self, case: str, known: Mapping[str, int] | None, where: Path, *, numbered: bool = True) -> dict[str, int]:
        """Structure -> id of all words that mean something here; the others are refused."""
        picked: dict[str, int] = {}
        for word in self.words:
            with self.refusing(f"{case}-{word}" if self.several else case):
                picked |= _meaning(word, known, where, numbered=numbered)
        return picked

    def add(self, case: str, structure: str, files: Mapping[str, Path], split: str = "", **notes: Any) -> None:
        """One structure of one scan."""
        name = f"{case}-{structure}" if self.several else case
        with self.refusing(name):
            about = {"case": case, "structure": structure, **notes}
            self.cases.append(Case(name, files, group=case, split=split, notes=about))  # type: ignore[arg-type]


def _meaning(word: str, known: Mapping[str, int] | None, where: Path, *, numbered: bool) -> dict[str, int]:
    """Structure -> id: one for a name or an id, maybe several for a pattern."""
    names = known if known is not None else {name: i for i, name in WHOLE_HEART.items()}
    same = [name for name in names if name.casefold() == word.casefold()]
    if _is_pattern(word):
        same = [name for name in names if fnmatch.fnmatchcase(name, word)]
    if same:
        return {name: names[name] for name in same}
    if word.isdecimal() and numbered:
        if not 1 <= int(word) <= LARGEST_ID:
            raise MedsegError(f"label {word} is outside 1..{LARGEST_ID}; 0 is the background")
        return {next((name for name, i in (known or {}).items() if i == int(word)), str(int(word))): int(word)}
    held = f"only {some(names)}{meant(word, names)}"
    if not numbered and word.isdecimal():
        raise MedsegError(f"{where} is a folder of masks, which have names and no ids; give a name for {word}: {held}")
    if known is None:
        fix = f"give its id, or a class list: --names FILE, or {NAMES_FILE} beside it"
        raise MedsegError(f"nothing says which id of {where} is {word!r}; {fix}{meant(word, names)}")
    raise MedsegError(f"{where} has no structure {word!r}, {held}")


def _is_pattern(word: str) -> bool:
    return any(c in word for c in "*?[")


def some(words: Sequence[str] | Mapping[str, Any], most: int = 12) -> str:
    """The first of them, and how many more there are."""
    first = list(words)[:most]
    return ", ".join(map(str, first)) + (f" and {len(words) - most} more" if len(words) > most else "")


def _maps(root: Path, words: Sequence[str], known: Mapping[str, int] | None, images: Path | None) -> _Finder:
    files = {case_name(file) for file in root.iterdir()} if root.is_dir() else set()
    loose = any(word in files and not word.isdecimal() for word in words)
    maps = {root.name: label_map(root)} if loose else find_label_maps(root)
    scans = None if images is None else _Images(Path(images), alone=len(maps) == 1)
    found = _Finder(words)
    for one in maps.values():
        if one.case.endswith(".img") and f"{one.case.removesuffix('.img')}.label" in maps:
            continue  # ImageCAS keeps 1.img.nii.gz beside 1.label.nii.gz
        with found.refusing(one.case):
            if is_picture(one.path):
                raise MedsegError(f"{one.path} is a picture, where a shape has three axes; give volumes")
            beside = {} if scans is None else {IMAGE: scans.of(one)}
            if one.masks is None:
                ids = one.ids if one.ids is not None else _segments(one.path)
                ids = known if known is not None else ids
                _add_ids(found, one.case, ids, {LABEL: one.path, **beside}, kind=MAP)
            else:
                _add_masks(found, one, beside)
    return found


def _add_ids(
    found: _Finder, case: str, known: Mapping[str, int] | None, files: Mapping[str, Path], **notes: Any
) -> None:
    """The structures of a file of ids; without a word the only one that it holds, whatever its id."""
    if not found.words:
        found.add(case, "", files, id=None, **notes)
    for name, number in found.pick(case, known, files[LABEL]).items():
        assumed = known is None and WHOLE_HEART.get(number) == name
        found.add(case, name, files, id=number, assumed=assumed, names=known or {}, **notes)


def _add_masks(found: _Finder, one: LabelMap, beside: Mapping[str, Path]) -> None:
    assert one.masks is not None
    if not found.words and len(one.masks) > 1:
        raise MedsegError(f"{one.path} holds {some(one.masks)}; say which structure is meant: --label NAME")
    picked = found.pick(one.case, dict.fromkeys(one.masks, 1), one.path, numbered=False)
    for name in picked if found.words else one.masks:
        found.add(one.case, name, {LABEL: one.masks[name], **beside}, kind=MASK, id=1)


def _segments(path: Path) -> dict[str, int] | None:
    """Name -> id from the header of a segmentation of 3D Slicer; None where a file has none."""
    if path.suffix.lower() not in (".nrrd", ".nhdr"):
        return None
    try:
        with path.open("rb") as file:
            head = re.split(rb"\r?\n\r?\n", file.read(HEADER_MOST), maxsplit=1)[0].decode("utf-8", "replace")
    except OSError as error:
        raise MedsegError(f"cannot read {path}: {error.strerror}") from None
    found = {kind: dict(re.findall(rf"^Segment(\d+)_{kind}:=(.*?)\r?$", head, re.M)) for kind in ("Name", "LabelValue")}
    both = ((name, found["LabelValue"].get(n, "")) for n, name in found["Name"].items())
    return {name: int(value) for name, value in both if value.strip().isdecimal()} or None


def _medmnist(path: Path, words: Sequence[str]) -> _Finder:
    """Files such as adrenalmnist3d_64.npz hold one structure, which they are called after."""
    stem = re.match(r"([a-z]+)mnist3d", path.stem.lower())
    name, found = stem[1] if stem else "shape", _Finder(words)
    for word in words:
        if word.casefold() not in (name, "1", "255"):
            raise MedsegError(f"{path} holds one structure, {name}; leave --label {word} out")
    for part, num in _sizes(path).items():
        for n in range(num):
            found.add(f"{part}_{n:04d}", name, {LABEL: path}, part, kind=MEDMNIST, id=1, part=part, number=n)
    return found


def _sizes(path: Path) -> dict[str, int]:
    """Part -> shapes in it, from the headers of a MedMNIST file.

    Raises:
        MedsegError: no zip, damaged, no MedMNIST file of 3D shapes, or one that promises more than it can hold.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = {member.filename: member for member in archive.infolist()}
            parts = [part for part in PARTS if f"{part}_images.npy" in members]
            if not parts:
                held = some(sorted(name.removesuffix(".npy") for name in members)) or "nothing"
                raise MedsegError(f"{path} holds {held}, where a MedMNIST file has train_images; give one of its files")
            sizes = {}
            for part in parts:
                member = members[f"{part}_images.npy"]
                with archive.open(member) as stream:
                    shape, dtype = _header(stream)
                if len(shape) != 4 or min(shape[1:]) < SMALLEST or dtype != np.uint8:
                    raise MedsegError(
                        f"{path}: {part}_images holds {dtype} of shape {shape}, where 3D shapes are uint8 of "
                        "(N, X, Y, Z); take a 3D set such as adrenalmnist3d or vesselmnist3d"
                    )
                if math.prod(shape) > member.file_size or member.file_size > BEST_RATIO * (member.compress_size + 1):
                    raise MedsegError(f"{path}: {part}_images promises {shape}, which it cannot hold; copy it again")
                sizes[part] = shape[0]
            return sizes
    except MedsegError:
        raise
    except Exception as error:  # of a damaged zip or header; NumPy's parser raises whatever it likes
        raise MedsegError(f"{path} is no .npz, or damaged ({error}); copy it again") from None


def _header(stream: IO[bytes]) -> tuple[tuple[int, ...], np.dtype]:
    read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    shape, in_fortran_order, dtype = read[np.lib.format.read_magic(stream)](stream)
    if in_fortran_order:
        raise ValueError("its arrays are in Fortran order")
    return shape, dtype


def _arrays(root: Path, words: Sequence[str], known: Mapping[str, int] | None) -> _Finder:
    found, beside = _Finder(words), root / NAMES_FILE
    if known is None and beside.is_file():
        known = {name: i for i, name in read_labels(beside).items()}
    for row, name in enumerate(_rows(root)):
        with found.refusing(name):
            file, image = root / "shape" / f"{name}.npy", root / "appearance" / f"{name}.npy"
            if not file.is_file():
                raise MedsegError(f"row {row} of info.csv is {name}, and there is no file {file}")
            files = {LABEL: file} | ({IMAGE: image} if image.is_file() else {})
            _add_ids(found, name, known, files, kind=ARRAY, row=row)
    return found


def _rows(root: Path) -> list[str]:
    """The ids of `info.csv`, in its order; without it the files by name."""
    files = sorted(file.stem for file in (root / "shape").glob("*.npy"))
    path = root / "info.csv"
    if not path.is_file():
        if not files:
            raise MedsegError(f"{root / 'shape'} holds no .npy file; put <id>.npy there for each shape")
        log.warning("there is no %s; its shapes are taken by name", path)
        return files
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file))
    except (OSError, ValueError, csv.Error) as error:
        raise MedsegError(f"cannot read {path}: {error}; write it again, with a column id") from None
    if not rows or "id" not in rows[0]:
        head = f"the columns {', '.join(map(str, rows[0]))}" if rows else "no row"
        raise MedsegError(f"{path} has {head}, where a column id names the shapes")
    ids = [str(row["id"] or "").strip() for row in rows]
    twice = [name for name, num in Counter(ids).items() if num > 1 or not name]
    if twice:
        said = f"names {twice[0]!r} twice" if twice[0] else "has a row without an id"
        raise MedsegError(f"{path} {said}; each shape needs an id of its own")
    extra = sorted(set(files) - set(ids))
    if extra:
        log.warning("%s does not name %d files of shape/, which stay out: %s", path, len(extra), some(extra, 5))
    return ids


class _Images:
    """The CT of each case, by its name."""

    def __init__(self, place: Path, *, alone: bool) -> None:
        if not place.exists():
            raise MedsegError(f"there is no file or folder {place} of images")
        if place.is_file() and not alone:
            raise MedsegError(f"{place} is one CT for several cases; give a folder with one for each")
        self.place, self.alone = place, alone
        self.files = _volumes(place)

    def of(self, one: LabelMap) -> Path:
        """The CT; a MedsegError where there is none."""
        if self.place.is_file():
            return self.place
        bare = re.sub(r"[._-](label|labels|seg|mask)$", "", one.case)
        words = [word + end for word in (one.case, bare) for end in ("", "_0000", ".img")]
        inner = (self.files if self.alone else {}) | _volumes(self.place / one.case)
        choices = [self.files.get(word) for word in words] + [inner.get(word) for word in ("ct", "image", *words)]
        for file in choices:
            if file is not None and file != one.path:
                return file
        near = meant(bare, self.files)
        raise MedsegError(f"{self.place} has no CT of {one.case}{near}; name it {one.case}.nii.gz, or leave it out")


def _volumes(folder: Path) -> dict[str, Path]:
    """Name -> file of all volumes in a folder; nothing where there is no folder."""
    files = sorted(folder.iterdir()) if folder.is_dir() else []
    wanted = (f for f in files if f.name.lower().endswith(SUFFIXES) and not f.name.startswith(".") and f.is_file())
    return {case_name(f): f for f in wanted if not is_picture(f)}
