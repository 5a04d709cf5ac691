import json
import shutil

import numpy as np
import pytest
import torch
from torch import nn

from medseg_cardiac import train as module
from medseg_cardiac.cohort import slices_of
from medseg_cardiac.dataset import discover
from medseg_cardiac.models import MODELS
from medseg_cardiac.predictor import Predictor
from medseg_cardiac.settings import MotionConfig, PredictConfig, RegistrationConfig, SegmentationConfig
from medseg_cardiac.tracking import dice_of
from medseg_cardiac.train import infarct_of, train_motion, train_registration, train_segmentation
from medseg_core.checkpoint import Card, load_model, read_card, save_model
from medseg_core.errors import MedsegError
from medseg_core.run import read_history


class Shift(nn.Module):
    """A registration net that knows one answer: what stands `pixels` farther along axis 0."""

    def __init__(self, pixels):
        super().__init__()
        self.pixels = nn.Parameter(torch.tensor(float(pixels)))

    def forward(self, moving, fixed):
        flow = torch.zeros(1, 2, *fixed.shape[2:])
        flow[:, 0] = self.pixels
        return flow


def test_the_weights_file_carries_the_motion_net_as_it_was_trained(run, motion):
    card = read_card(run)
    assert (card.package, card.model, card.head, card.labels) == (
        "medseg-cardiac",
        "cascade",
        "sigmoid",
        {1: "infarct"},
    )
    alone, whole = load_model(motion, MODELS)[0], load_model(run, MODELS)[0]
    kept = whole.motion.state_dict()
    assert all(torch.equal(tensor, kept[name]) for name, tensor in alone.state_dict().items())


def test_the_parts_of_each_loss_are_logged_apart(run, motion, registration):
    assert {"train_photometric", "train_smoothness", "val_dice", "val_dice_unmoved"} <= read_history(motion).keys()
    assert {"train_photometric", "train_smoothness", "val_dice", "val_dice_unmoved"} <= read_history(
        registration
    ).keys()
    assert {"train_dice_loss", "train_focal", "val_dice"} <= read_history(run).keys()


def test_the_run_folder_says_who_was_held_out(motion):
    split = json.loads((motion / "split.json").read_text())
    assert sorted(len(split[part]) for part in ("train", "val", "test")) == [0, 1, 2]


def test_equal_settings_make_equal_weights(cohort, motion, tmp_path, small):
    train_motion(cohort, tmp_path / "again", MotionConfig(pairs_per_slice=1, **small))
    assert (tmp_path / "again" / "best.safetensors").read_bytes() == (motion / "best.safetensors").read_bytes()


def test_a_training_that_was_killed_goes_on_to_the_same_weights(cohort, motion, tmp_path, small, monkeypatch):
    config = SegmentationConfig(width=4, save_seconds=0, **{**small, "epochs": 2})
    train_segmentation(cohort, tmp_path / "whole", config, motion=motion)
    step, calls = module.infarct_step, []

    def killed(model, batch, at):
        calls.append(at)
        if len(calls) == 2:  # one update an epoch
            raise KeyboardInterrupt
        return step(model, batch, at)

    monkeypatch.setattr(module, "infarct_step", killed)
    with pytest.raises(KeyboardInterrupt):
        train_segmentation(cohort, tmp_path / "run", config, motion=motion)
    with pytest.raises(MedsegError, match="--resume"):
        train_segmentation(cohort, tmp_path / "run", config, motion=motion)
    result = train_segmentation(cohort, tmp_path / "run", config, motion=motion, resume="last")
    assert (result.epochs, len(calls)) == (2, 3)  # the first epoch was not done again
    one, other = ((tmp_path / name / "best.safetensors").read_bytes() for name in ("whole", "run"))
    assert one == other


