"""Labels redrawn by the shape that a model sees in them, on their own grids, with an account of every change.

Axes: X Y Z voxels in a file's own order.
"""

import csv
import hashlib
import io
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.ndimage import map_coordinates
from scipy.special import expit, logit

from medseg_core.cases import Case
from medseg_core.checkpoint import load_model, weights_file
from medseg_core.cohort import Outcome, for_each, read_journal
from medseg_core.config import as_dict, resolve
from medseg_core.device import choose_device
from medseg_core.distributed import from_first
from medseg_core.errors import MedsegError
from medseg_core.evaluate import evaluate, write_tables
from medseg_core.io import read_volume, write_text, write_volume
from medseg_core.pairs import Pair
from medseg_core.report import write_report
from medseg_core.run import read_json
from medseg_core.volume import Volume
from medseg_near.audit import Audit, audit, flagged, read_limits
from medseg_near.latent import fit_latent, read_latents
from medseg_near.models import MODELS
from medseg_near.models.field import Shapes
from medseg_near.occupancy import asking, cube, dense, narrow
from medseg_near.outputs import make_ready, stamp_of
from medseg_near.points import Frame, frame_of, picture_at
from medseg_near.prepare import crop
from medseg_near.settings import FitConfig, PrepareConfig, RefineConfig
from medseg_near.shapes import Shape
from medseg_near.sources import find_structures

STORED, FITTED = "stored", "fitted"
CHANGES = "changes.csv"

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Refined:
    """What became of a shape.

    Args:
        mask: (X, Y, Z) bool on the crop; the label as it was where the case is flagged.
        audit: of what the model made of it.
        flag: why it was left as it was, "" where it was not.
        latent: "stored" or "fitted".
        num_asked: points where the field was asked.
    """

    mask: np.ndarray
    audit: Audit
    flag: str
    latent: str
    num_asked: int


class Refiner:
    """The model of a run, held in memory.

    Args:
        run: of `fit`, or its weights file, whose latents then are not known.
    """

    def __init__(self, run: Path, config: RefineConfig) -> None:
        self.config, self.limits = config, read_limits(config.max_change)
        net, self.card = load_model(run, MODELS)
        assert isinstance(net, Shapes)
        self.net = net.to(choose_device(config.device))
        self.shift = np.float32(logit(config.threshold))
        self.known = read_latents(run) if config.known else {}
        file = run / "config.json"
        fields = read_json(file) if run.is_dir() and file.is_file() else {}
        names = FitConfig.__dataclass_fields__
        fit = resolve(FitConfig, {name: value for name, value in fields.items() if name in names})
        self.fit = replace(fit, points=config.fit_points, appearance=self.net.decoder.in_channels > 0)

    def latent(self, shape: Shape) -> tuple[torch.Tensor, str]:
        """The latent of a case, and where it comes from."""
        device = self.net.latents.weight.device
        if shape.id in self.known:
            return torch.from_numpy(self.known[shape.id]).to(device), STORED
        how = {"steps": self.config.fit_steps, "lr": self.config.fit_lr, "seed": self.config.seed}
        return fit_latent(self.net, shape, self.fit, **how), FITTED

    def refine(self, shape: Shape) -> tuple[Refined, np.ndarray | None]:
        """What the model makes of a shape, and with `save_prob` its probabilities (X, Y, Z) on the crop."""
        if self.fit.appearance and shape.image is None:
            raise MedsegError(f"{shape.id} has no CT, which this model looks at; give --images")
        latent, origin = self.latent(shape)
        ask = self._asking(latent, shape)
        before = np.asarray(shape.label)
        probs = None
        if self.config.save_prob:
            logits = dense(ask, before.shape)
            after, asked = logits >= 0, before.size
            probs = expit(logits + self.shift)
        elif self.config.resolution:
            after, asked = self._on_cube(latent, shape)
        else:
            after, asked = narrow(ask, before.shape, seed=before)
        found = audit(before, after, spacing_mm=shape.spacing_mm)
        flag = flagged(found, self.limits)
        return Refined(before if flag else after, found, flag, origin, asked), probs

    def _asking(self, latent: torch.Tensor, shape: Shape, grid: Frame | None = None) -> Any:
        """Logits above 0 from the threshold on, at voxels of the crop, or of a grid of the cube."""
        frame = frame_of(shape, self.net.half_mm)
        look = None
        if self.fit.appearance:
            there = (lambda v: v) if grid is None else (lambda v: frame.voxels(grid.points(v)))
            look = lambda voxels: picture_at(shape, there(voxels.astype(float)))  # noqa: E731
        ask = asking(self.net, latent, grid or frame, look)
        return lambda voxels: ask(voxels) - self.shift

    def _on_cube(self, latent: torch.Tensor, shape: Shape) -> tuple[np.ndarray, int]:
        """The shape on a grid of the cube, and from there, trilinear, at the voxels of the crop."""
        n, frame = self.config.resolution, frame_of(shape, self.net.half_mm)
        grid = cube(n)
        voxels = np.indices(shape.label.shape).reshape(3, -1).T.astype(float)
        at = grid.voxels(frame.points(voxels)).T
        seed = map_coordinates(
            np.asarray(shape.label).astype(np.uint8),
            frame.voxels(grid.points(np.indices((n,) * 3).reshape(3, -1).T.astype(float))).T,
            order=0,
        ).reshape((n,) * 3)
        found, asked = narrow(self._asking(latent, shape, grid), (n,) * 3, seed=seed > 0)
        values = map_coordinates(found.astype(np.uint8), at, output=np.float32, order=1, mode="constant")
        return values.reshape(shape.label.shape) >= 0.5, asked


