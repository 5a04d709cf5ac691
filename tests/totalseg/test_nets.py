"""Each network from a cohort to masks: trained, predicted, and together with the others."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from torch import nn

from medseg_core.checkpoint import Card, load_model, read_card, save_model
from medseg_core.errors import MedsegError
from medseg_core.io import read_volume
from medseg_core.run import read_history
from medseg_core.volume import resample
from medseg_totalseg.inference import infer_volume, mirror_channels, window_of
from medseg_totalseg.models import MODELS
from medseg_totalseg.predict import Predictor
from medseg_totalseg.settings import PredictConfig
from medseg_totalseg.train import rehearse, train

CPU = PredictConfig(device="cpu", precision="fp32")


@pytest.fixture(scope="module")
def in_3d(quick):
    return dataclasses.replace(
        quick, net="unet3d", patch=(32, 32, 32), patches_per_case=3, batch_size=3, deep_supervision=True, foreground=1.0
    )


@pytest.fixture(scope="module")
def run3d(run, in_3d, tmp_path_factory):
    """Two epochs of the 3D network on the cohort that `run` prepared."""
    out = tmp_path_factory.mktemp("run3d") / "run"
    train(run / "cache", out, in_3d)
    return out


@pytest.fixture
def scan(cohort):
    return read_volume(cohort / "s0001" / "ct.nii.gz")


def test_a_run_in_3d_says_so_in_its_card(run3d):
    card = read_card(run3d)
    assert card.model == "unet3d"
    assert card.grid["patch"] == [32, 32, 32]
    assert card.arguments["deep_supervision"] is True
    assert "size" not in card.grid
    assert json.loads((run3d / "config.json").read_text())["widths"] == [4, 8, 16]


def test_a_run_in_3d_is_validated_on_whole_volumes(run3d):
    history = read_history(run3d)
    assert all(0 <= value <= 1 for value in history["val_dice"])
    assert list((run3d / "samples").glob("epoch_0002_*.png"))
    assert (run3d / "augmented.png").is_file()


def test_attention_gates_are_trained_by_their_name(run, quick, tmp_path):
    facts = rehearse(run / "cache", tmp_path / "dry", dataclasses.replace(quick, net="unet2d-attention"))
    assert facts["network"] == "unet2d-attention of widths 4, 8, 16"
    assert 0 < facts["loss"] < 100


def test_rehearsal_in_3d_tells_parameters_memory_and_seconds(run, in_3d, tmp_path):
    facts = rehearse(run / "cache", tmp_path / "dry", in_3d)
    assert facts["training patches"] == 6
    assert facts["image"].startswith("(3, 1, 32, 32, 32) from ")
    net = MODELS["unet3d"](1, len(read_card(run).channels), widths=(4, 8, 16), deep_supervision=True)
    assert facts["parameters"] == sum(p.numel() for p in net.parameters())
    assert facts["steps_per_epoch"] == 2
    assert facts["peak_memory_mb"] > 100
    assert facts["seconds_per_step"] > 0
    assert (tmp_path / "dry" / "batch.png").is_file()


@pytest.mark.parametrize(("patch", "near"), [((32, 30, 32), "32x28x32 or 32x32x32"), ((4, 4, 4), "8x8x8")])
def test_a_patch_that_cannot_be_divided_is_refused_before_any_work(cohort, in_3d, tmp_path, patch, near):
    with pytest.raises(MedsegError, match=f"try {near}"):
        train(cohort, tmp_path / "run", dataclasses.replace(in_3d, patch=patch))
    assert not (tmp_path / "run").exists()


def test_another_orientation_of_the_same_scan_gets_the_same_mask_in_3d(run3d, scan):
    predictor = Predictor(run3d, config=CPU)
    turned = resample(scan, scan.grid.oriented("LPS"))
    expected = resample(predictor.predict(scan), turned.grid, how="label")
    np.testing.assert_array_equal(predictor.predict(turned).voxels, expected.voxels)


def test_slices_and_patches_make_an_ensemble_of_equal_voices():
    """One window, so nothing is blended: the mean of both softmaxes, the slices' taken plane by plane."""
    torch.manual_seed(0)
    flat, deep = MODELS["unet2d"](1, 4, widths=(4, 8)).eval(), MODELS["unet3d"](1, 4, widths=(4, 8)).eval()
    cards = [card_of(PAIRED, size=16), card_of(PAIRED, patch=[16, 16, 8])]
    image = torch.randn(16, 16, 8)
    with torch.no_grad():
        by_planes = torch.stack([flat(image[None, None, :, :, k])[0].softmax(0) for k in range(8)], -1)
        expected = (by_planes + deep(image[None, None])[0].softmax(0)) / 2
    found = infer_volume([flat, deep], image.numpy(), cards, reduce=lambda y: y.softmax(0))
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_runs_of_slices_and_of_patches_are_loaded_together(run, run3d):
    assert [card.model for card in Predictor(run, run3d, config=CPU).cards] == ["unet2d", "unet3d"]


