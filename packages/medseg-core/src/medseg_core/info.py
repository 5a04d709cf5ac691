"""What a file holds, as facts and on one screen: its place, its numbers, its labels, and what will cost time later."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from isal import igzip
from numba import njit

from medseg_core.errors import MedsegError
from medseg_core.grid import Grid
from medseg_core.io import ORTHOGONAL, is_picture, read_picture, read_volume
from medseg_core.labelmaps import NAMES_FILE, read_labels
from medseg_core.masks import along_memory, components, in_fortran_order
from medseg_core.nifti import MM_PER_UNIT, QUIET, opened, read_stored
from medseg_core.spread import QUANTILES, Spread, spread
from medseg_core.volume import Picture

USUAL_MM = (0.1, 20.0)
SMALL_TYPES = ("uint8", "int16", "uint16", "int32")
NUM_NAMED = 8


def describe(path: Path, *, labels: Mapping[int, str] | None = None) -> dict[str, Any]:
    """Facts about a volume, a series or a picture, as JSON can hold them.

    Args:
        path: NIfTI with any number of axes, PNG, TIFF or JPEG, or whatever else `io.read_volume` reads.
        labels: id -> name; None takes the `labels.json` beside a label map, if there is one.

    Returns:
        `path`; `kind`, "image" or "label map", by the rule in `spread`, and pictures in colour are images; `shape`;
        `axes`, such as "X Y Z" or "H W C"; `dtype` as stored (of volumes that are no NIfTI: as read); `bytes` on disk
        and `bytes_unpacked`; `range`, which is `min`, `max` and for images the percentiles `p1`, `median` and `p99`,
        None where no value is finite; and `num_nan` and `num_inf` where there are any.

        Volumes have `spacing_mm`, `fov_mm` (voxels times spacing), `orientation` and `oblique_deg`, the largest angle
        between an axis and the patient axis closest to it; NIfTI files with a scale have `slope` and `intercept`,
        which the range is scaled by; series have `frame_s`. Pictures have `pixel_nm`, None where it is not stated.

        Label maps have `background`, the share of 0; `labels_from`, where names are from; `absent`, names without a
        voxel; and `labels`, by id: `id`, `name` (None: it has none), `voxels`, `ml` (of a series: of a frame on
        average), and, but for a series, the number of `parts` (connected through corners too) and `extent_mm`, the
        edges of the box around it. Pictures have `pixels`, `share`, `um2` where the pixel is known, and `extent_px`.

        `warnings`, a list of sentences.

    Raises:
        MedsegError: what the readers refuse.
    """
    path = Path(path)
    held = _held(path)
    found = spread(held.stored, slope=held.slope, intercept=held.intercept)
    is_map = not held.coloured and found.is_label_map
    facts = {"path": str(path), "kind": "label map" if is_map else "image", **held.facts}
    facts["bytes"] = _num_bytes(path)
    facts["range"] = {name: v for name, v in found.range.items() if not (is_map and name in QUANTILES)} or None
    facts |= {name: num for name, num in (("num_nan", found.num_nan), ("num_inf", found.num_inf)) if num}
    warnings = [*held.warnings, *_warnings_of_values(held, found, is_map=is_map)]
    if is_map:
        names, source, trouble = _names(path, labels)
        facts |= {"labels_from": source, **_label_facts(held, found, names or {})}
        warnings += [*trouble, *_warnings_of_labels(path, facts)]
    return {**facts, "warnings": warnings}


def describe_each(
    paths: Sequence[Path], *, labels: Mapping[int, str] | None = None
) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """The facts of every file that can be read, and path -> why for the others.

    Raises:
        MedsegError: there is one file, and it cannot be read.
    """
    found, failed = [], {}
    for path in paths:
        try:
            found.append(describe(path, labels=labels))
        except MedsegError as error:
            if len(paths) == 1:
                raise
            failed[str(path)] = str(error)
    return found, failed


@dataclass(frozen=True, eq=False)
class _Held:
    """What a reader found: numbers as stored, value = slope * stored + intercept, and facts that need no voxel."""

    stored: np.ndarray
    facts: dict[str, Any]
    warnings: list[str]
    slope: float = 1.0
    intercept: float = 0.0
    coloured: bool = False

    @property
    def scaled(self) -> bool:
        return (self.slope, self.intercept) != (1.0, 0.0)

    def ids(self, largest: int) -> np.ndarray:
        """Whole values from 0 to `largest`, in memory order."""
        values = np.rint(self.slope * self.stored.astype(np.float64) + self.intercept) if self.scaled else self.stored
        return values.astype(np.uint8 if largest < 2**8 else np.uint16, copy=False)


def _held(path: Path) -> _Held:
    if is_picture(path):
        return _held_picture(read_picture(path))
    if path.name.lower().endswith((".nii", ".nii.gz")):
        return _held_nifti(path)
    volume = read_volume(path)
    return _Held(volume.voxels, _facts_of_grid(volume.grid, volume.voxels), _warnings_of_grid(volume.grid))


def _held_nifti(path: Path) -> _Held:
    with opened(path) as (header, stream):
        try:
            grid = Grid(header.shape[:3], header.affine)  # type: ignore[arg-type]
        except MedsegError as error:
            raise MedsegError(f"{path}: {error}") from None
        stored = read_stored(header, stream)
    facts = _facts_of_grid(grid, stored)
    warnings = _warnings_of_grid(grid) + _warnings_of_header(_raw_header(path))
    if len(header.shape) == 4:
        facts["frame_s"] = header.frame_s
    if len(header.shape) > 4:
        warnings.append(f"it has {len(header.shape)} axes where volumes have three and series four; split it")
    if header.scaled:
        facts |= {"slope": header.slope, "intercept": header.intercept}
    return _Held(stored, facts, warnings, header.slope, header.intercept)


def _held_picture(picture: Picture) -> _Held:
    pixels, warnings = picture.pixels, []
    facts = {
        "shape": list(pixels.shape),
        "axes": "H W C"[: 2 * pixels.ndim - 1],
        "pixel_nm": picture.pixel_nm,
        "dtype": pixels.dtype.name,
        "bytes_unpacked": pixels.nbytes,
    }
    if pixels.ndim == 3 and pixels.shape[2] >= 3 and (pixels[..., :1] == pixels[..., 1:3]).all():
        warnings.append("red, green and blue are equal everywhere: it is grey, and described as such")
        pixels = np.ascontiguousarray(pixels[..., 0])
    return _Held(pixels, facts, warnings, coloured=pixels.ndim == 3)


def _raw_header(path: Path) -> nib.Nifti1Header:
    """The header with both its places, of a file that `opened` has taken."""
    with path.open("rb") as file:
        stream = igzip.IGzipFile(fileobj=file) if file.peek(2)[:2] == b"\x1f\x8b" else file
        block = stream.read(540)
    old = 348 in (int.from_bytes(block[:4], "little"), int.from_bytes(block[:4], "big"))
    raw = nib.Nifti1Header(block[:348], check=False) if old else nib.Nifti2Header(block, check=False)
    raw.check_fix(logger=QUIET)
    return raw


def _facts_of_grid(grid: Grid, stored: np.ndarray) -> dict[str, Any]:
    directions = grid.affine[:3, :3] / grid.spacing_mm
    tilts = np.degrees(np.arccos(np.minimum(1, np.abs(directions).max(axis=0))))
    return {
        "shape": list(stored.shape),
        "axes": " ".join("XYZTUVW"[: stored.ndim]),
        "spacing_mm": list(grid.spacing_mm),
        "fov_mm": [n * mm for n, mm in zip(grid.shape, grid.spacing_mm, strict=True)],
        "orientation": grid.orientation,
        "oblique_deg": float(tilts.max()),
        "dtype": stored.dtype.name,
        "bytes_unpacked": stored.nbytes,
    }


def _warnings_of_grid(grid: Grid) -> list[str]:
    warnings, (low, high) = [], USUAL_MM
    if np.array_equal(np.abs(grid.affine), np.eye(4)):
        warnings.append("1 mm voxels, straight axes, origin 0: an array that lost its affine looks like this")
    odd = [
        f"{mm:.4g} mm along {axis}" for axis, mm in zip("XYZ", grid.spacing_mm, strict=True) if not low <= mm <= high
    ]
    if odd:
        warnings.append(f"the spacing is {' and '.join(odd)}: another unit, or no axis of space?")
    directions = grid.affine[:3, :3] / grid.spacing_mm
    cosine = np.abs(directions.T @ directions - np.eye(3)).max()
    if cosine > ORTHOGONAL:
        degrees = math.degrees(math.acos(min(1.0, cosine)))
        warnings.append(f"sheared: two axes meet at {degrees:.4g} degrees, which many programs ignore; resample it")
    return warnings


def _warnings_of_header(raw: nib.Nifti1Header) -> list[str]:
    """Where the ways in which a header tells its place differ: so do programs in which one they read."""
    with np.errstate(all="ignore"):  # what is not finite fails below
        return _differences(raw)


def _differences(raw: nib.Nifti1Header) -> list[str]:
    to_mm = np.diag([*[MM_PER_UNIT.get(int(raw["xyzt_units"]) % 8, 1.0)] * 3, 1.0])
    shape = (*raw.get_data_shape(), 1, 1)[:3]
    sform, qform, by_qform = raw.get_sform(coded=True)[0], None, None
    try:
        qform = raw.get_qform(coded=True)[0]
        by_qform = None if qform is None else Grid(shape, to_mm @ qform)
    except (ValueError, MedsegError, nib.spatialimages.HeaderDataError):
        return ["its qform is no rotation: what reads it instead of the sform will fail"]
    if sform is None:
        no_place = "it states no place (sform and qform codes are 0): orientation and origin are a guess"
        return [no_place] if qform is None else []
    taken = Grid(shape, to_mm @ sform)
    if by_qform:
        apart = by_qform.differs(taken)
        return [f"qform and sform differ, and the sform is taken: {apart}"] if apart else []
    pixdim_mm = np.array(raw["pixdim"][1:4], np.float64) * to_mm[0, 0]
    if np.allclose(pixdim_mm, taken.spacing_mm, rtol=0.01):
        return []
    return [f"pixdim says {_by(pixdim_mm)} mm and the sform, which is taken, {_by(taken.spacing_mm)} mm"]


def _warnings_of_values(held: _Held, found: Spread, *, is_map: bool) -> list[str]:
    warnings, values, dtype = [], found.values, held.stored.dtype
    if found.num_nan or found.num_inf:
        warnings.append(f"{found.num_nan:,} values are nan and {found.num_inf:,} infinite")
    if values is None:
        return warnings
    if len(values) == 1:
        warnings.append(f"every value is {values[0]:g}")
    if (dtype.itemsize == 8 or (dtype.kind == "f" and is_map)) and not held.scaled:
        fits = (t for t in SMALL_TYPES if np.iinfo(t).min <= values[0] and values[-1] <= np.iinfo(t).max)
        smaller = np.dtype(next(fits, dtype))
        if smaller.itemsize < dtype.itemsize:
            share = f"1/{dtype.itemsize // smaller.itemsize} of the memory"
            warnings.append(f"whole numbers stored as {dtype}: {smaller} holds them in {share}")
    return warnings


def _warnings_of_labels(path: Path, facts: Mapping[str, Any]) -> list[str]:
    warnings, nameless = [], [str(row["id"]) for row in facts["labels"] if row["name"] is None]
    if facts["labels_from"] and nameless:
        more = f" and {len(nameless) - NUM_NAMED} more" if len(nameless) > NUM_NAMED else ""
        warnings.append(f"{facts['labels_from']} has no name for {', '.join(nameless[:NUM_NAMED])}{more}")
    if path.suffix.lower() in (".jpg", ".jpeg"):
        warnings.append("JPEG changes ids along edges; make the label map anew as .png")
    return warnings


def _names(path: Path, labels: Mapping[int, str] | None) -> tuple[Mapping[int, str] | None, str | None, list[str]]:
    """Names, where they are from, and what is wrong with a file of names that nobody asked for."""
    beside = path.with_name(NAMES_FILE)
    if labels is not None or not beside.is_file():
        return labels, None if labels is None else "the class list", []
    try:
        return read_labels(beside), NAMES_FILE, []
    except MedsegError as error:
        return None, None, [str(error)]


def _label_facts(held: _Held, found: Spread, names: Mapping[int, str]) -> dict[str, Any]:
    assert found.values is not None
    assert found.counts is not None
    counts = dict(zip(found.values.astype(int).tolist(), found.counts.tolist(), strict=True))
    total, largest, background = sum(counts.values()), max(counts), counts.pop(0, 0)
    parts = _parts(held.ids(largest)) if held.stored.ndim <= 3 else {}
    rows = []
    for i, num in counts.items():
        row: dict[str, Any] = {"id": i, "name": names.get(i)}
        if spacing_mm := held.facts.get("spacing_mm"):
            row |= {"voxels": num, "ml": num * math.prod(spacing_mm) / 1000 / math.prod(held.stored.shape[3:])}
        else:
            row |= {"pixels": num, "share": num / total}
            if nm := held.facts["pixel_nm"]:
                row["um2"] = num * nm * nm / 1e6
        if i in parts:
            row["parts"], edges = parts[i]
            in_mm = {"extent_mm": [n * mm for n, mm in zip(edges, spacing_mm, strict=True)]} if spacing_mm else None
            row |= in_mm or {"extent_px": edges}
        rows.append(row)
    absent = [name for i, name in names.items() if i and i not in counts]
    return {"background": background / total, "absent": absent, "labels": rows}


def _parts(ids: np.ndarray) -> dict[int, tuple[int, list[int]]]:
    """Id -> the number of its connected parts, and the edges of the box around it in voxels."""
    numbered = components(ids)
    owner = np.zeros(int(numbered.max()) + 1, ids.dtype)
    box = np.zeros((int(ids.max()) + 1, 3, 2), np.int64)
    box[..., 0] = max(ids.shape)
    _locate(*along_memory(ids, numbered), owner, box)
    present, num_parts = np.unique(owner[1:], return_counts=True)
    edges = (box[present, :, 1] - box[present, :, 0])[:, 3 - ids.ndim :]
    edges = edges[:, ::-1] if in_fortran_order(ids) else edges
    return dict(zip(present.tolist(), zip(num_parts.tolist(), edges.tolist(), strict=True), strict=True))


@njit(nogil=True, cache=True)
def _locate(ids, parts, owner, box):
    """Writes the id of every part, and of every id the first index and the one behind the last along each axis."""
    n0, n1, n2 = ids.shape
    for i in range(n0):
        for j in range(n1):
            for k in range(n2):
                label = ids[i, j, k]
                if label:
                    owner[parts[i, j, k]] = label
                    edge = box[label]
                    edge[0, 0], edge[0, 1] = min(edge[0, 0], i), max(edge[0, 1], i + 1)
                    edge[1, 0], edge[1, 1] = min(edge[1, 0], j), max(edge[1, 1], j + 1)
                    edge[2, 0], edge[2, 1] = min(edge[2, 0], k), max(edge[2, 1], k + 1)


def _num_bytes(path: Path) -> int:
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return sum(file.stat().st_size for file in files)


def _by(sizes: Iterable[float]) -> str:
    return " x ".join(f"{size:.4g}" for size in sizes)
