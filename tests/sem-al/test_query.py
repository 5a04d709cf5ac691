"""Asking: what is in the pool, what is written of what was chosen, and that nothing of a person is written over."""

import json
import shutil

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from medseg_core.errors import MedsegError
from medseg_core.io import read_picture, write_picture, write_text
from medseg_core.volume import Picture
from medseg_sem_al import pool
from medseg_sem_al.cli import app
from medseg_sem_al.committee import Committee
from medseg_sem_al.index import build_index, read_index
from medseg_sem_al.parts import boxes
from medseg_sem_al.predict import Predictor
from medseg_sem_al.query import query
from medseg_sem_al.settings import IndexConfig, QueryConfig, SegConfig
from medseg_sem_al.sums import changed
from medseg_sem_al.train import train

SMALL = {"width": 2, "size": 32, "epochs": 1, "epoch_windows": 4, "batch_size": 4, "device": "cpu"}


def asked(index, run, out, *, overwrite=False, **settings):
    settings = {"num": 2, "device": "cpu", **settings}
    return query(index, [run], out, QueryConfig(**settings), overwrite=overwrite)


@pytest.fixture
def moved(index, tmp_path):
    """The pictures, and an index of them, that a test may change."""
    shutil.copytree(index.parent / "data", tmp_path / "data")
    return shutil.copy(index, tmp_path / "index.json")


@pytest.fixture(scope="module")
def partly(tmp_path_factory):
    """Two labelled pictures, of which one lacks the labels of its lower half; nothing else."""
    home = tmp_path_factory.mktemp("partly")
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        write_picture(Picture(rng.integers(0, 255, (64, 64), np.uint8)), home / "data" / "raw" / f"{name}.png")
        mask = rng.integers(0, 3, (64, 64)).astype(np.uint8)
        mask[32:] = 255 if name == "b" else mask[32:]
        write_picture(Picture(mask), home / "data" / "labeled" / f"{name}.png")
    table = {"carbon": 0, "SE": 1, "AM": 2, "unlabelled": 255}
    write_text(home / "classes.json", json.dumps(table))
    config = IndexConfig(group="image", split=(1.0, 0.0, 0.0))
    build_index(home / "data", config, colours=home / "classes.json").write(home / "index.json")
    return home / "index.json"


def test_only_pictures_without_labels_are_asked_for(index, run, tmp_path):
    found = asked(index, run, tmp_path / "out", num=99)
    bare = {case.id for case in read_index(index).cases if "label" not in case.files}
    assert {row["case"] for row in found["chosen"]} == bare
    assert [row["rank"] for row in found["chosen"]] == [1, 2, 3]


def test_a_score_is_the_mean_over_the_picture(index, run, tmp_path):
    row = asked(index, run, tmp_path / "out", strategy="confidence")["chosen"][0]
    case = next(case for case in read_index(index).cases if case.id == row["case"])
    probs = Predictor(run).probabilities(read_index(index).stack(case))
    assert row["confidence"] == pytest.approx((1 - probs.max(0)).mean(), abs=1e-6)


def test_a_proposal_is_what_the_network_predicts(index, run, tmp_path):
    row = asked(index, run, tmp_path / "out")["chosen"][0]
    case = next(case for case in read_index(index).cases if case.id == row["case"])
    mask = Predictor(run).mask(read_index(index).stack(case))
    for suffix in (".png", ".tif"):
        assert np.array_equal(read_picture(tmp_path / "out" / "proposals" / f"{case.id}{suffix}").pixels, mask)


def test_a_choice_is_the_same_again(index, run, tmp_path):
    first, second = (asked(index, run, tmp_path / name, strategy="clasp") for name in ("one", "two"))
    assert first["chosen"] == second["chosen"]


def test_parts_are_asked_for_where_they_are(index, run, tmp_path):
    found = asked(index, run, tmp_path / "out", region=32, num=1, strategy="margin")["chosen"][0]
    top, left, bottom, right = found["box"]
    mask = read_picture(tmp_path / "out" / "proposals" / f"{found['case']}.png").pixels
    inside = np.zeros((64, 64), bool)
    inside[top:bottom, left:right] = True
    assert np.array_equal(mask != 255, inside)


def test_of_a_picture_that_is_labelled_in_part_the_rest_is_asked_for(partly, run, tmp_path):
    found = asked(partly, run, tmp_path / "out", region=32, num=9)
    assert {(row["case"], row["box"][0]) for row in found["chosen"]} == {("b", 32)}
    assert len(found["chosen"]) == 2


def test_parts_cover_a_picture_and_are_about_as_large_as_was_asked_for():
    seen = np.zeros((100, 70), int)
    for top, left, bottom, right in boxes((100, 70), 32):
        seen[top:bottom, left:right] += 1
        assert 20 < bottom - top < 48
    assert (seen == 1).all()


def test_an_empty_pool_is_said(partly, run, tmp_path):
    with pytest.raises(MedsegError, match=r"the pool is empty; put images without masks"):
        asked(partly, run, tmp_path / "out")


