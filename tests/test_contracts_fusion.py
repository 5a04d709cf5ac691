"""fusion as the contract has it: two inputs, a missing one, a threshold, a paired comparison."""

from collections.abc import Iterable, Mapping

import numpy as np
import pytest
import torch
from tests.pieces import SMALL, UNet
from torch import Tensor, nn
from torch.nn import functional as F

from medseg_core.checkpoint import Card, load_model
from medseg_core.draw import Batch, Draw
from medseg_core.evaluate import evaluate
from medseg_core.infer import decide
from medseg_core.pairs import Pair
from medseg_core.run import RunFolder
from medseg_core.settings import TrainConfig
from medseg_core.trainer import At, Score, Trainer


class DualUNet(nn.Module):
    def __init__(self, in_channels: int = 2, num_classes: int = 1) -> None:
        super().__init__()
        self.net = UNet(in_channels, num_classes)

    def forward(self, ct: Tensor, pet: Tensor) -> Tensor:
        return self.net(torch.cat([ct, pet], 1))


def scan(seed: int) -> dict[str, np.ndarray]:
    """(1, H, W) each: a tumour that takes up tracer, and that some of the CT shows."""
    rng = np.random.default_rng(seed)
    label = np.zeros((1, 16, 16), np.float32)
    x, y = rng.integers(2, 9, 2)
    label[:, x : x + 5, y : y + 5] = 1
    pet, ct = 3 * label + rng.normal(0, 1, label.shape), label + rng.normal(0, 1, label.shape)
    return {"ct": ct.astype(np.float32), "pet": pet.astype(np.float32), "label": label}


class Scans:
    def __len__(self) -> int:
        return 12

    def __getitem__(self, draw: Draw) -> Batch:
        return {name: torch.from_numpy(array) for name, array in scan(draw.index).items()}


def fusion_step(model: nn.Module, batch: Batch, at: At) -> Mapping[str, Tensor]:
    keep = torch.rand(len(batch["ct"]), 1, 1, 1, generator=at.rng, device=batch["ct"].device) > 0.2
    return {"loss": F.binary_cross_entropy_with_logits(model(batch["ct"] * keep, batch["pet"]).float(), batch["label"])}


def best_threshold(probs: np.ndarray, label: np.ndarray) -> Score:
    dice = {t: 2 * ((probs > t) & label).sum() / ((probs > t).sum() + label.sum()) for t in (0.3, 0.4, 0.5)}
    t = max(dice, key=dice.get)
    return Score(dice[t], {"dice": dice[t], "dice_at_half": dice[0.5]}, {"threshold": t})


def burden(pair: Pair) -> dict[str, float]:
    return {"tmtv_ml": float((pair.mask == 1).sum() * np.prod(pair.spacing) / 1000)}


def judge(ours: Iterable[Pair], other: Iterable[Pair]) -> dict[str, float]:
    mine = evaluate(
        ours,
        {1: "tumour"},
        more=burden,
        baselines={"suv>2.5": lambda p: (p.images["pet"] > 2.5).astype(np.uint8)},
    )
    return mine.against(evaluate(other, {1: "tumour"}), "dice")


def logits_of(model: nn.Module, seed: int) -> Tensor:
    held = {name: torch.from_numpy(array)[None] for name, array in scan(seed).items()}
    with torch.no_grad():
        return model(held["ct"], held["pet"])[0]


def held_out_score(model: nn.Module, at: At) -> Score:
    probs = np.concatenate([torch.sigmoid(logits_of(model, seed)).numpy() for seed in range(50, 54)])
    return best_threshold(probs, np.concatenate([scan(seed)["label"] > 0 for seed in range(50, 54)]))


def test_the_threshold_that_validation_chose_is_in_the_card_and_decides(tmp_path):
    torch.manual_seed(0)
    config = TrainConfig(epochs=4, lr=0.01, **SMALL)
    card = Card(
        package="medseg-fusion", version="0.1.0", model="dual", inputs=("ct", "pet"), head="sigmoid", channels=(1,)
    )
    run = RunFolder.open(tmp_path, config)
    result = Trainer(DualUNet(), fusion_step, config=config, card=card, run=run).fit(Scans(), held_out_score)
    model, card = load_model(tmp_path, {"dual": DualUNet})
    assert card.chosen == result.best.chosen
    threshold = card.chosen["threshold"]
    assert held_out_score(model, None).chosen == {"threshold": threshold}
    assert result.best.value == max(result.best.metrics.values())
    logits = logits_of(model, 50)
    probs, ids = torch.sigmoid(logits)[0], decide(card)(logits)
    assert torch.equal(ids == 1, probs > threshold)
    other = decide(Card(package="p", version="0", model="m", head="sigmoid", channels=(1,), chosen={"threshold": 0.9}))
    assert (other(logits) == 1).sum() < (ids == 1).sum()
    again = RunFolder.open(tmp_path, config, resume=True)
    assert Trainer(DualUNet(), fusion_step, config=config, card=card, run=again).fit(Scans(), None) == result


def test_two_models_are_compared_case_by_case_beside_a_baseline():
    label = np.zeros((4, 4, 4), np.uint8)
    label[1:3, 1:3, 1:3] = 1
    half = label.copy()
    half[1] = 0
    pet = np.where(label, 5.0, 1.0)

    def pairs(*masks: np.ndarray) -> list[Pair]:
        return [Pair(f"p{n}", mask, label, (2.0, 2.0, 2.0), "mm", {"pet": pet}) for n, mask in enumerate(masks)]

    found = judge(pairs(label, half), pairs(half, half))
    assert found["mean"] == pytest.approx((1 + 2 / 3) / 2)  # half of 8 voxels: 2 * 4 / (4 + 8)
    assert found["difference"] == pytest.approx(1 / 6)
    assert found["n_cases"] == 2
    alone = evaluate(
        pairs(label, half),
        {1: "tumour"},
        more=burden,
        baselines={"suv>2.5": lambda p: (p.images["pet"] > 2.5).astype(np.uint8)},
    )
    whole = {row["case"]: row["tmtv_ml"] for row in alone.rows if row["name"] == ""}
    assert whole == pytest.approx({"p0": 0.064, "p1": 0.032})  # voxels of 8 mm3
    assert alone.baselines["suv>2.5"].case_means("dice") == pytest.approx({"p0": 1.0, "p1": 1.0})
