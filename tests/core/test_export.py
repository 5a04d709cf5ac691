"""ONNX: only what gives PyTorch's numbers is written."""

import sys
from types import ModuleType

import pytest
import torch
from torch import nn

from medseg_core.checkpoint import Card, save_model
from medseg_core.errors import MedsegError
from medseg_core.export import TORCH, export_onnx

CARD = Card(package="test", version="0", model="net", head="sigmoid", channels=(1, 2), labels={1: "a", 2: "b"})


class Two(nn.Module):
    """Two images in, as CT and PET; sizes must be even."""

    def __init__(self):
        super().__init__()
        self.down, self.up = nn.Conv2d(2, 4, 2, stride=2), nn.ConvTranspose2d(4, 2, 2, stride=2)

    def forward(self, left, right, *, deep=False):
        if left.shape[2] % 2:
            raise MedsegError(f"{tuple(left.shape)} must be even")
        return self.up(torch.relu(self.down(torch.cat([left, right], 1))))


class Volumes(nn.Module):
    def __init__(self, in_channels=1):
        super().__init__()
        self.conv, self.norm = nn.Conv3d(in_channels, 2, 3, padding=1), nn.InstanceNorm3d(2, affine=True)

    def forward(self, x):
        return self.norm(self.conv(x))


class Dice(nn.Module):
    """Not the same twice."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 1)

    def forward(self, x):
        return self.conv(x) + torch.rand_like(x)


class Bound(nn.Module):
    """Of one size only."""

    def __init__(self):
        super().__init__()
        self.place = nn.Parameter(torch.ones(1, 2, 16, 16))

    def forward(self, x):
        return x + self.place


@pytest.fixture
def exported(tmp_path):
    pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    if tuple(map(int, torch.__version__.split(".")[:2])) < TORCH:
        pytest.skip("needs PyTorch 2.11, as the exporter does")

    def export(cls, card=CARD, **more):
        save_model(tmp_path / "w", cls(), card)
        facts = export_onnx(tmp_path / "w", tmp_path / "net.onnx", models={"net": cls}, **more)
        return facts, runtime.InferenceSession(str(tmp_path / "net.onnx"), providers=["CPUExecutionProvider"])

    return export


def test_two_images_keep_the_names_of_the_card(exported):
    facts, session = exported(Two, Card(package="t", version="0", model="net", inputs=("ct", "pet")), shapes=["1,8,8"])
    assert [(i.name, i.shape) for i in session.get_inputs()] == [
        ("ct", ["batch", 1, "height", "width"]),
        ("pet", ["batch", 1, "height", "width"]),
    ]
    assert facts["max_difference"] <= 1e-4 * facts["largest"]


def test_without_names_in_the_card_they_are_those_of_forward(exported):
    _, session = exported(Two, shapes=["1,8,8", "1,8,8"])
    assert [i.name for i in session.get_inputs()] == ["left", "right"]


def test_a_network_of_volumes_takes_other_volumes(exported):
    card = Card(package="t", version="0", model="net", arguments={"in_channels": 1}, grid={"size": 8})
    facts, session = exported(Volumes, card)
    assert session.get_inputs()[0].shape == ["batch", 1, "x", "y", "z"]
    assert "1x1x8x8x16 and 3x1x4x4x4" in facts["checked_on"]
    assert session.run(["logits"], {"x": torch.ones(2, 1, 5, 6, 7).numpy()})[0].shape == (2, 2, 5, 6, 7)


@pytest.mark.parametrize(
    ("cls", "how", "said"),
    [
        (Dice, {"shapes": ["1,8,8"]}, "ONNX Runtime's logits differ from PyTorch's by"),
        (Bound, {"shapes": ["2,16,16"]}, "does not go into ONNX with an input of 2x2x16x16"),
        (Two, {}, "does not say which input it takes; give --shape"),
        (Two, {"shapes": ["1,7,7"]}, "does not take 2x1x7x7: .* must be even"),
        (Two, {"shapes": ["1"]}, "--shape '1' must be channels and edges"),
        (Two, {"shapes": ["1,a"]}, "--shape '1,a' must be"),
        (Two, {"shapes": ["1,8,8"] * 3}, "3 shapes for 2 inputs"),
    ],
)
def test_what_would_not_be_the_network_is_one_line_and_no_file(exported, tmp_path, cls, how, said):
    with pytest.raises(MedsegError, match=said) as refused:
        exported(cls, **how)
    assert "\n" not in str(refused.value)
    assert [path.name for path in tmp_path.iterdir()] == ["w"]


def test_a_file_is_never_replaced_unasked(exported, tmp_path):
    (tmp_path / "net.onnx").write_text("mine")
    with pytest.raises(MedsegError, match="--overwrite"):
        exported(Volumes, shapes=["1,8,8,8"])
    assert (tmp_path / "net.onnx").read_text() == "mine"


def test_a_pytorch_that_is_too_old_is_refused(monkeypatch, tmp_path):
    monkeypatch.setattr(torch, "__version__", "2.10.1+cpu")
    with pytest.raises(MedsegError, match=r"this is 2\.10\.1\+cpu; pip install 'torch>=2\.11'"):
        export_onnx(tmp_path / "w", tmp_path / "net.onnx")


@pytest.mark.parametrize("name", ["onnx", "onnxruntime", "onnxscript"])
def test_without_the_extra_one_line_says_how_to_get_it(monkeypatch, tmp_path, name):
    for other in {"onnx", "onnxruntime", "onnxscript"} - {name}:
        monkeypatch.setitem(sys.modules, other, ModuleType(other))
    monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setattr(torch, "__version__", "2.11.0")
    with pytest.raises(MedsegError, match=rf"needs the package {name}; pip install 'medseg-core\[onnx\]'"):
        export_onnx(tmp_path / "w", tmp_path / "net.onnx")
