"""Training: the losses by hand, validation by patient, what a run keeps, and that it goes on exactly."""

import json
import math
import tomllib
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tests.fusion.conftest import planes
from torch import nn
from typer.testing import CliRunner

from medseg_core.checkpoint import load_model, read_card
from medseg_core.errors import MedsegError
from medseg_core.store import Arrays, write_arrays
from medseg_fusion.cli import app
from medseg_fusion.models import MODELS
from medseg_fusion.phantom import phantom
from medseg_fusion.prepare import prepare, read_cohort
from medseg_fusion.settings import FusionConfig, PrepareConfig
from medseg_fusion.train import FusionStep, PatientDice, card_of, probabilities, train

SMALL = {"net": "early", "width": 2, "epochs": 2, "num_workers": 0, "size": 32, "device": "cpu", "save_every": 1}


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fusion")
    prepare(phantom(folder / "data", num_cases=4), folder / "cache", PrepareConfig(spacing_mm=(8.0, 8.0, 24.0)))
    return folder / "cache"


def losses(logits, label, **settings):
    """Of one slice of two pixels."""
    model = lambda image, present: torch.tensor(logits).reshape(1, 1, 1, 2)  # noqa: E731
    batch = {"image": None, "present": None, "label": torch.tensor(label).reshape(1, 1, 1, 2)}
    return {name: float(value) for name, value in FusionStep(FusionConfig(**settings))(model, batch, None).items()}


def test_cross_entropy_of_two_pixels_by_hand():
    # p 0.75 where it is, 0.5 where it is not: -(ln 0.75 + ln 0.5) / 2
    found = losses([math.log(3), 0.0], [1, 0], loss="ce")
    assert found["loss"] == pytest.approx(-(math.log(0.75) + math.log(0.5)) / 2)


def test_tversky_weighs_false_positives_by_alpha_and_false_negatives_by_beta():
    # p 0.75 inside, 0.5 outside; TP 0.75, FP 0.5, FN 0.25, smooth 1
    found = losses([math.log(3), 0.0], [1, 0], loss="tversky", tversky_alpha=0.6, tversky_beta=0.4)
    assert found["loss"] == pytest.approx(1 - 1.75 / (1.75 + 0.6 * 0.5 + 0.4 * 0.25))


def test_combined_is_the_weighted_sum_and_tells_its_parts():
    dice = losses([2.0, -1.0], [1, 0], loss="dice")["loss"]
    ce = losses([2.0, -1.0], [1, 0], loss="ce")["loss"]
    found = losses([2.0, -1.0], [1, 0], dice_weight=0.7, ce_weight=0.2)
    assert found["loss"] == pytest.approx(0.7 * dice + 0.2 * ce)
    assert found["loss"] == pytest.approx(found["dice_loss"] + found["ce"])


def test_focal_of_one_sure_and_one_unsure_pixel_by_hand():
    # -(0.25^2 ln 0.75 + 0.5^2 ln 0.5) / 2
    found = losses([math.log(3), 0.0], [1, 0], loss="focal")
    assert found["loss"] == pytest.approx(-(0.25**2 * math.log(0.75) + 0.5**2 * math.log(0.5)) / 2)


class Given(nn.Module):
    """Logits that are the CT channel: 0 to 1 becomes a probability of itself."""

    def __init__(self):
        super().__init__()
        self.none = nn.Parameter(torch.zeros(1))

    def forward(self, image, present):
        return torch.logit(image[:, :1].clamp(1e-4, 1 - 1e-4))


def stored(folder, name, probs, label):
    """A patient of four pixels in 8 bits, whose CT is what `Given` answers."""
    ct = np.array(probs).reshape(2, 2, 1) * 255
    arrays = {"ct": ct.astype(np.uint8), "pet": np.zeros((2, 2, 1), np.uint8)}
    arrays["label"] = np.array(label, np.uint8).reshape(2, 2, 1)
    write_arrays(folder / name, arrays, {"unit": "8 bits", "spacing": [1, 1, 1]})
    return Arrays(folder / name)


def test_the_threshold_is_the_best_for_patients_with_tumour_and_others_are_counted_apart(tmp_path):
    ill = stored(tmp_path, "ill", [0.9, 0.72, 0.48, 0.1], [1, 1, 0, 0])
    well = stored(tmp_path, "well", [0.8, 0.1, 0.1, 0.1], [0, 0, 0, 0])
    config = FusionConfig(net="early", width=2, loss="ce")
    score = PatientDice([ill, well], card_of([ill], config), FusionStep(config))(Given(), SimpleNamespace())
    assert score.value == 1.0  # from 0.5 to 0.7 the mask is the label
    assert 0.5 <= score.chosen["threshold"] <= 0.7
    loss = score.metrics.pop("loss")
    assert score.metrics == {
        "dice": 1.0,
        "dice_at_half": 1.0,
        "iou": 1.0,
        "invented": 1.0,
        "accuracy": 7 / 8,
        "background": 6 / 8,
    }
    right = (0.9, 0.72, 0.52, 0.9, 0.2, 0.9, 0.9, 0.9)  # probability of what is true, of four voxels of each
    assert loss == pytest.approx(-sum(map(math.log, right)) / 8, abs=0.01)


def test_accuracy_stands_beside_the_share_of_background():
    found = losses([1.0, 1.0], [1, 0])
    assert (found["dice"], found["iou"]) == (pytest.approx(2 / 3), 0.5)
    assert (found["accuracy"], found["background"]) == (0.5, 0.5)


