"""Evaluation: scores of masks that are known, by hand; what they stand beside, and what is said and refused."""

import csv
import json
from dataclasses import replace

import numpy as np
import pytest
from tests.pieces import Steps

from medseg_core.cases import write_split
from medseg_core.checkpoint import Card, save_model
from medseg_core.errors import MedsegError
from medseg_core.io import read_picture, write_picture, write_text
from medseg_core.volume import Picture
from medseg_sem_al import evaluate as module
from medseg_sem_al.evaluate import evaluate_run
from medseg_sem_al.index import build_index, read_index
from medseg_sem_al.models import MODELS
from medseg_sem_al.relabel import relabelled
from medseg_sem_al.settings import IndexConfig, TileConfig

NAMES, COLOURS = ("carbon", "SE", "AM"), np.array([(0, 0, 255), (0, 255, 255), (255, 126, 126)], np.uint8)
CONFIG = TileConfig(device="cpu")

# pictures by what is taken for what: row true, column predicted; 800 pixels each, but for the small one
PICTURES = {
    "a_1": [[300, 0, 0], [100, 200, 0], [0, 50, 150]],
    "a_2": [[400, 0, 0], [0, 200, 0], [0, 0, 200]],
    "b_1": [[400, 200, 0], [0, 200, 0], [0, 0, 0]],
    "c_1": [[0, 0, 0], [0, 0, 0], [0, 0, 64]],
    "d_1": [[480, 0, 0], [0, 0, 0], [0, 0, 320]],
}
PARTS = {"a_1": "test", "a_2": "test", "b_1": "val", "c_1": "train", "d_1": "train"}


def draw(folder, name, counts):
    """A picture that `Steps` takes for what the columns of `counts` say, and a mask of what the rows say."""
    rng = np.random.default_rng(sum(map(ord, name)))
    pairs = rng.permutation(np.repeat(np.arange(9), np.ravel(counts))).reshape(-1, 8 if np.sum(counts) < 800 else 40)
    label, mask = np.divmod(pairs, 3)
    grey = (90 * mask + rng.integers(0, 75, mask.shape)).astype(np.uint8)
    write_picture(Picture(grey), folder / "raw" / f"{name}.png")
    write_picture(Picture(COLOURS[label]), folder / "labeled" / f"{name}.png")


def indexed(root, pictures, out):
    for name, counts in pictures.items():
        draw(root, name, counts)
    index = build_index(root, IndexConfig(banner=0))
    index.write(out)
    return index


def begun(home):
    """An index, and a run whose network is `Steps` and whose split is that of `PARTS`."""
    index = indexed(home / "data", PICTURES, home / "index.json")
    about = {"package": "medseg-sem-al", "model": "steps", "head": "softmax", "channels": (0, 1, 2), "version": "0"}
    about |= {"intensity": {"mean": 0.0, "std": 1.0}, "chosen": {"colours": COLOURS.tolist()}}
    card = Card(**about, labels=dict(enumerate(NAMES)))
    save_model(home / "run" / "best.safetensors", Steps(), card)
    split = [replace(case, split=PARTS[case.id]) for case in index.cases]
    write_split(home / "run" / "split.json", split, seed=0)
    return home


@pytest.fixture(scope="module", autouse=True)
def known():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(MODELS, "steps", Steps)
        yield


@pytest.fixture(scope="module")
def whole(known, tmp_path_factory):
    """The evaluation of a split with its report; made once."""
    home, found = begun(tmp_path_factory.mktemp("study")), {}

    def of(split):
        out = home / split
        if split not in found:
            found[split] = evaluate_run(home / "index.json", home / "run", out, split=split, config=CONFIG)
        return found[split], out

    return of


@pytest.fixture
def study(tmp_path, monkeypatch):
    """What `begun` makes; evaluations of it leave out what core draws, which takes seconds."""
    monkeypatch.setattr(module, "evaluate", lambda pairs, *_, **__: list(pairs))
    monkeypatch.setattr(module, "write_tables", lambda *_: None)
    monkeypatch.setattr(module, "write_report", lambda out, *_, notes, **__: write_text(out / "report.html", notes[0]))
    monkeypatch.setattr(module.figures, "save", lambda _, path: path)
    return begun(tmp_path)


def evaluated(study, split="test", **how):
    return evaluate_run(study / "index.json", study / "run", study / "out", split=split, config=CONFIG, **how)


def rows_of(file):
    with file.open(newline="") as lines:
        return list(csv.DictReader(lines))


