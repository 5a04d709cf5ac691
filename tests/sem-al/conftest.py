"""Phantom micrographs, their index and a run, made once."""

import shutil
from types import SimpleNamespace

import pytest

from medseg_core.io import write_text
from medseg_sem_al import loop, query
from medseg_sem_al.index import build_index
from medseg_sem_al.phantom import phantom
from medseg_sem_al.settings import IndexConfig, SegConfig
from medseg_sem_al.train import train

SMALL = {"width": 2, "size": 32, "epochs": 2, "epoch_windows": 8, "batch_size": 4, "val_every": 1, "device": "cpu"}


@pytest.fixture(scope="session")
def index(tmp_path_factory):
    """Three labelled sequences, one for each part, and one without masks."""
    folder = tmp_path_factory.mktemp("sem")
    root = phantom(folder / "data", num_images=12, num_labelled=9, size=64)
    build_index(root, IndexConfig(split=(0.4, 0.3, 0.3))).write(folder / "index.json")
    return folder / "index.json"


@pytest.fixture(scope="session")
def run(index, tmp_path_factory):
    """Two epochs on it, with a checkpoint of each; nobody writes there."""
    out = tmp_path_factory.mktemp("run") / "run"
    train(index, out, SegConfig(**SMALL, save_every=1))
    return out


@pytest.fixture(scope="session")
def nine(tmp_path_factory):
    """Nine pictures, all with a mask, and an index of them in which two to train on and one to validate on have one."""
    home = tmp_path_factory.mktemp("loop")
    root = phantom(home / "all", num_images=9, num_labelled=9, size=64)
    shutil.copytree(root, home / "data")
    for file in sorted((home / "data" / "labeled").iterdir())[3:]:
        file.unlink()
    build_index(home / "data", IndexConfig(group="image", split=(0.7, 0.3, 0.0))).write(home / "index.json")
    return home


@pytest.fixture
def untrained(run, monkeypatch):
    """Training gives the network of two epochs, whatever is labelled, and is told; figures are empty files."""
    told = []

    def train(index_file, out, config, *, start, resume):
        told.append(SimpleNamespace(index=index_file, start=start.init, epochs=config.epochs))
        shutil.copytree(run, out, dirs_exist_ok=True)
        return SimpleNamespace(reason="finished")

    monkeypatch.setattr(loop, "train", train)
    for name in ("_sheet", "_histogram"):
        monkeypatch.setattr(query, name, lambda *_: None)
    monkeypatch.setattr(query.figures, "save", lambda _, path, **__: write_text(path, ""))
    return told
