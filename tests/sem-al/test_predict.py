"""Prediction: masks of the picture's own size by a network whose answer is known, what is kept, and what is refused."""

import csv

import numpy as np
import pytest
from PIL import Image
from tests.pieces import Steps

from medseg_core.checkpoint import Card, save_model
from medseg_core.errors import MedsegError
from medseg_core.io import read_picture, write_picture
from medseg_core.volume import Picture
from medseg_sem_al import predict as module
from medseg_sem_al.models import MODELS
from medseg_sem_al.predict import Predictor, predict_files
from medseg_sem_al.settings import PredictConfig

NAMES, COLOURS = ("carbon", "SE", "AM"), ((0, 0, 255), (0, 255, 255), (255, 126, 126))
CONFIG = PredictConfig(device="cpu")
SAVE = module.figures.save


@pytest.fixture
def run(monkeypatch, tmp_path):
    """A run whose network is `Steps`; what is predicted by it is not drawn, which takes a moment each time."""
    monkeypatch.setattr(module.figures, "save", lambda _, path: path)
    monkeypatch.setitem(MODELS, "steps", Steps)
    return saved(tmp_path / "run")


def saved(folder, **card):
    about = {"package": "medseg-sem-al", "model": "steps", "head": "softmax", "channels": (0, 1, 2)}
    about |= {"labels": dict(enumerate(NAMES)), "intensity": {"mean": 0.0, "std": 1.0}, "chosen": {"colours": COLOURS}}
    save_model(folder / "best.safetensors", Steps(), Card(version="0", **{**about, **card}))
    return folder


def drawn(height, width, *, seed=0, shares=(0.4, 0.3, 0.3)):
    """Ids, and 8-bit greys that `Steps` takes for them: from 0, 90 and 180 on, up to 75 more, as no banner has."""
    rng = np.random.default_rng(seed)
    ids = rng.choice(3, (height, width), p=shares).astype(np.uint8)
    return ids, (90 * ids + rng.integers(0, 75, ids.shape)).astype(np.uint8)


def write(path, pixels, pixel_nm=None):
    write_picture(Picture(pixels, pixel_nm), path)
    return path


def mask_of(out, name):
    return read_picture(out / "masks" / f"{name}.png").pixels


def rows_of(file):
    with file.open(newline="") as lines:
        return list(csv.DictReader(lines))


@pytest.mark.parametrize("size", [(37, 53), (2, 3), (64, 64), (101, 33), (31, 160)])
def test_a_mask_has_the_size_and_the_classes_of_its_picture(run, tmp_path, size):
    ids, grey = drawn(*size)
    predict_files(write(tmp_path / "a.png", grey), run, tmp_path / "out", PredictConfig(window=32, device="cpu"))
    np.testing.assert_array_equal(mask_of(tmp_path / "out", "a"), ids)


def test_pictures_of_every_kind_give_the_mask_of_their_greys(run, tmp_path):
    ids, grey = drawn(40, 51)
    full = np.full_like(grey, 255)
    half = np.random.default_rng(1).integers(0, 255, grey.shape, dtype=np.uint8)
    write(tmp_path / "in" / "deep.png", grey.astype(np.uint16) * 257)
    write(tmp_path / "in" / "deep_tiff.tif", grey.astype(np.uint16) * 257)
    write(tmp_path / "in" / "rgb.png", np.stack([grey] * 3, 2))
    write(tmp_path / "in" / "rgba.png", np.stack([grey, grey, grey, half], 2))
    write(tmp_path / "in" / "la.png", np.stack([grey, full], 2))
    write(tmp_path / "in" / "float.tif", (grey / 255).astype(np.float32))
    outcome = predict_files(tmp_path / "in", run, tmp_path / "out", CONFIG)
    assert (len(outcome.done), outcome.failed) == (6, {})
    for name in outcome.done:
        np.testing.assert_array_equal(mask_of(tmp_path / "out", name), ids, err_msg=name)