def test_scores_of_all_pictures_together_are_those_by_hand(whole):
    found, out = whole("test")
    # true by predicted: [[700, 0, 0], [100, 400, 0], [0, 50, 350]] of 1600
    iou = [700 / 800, 400 / 550, 350 / 400]
    assert [found["classes"][name]["iou"] for name in NAMES] == pytest.approx(iou)
    assert [found["classes"][name]["dice"] for name in NAMES] == pytest.approx([1400 / 1500, 800 / 950, 700 / 750])
    assert found["miou"] == pytest.approx(sum(iou) / 3)
    assert found["accuracy"] == pytest.approx(1450 / 1600)
    assert found["majority"] == pytest.approx(700 / 1600 / 3)
    assert json.loads((out / "results.json").read_text())["miou"] == found["miou"]


def test_each_class_of_each_picture_is_scored_the_first_one_too(whole):
    _, out = whole("test")
    found = {(row["case"], row["name"]): row for row in rows_of(out / "cases.csv")}
    assert float(found["a_1", "carbon"]["dice"]) == pytest.approx(600 / 700)
    assert float(found["a_1", "SE"]["iou"]) == pytest.approx(200 / 350)
    assert float(found["a_1", "AM"]["dice"]) == pytest.approx(300 / 350)
    assert {float(found["a_2", name]["dice"]) for name in NAMES} == {1.0}


def test_the_confusion_is_counted_in_pixels(whole):
    _, out = whole("test")
    rows = rows_of(out / "confusion.csv")
    assert [row["true"] for row in rows] == list(NAMES)
    assert [[int(row[name]) for name in NAMES] for row in rows] == [[700, 0, 0], [100, 400, 0], [0, 50, 350]]


def test_the_baseline_is_the_commonest_class_of_the_training_pictures_by_pixels(whole):
    # AM has all of the small picture and 0.4 of the large one, carbon 0.6 of the large: 384 pixels against 480
    _, out = whole("test")
    found = {(row["case"], row["name"]): row for row in rows_of(out / "baselines.csv")}
    assert {row["model"] for row in found.values()} == {"majority"}
    assert float(found["a_1", "carbon"]["dice"]) == pytest.approx(2 * 300 / (300 + 800))
    assert {found["a_1", name]["status"] for name in ("SE", "AM")} == {"missed"}


def test_a_class_on_neither_side_is_told_as_absent_and_counts_nowhere(whole):
    found, out = whole("val")
    assert found["miou"] == pytest.approx((400 / 600 + 200 / 400) / 2)
    assert np.isnan(found["classes"]["AM"]["iou"])
    told = json.loads((out / "results.json").read_text())
    assert told["classes"]["AM"]["iou"] is None
    statuses = {row["name"]: row["status"] for row in rows_of(out / "cases.csv")}
    assert statuses == {"carbon": "both", "SE": "both", "AM": "absent"}


def test_pictures_are_those_that_the_run_had_in_the_split_whatever_the_index_says(whole):
    _, out = whole("val")
    assert {row["case"] for row in rows_of(out / "cases.csv")} == {"b_1"}


def test_the_interval_is_over_specimens_and_not_over_pictures(study):
    found = evaluated(study)
    assert (found["pictures"], found["groups"]) == (2, 1)  # a_1 and a_2 are cuts of one
    assert np.isnan(found["miou_low"])
    found = evaluated(study, "train", overwrite=True)
    assert (found["pictures"], found["groups"]) == (2, 2)
    assert (found["miou_low"], found["miou_high"]) == (1, 1)  # none of their pixels is wrong


@pytest.mark.parametrize("model", ["run", "run/best.safetensors"])
def test_scores_on_pictures_that_were_trained_on_are_said_to_be_that(study, model):
    evaluate_run(study / "index.json", study / model, study / "out", split="all", config=CONFIG)
    assert (
        (study / "out" / "report.html").read_text().startswith("Trained on c_1, d_1: these scores say that it learnt")
    )


def test_scores_on_other_pictures_are_not(whole):
    _, out = whole("test")
    text = (out / "report.html").read_text()
    assert "Trained on" not in text
    assert "as they are of one group, over 2 pictures, all pixels together; 0.146 for the commonest class" in text


