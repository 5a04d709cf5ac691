"""Stages: where each begins, what a dry run finds, what is refused, and that a killed pipeline goes on."""

import logging
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from medseg_core.checkpoint import Card, save_model
from medseg_core.errors import MedsegError
from medseg_core.io import write_text
from medseg_core.trainer import Result, Score
from medseg_sem_al import pipeline as module
from medseg_sem_al.index import build_index
from medseg_sem_al.models.segmenter import Segmenter
from medseg_sem_al.phantom import phantom
from medseg_sem_al.pipeline import pipeline, read_plan
from medseg_sem_al.settings import IndexConfig

TOP = """
index = "index.json"
out = "runs"
width = 2
size = 32
epochs = 1
epoch_windows = 8
batch_size = 4
device = "cpu"
"""
TWO = '[[stages]]\nname = "coarse"\n[[stages]]\nname = "fine"\n'


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sem")
    root = phantom(folder / "data", num_images=12, num_labelled=9, size=64)
    build_index(root, IndexConfig(split=(0.4, 0.3, 0.3))).write(folder / "index.json")
    return folder


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    """Two stages, really trained: the second with a frozen encoder and none but its best kept."""
    home = shutil.copytree(data, tmp_path_factory.mktemp("pipeline") / "home")
    more = '[[stages]]\nname = "coarse"\nmode = "train"\nsave = ["best", "last", "checkpoint"]\nsave_every = 1\n'
    more += '[[stages]]\nname = "fine"\nmode = "frozen"\nema = 0\nsave = ["best"]\n'
    write_text(home / "stages.toml", TOP + more)
    return home, pipeline(home / "stages.toml")


@pytest.fixture
def stages(data, tmp_path):
    """Writes a pipeline beside an index."""
    shutil.copytree(data, tmp_path, dirs_exist_ok=True)

    def write(more=TWO, top=""):
        write_text(tmp_path / "stages.toml", TOP + top + more)
        return tmp_path / "stages.toml"

    return write


@dataclass
class Quick:
    """In the place of `train`: begins as it does, changes one weight, and leaves what it would."""

    begun: dict
    killed: str = ""

    def __call__(self, index, out, config, *, start, splits, resume):
        assert resume == "last"
        out.mkdir(parents=True, exist_ok=True)
        if out.name == self.killed:
            raise KeyboardInterrupt
        model = Segmenter(1, 3, width=config.width)
        self.begun[out.name] = start.fill(model)
        model.decoder.head.bias.data += config.lr
        save(out, config.width, model)
        (out / "last").mkdir(exist_ok=True)
        (out / "last" / "state.safetensors").touch()
        return Result(Score(0.5), config.epochs, 1, "finished")


@pytest.fixture
def quick(monkeypatch):
    quick = Quick({})
    monkeypatch.setattr(module, "train", quick)
    return quick


def save(folder, width=2, model=None):
    """A run of a network of this width, for three classes."""
    card = Card(package="medseg-sem-al", version="0", model="segmenter", arguments={"width": width})
    save_model(folder / "best.safetensors", model or Segmenter(1, 3, width=width), card)
    return folder


def test_stages_are_trained_in_order_and_each_leaves_its_best(trained):
    home, told = trained
    assert list(told) == ["coarse", "fine"]
    assert all((home / "runs" / name / "best.safetensors").is_file() for name in told)
    assert told["coarse"].startswith("3 pictures, from random weights: mean IoU 0.")
    assert told["fine"].startswith("3 pictures, from the best of coarse: mean IoU 0.")


def test_a_stage_begins_with_the_weights_of_the_one_before(trained):
    runs = trained[0] / "runs"
    coarse, fine = (load_file(runs / name / "best.safetensors") for name in ("coarse", "fine"))
    encoder = [name for name in coarse if name.startswith("encoder.")]
    assert all(torch.equal(coarse[name], fine[name]) for name in encoder)  # as it was frozen
    assert not all(torch.equal(coarse[name], fine[name]) for name in coarse)


