"""A refined shape before and after, for eyes: surfaces that a reader turns in the browser, and a picture of each case.

What stayed is grey, what was added is green, what was removed is red.

Axes: X Y Z voxels in a file's own order; R A S voxels of a cube's edge, to the right, to the front, to the head; H W D
rows and columns of a view, and the way from the eye.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from medseg_core.errors import MedsegError
from medseg_core.figures import INK, MUTED, save
from medseg_core.grid import Grid
from medseg_core.masks import components
from medseg_core.scene import MAX_FACES, VEILED, Style, figure_of, surfaces
from medseg_core.volume import Volume, resample
from medseg_near.shapes import box_of, part_of

PICTURES = "before_after"
STAYED, ADDED, REMOVED = (176, 182, 188), (0, 158, 115), (213, 74, 40)  # told apart by colour-blind eyes too
WHOLE = {"before": (86, 160, 211), "after": (86, 160, 211), "truth": (150, 130, 190)}
PANE_PIXELS = 220
MOST_VOXELS = 12_000_000  # of the volume that is looked through
LEVEL = 0.24  # between voxels: parts that touch at a corner, where it is a quarter, stay joined
BEHIND = 0.8  # how much a change covers of what lies before it
AMBIENT, FOG = 0.4, 0.4
LIGHT = np.array([-0.4, -0.3, -0.87])  # H W D: from above, from the left, from the eye
VIEWS = ("the front", "the left", "below")


def write_look(
    out: Path,
    case: str,
    before: np.ndarray,
    after: np.ndarray,
    affine: np.ndarray,
    *,
    truth: np.ndarray | None = None,
) -> Path:
    """Writes `out/before_after/<case>.png`: before | after | changes, and the truth where it is known.

    Args:
        before, after, truth: (X, Y, Z) bool.
        affine: (4, 4) index -> RAS+ mm.

    Raises:
        MedsegError: masks that do not lie on one grid, or a disk that refuses.
    """
    drawn = _draw(_sides_of(before, after, affine, truth), title=case)
    return save(drawn, Path(out) / PICTURES / f"{case}.png", dpi=110)


def scene_of(
    case: str,
    before: np.ndarray,
    after: np.ndarray,
    affine: np.ndarray,
    *,
    truth: np.ndarray | None = None,
    max_faces: int = MAX_FACES,
) -> dict[str, Any]:
    """A case in 3D for a report: what `dataclasses.replace` gives an `Evaluation`, its `scene` and the `worst` case.

    The views are Changes, Before, After, Truth, and Both: what came out within a veil of the truth, or, where that is
    not known, of what it was made from.

    Args:
        before, after, truth, affine: as for `write_look`.
        max_faces: of all surfaces together.

    Raises:
        MedsegError: masks that do not lie on one grid.
    """
    sides = _sides_of(before, after, affine, truth)
    names = dict(enumerate(sides.titles().values(), 1))
    meshes = {
        name: surfaces(mask.astype(np.uint8) * i, affine=sides.affine, max_faces=max_faces // len(names))
        for i, (name, mask) in enumerate(sides.masks.items(), 1)
    }
    views = {"Changes": {"stayed": VEILED, "added": Style(_rgb(ADDED)), "removed": Style(_rgb(REMOVED))}}
    views |= {name.capitalize(): {name: Style(_rgb(colour))} for name, colour in WHOLE.items() if name in meshes}
    views["Both"] = {"after": Style(_rgb(WHOLE["after"])), "before" if truth is None else "truth": VEILED}
    scene = figure_of(meshes, names, views)
    scene.update_layout(legend={"x": 1, "xanchor": "right"})  # beside the scene it would move it, by its width
    return {"scene": scene, "worst": case}


@dataclass(frozen=True, eq=False)
class _Sides:
    """What there is to see of a case.

    Args:
        masks: what it is -> (X, Y, Z) bool: before, after, stayed, added, removed, and truth where it is known; the
            box about all of them.
        affine: (4, 4) index in this box -> RAS+ mm.
    """

    masks: Mapping[str, np.ndarray]
    affine: np.ndarray

    def titles(self) -> dict[str, str]:
        """What it is -> the same with its number of parts, or its volume."""
        voxel_ml = abs(float(np.linalg.det(self.affine[:3, :3]))) / 1000
        told = {}
        for name, mask in self.masks.items():
            if name in WHOLE:
                num = int(components(mask).max(initial=0))
                told[name] = f"{name}: {num} part{'s' * (num != 1)}"
            else:
                told[name] = f"{name}: {int(mask.sum()) * voxel_ml:.3g} ml"
        return told


def _sides_of(before: np.ndarray, after: np.ndarray, affine: np.ndarray, truth: np.ndarray | None) -> _Sides:
    given = {"before": before, "after": after} | ({} if truth is None else {"truth": truth})
    grid = Grid(before.shape, affine)
    for name, mask in given.items():
        if mask.dtype != bool or mask.shape != grid.shape:
            said = f"{name} is {mask.dtype} {mask.shape} beside before, {before.dtype} {before.shape}"
            raise MedsegError(f"{said}; give bool masks of one grid")
    box = box_of(reduce(np.logical_or, given.values())) or (slice(0, 1),) * 3
    given = {name: mask[box] for name, mask in given.items()}
    before, after = given["before"], given["after"]
    changes = {"stayed": before & after, "added": after & ~before, "removed": before & ~after}
    return _Sides(given | changes, part_of(grid, box).affine)


def _draw(sides: _Sides, *, title: str = "") -> Figure:
    """Shaded from three sides of the patient, a row each; columns as `write_look` has them."""
    fields = _upright(sides)
    columns = ["before", "after", "changes", *(["truth"] if "truth" in fields else [])]
    rows = [_pictures({name: _faced(field, view) for name, field in fields.items()}) for view in VIEWS]
    heights = [row["changes"].shape[0] for row in rows]
    edge = 2.5 / max(row["changes"].shape[1] for row in rows)
    size = (0.4 + 2.5 * len(columns), min(1.0 + edge * sum(heights), 14.0))
    figure = Figure(figsize=size, layout="constrained")
    panes = figure.subplots(len(VIEWS), len(columns), squeeze=False, height_ratios=heights)
    for row, shown, view in zip(rows, panes, VIEWS, strict=True):
        for axes, column in zip(shown, columns, strict=True):
            axes.imshow(row[column])
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set_visible(False)
        shown[0].set_ylabel(f"from {view}", fontsize=9, color=MUTED)
    titles = {"changes": "changes", **sides.titles()}
    for axes, column in zip(panes[0], columns, strict=True):
        axes.set_title(titles[column], fontsize=10, color=INK)
    colours = {"stayed": STAYED, "added": ADDED, "removed": REMOVED}
    keys = [Patch(color=np.array(colour) / 255, label=titles[name]) for name, colour in colours.items()]
    figure.legend(handles=keys, loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    figure.suptitle(title, fontsize=11, color=INK, parse_math=False)
    return figure


def _upright(sides: _Sides) -> dict[str, np.ndarray]:
    """The whole masks with room around them, (R, A, S) float32 from 0 to 1, interpolated to cubes."""
    whole = [name for name in sides.masks if name in WHOLE]
    bits = sum(sides.masks[name].astype(np.uint8) << n for n, name in enumerate(whole))
    bits = np.pad(bits, 2)
    grid = Grid(bits.shape, sides.affine).oriented("RAS")  # how it is turned matters here, and not where it lies
    bits = resample(Volume(bits, sides.affine), grid, how="label").voxels
    extent_mm = np.array(grid.shape) * grid.spacing_mm
    edge_mm = min(*grid.spacing_mm, extent_mm.max() / PANE_PIXELS)
    edge_mm = max(edge_mm, (extent_mm.prod() / MOST_VOXELS) ** (1 / 3))
    size = np.maximum(np.rint(extent_mm / edge_mm), 2).astype(int)
    return {name: _stretched((bits >> n & 1).astype(np.float32), size) for n, name in enumerate(whole)}


def _stretched(field: np.ndarray, size: np.ndarray) -> np.ndarray:
    """Of another number of voxels in the same room, linear along each axis."""
    for axis, (n, old) in enumerate(zip(size.tolist(), field.shape, strict=True)):
        at = np.clip((np.arange(n) + 0.5) * old / n - 0.5, 0, old - 1)
        low = np.minimum(at.astype(int), old - 2)
        share = (at - low).astype(np.float32).reshape([-1 if i == axis else 1 for i in range(3)])
        field = field.take(low, axis) * (1 - share) + field.take(low + 1, axis) * share
    return field


def _faced(field_RAS: np.ndarray, view: str) -> np.ndarray:
    """(H, W, D), D away from the eye; the head is up, and the patient's right on the left, as radiologists look."""
    if view == "the front":
        return field_RAS.transpose(2, 0, 1)[::-1, ::-1, ::-1]
    if view == "the left":
        return field_RAS.transpose(2, 1, 0)[::-1, ::-1]
    return field_RAS.transpose(1, 0, 2)[::-1, ::-1]


