"""From labels to a cache of cropped shapes: what `shapes.read_shapes` reads. Axes: X Y Z voxels in the file's order."""

import logging
import math
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from medseg_core.cases import Case
from medseg_core.cohort import JOURNAL, Outcome, for_each, forget, read_journal
from medseg_core.config import as_dict
from medseg_core.distributed import from_first
from medseg_core.errors import MedsegError, meant
from medseg_core.grid import Grid
from medseg_core.io import read_grid, read_volume
from medseg_core.join import join_masks
from medseg_core.labelmaps import NAMES_FILE, LabelMap
from medseg_core.masks import components
from medseg_core.store import ABOUT
from medseg_core.volume import Volume
from medseg_near.settings import PrepareConfig
from medseg_near.shapes import FOLDER, Shape, box_of, part_of, write_list, write_shape
from medseg_near.sources import ARRAY, IMAGE, LABEL, MAP, MASK, MEDMNIST, Found, find_structures, some
from medseg_near.whole_heart import WHOLE_HEART

log = logging.getLogger(__name__)


def prepare(
    labels: Path,
    out: Path,
    config: PrepareConfig,
    *,
    label: str = "",
    images: Path | None = None,
    names: Path | None = None,
    only: Collection[str] | None = None,
    limit: int | None = None,
    executor: Executor | None = None,
) -> Outcome:
    """Crops each structure to its bounding box with a margin, and its CT with it.

    Finished shapes are skipped, a bad one costs only itself, and the list of the cache has the order of the source.

    Args:
        labels, label, images, names: see `sources.find_structures`.
        out: new, or begun by the same call; `only` and `limit` may change, and add shapes.
        only: ids of shapes or of scans.
        limit: as many shapes as this, the first ones.
        executor: runs the shapes, any of `concurrent.futures`.

    Raises:
        MedsegError: nothing to prepare, or a folder `out` of something else or of other settings.
    """
    out = Path(out)
    check_window(config)
    from_first(partial(_refuse_others, out))
    found = find_structures(labels, label=label, images=images, names=names)
    cases, refused = _chosen(found, only, limit)
    settings = {"labels": Path(labels).resolve().name, "label": label, "images": images is not None}
    settings |= {"names": "" if names is None else Path(names).name, **as_dict(config)}
    from_first(partial(_forget_lost, out))
    work = partial(_prepare_case, out=out, config=config)
    outcome = for_each(cases, work, out=out, config=settings, executor=executor)
    for name, why in refused.items():
        log.error("%s: %s", name, why)
    done = read_journal(out)
    from_first(partial(_write_list, out, found, done))
    if said := said_of_parts({case.id: done[case.id] for case in cases if case.id in done}):
        log.warning(said)
    release()
    return replace(outcome, failed={**refused, **outcome.failed})


def crop(case: Case, config: PrepareConfig) -> tuple[Shape, dict[str, Any]]:
    """A case of `sources.find_structures` as a shape, and what is worth knowing of it.

    Known are: `voxels`, `ml`, `parts` (connected through faces, edges or corners), `largest` (the share of its voxels
    that the largest part has), and `cut` (whether it reaches the edge of its file).

    Raises:
        MedsegError: unreadable, no label map, no voxel of the structure or nothing else, a CT on another grid, or one
            with values that are not finite in the crop.
    """
    mask, whole = read_structure(case)
    tight = box_of(mask)
    assert tight is not None
    sizes = zip(tight, [math.ceil(config.margin_mm / mm) for mm in whole.spacing_mm], whole.shape, strict=True)
    box = tuple(slice(max(0, side.start - more), min(n, side.stop + more)) for side, more, n in sizes)
    inner = np.ascontiguousarray(mask[box])
    start = tuple(side.start for side in box)
    shape = Shape(case.id, inner, part_of(whole, box), _image(case, whole, box, config), whole, start)  # type: ignore[arg-type]
    parts = np.bincount(components(mask[tight]).ravel())[1:]
    voxel_ml = abs(float(np.linalg.det(whole.affine[:3, :3]))) / 1000
    return shape, {
        "voxels": int(parts.sum()),
        "ml": float(parts.sum() * voxel_ml),
        "parts": len(parts),
        "largest": float(parts.max() / parts.sum()),
        "cut": any(side.start == 0 or side.stop == n for side, n in zip(tight, whole.shape, strict=True)),
    }


