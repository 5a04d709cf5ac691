"""Statistics as text."""

from collections.abc import Mapping, Sequence
from typing import Any

from medseg_core.runs import aligned

HEAD = ("data set", "images", "labelled", "train", "val", "test", "size", "intensity", "pixel", "classes")


def table_of(rows: Sequence[Mapping[str, Any]]) -> str:
    """A line each of `index.statistics`, below their heads."""
    lines = [_line(row) for row in rows]
    return "\n".join(aligned({title: [line[k] for line in lines] for k, title in enumerate(HEAD)}))


def _line(row: Mapping[str, Any]) -> tuple[str, ...]:
    (low, high), nm = row["size"], row["pixel_nm"]
    size = f"{low[1]}x{low[0]}" + (f" to {high[1]}x{high[0]}" if low != high else "")
    pixel = f"{nm[0]:g} nm" if len(nm) == 1 else f"{nm[0]:g} to {nm[-1]:g} nm" if nm else "unknown"
    shares = ", ".join(f"{name} {share:.1%}" for name, share in row.get("shares", {}).items()) or "-"
    counts = (str(row[word]) for word in ("images", "labelled", "train", "val", "test"))
    return (row["dataset"], *counts, size, f"{row['mean']:.3f} +- {row['std']:.3f}", pixel, shares)


def rounds_of(told: Mapping[str, Any]) -> str:
    """What `loop.status` tells: a line for each round, and what is awaited."""
    columns: dict[str, list[str]] = {
        title: [] for title in ("round", "pictures", "pixels", "mean IoU", "gain", "uncertainty of what was asked for")
    }
    for row in told["rounds"]:
        score = "-" if row["score"] is None else f"{row['score']:.3f}"
        gain = "-" if row["gain"] is None else f"{row['gain']:+.3f}"
        low_high = "-" if row["uncertainty"] is None else "{:.3f} to {:.3f}".format(*row["uncertainty"])
        cells = (str(row["round"]), str(row["pictures"]), f"{row['pixels']:,}", score, gain, low_high)
        for column, cell in zip(columns.values(), cells, strict=True):
            column.append(cell)
    lines = aligned(columns) if told["rounds"] else ["no round is done yet"]
    if told["awaited"]:
        lines.append(f"awaited in {told['save to']}: {', '.join(told['awaited'])}")
    lines += [f"refused: {name}: {why}" for name, why in told["refused"].items()]
    if told["ended"]:
        lines.append(f"ended: {told['ended']}")
    return "\n".join(lines)
