"""The loop's folder: what a call that is refused leaves alone, and files that are no masks."""

import json
import shutil
import socket
from dataclasses import replace

import pytest

from medseg_core.errors import MedsegError
from medseg_core.io import read_picture, write_picture
from medseg_sem_al.index import read_index
from medseg_sem_al.loop import loop, status
from medseg_sem_al.settings import LoopConfig

CONFIG = LoopConfig(width=2, size=32, device="cpu", num=2, rounds=2, poll=0.05, min_improvement=0.0)


def once(nine, watch):
    return loop(nine / "index.json", watch, CONFIG, wait=False)


def test_a_loop_that_is_refused_leaves_the_palette_of_the_other(nine, untrained, tmp_path):
    watch = tmp_path / "watch"
    once(nine, watch)
    before = (watch / "palette.png").read_bytes()
    index = read_index(nine / "index.json")
    colours = dict(zip(index.classes.codes, (1, 0, 2), strict=True))
    replace(index, classes=replace(index.classes, codes=colours)).write(tmp_path / "other.json")
    with pytest.raises(MedsegError, match="was begun with"):
        loop(tmp_path / "other.json", watch, CONFIG, wait=False)
    assert (watch / "palette.png").read_bytes() == before


def test_a_port_that_is_taken_costs_no_folder(nine, untrained, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as other, pytest.raises(MedsegError, match="port"):
        loop(nine / "index.json", tmp_path / "watch", CONFIG, wait=False, page=True, port=other.getsockname()[1])
    assert len(once(nine, tmp_path / "watch")["awaited"]) == 2


def test_a_refusal_ends_with_its_cause(nine, untrained, tmp_path):
    watch = tmp_path / "watch"
    name = once(nine, watch)["awaited"][0]
    labels = watch / "round_01" / "labels"
    write_picture(read_picture(nine / "all" / "labeled" / f"{name}.png"), labels / f"{name}.png")
    once(nine, watch)
    shutil.copy(watch / "round_01" / "proposals" / f"{name}.zip", labels)
    assert "keep one of them" in once(nine, watch)["refused"][name]
    (labels / f"{name}.zip").unlink()
    assert once(nine, watch)["refused"] == {}


def test_a_file_that_cannot_be_read_is_told_and_the_loop_goes_on(nine, untrained, tmp_path, monkeypatch):
    watch = tmp_path / "watch"
    first, second = once(nine, watch)["awaited"]
    for name in (first, second):
        shutil.copy(nine / "all" / "labeled" / f"{name}.png", watch / "round_01" / "labels")
    locked, real = watch / "round_01" / "labels" / f"{first}.png", type(watch).read_bytes

    def read(path):
        if path == locked:
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(type(watch), "read_bytes", read)
    assert once(nine, watch)["awaited"] == [first]
    assert "Permission denied" in json.loads((watch / "round_01" / "refused.json").read_text())[first]
    assert first in status(watch)["refused"]