def test_a_stage_keeps_of_its_states_what_it_was_told_to(trained):
    runs = trained[0] / "runs"
    assert (runs / "coarse" / "last" / "state.safetensors").is_file()
    assert (runs / "coarse" / "checkpoints" / "epoch_0001").is_dir()
    assert not list((runs / "fine").rglob("state.safetensors"))


def test_a_second_call_trains_nothing_and_tells_the_same(trained, monkeypatch):
    home, told = trained
    monkeypatch.setattr(module, "train", None)
    assert pipeline(home / "stages.toml") == {name: f"{text} (done before)" for name, text in told.items()}


def test_a_pipeline_that_moved_or_is_called_from_elsewhere_is_the_same(trained, tmp_path, monkeypatch):
    home = shutil.copytree(trained[0], tmp_path / "moved")
    monkeypatch.setattr(module, "train", None)
    monkeypatch.chdir(home)
    assert pipeline("stages.toml")["fine"].endswith("(done before)")


@pytest.mark.parametrize(
    ("top", "own", "begin"),
    [
        ("", "", "from the best of coarse"),
        ('init = "above"\n', "", "from the best of coarse"),
        ('init = "above"\n', 'init = "own"\n', "tensors of {home}/own"),
        ('init = "above"\n', 'encoder_init = "own"\n', "from the encoder, 18,920 of 18,920 values, of {home}/own"),
    ],
)
def test_a_later_stage_begins_with_its_own_weights_else_the_best_of_the_one_before(stages, tmp_path, top, own, begin):
    for name in ("above", "own"):
        save(tmp_path / name)
    told = pipeline(stages(TWO + own, top), dry_run=True)["fine"]
    assert told.endswith(begin.format(home=tmp_path)), told


@pytest.mark.parametrize(
    ("top", "own", "begin"),
    [
        ('init = "above"\nencoder_init = "encoder"\n', 'init = "own"', "{home}/own"),
        (
            'init = "above"\nencoder_init = "encoder"\n',
            'encoder_init = "own"',
            "the encoder, 18,920 of 18,920 values, of {home}/own",
        ),
        ('init = "above"\nencoder_init = "encoder"\n', "", "{home}/above"),
        ('encoder_init = "encoder"\n', "", "the encoder, 18,920 of 18,920 values, of {home}/encoder"),
        ("", "", "random weights"),
    ],
)
def test_the_first_stage_begins_with_its_own_weights_else_init_else_encoder_init(
    stages, quick, tmp_path, top, own, begin
):
    for name in ("above", "own", "encoder"):
        save(tmp_path / name)
    told = pipeline(stages(f'[[stages]]\nname = "coarse"\n{own}\n', top))
    assert quick.begun["coarse"].endswith(begin.format(home=tmp_path))
    assert f"from {quick.begun['coarse']}: mean IoU 0.500 after 1 epochs" in told["coarse"]


def test_a_stage_may_begin_with_one_that_is_not_the_one_before(stages, quick, tmp_path):
    file = stages(TWO + '[[stages]]\nname = "third"\ninit = "runs/coarse"\n')
    assert pipeline(file, dry_run=True)["third"].endswith("from the best of coarse")
    pipeline(file)
    assert quick.begun["third"].endswith(f"tensors of {tmp_path / 'runs' / 'coarse'}")


