"""Pre-training: who is held out, what it is judged by, that it goes on exactly, and that its encoder is taken over."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from medseg_core.augment import Recipe
from medseg_core.cases import Case
from medseg_core.checkpoint import Card, load_model, save_model
from medseg_core.draw import Draw
from medseg_core.errors import MedsegError
from medseg_core.io import read_picture, write_picture
from medseg_core.run import read_history
from medseg_core.volume import Picture
from medseg_sem_al.colours import Classes
from medseg_sem_al.held import Reconstruction, Retrieval, nearest, retrieved, smooth_fill
from medseg_sem_al.index import Index, build_index, read_index
from medseg_sem_al.models.encoders import of_timm
from medseg_sem_al.models.original import SixLevels
from medseg_sem_al.models.pretraining import METHODS, SelfDistilled
from medseg_sem_al.models.segmenter import Segmenter
from medseg_sem_al.phantom import phantom
from medseg_sem_al.pretrain import card_of, divided, inspect, pretrain
from medseg_sem_al.settings import IndexConfig, PretrainConfig
from medseg_sem_al.start import load_encoder
from medseg_sem_al.views import Views, Window, centre, tiles

SMALL = {"width": 2, "size": 32, "epochs": 2, "batch_size": 4, "epoch_windows": 8, "device": "cpu", "save_every": 1}
GREY = {"mean": 0.5, "std": 0.2}


def config(**settings):
    return PretrainConfig(**{**SMALL, **settings})


@pytest.fixture(scope="module")
def index_file(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sem")
    phantom(folder / "data", num_images=18, num_labelled=12, size=64)
    build_index(folder / "data", IndexConfig()).write(folder / "index.json")
    return folder / "index.json"


HOW = {
    "autoencoder": {},
    "mae": {"method": "mae", "encoder": "vit_tiny"},
    "dino": {"method": "dino", "num_prototypes": 16},
}


@pytest.fixture(scope="module")
def runs(index_file, tmp_path_factory):
    """A run of each method, made when it is asked for."""
    made = {}

    def run_of(method):
        if method not in made:
            made[method] = tmp_path_factory.mktemp("runs") / method
            pretrain(index_file, made[method], config(**HOW[method]))
        return made[method]

    return run_of


@pytest.fixture
def run(runs):
    return runs("autoencoder")


def index_of(*cases):
    """Cases as (id, group, split)."""
    return Index(tuple(Case(name, {}, group=group, split=split) for name, group, split in cases), Classes(()), rule="")


def test_nothing_of_a_group_that_is_tested_on_is_looked_at():
    index = index_of(("a1", "a", "test"), ("a2", "a", ""), ("b1", "b", "train"), ("c1", "c", "val"), ("d1", "d", ""))
    cases = divided(index, config(held=0.4), Path("index.json"))
    found = {case.id: case.split for case in cases}
    assert len(cases) == len(index.cases)
    assert (found["a1"], found["a2"]) == ("test", "test")
    rest = [found[name] for name in ("b1", "c1", "d1")]
    assert sorted(rest) == ["train", "train", "val"]


def test_groups_are_held_out_whole():
    cases = [(f"{group}{k}", group, "") for group in "abcdefgh" for k in range(3)]
    found = divided(index_of(*cases), config(held=0.25), Path("index.json"))
    assert sorted(case.split for case in found) == ["train"] * 18 + ["val"] * 6
    assert len({(case.group, case.split) for case in found}) == 8


def test_an_index_for_testing_alone_is_refused():
    with pytest.raises(MedsegError, match=r"all 1 pictures of index\.json are for testing"):
        divided(index_of(("a", "", "test")), config(), Path("index.json"))


def test_labels_are_not_needed(index_file, run):
    split = json.loads((run / "split.json").read_text())
    cases = {case.id: case for case in read_index(index_file).cases}
    assert sorted(split["train"] + split["val"] + split["test"]) == sorted(cases)
    assert any("label" not in cases[name].files for name in split["train"])


@pytest.mark.parametrize("method", METHODS)
def test_each_method_leaves_a_network_that_its_card_rebuilds(runs, method):
    model, card = load_model(runs(method), METHODS)
    assert isinstance(model, METHODS[method])
    assert (card.model, card.inputs, card.head, card.weights) == (method, ("sem",), "none", "ema")
    assert 0 < card.intensity["std"] < 1


@pytest.mark.parametrize("method", METHODS)
def test_a_run_that_goes_on_ends_in_the_same_bits(index_file, tmp_path, runs, method):
    whole = runs(method)
    again = tmp_path / "again"
    pretrain(index_file, again, config(**HOW[method]), resume=str(whole / "checkpoints" / "epoch_0001"))
    for name in ("best.safetensors", "metrics.jsonl", "last/state.safetensors"):
        assert (again / name).read_bytes() == (whole / name).read_bytes(), name


def test_without_held_pictures_the_last_weights_are_kept(index_file, tmp_path):
    pretrain(index_file, tmp_path / "run", config(held=0.0, epochs=1))
    assert (tmp_path / "run" / "best.safetensors").is_file()
    with pytest.raises(MedsegError, match=r"--held 0\.2"):
        inspect(tmp_path / "run", index_file, tmp_path / "look")


@pytest.mark.parametrize(
    ("wrong", "fix"),
    [
        ({"method": "dino", "ema": 0.0}, r"--ema 0\.99"),
        ({"method": "mae"}, "try vit_tiny"),
        ({"size": 50}, r"--size 50 must be a multiple of 16.*try 48"),
        ({"size": 16}, "try 32"),
        ({"size": 32, "patch": 24}, "multiple of 48.*try 48"),
    ],
)
def test_settings_that_do_not_fit_are_refused_with_the_fix(index_file, tmp_path, wrong, fix):
    with pytest.raises(MedsegError, match=fix):
        pretrain(index_file, tmp_path / "run", config(**wrong))
    assert not (tmp_path / "run").exists()


def test_the_encoder_of_the_original_is_as_wide_as_it_was(index_file):
    cases = [case for case in read_index(index_file).cases if case.split == "train"]
    assert card_of(cases, config(encoder="six_levels")).arguments["width"] == 64


def test_the_fill_with_means_has_the_psnr_of_the_deviation():
    # a window of 0 and 1 in equal parts, everywhere: the mean is off by a half, 20 log10(2) dB
    checks = np.indices((64, 64)).sum(0) % 2
    window = Window(Case("a", {}), 0, 0, checks[None].astype(np.float32))
    (row,) = Reconstruction([window], share=0.5, intensity=GREY, patch=8, seed=0).rows
    assert row["mean_psnr"] == pytest.approx(6.0206, abs=1e-3)


def test_a_network_that_knows_the_picture_is_perfect_and_one_that_says_the_mean_is_the_fill():
    values = np.random.default_rng(0).random((3, 32, 32)).astype(np.float32)
    judge = Reconstruction([Window(Case("a", {}), 0, 0, values)], share=0.75, intensity=GREY, patch=8, seed=0)
    hidden = judge.where(0)
    assert hidden.sum() == 0.75 * 32 * 32

    class Says(torch.nn.Module):
        def __init__(self, values):
            super().__init__()
            self.none, self.values = torch.nn.Parameter(torch.zeros(1)), values

        def forward(self, x, hidden):
            return torch.from_numpy((self.values - np.float32(0.5)) / np.float32(0.2))[None]

    assert judge(Says(values), None).metrics["psnr"] > 90
    score = judge(Says(np.full_like(values, values[:, ~hidden].mean())), None)
    assert score.value == score.metrics["psnr"] == pytest.approx(score.metrics["mean_psnr"], abs=1e-3)
    assert score.metrics["ssim"] == pytest.approx(score.metrics["mean_ssim"], abs=1e-4)


def test_a_smooth_fill_is_the_mean_of_what_is_near():
    values = np.zeros((16, 64), np.float32)
    values[:, 32:] = 1
    where = np.zeros(values.shape, bool)
    where[:, 8:12] = where[:, 30:34] = True
    found, other = smooth_fill(np.stack([values, 1 - values]), where, 4)
    np.testing.assert_allclose(other, 1 - found, atol=1e-6)  # frames do not mix
    assert np.array_equal(found[~where], values[~where])
    assert found[:, 8:12] == pytest.approx(np.zeros((16, 4)), abs=1e-6)
    assert found[:, 30] + found[:, 33] == pytest.approx(np.ones(16), abs=1e-5)  # by symmetry
    assert found[0, 30] < 0.5 < found[0, 33]


def test_retrieval_by_hand():
    one = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    assert retrieved(torch.stack([one, one])) == 1
    assert retrieved(torch.stack([one, one.flip(0)])) == 0
    # the first pair agrees; the partner of [-1, 1] is farther than [0, 1], and so is that of [0, 1] itself
    assert retrieved(torch.stack([torch.tensor([[1.0, 0], [0.0, 1]]), torch.tensor([[1.0, 0.1], [-1.0, 1]])])) == 1
    assert nearest(torch.tensor([[7.0, 5], [6, 6], [5, 7.5], [4, 4]]), 1)[0].tolist() == [[1], [0], [1], [0]]


def test_dino_is_told_beside_chance_greys_and_the_start(index_file):
    index = read_index(index_file)
    views = Views(index, index.cases[:3], size=32, num_small=0, intensity=GREY, how=Recipe())
    torch.manual_seed(0)
    start, other = SelfDistilled(width=2).train(), SelfDistilled(width=2).eval()
    judge = Retrieval(views, seed=0, start=start)
    assert start.training
    told = judge(other, None).metrics
    assert told["chance"] == pytest.approx(1 / (2 * 64 - 1))  # pairs: the least of an epoch
    assert told["start"] == judge(start.eval(), None).value
    assert 0 <= told["grey"] <= 1
    assert 0 <= told["doubt"] <= told["entropy"] + 1e-6 <= 1 + 2e-6


def test_greys_find_the_other_view_where_pictures_differ_in_brightness(tmp_path):
    for number in range(8):
        grey = np.full((64, 64), 16 + 28 * number, np.uint8)
        write_picture(Picture(grey), tmp_path / "raw" / f"{'abcdefgh'[number]}.png")
    index = build_index(tmp_path, IndexConfig(banner=0))
    views = Views(index, index.cases, size=32, num_small=0, intensity=GREY, how=Recipe(), num_samples=8)
    assert Retrieval(views, seed=0, start=SelfDistilled(width=2)).beside["grey"] == 1


def grid(tmp_path, height=96, width=128):
    """An index of one picture whose values are row / height."""
    rows = np.repeat(np.arange(height, dtype=np.uint8)[:, None] * 2, width, 1)
    write_picture(Picture(rows), tmp_path / "raw" / "a_1.png")
    return build_index(tmp_path, IndexConfig(banner=0))


def test_views_are_windows_of_one_place(tmp_path):
    index = grid(tmp_path)
    how = {"size": 32, "num_small": 3, "intensity": {"mean": 0.0, "std": 1.0}, "how": Recipe()}
    views = Views(index, index.cases, **how)
    for place in range(20):
        found = views[Draw(0, 0, place, 0)]
        assert found["large"].shape == (2, 1, 32, 32)
        assert found["small"].shape == (3, 1, 16, 16)
        tops = [round(float(view.min()) * 255 / 2) for name in found for view in found[name]]
        feet = [round(float(view.max()) * 255 / 2) for name in found for view in found[name]]
        assert max(feet) - min(tops) < 48  # half as wide again as a large view
    assert torch.equal(views[Draw(0, 0, 3, 0)]["large"], views[Draw(0, 0, 3, 0)]["large"])
    assert not torch.equal(views[Draw(0, 0, 3, 0)]["large"], views[Draw(0, 1, 3, 0)]["large"])


def test_windows_that_are_judged_lie_in_the_middle(tmp_path):
    index = grid(tmp_path)
    found = centre(index, index.cases[0], 64, 16)
    assert (found.row, found.column, found.values.shape) == (16, 32, (1, 64, 64))
    assert np.rint(found.values[0, 0, 0] * 255) == 32
    assert centre(index, index.cases[0], 1000, 48).values.shape == (1, 96, 96)
    assert centre(index, index.cases[0], 1000, 200).values.shape == (1, 200, 200)  # mirrored
    corners = [(tile.row, tile.column) for tile in tiles(index, index.cases[0], 40, most=4)]
    assert corners == [(8, 4), (8, 44), (8, 84), (48, 4), (48, 44), (48, 84)]


def test_what_is_inspected_has_the_numbers_of_the_run(index_file, run, tmp_path):
    told = inspect(run, index_file, tmp_path / "look")
    held = json.loads((run / "split.json").read_text())["val"]
    history = read_history(run)
    best = max((value, place) for place, value in enumerate(history["val_psnr"]) if value is not None)[1]
    for name in ("psnr", "ssim", "mean_psnr", "smooth_ssim"):
        assert told[name] == pytest.approx(history[f"val_{name}"][best], rel=1e-4)
    rows = list(csv.DictReader((tmp_path / "look" / "inspect.csv").open()))
    assert sorted(row["case"] for row in rows) == held
    assert np.mean([float(row["psnr"]) for row in rows]) == pytest.approx(told["psnr"])
    summary = json.loads((tmp_path / "look" / "inspect.json").read_text())
    assert summary["pictures"] == len(summary["rows"]) == len(held)
    panel = read_picture(tmp_path / "look" / "pictures" / f"{held[0]}.png").pixels
    assert panel.shape == (32, 4 * 32 + 3 * 6, 3)


def test_a_panel_shows_what_was_seen_and_keeps_it(index_file, run, tmp_path):
    inspect(run, index_file, tmp_path / "look")
    panel = read_picture(next((tmp_path / "look" / "pictures").glob("*.png"))).pixels.astype(int)
    image, seen, made, error = (panel[:, start : start + 32] for start in (0, 38, 76, 114))
    hidden = (seen != seen[..., :1]).any(-1)  # what is not grey
    assert hidden.mean() == 0.75
    assert (image == made).all(-1)[~hidden].all()
    assert np.abs(error[..., 0] - np.clip(2 * np.abs(image - made)[..., 0], 0, 255)).max() <= 2


def test_neighbours_are_shown_for_dino(index_file, runs, tmp_path):
    told = inspect(runs("dino"), index_file, tmp_path / "look")
    held = json.loads((runs("dino") / "split.json").read_text())["val"]
    num = 4 * len(held)  # windows of 32 in pictures of 64
    assert told["windows"] == num
    assert told["chance"] == pytest.approx(3 / (num - 1))
    rows = list(csv.DictReader((tmp_path / "look" / "inspect.csv").open()))
    assert len(rows) == 3 * num
    places = [[(r[f"{k}row"], r[f"{k}column"]) for k in ("", "neighbour_")] for r in rows if r["same_picture"] == "1"]
    assert all(own != near for own, near in places)
    assert read_picture(tmp_path / "look" / "pictures" / f"{held[0]}.png").pixels.shape == (32, 4 * 32 + 3 * 6, 3)


def test_a_folder_that_holds_something_else_stays(index_file, run, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(MedsegError, match="holds something else"):
        inspect(run, index_file, tmp_path)


def test_the_encoder_of_a_run_is_taken_over_whole(run):
    torch.manual_seed(1)
    segmenter = Segmenter(1, 3, width=2)
    total = sum(tensor.numel() for tensor in segmenter.encoder.state_dict().values())
    assert load_encoder(segmenter.encoder, run) == (total, total)
    kept = load_model(run, METHODS)[0].encoder.state_dict()
    assert all(torch.equal(tensor, kept[name]) for name, tensor in segmenter.encoder.state_dict().items())


def test_that_of_a_segmentation_too(tmp_path):
    torch.manual_seed(0)
    donor = SixLevels(1, 2, width=2)
    arguments = {"in_channels": 1, "num_classes": 2, "width": 2}
    card = Card(package="medseg-sem-al", version="0", model="six_levels", arguments=arguments)
    save_model(tmp_path / "w.safetensors", donor, card)
    other = SixLevels(1, 5, width=2)
    load_encoder(other.encoder, tmp_path / "w.safetensors")
    assert torch.equal(other.encoder.levels[0][0].weight, donor.encoder.levels[0][0].weight)


def test_other_channels_are_refused_and_both_are_named(run):
    with pytest.raises(MedsegError, match=r"\(2, 1, 3, 3\) in the file, \(2, 3, 3, 3\) in the model.*in_channels 1"):
        load_encoder(Segmenter(3, 2, width=2).encoder, run)


def test_another_encoder_is_refused_and_named(run):
    encoder = Segmenter(1, 2, encoder="resnet18").encoder
    before = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    with pytest.raises(MedsegError, match=r"0 of 120 tensors match.*encoder unet"):
        load_encoder(encoder, run)
    assert all(torch.equal(tensor, before[name]) for name, tensor in encoder.state_dict().items())


def test_weights_of_timm_are_taken_for_its_networks(tmp_path):
    donor = of_timm("resnet18", 3, num_classes=1000)
    save_file(donor.state_dict(), tmp_path / "resnet18.safetensors")
    encoder = Segmenter(1, 2, encoder="resnet18").encoder
    filled, total = load_encoder(encoder, tmp_path / "resnet18.safetensors")
    assert filled == total
    assert torch.equal(encoder.body.layer4[1].conv2.weight, donor.layer4[1].conv2.weight)


def test_weights_without_a_card_fill_no_unet(tmp_path):
    save_file({"encoder.x": torch.zeros(1)}, tmp_path / "bare.safetensors")
    with pytest.raises(MedsegError, match="0 of 60 tensors match"):
        load_encoder(Segmenter(1, 2, width=2).encoder, tmp_path / "bare.safetensors")


def test_a_network_without_an_encoder_gives_none(tmp_path):
    save_model(tmp_path / "w.safetensors", torch.nn.Linear(2, 2), Card(package="medseg-sem-al", version="0", model="x"))
    with pytest.raises(MedsegError, match=r"no tensor's name starts with 'encoder\.'"):
        load_encoder(Segmenter(1, 2, width=2).encoder, tmp_path / "w.safetensors")
