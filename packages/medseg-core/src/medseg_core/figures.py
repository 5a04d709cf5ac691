"""Pictures of an evaluation and of a training: colours, overlays, distributions, ranking, curves.

Every function returns a matplotlib `Figure` that no global state knows (no pyplot: nothing to close, safe in threads).
Names of cases and structures are printed as they are: a `$` starts no formula.
"""

import logging
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator, StrMethodFormatter

from medseg_core.colours import colour_of, colour_table
from medseg_core.errors import MedsegError
from medseg_core.io import replacing

log = logging.getLogger(__name__)

CT_WINDOW_HU = (-160.0, 240.0)
INK, MUTED, GRID, ACCENT, WARN = "#1f2933", "#66727f", "#e4e8ec", "#2f6f9f", "#c2571a"
VOXELWISE = ("sensitivity", "specificity", "precision")
LEGEND_ENTRIES = 12
PANE_INCHES = 3.6


def save(figure: Figure, path: Path, *, dpi: int = 140) -> Path:
    """Write the figure (type by suffix: .png, .pdf, .svg), whole or not at all."""
    with replacing(Path(path)) as beside:
        figure.savefig(beside, dpi=dpi)
    return Path(path)


def save_if_possible(figure: Figure, path: Path, *, dpi: int = 140) -> None:
    """As `save`; but a picture beside other work is not worth that work, so a disk that refuses costs a warning."""
    try:
        save(figure, path, dpi=dpi)
    except MedsegError as error:
        log.warning("%s", error)


def detection(rows: Sequence[Mapping[str, Any]], *, measure: str = "dice") -> Figure:
    """Share of the reference's structures found at Dice above .5 to .9.

    Args:
        rows: those of `Evaluation.rows`; invented structures are not in the reference and do not count here.
    """
    shares = detection_rates(rows, measure=measure)
    figure = Figure(figsize=(6.0, 3.0), layout="constrained")
    axes = figure.subplots()
    bars = axes.bar(
        [f"> {at:.1f}" for at in shares], [100 * share for share in shares.values()], width=0.62, color=ACCENT
    )
    axes.bar_label(bars, fmt="%.0f %%", padding=3, color=INK, fontsize=10)
    axes.set(ylim=(0, 112), yticks=range(0, 101, 25), ylabel="% of structures", xlabel=measure.capitalize())
    plain(axes)
    return figure


def detection_rates(rows: Sequence[Mapping[str, Any]], *, measure: str = "dice") -> dict[float, float]:
    """Threshold -> share of (case, structure) pairs of the reference whose measure lies above it; nan without any."""
    values = np.array([row[measure] for row in rows if row["status"] in ("both", "missed")], float)
    return {at: float((values > at).mean()) if len(values) else math.nan for at in (0.5, 0.6, 0.7, 0.8, 0.9)}


def distributions(rows: Sequence[Mapping[str, Any]], measures: Sequence[str]) -> Figure:
    """One histogram per measure over all (case, structure) rows that have it, with the median marked."""
    columns = 3 if len(measures) in (3, 5, 6) else min(4, len(measures))
    lines = math.ceil(len(measures) / columns)
    figure = Figure(figsize=(3.0 * columns, 2.2 * lines), layout="constrained")
    panes = figure.subplots(lines, columns, squeeze=False).ravel()
    for axes, measure in zip(panes, measures, strict=False):
        values = np.array([row.get(measure, math.nan) for row in rows], float)
        values = values[np.isfinite(values)]
        plain(axes)
        told = f"n {len(values)}   median {np.median(values):.3g}" if len(values) else ""
        axes.set_title(f"{title_of(measure)}", fontsize=10, color=INK, loc="left", parse_math=False)
        axes.set_title(told, fontsize=8.5, color=MUTED, loc="right")
        if not len(values):
            axes.text(0.5, 0.5, "no value", ha="center", color=MUTED, transform=axes.transAxes)
            continue
        bins = np.linspace(0, 1, 21) if values.min() >= 0 and 0.25 < values.max() <= 1 else 20
        axes.hist(values, bins=bins, color=ACCENT, alpha=0.85)
        axes.yaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
        axes.axvline(float(np.median(values)), color=WARN, linewidth=1.4)
    for axes in panes[len(measures) :]:
        axes.set_axis_off()
    return figure


