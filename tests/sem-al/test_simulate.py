"""Simulation: what is revealed, what is compared, and that a call goes on where it was."""

import json
from dataclasses import replace

import numpy as np
import pytest

from medseg_core.errors import MedsegError
from medseg_core.io import read_picture
from medseg_sem_al import simulate as module
from medseg_sem_al.index import read_index
from medseg_sem_al.relabel import relabelled
from medseg_sem_al.settings import SimulateConfig
from medseg_sem_al.simulate import Point, World, compared, simulate

SMALL = {"width": 2, "size": 32, "epochs": 1, "epoch_windows": 4, "batch_size": 4, "device": "cpu"}
ONCE = SimulateConfig(**SMALL, region=32, seeds=1, rounds=2, initial=2, num=3, strategies=("clasp",))


@pytest.fixture(scope="module")
def done(index, tmp_path_factory):
    """A simulation of two rounds; nobody writes there."""
    out = tmp_path_factory.mktemp("simulation") / "out"
    return out, simulate(index, out, ONCE)


def test_what_is_revealed_is_what_was_asked_for_and_nothing_else(done, index):
    out, _ = done
    asked = json.loads((out / "cells" / "clasp_0" / "round_01" / "asked.json").read_text())
    world = World(read_index(index), out, ONCE)
    units = [*world.start(0), *((case, tuple(box)) for case, box in asked)]
    assert len(set(units)) == 5
    labels = out / "cells" / "clasp_0" / "round_01" / "labels"
    for case, truth in world.hidden.items():
        expected = np.full_like(truth, 255)
        for name, (top, left, bottom, right) in units:
            if name == case:
                expected[top:bottom, left:right] = truth[top:bottom, left:right]
        file = labels / f"{case}.png"
        assert np.array_equal(read_picture(file).pixels, expected) if file.exists() else (expected == 255).all()


def test_pictures_of_the_test_part_are_never_in_what_is_learnt(done, index):
    out, _ = done
    tests = {case.id for case in read_index(index).cases if case.split == "test"}
    for file in (out / "cells").rglob("index.json"):
        assert not tests & {case.id for case in read_index(file).cases}


def test_a_curve_has_a_point_for_the_start_and_for_each_round(done):
    lines = (done[0] / "curves.csv").read_text().splitlines()[1:]
    rows = [line.split(",") for line in lines]
    assert [row[0] for row in rows] == ["clasp", "clasp", "clasp", "all"]
    assert [float(row[3]) for row in rows] == pytest.approx([2 / 12, 5 / 12, 8 / 12, 1])  # parts of three pictures


def test_the_same_call_goes_on_and_does_nothing_again(done, index, monkeypatch):
    out, first = done
    monkeypatch.setattr(module, "train", None)
    monkeypatch.setattr(module, "score_pool", None)
    assert repr(simulate(index, out, ONCE)) == repr(first)  # nan is not itself


def test_other_settings_are_refused(done, index):
    with pytest.raises(MedsegError, match="holds a simulation of other settings"):
        simulate(index, done[0], replace(ONCE, num=2))


def test_more_units_than_there_are_are_refused(index, tmp_path):
    with pytest.raises(MedsegError, match="20 units are asked for and 12 are there"):
        simulate(index, tmp_path / "out", replace(ONCE, num=9))
    assert not (tmp_path / "out").exists()


def test_a_strategy_is_not_done_twice(index, tmp_path):
    with pytest.raises(MedsegError, match="--strategies names one twice"):
        simulate(index, tmp_path / "out", replace(ONCE, strategies=("random", "random")))


def test_parts_without_labels_are_not_there_to_be_asked_for(index, tmp_path):
    known = read_index(index)
    masks = {case.id: known.label(case) for case in known.cases if "label" in case.files}
    first = next(case.id for case in known.cases if case.split == "train")
    masks[first][:32] = 255
    world = World(relabelled(known, masks, tmp_path), tmp_path / "out", ONCE)
    assert len(world.units) == 10
    assert not {(first, box) for box in ((0, 0, 32, 32), (0, 32, 32, 64))} & set(world.units)


def test_curves_are_compared_start_by_start():
    def runs(*rows):
        return [[Point(share, miou) for share, miou in zip((0.1, 0.5), row, strict=True)] for row in rows]

    found = {
        "clasp": runs((0.4, 0.8), (0.5, 0.9)),
        "class-random": runs((0.4, 0.6), (0.5, 0.9)),
        "all": [[Point(1.0, 0.8)], [Point(1.0, 0.88)]],
    }
    told = compared(found)
    rows = told["strategies"]
    assert told["all"] == pytest.approx(0.84)
    assert rows["clasp"]["end"]["mean"] == pytest.approx(0.85)
    gap = rows["clasp"]["curve - class-random"]  # 0.1 and 0
    assert (gap["mean"], gap["high"]) == pytest.approx((0.05, 0.05 + 12.7062 * 0.05), abs=1e-4)  # t of one degree
    assert (rows["clasp"]["reaches all with"], rows["class-random"]["reaches all with"]) == (0.5, None)


def test_an_index_gets_new_masks_and_their_shares(index, tmp_path):
    before = read_index(index)
    first, second, *_ = before.cases
    ids = np.full(first.notes["size"], 255, np.uint8)
    ids[:16], ids[16:32] = 0, 2
    after = relabelled(before, {first.id: ids, second.id: np.full_like(ids, 255)}, tmp_path)
    labelled = [case for case in after.cases if "label" in case.files]
    assert [case.id for case in labelled] == [first.id]
    assert (labelled[0].notes["shares"], labelled[0].notes["labelled"]) == ([0.5, 0, 0.5], 0.5)
    after.write(tmp_path / "index.json")
    assert np.array_equal(read_index(tmp_path / "index.json").label(labelled[0]), ids)