def read_structure(case: Case) -> tuple[np.ndarray, Grid]:
    """The mask of a case of `sources.find_structures`: (X, Y, Z) bool, on the grid of its file.

    Raises:
        MedsegError: unreadable, not whole numbers, no voxel of the structure, or nothing else.
    """
    path, notes = Path(case.files[LABEL]), case.notes
    ids, grid = _ids(path, notes)
    highest = int(ids.max())
    if notes.get("assumed") and highest > max(WHOLE_HEART):
        raise MedsegError(
            f"{path} holds ids up to {highest}, so it is no map of the whole heart, and nothing says which of them is "
            f"{notes['structure']}; give its id, or a class list: --names FILE, or {NAMES_FILE} beside it"
        )
    number = _the_only(ids, path) if notes["id"] is None else notes["id"]
    mask = ids == number
    if not mask.any():
        raise MedsegError(_absent(ids, path, notes))
    if mask.all():
        raise MedsegError(f"{path}: {notes['structure'] or number} fills the whole file; is it turned inside out?")
    return mask, grid


def release() -> None:
    """Lets go of the files that were read last."""
    for read in (_label_map, _volume, _part):
        read.cache_clear()


def check_window(config: PrepareConfig) -> None:
    """What would else fail in every case."""
    low, high = config.window_hu
    if not high > low:
        raise MedsegError(f"window_hu {low:g},{high:g} is empty; its second value is the higher one")


def said_of_parts(facts: Mapping[str, Mapping[str, Any]]) -> str:
    """One line on the structures that lie in several pieces, "" where none does.

    Args:
        facts: id -> what `crop` knows.
    """
    torn = sorted((name for name, about in facts.items() if about["parts"] > 1), key=lambda n: facts[n]["largest"])
    each = [f"{name} ({facts[name]['parts']}, the largest has {facts[name]['largest']:.1%})" for name in torn]
    return f"{len(torn)} of {len(facts)} structures lie in several parts: {some(each, 6)}" if torn else ""


def _refuse_others(out: Path) -> None:
    if out.exists() and not (out / JOURNAL).is_file() and (not out.is_dir() or any(out.iterdir())):
        raise MedsegError(f"{out} exists and is no cache of `prepare`; give a new folder")


def _chosen(found: Found, only: Collection[str] | None, limit: int | None) -> tuple[list[Case], dict[str, str]]:
    """The cases to do, and those of them that are refused."""
    known = {name for case in found.cases for name in (case.id, case.group)} | found.refused.keys()
    for name in only or ():
        if name not in known:
            raise MedsegError(f"there is no shape {name!r} to prepare{meant(name, known)}")
    if limit is not None and limit < 1:
        raise MedsegError(f"limit {limit} leaves nothing to prepare; give at least 1")
    chosen = [case for case in found.cases if only is None or case.id in only or case.group in only]
    refused = {name: why for name, why in found.refused.items() if only is None or name in only}
    return chosen[:limit], refused


def _forget_lost(out: Path) -> None:
    """What the journal calls done and somebody took away is done again."""
    lost = {name for name in read_journal(out) if not (out / FOLDER / name / ABOUT).is_file()}
    if lost:
        log.warning("%s: gone and prepared again: %s", out, some(sorted(lost)))
        forget(out, lost)


def _prepare_case(case: Case, *, out: Path, config: PrepareConfig) -> Mapping[str, Any]:
    """All of a case is read before anything is written."""
    shape, facts = crop(case, config)
    write_shape(shape, out, about={"case": case.group, "structure": case.notes["structure"], **facts})
    return facts


def _write_list(out: Path, found: Found, done: Mapping[str, Mapping[str, Any]]) -> None:
    """All that is done, by this call and by earlier ones, in the order of the source."""
    listed = []
    for case in found.cases:
        if case.id in done:
            notes = {key: case.notes[key] for key in ("structure", "row") if key in case.notes}
            listed.append(replace(case, notes={**notes, **done[case.id]}))
    if listed:
        write_list(out, listed)


def _image(case: Case, whole: Grid, box: Sequence[slice], config: PrepareConfig) -> np.ndarray | None:
    """(X, Y, Z) float16 of the crop, 0 to 1; None where the case has no image."""
    if IMAGE not in case.files:
        return None
    path = Path(case.files[IMAGE])
    if case.notes["kind"] == ARRAY:
        values, low, high = _load(path), 0.0, 1.0
        reason = f"shape {values.shape} against {whole.shape}" if values.shape != whole.shape else None
    else:
        volume = _volume(path, _written_ns(path))
        values, reason, (low, high) = volume.voxels, volume.grid.differs(whole), config.window_hu
    if reason:
        raise MedsegError(f"{path} does not lie on the grid of {case.files[LABEL]}: {reason}; resample one of them")
    part = values[tuple(box)].astype(np.float32)
    wrong = np.count_nonzero(~np.isfinite(part))
    if wrong:
        raise MedsegError(f"{path} holds {wrong} values about {case.id} that are not finite; set them to that of air")
    if case.notes["kind"] == ARRAY and not (part.min() >= 0 and part.max() <= 1):
        raise MedsegError(f"{path} holds {part.min():g} to {part.max():g} where an appearance has 0 to 1; scale it")
    return ((np.clip(part, low, high) - low) / (high - low)).astype(np.float16)


