"""An interactive 3D page part: the surfaces of a prediction and of its reference, within a budget of faces."""

import html
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import plotly.graph_objects as go
from zmesh import Mesher

from medseg_core.colours import colour_of

MAX_FACES = 120_000
MAX_VOXELS = 6_000_000
MIN_FACES = 60
VEIL = "rgb(150,150,150)"
# What plotly is told wherever a figure is shown: its "Share chart" button would upload the patient's surfaces.
CONFIG = {"displaylogo": False, "responsive": True, "showSendToCloud": False, "plotlyServerURL": ""}


@dataclass(frozen=True)
class Style:
    """How a view shows the surfaces of a side.

    Args:
        colour: "rgb(r,g,b)"; "" is that of each structure.
        opacity: 0 to 1.
    """

    colour: str = ""
    opacity: float = 1.0


VEILED = Style(VEIL, 0.4)
VIEWS: Mapping[str, Mapping[str, Style]] = {
    "Prediction": {"prediction": Style()},
    "Reference": {"reference": Style()},
    "Both": {"prediction": Style(), "reference": VEILED},
}


@dataclass(frozen=True, eq=False)
class Surface:
    """A closed triangle mesh of one structure.

    vertices: (V, 3) float32 in mm, RAS+ where the affine is known.
    faces: (F, 3) vertex numbers, counter-clockwise seen from outside.
    """

    label_id: int
    vertices: np.ndarray
    faces: np.ndarray


