"""The comparison: folds, cells that are not made twice, and what is said of a difference."""

import json

import pytest
from typer.testing import CliRunner

from medseg_core.errors import MedsegError
from medseg_core.run import read_json
from medseg_fusion import compare as module
from medseg_fusion.cli import app
from medseg_fusion.compare import _averaged, _without_tumour, compare, settings_of, verdict
from medseg_fusion.phantom import phantom
from medseg_fusion.prepare import prepare
from medseg_fusion.settings import CompareConfig, PrepareConfig

SMALL = {"width": 2, "epochs": 1, "num_workers": 0, "size": 32, "device": "cpu", "folds": 2, "seeds": (3,)}
CONFIG = CompareConfig(nets=("early", "pet"), **SMALL)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    folder = tmp_path_factory.mktemp("compare")
    prepare(phantom(folder / "data", num_cases=4), folder / "cache", PrepareConfig(spacing_mm=(8.0, 8.0, 24.0)))
    return folder / "cache"


@pytest.fixture(scope="module")
def done(cache, tmp_path_factory):
    out = tmp_path_factory.mktemp("done") / "out"
    return out, compare(cache, out, CONFIG)


def test_every_patient_is_tested_once_and_never_in_training_or_choice(done):
    out, _ = done
    folds = [read_json(out / "folds" / f"{fold}.json") for fold in range(2)]
    assert sorted(name for fold in folds for name in fold["test"]) == ["p000", "p001", "p002", "p003"]
    for fold in folds:
        parts = fold["train"] + fold["val"] + fold["test"]
        assert len(parts) == len(set(parts)) == 4
        assert fold["val"]


def test_thresholds_of_suv_stand_beside_the_networks(done):
    _, told = done
    assert list(told["dice"]) == ["early", "pet", "41 % of SUVmax", "SUV > 2.5", "best SUV with the truth in hand"]
    assert {(entry["one"], entry["other"]) for entry in told["differences"]} >= {("early", "pet"), ("pet", "SUV > 2.5")}
    assert told["cost"]["early"]["trainable"] > 10_000


def test_what_is_done_is_not_trained_again_and_gives_the_same(cache, done, monkeypatch):
    out, told = done
    monkeypatch.setattr(module, "train", lambda *_, **__: pytest.fail("trained again"))
    again = compare(cache, out, CONFIG)
    assert again["dice"] == told["dice"]
    assert json.loads((out / "comparison.json").read_text())["differences"][0]["one"] == "early"
    page = (out / "report.html").read_text()
    shown = [entry for entry in again["differences"] if entry["other"] in ("pet", "best SUV with the truth in hand")]
    assert len(shown) == 3
    assert all(f"{entry['n_cases']} patients, {entry['verdict']}." in page for entry in shown)


def test_other_patients_are_refused(cache, done, tmp_path_factory):
    more = tmp_path_factory.mktemp("more")
    prepare(phantom(more / "data", num_cases=5), more / "cache", PrepareConfig(spacing_mm=(8.0, 8.0, 24.0)))
    with pytest.raises(MedsegError, match="was begun with other patients; choose another --out"):
        compare(more / "cache", done[0], CONFIG)


def test_a_net_can_be_added_and_other_settings_cannot(cache, done):
    out, _ = done
    with pytest.raises(MedsegError, match="was begun with epochs 1, and now it is 2"):
        compare(cache, out, CompareConfig(nets=("early",), **{**SMALL, "epochs": 2}))
    told = compare(cache, out, CompareConfig(nets=("early", "ct"), **SMALL))
    assert list(told["dice"])[:2] == ["early", "ct"]


@pytest.mark.parametrize(
    ("low", "high", "said"),
    [(0.01, 0.2, "gain"), (-0.01, 0.2, "no evidence of gain"), (0.0, 0.2, "no evidence of gain"), (-0.2, -0.1, "loss")],
)
def test_a_difference_counts_where_its_interval_leaves_0_out(low, high, said):
    assert verdict({"low": low, "high": high, "p": 0.01}) == said


@pytest.mark.parametrize("p", [0.05, 0.125, float("nan")])
def test_no_gain_is_told_that_the_test_over_patients_does_not_find(p):
    """The percentile bootstrap leaves 0 out wherever all of three or four differences have one sign."""
    assert verdict({"low": 0.01, "high": 0.2, "p": p}) == "no evidence of gain"


