"""How good a network is on whole volumes that it was not trained on."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from torch import nn

from medseg_core import figures
from medseg_core.checkpoint import Card
from medseg_core.distributed import gather, place, share
from medseg_core.infer import decide
from medseg_core.metrics import count, scores
from medseg_core.store import Arrays
from medseg_core.trainer import At, Score
from medseg_totalseg.inference import infer_volume
from medseg_totalseg.plan import Plan
from medseg_totalseg.slices import normalise

NUM_PICTURES = 4
OVERLAP = 0.25  # of patches: half as many windows along each axis as prediction takes would cost an eighth


class Validation:
    """Dice, IoU and accuracy of whole held-out volumes: the mean over cases of the mean over their structures.

    A structure that is missed or invented counts 0; one that is on neither side counts nowhere. Several processes
    share the cases and all return the same; the first one draws pictures of its own. There is no loss: it would need
    the logits of whole volumes.

    Args:
        cases: the held-out ones.
        pictures: folder of an overlay for each of the first cases at every validation.
    """

    def __init__(self, cases: Sequence[Arrays], plan: Plan, pictures: Path) -> None:
        self.cases, self.plan, self.pictures = cases, plan, pictures

    def __call__(self, model: nn.Module, at: At) -> Score:
        """See `medseg_core.trainer.Validate`."""
        mine = share(list(enumerate(self.cases)))
        drawn = {number for number, _ in mine[:NUM_PICTURES]} if place()[0] == 0 else set()
        rows = [row for part in gather([self._row(model, at, *case, drawn=drawn) for case in mine]) for row in part]
        numbers = np.array(sorted(rows), float)  # one order for any number of processes, as sums depend on it
        dice, iou, accuracy = np.nanmean(numbers[:, 1:4], axis=0).tolist()
        found_any = numbers[:, 4].any()
        return Score(dice, {"dice": dice, "iou": iou, "accuracy": accuracy}, blank=not found_any)

    def _row(self, model: nn.Module, at: At, number: int, case: Arrays, *, drawn: set[int]) -> list[float]:
        """The case's number, its three means, and whether the mask holds anything."""
        card = self.plan.card
        image = normalise(case["image"], card.intensity)
        mask = infer_volume(
            [model],
            image,
            [card],
            reduce=decide(card),
            overlap=OVERLAP,
            device=str(next(model.parameters()).device),
            precision=self.plan.config.precision,
        )
        found = scores(count(mask, case["label"], ids=_known(case, card)))
        if number in drawn:
            self._draw(case, image, mask, at)
        means = [float(np.nanmean(found[name])) for name in ("dice", "iou", "accuracy")]
        return [number, *means, float(mask.any())]

    def _draw(self, case: Arrays, image: np.ndarray, mask: np.ndarray, at: At) -> None:
        name = case.folder.name
        figure = figures.overlay(
            np.asarray(case["label"]),
            mask,
            self.plan.card.labels,
            image=image,
            window=(0.0, 1.0),
            spacing=self.plan.cohort.spacing_mm,
            affine=np.diag([*self.plan.cohort.spacing_mm, 1.0]),
            title=f"{name}, epoch {at.epoch + 1}",
        )
        figures.save_if_possible(figure, self.pictures / f"epoch_{at.epoch + 1:04d}_{name}.png", dpi=80)


def _known(case: Arrays, card: Card) -> list[int]:
    """The ids that are scored in a case: those that somebody looked for."""
    annotated = case.about["annotated"]
    return [i for i in card.labels if annotated is None or i in annotated]
