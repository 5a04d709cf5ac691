"""Labels redrawn by the shape that a model sees in them, on their own grids, with an account of every change.

Axes: X Y Z voxels in a file's own order.
"""

import csv
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
from medseg_core.checkpoint import digest, load_model
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
from medseg_near.audit import Audit, audit, flagged, read_limits, within_reach
from medseg_near.denoise import repairing
from medseg_near.fit import ROOM
from medseg_near.latent import fit_latent, read_latents
from medseg_near.look import scene_of, write_look
from medseg_near.models import MODELS
from medseg_near.models.denoiser import Denoiser
from medseg_near.models.field import Shapes
from medseg_near.occupancy import Ask, asking, cube, dense, narrow, on_grid
from medseg_near.outputs import make_ready, stamp_of
from medseg_near.points import frame_of, picture_at
from medseg_near.prepare import crop
from medseg_near.settings import FitConfig, PrepareConfig, RefineConfig
from medseg_near.shapes import Shape
from medseg_near.slabs import Aligned, put_back
from medseg_near.smoothed import sharpened
from medseg_near.sources import find_structures

STORED, FITTED, NONE = "stored", "fitted", "none"
CHANGES = "changes.csv"
NUM_SHOWN = 12  # cases in pictures: those that changed most

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Refined:
    """What became of a shape.

    Args:
        mask: (X, Y, Z) bool on the crop; the label as it was where the case is flagged.
        audit: of what the model made of it.
        flag: why it was left as it was, "" where it was not.
        latent: "stored", "fitted", or "none" where the model has none.
        num_asked: points where the field was asked.
        num_left_out: parts of the model's answer that lie too far from the label.
        aligned: the label with its slices put back.
        width_voxels: of the filter that had smoothed it and was undone, 0 where none was.
    """

    mask: np.ndarray
    audit: Audit
    flag: str
    latent: str
    num_asked: int
    num_left_out: int
    aligned: Aligned
    width_voxels: float


class Refiner:
    """The model of a run, held in memory.

    Args:
        run: of `fit`, or its weights file, whose latents then are not known.
    """

    def __init__(self, run: Path, config: RefineConfig) -> None:
        self.config, self.limits = config, read_limits(config.max_change)
        net, self.card = load_model(run, MODELS)
        self.net = net.to(choose_device(config.device))
        self.shift = np.float32(logit(config.threshold))
        self.known = _known(run, net) if config.known and isinstance(net, Shapes) else {}
        file = run / "config.json"
        fields = read_json(file) if run.is_dir() and file.is_file() else {}
        names = FitConfig.__dataclass_fields__
        fit = resolve(FitConfig, {name: value for name, value in fields.items() if name in names})
        channels = net.decoder.in_channels if isinstance(net, Shapes) else net.in_channels - 1
        self.fit = replace(fit, points=config.fit_points, appearance=channels > 0)

    def refine(self, shape: Shape) -> tuple[Refined, np.ndarray | None]:
        """What the model makes of a shape, and with `save_prob` its probabilities (X, Y, Z) on the crop."""
        if self.fit.appearance and shape.image is None:
            raise MedsegError(f"{shape.id} has no CT, which this model looks at; give --images")
        before = np.asarray(shape.label)
        free = shape.id not in self.known  # a stored latent is that of the label as it was
        aligned = put_back(before, shape.spacing_mm) if self.config.put_back and free else Aligned(before)
        sharpen = self.config.sharpen and free
        seen, width = sharpened(aligned.label, shape.spacing_mm) if sharpen else (aligned.label, 0.0)
        shape = replace(shape, label=seen)
        ask, origin = self.field(shape)
        probs = None
        if self.config.save_prob:
            logits = dense(ask, before.shape)
            after, asked = logits >= 0, before.size
            probs = expit(logits + self.shift)
        elif self.config.resolution:
            after, asked = self._on_cube(ask, shape)
        else:
            after, asked = narrow(ask, before.shape, seed=seen)
        after, num_far = within_reach(before, after, reach_mm=self.config.reach_mm, spacing_mm=shape.spacing_mm)
        found = audit(before, after, spacing_mm=shape.spacing_mm)
        flag = flagged(found, self.limits)
        return Refined(before if flag else after, found, flag, origin, asked, num_far, aligned, width), probs

    def field(self, shape: Shape) -> tuple[Ask, str]:
        """Logits at places among the voxels of a crop, above 0 from the threshold on; and whence its latent."""
        if isinstance(self.net, Denoiser):
            ask, origin = repairing(self.net, shape), NONE
        else:
            latent, origin = self.latent(shape)
            look = partial(picture_at, shape) if self.fit.appearance else None
            ask = asking(self.net, latent, frame_of(shape, self.net.half_mm), look)
        return lambda voxels: ask(voxels) - self.shift, origin

    def latent(self, shape: Shape) -> tuple[torch.Tensor, str]:
        """The latent of a case, and where it comes from."""
        device = self.net.latents.weight.device
        if shape.id in self.known:
            return torch.from_numpy(self.known[shape.id]).to(device), STORED
        how = {"steps": self.config.fit_steps, "lr": self.config.fit_lr, "seed": self.config.seed}
        return fit_latent(self.net, shape, self.fit, **how), FITTED

    def _on_cube(self, ask: Ask, shape: Shape) -> tuple[np.ndarray, int]:
        """The shape on a grid of the cube about it, and from there, trilinear, at the voxels of the crop."""
        half_mm = self.net.half_mm if isinstance(self.net, Shapes) else ROOM * shape.half_mm
        n, frame = self.config.resolution, frame_of(shape, half_mm)
        grid = cube(n)
        seed = on_grid(np.asarray(shape.label), frame, grid, (n,) * 3)
        on_cube = lambda points: ask(frame.voxels(grid.points(points.astype(float))))  # noqa: E731
        found, asked = narrow(on_cube, (n,) * 3, seed=seed)
        after = np.empty(shape.label.shape, bool)
        for x, plane in enumerate(after):  # one after the other: places take more room than masks
            voxels = np.insert(np.argwhere(np.ones(plane.shape, bool)), 0, x, axis=1).astype(float)
            at = grid.voxels(frame.points(voxels)).T
            values = map_coordinates(found.view(np.uint8), at, output=np.float32, order=1, mode="constant")
            plane[:] = values.reshape(plane.shape) >= 0.5
        return after, asked


