"""An interactive 3D page part: the surfaces of a prediction and of its reference, within a budget of faces."""

import html
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import plotly.graph_objects as go
from zmesh import Mesher

from medseg_core.figures import colour_of

MAX_FACES = 120_000
MAX_VOXELS = 6_000_000
MIN_FACES = 60
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
    """Every structure of a label map as a surface, all in one pass (marching cubes of zmesh, quadric decimation).

    The faces are shared out by the square root of what a structure has, so small ones keep their form. Where decimation
    cannot reach the budget, the map is read at every 2nd, 3rd, ... voxel of its finest axis first.

    Args:
        mask: (X, Y, Z) integer ids, 0 is background.
        ids: those wanted; None takes all.
        spacing: per axis, used where `affine` is None.
        affine: (4, 4) index -> RAS+ mm.
        max_faces: for all structures together.

    Returns:
        In the order of the ids; a structure too small for the grid that the budget allows is left out.
    """
    affine = np.diag([*(spacing or (1.0, 1.0, 1.0)), 1.0]) if affine is None else np.asarray(affine, float)
    box = _box(mask)
    if box is None:
        return []
    lengths = np.linalg.norm(affine[:3, :3], axis=0)
    step = np.ones(3, int)
    while True:
        read = mask[tuple(slice(start, stop, int(by)) for (start, stop), by in zip(box, step, strict=True))]
        if read.size <= MAX_VOXELS:
            found = _mesh(read, ids, lengths * step, max_faces)
            if sum(len(surface.faces) for surface in found) <= max_faces:
                break
        step[np.argmin(lengths * step)] += 1
    to_index = np.array([start for start, _ in box], float)
    flipped = np.linalg.det(affine[:3, :3]) < 0
    placed = []
    for surface in found:
        index = surface.vertices / lengths + to_index
        vertices = (index @ affine[:3, :3].T + affine[:3, 3]).astype(np.float32)
        placed.append(Surface(surface.label_id, vertices, surface.faces[:, ::-1] if flipped else surface.faces))
    return placed


def _box(mask: np.ndarray) -> list[tuple[int, int]] | None:
    """Start and stop per axis of what is not background."""
    box = []
    for axis in range(3):
        filled = np.flatnonzero(mask.any(axis=tuple(i for i in range(3) if i != axis)))
        if not len(filled):
            return None
        box.append((int(filled[0]), int(filled[-1]) + 1))
    return box


def _mesh(read: np.ndarray, ids: Sequence[int] | None, lengths: np.ndarray, max_faces: int) -> list[Surface]:
    """Surfaces in mm from the centre of the first voxel read; one voxel of background around closes them."""
    closed = np.pad(read.astype(np.uint16), 1)
    mesher = Mesher(tuple(float(length) for length in lengths))
    mesher.mesh(closed)
    wanted = sorted(set(mesher.ids()) if ids is None else set(mesher.ids()) & set(ids))
    raw = {i: mesher.get(i, normals=False, reduction_factor=0) for i in wanted}
    total = sum(math.sqrt(len(mesh.faces)) for mesh in raw.values())
    for i, mesh in raw.items():
        share = max(MIN_FACES, max_faces * math.sqrt(len(mesh.faces)) / total)
        if len(mesh.faces) > share:
            factor = math.ceil(len(mesh.faces) / share)
            raw[i] = mesher.simplify(mesh, reduction_factor=factor, max_error=2 * float(lengths.max()), min_error=0)
    return [Surface(int(i), mesh.vertices - lengths.astype(np.float32), mesh.faces) for i, mesh in raw.items()]


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
            "camera": {"eye": {"x": 0.7, "y": 1.7, "z": 0.5}},
            **{name: {**axis, "title": title} for name, title in titles.items()},
        },
        updatemenus=[
            {"type": "buttons", "direction": "right", "buttons": buttons, "showactive": True,
             "x": 0, "y": 1.0, "xanchor": "left", "yanchor": "bottom", "pad": {"b": 6},
             "bgcolor": "rgba(128,128,128,.15)", "bordercolor": "rgba(128,128,128,.4)"}
        ],
        legend={"itemsizing": "constant", "groupclick": "togglegroup", "font": {"size": 11}},
        font={"color": "#7a8793", "size": 12},
        paper_bgcolor="rgba(0,0,0,0)",
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
        color="rgb({},{},{})".format(*colour_of(surface.label_id)),
        hovertemplate=f"<b>{said}</b><br>{side}<extra></extra>",
        lighting={"ambient": 0.55, "diffuse": 0.7, "specular": 0.15, "roughness": 0.7},
    )  # fmt: skip


def _look(traces: Sequence[go.Mesh3d], sides: Sequence[str]) -> dict[str, list[object]]:
    """What a view sets per trace: of both, the reference is a veil; each structure is in the legend once."""
    seen = [trace.meta in sides for trace in traces]
    groups = [trace.legendgroup if there else "" for trace, there in zip(traces, seen, strict=True)]
    return {
        "visible": seen,
        "opacity": [0.35 if len(sides) > 1 and trace.meta == "reference" else 1.0 for trace in traces],
        "showlegend": [
            there and group not in groups[:n] for n, (there, group) in enumerate(zip(seen, groups, strict=True))
        ],
    }