def ranking(
    summary: Sequence[Mapping[str, Any]], *, measure: str = "dice", groups: Mapping[str, str] | None = None
) -> Figure:
    """Structures by their mean, best on top, with the interval over cases; tall enough to read a hundred names.

    Args:
        summary: what `Evaluation.summary` returns.
        groups: structure -> group, told by colour.
    """
    bars = [row for row in summary if row["kind"] == "structure" and row["measure"] == measure and row["n"]]
    bars = sorted(bars, key=lambda row: (row["mean"], row["name"]))
    group = {row["name"]: (groups or {}).get(row["name"], "") for row in bars}
    colours = {name: _hex(n + 1) for n, name in enumerate(sorted(set(group.values()) - {""}))}
    figure = Figure(figsize=(7.6, 1.1 + 0.19 * max(4, len(bars))), layout="constrained")
    axes = figure.subplots()
    places = np.arange(len(bars))
    means = np.array([row["mean"] for row in bars], float)
    axes.barh(places, means, height=0.68, color=[colours.get(group[row["name"]], ACCENT) for row in bars])
    ends = means.copy()
    for place, row in zip(places, bars, strict=True):
        if math.isfinite(row["low"]):
            axes.plot([row["low"], row["high"]], [place, place], color=INK, linewidth=1.1, solid_capstyle="butt")
            ends[place] = max(ends[place], row["high"])
    span = max([1.0, *ends]) if len(ends) and ends.min() >= 0 and ends.max() <= 1 else float(np.max(ends, initial=1e-9))
    for place, row in zip(places, bars, strict=True):
        axes.text(ends[place] + 0.012 * span, place, _told(row), va="center", fontsize=7.5, color=MUTED)
    axes.set_yticks(places, [row["name"] for row in bars], fontsize=8)
    _literal(axes.get_yticklabels())
    axes.set(ylim=(-0.7, len(bars) - 0.3), xlim=(min(0.0, *means, 0.0), 1.24 * span))
    axes.set_xlabel(f"mean {title_of(measure)}, line: 95 % interval over cases", fontsize=9, parse_math=False)
    if span == 1.0:
        axes.set_xticks(np.linspace(0, 1, 6))
    plain(axes, grid="x")
    if colours:
        keys = [Patch(color=colour, label=name) for name, colour in colours.items()]
        legend = figure.legend(handles=keys, loc="outside upper left", ncols=4, frameon=False, fontsize=8.5)
        _literal(legend.get_texts())
    return figure


def differences(entries: Sequence[Mapping[str, Any]], *, measure: str) -> Figure:
    """Paired differences of structures, largest on top, with their intervals; what holds 0 is grey.

    Args:
        entries: of one measure, from `Evaluation.comparison`.
    """
    bars = sorted(entries, key=lambda entry: (entry["difference"], entry["name"]))
    figure = Figure(figsize=(7.6, 1.1 + 0.19 * max(4, len(bars))), layout="constrained")
    axes = figure.subplots()
    axes.axvline(0, color=MUTED, linewidth=0.8)
    for place, entry in enumerate(bars):
        low, high = entry["low"], entry["high"]
        colour = MUTED if not low * high > 0 else ACCENT if low > 0 else WARN
        if math.isfinite(low):
            axes.plot([low, high], [place, place], color=colour, linewidth=1.4, solid_capstyle="butt")
        axes.plot([entry["difference"]], [place], color=colour, marker="o", markersize=4)
    axes.set_yticks(np.arange(len(bars)), [entry["name"] for entry in bars], fontsize=8)
    _literal(axes.get_yticklabels())
    axes.set_ylim(-0.7, len(bars) - 0.3)
    axes.set_xlabel(f"difference of {title_of(measure)}, line: 95 % interval over cases", fontsize=9, parse_math=False)
    plain(axes, grid="x")
    return figure


