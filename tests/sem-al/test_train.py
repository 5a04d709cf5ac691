"""Training: the losses by hand, validation on whole pictures, what a run keeps, and that it goes on exactly."""

import json
import math
from dataclasses import replace
from shutil import copytree

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from typer.testing import CliRunner

from medseg_core.checkpoint import Card, load_model, read_card
from medseg_core.errors import MedsegError
from medseg_core.io import read_picture, write_text
from medseg_core.run import read_history
from medseg_sem_al.cli import app
from medseg_sem_al.index import build_index, read_index
from medseg_sem_al.models import MODELS
from medseg_sem_al.phantom import phantom
from medseg_sem_al.settings import IndexConfig, SegConfig
from medseg_sem_al.start import Start
from medseg_sem_al.train import MeanIoU, SegStep, card_of, logits_of, train

SMALL = {"width": 2, "size": 32, "epochs": 2, "epoch_windows": 8, "batch_size": 4, "val_every": 1, "device": "cpu"}


def loss(kind, logits, label):
    """Of one row of pixels, (K, W) logits and (W,) ids."""
    model = lambda image: torch.tensor(logits)[None, :, None]  # noqa: E731
    batch = {"image": None, "label": torch.tensor(label, dtype=torch.uint8)[None, None]}
    return SegStep(kind, len(logits))(model, batch, None)


def test_cross_entropy_of_two_pixels_by_hand():
    # p 0.75 and 0.5 of the true classes
    found = loss("ce", [[0.0, 0.0], [math.log(3), 0.0]], [1, 0])
    assert float(found["loss"]) == pytest.approx(-(math.log(0.75) + math.log(0.5)) / 2)


def test_pixels_beyond_the_picture_count_nowhere():
    with_them = loss("dice_ce", [[0.0, 0.0, 9.0], [math.log(3), 0.0, -9.0]], [1, 0, 255])
    without = loss("dice_ce", [[0.0, 0.0], [math.log(3), 0.0]], [1, 0])
    assert float(with_them["loss"]) == pytest.approx(float(without["loss"]))
    assert float(with_them["accuracy"]) == float(without["accuracy"])


def test_dice_ce_is_the_sum_of_both():
    pixels = [[2.0, -1.0, 0.5], [0.0, 1.0, 0.0]], [1, 1, 0]
    parts = [float(loss(kind, *pixels)["loss"]) for kind in ("dice", "ce")]
    assert float(loss("dice_ce", *pixels)["loss"]) == pytest.approx(sum(parts))


def test_scores_of_a_batch_by_hand():
    # true 0 0 1 1, predicted 0 1 1 1: IoU 1/2 and 2/3
    found = loss("ce", [[1.0, 0.0, 0.0, 0.0], [0.0, 1.0, 1.0, 1.0]], [0, 0, 1, 1])
    assert float(found["iou"]) == pytest.approx((1 / 2 + 2 / 3) / 2)
    assert float(found["dice"]) == pytest.approx((2 / 3 + 4 / 5) / 2)
    assert float(found["accuracy"]) == pytest.approx(3 / 4)


