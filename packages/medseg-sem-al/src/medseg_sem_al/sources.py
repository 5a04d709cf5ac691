"""Which micrographs there are and which mask belongs to each: by a rule that is named, never by a guess.

| rule | images | masks |
|---|---|---|
| raw/ + labeled/ | `raw/X.*` | `labeled/X.*` |
| raw_images/ + masks_3class/ | `raw_images/X.*` | `masks_3class/X.*` |
| images/ + masks*/ | `images/X.*` | `masks*/X.*` or `masks*/X_mask.*` |
| X beside X_mask or X_seg-* | `X.*` | `X_mask.*`, `X_seg-<what>.*`; of several the one whose name holds the others' |
| one folder of images | `X.*` | none: a pool to predict on |

A folder holds one data set, or each of its folders one; folders train, val and test are parts of one. The original's
JSON is read too, of both kinds; of its stacks of frames the middle one is the image, the others lie beside it.
"""

import fnmatch
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from medseg_core.cases import SPLITS, Case
from medseg_core.errors import MedsegError, meant
from medseg_core.io import case_name, is_picture
from medseg_sem_al.stacks import role_of

ENDS = ("_mask", "-mask", "_label", "_labels", "_seg")
BESIDE = re.compile(r"(?P<stem>.+?)(?:_mask|_seg-(?P<what>.+))$")
Finding = dict[str, str]


@dataclass
class Found:
    """What a folder holds.

    Args:
        rule: by which it was read.
        cases: files `image`, and `label` where there is a mask; a split where folders say it; notes `dataset`.
        findings: `{"case", "severity", "text"}` of what could not be paired.
    """

    rule: str
    cases: list[Case] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)


def find_micrographs(root: Path, *, images: str = "", masks: str = "") -> Found:
    """Images and their masks.

    Args:
        root: a folder, or the original's JSON.
        images, masks: globs below `root`, which come before all rules: an image and a mask belong together where
            what the stars of the two file names stand for is equal.

    Raises:
        MedsegError: no such folder, nothing that a rule knows, or a glob that finds nothing.
    """
    root = Path(root)
    if root.is_file() and root.suffix.lower() == ".json":
        return _of_original(root)
    if not root.is_dir():
        raise MedsegError(f"there is no folder {root}; give a folder of micrographs")
    if images or masks:
        return _of_globs(root, images, masks)
    for rule, read in RULES.items():
        found = [(folder, pairs) for folder in _sets(root) if (pairs := read(folder))]
        if found:
            return _named(rule, found, root)
    raise MedsegError(f"{root} holds no pictures that a rule knows; say where they are by --images GLOB --masks GLOB")


Files = tuple[list[Path], list[tuple[str, Path]]]
"""Images, and masks with the stem of their image."""


def _sets(root: Path) -> list[Path]:
    """The folder itself first, then each in it."""
    return [root, *sorted(p for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))]


def pictures_in(folder: Path) -> list[Path]:
    """Its PNG, TIFF and JPEG files, hidden ones left out; none where there is no such folder."""
    if not folder.is_dir():
        return []
    return sorted(p for p in folder.iterdir() if p.is_file() and is_picture(p) and not p.name.startswith("."))


def _two_folders(images: str, masks: str) -> Callable[[Path], Files | None]:
    """Images in one folder, masks in another, which need not be there."""

    def read(folder: Path) -> Files | None:
        found = pictures_in(folder / images)
        if not found:
            return None
        homes = sorted(p for p in folder.glob(masks) if p.is_dir())
        stems = {case_name(p) for p in found}
        return found, [(_stem(p, stems), p) for home in homes for p in pictures_in(home)]

    return read


def _stem(mask: Path, stems: set[str]) -> str:
    """That of the image: the mask's own, or without its last word."""
    name = case_name(mask)
    short = (name.removesuffix(end) for end in ENDS if name.endswith(end))
    return name if name in stems else next((one for one in short if one in stems), name)


def _beside(folder: Path) -> Files | None:
    """Images and masks in one folder."""
    found = pictures_in(folder)
    masks: dict[str, dict[str, Path]] = {}
    for path in found:
        if match := BESIDE.match(case_name(path)):
            masks.setdefault(match["stem"], {})[match["what"] or ""] = path
    if not masks:
        return None
    taken = {path for named in masks.values() for path in named.values()}
    pairs = [(stem, path) for stem, named in masks.items() for path in _widest(named)]
    return [path for path in found if path not in taken], pairs


def _widest(named: Mapping[str, Path]) -> list[Path]:
    """The mask whose name holds those of all others, `axonmyelin` of `axon` and `myelin`; else all of them."""
    words = {what: re.split(r"[-_]", what)[0] for what in named}
    widest = [path for what, path in named.items() if all(word in words[what] for word in words.values())]
    return widest if len(widest) == 1 else list(named.values())


def _alone(folder: Path) -> Files | None:
    found = pictures_in(folder)
    return (found, []) if found else None


RULES: dict[str, Callable[[Path], Files | None]] = {
    "raw/ + labeled/": _two_folders("raw", "labeled"),
    "raw_images/ + masks_3class/": _two_folders("raw_images", "masks_3class"),
    "images/ + masks*/": _two_folders("images", "masks*"),
    "X beside X_mask or X_seg-*": _beside,
    "one folder of images": _alone,
}


