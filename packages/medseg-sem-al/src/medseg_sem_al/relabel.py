"""An index whose masks are written anew as ids: what is labelled so far. Axes: H W of a picture."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from medseg_core.cases import Case
from medseg_core.errors import MedsegError
from medseg_core.io import read_picture
from medseg_sem_al.colours import UNSEEN, Classes
from medseg_sem_al.index import Index
from medseg_sem_al.panels import colours_of
from medseg_sem_al.proposals import write_indexed


def relabelled(index: Index, masks: Mapping[str, np.ndarray], folder: Path) -> Index:
    """The same pictures with these masks and no others; one in which nothing is labelled is in the pool.

    FOLDER/X.png are palette pictures of ids in the colours of the classes, 255 where nobody labelled; what is there
    and the same is not written again.

    Args:
        masks: case id -> (H, W) uint8.
    """
    colours, num = colours_of(index.classes), len(index.classes.names)
    cases = []
    for case in index.cases:
        bare = {role: file for role, file in case.files.items() if role != "label"}
        notes = {word: value for word, value in case.notes.items() if word not in ("shares", "labelled")}
        ids = masks.get(case.id)
        if ids is None or (ids == UNSEEN).all():
            cases.append(Case(case.id, bare, case.group, "", notes))
            continue
        file = folder / f"{case.id}.png"
        if not _holds(file, ids):
            write_indexed(ids, colours, file)
        counts = np.bincount(ids[ids != UNSEEN], minlength=num)
        notes["shares"] = (counts / counts.sum()).round(6).tolist()
        if counts.sum() < ids.size:
            notes["labelled"] = float(counts.sum() / ids.size)
        cases.append(replace(case, files={**bare, "label": file}, notes=notes, split=case.split or "train"))
    codes = {code: k for code, k in index.classes.codes.items() if isinstance(code, str) and k != UNSEEN}
    codes |= {**{k: k for k in range(num)}, UNSEEN: UNSEEN}
    classes = Classes(index.classes.names, codes, rule=f"ids, from {index.classes.rule}")
    return replace(index, cases=tuple(cases), classes=classes)


def _holds(file: Path, ids: np.ndarray) -> bool:
    try:
        return np.array_equal(read_picture(file).pixels, ids)
    except MedsegError:  # none yet, or damaged
        return False