def _ids(path: Path, notes: Mapping[str, Any]) -> tuple[np.ndarray, Grid]:
    """(X, Y, Z) whole numbers, and where they lie."""
    if notes["kind"] == MASK:
        grid = read_grid(path)
        return join_masks({1: path}, grid).layers[0], grid
    if notes["kind"] == MAP:
        volume = _label_map(path, _written_ns(path))
        return volume.voxels, volume.grid
    if notes["kind"] == MEDMNIST:
        voxels = _whole_shape(path, notes["part"], notes["number"])
    else:
        voxels = _whole_numbers(_load(path), path)
    return voxels, Grid(voxels.shape, np.eye(4))


def _written_ns(path: Path) -> int:
    """When a file was written last: a file put in its place is read anew."""
    try:
        return path.stat().st_mtime_ns
    except OSError as error:
        raise MedsegError(f"cannot read {path}: {error.strerror}") from None


@lru_cache(maxsize=1)  # the structures of one scan follow each other
def _label_map(path: Path, _: int) -> Volume:
    volume = LabelMap(path.name, path).read()
    assert isinstance(volume, Volume)
    return volume


@lru_cache(maxsize=1)
def _volume(path: Path, _: int) -> Volume:
    return read_volume(path)


@lru_cache(maxsize=1)
def _part(path: Path, part: str, _: int) -> np.ndarray:
    """(N, X, Y, Z) uint8: one member of a MedMNIST file, inflated once for all of its shapes."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            return archive[f"{part}_images"]
    except Exception as error:  # of a damaged zip
        raise MedsegError(f"{path}: {part}_images is damaged ({error}); copy it again") from None


def _whole_shape(path: Path, part: str, number: int) -> np.ndarray:
    """(X, Y, Z) uint8, 0 and 1."""
    stored = _part(path, part, _written_ns(path))[number]
    on = stored > 0
    wrong = stored[on] != stored.max()
    if wrong.any():
        raise MedsegError(
            f"{path}: shape {number} of {part}_images holds {stored[on][wrong][0]} beside {stored.max()}, where a "
            "shape has 0 and 255; take a set of shapes such as adrenalmnist3d or vesselmnist3d"
        )
    return on.view(np.uint8)


def _load(path: Path) -> np.ndarray:
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception:  # NumPy reads the words before an array with Python's parser, and checks little
        raise MedsegError(f"{path} is no array of NumPy, or damaged; export it again") from None
    if not isinstance(array, np.ndarray) or array.ndim != 3 or array.dtype.kind not in "buif" or not array.size:
        raise MedsegError(f"{path} is no array of numbers with three axes; export one volume a file")
    return array


def _whole_numbers(array: np.ndarray, path: Path) -> np.ndarray:
    if array.dtype.kind == "f":
        wrong = array != np.rint(array)  # nan too
        if wrong.any():
            raise MedsegError(
                f"{path} holds {array[wrong][0]:g}, which is no whole number; it is no label map, or was interpolated"
            )
    return array


def _the_only(ids: np.ndarray, path: Path) -> int:
    present = [int(i) for i in np.unique(ids) if i]
    if len(present) == 1:
        return present[0]
    held = f"the ids {some([str(i) for i in present])}" if present else "nothing but background"
    raise MedsegError(f"{path} holds {held}; say which structure is meant: --label ID")


def _absent(ids: np.ndarray, path: Path, notes: Mapping[str, Any]) -> str:
    """Why a structure cannot be taken: what there is, and what may have been meant."""
    said, number = notes["structure"] or str(notes["id"]), notes["id"]
    if notes["kind"] in (MASK, MEDMNIST):
        return f"{path} is empty: there is no voxel of {said}; leave this case out"
    names = WHOLE_HEART if notes.get("assumed") else {i: name for name, i in notes.get("names", {}).items()}
    present = [int(i) for i in np.unique(ids) if i]
    there = [f"{i} ({names[i]})" if i in names else str(i) for i in present]
    near = meant(said, [names[i] for i in present if i in names])
    what = f"{said} (id {number})" if said != str(number) else f"id {number}"
    return f"{path} holds no voxel of {what}, only {some(there) or 'background'}{near}"
