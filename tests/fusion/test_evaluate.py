"""Evaluation: burden and thresholds by hand, what counts and what does not, and what is written."""

import json

import numpy as np
import pytest
import torch
from torch import nn

from medseg_core.cases import Case, write_cases, write_split
from medseg_core.checkpoint import Card
from medseg_core.errors import MedsegError
from medseg_core.io import read_picture
from medseg_core.pairs import Pair
from medseg_core.store import write_arrays
from medseg_fusion import predict as module
from medseg_fusion.evaluate import evaluate_run
from medseg_fusion.measures import agreement, best_suv, burden, fixed_suv, share_of_max


class Hot(nn.Module):
    """Tumour where PET is, as probability."""

    def __init__(self):
        super().__init__()
        self.none = nn.Parameter(torch.zeros(1))

    def forward(self, image, present):
        return torch.logit(image[:, 1:].clamp(1e-4, 1 - 1e-4))


def line(pet, mask, label):
    """A patient of voxels of 10 x 10 x 10 mm, 1 ml, in a row."""
    arrays = [np.array(values).reshape(-1, 1, 1) for values in (mask, label, pet)]
    return Pair("p", arrays[0], arrays[1], (10.0, 10.0, 10.0), images={"pet": arrays[2].astype(np.float32)})


def test_burden_is_volume_and_uptake_of_both_sides():
    told = burden(line([8, 4, 2, 1], [1, 1, 0, 0], [0, 1, 1, 0]))
    assert {name: told[name] for name in ("tmtv_ml", "tlg", "suvmean", "suvmax")} == {
        "tmtv_ml": 2, "tlg": 12, "suvmean": 6, "suvmax": 8,
    }  # fmt: skip
    assert (told["tmtv_ref_ml"], told["tlg_ref"], told["suvmean_ref"], told["suvmax_ref"]) == (2, 6, 3, 4)
    assert (told["accuracy"], told["accuracy_of_nothing"]) == (0.5, 0.5)


def test_an_empty_side_has_no_uptake():
    told = burden(line([8, 4], [0, 0], [0, 1]))
    assert (told["tmtv_ml"], told["tlg"]) == (0, 0)
    assert np.isnan(told["suvmax"])


def test_agreement_is_the_mean_difference_and_its_limits_over_patients_who_have_both():
    rows = [{"tmtv_ml": 5.0, "tmtv_ref_ml": 3.0, "suvmax": float("nan"), "suvmax_ref": 4.0}]
    rows += [{"tmtv_ml": 3.0, "tmtv_ref_ml": 3.0, "suvmax": 6.0, "suvmax_ref": 4.0}, {"accuracy": 1.0}]
    found = agreement(rows)  # differences 2 and 0: mean 1, standard deviation 2 ** 0.5
    assert found == {
        "tmtv_ml": {
            "bias": 1.0,
            "low": pytest.approx(1 - 1.96 * 2**0.5),
            "high": pytest.approx(1 + 1.96 * 2**0.5),
            "n": 2,
        }
    }


def test_thresholds_are_those_of_the_field():
    pair = line([10, 4.2, 4.0, 2.6, 2.5], [0] * 5, [0] * 5)
    assert share_of_max(pair).ravel().tolist() == [1, 1, 0, 0, 0]  # from 4.1
    assert fixed_suv(pair).ravel().tolist() == [1, 1, 1, 1, 0]


@pytest.mark.parametrize("seed", range(3))
def test_the_best_threshold_is_the_best_of_all(seed):
    rng = np.random.default_rng(seed)
    pet, label = rng.integers(0, 8, 60), rng.random(60) < 0.3
    dice = lambda mask: 2 * (mask & label).sum() / (mask.sum() + label.sum())  # noqa: E731
    best = max(dice(pet >= value) for value in range(8))
    assert dice(best_suv(line(pet, [0] * 60, label.astype(np.uint8))).ravel() > 0) == best


def stored(folder, name, pet, label, *, unit="HU and SUV"):
    about = {"unit": unit, "spacing": [10.0, 10.0, 10.0], "slices": [], "affine": np.diag([10.0, 10, 10, 1]).tolist()}
    arrays = {"ct": np.zeros(pet.shape, np.int16), "pet": pet.astype(np.float32), "label": label.astype(np.uint8)}
    write_arrays(folder / name, arrays, about)
    return Case(name, {"arrays": folder / name}, group=name)


