"""The loop around a person: what it takes and refuses, when it ends, and that it can be killed anywhere."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from typer.testing import CliRunner

from medseg_core.errors import MedsegError
from medseg_core.io import read_picture, write_picture, write_text
from medseg_core.run import RunFolder
from medseg_core.volume import Picture
from medseg_sem_al import loop as module
from medseg_sem_al.cli import app
from medseg_sem_al.index import build_index
from medseg_sem_al.loop import loop, status
from medseg_sem_al.settings import IndexConfig, LoopConfig

CONFIG = LoopConfig(width=2, size=32, device="cpu", num=2, rounds=2, poll=0.05, min_improvement=0.0)


def truth_of(nine, name):
    return read_picture(nine / "all" / "labeled" / f"{name}.png")


def answer(nine, watch):
    """Saves true masks for all that is awaited."""
    told = status(watch)
    for name in told["awaited"]:
        write_picture(truth_of(nine, name), watch / told["save to"] / f"{name}.png")
    return told["awaited"]


def once(nine, watch, config=CONFIG, index="index.json"):
    return loop(nine / index, watch, config, wait=False)


def ended(nine, watch, config=CONFIG):
    """The whole loop with a person who answers at once."""
    told = once(nine, watch, config)
    while not told["ended"]:
        answer(nine, watch)
        told = once(nine, watch, config)
    return told


def begun(nine, tmp_path, config=CONFIG):
    """A loop that waits for its first two masks."""
    watch = tmp_path / "watch"
    return watch, once(nine, watch, config)["awaited"]


def labels(watch):
    return {file.stem: read_picture(file).pixels for file in (watch / "labels").iterdir()}


def test_masks_become_labels_and_rounds_end(nine, untrained, tmp_path):
    told = ended(nine, tmp_path / "watch")
    assert told["ended"] == "all 2 rounds are done"
    assert [row["pictures"] for row in told["rounds"]] == [2, 4, 6]
    found = labels(tmp_path / "watch")
    assert len(found) == 7  # with that of the validation part
    for name, mask in found.items():
        rgb = truth_of(nine, name).pixels
        assert np.array_equal(mask, np.where(rgb[..., 0] == 255, 2, np.where(rgb[..., 1] == 255, 1, 0)))


def test_each_round_learns_from_the_one_before_with_all_labels(nine, untrained, tmp_path):
    watch = tmp_path / "watch"
    ended(nine, watch)
    assert [one.start for one in untrained] == [None, *(watch / f"round_{n:02d}" / "best.safetensors" for n in (0, 1))]
    cases = json.loads((watch / "round_02" / "index.json").read_text())["cases"]
    assert sum("label" in case["files"] for case in cases) == 7


def test_a_round_has_all_that_a_person_needs(nine, untrained, tmp_path):
    watch, awaited = begun(nine, tmp_path)
    home = watch / "round_01"
    for name in awaited:
        for file in (
            f"images/{name}.tif",
            f"heat/{name}.png",
            *(f"proposals/{name}{s}" for s in (".png", ".tif", ".zip")),
        ):
            assert (home / file).is_file()
    assert {"selection.json", "selection.png", "scores.png", "SHA256SUMS"} <= {file.name for file in home.iterdir()}
    assert {"ANNOTATING.md", "annotate.ijm", "palette.png"} <= {file.name for file in watch.iterdir()}


def test_where_nothing_is_labelled_it_begins_with_pictures_at_random(nine, untrained, tmp_path):
    watch = tmp_path / "watch"
    table = {"carbon": "#0000ff", "SE": "#00ffff", "AM": "#ff7e7e"}
    write_text(tmp_path / "classes.json", json.dumps(table))
    build_index(nine / "data" / "raw", IndexConfig(), colours=tmp_path / "classes.json").write(tmp_path / "index.json")
    told = loop(tmp_path / "index.json", watch, replace(CONFIG, initial=3), wait=False)
    assert (len(told["awaited"]), told["save to"]) == (3, str(watch / "round_00" / "labels"))
    answer(nine, watch)
    told = loop(tmp_path / "index.json", watch, replace(CONFIG, initial=3), wait=False)
    assert [row["pictures"] for row in told["rounds"]] == [3]


def test_an_index_without_classes_is_refused(nine, tmp_path):
    build_index(nine / "data" / "raw", IndexConfig()).write(tmp_path / "index.json")
    with pytest.raises(MedsegError, match="knows no two classes; index with --colors FILE"):
        loop(tmp_path / "index.json", tmp_path / "watch", CONFIG, wait=False)


@pytest.mark.parametrize("suffix", [".png", ".tif", ".zip"])
def test_a_proposal_that_comes_back_unedited_is_not_taken(nine, untrained, tmp_path, caplog, suffix):
    watch, awaited = begun(nine, tmp_path)
    home = watch / "round_01"
    shutil.copy(home / "proposals" / f"{awaited[0]}{suffix}", home / "labels")
    assert once(nine, watch)["awaited"] == awaited
    assert f"{awaited[0]}: it is the proposal, unchanged" in caplog.text
    accepting = replace(CONFIG, accept_unedited=True)
    assert once(nine, watch, accepting)["awaited"] == awaited[1:]


def test_half_a_file_is_no_mask(nine, untrained, tmp_path, caplog):
    watch, (name, other) = begun(nine, tmp_path)
    file = watch / "round_01" / "labels" / f"{name}.png"
    write_picture(truth_of(nine, name), file)
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    assert once(nine, watch)["awaited"] == [name, other]
    assert "cannot read" in caplog.text
    file.write_bytes(whole)
    assert once(nine, watch)["awaited"] == [other]


def test_two_files_for_one_picture_are_refused(nine, untrained, tmp_path, caplog):
    watch, (name, other) = begun(nine, tmp_path)
    for suffix in (".png", ".tif"):
        write_picture(truth_of(nine, name), watch / "round_01" / "labels" / f"{name}{suffix}")
    assert once(nine, watch)["awaited"] == [name, other]
    assert f"{name}.png and {name}.tif claim one picture; keep one of them" in caplog.text


def test_a_mask_that_nobody_asked_for_is_told(nine, untrained, tmp_path, caplog):
    watch, awaited = begun(nine, tmp_path)
    write_picture(truth_of(nine, awaited[0]), watch / "round_01" / "labels" / "typo.png")
    once(nine, watch)
    assert f"typo: it was not asked for in this round; asked are {', '.join(awaited)}" in caplog.text


def test_a_mask_that_is_saved_again_is_taken_again_and_the_old_one_kept(nine, untrained, tmp_path):
    watch, (name, other) = begun(nine, tmp_path)
    file = watch / "round_01" / "labels" / f"{name}.png"
    for value in (1, 2):
        write_picture(Picture(np.full((64, 64), value, np.uint8)), file)
        assert once(nine, watch)["awaited"] == [other]
    assert (labels(watch)[name] == 2).all()
    assert (read_picture(watch / "backups" / f"{name}-000.png").pixels == 1).all()


def test_a_picture_that_was_deleted_in_the_round_costs_no_other(nine, untrained, tmp_path):
    home = shutil.copytree(nine, tmp_path / "home")
    watch, (name, other) = begun(home, tmp_path)
    (home / "data" / "raw" / f"{name}.tif").unlink()
    assert once(home, watch)["awaited"] == [other]
    answer(home, watch)
    assert len(once(home, watch)["rounds"]) == 2


def test_a_disk_that_is_full_loses_no_label(nine, untrained, tmp_path, monkeypatch):
    watch, _ = begun(nine, tmp_path)
    answer(nine, watch)

    def full(ids, colours, path):
        raise MedsegError(f"cannot write {path}: No space left on device; nothing was left behind")

    with monkeypatch.context() as patch:
        patch.setattr(module, "write_indexed", full)
        with pytest.raises(MedsegError, match="No space left"):
            once(nine, watch)
    assert len(once(nine, watch)["rounds"]) == 2


def test_a_second_loop_in_the_same_folder_is_refused(nine, untrained, tmp_path):
    watch, _ = begun(nine, tmp_path)
    with RunFolder(watch).held(), pytest.raises(MedsegError, match="is at work here; wait for its end"):
        once(nine, watch)


def test_a_folder_of_other_settings_is_refused(nine, untrained, tmp_path):
    watch, _ = begun(nine, tmp_path)
    with pytest.raises(MedsegError, match="was begun with num 2; use the same, or another --watch"):
        once(nine, watch, replace(CONFIG, num=3))


def test_a_folder_with_something_else_is_refused(nine, tmp_path):
    write_text(tmp_path / "watch" / "mine.txt", "mine")
    with pytest.raises(MedsegError, match="is not empty and holds no loop"):
        once(nine, tmp_path / "watch")


@pytest.mark.parametrize(
    ("scores", "why"),
    [
        ([0.5, 0.505, 0.509], "no gain of 0.01 in 2 rounds"),
        ([0.5, 0.505, 0.52, 0.525], ""),
        ([0.5, 0.52, 0.525, 0.529], "no gain of 0.01 in 2 rounds"),
        ([None, None, None], ""),
    ],
)
def test_it_ends_where_rounds_bring_too_little(nine, untrained, tmp_path, scores, why):
    watch, _ = begun(nine, tmp_path)
    for number, score in enumerate(scores):
        for name, content in (("score.json", {"score": score}), ("selection.json", {"chosen": []})):
            write_text(watch / f"round_{number:02d}" / name, json.dumps(content))
    config = replace(CONFIG, min_improvement=0.01, patience=2, rounds=9)
    rounds = module.Rounds(module.read_index(nine / "index.json"), watch, config, None)
    assert rounds._ends(len(scores)) == why


def test_it_ends_where_everything_is_labelled(nine, untrained, tmp_path):
    assert ended(nine, tmp_path / "watch", replace(CONFIG, rounds=9, num=5))["ended"] == "everything is labelled"


class Killed(BaseException):
    """As by the system: nothing catches it."""


def test_killed_at_any_write_it_goes_on_where_it_was(nine, untrained, tmp_path, monkeypatch):
    ended(nine, tmp_path / "whole")
    expected = labels(tmp_path / "whole")
    names = ("write_text", "write_indexed", "write_sums", "lay_out", "score_pool", "replacing")
    real, count, at = {name: getattr(module, name) for name in names}, [0], [-1]

    def counted(name):
        def call(*args, **how):
            count[0] += 1
            if count[0] == at[0]:
                raise Killed
            return real[name](*args, **how)

        return call

    for name in names:
        monkeypatch.setattr(module, name, counted(name))
    ended(nine, tmp_path / "counted")
    assert count[0] > 30
    for kill in range(1, count[0] + 1, 5):
        watch = tmp_path / f"killed_{kill}"
        count[0], at[0] = 0, kill
        with pytest.raises(Killed):
            ended(nine, watch)
        at[0] = -1
        told = ended(nine, watch)
        found = labels(watch)
        assert told["ended"] == "all 2 rounds are done"
        assert found.keys() == expected.keys()
        assert all(np.array_equal(found[name], expected[name]) for name in found)


def test_the_command_says_where_it_stands(nine, untrained, tmp_path):
    watch, awaited = begun(nine, tmp_path)
    told = CliRunner().invoke(app, ["loop", "--watch", str(watch), "--status"])
    assert told.exit_code == 0
    assert f"round_01/labels: {', '.join(awaited)}" in told.stdout


@pytest.mark.parametrize("when", ["in training", "between two calls"])
def test_a_mask_that_is_corrected_late_counts_from_the_next_training_on(nine, untrained, tmp_path, monkeypatch, when):
    watch, (name, _) = begun(nine, tmp_path)
    answer(nine, watch)
    file, train = watch / "round_01" / "labels" / f"{name}.png", module.train

    def correct():
        write_picture(Picture(np.full((64, 64), 2, np.uint8)), file)

    def slowly(index_file, out, config, **how):
        if when == "between two calls":
            raise Killed
        correct()
        return train(index_file, out, config, **how)

    monkeypatch.setattr(module, "train", slowly)
    if when == "between two calls":
        with pytest.raises(Killed):
            once(nine, watch)
        correct()
        monkeypatch.setattr(module, "train", train)
    once(nine, watch)
    once(nine, watch)
    assert (labels(watch)[name] == 2).all()


def killed(run):
    raise Killed


def test_a_training_that_was_begun_with_other_labels_is_begun_anew(nine, tmp_path, monkeypatch):
    config = replace(CONFIG, epochs=1, epoch_windows=4, batch_size=4)
    watch, (name, _) = begun(nine, tmp_path, config)
    answer(nine, watch)
    with monkeypatch.context() as patch:
        patch.setattr(module, "read_history", killed)  # once it is trained
        with pytest.raises(Killed):
            once(nine, watch, config)
    write_picture(Picture(np.full((64, 64), 2, np.uint8)), watch / "round_01" / "labels" / f"{name}.png")
    assert len(once(nine, watch, config)["rounds"]) == 2


def test_an_index_of_other_classes_is_refused(nine, untrained, tmp_path):
    watch, _ = begun(nine, tmp_path)
    home = shutil.copytree(nine, tmp_path / "home")
    about, other = (json.loads(file.read_text()) for file in (watch / "loop.json", home / "index.json"))
    other["classes"] = dict(reversed(other["classes"].items()))
    write_text(watch / "loop.json", json.dumps(about | {"index": str((home / "index.json").resolve())}))
    write_text(home / "index.json", json.dumps(other))
    with pytest.raises(MedsegError, match="was begun with the classes carbon #0000ff, SE #00ffff, AM #ff7e7e"):
        once(home, watch)


def test_a_proposal_that_was_deleted_or_drawn_on_is_not_needed(nine, untrained, tmp_path):
    watch, (name, other) = begun(nine, tmp_path)
    proposals = watch / "round_01" / "proposals"
    (proposals / f"{name}.png").unlink()
    shutil.copy(nine / "all" / "labeled" / f"{other}.png", proposals)
    answer(nine, watch)
    assert len(once(nine, watch)["rounds"]) == 2


def test_parts_end_where_all_of_them_have_labels(nine, untrained, tmp_path):
    config = replace(CONFIG, region=64, num=9, rounds=9)
    watch, awaited = begun(nine, tmp_path, config)
    for name in awaited:
        mask = np.array(truth_of(nine, name).pixels)
        mask[0, 0] = 255  # one pixel without a label
        write_picture(Picture(mask), watch / "round_01" / "labels" / f"{name}.png")
    assert once(nine, watch, config)["ended"] == "everything is labelled"


def test_pictures_lie_there_under_the_names_of_their_masks(nine, untrained, tmp_path):
    root = tmp_path / "data"
    for part in ("one", "two"):
        shutil.copytree(nine / "data" / "raw", root / part)
    for file in (root / "two").iterdir():
        pixels = read_picture(file).pixels
        write_picture(Picture(np.ascontiguousarray(pixels[::-1])), file)
    write_text(tmp_path / "classes.json", json.dumps({"carbon": "#0000ff", "SE": "#00ffff"}))
    index = build_index(root, IndexConfig(), colours=tmp_path / "classes.json")
    index.write(tmp_path / "index.json")
    watch = tmp_path / "watch"
    told = loop(tmp_path / "index.json", watch, CONFIG, wait=False)
    images = {file.stem for file in (watch / "round_00" / "images").iterdir()}
    assert images == set(told["awaited"]) == {case.id for case in index.cases}


def test_why_a_mask_is_not_taken_is_told(nine, untrained, tmp_path):
    watch, (name, _) = begun(nine, tmp_path)
    shutil.copy(watch / "round_01" / "proposals" / f"{name}.png", watch / "round_01" / "labels")
    assert "unchanged" in once(nine, watch)["refused"][name]
    write_picture(truth_of(nine, name), watch / "round_01" / "labels" / f"{name}.png")
    assert once(nine, watch)["refused"] == {}


def test_more_rounds_than_before_are_gone_on_with(nine, untrained, tmp_path):
    watch = tmp_path / "watch"
    ended(nine, watch, replace(CONFIG, rounds=1))
    told = once(nine, watch)
    assert (len(told["awaited"]), told["ended"]) == (2, "")
