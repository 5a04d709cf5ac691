"""Label maps as people keep them: files and pictures of ids, folders of masks, released cases; by case name."""

import json
import logging
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from medseg_core.cases import LONGEST_NAME
from medseg_core.config import unique
from medseg_core.errors import MedsegError
from medseg_core.io import SUFFIXES, case_name, is_picture, read_grid, read_picture, read_volume, write_text
from medseg_core.join import join_masks
from medseg_core.volume import Picture, Volume

LARGEST_ID = 2**16 - 1
NAMES_FILE = "labels.json"
IMAGE = "ct"  # `ct.nii.gz` beside masks is the scan they were drawn on
NO_CASE = "uncertainty"  # a folder that predictions come with

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LabelMap:
    """The labels of one case, not read yet.

    Args:
        case: its name.
        path: a multilabel file or picture, or a folder of masks.
        masks: structure -> file, for a folder; None for a file.
        ids: structure -> id in the file, from the `labels.json` beside it; None where there is none, or for a folder.
    """

    case: str
    path: Path
    masks: Mapping[str, Path] | None = None
    ids: Mapping[str, int] | None = None

    @property
    def annotated(self) -> frozenset[str] | None:
        """The structures that somebody looked for, be they empty or not; None where the files do not say."""
        names = self.masks if self.masks is not None else self.ids
        return None if names is None else frozenset(names)

    def names(self) -> frozenset[str]:
        """As `annotated`, but empty where the files do not say."""
        return self.annotated or frozenset()

    def read(self, ids: Mapping[str, int] | None = None) -> Volume | Picture:
        """As `read_audited`; overlaps and ids without a name are told in the log."""
        held, found = self.read_audited(ids)
        if found.overlap:
            log.warning("%s: %d voxels lie in two masks; the one with the larger id has them", self.path, found.overlap)
        if found.unnamed:
            log.warning("%s: no name for %s in %s; taken as background", self.path, list(found.unnamed), NAMES_FILE)
        return held

    def read_audited(self, ids: Mapping[str, int] | None = None) -> tuple[Volume | Picture, "Found"]:
        """One volume or picture of the wanted ids, background 0.

        A folder's masks take their id by name; where two overlap the larger id is kept. A multilabel file with a
        `labels.json` beside it is translated by name, and ids that are not wanted become 0; without one its ids are
        taken as they are.

        Args:
            ids: structure -> wanted id, 1 to 65535; None takes a file's ids as they are stored.

        Returns:
            Ids in uint8, or uint16 above 255, on the file's own grid.

        Raises:
            MedsegError: an unreadable file, masks that do not lie on one grid or are not 0 and 1, labels that are
                negative or no whole numbers, a picture in colour, or a folder without ids for its names.
        """
        if self.masks is not None:
            return self._join(ids)
        if not is_picture(self.path):
            volume = read_volume(self.path)
            stored, found = self._translated(_whole_numbers(volume.voxels, self.path), ids)
            return volume.like(stored), found
        picture = read_picture(self.path)
        if picture.pixels.ndim != 2:
            raise MedsegError(f"{self.path} is a picture in colour where a label map has one id a pixel; decode it")
        stored, found = self._translated(_whole_numbers(picture.pixels, self.path), ids)
        return Picture(stored, picture.pixel_nm), found

    def _translated(self, stored: np.ndarray, ids: Mapping[str, int] | None) -> tuple[np.ndarray, "Found"]:
        if self.ids is None or ids is None:
            return stored, Found()
        present = np.flatnonzero(np.bincount(stored.ravel(order="K")))
        unnamed = sorted(set(present.tolist()) - set(self.ids.values()) - {0})
        table = np.zeros(max(present.max(), *self.ids.values(), 0) + 1, _id_type(max(ids.values(), default=0)))
        for name, stored_id in self.ids.items():
            table[stored_id] = ids.get(name, 0)
        return table[stored], Found(unnamed=tuple(unnamed))

    def _join(self, ids: Mapping[str, int] | None) -> tuple[Volume, "Found"]:
        assert self.masks is not None
        if ids is None:
            raise MedsegError(f"{self.path} is a folder of masks, which have names and no ids; give a class list")
        grid = read_grid(next(iter(self.masks.values())))
        joined = join_masks({ids[name]: file for name, file in self.masks.items() if name in ids}, grid)
        return Volume(joined.layers[0], grid.affine), Found(overlap=sum(joined.overlaps.values()))