def _known(run: Path, net: Shapes) -> dict[str, np.ndarray]:
    """The latents of the cases of a run, those of its network."""
    known, wanted = read_latents(run), tuple(net.latents.weight.shape)
    found = (len(known), *{len(latent) for latent in known.values()})
    if known and found != wanted:
        table = f"latents.csv of {found[0]} cases with {found[-1]} numbers"
        said = f"{run} has {table}, and a network of {wanted[0]} with {wanted[1]}"
        raise MedsegError(f"{said}; copy the run again, or find all latents anew: --no-known")
    return known


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

    The cases that changed most are in `before_after/`, and the first of them is to be turned in the report.

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
    weights = digest(run)
    settings = {**as_dict(config), "label": label, "weights": weights}
    outcome = for_each(cases, partial(_write, refiner=refiner, out=Path(out)), out=out, config=settings)
    from_first(partial(_finish, Path(out), cases))
    return replace(outcome, failed={**refused, **outcome.failed})


def summary(out: Path) -> dict[str, Any]:
    """Of all cases that are done: where their latents come from, what is flagged, and the median change."""
    rows = read_journal(out)
    origins = [row["latent"] for row in rows.values()]
    told = {} if NONE in origins else {origin: origins.count(origin) for origin in (STORED, FITTED)}
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
    about |= {"parts_left_out": refined.num_left_out, "slices_put_back": refined.aligned.num_moved}
    about |= {"farthest_slice_mm": refined.aligned.farthest_mm, "sharpened_voxels": refined.width_voxels}
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
    pictures, scene = _look(out, sorted(rows, key=lambda case: rows[case].get("dice", 1.0))[:NUM_SHOWN])
    shown = replace(evaluation, **scene)
    write_report(out, shown, title="Refined against input", pictures=pictures, notes=_notes(rows))


def _pair(out: Path, case: str) -> Pair:
    """Result and input, which is the result with its changes undone."""
    mask, change = (read_volume(out / folder / f"{case}.nii.gz") for folder in (".", "changes"))
    after = mask.voxels > 0
    before = after ^ (change.voxels != 0)
    return Pair(case, after.astype(np.uint8), before.astype(np.uint8), mask.spacing_mm, affine=mask.affine)


def _look(out: Path, cases: Sequence[str]) -> tuple[list[Path], dict[str, Any]]:
    """Pictures of cases before and after, and the first of them in 3D."""
    pictures, scene = [], {}
    for case in cases:
        pair = _pair(out, case)
        before, after = pair.label > 0, pair.mask > 0
        pictures.append(write_look(out, case, before, after, pair.affine))
        scene = scene or scene_of(case, before, after, pair.affine)
    return pictures, scene


def _notes(rows: Mapping[str, Mapping[str, Any]]) -> list[str]:
    flags = {case: row["flag"] for case, row in rows.items() if row["flag"]}
    origins = [row["latent"] for row in rows.values()]
    told = f"{origins.count(STORED)} latents were those of the run, {origins.count(FITTED)} were fitted."
    told = "The model reads each label itself." if NONE in origins else told
    agreement = "These scores say how much was changed, not how good it is: they hold a result against its own input."
    for name, what in (("slices_put_back", "had slices that were put back"), ("sharpened_voxels", "were sharpened")):
        num = sum(float(row[name]) > 0 for row in rows.values())
        told += f" {num} labels {what} before, see {CHANGES}." if num else ""
    return [agreement, told, *(f"{case} was left as it was: {why}." for case, why in flags.items())]
