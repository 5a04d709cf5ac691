"""The work of an evaluation for one case: read both sides, score them, and say what they lie on."""

import logging
from collections.abc import Iterator, Mapping
from dataclasses import fields, replace
from typing import Any

import numpy as np

from medseg_core.cases import Case
from medseg_core.errors import MedsegError
from medseg_core.io import is_picture, read_picture, read_volume
from medseg_core.labelmaps import LabelMap, label_map
from medseg_core.metrics import count
from medseg_core.pairs import Pair, score_pair
from medseg_core.score import array_of, differs, spacing_of
from medseg_core.settings import ScoreConfig
from medseg_core.volume import Picture, Volume

log = logging.getLogger(__name__)

MODEL, RIVAL, LABEL, EMPTY = "mask", "rival", "label", "empty"
ROLES = (MODEL, LABEL, RIVAL)
OF_SCORE = {"measures", "tolerance", "percentile", "convention", "empty", "connectivity", "min_iou"}


def how_of(config: ScoreConfig) -> dict[str, Any]:
    """The settings that `score` takes; without overlap nobody would see what was missed."""
    how = {field.name: getattr(config, field.name) for field in fields(ScoreConfig) if field.name in OF_SCORE}
    return how | {"measures": tuple(dict.fromkeys(("overlap", *config.measures)))}


def score_case(case: Case, *, labels: Mapping[int, str] | None, config: ScoreConfig) -> dict[str, Any]:
    """The rows of the model, of predicting nothing and, where there is one, of the rival; and what the audit looks at.

    Args:
        case: files `mask` and `label`, and perhaps `rival`.
        labels: id -> name; None takes ids as they are stored.

    Raises:
        MedsegError: a side that cannot be read, or does not lie on the label's grid.
    """
    read = {role: label_map(case.files[role]).read_audited(_ids(labels)) for role in ROLES if role in case.files}
    pair = _pair(case, {role: held for role, (held, _) in read.items()}, labels, config)
    sides = {MODEL: pair, EMPTY: pair.with_mask(np.zeros(pair.label.shape, np.uint8))}
    if RIVAL in read:
        sides[RIVAL] = pair.with_mask(_on_grid(read[RIVAL][0], read[LABEL][0], case, RIVAL))
    counts = count(pair.mask, pair.label)
    how = how_of(config)
    return {
        "rows": {name: _packed(score_pair(side, labels, **how)) for name, side in sides.items()},
        "facts": {
            "shape": list(pair.label.shape),
            "spacing": list(pair.spacing),
            "unit": pair.unit,
            "orientation": "" if pair.affine is None else Volume(pair.label, pair.affine).orientation,
            "mask_ids": counts.ids[counts.mask > 0].tolist(),
            "label_ids": counts.ids[counts.label > 0].tolist(),
            "overlap": {role: found.overlap for role, (_, found) in read.items()},
            "unnamed": {role: list(found.unnamed) for role, (_, found) in read.items()},
        },
    }


def read_pair(case: Case, *, labels: Mapping[int, str] | None, config: ScoreConfig) -> Pair:
    """Both sides of a case, and those of its images (files `ct`, `image`) that have the label's shape."""
    held = {role: label_map(case.files[role]).read_audited(_ids(labels))[0] for role in (MODEL, LABEL)}
    pair = _pair(case, held, labels, config)
    files = {role: case.files[role] for role in ("ct", "image") if role in case.files}
    images = {}
    for role, file in files.items():
        try:
            images[role] = array_of((read_picture if is_picture(file) else read_volume)(file))
        except MedsegError as error:  # an overlay can do without; the scores are there
            log.warning("%s: shown without its image: %s", case.id, error)
    fitting = {role: image for role, image in images.items() if image.shape[: pair.label.ndim] == pair.label.shape}
    return replace(pair, images=fitting)


def rows_of(case: str, packed: Mapping[str, Any], names: Mapping[int, str] | None) -> Iterator[dict[str, Any]]:
    """The rows that `score_case` packed, under a name for the case."""
    for label, status, *values in packed["rows"]:
        row = {"case": case, "label": label, "name": names[label] if names else str(label), "status": status}
        yield row | dict(zip(packed["columns"], values, strict=False))


def _packed(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The rows of one case without what they repeat; an absent structure has no values."""
    columns = [name for name in max(rows, key=len, default={}) if name not in ("case", "label", "name", "status")]
    numbers = [[row["label"], row["status"], *(row[name] for name in columns if name in row)] for row in rows]
    return {"columns": columns, "rows": [[None if v != v else v for v in line] for line in numbers]}  # noqa: PLR0124


def _pair(
    case: Case, held: Mapping[str, Volume | Picture], labels: Mapping[int, str] | None, config: ScoreConfig
) -> Pair:
    true = held[LABEL]
    spacing, unit = spacing_of(true)
    return Pair(
        case.id,
        _on_grid(held[MODEL], true, case, MODEL),
        array_of(true),
        spacing,
        unit=unit,
        known=_known(label_map(case.files[LABEL]), labels) if config.missing == "ignore" else None,
        affine=true.affine if isinstance(true, Volume) else None,
    ).checked()


def _on_grid(mine: Volume | Picture, true: Volume | Picture, case: Case, role: str) -> np.ndarray:
    """The ids of one prediction, refused where it does not lie on the label's grid."""
    reason = differs(mine, true)
    if reason:
        fix = "predict on the image that was labelled, or resample"
        raise MedsegError(f"{case.files[role]} does not lie on the grid of {case.files[LABEL]}: {reason}; {fix}")
    return array_of(mine)


def _ids(labels: Mapping[int, str] | None) -> dict[str, int] | None:
    return None if labels is None else {name: i for i, name in labels.items()}


def _known(found: LabelMap, labels: Mapping[int, str] | None) -> list[int] | None:
    if found.annotated is None or labels is None:
        return None
    return [i for i, name in labels.items() if name in found.annotated]