@dataclass(frozen=True)
class Found:
    """What a label map cannot say with one id a voxel.

    Args:
        overlap: voxels that lie in two masks.
        unnamed: ids of a file that the `labels.json` beside it does not name; they were taken as background.
    """

    overlap: int = 0
    unnamed: tuple[int, ...] = ()


def find_label_maps(root: Path, *, names: Collection[str] = ()) -> dict[str, LabelMap]:
    """The label maps under a path, by case name, sorted.

    Taken are a single file or picture; a folder of multilabel files (`s0001.nii.gz`, `s0001.png`); of folders of masks
    (`s0001/liver.nii.gz`);
    of released cases (`s0001/segmentations/liver.nii.gz`, which wins over all else in that folder); and one such case.
    A folder whose files are all named as the multilabel files beside it holds no case but more about these.

    Args:
        names: known structures. A folder whose files are all named after them holds the masks of one case.

    Raises:
        MedsegError: nothing of the kind there, or two forms of the same case.
    """
    root = Path(root)
    if not root.exists():
        raise MedsegError(f"there is no file or folder {root}")
    if root.is_file() or (root / "segmentations").is_dir() or root.name == "segmentations" or _all_named(root, names):
        one = label_map(root)
        return {one.case: one}
    found: dict[str, LabelMap] = {}
    whole = {case_name(file) for file in _files(root)}
    for entry in sorted(root.iterdir()):
        if entry.name.startswith(".") or entry.name == NO_CASE:
            continue
        masks = _files(entry)
        if masks and {case_name(file) for file in masks} <= whole:
            continue  # more about the cases beside it: `changes/s0001.nii.gz`
        if masks or _files(entry / "segmentations"):
            one = _from_folder(entry.name, entry)
        elif entry.is_file() and entry.name.lower().endswith(SUFFIXES):
            one = _from_file(entry)
        else:
            continue
        if one.case in found:
            raise MedsegError(
                f"{root} holds {one.case!r} twice, {found[one.case].path.name} and {entry.name}; keep one"
            )
        found[one.case] = one
    if not found:
        kinds = "case.nii.gz, case.png, case/liver.nii.gz or case/segmentations/"
        raise MedsegError(f"{root} holds no label maps; it takes {kinds}")
    return found


def label_map(path: Path) -> LabelMap:
    """The label map of one case: a file, a picture, or a folder of masks (with `segmentations` in it, or not)."""
    path = Path(path)
    return _from_folder(_case_of(path), path) if path.is_dir() else _from_file(path)