def refine_files(
    labels: Sequence[Path],
    run: Path,
    out: Path,
    config: RefineConfig,
    *,
    label: str = "",
    images: Path | None = None,
    names: Path | None = None,
    overwrite: bool = False,
) -> Outcome:
    """Writes `<case>.nii.gz` on the grid of its label, `changes/<case>.nii.gz` in mm, `changes.csv` and `report.html`.

    Args:
        labels, label, images, names: see `sources.find_structures`; the label is that of the run where none is given.

    Raises:
        MedsegError: nothing to refine, no such run, or an output folder that holds something else.
    """
    refiner = Refiner(run, config)
    label = label or refiner.card.grid.get("label", "")
    cases, refused = [], {}
    for source in labels:
        found = find_structures(source, label=label, images=images, names=names)
        cases += found.cases
        refused |= found.refused
    from_first(partial(make_ready, Path(out), cases, verb="refine", overwrite=overwrite))
    weights = hashlib.sha256(weights_file(run).read_bytes()).hexdigest()
    settings = {**as_dict(config), "label": label, "weights": weights}
    outcome = for_each(cases, partial(_write, refiner=refiner, out=Path(out)), out=out, config=settings)
    from_first(partial(_finish, Path(out), cases))
    return replace(outcome, failed={**refused, **outcome.failed})


def summary(out: Path) -> dict[str, Any]:
    """Of all cases that are done: where their latents come from, what is flagged, and the median change."""
    rows = read_journal(out)
    told = {origin: sum(row["latent"] == origin for row in rows.values()) for origin in (STORED, FITTED)}
    flags = sorted(case for case, row in rows.items() if row["flag"])
    dice = [row["dice"] for row in rows.values() if "dice" in row]
    return {**told, "flagged": flags, "dice_with_input": float(np.median(dice)) if dice else float("nan")}


def _write(case: Case, *, refiner: Refiner, out: Path) -> Mapping[str, Any]:
    config = refiner.config
    shape, _ = crop(case, PrepareConfig(margin_mm=config.margin_mm, window_hu=config.window_hu))
    refined, probs = refiner.refine(shape)
    affine = shape.whole.affine
    change = np.zeros_like(refined.audit.change_mm) if refined.flag else refined.audit.change_mm
    write_volume(Volume(shape.home(refined.mask.astype(np.uint8)), affine), out / f"{case.id}.nii.gz")
    write_volume(Volume(shape.home(change), affine), out / "changes" / f"{case.id}.nii.gz")
    if probs is not None:
        write_volume(Volume(shape.home(probs.astype(np.float32)), affine), out / "probs" / f"{case.id}.nii.gz")
    if refined.flag:
        log.warning("%s is left as it was: %s", case.id, refined.flag)
    about = {"files": stamp_of(case), "latent": refined.latent, "flag": refined.flag, "asked": refined.num_asked}
    return {**about, **{name: value for name, value in refined.audit.as_row().items() if str(value) != "nan"}}


def _finish(out: Path, cases: Sequence[Case]) -> None:
    """The table of all changes and the report, of this call's cases and of those before it."""
    rows = {case.id: row for case in cases if (row := read_journal(out).get(case.id)) is not None}
    if not rows:
        return
    rows = {case: {name: value for name, value in row.items() if name != "files"} for case, row in rows.items()}
    columns = ["case", *dict.fromkeys(name for row in rows.values() for name in row)]
    text = io.StringIO()
    table = csv.DictWriter(text, columns, lineterminator="\n")
    table.writeheader()
    table.writerows({"case": case, **row} for case, row in rows.items())
    write_text(out / CHANGES, text.getvalue())
    pairs = (_pair(out, case) for case in rows)
    evaluation = evaluate(pairs, {1: "structure"}, out=out)
    write_tables(evaluation, out)
    write_report(out, evaluation, title="Refined against input", notes=_notes(rows))


def _pair(out: Path, case: str) -> Pair:
    """Result and input, which is the result with its changes undone."""
    mask, change = (read_volume(out / folder / f"{case}.nii.gz") for folder in (".", "changes"))
    after = mask.voxels > 0
    before = after ^ (change.voxels != 0)
    return Pair(case, after.astype(np.uint8), before.astype(np.uint8), mask.spacing_mm, affine=mask.affine)


def _notes(rows: Mapping[str, Mapping[str, Any]]) -> list[str]:
    flags = {case: row["flag"] for case, row in rows.items() if row["flag"]}
    origins = [row["latent"] for row in rows.values()]
    told = f"{origins.count(STORED)} latents were those of the run, {origins.count(FITTED)} were fitted."
    agreement = "These scores say how much was changed, not how good it is: they hold a result against its own input."
    return [agreement, told, *(f"{case} was left as it was: {why}." for case, why in flags.items())]