def surfaces(
    mask: np.ndarray,
    *,
    ids: Sequence[int] | None = None,
    spacing: Sequence[float] | None = None,
    affine: np.ndarray | None = None,
    max_faces: int = MAX_FACES,
) -> list[Surface]:
    """Every structure of a label map as a surface, all in one pass (multi-label marching cubes of zmesh).

    The faces are shared out by the square root of what a structure has, so small ones keep their form; a surface with
    too many is thinned by merging the vertices that fall into one cell of a lattice (Rossignac and Borrel, 1993). It is
    used instead of zmesh's quadric decimation, which does not return on some meshes (1.15).

    Args:
        mask: (X, Y, Z) integer ids, 0 is background. Above 6 million voxels every 2nd, 3rd, ... is read.
        ids: those wanted; None takes all.
        spacing: per axis, used where `affine` is None.
        affine: (4, 4) index -> RAS+ mm.
        max_faces: for all structures together.

    Returns:
        In the order of the ids.
    """
    affine = np.diag([*(spacing or (1.0, 1.0, 1.0)), 1.0]) if affine is None else np.asarray(affine, float)
    box = _box(mask)
    lengths = np.linalg.norm(affine[:3, :3], axis=0)
    step = np.ones(3, int)
    while np.prod([-(-(stop - start) // by) for (start, stop), by in zip(box, step, strict=True)]) > MAX_VOXELS:
        step[np.argmin(lengths * step)] += 1
    read = mask[tuple(slice(start, stop, int(by)) for (start, stop), by in zip(box, step, strict=True))]
    to_index = np.array([start for start, _ in box], float)
    flipped = np.linalg.det(affine[:3, :3]) < 0
    placed = []
    for surface in _mesh(read, ids, lengths * step, max_faces):
        index = surface.vertices / lengths + to_index
        vertices = (index @ affine[:3, :3].T + affine[:3, 3]).astype(np.float32)
        placed.append(Surface(surface.label_id, vertices, surface.faces[:, ::-1] if flipped else surface.faces))
    return placed


def _box(mask: np.ndarray) -> list[tuple[int, int]]:
    """Start and stop per axis of what is not background; of one voxel where all is."""
    box = []
    for axis in range(3):
        filled = np.flatnonzero(mask.any(axis=tuple(i for i in range(3) if i != axis)))
        box.append((int(filled[0]), int(filled[-1]) + 1) if len(filled) else (0, 1))
    return box


def _mesh(read: np.ndarray, ids: Sequence[int] | None, lengths: np.ndarray, max_faces: int) -> list[Surface]:
    """Surfaces in mm from the centre of the first voxel read; one voxel of background around closes them."""
    mesher = Mesher(tuple(float(length) for length in lengths))
    mesher.mesh(np.pad(read.astype(np.uint16), 1))
    wanted = sorted(set(mesher.ids()) if ids is None else set(mesher.ids()) & set(ids))
    raw = {i: mesher.get(i, normals=False, reduction_factor=0) for i in wanted}
    total = sum(math.sqrt(len(mesh.faces)) for mesh in raw.values())
    found = []
    for i, mesh in raw.items():
        share = max_faces * math.sqrt(len(mesh.faces)) / total
        vertices, faces = mesh.vertices - lengths, mesh.faces
        cell = float(np.cbrt(np.prod(lengths))) * math.sqrt(len(faces) / share)
        while len(faces) > share:
            vertices, faces = _merged(mesh.vertices - lengths, mesh.faces, cell)
            cell *= 1.15
        if len(faces):
            found.append(Surface(int(i), vertices, faces))
    return found


def _merged(vertices: np.ndarray, faces: np.ndarray, cell: float) -> tuple[np.ndarray, np.ndarray]:
    """Vertices that share a lattice cell become their mean; faces that lose a corner or repeat another are dropped."""
    place = np.floor((vertices - vertices.min(axis=0)) / cell).astype(np.int64)
    size = place.max(axis=0) + 1
    _, number = np.unique((place[:, 0] * size[1] + place[:, 1]) * size[2] + place[:, 2], return_inverse=True)
    counts = np.bincount(number)
    means = np.stack([np.bincount(number, weights=vertices[:, axis]) / counts for axis in range(3)], axis=1)
    faces = number[faces]
    a, b, c = faces.T
    faces = faces[(a != b) & (b != c) & (c != a)]
    _, first = np.unique(np.sort(faces, axis=1), axis=0, return_index=True)
    used, faces = np.unique(faces[np.sort(first)], return_inverse=True)
    return means[used], faces.reshape(-1, 3)


def figure(
    mask: np.ndarray,
    label: np.ndarray,
    names: Mapping[int, str],
    *,
    spacing: Sequence[float] | None = None,
    affine: np.ndarray | None = None,
    unit: str = "mm",
    max_faces: int = MAX_FACES,
) -> go.Figure:
    """Prediction and reference as a plotly figure: three views, a name on hover, structures to click away.

    Show it with `figure.show(config=CONFIG)`, or plotly offers to upload it.

    Args:
        mask, label: (X, Y, Z) integer ids; only the ids in `names` are shown.
        max_faces: for both together; plotly stores about 17 bytes per face.
    """
    ids = [i for i in names if i > 0]
    how: dict[str, Any] = {"ids": ids, "spacing": spacing, "affine": affine, "max_faces": max_faces // 2}
    sides = {side: surfaces(volume, **how) for side, volume in (("prediction", mask), ("reference", label))}
    return figure_of(sides, names, VIEWS, in_patient=affine is not None, unit=unit)


def figure_of(
    sides: Mapping[str, Sequence[Surface]],
    names: Mapping[int, str],
    views: Mapping[str, Mapping[str, Style]],
    *,
    in_patient: bool = True,
    unit: str = "mm",
) -> go.Figure:
    """Surfaces as a plotly figure with a button for each view; it opens on the first.

    Args:
        sides: the surfaces, by what they are of. Those of one id share an entry in the legend.
        names: id -> name of a structure.
        views: name -> the sides that are seen, and how.
        in_patient: whether the axes are R, A, S, or those of an array.
    """
    drawn = go.Figure([_trace(one, names[one.label_id], side) for side, found in sides.items() for one in found])
    looks = {name: _look(drawn.data, styles) for name, styles in views.items()}
    first = next(iter(looks.values()))
    for n, trace in enumerate(drawn.data):
        trace.update({key: values[n] for key, values in first.items()})
    buttons = [{"label": name, "method": "restyle", "args": [look]} for name, look in looks.items()]
    words = ("x", "y", "z") if not in_patient else ("to the right", "to the front", "to the head")
    ranges, aspect = _room([one.vertices for found in sides.values() for one in found])
    axis = {"showbackground": False, "gridcolor": "rgba(128,128,128,.25)", "zeroline": False, "nticks": 5}
    drawn.update_layout(
        scene={
            **aspect,
            "camera": {"eye": {"x": 0.8, "y": 2.1, "z": 0.5}},
            **{
                f"{name}axis": {**axis, "title": {"text": f"{word} ({unit})"}, "range": span}
                for name, word, span in zip("xyz", words, ranges, strict=True)
            },
        },
        updatemenus=[
            {"type": "buttons", "direction": "right", "buttons": buttons, "showactive": True,
             "x": 0, "y": 1.0, "xanchor": "left", "yanchor": "bottom", "pad": {"b": 6},
             "bgcolor": "rgba(128,128,128,.15)", "bordercolor": "rgba(128,128,128,.4)"}
        ],
        legend={"itemsizing": "constant", "groupclick": "togglegroup", "tracegroupgap": 0, "font": {"size": 11}},
        font={"color": "#7a8793", "size": 12},
        paper_bgcolor="rgba(0,0,0,0)",
        modebar={"bgcolor": "rgba(0,0,0,0)", "color": "#7a8793", "activecolor": "#2f6f9f"},
        margin={"l": 0, "r": 0, "t": 44, "b": 0},
        height=640,
    )  # fmt: skip
    return drawn


def _room(vertices: Sequence[np.ndarray]) -> tuple[list[list[float] | None], dict[str, Any]]:
    """Ranges of the axes around all that any view shows, and their proportions: nothing may move between views.

    By itself plotly takes the proportions of what is visible, also where the ranges are given.
    """
    if not vertices:
        return [None] * 3, {"aspectmode": "data"}
    low = np.min([each.min(axis=0) for each in vertices], axis=0).astype(float)
    high = np.max([each.max(axis=0) for each in vertices], axis=0).astype(float)
    margin = 0.02 * (high - low)
    ratio = (high - low) / np.cbrt(np.prod(high - low))
    ranges = np.stack([low - margin, high + margin], 1).tolist()
    return ranges, {"aspectmode": "manual", "aspectratio": dict(zip("xyz", ratio.tolist(), strict=True))}


def _trace(surface: Surface, name: str, side: str) -> go.Mesh3d:
    small = np.uint16 if len(surface.vertices) < 2**16 else np.uint32
    x, y, z = np.ascontiguousarray(surface.vertices.T)
    i, j, k = np.ascontiguousarray(surface.faces.T.astype(small))
    said = html.escape(name)
    return go.Mesh3d(
        x=x, y=y, z=z, i=i, j=j, k=k,
        name=said, meta=side, legendgroup=str(surface.label_id),
        hovertemplate=f"<b>{said}</b><br>{side}<extra></extra>",
        lighting={"ambient": 0.5, "diffuse": 0.75, "specular": 0.15, "roughness": 0.7},
        lightposition={"x": 20_000, "y": 100_000, "z": 60_000},
    )  # fmt: skip


def _look(traces: Sequence[go.Mesh3d], styles: Mapping[str, Style]) -> dict[str, list[object]]:
    """What a view sets per trace; each structure is in the legend once."""
    seen = [trace.meta in styles for trace in traces]
    groups = [trace.legendgroup if there else "" for trace, there in zip(traces, seen, strict=True)]
    shown = [styles.get(trace.meta, Style()) for trace in traces]
    return {
        "visible": seen,
        "opacity": [style.opacity for style in shown],
        "color": [style.colour or _rgb(int(trace.legendgroup)) for style, trace in zip(shown, traces, strict=True)],
        "showlegend": [
            there and group not in groups[:n] for n, (there, group) in enumerate(zip(seen, groups, strict=True))
        ],
    }


def _rgb(label_id: int) -> str:
    return "rgb({},{},{})".format(*colour_of(label_id))