def test_a_dry_run_trains_and_writes_nothing(stages, quick, tmp_path):
    before = sorted(tmp_path.rglob("*"))
    file = stages()
    assert list(pipeline(file, dry_run=True)) == ["coarse", "fine"]
    assert quick.begun == {}
    assert sorted(tmp_path.rglob("*")) == sorted([*before, file])


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ('init = "none"\n', "stage 'fine': no weights at .*none.*fallback = \"random\""),
        ('encoder_init = "none"\n', "stage 'fine': no weights at .*none"),
        ('init = "wide"\n', "stage 'fine': .*wide.* in the file, .* in the model.*; correct it"),
        ('encoder_init = "wide"\n', "stage 'fine': .*wide.* in the file, .* in the model"),
        (
            'init = "old.pth"\n',
            "stage 'fine': .*medseg checkpoint import .*old.pth .*old.safetensors --as sem-al:segmenter",
        ),
        ("width = 3\n", "stage 'fine' has another network than 'coarse', whose weights it begins with"),
        ('datasets = ["dat"]\n', "stage 'fine': .* has no data set 'dat'; did you mean 'data'"),
        ('mode = "frosen"\n', "stage 'fine': .*frozen"),
        ('init = "wide"\nencoder_init = "wide"\n', "stage 'fine': .*give one of them"),
    ],
)
def test_a_dry_run_finds_what_a_later_stage_lacks(stages, quick, tmp_path, more, said):
    save(tmp_path / "wide", width=3)
    (tmp_path / "old.pth").write_bytes(b"never opened")
    file = stages(TWO + more)
    for dry_run in (True, False):
        with pytest.raises(MedsegError, match=said):
            pipeline(file, dry_run=dry_run)
    assert quick.begun == {}


def test_random_weights_take_the_place_of_what_is_not_there_only_where_that_was_asked(stages, quick):
    file = stages('[[stages]]\nname = "coarse"\ninit = "none"\n', 'fallback = "random"\n')
    assert "from random weights, as " in pipeline(file, dry_run=True)["coarse"]
    pipeline(file)
    assert quick.begun == {"coarse": "random weights"}


def test_random_weights_take_no_place_of_what_does_not_fit(stages, quick, tmp_path):
    save(tmp_path / "wide", width=3)
    with pytest.raises(MedsegError, match=r"in the file, .* in the model"):
        pipeline(stages('[[stages]]\nname = "coarse"\ninit = "wide"\n', 'fallback = "random"\n'), dry_run=True)


@pytest.mark.parametrize(("how", "names"), [({"only": "b"}, "b"), ({"first": "b"}, "bc"), ({}, "abc")])
def test_only_and_from_choose_stages(stages, quick, tmp_path, how, names):
    file = stages("".join(f'[[stages]]\nname = "{name}"\n' for name in "abc"))
    save(tmp_path / "runs" / "a")
    pipeline(file, **how)
    assert "".join(quick.begun) == names


def test_a_stage_alone_needs_the_one_before_to_be_trained(stages, quick, tmp_path):
    with pytest.raises(MedsegError, match=f"stage 'fine': no weights at {tmp_path / 'runs' / 'coarse'}"):
        pipeline(stages(), only="fine")
    pipeline(stages(), only="coarse")
    assert "from 118 of 118 tensors of" in pipeline(stages(), only="fine")["fine"]


def test_a_stage_that_is_not_there_is_refused_with_the_nearest(stages):
    with pytest.raises(MedsegError, match="no stage 'fin'; did you mean 'fine'"):
        pipeline(stages(), first="fin")


def test_a_killed_pipeline_goes_on_in_the_stage_in_which_it_was(stages, quick):
    quick.killed = "fine"
    with pytest.raises(KeyboardInterrupt):
        pipeline(stages())
    assert list(quick.begun) == ["coarse"]
    quick.begun, quick.killed = {}, ""
    assert pipeline(stages())["coarse"].endswith("(done before)")
    assert list(quick.begun) == ["fine"]


def test_a_stage_that_was_killed_once_its_state_was_due_to_go_is_done(stages, quick, monkeypatch):
    def killed(path, **how):
        if path.name == "state.safetensors":
            raise KeyboardInterrupt
        honest(path, **how)

    honest = Path.unlink
    file = stages('[[stages]]\nname = "coarse"\nsave = ["best"]\n')
    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", killed)
        with pytest.raises(KeyboardInterrupt):
            pipeline(file)
    assert pipeline(file)["coarse"].endswith("(done before)")


def test_a_stage_that_was_stopped_is_told_and_is_not_done(stages, quick, monkeypatch):
    monkeypatch.setattr(module, "train", lambda *_, **__: Result(None, 0, 3, "stopped"))
    with pytest.raises(MedsegError, match="stopped in stage 'coarse'; the same call goes on"):
        pipeline(stages())
    monkeypatch.setattr(module, "train", quick)
    pipeline(stages())
    assert list(quick.begun) == ["coarse", "fine"]


