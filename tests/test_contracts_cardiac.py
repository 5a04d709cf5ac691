"""cardiac as the contract has it: pairs without labels, then a cascade over frozen nets in one file."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from tests.pieces import SMALL, UNet, dice_of
from torch import Tensor, nn
from torch.nn import functional as F

from medseg_core.checkpoint import Card, freeze, load_model, load_weights
from medseg_core.draw import Batch, Draw, Samples
from medseg_core.infer import decide
from medseg_core.run import RunFolder, read_history
from medseg_core.settings import TrainConfig
from medseg_core.trainer import At, Result, Score, Trainer

EDGE = 16
MOVED = 2  # pixels along axis 0


class Motion(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.shift = UNet(2, 2)
        nn.init.zeros_(self.shift.head.weight)
        nn.init.zeros_(self.shift.head.bias)

    def forward(self, moving: Tensor, fixed: Tensor) -> Tensor:
        return self.shift(torch.cat([moving, fixed], 1))


def warp(image: Tensor, flow: Tensor) -> Tensor:
    """image at i + flow(i), along array axes, in pixels."""
    axes = torch.meshgrid(*(torch.arange(n, dtype=torch.float32) for n in image.shape[2:]), indexing="ij")
    at = torch.stack(axes)[None] + flow
    sizes = torch.tensor(image.shape[2:]).reshape(1, 2, 1, 1)
    at = 2 * at / (sizes - 1) - 1
    return F.grid_sample(image, at.flip(1).permute(0, 2, 3, 1), align_corners=True, padding_mode="border")


def roughness(flow: Tensor) -> Tensor:
    return flow.diff(dim=2).square().mean() + flow.diff(dim=3).square().mean()


def strain(flow: Tensor) -> Tensor:
    """The divergence: (N, 1, H, W)."""
    return sum(torch.gradient(flow[:, axis], dim=axis + 1)[0] for axis in range(2))[:, None]


def disc(x: float, y: float, radius: float = 4.0) -> np.ndarray:
    i, j = np.mgrid[:EDGE, :EDGE]
    return (i - x) ** 2 + (j - y) ** 2 <= radius**2


def contours(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The heart in the moving and in the fixed picture."""
    x, y = np.random.default_rng(seed).integers(6, 9, 2).tolist()
    return disc(x + MOVED, y), disc(x, y)


class Pairs:
    def __len__(self) -> int:
        return 8

    def __getitem__(self, draw: Draw) -> Batch:
        rng = draw.numpy()
        moving, fixed = (torch.from_numpy(c + rng.normal(0, 0.02, c.shape)).float()[None] for c in contours(draw.index))
        scar = torch.from_numpy(contours(draw.index)[1]).float()[None]
        return {"moving": moving, "fixed": fixed, "infarct": scar}


def contour_dice(model: nn.Module | None) -> float:
    dice = []
    for seed in range(100, 103):
        moving, fixed = (torch.from_numpy(c).float()[None, None] for c in contours(seed))
        moved = moving if model is None else warp(moving, model(moving, fixed))
        dice.append(dice_of(moved.numpy() > 0.5, fixed.numpy() > 0.5))
    return float(np.mean(dice))


def motion_step(model: nn.Module, batch: Batch, at: At) -> Mapping[str, Tensor]:
    flow = model(batch["moving"], batch["fixed"])  # (N, 2, H, W), pixels of the fixed picture's grid
    return {
        "loss": (warp(batch["moving"], flow) - batch["fixed"]).abs().mean() + 0.1 * roughness(flow),
        "flow": flow.abs().mean(),
    }


def contour_score(model: nn.Module, at: At) -> Score:
    after, before = contour_dice(model), contour_dice(None)  # warped and unmoved contours, never a mask against itself
    return Score(after - before, {"dice": after, "dice_unmoved": before})


class Cascade(nn.Module):  # one card, one file: all that predict needs
    def __init__(self, in_channels: int = 4, num_classes: int = 1) -> None:
        super().__init__()
        self.motion, self.segment = freeze(Motion()), UNet(in_channels, num_classes)

    def forward(self, ed: Tensor, es: Tensor) -> Tensor:
        flow = self.motion(es, ed)
        return self.segment(torch.cat([ed, flow, strain(flow)], 1))


def infarct_step(model: nn.Module, batch: Batch, at: At) -> Mapping[str, Tensor]:
    return {
        "loss": F.binary_cross_entropy_with_logits(model(batch["moving"], batch["fixed"]).float(), batch["infarct"])
    }


def train_cascade(pairs: Samples, out: Path, motion: Path, config: TrainConfig) -> Result:
    model, card = (
        Cascade(),
        Card(
            package="medseg-cardiac",
            version="0.1.0",
            model="cascade",
            inputs=("ed", "es"),
            head="sigmoid",
            channels=(1,),
        ),
    )
    load_weights(model.motion, motion)
    return Trainer(model, infarct_step, config=config, card=card, run=RunFolder.open(out, config)).fit(pairs)


def test_motion_learns_without_labels_and_stays_as_it_is_inside_the_cascade(tmp_path):
    torch.manual_seed(0)
    config = TrainConfig(epochs=12, lr=0.02, val_every=6, **SMALL)
    card = Card(package="medseg-cardiac", version="0.1.0", model="motion")
    run = RunFolder.open(tmp_path / "motion", config)
    result = Trainer(Motion(), motion_step, config=config, card=card, run=run).fit(Pairs(), contour_score)
    assert result.best.value > 0.02  # better than not to move at all
    assert result.best.metrics["dice"] - result.best.metrics["dice_unmoved"] == result.best.value
    assert read_history(tmp_path / "motion")["train_flow"][-1] > 0.1
    train_cascade(Pairs(), tmp_path / "cascade", tmp_path / "motion", TrainConfig(epochs=2, **SMALL))
    motion, _ = load_model(tmp_path / "motion", {"motion": Motion})
    cascade, card = load_model(tmp_path / "cascade", {"cascade": Cascade})
    kept = cascade.motion.state_dict()
    assert all(torch.equal(tensor, kept[name]) for name, tensor in motion.state_dict().items())  # and its statistics
    assert "shift.down.1.running_mean" in kept
    learnt = dict(cascade.segment.named_parameters())
    torch.manual_seed(0)
    assert not all(torch.equal(tensor, learnt[name]) for name, tensor in UNet(4, 1).named_parameters())
    sample = Pairs()[Draw(0, 0, 0, 0)]
    with torch.no_grad():
        ids = decide(card)(cascade(sample["moving"][None], sample["fixed"][None])[0])
    assert ids.shape == (EDGE, EDGE)
    assert set(ids.unique().tolist()) <= {0, 1}
