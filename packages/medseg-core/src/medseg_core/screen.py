"""The facts of `info.describe` on one screen: aligned plain text."""

import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

WIDTH, NUM_ROWS, NAME_WIDTH = 100, 40, 36
TILTED_DEG = 0.1  # headers in float32 round below it


def screen(facts: Mapping[str, Any]) -> str:
    """What `info.describe` found, in lines of about 100 columns; of the labels the first 40."""
    lines = [str(facts["path"]), *(f"  {name:<12} {text}" for name, text in _lines(facts))]
    if facts.get("labels"):
        lines += ["", *_table(facts), ""]
    for warning in facts["warnings"]:
        lines += textwrap.wrap(warning, WIDTH, initial_indent="  warning      ", subsequent_indent=" " * 15)
    return "\n".join(lines).rstrip()


def _lines(facts: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    if facts["kind"] == "image":
        yield "looks like", "an image"
    else:
        num, absent = len(facts["labels"]), len(facts["absent"])
        without = f"; {absent} name{'s' * (absent != 1)} of {facts['labels_from']} without a voxel" if absent else ""
        yield "looks like", f"a label map: {num} id{'s' * (num != 1)}, background {facts['background']:.1%}{without}"
    yield "shape", f"{_by(facts['shape'])} ({facts['axes']})"
    if "spacing_mm" in facts:
        yield "spacing", f"{_by(facts['spacing_mm'])} mm, field of view {_by(facts['fov_mm'])} mm"
        oblique = facts["oblique_deg"]
        yield "orientation", facts["orientation"] + f", oblique by {oblique:.1f} degrees" * (oblique >= TILTED_DEG)
    elif nm := facts["pixel_nm"]:
        yield "pixel", f"{nm:.4g} nm, field of view {_by([n * nm / 1000 for n in facts['shape'][:2]])} um"
    if "frame_s" in facts:
        step = f"{facts['frame_s']:.4g} s apart" if facts["frame_s"] else "the time between them is not stated"
        yield "time", f"{facts['shape'][3]} frames, {step}"
    scale = f", slope {facts['slope']:g}, intercept {facts['intercept']:g}" if "slope" in facts else ""
    yield "type", f"{facts['dtype']}{scale}; {size_text(facts['bytes'])}, unpacked {size_text(facts['bytes_unpacked'])}"
    if values := {name: _number(value) for name, value in (facts["range"] or {}).items()}:
        marks = "; 1% at {p1}, median {median}, 99% at {p99}".format(**values) if "p1" in values else ""
        yield "values", f"{values['min']} to {values['max']}{marks}"


def _table(facts: Mapping[str, Any]) -> list[str]:
    """A row for each label: names to the left, numbers to the right."""
    rows = facts["labels"]
    columns: dict[str, list[str]] = {"id": [str(row["id"]) for row in rows]}
    if any(row["name"] for row in rows):
        columns["name"] = [_short(row["name"] or "-") for row in rows]
    formats = {
        "voxels": ("voxels", "{:,}".format),
        "pixels": ("pixels", "{:,}".format),
        "share": ("share", "{:.2%}".format),
        "ml": ("ml a frame" if "frame_s" in facts else "ml", _sized([row.get("ml", 0) for row in rows])),
        "um2": ("um2", _sized([row.get("um2", 0) for row in rows])),
        "parts": ("parts", "{:,}".format),
        "extent_mm": (f"box in mm, {facts['axes']}", _edges),
        "extent_px": ("box in pixels, H W", _edges),
    }
    columns |= {title: [text(row[key]) for row in rows] for key, (title, text) in formats.items() if key in rows[0]}
    padded = []
    for title, texts in columns.items():
        cells = [title, *texts[:NUM_ROWS]]
        width = max(map(len, cells))
        padded.append([cell.ljust(width) if title == "name" else cell.rjust(width) for cell in cells])
    more = [f"  and {len(rows) - NUM_ROWS} more (--json has all)"] * (len(rows) > NUM_ROWS)
    return ["  " + "  ".join(row) for row in zip(*padded, strict=True)] + more


def _short(name: str) -> str:
    return name if len(name) <= NAME_WIDTH else name[: NAME_WIDTH - 3] + "..."


def _edges(extent: Sequence[float]) -> str:
    return " x ".join(f"{edge:.0f}" if edge >= 10 else f"{edge:.2g}" for edge in extent)


def _sized(sizes: Sequence[float]) -> Callable[[float], str]:
    """With as many decimals for all as the largest needs for four digits, at least one."""
    decimals = 1 + sum(max(sizes) < limit for limit in (100, 10))
    least = 10.0**-decimals
    return lambda size: f"{size:,.{decimals}f}" if size >= least else f"<{least:g}"


def _number(value: float) -> str:
    """-1,024 and 1,234.5; below a thousand, and where commas no longer help, four digits."""
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:,.1f}" if 1000 <= abs(value) < 1e12 else f"{value:.4g}"


def _by(numbers: Iterable[float]) -> str:
    return " x ".join(_number(number) if isinstance(number, float) else str(number) for number in numbers)


def size_text(num_bytes: float) -> str:
    """Three digits and a unit: bytes, kB, MB, or GB with four."""
    for unit in ("bytes", "kB", "MB"):
        if num_bytes < 999.5:
            return f"{num_bytes:.3g} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:,.4g} GB"