def test_no_net_on_one_modality_is_taught_without_it():
    config = CompareConfig(drop_chance=0.2)
    assert [settings_of(net, 0, config).drop_chance for net in ("early", "ct", "pet")] == [0.2, 0.0, 0.0]


@pytest.mark.parametrize(("wrong", "told"), [({"vgg": "nope.pth"}, "no file nope.pth"), ({"folds": 5}, "too few")])
def test_what_is_refused_leaves_nothing_behind(cache, tmp_path, wrong, told):
    with pytest.raises(MedsegError, match=told):
        compare(cache, tmp_path / "out", CompareConfig(nets=("early", "four_way"), **{**SMALL, **wrong}))
    assert not (tmp_path / "out").exists()


def test_three_patients_are_too_few_for_two_folds_with_a_choice(tmp_path):
    prepare(phantom(tmp_path / "data", num_cases=3), tmp_path / "cache", PrepareConfig(spacing_mm=(8.0, 8.0, 24.0)))
    with pytest.raises(MedsegError, match="3 patients with masks are too few for 2 folds"):
        compare(tmp_path / "cache", tmp_path / "out", CONFIG)


def row(net, seed, case, status, **more):
    return {"net": net, "seed": seed, "inputs": "both", "case": case, "status": status, **more}


def test_seeds_are_averaged_for_each_patient_with_tumour():
    rows = [row("early", 0, "a", "both", dice=0.4), row("early", 1, "a", "both", dice=0.8)]
    rows += [row("early", 0, "b", "missed", dice=0.0), row("early", 0, "c", "invented", dice=0.0)]
    rows += [row("early", 1, "c", "absent")]
    found = {one["case"]: (one["dice"], one["status"]) for one in _averaged(rows)["early"]}
    assert found == {"a": (pytest.approx(0.6), "both"), "b": (0.0, "missed")}


def test_what_is_found_in_patients_without_tumour_is_counted():
    rows = [row("early", 0, "c", "invented", dice=0.0, volume_pred_ml=3.0), row("early", 1, "c", "absent")]
    rows += [row("early", 0, "a", "both", dice=0.4, volume_pred_ml=8.0), row("pet", 0, "c", "absent")]
    assert _without_tumour(rows) == {
        "early": {"asked": 2, "invented": 1, "invented_ml": 1.5},
        "pet": {"asked": 1, "invented": 0, "invented_ml": 0.0},
    }
    in_pictures = [row("early", 0, "c", "invented", dice=0.0, volume_pred_px3=7.0), row("early", 0, "d", "absent")]
    assert _without_tumour(in_pictures) == {"early": {"asked": 2, "invented": 1}}


def test_all_are_held_against_each_other_on_the_same_patients(done):
    _, told = done
    assert {row["n"] for row in told["dice"].values()} == {4}
    assert all(entry["n_alone"] == 0 for entry in told["differences"])


def test_all_nets_share_their_settings_but_for_the_network_and_the_seed():
    four, pet = (settings_of(net, 7, CONFIG) for net in ("four_way", "pet"))
    assert (four.net, pet.net, pet.modality) == ("four_way", "single", "pet")
    assert (four.seed, four.epochs, four.width) == (7, 1, 2)


def test_an_unknown_net_and_too_few_patients_are_one_line(cache, tmp_path):
    with pytest.raises(MedsegError, match="there is no net 'fourway'; did you mean 'four_way'"):
        compare(cache, tmp_path / "out", CompareConfig(nets=("fourway",)))
    with pytest.raises(MedsegError, match="4 patients with masks are too few for 5 folds"):
        compare(cache, tmp_path / "out", CompareConfig(nets=("early",)))


def test_the_command_prints_the_verdicts(cache, done):
    out, _ = done
    flags = ["--width", "2", "--epochs", "1", "--size", "32", "--device", "cpu", "--folds", "2", "--seeds", "3"]
    said = CliRunner().invoke(app, ["compare", str(cache), "--out", str(out), "--nets", "early,pet", *flags])
    assert said.exit_code == 0, said.stderr
    assert "early - pet: " in said.stdout