def test_a_picture_that_was_deleted_costs_no_other(moved, run, tmp_path):
    (tmp_path / "data" / "raw" / "s03_001.tif").unlink()
    found = asked(moved, run, tmp_path / "out", num=9)
    assert {row["case"] for row in found["chosen"]} == {"s03_000", "s03_002"}
    assert list(found["failed"]) == ["s03_001"]


def test_a_call_that_was_stopped_goes_on(index, run, tmp_path, monkeypatch):
    looked_at, seen = pool._looked_at, []

    def stops(case, **how):
        seen.append(case.id)
        if len(seen) == 3:
            raise KeyboardInterrupt
        return looked_at(case, **how)

    monkeypatch.setattr(pool, "_looked_at", stops)
    with pytest.raises(KeyboardInterrupt):
        asked(index, run, tmp_path / "out")
    resumed = asked(index, run, tmp_path / "out")
    assert len(seen) == len(set(seen)) + 1  # the third is looked at again, and nothing else
    monkeypatch.setattr(pool, "_looked_at", looked_at)
    assert resumed["chosen"] == asked(index, run, tmp_path / "whole")["chosen"]


def test_a_selection_is_not_written_over(index, run, tmp_path):
    asked(index, run, tmp_path / "out")
    with pytest.raises(MedsegError, match="holds a selection; add --overwrite"):
        asked(index, run, tmp_path / "out")


def test_a_proposal_that_somebody_edited_is_never_written_over(index, run, tmp_path):
    row = asked(index, run, tmp_path / "out")["chosen"][0]
    file = tmp_path / "out" / "proposals" / f"{row['case']}.png"
    write_picture(Picture(np.zeros((64, 64), np.uint8)), file)
    assert changed(tmp_path / "out") == [file]
    with pytest.raises(MedsegError, match="was edited since it was written; move it away first"):
        asked(index, run, tmp_path / "out", overwrite=True)


def test_a_file_that_somebody_put_beside_the_proposals_is_never_removed(index, run, tmp_path):
    asked(index, run, tmp_path / "out")
    mine = tmp_path / "out" / "proposals" / "mine.png"
    write_text(mine, "mine")
    with pytest.raises(MedsegError, match="was put there by somebody; move it away first"):
        asked(index, run, tmp_path / "out", overwrite=True)
    assert mine.read_text() == "mine"


def test_a_call_that_is_refused_removes_nothing(index, run, tmp_path):
    asked(index, run, tmp_path / "out")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(MedsegError, match="no weights at"):
        asked(index, tmp_path / "nothing", tmp_path / "out", overwrite=True)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_name_may_look_like_a_formula(moved, run, tmp_path):
    for folder, suffix in (("raw", ".tif"), ("labeled", ".png")):
        for file in (tmp_path / "data" / folder).glob(f"s03_*{suffix}"):
            file.rename(file.with_name(file.name.replace("s03_", "a$_$b^{_")))
    build_index(tmp_path / "data", IndexConfig()).write(moved)
    assert len(asked(moved, run, tmp_path / "out")["chosen"]) == 2


def test_files_of_an_earlier_choice_go_with_it(index, run, tmp_path):
    asked(index, run, tmp_path / "out", num=3)
    found = asked(index, run, tmp_path / "out", num=1, overwrite=True)["chosen"]
    assert {file.stem for file in (tmp_path / "out" / "proposals").iterdir()} == {row["case"] for row in found}


def test_passes_with_dropout_differ_and_come_again_the_same(index, tmp_path):
    train(index, tmp_path / "run", SegConfig(**SMALL, dropout=0.5))
    committee = Committee([tmp_path / "run"], QueryConfig(dropout_passes=3, device="cpu"))
    image = np.random.default_rng(0).random((1, 64, 64), np.float32)
    first = committee.probabilities(image)
    assert first.shape == (3, 3, 64, 64)
    assert np.ptp(first, axis=0).max() > 0
    assert np.array_equal(first, committee.probabilities(image))


def test_passes_of_a_network_without_dropout_are_refused(index, run, tmp_path):
    with pytest.raises(MedsegError, match=r"has no dropout; train with --dropout 0\.2"):
        asked(index, run, tmp_path / "out", dropout_passes=3)


def test_features_are_the_mean_of_the_deepest_level_with_length_one(run):
    committee = Committee([run], QueryConfig(device="cpu"))
    image = np.random.default_rng(0).random((1, 48, 80), np.float32)
    about = committee.card.intensity
    x_NCHW = torch.from_numpy((image - about["mean"]) / about["std"])[None].float()
    with torch.no_grad():
        mean = committee.members[0].net.encoder(x_NCHW)[-1].mean((0, 2, 3))
    assert committee.features(image) == pytest.approx((mean / mean.norm()).numpy(), abs=1e-5)


def test_the_command_tells_what_to_label_and_where_to_look(index, run, tmp_path):
    call = ["query", str(index), "--model", str(run), "--num", "2", "--out", str(tmp_path / "out"), "--device", "cpu"]
    told = CliRunner().invoke(app, call)
    assert told.exit_code == 0
    assert "selection.png" in told.stdout
    assert len([line for line in told.stdout.splitlines() if "s03_" in line]) == 2
