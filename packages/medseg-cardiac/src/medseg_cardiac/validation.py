"""How good the three networks are on slices that they were not trained on; see `medseg_core.trainer.Validate`.

Axes: h w the window; D the two components of a displacement.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from medseg_cardiac.cohort import Slice
from medseg_cardiac.fields import num_folds, warp
from medseg_cardiac.losses import near_middle
from medseg_cardiac.tracking import carried_mask, dice_of
from medseg_core.distributed import gather, share
from medseg_core.trainer import At, Score

HALF = 0.5
NEAR = 0.2  # of the edge: how far from the middle, where the heart is, pictures are compared


class MotionValidation:
    """What moving is worth: Dice of the pool's outline carried from ED to ES, minus Dice of the one that stays.

    Slices without both outlines count by their pictures alone: the share of the difference between ES and ED that is
    gone after warping, near the middle.
    """

    def __init__(self, slices: Sequence[Slice]) -> None:
        self.slices = list(slices)

    def __call__(self, model: nn.Module, at: At) -> Score:
        """See `medseg_core.trainer.Validate`."""
        rows = _gathered([_motion_row(model, one) for one in share(self.slices)])
        means = {name: _mean([row[name] for row in rows]) for name in ("dice", "dice_unmoved", "explained", "folds")}
        gain = means["dice"] - means["dice_unmoved"]
        return Score(gain if np.isfinite(gain) else means["explained"], _known(means))


class RegistrationValidation:
    """Dice of the LGE's myocardium, moved, with the cine's, and of the one that stays where geometry put it."""

    def __init__(self, slices: Sequence[Slice]) -> None:
        self.slices = list(slices)

    def __call__(self, model: nn.Module, at: At) -> Score:
        """See `medseg_core.trainer.Validate`."""
        rows = _gathered([self._row(model, one) for one in share(self.slices)])
        means = {name: _mean([row[name] for row in rows]) for name in ("dice", "dice_unmoved", "folds")}
        return Score(means["dice"] - means["dice_unmoved"], _known(means))

    def _row(self, model: nn.Module, one: Slice) -> dict[str, float]:
        flow = model(as_picture(one.lge, model), as_picture(one.frames[one.about["ed"]], model))
        moved = warped_mask(one.mask("lge_myo"), flow)
        return {
            "dice": dice_of(moved, one.mask("myo")),
            "dice_unmoved": dice_of(one.mask("lge_myo"), one.mask("myo")),
            "folds": float(num_folds(flow).sum()),
        }


class InfarctValidation:
    """Mean Dice of infarct over patients; one missed or invented counts 0, and none where there is none nowhere.

    Args:
        infarcts: (h, w) bool of each slice.
        flows: (D, h, w) of each slice, ED to ES.
    """

    def __init__(self, slices: Sequence[Slice], infarcts: Sequence[np.ndarray], flows: Sequence[np.ndarray]) -> None:
        self.slices, self.infarcts, self.flows = list(slices), list(infarcts), list(flows)

    def __call__(self, model: nn.Module, at: At) -> Score:
        """See `medseg_core.trainer.Validate`."""
        mine = share(list(range(len(self.slices))))
        rows = _gathered([self._row(model, number) for number in mine])
        cases: dict[str, np.ndarray] = {}
        for row in rows:
            cases[row["case"]] = cases.get(row["case"], np.zeros(3)) + row["counts"]
        dice = [float(2 * both / (found + true)) for both, found, true in cases.values() if found + true]
        found_any = any(found for _, found, _ in cases.values())
        value = float(np.mean(dice)) if dice else 0.0
        return Score(value, {"dice": value, "num_cases": len(dice)}, blank=not found_any)

    def _row(self, model: nn.Module, number: int) -> dict[str, object]:
        one = self.slices[number]
        ed, es = (as_picture(one.frames[one.about[phase]], model) for phase in ("ed", "es"))
        flow = torch.from_numpy(self.flows[number].astype(np.float32)).to(ed.device)[None]
        found = (model(ed, es, flow)[0, 0] > 0).cpu().numpy() & one.mask("myo")
        true = self.infarcts[number] & one.mask("myo")
        counts = [int((found & true).sum()), int(found.sum()), int(true.sum())]
        return {"case": one.case, "counts": counts}


def as_picture(picture: np.ndarray, model: nn.Module) -> Tensor:
    """(h, w) -> (1, 1, h, w) float32 where the model is."""
    device = next(model.parameters()).device
    return torch.from_numpy(np.asarray(picture, np.float32)).to(device)[None, None]


def warped_mask(mask: np.ndarray, flow_1DHW: Tensor) -> np.ndarray:
    """(H, W) bool looked up at x + flow(x): at least half inside."""
    values = torch.from_numpy(mask.astype(np.float32)).to(flow_1DHW.device)[None, None]
    return (warp(values, flow_1DHW)[0, 0] >= HALF).cpu().numpy()


def _motion_row(model: nn.Module, one: Slice) -> dict[str, float]:
    moving, fixed = (as_picture(one.frames[one.about[phase]], model) for phase in ("es", "ed"))
    flow = model(moving, fixed)
    near = near_middle(fixed.shape[-1], reach=NEAR * fixed.shape[-1], device=fixed.device)
    before, after = (float(((picture - fixed).abs() * near).mean()) for picture in (moving, warp(moving, flow)))
    row = {"explained": 1 - after / max(before, 1e-9), "folds": float(num_folds(flow).sum())}
    if not one.has("lv_ed", "lv_es"):
        return {**row, "dice": float("nan"), "dice_unmoved": float("nan")}
    ed, es = one.mask("lv_ed"), one.mask("lv_es")
    moved = carried_mask(ed, flow[0].cpu().numpy())
    return {**row, "dice": dice_of(moved, es), "dice_unmoved": dice_of(ed, es)}


def _gathered(rows: list[dict]) -> list[dict]:
    return [row for part in gather(rows) for row in part]


def _mean(values: Sequence[float]) -> float:
    known = [value for value in values if np.isfinite(value)]
    return float(np.mean(known)) if known else float("nan")


def _known(means: Mapping[str, float]) -> dict[str, float]:
    return {name: value for name, value in means.items() if np.isfinite(value)}
