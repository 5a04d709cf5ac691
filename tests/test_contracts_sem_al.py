"""sem-al as the contract has it: pre-training, two rates, a teacher, rounds."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tests.pieces import SMALL
from torch import Tensor, nn
from torch.nn import functional as F

from medseg_core.checkpoint import Card, load_model, load_state, load_weights
from medseg_core.draw import Batch, Draw, Samples
from medseg_core.infer import infer
from medseg_core.losses import dice_ce
from medseg_core.run import RunFolder, read_history
from medseg_core.settings import TrainConfig
from medseg_core.trainer import At, Result, Score, Step, Trainer, Validate


class Segmenter(nn.Module):
    def __init__(self, in_channels: int, num_classes: int) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Conv2d(in_channels, 8, 3, padding=1), nn.ReLU())
        self.decoder = nn.Conv2d(8, num_classes, 1)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        return self.decoder(self.encoder(x_NCHW))


class Images:
    """Three grey levels and noise; weak and strong are two views of what nobody labelled."""

    def __len__(self) -> int:
        return 3

    def __getitem__(self, draw: Draw) -> Batch:
        label = torch.arange(16 * 16).reshape(16, 16) * 3 // 256
        noise = torch.from_numpy(draw.numpy().normal(0, 0.1, (3, 1, 16, 16))).float()
        image, weak, strong = label.float()[None] + noise * torch.tensor([1.0, 0.5, 3.0]).reshape(3, 1, 1, 1)
        return {"image": image, "weak": weak, "strong": strong, "label": label}


def mae_step(model: nn.Module, batch: Batch, at: At) -> Mapping[str, Tensor]:
    hidden = torch.rand(batch["image"].shape, generator=at.rng, device=batch["image"].device) < 0.75
    return {"loss": ((model(batch["image"] * ~hidden) - batch["image"]) ** 2)[hidden].mean()}


def teacher_step(model: nn.Module, batch: Batch, at: At) -> Mapping[str, Tensor]:
    with torch.no_grad():  # needs config.ema; labelled and unlabelled in one forward
        sure, ids = at.teacher(batch["weak"]).softmax(1).max(1)
    labelled, strong = model(torch.cat([batch["image"], batch["strong"]])).float().split(len(batch["image"]))
    pseudo = (F.cross_entropy(strong, ids, reduction="none") * (sure > 0.95)).mean()
    return {
        "loss": dice_ce(labelled, batch["label"]) + at.progress * pseudo,
        "sure": (sure > 0.95).float().mean(),
    }


class Few:  # epochs of constant length, however few the labels
    def __init__(self, images: Samples) -> None:
        self.images = images

    def __len__(self) -> int:
        return 16

    def order(self, epoch: int, rng: np.random.Generator) -> Sequence[int]:
        return rng.integers(len(self.images), size=len(self))

    def __getitem__(self, draw: Draw) -> Batch:
        return self.images[draw]


def one_round(
    samples: Samples,
    step: Step,
    validate: Validate,
    out: Path,
    config: TrainConfig,
    *,
    start: Path | None = None,
    take: str = "",
) -> Result:
    """A stage of a pipeline, a fine-tuning, or a round of the loop: a run that starts from another's best."""
    model = Segmenter(1, 3)
    if start:
        load_weights(model.encoder if take else model, start, take=take)
    groups = [
        {"params": list(model.encoder.parameters()), "lr": config.lr / 10},
        {"params": list(model.decoder.parameters())},
    ]
    card = Card(
        package="medseg-sem-al",
        version="0.1.0",
        model="segmenter",
        arguments={"in_channels": 1, "num_classes": 3},
        head="softmax",
        channels=(0, 1, 2),
    )
    run = RunFolder.open(out, config, resume=True)
    return Trainer(model, step, config=config, card=card, run=run, groups=groups).fit(samples, validate)


def entropy_map(run: Path, image: np.ndarray) -> np.ndarray:
    model, _ = load_model(run, {"segmenter": Segmenter})
    return infer(model, image[None], window=(32, 32), reduce=lambda y: torch.special.entr(y.softmax(0)).sum(0))