def test_every_data_set_has_scores_of_its_own(study):
    pictures = {"p_1": [[400, 0, 0], [0, 200, 0], [0, 0, 200]], "q_1": PICTURES["a_1"]}
    for name, counts in pictures.items():
        draw(study / "sets" / name[0], name, counts)
    build_index(study / "sets", IndexConfig(banner=0)).write(study / "index.json")
    found = evaluated(study, "all")
    assert found["datasets"]["p"]["miou"] == 1
    assert found["datasets"]["q"]["miou"] == pytest.approx((300 / 400 + 200 / 350 + 150 / 200) / 3)
    assert found["datasets"]["q"]["pictures"] == 1


def test_an_index_of_other_classes_is_refused(study):
    write_text(study / "classes.json", json.dumps({"carbon": "#0000ff", "AM": "#ff7e7e", "SE": "#00ffff"}))
    build_index(study / "data", IndexConfig(banner=0), colours=study / "classes.json").write(study / "index.json")
    with pytest.raises(MedsegError, match="has the classes carbon, AM, SE, the run carbon, SE, AM; index with"):
        evaluated(study)
    assert not (study / "out").exists()


def test_a_split_without_pictures_is_refused_with_how_many_the_others_have(study):
    split = {"seed": 0, "unit": "group", "train": ["c_1", "d_1"], "val": ["b_1"], "test": []}
    write_text(study / "run" / "split.json", json.dumps(split))
    with pytest.raises(MedsegError, match=r"split 'test' of .* \(2 in train, 1 in val, 0 in test\); try --split all"):
        evaluated(study)


def test_a_word_that_is_no_split_is_refused_with_the_nearest(study):
    with pytest.raises(MedsegError, match="there is no split 'tst'; did you mean 'test'"):
        evaluated(study, "tst")


def test_an_evaluation_is_not_written_over(study):
    evaluated(study)
    with pytest.raises(MedsegError, match="holds an evaluation; add --overwrite"):
        evaluated(study, "val")


def test_panels_of_an_evaluation_that_is_replaced_go_with_it(study):
    evaluated(study)
    evaluated(study, "val", overwrite=True)
    assert [path.name for path in (study / "out" / "panels").iterdir()] == ["b_1.png"]


def test_a_panel_shows_the_truth_the_prediction_and_what_is_wrong(whole):
    _, out = whole("test")
    shown = read_picture(out / "panels" / "a_1.png").pixels
    truth, prediction, error = (shown[:, 46 * k : 46 * k + 40] for k in (1, 2, 3))
    assert ((truth == COLOURS[0]).all(2).sum(), (prediction == COLOURS[0]).all(2).sum()) == (300, 400)
    assert (error == (255, 80, 0)).all(2).sum() == 150


@pytest.mark.parametrize(("nm", "unit", "tolerance"), [((20, 20), "nm", 60), ((20, None), "px", 3)])
def test_surfaces_may_lie_three_pixels_apart_in_nm_where_all_have_them(study, monkeypatch, nm, unit, tolerance):
    index, seen = read_index(study / "index.json"), []
    edges = {name: {"pixel_nm": edge} for name, edge in zip(("a_1", "a_2"), nm, strict=True) if edge}
    cases = [replace(case, notes={**case.notes, **edges.get(case.id, {})}) for case in index.cases]
    replace(index, cases=tuple(cases)).write(study / "index.json")
    monkeypatch.setattr(module, "evaluate", lambda pairs, *_, **how: seen.append((how["tolerance"], list(pairs))))
    evaluated(study)
    ((told, pairs),) = seen
    assert (told, {pair.unit for pair in pairs}) == (tolerance, {unit})
    assert {pair.spacing for pair in pairs} == {(tolerance / 3, tolerance / 3)}


def test_what_nobody_labelled_is_scored_nowhere(study, monkeypatch):
    index, pairs = read_index(study / "index.json"), []
    masks = {case.id: index.label(case) for case in index.cases}
    masks["a_1"][:, :20] = 255
    relabelled(index, masks, study / "labels").write(study / "index.json")
    monkeypatch.setattr(module, "evaluate", lambda found, *_, **__: pairs.extend(found))
    found = evaluated(study)
    assert sum(row["share"] for row in found["classes"].values()) == pytest.approx(1)
    rows = rows_of(study / "out" / "confusion.csv")
    assert sum(int(row[name]) for row in rows for name in NAMES) == 1600 - 400
    first = next(pair for pair in pairs if pair.id == "a_1")
    assert (first.mask[:, :20].max(), first.label[:, :20].max(), first.mask[:, 20:].min()) == (0, 0, 1)