def test_runs_on_another_spacing_make_no_ensemble(run, tmp_path):
    net, card = load_model(run, MODELS)
    other = dataclasses.replace(card, grid={**card.grid, "spacing_mm": [1.0, 1.0, 1.0]})
    save_model(tmp_path / "other.safetensors", net, other)
    with pytest.raises(MedsegError, match="differ in spacing"):
        Predictor(run, tmp_path / "other.safetensors", config=CPU)


def card_of(labels, *, head="softmax", **grid):
    channels = (0, *labels) if head == "softmax" else tuple(labels)
    return Card(
        package="medseg-totalseg", version="0", model="unet2d", arguments={"widths": [4, 8, 16]}, head=head,
        channels=channels, labels=labels, grid=grid,
    )  # fmt: skip


def test_a_window_is_a_whole_plane_and_with_patches_the_largest_patch():
    planes, small, large = (
        card_of({1: "liver"}, size=64),
        card_of({}, patch=[32, 32, 16]),
        card_of({}, patch=[8, 40, 8]),
    )
    assert window_of([planes], (30, 41, 9)) == (32, 44, 1)
    assert window_of([planes], (30, 800, 9)) == (32, 64, 1)
    assert window_of([planes, small, large], (100, 100, 100)) == (32, 40, 16)


@pytest.mark.parametrize(("edge", "at_once"), [(64, 8), (512, 2), (768, 1)])
def test_planes_that_are_large_come_in_small_batches(edge, at_once):
    """8 planes of 256 x 256 hold as many pixels as 2 of 512 x 512."""
    seen = []

    def net(x):
        seen.append(len(x))
        return x

    infer_volume([net], np.zeros((edge, edge, 9), np.float32), [card_of({}, size=64)], reduce=lambda y: y[0].byte())
    assert max(seen) == at_once


PAIRED = {3: "kidney_left", 5: "liver", 9: "kidney_right"}


def test_a_mirror_swaps_the_channels_of_left_and_right():
    assert mirror_channels(card_of(PAIRED)) == {1: 3, 3: 1}
    assert mirror_channels(card_of(PAIRED, head="sigmoid")) == {0: 2, 2: 0}


def test_a_mirror_without_the_other_side_is_refused():
    with pytest.raises(MedsegError, match="knows one of kidney_left; use mirror none"):
        mirror_channels(card_of({3: "kidney_left", 5: "liver"}))


class Half(nn.Module):
    """Calls the half of lower X of what is bright "left", that of upper X "right", as a net sure of itself would."""

    def forward(self, x):
        bright, left = x > 0.5, torch.zeros_like(x, dtype=torch.bool)
        left[:, :, : x.shape[2] // 2] = True
        return torch.cat([~bright, bright & left, torch.zeros_like(bright), bright & ~left], 1).float() * 9


@pytest.mark.parametrize("mirror", ["left-right", "all"])
@pytest.mark.parametrize("grid", [{"size": 8}, {"patch": [8, 8, 8]}])
def test_a_net_that_knows_its_sides_answers_the_same_with_mirrors(grid, mirror):
    image = np.random.default_rng(0).random((8, 8, 8), np.float32)
    plain, mirrored = (
        infer_volume([Half().eval()], image, [card_of(PAIRED, **grid)], reduce=lambda y: y.argmax(0).byte(), mirror=how)
        for how in ("none", mirror)
    )
    assert set(np.unique(plain)) == {0, 1, 3}
    np.testing.assert_array_equal(mirrored, plain)


def test_mirrors_are_refused_before_a_scan_is_read(cohort, run, tmp_path):
    net, card = load_model(run, MODELS)
    one_sided = dataclasses.replace(card, labels={**card.labels, card.channels[1]: "kidney_left"})
    save_model(tmp_path / "one.safetensors", net, one_sided)
    with pytest.raises(MedsegError, match="use mirror none"):
        Predictor(tmp_path / "one.safetensors", config=PredictConfig(device="cpu", mirror="left-right"))
