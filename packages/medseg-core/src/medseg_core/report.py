"""One offline page about an evaluation: numbers, pictures and surfaces in a single HTML file of at most 10 MB."""

import base64
import io
import logging
import math
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from jinja2 import Environment
from markupsafe import Markup
from matplotlib.figure import Figure
from PIL import Image
from plotly.offline import get_plotlyjs

from medseg_core import figures
from medseg_core.errors import MedsegError
from medseg_core.evaluate import Evaluation
from medseg_core.io import write_text
from medseg_core.scene import CONFIG

MAX_BYTES = 10_000_000
MAX_WIDTH_PX = 1600
HEAVY_BYTES = 700_000
MOVING_BYTES = 2_000_000
MAX_CASES = 300
SPARE_BYTES = 200_000
SIZES = ("volume_ref", "volume_pred", "area_ref", "area_pred")
COUNTS = ("lesions_", "missed_", "invented_")
TEMPLATE = "report.html.j2"

log = logging.getLogger(__name__)

T = TypeVar("T")
Table = dict[str, Any]


def write_report(
    out: Path, evaluation: Evaluation, *, title: str, pictures: Sequence[Path] = (), notes: Sequence[str] = ()
) -> Path:
    """Write `out/report.html`: it needs no network and no other file, and prints every name as text.

    Args:
        title: the page's heading.
        pictures: image files to embed (training curves, samples), in this order; those for which 10 MB leaves no room
            are named on the page instead. A GIF below 2 MB moves there too.
        notes: sentences that a reader must see first, such as "trained without validation".

    Raises:
        MedsegError: a picture is not there, or the evaluation holds no row.
    """
    if not evaluation.rows:
        raise MedsegError("the evaluation has no row: no structure is on either side of any case; check the labels")
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"number": _number, "signed": _signed, "measure": figures.title_of}
    template = environment.from_string(files("medseg_core").joinpath(TEMPLATE).read_text(encoding="utf-8"))
    summary = evaluation.summary()
    page = _numbers(evaluation, summary) | _drawn(evaluation, summary) | {"title": title, "notes": list(notes)}
    surfaces = _surfaces(evaluation)
    bare = template.render(page | {"surfaces": surfaces, "plotly": _plotly(surfaces), "pictures": []})
    room = MAX_BYTES - SPARE_BYTES - len(bare.encode())
    page["pictures"] = []
    for picture in map(Path, pictures):
        embedded = _embedded(picture)
        if room >= len(embedded):
            room -= len(embedded)
            page["pictures"].append({"name": picture.stem.replace("_", " "), "uri": embedded})
        else:
            page["notes"].append(f"{picture.name} was left out to keep this page under {MAX_BYTES / 1e6:.0f} MB")
    whole = template.render(page | {"surfaces": surfaces, "plotly": _plotly(surfaces)})
    out = Path(out)
    write_text(out / "report.html", whole)
    log.info("report: %s (%.1f MB)", out / "report.html", len(whole.encode()) / 1e6)
    return out / "report.html"


