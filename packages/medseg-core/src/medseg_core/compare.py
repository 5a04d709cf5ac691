"""Trainings side by side: the settings in which they differ, and their curves in one picture."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from medseg_core.colours import colour_of
from medseg_core.config import written
from medseg_core.errors import MedsegError
from medseg_core.figures import ACCENT, INK, MUTED, WARN, plain, save
from medseg_core.run import CIRCUMSTANCES, SETTINGS, read_history, read_json
from medseg_core.runs import aligned, describe_run, is_run

SUFFIXES = (".png", ".pdf", ".svg")
ABSENT = "-"
VARYING = ("command", "started", "resumed", "seed")  # of no weight, or told elsewhere
LEGEND_CHARACTERS = 44
MORE_IDS = (3, 7, 1, 2, *range(8, 256))  # of labels whose colours are unlike the first two
LUMA, PALE = np.array([0.299, 0.587, 0.114]), 170.0  # what is brighter hardly shows on white


def compare_runs(runs: Sequence[Path], picture: Path, *, overwrite: bool = False) -> dict[str, Any]:
    """Draws the curves of two or more runs into `picture`.

    Returns:
        As JSON holds them: `runs`, what `describe_run` says of each; `settings` and `circumstances` (versions, commit,
        machine) that differ, each with a value for each run, "-" where one has none; `picture`.

    Raises:
        MedsegError: a folder that holds no run, settings or a log that is damaged, a picture that is there already.
    """
    picture = Path(picture)
    if picture.suffix.lower() not in SUFFIXES:
        raise MedsegError(f"cannot draw {picture}; name it {' or '.join(SUFFIXES)}")
    if picture.exists() and not overwrite:
        raise MedsegError(f"{picture} is there already; add --overwrite to replace it, or choose another --out")
    for run in runs:
        if not is_run(run):
            raise MedsegError(f"{run} holds no run; give two or more run folders, as `medseg runs` lists them")
    settings = differences([read_json(Path(run) / SETTINGS) for run in runs])
    circumstances = differences([_circumstances(Path(run)) for run in runs])
    names = _names(runs)
    histories = {name: read_history(run) for name, run in zip(names, runs, strict=True)}
    save(curves_of(histories), picture)
    return {
        "runs": [describe_run(run) for run in runs],
        "settings": settings,
        "circumstances": circumstances,
        "picture": str(picture),
    }


def differences(tables: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Each name whose value is not the same in all tables, with its values; "-" where a table lacks it."""
    names = dict.fromkeys(name for table in tables for name in table)
    rows = {name: [table.get(name, ABSENT) for table in tables] for name in names}
    return {name: values for name, values in rows.items() if any(value != values[0] for value in values)}


def difference_table(found: Mapping[str, Any]) -> str:
    """What `compare_runs` found, in lines: name, and a value for each run."""
    names = _names([Path(run["path"]) for run in found["runs"]])
    blocks = []
    for title, kind in (("setting", "settings"), ("circumstance", "circumstances")):
        rows = found[kind]
        columns = {title: list(rows), **{n: [_told(v[i]) for v in rows.values()] for i, n in enumerate(names)}}
        blocks.append("\n".join(aligned(columns)) if rows else f"no {title} differs")
    return "\n\n".join(blocks)


