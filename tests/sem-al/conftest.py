"""Phantom micrographs, their index and a run, made once."""

import pytest

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