def _told(row: Mapping[str, Any]) -> str:
    words = [f"{row['mean']:.3f}" if abs(row["mean"]) <= 1 else f"{row['mean']:.3g}", f"n {row['n']}"]
    words += [f"{row[key]} {word}" for key, word in (("n_missed", "missed"), ("n_invented", "invented")) if row[key]]
    return "  ".join(words)


def overlay(
    label: np.ndarray,
    mask: np.ndarray,
    names: Mapping[int, str],
    *,
    image: np.ndarray | None = None,
    window: tuple[float, float] | None = None,
    spacing: Sequence[float] | None = None,
    affine: np.ndarray | None = None,
    title: str = "",
) -> Figure:
    """Image | label | mask of the slice with the most label voxels, and a legend of its largest structures.

    Args:
        label, mask: (X, Y, Z) or (H, W) ids; only the ids in `names` are drawn.
        image: the same shape, or (H, W, 3); None leaves its pane out.
        window: intensities from black to white; None takes the 1st and 99th percentile of the slice.
        spacing: per axis, for the aspect of the pixels.
        affine: index -> RAS+ mm; given one, the patient's right or front is on the left of the picture, and says so.
    """
    spacing = tuple(spacing) if spacing is not None else (1.0,) * label.ndim
    known = np.zeros(1 + max(names, default=0), bool)
    known[[i for i in names if i > 0]] = True
    volumes = [label, mask] if image is None else [label, mask, image]
    words, edges, aspect = "", ("", ""), spacing[0] / spacing[1]
    if label.ndim == 3:
        volumes, words, edges, aspect = _slice(volumes, known, spacing, affine)
    label, mask = (np.where(_among(ids, known), ids, 0).astype(np.int64) for ids in volumes[:2])
    ground = None if image is None else _grey(volumes[2], window)
    panes = [("label", _painted(label, ground)), ("mask", _painted(mask, ground))]
    panes = panes if ground is None else [("image", ground), *panes]
    shown = _largest(label, mask)
    height = PANE_INCHES * min(1.6, max(0.4, label.shape[0] * aspect / label.shape[1]))
    figure = Figure(
        figsize=(PANE_INCHES * len(panes), height + 0.55 + 0.2 * math.ceil(len(shown) / 4)), layout="constrained"
    )
    for (name, pixels), axes in zip(panes, figure.subplots(1, len(panes)), strict=True):
        axes.imshow(pixels, aspect=aspect, interpolation="nearest")
        axes.set_title(name, fontsize=10, color=INK)
        axes.set_axis_off()
        for text, place in zip(edges, ((0.02, 0.5), (0.5, 0.97)), strict=True):
            axes.text(*place, text, color="white", fontsize=9, va="center", ha="center", transform=axes.transAxes)
    figure.suptitle("   ".join(part for part in (title, words) if part), fontsize=10, color=MUTED, parse_math=False)
    _name_colours(figure, shown, names, columns=4)
    return figure


def _slice(
    volumes: Sequence[np.ndarray], known: np.ndarray, spacing: Sequence[float], affine: np.ndarray | None
) -> tuple[list[np.ndarray], str, tuple[str, str], float]:
    """The pictures (rows, columns) of the fullest slice; what it is; what lies left and on top; the pixels' aspect."""
    order = np.array([[0, 1], [1, 1], [2, 1]]) if affine is None else nib.orientations.io_orientation(affine)
    volumes = [nib.orientations.apply_orientation(volume, order) for volume in volumes]
    spacing = [spacing[int(i)] for i in np.argsort(order[:, 0])]
    shape = volumes[0].shape
    thick = [i for i in range(3) if shape[i] == 1 or spacing[i] > 2 * np.median(spacing)]
    across = thick[0] if thick else 2
    rows_axis, columns_axis = (i for i in (2, 1, 0) if i != across)
    label, mask = (
        [np.count_nonzero(_among(ids, known)) for ids in np.moveaxis(volume, across, 0)] for volume in volumes[:2]
    )
    filled = label if any(label) else mask
    place = int(np.argmax(filled)) if any(filled) else shape[across] // 2
    pictures = [np.moveaxis(volume, across, 0)[place].T[::-1] for volume in volumes]
    aspect = spacing[rows_axis] / spacing[columns_axis]
    if affine is None:
        return pictures, f"slice {place + 1} of {shape[across]}", ("", ""), aspect
    word = ("sagittal", "coronal", "axial")[across]
    return (
        [picture[:, ::-1] for picture in pictures],
        f"{word} slice {place + 1} of {shape[across]}",
        ("RAS"[columns_axis], "RAS"[rows_axis]),
        aspect,
    )