def read_labels(path: Path) -> dict[int, str]:
    """A class list from a file: id -> name.

    JSON may be {name: id}, {id: name}, a list (ids from 1 on), or hold one of these under "labels"; text has a name per
    line. A name may carry `.nii.gz`. `Liver` and `liver` are one name, as they are one file on macOS and Windows.

    Raises:
        MedsegError: unreadable, no class list, an id or a name twice, an id outside 1..65535, a name no file can have.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
        content = json.loads(text, object_pairs_hook=unique) if path.suffix == ".json" else _lines(text)
    except OSError as error:
        raise MedsegError(f"cannot read the class list {path}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise MedsegError(f"the class list {path} is not valid JSON: {error}") from None
    if isinstance(content, dict) and isinstance(content.get("labels"), (dict, list)):
        content = content["labels"]
    pairs = [(label, name) for label, name in _pairs(content) if (label, name.lower()) != (0, "background")]
    if not pairs:
        raise MedsegError(f"{path} is no class list; write JSON {{name: id}} or {{id: name}}, or a name per line")
    labels = dict(pairs)
    for label, name in pairs:
        if not 1 <= label <= LARGEST_ID:
            raise MedsegError(f"{path}: id {label} of {name!r} is outside 1..{LARGEST_ID}; 0 is the background")
        if not re.fullmatch(r"\w[\w .+()-]*", name) or len(name.encode()) > LONGEST_NAME:
            raise MedsegError(
                f"{path}: {name!r} cannot name a mask's file; use up to {LONGEST_NAME} letters, digits, '_', '-', '.' "
                "and spaces"
            )
    if len(labels) < len(pairs) or len({name.casefold() for name in labels.values()}) < len(labels):
        raise MedsegError(f"{path} gives an id or a name twice; each structure needs one of its own")
    return dict(sorted(labels.items()))


def write_labels(path: Path, labels: Mapping[int, str]) -> None:
    """A class list as JSON, id -> name."""
    write_text(path, json.dumps({str(label): name for label, name in sorted(labels.items())}, indent=1) + "\n")


def _lines(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]


def _pairs(content: Any) -> list[tuple[int, str]]:
    """(id, name) pairs of any of the shapes; none where it is none of them."""
    if isinstance(content, list) and _are(str, content):
        return [(label, _bare(name)) for label, name in enumerate(content, 1)]
    if not isinstance(content, dict):
        return []
    if _are(int, content.values()):
        return [(label, _bare(name)) for name, label in content.items()]
    if _are(str, content.values()) and all(re.fullmatch(r"-?\d{1,9}", key) for key in content):
        return [(int(label), _bare(name)) for label, name in content.items()]
    return []


def _bare(name: str) -> str:
    return name.removesuffix(".gz").removesuffix(".nii")


def _are(kind: type, values: Collection[Any]) -> bool:
    return all(isinstance(value, kind) and not isinstance(value, bool) for value in values)


def _from_file(path: Path) -> LabelMap:
    beside = path.with_name(NAMES_FILE)
    ids = {name: label for label, name in read_labels(beside).items()} if beside.is_file() else None
    return LabelMap(case_name(path), path, ids=ids)


def _from_folder(case: str, folder: Path) -> LabelMap:
    inner = folder / "segmentations"
    folder = inner if inner.is_dir() else folder
    masks = {case_name(file): file for file in _files(folder)}
    if not masks:
        raise MedsegError(f"{folder} holds no masks (liver.nii.gz, ...)")
    return LabelMap(case, folder, masks=masks)


def _files(folder: Path) -> list[Path]:
    """Masks in a folder: NIfTI files, but hidden ones (`._liver.nii.gz` of macOS) and the scan itself."""
    found = folder.iterdir() if folder.is_dir() else ()
    wanted = (f for f in found if f.name.endswith((".nii.gz", ".nii")) and not f.name.startswith("."))
    return sorted(f for f in wanted if case_name(f) != IMAGE)


def _all_named(root: Path, names: Collection[str]) -> bool:
    files = _files(root)
    return bool(files) and all(case_name(file) in names for file in files)


def _case_of(root: Path) -> str:
    place = root.resolve()
    return place.parent.name if place.name == "segmentations" else place.name


def _whole_numbers(voxels: np.ndarray, path: Path) -> np.ndarray:
    """Labels as uint8 or uint16; memory order is kept."""
    low, high = voxels.min(), voxels.max()  # nan fails both comparisons
    if not (low >= 0 and high <= LARGEST_ID):
        bad = low if not low >= 0 else high
        raise MedsegError(f"{path} holds the value {bad:g} where a label map has ids from 0 to {LARGEST_ID}")
    ids = voxels.astype(_id_type(int(high)))
    wrong = voxels != ids if voxels.dtype.kind == "f" else np.zeros(0, bool)
    if wrong.any():
        value = voxels[wrong][0]
        raise MedsegError(f"{path} holds {value:g}, which is no whole number; it is no label map, or was interpolated")
    return ids


def _id_type(largest: int) -> type[np.unsignedinteger]:
    return np.uint8 if largest < 2**8 else np.uint16