@pytest.fixture
def study(tmp_path, monkeypatch):
    """A cache of an ill and a well patient in val and one in train, and a run whose network is `Hot` from SUV 5 on."""
    pet, label = np.zeros((8, 8, 3)), np.zeros((8, 8, 3))
    pet[1:3, 1:5, 1], label[1:3, 1:3, 1] = 9, 1  # 8 hot pixels, 4 of them tumour
    cases = [
        stored(tmp_path / "cache", "ill", pet, label),
        stored(tmp_path / "cache", "well", 0 * pet, 0 * label),
        stored(tmp_path / "cache", "seen", pet, label),
    ]
    write_cases(tmp_path / "cache" / "cases.json", cases)
    parts = {"ill": "val", "well": "val", "seen": "train"}
    (tmp_path / "run").mkdir()
    split = [Case(case.id, case.files, case.group, parts[case.id]) for case in cases]
    write_split(tmp_path / "run" / "split.json", split, seed=0)
    intensity = {"unit": "HU and SUV", "ct": [-160.0, 240.0], "pet": [0.0, 10.0], "missing": []}
    card = Card(package="medseg-fusion", version="0", model="early", intensity=intensity, chosen={"threshold": 0.5})
    monkeypatch.setattr(module, "load_model", lambda *_: (Hot().eval(), card))
    return tmp_path


def test_a_patient_without_tumour_has_no_dice_and_is_counted(study):
    evaluation = evaluate_run(study / "cache", study / "run", study / "out")
    assert evaluation.headline()["dice"] == pytest.approx(2 * 4 / 12)
    results = json.loads((study / "out" / "results.json").read_text())
    assert results["patients_without_tumour_on_either_side"] == 1
    assert results["overall_metrics"]["patients"]["dice"]["n"] == 1
    assert results["overall_metrics"]["slices"]["dice"]["mean"] == pytest.approx(2 / 3)
    assert (results["slices"], results["slices_without_tumour_on_either_side"]) == (6, 5)
    assert results["overall_metrics"]["agreement"]["tmtv_ml"]["bias"] == 2.0  # 8 ml for 4, and 0 for 0
    assert "tmtv_ml differs from that of the label by +2 on average" in (study / "out" / "report.html").read_text()


def test_the_split_is_that_of_the_run_and_what_was_learnt_is_said(study):
    evaluation = evaluate_run(study / "cache", study / "run", study / "out", split="train")
    assert evaluation.cases == ("seen",)
    assert "Trained on seen" in (study / "out" / "report.html").read_text()
    with pytest.raises(
        MedsegError, match=r"in split 'test' of .* \(1 in train, 2 in val, 0 in test\); try --split all"
    ):
        evaluate_run(study / "cache", study / "run", study / "test", split="test")


def test_predictions_are_kept_for_each_slice_and_panels_where_there_is_tumour(study):
    evaluate_run(study / "cache", study / "run", study / "out", save_predictions=True)
    assert len(list((study / "out" / "predictions").iterdir())) == 6
    assert read_picture(study / "out" / "predictions" / "ill_slice_0001.png").pixels.sum() == 8 * 255
    panel = read_picture(study / "out" / "panels" / "ill_slice_0001.png").pixels
    assert [path.name for path in (study / "out" / "panels").iterdir()] == ["ill_slice_0001.png"]
    assert panel.shape == (8, 4 * 8 + 3 * 4)
    assert (panel[:, 24:32] > 0).sum() == 4  # the truth, after CT, PET and two gaps
    assert (panel[:, 36:] > 0).sum() == 8


def test_an_evaluation_is_not_written_over(study):
    evaluate_run(study / "cache", study / "run", study / "out")
    with pytest.raises(MedsegError, match="holds an evaluation; add --overwrite"):
        evaluate_run(study / "cache", study / "run", study / "out")


def test_a_prediction_lies_as_its_panel_does(study):
    evaluate_run(study / "cache", study / "run", study / "out", save_predictions=True)
    panel = read_picture(study / "out" / "panels" / "ill_slice_0001.png").pixels
    prediction = read_picture(study / "out" / "predictions" / "ill_slice_0001.png").pixels
    np.testing.assert_array_equal(panel[:, 36:], prediction)


def test_predictions_of_an_evaluation_that_is_replaced_go_with_it(study):
    evaluate_run(study / "cache", study / "run", study / "out", split="train", save_predictions=True)
    evaluate_run(study / "cache", study / "run", study / "out", save_predictions=True, overwrite=True)
    assert {path.name.split("_")[0] for path in (study / "out" / "predictions").iterdir()} == {"ill", "well"}


def test_weights_in_a_run_know_whom_they_were_trained_on(study):
    (study / "run" / "best.safetensors").touch()
    evaluate_run(study / "cache", study / "run" / "best.safetensors", study / "out", split="all")
    assert "Trained on seen" in (study / "out" / "report.html").read_text()


def test_other_units_than_the_networks_are_refused(study):
    about = json.loads((study / "cache" / "ill" / "about.json").read_text())
    about["about"]["unit"] = "8 bits"
    (study / "cache" / "ill" / "about.json").write_text(json.dumps(about))
    with pytest.raises(MedsegError, match=r"ill comes in 8 bits, and .* was trained on HU and SUV"):
        evaluate_run(study / "cache", study / "run", study / "out")


def test_a_word_that_is_no_split_is_refused(study):
    with pytest.raises(MedsegError, match="there is no split 'seed'"):
        evaluate_run(study / "cache", study / "run", study / "out", split="seed")