def test_infarct_labels_are_brought_from_lge_to_the_cine_before_training(motion):
    """The phantom knows where the infarct is in the cine, which nothing here is shown."""
    slices = [one for case in ("p0000", "p0001", "p0002") for one in slices_of(motion / "cache" / case)]
    slices = [one for one in slices if one.mask("mi").any()]
    assert slices
    moved, left = (
        np.mean([dice_of(infarct_of(one, net), one.mask("mi") & one.mask("myo")) for one in slices])
        for net in (Shift(0), None)
    )
    assert moved > left + 0.1


def test_without_a_registration_net_geometry_alone_says_where_the_infarct_is(motion):
    one = slices_of(motion / "cache" / "p0000")[0]
    np.testing.assert_array_equal(infarct_of(one, None), one.mask("lge_mi") & one.mask("myo"))


def test_without_lge_there_is_no_registration_and_no_infarct_to_train(cohort, motion, tmp_path, small):
    data = shutil.copytree(cohort, tmp_path / "data", ignore=shutil.ignore_patterns("truth", "lge"))
    with pytest.raises(MedsegError, match="has cine and lge and lge_myo and myo"):
        train_registration(data, tmp_path / "run", RegistrationConfig(**small))
    with pytest.raises(MedsegError, match="has cine and lge_mi and myo"):
        train_segmentation(data, tmp_path / "run2", SegmentationConfig(width=4, **small), motion=motion)


def test_motion_trains_on_patients_without_any_mask(cohort, tmp_path, small):
    data = tmp_path / "data"
    shutil.copytree(cohort / "images" / "cmr", data / "images" / "cmr")
    result = train_motion(data, tmp_path / "run", MotionConfig(pairs_per_slice=1, **small))
    assert "explained" in result.best.metrics
    assert "dice" not in result.best.metrics


def test_a_net_of_another_kind_is_named_before_any_work(cohort, run, motion, registration, tmp_path, small):
    save_model(
        tmp_path / "w.safetensors", nn.Linear(1, 1), Card(package="medseg-totalseg", version="0", model="unet2d")
    )
    config = SegmentationConfig(width=4, **small)
    for wrong in (registration, run, tmp_path / "w.safetensors"):
        with pytest.raises(
            MedsegError, match="where a motion net is meant; give a run of `medseg cardiac train-motion`"
        ):
            train_segmentation(cohort, tmp_path / "run", config, motion=wrong)
    with pytest.raises(MedsegError, match="where a registration net is meant"):
        train_segmentation(cohort, tmp_path / "run", config, motion=motion, registration=motion)
    assert not (tmp_path / "run").exists()


def test_motion_learnt_on_other_pixels_is_refused_with_the_flag_that_mends_it(cohort, motion, tmp_path, small):
    config = SegmentationConfig(width=4, pixel_mm=2.0, **small)
    with pytest.raises(MedsegError, match=r"trained on pixels of 3\.\d+ mm, this data has 2; add --pixel-mm 3"):
        train_segmentation(cohort, tmp_path / "run", config, motion=motion)


def test_defaults_are_the_ones_of_the_task():
    infarct = SegmentationConfig()
    assert (infarct.size, infarct.width, infarct.epochs, infarct.optimizer) == (256, 64, 100, "adamw")


def test_prediction_shows_the_net_the_displacement_that_training_showed_it(cohort, run, motion, monkeypatch):
    """Up to the rounding of a cache that holds 16 bits."""
    one = slices_of(run / "cache" / "p0000")[0]
    (trained,) = module._flows([one], motion, SegmentationConfig())
    predictor = Predictor(run, config=PredictConfig(refine=0, device="cpu", precision="fp32"))
    seen = []
    forward = predictor.net.segment.forward
    monkeypatch.setattr(predictor.net.segment, "forward", lambda x: seen.append(x) or forward(x))
    predictor.slice(discover(cohort)[0].planes[0], track=False)
    np.testing.assert_allclose(seen[0][0, 1:3].numpy(), trained, atol=0.05)
    assert np.abs(trained).max() > 0.5