def _grey(picture: np.ndarray, window: tuple[float, float] | None) -> np.ndarray:
    """(H, W, 3) in 0..1."""
    picture = np.nan_to_num(picture.astype(np.float32))
    low, high = window or np.percentile(picture, (1, 99))
    grey = np.clip((picture - low) / max(high - low, 1e-6), 0, 1)
    return grey[..., :3] if grey.ndim == 3 else np.repeat(grey[..., None], 3, axis=-1)


def _among(ids: np.ndarray, known: np.ndarray) -> np.ndarray:
    ids = ids.astype(np.intp)
    return known[np.clip(ids, 0, len(known) - 1)] & (ids < len(known))


def _painted(ids: np.ndarray, ground: np.ndarray | None) -> np.ndarray:
    colours = colour_table(np.unique(ids))[ids] / 255.0
    strength = np.where(ids > 0, 0.6 if ground is not None else 1.0, 0.0)[..., None]
    return (np.zeros_like(colours) if ground is None else ground) * (1 - strength) + colours * strength


def _largest(label: np.ndarray, mask: np.ndarray) -> list[int]:
    sizes = np.bincount(label.ravel(), minlength=int(mask.max(initial=0)) + 1)
    sizes = np.maximum(sizes, np.bincount(mask.ravel(), minlength=len(sizes)))
    ranked = sorted((i for i in range(1, len(sizes)) if sizes[i]), key=lambda i: (-sizes[i], i))
    return ranked[:LEGEND_ENTRIES]


def _name_colours(figure: Figure, ids: Sequence[int], names: Mapping[int, str], *, columns: int) -> None:
    keys = [Patch(color=_hex(i), label=names[i]) for i in ids]
    if keys:
        columns = min(columns, len(keys))
        legend = figure.legend(handles=keys, loc="outside lower center", ncols=columns, frameon=False, fontsize=8)
        _literal(legend.get_texts())


def sheet(images: np.ndarray, labels: np.ndarray, names: Mapping[int, str]) -> Figure:
    """Small pictures side by side with their labels in colour, and a legend: what a network is shown.

    Args:
        images: (N, H, W) intensities in [0, 1].
        labels: (N, H, W) ids; only those in `names` are drawn.
    """
    ids = np.where(np.isin(labels, [i for i in names if i > 0]), labels, 0).astype(np.int64)
    shown = _largest(ids, ids)
    columns = min(4, len(images))
    rows = math.ceil(len(images) / columns)
    figure = Figure(figsize=(2.2 * columns, 2.2 * rows + 0.2 * math.ceil(len(shown) / columns)), layout="constrained")
    for axes in figure.subplots(rows, columns, squeeze=False).flat:
        axes.set_axis_off()
    for image, label, axes in zip(images, ids, figure.axes, strict=False):
        axes.imshow(_painted(label, _grey(image, (0.0, 1.0))), interpolation="nearest")
    _name_colours(figure, shown, names, columns=columns)
    return figure