def test_a_stage_of_other_settings_is_refused_until_its_folder_is_removed(stages, quick, tmp_path):
    pipeline(stages())
    changed = TWO.replace('"fine"\n', '"fine"\nlr = 0.5\n')
    with pytest.raises(MedsegError, match="fine was trained with other settings, or from other weights; remove that"):
        pipeline(stages(changed))
    shutil.rmtree(tmp_path / "runs" / "fine")
    quick.begun.clear()
    pipeline(stages(changed))
    assert list(quick.begun) == ["fine"]


def test_what_follows_a_stage_that_was_trained_anew_is_not_taken_for_done(stages, quick, tmp_path):
    pipeline(stages())
    shutil.rmtree(tmp_path / "runs" / "coarse")
    with pytest.raises(MedsegError, match="fine was trained with other settings, or from other weights"):
        pipeline(stages(TWO.replace('"coarse"\n', '"coarse"\nlr = 0.5\n')))


def test_the_device_and_the_loaders_may_change_and_the_epochs_not(stages, quick):
    pipeline(stages())
    quick.begun.clear()
    pipeline(stages(top="num_workers = 2\n"))
    assert quick.begun == {}
    with pytest.raises(MedsegError, match="coarse was trained with other settings"):
        pipeline(stages(TWO.replace('"coarse"\n', '"coarse"\nepochs = 2\n')))


@pytest.mark.parametrize(
    ("more", "top", "said"),
    [
        (TWO, "epochz = 3\n", "stages.toml: unknown setting 'epochz'; did you mean 'epochs'"),
        (TWO, 'fallbak = "random"\n', "stages.toml: unknown setting 'fallbak'; did you mean 'fallback'"),
        (TWO + 'encoder_int = "a"\n', "", "stage 'fine': unknown setting 'encoder_int'; did you mean 'encoder_init'"),
        (TWO + 'saves = ["best"]\n', "", "stage 'fine': unknown setting 'saves'; did you mean 'save'"),
        (TWO + 'save = ["bst"]\n', "", "stage 'fine' saves 'bst'; did you mean 'best'"),
        (TWO + "epochs = 0\n", "", "stage 'fine': epochs"),
        (TWO + "init = 5\n", "", "stage 'fine': init is 5; write a path as text"),
        (TWO, 'fallback = "zeros"\n', "fallback is 'zeros'; it can be \"random\""),
        (TWO.replace("fine", "coarse"), "", "two stages 'coarse'; each needs a name of its own"),
        (TWO.replace("fine", "../fine"), "", "stage 2 has the name '../fine'"),
        ('[stages]\nname = "coarse"\n', "", r"begin each with \[\[stages\]\]"),
        ("", "", "says no stages"),
        ("[[stages", "", "cannot read .*stages.toml"),
    ],
)
def test_a_file_that_is_no_pipeline_is_refused_with_what_is_wrong(stages, more, top, said):
    with pytest.raises(MedsegError, match=said):
        read_plan(stages(more, top))


def test_settings_above_hold_for_all_stages_unless_a_stage_says_otherwise(stages):
    plan = read_plan(stages(TWO + 'lr = 0.25\nmode = "train"\nsave = ["checkpoint"]\n', 'lr = 0.5\nmode = "frozen"\n'))
    coarse, fine = (stage.config for stage in plan.stages)
    assert (coarse.lr, coarse.mode, coarse.save_every) == (0.5, "frozen", 0)
    assert (fine.lr, fine.mode, fine.save_every) == (0.25, "full", 10)


def test_each_stage_says_in_the_log_that_it_begins(stages, quick, caplog):
    with caplog.at_level(logging.INFO):
        pipeline(stages())
    assert [line for line in caplog.messages if line.startswith("Stage")] == ["Stage coarse", "Stage fine"]
