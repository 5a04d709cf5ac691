"""Figures of a patient's report: bull's eye, strain over the cycle, contours at end-diastole and end-systole.

Every function returns a matplotlib `Figure` that no global state knows; `medseg_core.figures.save` writes it.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Colormap, Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Circle, Patch, Wedge
from matplotlib.ticker import MaxNLocator

from medseg_cardiac.orientation import Directions, Turn, upright
from medseg_cardiac.segments import NUM_SEGMENTS
from medseg_core.errors import MedsegError
from medseg_core.figures import ACCENT, GRID, INK, MUTED, WARN, plain

# on a grey picture; told apart also by those who see no red or no green (Okabe and Ito, 2008)
LINES = {"endo": "#e69f00", "epi": "#56b4e9"}
MORE_LINES = ("#e69f00", "#56b4e9", "#009e73", "#cc79a7")
REFERENCE = "#ffffff"
EDGE = "#9aa5af"
RINGS = ((1, 6, 0.75, 1.0), (7, 6, 0.5, 0.75), (13, 4, 0.25, 0.5))  # first id, how many, inner and outer radius
MOST_SLICES = 6
MARGIN_MM = 18.0
PANE_INCHES = 2.3


def line_colours(names: Sequence[str]) -> dict[str, str]:
    """Contour name -> colour: endo and epi have theirs."""
    others = [colour for colour in MORE_LINES if colour not in {LINES.get(name) for name in names}]
    unknown = [name for name in names if name not in LINES]
    return {name: LINES.get(name) or others[unknown.index(name) % len(others)] for name in names}


def bullseye(
    values: Sequence[float] | np.ndarray,
    *,
    title: str = "",
    unit: str = "%",
    limits: tuple[float, float] = (0.0, 100.0),
    decimals: int = 0,
    colours: str = "YlOrBr",
) -> Figure:
    """The 17 segments as rings, base outside and apex inside, septum left, anterior up; numbers in the cells.

    Args:
        values: (17,) of segments 1 to 17 in `unit`; nan is grey and hatched, "no data".
        limits: the ends of the colours; what lies beyond takes the end's colour, and its number stands as it is.
        colours: a matplotlib map whose lightness runs one way, such as YlOrBr, cividis or viridis_r.

    Raises:
        MedsegError: another number of values, or limits that are not low < high.
    """
    values = np.asarray(values, float)
    if values.shape != (NUM_SEGMENTS,):
        raise MedsegError(f"a bull's eye takes {NUM_SEGMENTS} values, not {values.shape}; put nan where there is none")
    if not -math.inf < limits[0] < limits[1] < math.inf:
        raise MedsegError(f"the limits {limits} of a bull's eye are no range; give low < high")
    figure = Figure(figsize=(5.0, 4.4), layout="constrained")
    axes = figure.subplots()
    scale, colour_map = Normalize(*limits, clip=True), colormaps[colours]
    for first, num, inner, outer in RINGS:
        for i in range(num):
            _cell(
                axes, first + i, values[first + i - 1], decimals, colour_map, scale,
                wedge=(inner, outer, 90 + 360 * i / num, 360 / num),
            )  # fmt: skip
    _cell(axes, NUM_SEGMENTS, values[-1], decimals, colour_map, scale, wedge=None)
    sides = {"anterior": (0, 1.09, 0), "inferior": (0, -1.09, 0), "septal": (-1.09, 0, 90), "lateral": (1.09, 0, 270)}
    for word, (x, y, turned) in sides.items():
        axes.text(x, y, word, ha="center", va="center", rotation=turned, fontsize=9, color=MUTED)
    axes.set(xlim=(-1.18, 1.18), ylim=(-1.18, 1.18), aspect="equal")
    axes.set_axis_off()
    axes.set_title(title, fontsize=11, color=INK, parse_math=False)
    if np.isfinite(values).any():
        bar = figure.colorbar(ScalarMappable(scale, colour_map), ax=axes, shrink=0.7, aspect=22, pad=0.02)
        bar.set_label(unit, color=MUTED, fontsize=9)
        bar.outline.set_visible(False)
        bar.ax.tick_params(length=0, labelsize=8.5, colors=MUTED)
    if not np.isfinite(values).all():
        key = [Patch(facecolor=GRID, edgecolor=MUTED, hatch="////", linewidth=0, label="no data")]
        legend = figure.legend(handles=key, loc="lower right", frameon=False, fontsize=8.5)
        legend.get_texts()[0].set_color(MUTED)
    return figure


def _cell(
    axes: Axes, segment: int, value: float, decimals: int, colours: Colormap, scale: Normalize,
    *, wedge: tuple[float, float, float, float] | None,
) -> None:  # fmt: skip
    """One segment: inner radius, outer radius, middle and width in degrees against the clock; None: the cap."""
    known = math.isfinite(value)
    face = colours(scale(value)) if known else GRID
    look = {"facecolor": face, "edgecolor": EDGE, "linewidth": 0.9}
    hatch = {"facecolor": "none", "edgecolor": EDGE, "hatch": "////", "linewidth": 0}
    if wedge is None:
        where, shapes = (0.0, 0.0), [Circle((0, 0), 0.25, **kind) for kind in (look, hatch)]
    else:
        inner, outer, middle, width = wedge
        radius, turn = (inner + outer) / 2, math.radians(middle)
        where = (radius * math.cos(turn), radius * math.sin(turn))
        span = (middle - width / 2, middle + width / 2)
        shapes = [Wedge((0, 0), outer, *span, width=outer - inner, **kind) for kind in (look, hatch)]
    for shape in shapes[: 1 if known else 2]:
        axes.add_patch(shape)
    ink = "white" if known and _lightness(face) < 0.5 else INK
    if known:
        number = f"{value:.{decimals}f}"
        axes.annotate(
            number, where, xytext=(0, -3.5), textcoords="offset points", ha="center", va="center",
            fontsize=11 if len(number) <= 3 else 9, color=ink,
        )  # fmt: skip
    axes.annotate(
        str(segment), where, xytext=(0, 7 if known else 0), textcoords="offset points", ha="center", va="center",
        fontsize=6.5, color=ink if known else MUTED, alpha=0.85,
        bbox=None if known else {"boxstyle": "round,pad=0.15", "facecolor": GRID, "edgecolor": "none"},
    )  # fmt: skip


def _lightness(colour: tuple[float, ...] | str) -> float:
    return float(np.dot(colour[:3], (0.299, 0.587, 0.114)))


def strain_curves(
    times_s: np.ndarray | None,
    curves: Mapping[str, np.ndarray],
    *,
    truth: Mapping[str, np.ndarray] | None = None,
    ed: int | None = None,
    es: int | None = None,
    title: str = "",
) -> Figure:
    """Strain over the cycle, in percent.

    Args:
        times_s: (T,) from the first frame; None counts frames.
        curves: name ("radial", "circumferential") -> (T,) Green-Lagrange strain, 0.1 for 10 %; nan leaves a gap.
        truth: the same names, dashed.
        ed, es: frames to mark.

    Raises:
        MedsegError: curves of different lengths, or none.
    """
    truth = truth or {}
    lengths = {name: len(values) for name, values in (*curves.items(), *((f"true {n}", v) for n, v in truth.items()))}
    if times_s is not None:
        lengths["times"] = len(times_s)
    if not curves or len(set(lengths.values())) > 1:
        raise MedsegError(f"strain curves of {lengths or 'no'} frames make no picture; give one value per frame")
    num = next(iter(lengths.values()))
    along = np.arange(num) if times_s is None else 1000 * np.asarray(times_s, float)
    figure = Figure(figsize=(6.4, 3.4), layout="constrained")
    axes = figure.subplots()
    plain(axes)
    axes.axhline(0, color=MUTED, linewidth=0.8)
    for i, name in enumerate(curves):
        colour = (ACCENT, WARN, "#5b8c5a", "#7a5c99")[i % 4]
        axes.plot(
            along, 100 * np.asarray(curves[name], float), color=colour, linewidth=2, label=name,
            marker="o", markersize=3 if num < 60 else 0,
        )  # fmt: skip
        if name in truth:
            axes.plot(
                along, 100 * np.asarray(truth[name], float), color=colour, linewidth=1.4, linestyle=(0, (4, 3)),
                label=f"{name}, true",
            )  # fmt: skip
    for word, frame in _marks(ed, es):
        axes.axvline(along[frame], color=MUTED, linewidth=1, linestyle=":")
        axes.annotate(
            word, (along[frame], 1), xycoords=("data", "axes fraction"), xytext=(0, 3), textcoords="offset points",
            ha="center", fontsize=9, color=INK,
        )  # fmt: skip
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set(ylabel="strain (%)", xlabel="frame" if times_s is None else "time (ms)")
    axes.set_title(title, fontsize=10, color=INK, loc="left", parse_math=False, pad=16)
    legend = figure.legend(loc="outside lower center", ncols=4, frameon=False, fontsize=8.5)
    for text in legend.get_texts():
        text.set(parse_math=False, color=MUTED)
    return figure


def _marks(ed: int | None, es: int | None) -> list[tuple[str, int]]:
    """What to write over which frame; one mark where both are the same."""
    if ed is not None and ed == es:
        return [("ED = ES", ed)]
    return [(word, frame) for word, frame in (("ED", ed), ("ES", es)) if frame is not None]


@dataclass(frozen=True, eq=False)
class Tracked:
    """One slice of a contour sheet: two frames (H, W) and contours (P, 2) of them by name, in pixels (h, w)."""

    name: str
    ed: np.ndarray
    es: np.ndarray
    ed_contours: Mapping[str, np.ndarray]
    es_contours: Mapping[str, np.ndarray]
    ed_reference: Mapping[str, np.ndarray] = field(default_factory=dict)
    es_reference: Mapping[str, np.ndarray] = field(default_factory=dict)


def contour_sheet(
    slices: Sequence[Tracked],
    *,
    spacing_mm: tuple[float, float] = (1.0, 1.0),
    directions: Directions | None = None,
    title: str = "",
) -> Figure:
    """Slices side by side: above at ED with its contours, below at ES with those propagated to it.

    References are dashed and white. With directions the septum is on the left and anterior up, as nearly as quarter
    turns can; without, array axis 0 runs down. Of more than six slices six are shown, evenly spaced, and the title says
    so.

    Raises:
        MedsegError: no slices.
    """
    if not slices:
        raise MedsegError("a contour sheet of no slices; give at least one with contours")
    shown = [slices[i] for i in np.unique(np.linspace(0, len(slices) - 1, MOST_SLICES).round().astype(int))]
    turn = upright(directions)
    names = list(dict.fromkeys(name for one in shown for name in (*one.ed_contours, *one.es_contours)))
    colours = line_colours(names)
    boxes = [
        box_about([*one.ed_contours.values(), *one.es_contours.values()], one.ed.shape, spacing_mm) for one in shown
    ]
    figure = Figure(
        figsize=(max(4.6, 0.35 + PANE_INCHES * len(shown)), 0.9 + 2 * PANE_INCHES * _tallest(boxes, turn, spacing_mm)),
        layout="constrained",
    )
    panes = figure.subplots(2, len(shown), squeeze=False)
    for one, box, column in zip(shown, boxes, panes.T, strict=True):
        _pane(column[0], one.ed, one.ed_contours, one.ed_reference, colours, turn, box, spacing_mm)
        _pane(column[1], one.es, one.es_contours, one.es_reference, colours, turn, box, spacing_mm)
        column[0].set_title(one.name, fontsize=10, color=INK, parse_math=False)
    for axes, word in zip(panes[:, 0], ("ED", "ES"), strict=True):
        axes.set_ylabel(word, fontsize=11, color=INK, rotation=0, labelpad=14, va="center")
    keys = [Line2D([], [], color=colours[name], linewidth=2, label=name) for name in names]
    if any(one.ed_reference or one.es_reference for one in shown):
        keys.append(
            Line2D([], [], color=MUTED, linewidth=1.4, linestyle=(0, (3, 2)), label="reference (white, dashed)")
        )
    legend = figure.legend(handles=keys, loc="outside lower center", ncols=5, frameon=False, fontsize=9)
    for text in legend.get_texts():
        text.set(parse_math=False, color=MUTED)
    some = f"{len(shown)} of {len(slices)} slices" if len(shown) < len(slices) else ""
    if title or some:
        heading = "   ".join(part for part in (title, some) if part)
        figure.suptitle(heading, fontsize=11, color=INK, parse_math=False)
    return figure


def box_about(
    contours: Sequence[np.ndarray], shape: tuple[int, int], spacing_mm: tuple[float, float]
) -> tuple[slice, slice]:
    """The part of a plane within 18 mm of the contours; all of it without contours."""
    points = np.concatenate([np.reshape(contour, (-1, 2)) for contour in contours]) if contours else np.zeros((0, 2))
    points = points[np.isfinite(points).all(axis=1)]
    if not len(points):
        return slice(0, shape[0]), slice(0, shape[1])
    margin = MARGIN_MM / np.asarray(spacing_mm)
    low = np.clip(np.floor(points.min(axis=0) - margin), 0, np.array(shape) - 1).astype(int)
    high = np.clip(np.ceil(points.max(axis=0) + margin) + 1, low + 1, shape).astype(int)
    return slice(low[0], high[0]), slice(low[1], high[1])


def _tallest(boxes: Sequence[tuple[slice, slice]], turn: Turn, spacing_mm: tuple[float, float]) -> float:
    """Height over width of the tallest of these parts of a plane, as drawn, within a half and two."""
    sizes = (
        turn.spacing(tuple((b.stop - b.start) * mm for b, mm in zip(box, spacing_mm, strict=True))) for box in boxes
    )
    return min(2.0, max(0.5, *(down / right for down, right in sizes)))


def _pane(
    axes: Axes, frame: np.ndarray, contours: Mapping[str, np.ndarray], reference: Mapping[str, np.ndarray],
    colours: Mapping[str, str], turn: Turn, box: tuple[slice, slice], spacing_mm: tuple[float, float],
) -> None:  # fmt: skip
    part = np.nan_to_num(np.asarray(frame[box], float))
    low, high = np.percentile(part, (1, 99.5))
    down, right = turn.spacing(spacing_mm)
    axes.imshow(turn.plane(part), cmap="gray", vmin=low, vmax=max(high, low + 1e-6), aspect=down / right)
    for lines, style in ((contours, "-"), (reference, (0, (3, 2)))):
        for name, points in lines.items():
            closed = np.concatenate([points, points[:1]]) - (box[0].start, box[1].start)
            at = turn.points(closed, part.shape)
            colour = colours[name] if lines is contours else REFERENCE
            axes.plot(at[:, 1], at[:, 0], color=colour, linewidth=1.8 if lines is contours else 1.1, linestyle=style)
    axes.set(xticks=[], yticks=[], xlim=(-0.5, turn.plane(part).shape[1] - 0.5))
    axes.set_ylim(turn.plane(part).shape[0] - 0.5, -0.5)
    axes.set_anchor("N")
    axes.spines[:].set_visible(False)
