"""near as the contract has it: a latent per case, batches of points, a curriculum, new cases."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from tests.pieces import SMALL, dice_of
from torch import Tensor, nn
from torch.nn import functional as F

from medseg_core.checkpoint import Card, freeze, load_model
from medseg_core.draw import Batch, Draw
from medseg_core.run import RunFolder, read_history
from medseg_core.settings import TrainConfig
from medseg_core.trainer import At, Result, Score, Trainer


class Shapes(nn.Module):
    def __init__(self, num_cases: int, field: nn.Module | None = None) -> None:
        super().__init__()
        self.latents = nn.Embedding(num_cases, 4)
        self.field = field or nn.Sequential(nn.Linear(7, 32), nn.ReLU(), nn.Linear(32, 1))

    def forward(self, case: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
        latent = self.latents(case)
        along = latent[:, None].expand(-1, points.shape[1], -1)
        return self.field(torch.cat([along, points], -1))[..., 0], latent


def biased_points(shape: np.ndarray, num: int, share: float, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """`share` of the points inside, the others anywhere; coordinates from -1 to 1."""
    inside = np.argwhere(shape)
    at = rng.integers(0, shape.shape, (num, 3))
    at[: int(share * num)] = inside[rng.integers(len(inside), size=int(share * num))]
    points = 2 * at / (np.array(shape.shape) - 1) - 1
    return torch.from_numpy(points).float(), torch.from_numpy(shape[tuple(at.T)]).float()


def uniform_dice(model: nn.Module, shapes: Sequence[np.ndarray]) -> tuple[float, dict[str, float]]:
    dice = []
    for case, shape in enumerate(shapes):
        points = torch.stack(torch.meshgrid(*(torch.linspace(-1, 1, n) for n in shape.shape), indexing="ij"), -1)
        logits, _ = model(torch.tensor([case]), points.reshape(1, -1, 3))
        dice.append(dice_of(logits.detach().numpy().reshape(shape.shape) > 0, shape))
    return float(np.mean(dice)), {"dice": float(np.mean(dice))}


class Points:
    def __init__(self, shapes: Sequence[np.ndarray], epochs: int) -> None:
        self.shapes, self.epochs = shapes, epochs

    def __len__(self) -> int:
        return len(self.shapes)

    def __getitem__(self, draw: Draw) -> Batch:
        share = (0.5, 0.3, 0.1)[min(2, 3 * draw.epoch // self.epochs)]
        points, inside = biased_points(self.shapes[draw.index], 512, share, draw.numpy())
        return {"case": torch.tensor(draw.index), "points": points, "inside": inside}


def field_step(model: nn.Module, batch: Batch, at: At) -> Mapping[str, Tensor]:
    logits, latent = model(batch["case"], batch["points"])
    loss = (
        F.binary_cross_entropy_with_logits(logits.float(), batch["inside"]) + 1e-4 * latent.float().norm(dim=1).mean()
    )
    return {"loss": loss, "positives": batch["inside"].mean()}


def fit_shapes(shapes: Sequence[np.ndarray], out: Path, config: TrainConfig) -> Result:
    model = Shapes(len(shapes))
    card = Card(package="medseg-near", version="0.1.0", model="shapes", arguments={"num_cases": len(shapes)})
    groups = [
        {"params": list(model.latents.parameters()), "weight_decay": 0.0},
        {"params": list(model.field.parameters())},
    ]
    trainer = Trainer(model, field_step, config=config, card=card, run=RunFolder.open(out, config), groups=groups)
    return trainer.fit(Points(shapes, config.epochs), lambda model, at: Score(*uniform_dice(model, shapes)))


def fit_new_case(run: Path, shape: np.ndarray, config: TrainConfig) -> nn.Module:
    """A latent for a case never seen; the field stays as it is and nothing is written."""
    trained, card = load_model(run, {"shapes": Shapes})
    model = Shapes(1, field=freeze(trained.field))
    Trainer(model, field_step, config=config, card=card).fit(Points([shape], config.epochs))
    return model


def test_near_draws_fewer_points_inside_as_it_goes_and_fits_a_new_case_by_its_latent_alone(tmp_path):
    torch.manual_seed(0)
    boxes = [np.pad(np.ones((n, 6, 6), bool), ((0, 12 - n), (3, 3), (3, 3))) for n in (3, 10, 6)]
    config = TrainConfig(epochs=90, lr=0.05, weight_decay=1e-4, **SMALL | {"schedule": "cosine", "val_every": 30})
    result = fit_shapes(boxes[:2], tmp_path / "run", config)
    assert result.best.value > 0.7
    positives = np.reshape(read_history(tmp_path / "run")["train_positives"], (3, 30)).mean(1)
    assert positives[0] > positives[1] > positives[2] > 0.1
    before = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
    new = fit_new_case(tmp_path / "run", boxes[2], config)
    assert {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()} == before
    trained, _ = load_model(tmp_path / "run", {"shapes": Shapes})
    assert all(torch.equal(a, b) for a, b in zip(new.field.parameters(), trained.field.parameters(), strict=True))
    assert uniform_dice(new.eval(), boxes[2:])[0] > max(uniform_dice(trained, [b, b])[0] for b in boxes[2:])
