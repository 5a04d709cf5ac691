"""A picture between its neighbours, from the index to prediction."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from medseg_core.cases import Case
from medseg_core.errors import MedsegError
from medseg_sem_al.evaluate import evaluate_run
from medseg_sem_al.index import build_index, read_index
from medseg_sem_al.predict import Predictor, find_inputs, predict_files
from medseg_sem_al.pretrain import inspect, pretrain
from medseg_sem_al.samples import Windows
from medseg_sem_al.settings import IndexConfig, PretrainConfig, SegConfig
from medseg_sem_al.stacks import read_stack, with_neighbours
from medseg_sem_al.start import Start
from medseg_sem_al.train import train

BUDGET = {"width": 2, "size": 32, "epochs": 1, "epoch_windows": 8, "batch_size": 4, "device": "cpu"}


def cases(*names):
    return [Case(name, {"image": f"{name}.png"}) for name in names]


def near(found):
    """The frames beside each picture, first to last."""
    order = sorted((role for role in found.files if role != "image"), key=lambda role: int(role[5:]))
    return [str(found.files[role]).removesuffix(".png") for role in order]


@pytest.mark.parametrize(
    ("names", "beside"),
    [
        (("a1", "a2", "a3"), [["a2"], ["a1", "a3"], ["a2"]]),
        (("a10", "a20", "a30"), [["a20"], ["a10", "a30"], ["a20"]]),  # every tenth was imaged
        (("a1", "a2", "a4"), [["a2"], ["a1"], []]),  # one is lost
        (("a1", "b2"), [[], []]),
        (("7", "8"), [["8"], ["7"]]),
        (("a", "b"), [[], []]),
    ],
)
def test_neighbours_are_the_next_frames_of_a_sequence(names, beside):
    assert [near(case) for case in with_neighbours(cases(*names), 3)] == beside


def test_frames_of_another_kind_are_no_neighbours():
    assert [near(case) for case in with_neighbours(cases("a1", "a2", "a3"), 3, ["x", "x", "y"])] == [["a2"], ["a1"], []]


def test_a_missing_frame_is_the_next_one_towards_the_middle_again():
    (case, *_) = with_neighbours(cases("a1", "a2"), 5)
    greys = {"a1.png": 1.0, "a2.png": 2.0}
    stack = read_stack(case, 5, lambda file: np.full((1, 1), greys[str(file)]))
    assert stack.ravel().tolist() == [1, 1, 1, 2, 2]


def test_frames_of_two_sizes_are_refused():
    (case, *_) = with_neighbours(cases("a1", "a2"), 3)
    with pytest.raises(MedsegError, match=r"a1\.png is 4x4 and its neighbour a2\.png 5x4"):
        read_stack(case, 3, lambda file: np.zeros((4, 4 + (str(file) == "a2.png"))))


@pytest.fixture(scope="module")
def ramp(tmp_path_factory):
    """Two sequences of four frames, frame n of grey 20 n, and a mask of where the frame before was bright."""
    root = tmp_path_factory.mktemp("ramp") / "data"
    rng = np.random.default_rng(0)
    for name in ("raw", "labeled"):
        (root / name).mkdir(parents=True)
    for sequence in "ab":
        before = None
        for number in range(4):
            half = np.broadcast_to(rng.random((48, 1)) < 0.5, (48, 64))
            grey = 20 * number + 100 * half
            Image.fromarray(grey.astype(np.uint8)).save(root / "raw" / f"{sequence}_{number}.png")
            before = half if before is None else before
            Image.fromarray(before.astype(np.uint8)).save(root / "labeled" / f"{sequence}_{number}.png")
            before = half
    return root


@pytest.fixture(scope="module")
def stacked(ramp):
    file = ramp.parent / "index.json"
    build_index(ramp, IndexConfig(split=(0.5, 0.5, 0.0), depth=3)).write(file)
    return file


def test_an_index_keeps_each_picture_between_its_neighbours(stacked):
    index = read_index(stacked)
    by_id = {case.id: case for case in index.cases}
    one = [index.image(by_id[f"a_{number}"]) for number in range(4)]
    assert index.depth == 3
    np.testing.assert_array_equal(index.stack(by_id["a_1"]), np.stack(one[:3]))
    np.testing.assert_array_equal(index.stack(by_id["a_3"]), np.stack([one[2], one[3], one[3]]))
    assert "4 of 8 pictures lack a neighbour" in index.findings[-1]["text"] + index.findings[-2]["text"]


def test_a_run_with_other_neighbours_is_another(ramp, stacked):
    how = {"size": 32, "intensity": {"mean": 0.5, "std": 0.5}}
    alone = build_index(ramp, IndexConfig(split=(0.5, 0.5, 0.0)))
    one, other = (Windows(index, index.cases, **how).identity for index in (read_index(stacked), alone))
    assert one != other


def test_neighbours_in_another_part_of_the_split_are_not_looked_at(ramp):
    index = build_index(ramp, IndexConfig(depth=3, group="image"))
    assert all(set(case.files) == {"image", "label"} for case in index.cases)
    assert any("no picture has a neighbour" in finding["text"] for finding in index.findings)


def test_the_stacks_of_the_original_are_taken_as_they_are_listed(ramp):
    file = ramp / "list.json"
    by_name = {"frames": ["a_0.png", "a_1.png", "a_2.png"], "mask_file": None}
    samples = [{"frames": ["a_2.png", "a_0.png", "b_1.png"], "mask_file": None}, by_name]
    file.write_text(json.dumps({"root_raw_image_dir": "raw", "samples": samples}))
    index = build_index(file, IndexConfig(depth=3))
    assert near(index.cases[0]) == [str(ramp / "raw" / "a_2"), str(ramp / "raw" / "b_1")]
    flat = build_index(file, IndexConfig())
    assert flat.depth == 1
    assert any("--depth 3 lets a network see them" in finding["text"] for finding in flat.findings)


def test_an_even_depth_is_refused(ramp):
    with pytest.raises(MedsegError, match="--depth 2 has no picture in the middle; try 1 or 3"):
        build_index(ramp, IndexConfig(depth=2))


def test_a_network_sees_what_only_the_neighbour_shows(stacked, tmp_path):
    more = {"width": 4, "epochs": 6, "epoch_windows": 32, "lr": 2e-2, "ema": 0.0, "augment": "none"}
    config = SegConfig(**{**BUDGET, **more}, flip_chance=0.0, turn_chance=0.0, val_every=6)
    result = train(stacked, tmp_path / "run", config)
    assert result.best.value > 0.9  # a picture tells nothing of the frame before it


def test_prediction_finds_the_neighbours_of_a_folder_and_of_one_picture(ramp, stacked, tmp_path):
    train(stacked, tmp_path / "run", SegConfig(**BUDGET))
    predict_files(ramp / "raw", tmp_path / "run", tmp_path / "all")
    predict_files(ramp / "raw" / "a_1.png", tmp_path / "run", tmp_path / "one")
    mask = np.asarray(Image.open(tmp_path / "all" / "masks" / "a_1.png"))
    index = read_index(stacked)
    stack = index.stack(next(case for case in index.cases if case.id == "a_1"))
    np.testing.assert_array_equal(mask, Predictor(tmp_path / "run").mask(stack))
    np.testing.assert_array_equal(mask, np.asarray(Image.open(tmp_path / "one" / "masks" / "a_1.png")))


def test_a_damaged_neighbour_costs_no_other_picture(ramp, stacked, tmp_path):
    train(stacked, tmp_path / "run", SegConfig(**BUDGET))
    shutil.copytree(ramp / "raw", tmp_path / "raw")
    (tmp_path / "raw" / "a_1.png").write_bytes(b"torn")
    Image.new("L", (30, 20)).save(tmp_path / "raw" / "b_1.png")
    outcome = predict_files(tmp_path / "raw", tmp_path / "run", tmp_path / "out")
    assert list(outcome.failed) == ["a_1"]


def test_a_single_picture_has_only_itself_to_be_predicted(ramp):
    (case,), _ = find_inputs(ramp / "raw" / "b_0.png", 3)
    assert case.id == "b_0"
    assert near(case) == [str(ramp / "raw" / "b_1")]


@pytest.mark.parametrize(("method", "encoder"), [("autoencoder", "unet"), ("mae", "vit_tiny"), ("dino", "unet")])
def test_pre_training_on_stacks_gives_an_encoder_of_stacks(stacked, tmp_path, method, encoder):
    how = {"size": 32, "epochs": 1, "epoch_windows": 4, "batch_size": 4, "device": "cpu", "held": 0.5, "width": 2}
    pretrain(stacked, tmp_path / "ssl", PretrainConfig(**how, method=method, encoder=encoder))
    inspect(tmp_path / "ssl", stacked, tmp_path / "look")
    train(
        stacked,
        tmp_path / "run",
        SegConfig(**{**BUDGET, "encoder": encoder}),
        start=Start(encoder_init=tmp_path / "ssl"),
    )
    assert len(list((tmp_path / "look" / "pictures").glob("*.png"))) == 4


def test_a_run_on_pictures_refuses_stacks(ramp, stacked, tmp_path):
    flat = tmp_path / "flat.json"
    build_index(ramp, IndexConfig(split=(0.5, 0.5, 0.0))).write(flat)
    train(flat, tmp_path / "run", SegConfig(**BUDGET))
    with pytest.raises(MedsegError, match="has stacks of 3, the run saw 1; index with --depth 1"):
        evaluate_run(stacked, tmp_path / "run", tmp_path / "out", split="val")
