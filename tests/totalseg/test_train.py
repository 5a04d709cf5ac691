import dataclasses
import json
import shutil

import numpy as np
import pytest
import torch
from torch import nn

from medseg_core.checkpoint import read_card
from medseg_core.config import resolve
from medseg_core.errors import MedsegError
from medseg_core.run import read_history
from medseg_totalseg import plan as module
from medseg_totalseg.plan import complete, strides_for
from medseg_totalseg.settings import TotalsegConfig
from medseg_totalseg.train import SegmentStep, rehearse, shrunk, train


def test_the_run_folder_says_what_was_trained_on_what(run):
    card = read_card(run)
    assert (card.package, card.head, card.channels[0]) == ("medseg-totalseg", "softmax", 0)
    assert {"liver", "spleen"} <= set(card.labels.values())
    assert "aorta" not in card.labels.values()
    assert card.grid["orientation"] == "RAS"
    split = json.loads((run / "split.json").read_text())
    assert {kind: len(split[kind]) for kind in ("train", "val", "test")} == {"train": 2, "val": 1, "test": 1}
    assert (run / "augmented.png").is_file()
    assert list((run / "samples").glob("epoch_0002_*.png"))


def test_validation_and_training_scores_are_in_the_history(run):
    history = read_history(run)
    assert {"train_loss", "train_dice", "val_dice", "val_iou", "val_accuracy", "lr", "seconds"} <= history.keys()
    assert all(0 <= value <= 1 for value in history["val_dice"])


def test_equal_settings_make_equal_weights(cohort, run, tmp_path, quick):
    train(cohort, tmp_path / "again", quick)
    assert (tmp_path / "again" / "best.safetensors").read_bytes() == (run / "best.safetensors").read_bytes()


def test_a_single_case_trains_without_validation_and_says_so(cohort, tmp_path, caplog, quick):
    with caplog.at_level("INFO"):
        result = train(cohort / "s0000", tmp_path / "run", dataclasses.replace(quick, epochs=1))
    assert result.best is None
    assert "last weights are kept as best" in caplog.text
    assert not [name for name in read_history(tmp_path / "run") if name.startswith("val")]


def test_a_bad_case_costs_only_itself(cohort, tmp_path, caplog, quick):
    data = shutil.copytree(cohort, tmp_path / "data")
    (data / "s0000" / "ct.nii.gz").write_bytes(b"junk")
    train(data, tmp_path / "run", dataclasses.replace(quick, epochs=1))
    assert "s0000" in caplog.text
    assert "s0000" not in (tmp_path / "run" / "split.json").read_text()


def test_a_size_that_cannot_be_halved_is_refused_before_any_work(cohort, tmp_path, quick):
    with pytest.raises(MedsegError, match="try 64 or 68"):
        train(cohort, tmp_path / "run", dataclasses.replace(quick, size=66))
    assert not (tmp_path / "run").exists()


def test_a_split_without_training_cases_is_one_line(run, quick, tmp_path):
    split = {"seed": 0, "unit": "group", "train": [], "val": ["s0000", "s0001"], "test": ["s0002", "s0003"]}
    (tmp_path / "split.json").write_text(json.dumps(split))
    with pytest.raises(MedsegError, match=r"no case of .* is in the training split"):
        train(run / "cache", tmp_path / "run", quick, splits=tmp_path / "split.json")


def test_a_wrong_loss_names_the_right_ones(cohort, tmp_path, quick):
    with pytest.raises(MedsegError, match="'dise_ce'; did you mean 'dice_ce'"):
        train(cohort, tmp_path / "run", dataclasses.replace(quick, loss="dise_ce"))


def test_rehearsal_says_what_goes_in_and_trains_nothing(cohort, tmp_path, quick):
    facts = rehearse(cohort, tmp_path / "dry", quick)
    assert facts["head and loss"] == "softmax, dice_balanced_ce"
    assert facts["image"].startswith("(16, 1, 64, 64) from ")
    assert "background" in facts["labels present"]
    assert (tmp_path / "dry" / "batch.png").is_file()
    assert not (tmp_path / "dry" / "best.safetensors").exists()


def test_overlapping_structures_get_a_yes_or_no_each(cohort, tmp_path, monkeypatch, quick):
    monkeypatch.setattr(module, "OVERLAP", -1.0)
    train(cohort, tmp_path / "run", dataclasses.replace(quick, epochs=1))
    card = read_card(tmp_path / "run")
    assert card.head == "sigmoid"
    assert 0 not in card.channels


def test_the_batch_dice_is_of_hard_decisions_on_present_classes():
    logits = torch.tensor([[[[9.0, 0, 0, 0]], [[0, 9.0, 9.0, 0]], [[0, 0, 0, 9.0]]]])  # decides 0 1 1 2
    label = torch.tensor([[[0, 1, 0, 0]]])  # class 2 is absent and counts nowhere

    class Given(nn.Module):
        def forward(self, _):
            return logits

    parts = SegmentStep("softmax", "dice_ce")(Given(), {"image": torch.zeros(1), "label": label}, None)
    assert np.isclose(parts["dice"].item(), 2 / 3)  # 2 * 1 / (2 + 1)


def test_the_label_of_a_coarser_level_is_the_voxel_in_the_middle_of_each_block():
    label = torch.arange(8 * 4 * 4).reshape(1, 8, 4, 4)
    expected = label[:, [2, 6]][:, :, [1, 3]]  # 4 and 2 voxels become one; the last axis stays
    assert torch.equal(shrunk(label, (2, 2, 4)), expected)


def test_deep_supervision_weighs_each_level_half_as_much_as_the_finer_one():
    """Two levels that are wrong by 20 nats cost 20; where the coarse one is right, two thirds of it are left."""
    label = torch.zeros(1, 4, 4, dtype=torch.int64)
    wrong, right = (torch.zeros(1, 2, 4, 4).index_fill(1, torch.tensor([c]), 20.0) for c in (1, 0))

    class Levels(nn.Module):
        def __init__(self, coarse):
            super().__init__()
            self.coarse = coarse

        def forward(self, _, *, deep):
            assert deep
            return [wrong, self.coarse[:, :, ::2, ::2]]

    losses = [
        SegmentStep("softmax", "ce", deep=True)(Levels(coarse), {"image": torch.zeros(1), "label": label}, None)["loss"]
        for coarse in (wrong, right)
    ]
    assert [loss.item() for loss in losses] == pytest.approx([20.0, 20.0 * 2 / 3], abs=1e-3)


def test_thick_slices_are_left_alone_until_the_others_are_as_coarse():
    assert strides_for((0.8, 0.8, 5.0), 4) == [[2, 2, 1], [2, 2, 1], [2, 2, 2], [2, 2, 2]]
    assert strides_for((3.0, 3.0, 3.0), 2) == [[2, 2, 2]] * 2


def test_what_is_left_at_none_is_the_network_s_own():
    slices, patches = (complete(TotalsegConfig(net=net)) for net in ("unet2d-attention", "unet3d"))
    assert (slices.widths, slices.batch_size) == ((32, 64, 128, 256, 512), 8)
    assert (patches.widths, patches.batch_size) == ((32, 64, 128, 256, 320), 2)
    assert complete(TotalsegConfig(net="unet3d", widths=(4, 8), batch_size=3)).widths == (4, 8)


def test_defaults_are_the_ones_the_readme_states():
    config = complete(resolve(TotalsegConfig))
    assert (config.size, config.batch_size, config.optimizer, config.widths) == (
        256,
        8,
        "adam",
        (32, 64, 128, 256, 512),
    )