def curves_of(histories: Mapping[str, Mapping[str, Sequence[float | None]]]) -> Figure:
    """Loss and score of several runs over the epochs: a colour for each run, training solid, validation dashed.

    The best epoch of each run bears a point. What is drawn solid beside the validation score is the number of the
    training that has the score's name: `train_dice` where the score is `val_dice`.

    Args:
        histories: name -> what `read_history` returns.
    """
    figure = Figure(figsize=(9.6, 4.0 + 0.2 * math.ceil(len(histories) / 2)), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.12, h_pad=0.08)
    loss, score = figure.subplots(1, 2)
    colours = {name: _colour(number) for number, name in enumerate(histories)}
    for name, history in histories.items():
        _draw(loss, history, "train_loss", colours[name], dashed=False)
        _draw(loss, history, "val_loss", colours[name], dashed=True)
        twin = _twin(history)
        _draw(score, history, f"train_{twin}", colours[name], dashed=False)
        _draw(score, history, "val_score", colours[name], dashed=True, mark=True)
    twins = {_twin(history) for history in histories.values()} - {""}
    _finish(loss, "loss")
    _finish(score, f"score: {twins.pop()}" if len(twins) == 1 else "score")
    keys = [Line2D([], [], color=colour, linewidth=2, label=_clipped(name)) for name, colour in colours.items()]
    styles = [
        Line2D([], [], color=MUTED, linewidth=1.5, linestyle=style, marker=marker, markersize=4, label=label)
        for style, marker, label in (("-", "", "training"), ("--", "", "validation"), ("", "o", "best epoch"))
    ]
    for where, handles, columns in (("outside upper left", styles, 3), ("outside lower left", keys, 2)):
        legend = figure.legend(handles=handles, loc=where, ncols=columns, frameon=False, fontsize=9)
        for text in legend.get_texts():
            text.set_parse_math(False)
            text.set_color(INK)
    return figure


def _draw(
    axes: Axes,
    history: Mapping[str, Sequence[float | None]],
    name: str,
    colour: str,
    *,
    dashed: bool,
    mark: bool = False,
) -> None:
    values = _floats(history.get(name, ()))
    epochs = _floats(history.get("epoch", ()))[: len(values)]
    there = np.isfinite(values)
    if not there.any():
        return
    values, epochs = values[there], epochs[there]
    dot = "o" if len(values) == 1 else ""
    axes.plot(epochs, values, color=colour, linestyle="--" if dashed else "-", linewidth=1.5, marker=dot, markersize=4)
    if mark:
        best = int(values.argmax())
        axes.plot(epochs[best], values[best], color=colour, marker="o", markersize=5.5, zorder=3)


def _finish(axes: Axes, title: str) -> None:
    axes.set_title(title, fontsize=10, color=INK, loc="left", parse_math=False)
    axes.set_xlabel("epoch", fontsize=9)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True))
    plain(axes, grid="both")
    if not axes.lines:
        axes.set(xticks=[], yticks=[])
        axes.text(0.5, 0.5, "nothing logged", ha="center", color=MUTED, transform=axes.transAxes)


def _twin(history: Mapping[str, Sequence[float | None]]) -> str:
    """The metric that the validation score is, where training logs it too: "dice"; else nothing."""
    score = history.get("val_score")
    names = [name.removeprefix("val_") for name in history if name.startswith("val_") and name != "val_score"]
    equal = (n for n in names if f"train_{n}" in history and history[f"val_{n}"] == score)
    return next(equal, "")


def _colour(number: int) -> str:
    more = ["#{:02x}{:02x}{:02x}".format(*c) for c in map(colour_of, MORE_IDS) if float(LUMA @ c) < PALE]
    return [ACCENT, WARN, *more][number % (2 + len(more))]


def _floats(values: Sequence[Any]) -> np.ndarray:
    return np.array([v if isinstance(v, (int, float)) else math.nan for v in values], float)


def _names(runs: Sequence[Path]) -> list[str]:
    """What the runs are called, by their paths where two folders have one name."""
    names = [Path(run).resolve().name for run in runs]
    return names if len(set(names)) == len(names) else [str(run) for run in runs]


def _clipped(name: str) -> str:
    half = LEGEND_CHARACTERS // 2 - 2
    return name if len(name) <= LEGEND_CHARACTERS else f"{name[:half]}...{name[-half:]}"


def _circumstances(run: Path) -> dict[str, Any]:
    about = read_json(run / CIRCUMSTANCES) if (run / CIRCUMSTANCES).is_file() else {}
    versions = about.pop("versions", {})
    return {**(versions if isinstance(versions, dict) else {}), **{k: v for k, v in about.items() if k not in VARYING}}


def _told(value: Any) -> str:
    return written(tuple(value) if isinstance(value, list) else value)