def curves(history: Mapping[str, Sequence[float | None]]) -> Figure:
    """Losses, scores and learning rate over the epochs: training solid, validation dashed.

    Args:
        history: what `read_history` returns: names such as `epoch`, `lr`, `train_loss`, `val_dice`; None where missing.
    """
    series = {name: np.array([math.nan if v is None else v for v in values], float) for name, values in history.items()}
    epochs = series.get("epoch", np.arange(1, 1 + max(map(len, series.values()), default=0), dtype=float))
    told = [name for name in series if name.startswith(("train_", "val_")) and np.isfinite(series[name]).any()]
    losses = [name for name in told if "loss" in name or _bare(name) in ("ce", "bce")]
    scores = [name for name in told if name not in losses and _within_unit(series[name])]
    panels = {"loss": losses, "score": scores}
    for name in told:
        if name not in losses and name not in scores:
            panels.setdefault(_bare(name), []).append(name)
    panels["learning rate"] = [name for name in ("lr",) if name in series and np.isfinite(series[name]).any()]
    panels = {title: names for title, names in panels.items() if names} or {"no epoch finished yet": []}
    figure = Figure(figsize=(4.3 * min(3, len(panels)), 3.1 * math.ceil(len(panels) / 3)), layout="constrained")
    grid = figure.subplots(math.ceil(len(panels) / 3), min(3, len(panels)), squeeze=False).ravel()
    for axes, (title, names) in zip(grid, panels.items(), strict=False):
        _draw_series(axes, title, epochs, {name: series[name] for name in names})
    for axes in grid[len(panels) :]:
        axes.set_axis_off()
    return figure


def _draw_series(axes: Axes, title: str, epochs: np.ndarray, lines: Mapping[str, np.ndarray]) -> None:
    kinds = list(dict.fromkeys(_bare(name) for name in lines))
    for name, values in lines.items():
        there, later = np.isfinite(values), name.startswith("val_")
        alone = WARN if later else ACCENT
        axes.plot(
            epochs[: len(values)][there], values[there],
            color=_hex(1 + kinds.index(_bare(name))) if len(kinds) > 1 else alone,
            linestyle="--" if later else "-", linewidth=1.5,
            marker="o" if there.sum() < 2 else "", markersize=4, label=name.replace("_", " ", 1),
        )  # fmt: skip
    axes.set_title(title, fontsize=10, color=INK, loc="left", parse_math=False)
    axes.set_xlabel("epoch", fontsize=9)
    if title == "learning rate":
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:.2g}"))
    elif lines:
        _literal(axes.legend(frameon=False, fontsize=8).get_texts())
    plain(axes, grid="both")


def _bare(name: str) -> str:
    return name.removeprefix("train_").removeprefix("val_")


def _within_unit(values: np.ndarray) -> bool:
    values = values[np.isfinite(values)]
    return bool(values.min() >= -1 and values.max() <= 1)


def title_of(measure: str) -> str:
    """A measure's column name as people read it: `hd95_mm` -> `HD95 (mm)`, `nsd_3mm` -> `NSD (3 mm)`."""
    words = {"dice": "Dice", "iou": "IoU", "cldice": "clDice", "lesion_f1": "Lesion F1", "lesion_pq": "Lesion PQ"}
    head, _, unit = measure.rpartition("_")
    if head == "assd" or re.fullmatch(r"hd[\d.]*", head):
        return f"{head.upper()} ({unit})"
    if head == "nsd":
        number = unit.rstrip("abcdefghijklmnopqrstuvwxyzµ")
        return f"NSD ({number}\u00a0{unit[len(number) :]})"
    kind, _, side = head.partition("_")
    if kind in ("volume", "area") and side in ("ref", "pred"):
        return f"{'Ref.' if side == 'ref' else 'Pred.'} {kind} ({unit.replace('2', '²').replace('3', '³')})"
    if unit in ("mm", "ml", "nm", "px", "nm2", "px2"):
        head = head.capitalize() if head in ("missed", "invented") else head.replace("_", " ")
        return f"{head} ({unit.replace('2', '²')})"
    return words.get(measure, measure.replace("_", " ").capitalize() if head or measure in VOXELWISE else measure)


def plain(axes: Axes, *, grid: str = "y") -> None:
    """How all axes look: lines of the grid ("x", "y" or "both") and nothing else around."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(GRID)
    for axis in (axes.xaxis, axes.yaxis):
        axis.label.set_color(MUTED)
    axes.tick_params(length=0, labelsize=8.5, colors=MUTED)
    axes.grid(visible=True, axis=grid, color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)


def _literal(texts: Iterable[Any]) -> None:
    for text in texts:
        text.set_parse_math(False)
        text.set_color(MUTED)


def _hex(label_id: int) -> str:
    return "#{:02x}{:02x}{:02x}".format(*colour_of(label_id))
