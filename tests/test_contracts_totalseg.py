"""totalseg as the contract has it: slices of cached volumes, a command, a mask on the scan's own grid, a cohort."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.pieces import SMALL, UNet, dice_of
from torch import Tensor, nn
from typer.testing import CliRunner

from medseg_core.cases import Case, read_cases, split_cases, write_cases
from medseg_core.checkpoint import Card, load_model
from medseg_core.cohort import Outcome, for_each
from medseg_core.config import setting
from medseg_core.draw import Batch, Draw
from medseg_core.infer import decide, infer
from medseg_core.io import read_volume, write_volume
from medseg_core.losses import dice_ce
from medseg_core.options import App, Out, Resume, flags
from medseg_core.run import RunFolder
from medseg_core.settings import TrainConfig
from medseg_core.store import Arrays, write_arrays
from medseg_core.trainer import At, Result, Score, Trainer
from medseg_core.volume import Volume, resample


@dataclass(frozen=True, kw_only=True)
class TotalsegConfig(TrainConfig):
    """CT network."""

    epochs: int = setting(150, "Passes over the slices.", low=1, exact=False)
    size: int = setting(256, "Edge of a slice, in pixels.", low=16)
    window_hu: tuple[float, float] = setting((-1000.0, 1000.0), "Intensities kept.")


app = App("medseg-core", "CT")


@app.command()
@flags(TotalsegConfig)
def train(data: Path, config: TotalsegConfig, out: Out, resume: Resume = False) -> None:
    """Learn from DATA."""
    totalseg_train(data, out, config, resume=bool(resume))


class Slices:
    def __init__(self, cases: Sequence[Arrays]) -> None:
        self.cases, self.places = cases, [(c, k) for c, a in enumerate(cases) for k in range(a["label"].shape[2])]

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, draw: Draw) -> Batch:
        case, k = self.places[draw.index]
        image, label = (np.array(self.cases[case][name][:, :, k]) for name in ("image", "label"))
        image = image + draw.numpy().normal(0, 0.05, image.shape)
        return {
            "image": torch.from_numpy(image.astype(np.float32))[None],
            "label": torch.from_numpy(label.astype(np.int64)),
        }


def segment_step(model: nn.Module, batch: Batch, at: At) -> Mapping[str, Tensor]:
    return {"loss": dice_ce(model(batch["image"]), batch["label"])}


def volume_dice(model: nn.Module, cases: Sequence[Arrays]) -> tuple[float, dict[str, float]]:
    ids = [model(torch.from_numpy(np.array(a["image"])).float().permute(2, 0, 1)[:, None]).argmax(1) for a in cases]
    dice = np.mean([dice_of(i.permute(1, 2, 0).numpy() == 1, a["label"] == 1) for i, a in zip(ids, cases, strict=True)])
    return float(dice), {"dice": float(dice)}


def totalseg_train(cache: Path, out: Path, config: TotalsegConfig, *, resume: bool = False) -> Result:
    cases = [Arrays(folder) for folder in sorted(cache.iterdir())]
    card = Card(
        package="medseg-totalseg",
        version="0.1.0",
        model="unet",
        arguments={"in_channels": 1, "num_classes": 3},
        inputs=("ct",),
        head="softmax",
        channels=(0, 1, 5),
        labels={1: "spleen", 5: "liver"},
        grid={"orientation": "RAS", "spacing_mm": (3.0, 3.0, 3.0)},
        intensity={"window_hu": config.window_hu},
    )
    run = RunFolder.open(out, config, resume=resume)
    trainer = Trainer(UNet(1, 3), segment_step, config=config, card=card, run=run)
    return trainer.fit(Slices(cases), lambda model, at: Score(*volume_dice(model, cases)))


def predict(ct: Volume, run: Path) -> Volume:
    model, card = load_model(run, {"unet": UNet})
    grid = ct.grid.oriented(card.grid["orientation"], tuple(card.grid["spacing_mm"]))
    low, high = card.intensity["window_hu"]
    image = (np.clip(resample(ct, grid).voxels, low, high) - low) / (high - low)
    ids = infer(lambda x: model(x[..., 0])[..., None], image[None], window=(32, 32, 1), reduce=decide(card))
    return resample(Volume(ids.astype(np.uint8), grid.affine), ct.grid, how="label")


def predict_all(cases: Sequence[Case], run: Path, out: Path) -> Outcome:
    return for_each(
        cases,
        lambda case: write_volume(predict(read_volume(case.files["ct"]), run), out / f"{case.id}.nii.gz"),
        out=out,
    )


def ct_of(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """HU and channel numbers: one bright box of each structure."""
    label = np.zeros((24, 20, 6), np.uint8)
    x, y = rng.integers(2, 6, 2)
    label[x : x + 8, y : y + 8], label[15:22, 10:18] = 1, 2
    return np.array([-900, 100, 700], np.int16)[label], label


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    folder = tmp_path_factory.mktemp("contract") / "cache"
    for n in range(3):
        image, label = ct_of(np.random.default_rng(n))
        write_arrays(folder / f"s{n}", {"image": (image + 1000) / 2000, "label": label}, {"n": n})
    return folder


def test_totalseg_trains_from_the_command_goes_on_and_predicts_on_the_scans_own_grid(cache, tmp_path):
    torch.manual_seed(0)
    small = ("--epochs", "8", "--lr", "0.02", "--batch-size", "4", "--device", "cpu", "--precision", "fp32")
    result = CliRunner().invoke(app, ["train", str(cache), "--out", str(tmp_path / "run"), *small])
    assert result.exit_code == 0, result.output
    best = (tmp_path / "run" / "best.safetensors").read_bytes()
    config = TotalsegConfig(epochs=8, lr=0.02, **{**SMALL, "schedule": "cosine"})
    again = totalseg_train(cache, tmp_path / "run", config, resume=True)
    assert (again.epochs, again.reason) == (8, "finished")
    assert (tmp_path / "run" / "best.safetensors").read_bytes() == best
    image, label = ct_of(np.random.default_rng(7))
    turned = np.array([[0, -3.0, 0, 50], [3.0, 0, 0, -20], [0, 0, -6.0, 10], [0, 0, 0, 1.0]])
    ct = Volume(image, turned)
    mask = predict(ct, tmp_path / "run")
    assert mask.grid.differs(ct.grid, tolerance_mm=0) is None
    assert set(np.unique(mask.voxels)) <= {0, 1, 5}
    assert dice_of(mask.voxels == 5, label == 2) > 0.7


def test_totalseg_does_of_a_cohort_only_what_is_missing(cache, tmp_path):
    totalseg_train(cache, tmp_path / "run", TotalsegConfig(epochs=1, **SMALL))
    for n in range(3):
        write_volume(Volume(ct_of(np.random.default_rng(n))[0], np.eye(4) * (3, 3, 3, 1)), tmp_path / f"s{n}.nii")
    (tmp_path / "s1.nii").write_bytes(b"half a file")
    write_cases(tmp_path / "cases.json", [Case(f"s{n}", {"ct": tmp_path / f"s{n}.nii"}) for n in range(3)])
    cases = split_cases(read_cases(tmp_path / "cases.json"), val=0.3)
    first = predict_all(cases, tmp_path / "run", tmp_path / "out")
    assert (set(first.done), list(first.failed)) == ({"s0", "s2"}, ["s1"])
    (tmp_path / "s1.nii").write_bytes((tmp_path / "s0.nii").read_bytes())
    second = predict_all(cases, tmp_path / "run", tmp_path / "out")
    assert (second.done, set(second.skipped), second.failed) == (("s1",), {"s0", "s2"}, {})
    assert sorted(p.name for p in (tmp_path / "out").glob("*.nii.gz")) == ["s0.nii.gz", "s1.nii.gz", "s2.nii.gz"]