def accuracy(model: nn.Module, at: At) -> Score:
    held = Images()[Draw(0, 0, 99, 99)]
    found = (model(held["image"][None]).argmax(1)[0] == held["label"]).float().mean().item()
    return Score(found, {"accuracy": found})


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    """A run without labels; its encoder is what counts."""
    torch.manual_seed(0)
    out, config = tmp_path_factory.mktemp("pretrained") / "run", TrainConfig(epochs=3, lr=0.01, **SMALL)
    arguments = {"in_channels": 1, "num_classes": 1}
    card = Card(package="medseg-sem-al", version="0.1.0", model="segmenter", arguments=arguments)
    trainer = Trainer(Segmenter(1, 1), mae_step, config=config, card=card, run=RunFolder.open(out, config))
    trainer.fit(Few(Images()))
    loss = read_history(out)["train_loss"]
    assert loss[-1] < loss[0]
    return out


def test_a_round_starts_from_the_encoder_of_another_run_and_both_rates_are_in_force(pretrained, tmp_path):
    torch.manual_seed(1)
    config = TrainConfig(epochs=1, lr=0.01, **SMALL | {"batch_size": 16})  # a single update
    decoder = Segmenter(1, 3).decoder.state_dict()
    torch.manual_seed(1)
    one_round(Few(Images()), teacher_loss, accuracy, tmp_path / "run", config, start=pretrained, take="encoder")
    after = load_file(tmp_path / "run" / "best.safetensors")
    before = {name: tensor for name, tensor in load_file(pretrained / "best.safetensors").items() if "encoder" in name}
    moved = max((after[name] - tensor).abs().max() for name, tensor in before.items())
    assert moved == pytest.approx(0.001, rel=0.01)  # Adam's first step is as long as the rate
    moved = max((after[f"decoder.{name}"] - tensor).abs().max() for name, tensor in decoder.items())
    assert moved == pytest.approx(0.01, rel=0.01)


def teacher_loss(model: nn.Module, batch: Batch, at: At) -> Mapping[str, Tensor]:
    return {"loss": dice_ce(model(batch["image"]), batch["label"])}


def test_the_teacher_is_the_average_of_the_student_and_is_what_is_kept(pretrained, tmp_path):
    torch.manual_seed(0)
    config, seen = TrainConfig(epochs=3, lr=0.01, ema=0.9, **SMALL), []

    def step(model: nn.Module, batch: Batch, at: At) -> Mapping[str, Tensor]:
        assert not at.teacher.training
        seen.append([torch.cat([p.detach().ravel() for p in net.parameters()]) for net in (model, at.teacher)])
        return teacher_step(model, batch, at)

    one_round(Few(Images()), step, accuracy, tmp_path, config, start=pretrained, take="encoder")
    assert torch.equal(*seen[0])
    for n in range(1, len(seen)):
        student, teacher = seen[n]
        decay = min(0.9, n / (9 + n))  # short at first, as in Tarvainen and Valpola (2017)
        torch.testing.assert_close(teacher, decay * seen[n - 1][1] + (1 - decay) * student)
    model, card = load_model(tmp_path, {"segmenter": Segmenter})
    parts, _ = load_state(tmp_path / "last" / "state.safetensors")
    assert card.weights == "ema"
    assert not torch.equal(parts["average"]["decoder.weight"], parts["model"]["decoder.weight"])
    assert torch.equal(accuracy_of(model), torch.tensor(max(read_history(tmp_path)["val_accuracy"])))


def accuracy_of(model: nn.Module) -> Tensor:
    with torch.no_grad():
        return torch.tensor(accuracy(model, None).value)


def test_a_finished_round_is_free_and_the_next_one_starts_from_its_best(pretrained, tmp_path):
    torch.manual_seed(0)
    config = TrainConfig(epochs=2, lr=0.02, ema=0.9, **SMALL)
    first = one_round(Few(Images()), teacher_step, accuracy, tmp_path / "1", config, start=pretrained, take="encoder")

    def never(*_: object) -> None:
        raise AssertionError("a finished round trains again")

    assert one_round(Few(Images()), never, never, tmp_path / "1", config) == first
    seen = []

    def step(model: nn.Module, batch: Batch, at: At) -> Mapping[str, Tensor]:
        seen.append({name: tensor.clone() for name, tensor in model.state_dict().items()})
        return teacher_step(model, batch, at)

    one_round(Few(Images()), step, accuracy, tmp_path / "2", config, start=tmp_path / "1")
    best = load_file(tmp_path / "1" / "best.safetensors")
    assert all(torch.equal(seen[0][name], tensor) for name, tensor in best.items())
    doubt = entropy_map(tmp_path / "2", np.linspace(0, 2, 40 * 36, dtype=np.float32).reshape(40, 36))
    assert doubt.shape == (40, 36)
    assert doubt.min() >= 0
    assert doubt.max() <= np.log(3) + 1e-6
    assert doubt.std() > 0
