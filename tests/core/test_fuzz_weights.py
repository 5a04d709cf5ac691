"""Damaged weights and states: loaded, or refused in one line before anything large is made."""

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.fuzzing import Rng, Tally, changed, odd_value, twist_json
from torch import nn

from medseg_core.checkpoint import Card, load_model, load_state, load_weights, read_card, save_model, save_state
from medseg_core.infer import decide


class Net(nn.Module):
    def __init__(self, in_channels=1, num_classes=2, widths=(2, 3)):
        super().__init__()
        sizes = [in_channels, *widths]
        self.layers = nn.ModuleList(nn.Conv2d(a, b, 1) for a, b in pairwise(sizes))
        self.norm, self.head = nn.BatchNorm2d(widths[-1]), nn.Conv2d(widths[-1], num_classes, 1)

    def forward(self, x):
        for layer in self.layers:
            x = layer(x).relu()
        return self.head(self.norm(x))


CARD = Card(
    package="test",
    version="0.1.0",
    model="net",
    arguments={"in_channels": 1, "num_classes": 3, "widths": [2, 3]},
    inputs=("ct",),
    head="softmax",
    channels=(0, 1, 5),
    labels={1: "spleen", 5: "liver"},
    grid={"orientation": "RAS", "spacing_mm": [1.5, 1.5, 1.5]},
    intensity={"window_hu": [-1000.0, 1000.0]},
)
ABOUT = {"samples": 4, "precision": "fp32", "threads": 2, "position": {"epoch": 1, "step": 3}, "scaler": {}}


@pytest.fixture(scope="module")
def seeds(tmp_path_factory):
    torch.manual_seed(0)
    folder, net = tmp_path_factory.mktemp("seeds"), Net(**CARD.arguments)
    save_model(folder / "weights.safetensors", net, CARD)
    save_state(folder / "state.safetensors", {"model": net.state_dict(), "moments": {"a/b": torch.zeros(2)}}, ABOUT)
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir())}


def twist_header(content: bytes, rng: Rng) -> bytes:
    """The JSON before the tensors with a value that nobody meant."""
    size = int.from_bytes(content[:8], "little")
    return _with_header(twist_json(content[8 : 8 + size], rng), content[8 + size :])


def twist_card(content: bytes, rng: Rng) -> bytes:
    """The card, or what a state says of itself, with a value that nobody meant."""
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    card = twist_json(header["__metadata__"]["medseg"].encode(), rng)
    if rng.random() < 0.05:
        card = json.dumps(odd_value(rng)).encode()
    header["__metadata__"]["medseg"] = card.decode("utf-8", "replace")
    return _with_header(json.dumps(header).encode(), content[8 + size :])


def _with_header(header: bytes, rest: bytes) -> bytes:
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header + rest


def model(path: Path) -> None:
    """What is loaded is the network that the card describes, and gives numbers for its channels."""
    net, card = load_model(path, {"net": Net})
    assert not net.training
    assert all(t.dtype == like.dtype for t, like in zip(net.parameters(), Net().parameters(), strict=False))
    assert all(isinstance(i, int) for i in (*card.channels, *card.labels))
    with torch.no_grad():
        logits = net(torch.zeros(1, net.layers[0].in_channels if len(net.layers) else 1, 2, 2))
    assert logits.shape[0] == 1
    decide(card)


def weights(path: Path) -> None:
    assert load_weights(Net(**CARD.arguments), path).matched == 11


def state(path: Path) -> None:
    parts, about = load_state(path)
    assert isinstance(about, dict)
    assert all(torch.is_tensor(tensor) for part in parts.values() for tensor in part.values())


DOORS = {"model": model, "weights": weights, "card": read_card, "state": state}


def mutations(rng: Rng, num: int, seeds: dict[str, bytes], folder: Path) -> Tally:
    tally = Tally()
    for n in range(num):
        name = list(seeds)[n % len(seeds)]
        path = folder / name
        path.write_bytes(changed(seeds[name], (twist_header, twist_card, twist_card), rng))
        for door, opens in DOORS.items():
            tally.through(opens, path, f"{name} through {door}")
        path.unlink()
    return tally


def test_50_damaged_weights_are_loaded_or_refused_in_one_line(tmp_path, seeds):
    tally = mutations(np.random.default_rng(4), 50, seeds, tmp_path)
    assert min(tally.values()) > 20, tally


def test_the_sound_weights_are_loaded(tmp_path, seeds):
    for name, content in seeds.items():
        (tmp_path / name).write_bytes(content)
    model(tmp_path / "weights.safetensors")
    weights(tmp_path / "weights.safetensors")
    state(tmp_path / "state.safetensors")