def test_sixteen_bits_are_not_cut_to_eight(run, tmp_path):
    third = np.array([[21800, 21900], [21840, 21850]], np.uint16)  # a third of 65535 is 21845; in 8 bits all are 85
    predict_files(write(tmp_path / "a.png", third), run, tmp_path / "out", CONFIG)
    assert mask_of(tmp_path / "out", "a").tolist() == [[0, 1], [0, 1]]


@pytest.fixture
def bannered(tmp_path):
    """A picture of 80 rows and a black banner of 20 with some white letters below them."""
    ids, grey = drawn(100, 60)
    grey[80:] = 0
    grey[85:95, 5:25:2] = 255
    return ids[:80], write(tmp_path / "a.png", grey, None)


def test_a_banner_is_no_class(run, tmp_path, bannered):
    ids, file = bannered
    predict_files(file, run, tmp_path / "out", CONFIG)
    mask = mask_of(tmp_path / "out", "a")
    assert mask.shape == (100, 60)
    assert (mask[80:] == 255).all()
    np.testing.assert_array_equal(mask[:80], ids)


def test_a_banner_counts_in_no_share_and_no_area(run, tmp_path, bannered):
    ids, file = bannered
    predict_files(file, run, tmp_path / "out", CONFIG)
    for k, row in enumerate(rows_of(tmp_path / "out" / "phases.csv")):
        assert float(row["share"]) == pytest.approx((ids == k).mean())
        assert float(row["area_px2"]) == (ids == k).sum()


def test_a_banner_is_white_in_colours_and_itself_in_the_overlay(run, tmp_path, bannered):
    predict_files(bannered[1], run, tmp_path / "out", CONFIG)
    assert (read_picture(tmp_path / "out" / "colours" / "a.png").pixels[80:] == 255).all()
    grey = read_picture(bannered[1]).pixels
    np.testing.assert_array_equal(read_picture(tmp_path / "out" / "overlays" / "a.png").pixels[80:, :, 1], grey[80:])


@pytest.mark.parametrize(("banner", "seen"), [(0, 100), (7, 93)])
def test_a_banner_is_as_many_rows_as_were_given(run, tmp_path, bannered, banner, seen):
    predict_files(bannered[1], run, tmp_path / "out", PredictConfig(banner=banner, device="cpu"))
    assert (mask_of(tmp_path / "out", "a") != 255).all(1).sum() == seen


def test_a_banner_of_all_rows_is_refused_for_its_picture(run, tmp_path, bannered):
    outcome = predict_files(bannered[1], run, tmp_path / "out", PredictConfig(banner=100, device="cpu"))
    assert outcome.failed["a"] == "a has 100 rows, and 100 are to be cut; set --banner"


def test_colours_are_those_of_the_training_masks(run, tmp_path):
    ids, grey = drawn(30, 40)
    predict_files(write(tmp_path / "a.png", grey), run, tmp_path / "out", CONFIG)
    np.testing.assert_array_equal(
        read_picture(tmp_path / "out" / "colours" / "a.png").pixels, np.array(COLOURS, np.uint8)[ids]
    )


def test_lengths_are_by_the_pixel_of_the_file_and_else_by_the_one_that_was_given(run, tmp_path):
    ids, grey = drawn(20, 50)
    write(tmp_path / "in" / "a.tif", grey, pixel_nm=20.0)
    write(tmp_path / "in" / "b.png", grey)
    predict_files(tmp_path / "in", run, tmp_path / "out", PredictConfig(pixel_nm=1000.0, device="cpu"))
    found = {(row["image"], row["class"]): float(row["area_um2"]) for row in rows_of(tmp_path / "out" / "phases.csv")}
    for k, name in enumerate(NAMES):
        num = (ids == k).sum()
        assert (found["a", name], found["b", name]) == (pytest.approx(num * 0.02**2), pytest.approx(num))


def test_the_summary_weighs_pictures_by_their_pixels(run, tmp_path):
    write(tmp_path / "in" / "a.png", np.tile([20, 40], (10, 5)).astype(np.uint8))  # 100 pixels of class 0
    write(tmp_path / "in" / "b.png", np.repeat([[50], [200]], 10, 0).repeat(15, 1).astype(np.uint8))  # 150, 150 of 2
    predict_files(tmp_path / "in", run, tmp_path / "out", CONFIG)
    found = {row["class"]: float(row["share"]) for row in rows_of(tmp_path / "out" / "summary.csv")}
    assert found == {"carbon": pytest.approx(250 / 400), "SE": 0, "AM": pytest.approx(150 / 400)}