class Bright(nn.Module):
    """Class 1 where a value is above the mean, class 0 elsewhere."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, x_NCHW):
        return torch.cat([-x_NCHW, x_NCHW], 1) * self.scale


def test_validation_adds_up_whole_pictures_before_it_divides(index, tmp_path, monkeypatch):
    whole = read_index(index)
    cases = [case for case in whole.cases if case.split == "val"]
    labels = {case.id: np.full((64, 64), n % 2, np.uint8) for n, case in enumerate(cases)}
    labels[cases[0].id][:, :16] = 1
    greys = {case.id: np.tile(np.float32([1.0]), (64, 64)) for case in cases}  # all is class 1
    monkeypatch.setattr(type(whole), "label", lambda self, case: labels[case.id])
    monkeypatch.setattr(type(whole), "stack", lambda self, case: greys[case.id][None])
    about = {"head": "softmax", "channels": (0, 1), "labels": {0: "a", 1: "b"}}
    card = Card(package="x", version="0", model="y", **about, intensity={"mean": 0.5, "std": 0.5})
    card = replace(card, chosen={"colours": [[0, 0, 0], [9, 9, 9]]})
    ones, total = sum(int(label.sum()) for label in labels.values()), sum(label.size for label in labels.values())
    at = type("At", (), {"epoch": 0})()
    found = MeanIoU(whole, cases, card, SegStep("ce", 2), tmp_path)(Bright().eval(), at)
    assert found.value == pytest.approx((0 + ones / total) / 2)
    assert found.blank  # one class everywhere


def test_a_picture_of_any_size_gets_logits_of_its_size(index):
    card = Card(package="x", version="0", model="y", intensity={"mean": 0.0, "std": 1.0})
    image = np.random.default_rng(0).random((45, 77)).astype(np.float32)
    logits = logits_of(Bright().eval(), image[None], card)
    np.testing.assert_allclose(logits, [-image, image], atol=1e-5)


def test_a_run_keeps_the_split_of_the_index_and_names_its_classes(index, run):
    parts = json.loads((run / "split.json").read_text())
    cases = read_index(index).cases
    for part in ("train", "val", "test"):
        assert sorted(parts[part]) == sorted(case.id for case in cases if case.split == part)
    card = read_card(run)
    assert card.labels == {0: "carbon", 1: "SE", 2: "AM"}
    assert card.chosen["colours"] == [[0, 0, 255], [0, 255, 255], [255, 126, 126]]


def test_values_are_scaled_by_pictures_that_are_neither_validated_nor_tested_on(index, run):
    cases = [case for case in read_index(index).cases if case.split in ("train", "")]
    mean = np.mean([case.notes["mean"] for case in cases])  # all of one size
    assert read_card(run).intensity["mean"] == pytest.approx(mean, abs=1e-6)


def test_a_run_shows_a_validated_picture_beside_its_truth(run):
    shown = sorted((run / "samples").iterdir())
    assert len(shown) == 2
    assert read_picture(shown[0]).pixels.shape == (64, 4 * 64 + 3 * 6, 3)


def test_history_has_the_iou_of_each_class_and_the_majority(run):
    history = read_history(run)
    for name in ("val_iou", "val_iou_SE", "val_dice", "val_loss", "val_majority", "train_loss", "train_accuracy"):
        assert len(history[name]) == 2, name


def test_a_run_that_was_stopped_ends_in_the_same_bits(index, run, tmp_path):
    again = copytree(run, tmp_path / "run")
    config = SegConfig(**SMALL, save_every=1)
    train(index, again, config, resume=str(again / "checkpoints" / "epoch_0001"))
    one, other = (load_file(folder / "last" / "state.safetensors") for folder in (run, again))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_frozen_encoder_stays_to_the_last_bit(index, run, tmp_path):
    before, _ = load_model(run, MODELS)
    train(index, tmp_path / "run", SegConfig(**SMALL, mode="frozen"), start=Start(init=run))
    after, _ = load_model(tmp_path / "run", MODELS)
    moved = {name for name, tensor in after.state_dict().items() if not torch.equal(tensor, before.state_dict()[name])}
    assert moved
    assert all(name.startswith("decoder") for name in moved)


def test_a_differential_encoder_learns_slower(index, run, tmp_path):
    config = SegConfig(**{**SMALL, "epochs": 1, "epoch_windows": 4}, ema=0.0, mode="differential", encoder_lr=1e-5)
    before, _ = load_model(run, MODELS)
    train(index, tmp_path / "run", config, start=Start(init=run))
    after, _ = load_model(tmp_path / "run", MODELS)
    step = lambda part: max(  # noqa: E731
        float((a - b).detach().abs().max())
        for a, b in zip(getattr(after, part).parameters(), getattr(before, part).parameters(), strict=True)
    )
    assert step("encoder") == pytest.approx(1e-5, rel=0.2)  # Adam's first step is as long as the rate
    assert step("decoder") == pytest.approx(1e-3, rel=0.2)


def test_the_original_net_is_a_choice_of_encoder_and_brings_its_decoder(index):
    whole = read_index(index)
    assert card_of(whole, whole.cases, SegConfig(encoder="six_levels")).model == "six_levels"
    with pytest.raises(MedsegError, match="six_levels has a decoder of its own"):
        card_of(whole, whole.cases, SegConfig(encoder="six_levels", decoder="deeplabv3plus"))


def test_settings_that_cannot_be_cost_no_run(index, tmp_path):
    write_text(tmp_path / "run" / "mine.txt", "kept")
    with pytest.raises(MedsegError, match="gamma_range"):
        train(index, tmp_path / "run", SegConfig(**SMALL, gamma_range=(2.0, 1.0)), overwrite=True)
    assert (tmp_path / "run" / "mine.txt").read_text() == "kept"


def test_a_data_set_that_is_not_there_is_refused(index, tmp_path):
    with pytest.raises(MedsegError, match=r"no data set 'dota'.*data"):
        train(index, tmp_path / "run", SegConfig(**SMALL, datasets=("dota",)))


def test_an_index_without_masks_is_refused(tmp_path):
    root = phantom(tmp_path / "data", num_images=3, num_labelled=0, size=64)
    build_index(root, IndexConfig()).write(tmp_path / "index.json")
    with pytest.raises(MedsegError, match="no labels"):
        train(tmp_path / "index.json", tmp_path / "run", SegConfig(**SMALL))


def test_the_command_trains_and_finetune_asks_for_weights(index, tmp_path):
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in SMALL.items()]
    done = CliRunner().invoke(app, ["train", str(index), "--out", str(tmp_path / "run"), "--json", *flags])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["epochs"] == 2
    asked = CliRunner().invoke(app, ["finetune", str(index), "--out", str(tmp_path / "other"), *flags])
    assert asked.exit_code == 2
    assert not (tmp_path / "other").exists()


def test_weights_that_do_not_fit_touch_no_run(index, run, tmp_path):
    write_text(tmp_path / "run" / "mine.txt", "kept")
    with pytest.raises(MedsegError, match=r"settings of the two networks differ|no tensor|lacks|unknown"):
        train(index, tmp_path / "run", SegConfig(**{**SMALL, "width": 3}), start=Start(init=run), overwrite=True)
    assert (tmp_path / "run" / "mine.txt").read_text() == "kept"