def _named(rule: str, sets: Sequence[tuple[Path, Files]], root: Path) -> Found:
    """Cases of all data sets, whose ids are the stems, after their folder's name where there are several."""
    found = Found(rule)
    folders = [folder.resolve().name for folder, _ in sets]
    parts = set(folders) <= set(SPLITS)
    for folder, (images, masks) in sets:
        name, begun = folder.resolve().name, len(found.cases)
        _pair(
            found,
            [(case_name(path), path) for path in images],
            masks,
            dataset=root.resolve().name if parts else name,
            front=f"{name}_" if len(sets) > 1 else "",
        )
        if parts:
            found.cases[begun:] = [replace(case, split=name) for case in found.cases[begun:]]  # type: ignore[arg-type]
    return found


def _pair(
    found: Found, images: Sequence[tuple[str, Path]], masks: Sequence[tuple[str, Path]], *, dataset: str, front: str
) -> None:
    """Adds images with the masks of their stems; what claims one stem twice is left out and told."""
    claims: dict[str, dict[str, list[Path]]] = {}
    for role, files in (("image", images), ("label", masks)):
        for stem, path in files:
            claims.setdefault(stem, {"image": [], "label": []})[role].append(path)
    stems = [stem for stem, files in claims.items() if files["image"]]
    known = {case.id for case in found.cases}
    for stem, files in sorted(claims.items()):
        name = front + stem
        twice = next((paths for paths in files.values() if len(paths) > 1), None)
        if twice:
            said = " and ".join(path.name for path in twice)
            found.findings.append(_error(name, f"{said} are both {stem!r}; rename one, or choose by --images, --masks"))
        elif name in known:
            found.findings.append(_error(name, f"two data sets have a picture {name!r}; rename the folder of one"))
        elif not files["image"]:
            said = f"mask {files['label'][0]} has no image of the name {stem!r}{meant(stem, stems)}"
            found.findings.append(_error(name, said))
        else:
            roles = {role: paths[0] for role, paths in files.items() if paths}
            found.cases.append(Case(name, roles, notes={"dataset": dataset}))


def _error(case: str, text: str) -> Finding:
    return {"case": case, "severity": "error", "text": text}


def _of_globs(root: Path, images: str, masks: str) -> Found:
    if not images:
        raise MedsegError("--masks says where masks are; say by --images where their images are")
    found = Found(f"--images {images}" + (f" --masks {masks}" if masks else ""))
    files = {}
    for role, glob in (("image", images), ("mask", masks)):
        files[role] = _starred(root, glob) if glob else []
        if glob and not files[role]:
            raise MedsegError(f"{root} has no picture {glob}; a glob is taken from that folder")
    taken = {path for _, path in files["mask"]}
    left = [(key, path) for key, path in files["image"] if path not in taken]
    _pair(found, left, files["mask"], dataset=root.resolve().name, front="")
    return found


def _starred(root: Path, glob: str) -> list[tuple[str, Path]]:
    """Pictures, each with what the stars of its file name stand for."""
    name = Path(glob).name
    pattern = re.compile("".join("(.*)" if part == "*" else re.escape(part) for part in re.split(r"(\*)", name)))
    if Path(glob).is_absolute() or ".." in Path(glob).parts:
        raise MedsegError(f"{glob} leaves {root}; a glob is taken from that folder")
    found = []
    for path in sorted(root.glob(glob)):
        if path.is_file() and is_picture(path) and fnmatch.fnmatchcase(path.name, name):
            match = pattern.fullmatch(path.name)
            found.append(("_".join(match.groups()) if match else case_name(path), path))
    return found


def _of_original(file: Path) -> Found:
    """The original's list of samples: with stacks of three frames, or with data sets."""
    try:
        content = json.loads(file.read_text(encoding="utf-8-sig"))
        samples = content["samples"]
        found = Found("stacks of the original" if "root_raw_image_dir" in content else "data sets of the original")
        for sample in samples:
            found.cases.append(_sample(content, sample, file.parent))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        why = f"{type(error).__name__} {error}"
        raise MedsegError(f"{file} is no list of samples of the original ({why}); give the folder instead") from None
    if not found.cases:
        raise MedsegError(f"{file} lists no samples; give the folder instead")
    return found


def _sample(content: Mapping[str, Any], sample: Mapping[str, Any], home: Path) -> Case:
    dataset = sample.get("dataset") or content.get("dataset_name") or home.resolve().name
    roots = content.get("datasets_info", {}).get(dataset, {})
    roots = {"raw_image_root": roots} if isinstance(roots, str) else roots
    raw = Path(home, content.get("root_raw_image_dir") or roots["raw_image_root"])
    frames = [raw / name for name in sample.get("frames") or [sample["image_file"]]]
    files = {role_of(place - len(frames) // 2): frame for place, frame in enumerate(frames)}
    if sample.get("mask_file"):
        files["label"] = Path(home, content.get("root_labeled_mask_dir") or roots["mask_root"], sample["mask_file"])
    name = sample.get("sample_id") or f"{dataset}_{case_name(files['image'])}"
    return Case(name, files, notes={"dataset": dataset})