@pytest.fixture
def two(tmp_path):
    for seed, name in enumerate("ab"):
        write(tmp_path / "in" / f"{name}.png", drawn(20, 20, seed=seed)[1])
    return tmp_path / "in"


def test_shares_of_all_pictures_are_drawn(run, tmp_path, two, monkeypatch):
    monkeypatch.setattr(module.figures, "save", SAVE)
    predict_files(two, run, tmp_path / "out", CONFIG)
    assert read_picture(tmp_path / "out" / "phases.png").pixels.std() > 10


def test_particles_and_contacts_are_those_of_the_mask(run, tmp_path):
    grey = np.full((30, 30), 10, np.uint8)
    grey[5:9, 5:10] = 200
    grey[20:22, 10:15] = 100
    predict_files(write(tmp_path / "a.png", grey), run, tmp_path / "out", CONFIG)
    rows = rows_of(tmp_path / "out" / "particles" / "a.csv")
    found = {row["class"]: (row["area_px2"], row["row"], row["column"], row["cut"]) for row in rows}
    assert found["AM"] == ("20.0", "6.5", "7.0", "False")
    assert found["SE"] == ("10.0", "20.5", "12.0", "False")
    touching = {(row["image"], row["class"], row["other"]) for row in rows_of(tmp_path / "out" / "contacts.csv")}
    assert touching == {("a", "carbon", "SE"), ("a", "carbon", "AM")}


def test_what_is_done_is_not_done_again(run, tmp_path, two, monkeypatch):
    predict_files(two, run, tmp_path / "out", CONFIG)
    before = (tmp_path / "out" / "phases.csv").read_text()
    monkeypatch.setattr(Predictor, "mask", None)
    outcome = predict_files(two, run, tmp_path / "out", CONFIG)
    assert (outcome.done, set(outcome.skipped)) == ((), {"a", "b"})
    assert (tmp_path / "out" / "phases.csv").read_text() == before


def test_a_picture_that_changed_is_done_again_and_no_other(run, tmp_path, two):
    predict_files(two, run, tmp_path / "out", CONFIG)
    ids, grey = drawn(25, 30, seed=9, shares=(0.9, 0.1, 0))
    write(two / "b.png", grey)
    outcome = predict_files(two, run, tmp_path / "out", CONFIG)
    assert (outcome.done, outcome.skipped) == (("b",), ("a",))
    np.testing.assert_array_equal(mask_of(tmp_path / "out", "b"), ids)
    rows = {(row["image"], row["class"]): row for row in rows_of(tmp_path / "out" / "phases.csv")}
    assert float(rows["b", "carbon"]["share"]) == pytest.approx((ids == 0).mean())


def test_a_killed_prediction_goes_on_with_what_is_not_done(run, tmp_path, two, monkeypatch):
    honest, seen = Predictor.mask, []

    def killed(self, image):
        seen.append(image)
        if len(seen) == 2:
            raise KeyboardInterrupt
        return honest(self, image)

    monkeypatch.setattr(Predictor, "mask", killed)
    with pytest.raises(KeyboardInterrupt):
        predict_files(two, run, tmp_path / "out", CONFIG)
    assert predict_files(two, run, tmp_path / "out", CONFIG).done == ("b",)
    assert {row["image"] for row in rows_of(tmp_path / "out" / "phases.csv")} == {"a", "b"}


def test_other_weights_or_settings_do_not_go_on_in_one_folder(run, tmp_path, two):
    predict_files(two, run, tmp_path / "out", CONFIG)
    with pytest.raises(MedsegError, match="begun with other settings: banner was -1, now 0"):
        predict_files(two, run, tmp_path / "out", PredictConfig(banner=0, device="cpu"))
    other = saved(tmp_path / "other", intensity={"mean": 0.5, "std": 1.0})
    with pytest.raises(MedsegError, match="begun with other settings: weights"):
        predict_files(two, other, tmp_path / "out", CONFIG)
    assert set(predict_files(two, other, tmp_path / "out", CONFIG, overwrite=True).done) == {"a", "b"}