def test_slices_are_asked_as_they_lie(tmp_path):
    ill = stored(tmp_path, "ill", [0.2, 0.4, 0.6, 0.8], [1, 1, 0, 0])
    card = card_of([ill], FusionConfig(net="early", width=2))
    found = probabilities(Given(), ill["ct"], ill["pet"], card)
    np.testing.assert_allclose(found[..., 0], [[0.2, 0.4], [0.6, 0.8]], atol=1e-6)


def test_a_card_holds_the_norm_and_the_attention_that_were_asked_for(tmp_path):
    ill = stored(tmp_path, "ill", [0.2, 0.4, 0.6, 0.8], [1, 1, 0, 0])
    card = card_of([ill], FusionConfig(net="four_way", width=2, norm="instance", attention="unscaled"))
    assert {"norm": "instance", "attention": "unscaled"}.items() <= card.arguments.items()


@pytest.mark.parametrize("net", MODELS)
def test_a_run_keeps_the_split_and_a_threshold_with_the_weights(cache, tmp_path, net):
    train(cache, tmp_path / "run", FusionConfig(**{**SMALL, "net": net, "epochs": 1}))
    model, card = load_model(tmp_path / "run", MODELS)
    assert type(model) is MODELS[net]
    assert 0.1 <= card.chosen["threshold"] <= 0.9
    assert (card.intensity["ct"], card.intensity["pet"]) == ([-160.0, 240.0], [0.0, 15.0])
    split = json.loads((tmp_path / "run" / "split.json").read_text())
    assert sorted(split["train"] + split["val"]) == [case.id for case in read_cohort(cache)]


def test_a_run_that_goes_on_ends_in_the_same_bits(cache, tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    config = FusionConfig(**{**SMALL, "drop_chance": 0.2, "misalign_mm": 3.0})
    train(cache, whole, config)
    train(cache, parts, config)
    train(cache, tmp_path / "again", config, resume=str(parts / "checkpoints" / "epoch_0001"))
    assert (whole / "best.safetensors").read_bytes() == (tmp_path / "again" / "best.safetensors").read_bytes()


def test_patients_without_masks_are_no_training(draw, tmp_path):
    prepare(draw(planes(["a_slice_1"], roles=("CT", "PET"))), tmp_path / "cache", PrepareConfig())
    with pytest.raises(MedsegError, match=r"no patient of .* has a mask"):
        train(tmp_path / "cache", tmp_path / "run", FusionConfig(**SMALL))


def test_pictures_train_in_8_bits(draw, tmp_path):
    prepare(draw(planes([f"{p}_slice_{n}" for p in "abcde" for n in (1, 2)])), tmp_path / "cache", PrepareConfig())
    train(tmp_path / "cache", tmp_path / "run", FusionConfig(**{**SMALL, "epochs": 1}))
    assert read_card(tmp_path / "run").intensity["unit"] == "8 bits"


@pytest.mark.parametrize("name", ["default", "focal", "large-batch"])
def test_shipped_configs_are_called_by_name(name):
    shown = CliRunner().invoke(app, ["train", "CACHE", "--config", name, "--print-config"])
    assert shown.exit_code == 0, shown.output
    told = tomllib.loads(shown.stdout)
    wanted = {"default": ("combined", 8, 1e-4), "focal": ("focal", 8, 1e-4), "large-batch": ("combined", 32, 2e-4)}
    assert (told["loss"], told["batch_size"], told["lr"]) == wanted[name]


def test_a_refused_call_leaves_the_split_of_a_run(cache, tmp_path):
    config = FusionConfig(**{**SMALL, "epochs": 1})
    train(cache, tmp_path / "run", config)
    begun = (tmp_path / "run" / "split.json").read_text()
    split = json.loads(begun)
    other = {**split, "train": split["train"][1:] + split["val"], "val": split["train"][:1]}
    (tmp_path / "other.json").write_text(json.dumps(other))
    with pytest.raises(MedsegError, match="has another split"):
        train(cache, tmp_path / "run", config, splits=tmp_path / "other.json", resume="last")
    assert (tmp_path / "run" / "split.json").read_text() == begun


@pytest.mark.parametrize("wrong", [{"net": "four_way", "vgg": "nope.pth"}, {"device": "tpu"}])
def test_wrong_settings_cost_no_run_that_was_to_be_overwritten(cache, tmp_path, wrong):
    train(cache, tmp_path / "run", FusionConfig(**{**SMALL, "epochs": 1}))
    with pytest.raises(MedsegError):
        train(cache, tmp_path / "run", FusionConfig(**{**SMALL, **wrong}), overwrite=True)
    assert (tmp_path / "run" / "best.safetensors").is_file()


def test_a_run_that_is_overwritten_may_have_another_split(cache, tmp_path):
    for val in ("p000", "p001"):
        parts = {"train": sorted({"p000", "p001", "p002", "p003"} - {val}), "val": [val], "test": []}
        (tmp_path / "split.json").write_text(json.dumps({"seed": 0, "unit": "group", **parts}))
        config = FusionConfig(**{**SMALL, "epochs": 1})
        train(cache, tmp_path / "run", config, splits=tmp_path / "split.json", overwrite=True)
    assert json.loads((tmp_path / "run" / "split.json").read_text())["val"] == ["p001"]