def _numbers(evaluation: Evaluation, summary: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What the page says in figures."""
    measures = evaluation.measures
    main = "dice" if "dice" in measures else measures[0]
    sizes = [measure for measure in measures if measure.startswith(SIZES)]
    kinds = {kind: _tables(summary, kind) for kind in ("all", "group", "structure", "case")}
    overall = (kinds["all"] or kinds["case"])[0]
    for row in kinds["structure"]:
        row["group"] = evaluation.groups.get(row["name"], "")
    return {
        "main": main,
        "scores": [measure for measure in measures if measure not in (main, "specificity", *sizes)],
        "sizes": sizes,
        "overall": overall,
        "num_cases": len(evaluation.cases),
        "num_structures": len(kinds["structure"]),
        "num_values": sum(bool(row["name"]) for row in evaluation.rows),
        "groups": kinds["group"],
        "structures": kinds["structure"],
        "whole_cases": kinds["case"],
        "baselines": [_beside(evaluation, name, main) for name in evaluation.baselines],
        "cases": _cases(evaluation, main)[:MAX_CASES],
        "about": evaluation.about,
        "audit": evaluation.audit,
        "rival": evaluation.rival,
        "comparison": _comparison(evaluation, main),
        "rates": figures.detection_rates(evaluation.rows) if main == "dice" else {},
    }


def _tables(summary: Sequence[Mapping[str, Any]], kind: str) -> list[Table]:
    """One entry per name: its counts, and under `by` its summary per measure."""
    tables: dict[str, Table] = {}
    for entry in summary:
        if entry["kind"] == kind:
            table = tables.setdefault(entry["name"], {"name": entry["name"], "by": {}, "n": 0})
            table["by"][entry["measure"]] = entry
            table |= {"n_missed": entry["n_missed"], "n_invented": entry["n_invented"]}
            table["n"] = max(table["n"], entry["n"])
    return list(tables.values())


def _beside(evaluation: Evaluation, name: str, main: str) -> Table:
    """A baseline's overall mean and the paired difference to the model."""
    baseline = evaluation.baselines[name]
    overall = next((entry for entry in baseline.summary() if entry["measure"] == main), None)
    try:
        gap = evaluation.against(baseline, main)
    except MedsegError:
        gap = None
    return {"name": name, "overall": overall, "gap": gap}


def _comparison(evaluation: Evaluation, main: str) -> dict[str, Any]:
    """The rival, measure by measure and structure by structure; empty without one."""
    if not evaluation.rival:
        return {}
    found = evaluation.rivalry
    hidden = ("specificity", *(measure for measure in evaluation.measures if measure.startswith(SIZES)))
    overall = [entry for entry in found if entry["kind"] in ("all", "case") and entry["measure"] not in hidden]
    structures = [entry for entry in found if (entry["kind"], entry["measure"]) == ("structure", main)]
    picture = _encoded(figures.differences(structures, measure=main)) if len(structures) > 1 else ""
    return {"overall": overall, "structures": structures, "picture": picture}


def _cases(evaluation: Evaluation, main: str) -> list[Table]:
    """Per case its mean, its misses and its own measures, lowest mean first."""
    means = evaluation.case_means(main)
    tables: dict[str, Table] = {
        case: {"name": case, "mean": means.get(case, math.nan), "n": 0, "missed": 0, "invented": 0, "own": {}}
        for case in evaluation.cases
    }
    for row in evaluation.rows:
        table = tables[row["case"]]
        table["n"] += bool(row["name"])
        table["own"] |= {} if row["name"] else row
        if row["status"] in ("missed", "invented"):
            table[row["status"]] += 1
    return sorted(tables.values(), key=lambda table: (math.isnan(table["mean"]), table["mean"]))


def _drawn(evaluation: Evaluation, summary: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What the page shows in pictures."""
    named = [row for row in evaluation.rows if row["name"]] or list(evaluation.rows)
    main = "dice" if "dice" in evaluation.measures else evaluation.measures[0]
    shown = [m for m in evaluation.measures if not m.startswith((*SIZES, "specificity", *COUNTS))]
    several = sum(entry["kind"] == "structure" and entry["measure"] == main for entry in summary) > 1
    ranked = sorted((case for case in _cases(evaluation, main) if case["n"]), key=lambda case: case["mean"])
    overlays = [
        {"word": word, "case": case["name"], "mean": case["mean"], "uri": _embedded(evaluation.pictures[case["name"]])}
        for word, case in shown_cases(ranked).items()
        if case["name"] in evaluation.pictures
    ]
    return {
        "detection": _encoded(figures.detection(named)) if main == "dice" else "",
        "distributions": _encoded(figures.distributions(named, shown)),
        "ranking": _encoded(figures.ranking(summary, measure=main, groups=evaluation.groups)) if several else "",
        "overlays": overlays,
        "worst": evaluation.worst,
    }


def shown_cases(ranked: Sequence[T]) -> dict[str, T]:
    """The cases that people look at, of all from the worst to the best: in words -> case, each once."""
    words = ["worst", "2nd worst", "3rd worst", "4th worst"]
    places = dict(zip(range(max(1, len(ranked) // 2)) if ranked else (), words, strict=False))
    if ranked:
        places.setdefault((len(ranked) - 1) // 2, "median")
        places.setdefault(len(ranked) - 1, "best")
    return {places[place]: ranked[place] for place in sorted(places)}


def _surfaces(evaluation: Evaluation) -> Markup:
    if evaluation.scene is None:
        return Markup("")
    # Plotly writes <, > and / in its data as escapes: a structure's name cannot end the script.
    return Markup(evaluation.scene.to_html(full_html=False, include_plotlyjs=False, div_id="view3d", config=CONFIG))


def _plotly(surfaces: Markup) -> Markup:
    return Markup(get_plotlyjs()) if surfaces else Markup("")


def _encoded(figure: Figure, *, dpi: int = 130) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi)
    return _uri(buffer.getvalue(), "png")


def _embedded(picture: Path) -> str:
    """A picture file as a data URI: a GIF below 2 MB as it is, for it may move.

    All else, and the first picture of a heavier GIF, is at most 1600 pixels wide, PNG, or JPEG where PNG is heavy.
    """
    try:
        with Image.open(picture) as opened:
            opened.load()
            if opened.format == "GIF" and picture.stat().st_size < MOVING_BYTES:
                return _uri(picture.read_bytes(), "gif")
            pixels = opened.convert("RGB")
    except OSError as error:
        raise MedsegError(f"{picture} cannot be put into the report: {error}") from None
    pixels.thumbnail((MAX_WIDTH_PX, 4 * MAX_WIDTH_PX))
    buffer = io.BytesIO()
    pixels.save(buffer, "png")
    if buffer.tell() <= HEAVY_BYTES:
        return _uri(buffer.getvalue(), "png")
    buffer = io.BytesIO()
    pixels.save(buffer, "jpeg", quality=88)
    return _uri(buffer.getvalue(), "jpeg")


def _uri(data: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def _signed(value: float | None) -> str:
    return _number(value) if value is None or not np.isfinite(value) or value < 0 else f"+{_number(value)}"


def _number(value: float | None) -> str:
    """Three decimals up to one, then fewer; two digits of what is very small; a dash where there is no number."""
    if value is None or not np.isfinite(value):
        return "–"
    size = abs(value)
    if 0 < size < 0.01:
        return f"{value:.2g}"
    decimals = 3 if size <= 1 else 2 if size < 10 else 1 if size < 1000 else 0
    return f"{value:,.{decimals}f}"
