"""An interactive 3D page part: the surfaces of a prediction and of its reference, within a budget of faces."""

import html
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

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
VIEWS = {"Prediction": ("prediction",), "Reference": ("reference",), "Both": ("prediction", "reference")}


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
    drawn = go.Figure()
    ids = [i for i in names if i > 0]
    for side, volume in (("prediction", mask), ("reference", label)):
        for surface in surfaces(volume, ids=ids, spacing=spacing, affine=affine, max_faces=max_faces // 2):
            drawn.add_trace(_trace(surface, names[surface.label_id], side))
    views = {name: _look(drawn.data, sides) for name, sides in VIEWS.items()}
    for n, trace in enumerate(drawn.data):
        trace.update({key: values[n] for key, values in views["Prediction"].items()})
    buttons = [{"label": name, "method": "restyle", "args": [look]} for name, look in views.items()]
    words = ("x", "y", "z") if affine is None else ("to the right", "to the front", "to the head")
    titles = {f"{name}axis": {"text": f"{word} ({unit})"} for name, word in zip("xyz", words, strict=True)}
    axis = {"showbackground": False, "gridcolor": "rgba(128,128,128,.25)", "zeroline": False, "nticks": 5}
    drawn.update_layout(
        scene={
            "aspectmode": "data",
            "camera": {"eye": {"x": 0.8, "y": 2.1, "z": 0.5}},
            **{name: {**axis, "title": title} for name, title in titles.items()},
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


def _look(traces: Sequence[go.Mesh3d], sides: Sequence[str]) -> dict[str, list[object]]:
    """What a view sets per trace: of both, the reference is a grey veil; each structure is in the legend once."""
    seen = [trace.meta in sides for trace in traces]
    groups = [trace.legendgroup if there else "" for trace, there in zip(traces, seen, strict=True)]
    veiled = [len(sides) > 1 and trace.meta == "reference" for trace in traces]
    return {
        "visible": seen,
        "opacity": [0.4 if veil else 1.0 for veil in veiled],
        "color": [VEIL if veil else _rgb(int(trace.legendgroup)) for trace, veil in zip(traces, veiled, strict=True)],
        "showlegend": [
            there and group not in groups[:n] for n, (there, group) in enumerate(zip(seen, groups, strict=True))
        ],
    }


def _rgb(label_id: int) -> str:
    return "rgb({},{},{})".format(*colour_of(label_id))