def test_a_folder_of_something_else_is_refused_and_stays(run, tmp_path, two):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("mine")
    with pytest.raises(MedsegError, match="is not empty and was not begun by predict"):
        predict_files(two, run, tmp_path / "out", CONFIG)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["thesis.tex"]


def test_a_picture_that_cannot_be_read_costs_no_other(run, tmp_path, two):
    (two / "broken.png").write_bytes(b"\x89PNG no picture")
    outcome = predict_files(two, run, tmp_path / "out", CONFIG)
    assert set(outcome.done) == {"a", "b"}
    assert list(outcome.failed) == ["broken"]
    assert {row["image"] for row in rows_of(tmp_path / "out" / "phases.csv")} == {"a", "b"}


def test_a_picture_that_can_no_longer_be_read_leaves_the_tables(run, tmp_path, two):
    predict_files(two, run, tmp_path / "out", CONFIG)
    (two / "b.png").write_bytes(b"\x89PNG no picture")
    assert list(predict_files(two, run, tmp_path / "out", CONFIG).failed) == ["b"]
    assert {row["image"] for row in rows_of(tmp_path / "out" / "phases.csv")} == {"a"}


def test_two_pictures_of_one_name_are_told_and_not_passed_over(run, tmp_path, two):
    write(two / "b.tif", drawn(20, 20)[1])
    outcome = predict_files(two, run, tmp_path / "out", CONFIG)
    assert outcome.done == ("a",)
    assert outcome.failed["b"].startswith("b.png and b.tif are both 'b'; rename one")


def test_masks_beside_the_pictures_are_not_predicted(run, tmp_path):
    for name in ("raw", "labeled"):
        write(tmp_path / "in" / name / "a.png", drawn(20, 20)[1])
    assert predict_files(tmp_path / "in", run, tmp_path / "out", CONFIG).done == ("a",)


def test_masks_of_a_jpeg_are_png(run, tmp_path):
    Image.fromarray(np.full((16, 16), 200, np.uint8)).save(tmp_path / "a.jpg")
    predict_files(tmp_path / "a.jpg", run, tmp_path / "out", CONFIG)
    assert (mask_of(tmp_path / "out", "a") == 2).all()


def test_what_is_read_is_never_written_over(run, tmp_path):
    write(tmp_path / "out" / "masks" / "a.png", drawn(20, 20)[1])
    for given in (tmp_path / "out" / "masks", tmp_path / "out" / "masks" / "a.png"):
        with pytest.raises(MedsegError, match="holds what is to be predicted"):
            predict_files(given, run, tmp_path / "out", CONFIG, overwrite=True)


def test_an_output_among_the_pictures_is_refused_as_the_next_call_would_read_it(run, two):
    for out in (two, two / "out"):
        with pytest.raises(MedsegError, match="choose an"):
            predict_files(two, run, out, CONFIG, overwrite=True)
    assert {path.name for path in two.iterdir()} == {"a.png", "b.png"}


@pytest.mark.parametrize(("name", "said"), [("a.txt", "is no PNG, TIFF or JPEG"), ("none", "there is no folder")])
def test_what_is_no_picture_is_refused(run, tmp_path, name, said):
    (tmp_path / "a.txt").write_text("a")
    with pytest.raises(MedsegError, match=said):
        predict_files(tmp_path / name, run, tmp_path / "out", CONFIG)
    assert not (tmp_path / "out").exists()


def test_a_run_that_makes_no_classes_is_refused_with_what_to_give(run, tmp_path):
    pretrained = saved(tmp_path / "pretrained", model="autoencoder", head="none")
    with pytest.raises(MedsegError, match="holds a autoencoder of medseg-sem-al, which makes no classes"):
        Predictor(pretrained)
    with pytest.raises(MedsegError, match="give a run of medseg sem-al train"):
        Predictor(saved(tmp_path / "foreign", package="medseg-fusion"))