def _pictures(fields: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """(H, W, 3) uint8 of each whole and of the changes, from fields (H, W, D)."""
    inside = {name: field > LEVEL for name, field in fields.items()}
    drawn = {name: _seen(field, inside[name], WHOLE[name])[1] for name, field in fields.items()}
    before, after = inside["before"], inside["after"]
    stayed_depth, picture = _seen(fields["after"], before & after, STAYED)
    added_depth, added = _seen(fields["after"], after & ~before, ADDED)
    removed_depth, removed = _seen(fields["before"], before & ~after, REMOVED)
    depth = np.minimum(added_depth, removed_depth)
    change = np.where((added_depth <= removed_depth)[..., None], added, removed)
    cover = np.where(np.isinf(depth), 0.0, np.where(depth <= stayed_depth, 1.0, BEHIND))[..., None]
    drawn["changes"] = picture * (1 - cover) + change * cover
    return {name: np.rint(values).astype(np.uint8) for name, values in drawn.items()}


def _seen(field: np.ndarray, inside: np.ndarray, colour: tuple[int, int, int]) -> tuple[np.ndarray, np.ndarray]:
    """What the eye meets first: its depth (H, W), inf where nothing is; and (H, W, 3), lit, in a haze, on white.

    Args:
        field: (H, W, D), whose slope says where a surface faces.
        inside: (H, W, D) bool.
    """
    first = inside.argmax(-1)
    rows, columns = np.nonzero(np.take_along_axis(inside, first[..., None], -1)[..., 0])
    at = np.stack([rows, columns, first[rows, columns]])
    slope = []
    for axis, n in enumerate(field.shape):
        ahead, behind = at.copy(), at.copy()
        ahead[axis], behind[axis] = np.minimum(at[axis] + 1, n - 1), np.maximum(at[axis] - 1, 0)
        slope.append(field[tuple(behind)] - field[tuple(ahead)])
    normal = np.array(slope) / np.maximum(np.linalg.norm(slope, axis=0), 1e-6)
    light = AMBIENT + (1 - AMBIENT) * np.clip(LIGHT @ normal, 0, 1)
    haze = FOG * at[2] / field.shape[2]
    depth = np.full(first.shape, np.inf)
    depth[rows, columns] = at[2]
    picture = np.full((*first.shape, 3), 255.0)
    picture[rows, columns] = ((1 - haze) * light)[:, None] * colour + 255 * haze[:, None]
    return depth, picture


def _rgb(colour: tuple[int, int, int]) -> str:
    return "rgb({},{},{})".format(*colour)
