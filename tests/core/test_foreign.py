"""Other people's .pth files: taken over whole or refused in one line, and never run."""

import argparse
import io
import os
import pathlib
import struct
import zipfile
from contextlib import suppress

import numpy as np
import pytest
import torch
from torch import nn

from medseg_core import foreign
from medseg_core.checkpoint import Card, load_model
from medseg_core.errors import MedsegError
from medseg_core.foreign import import_foreign, read_foreign

CARD = Card(package="test", version="0", model="net")
needs_safe_torch = pytest.mark.skipif(
    tuple(map(int, torch.__version__.split(".")[:2])) < foreign.SAFE, reason="needs PyTorch 2.11, as the importer does"
)


class Net(nn.Module):
    """Ours."""

    renames = {"features.conv": "encoder", "classifier": None}  # noqa: RUF012

    def __init__(self):
        super().__init__()
        self.encoder, self.norm, self.head = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1)

    def forward(self, x):
        return self.head(self.norm(self.encoder(x)))


class Runs:
    """A value whose pickle makes a file when it is opened."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


@pytest.fixture
def theirs():
    """A network with values that no new one has."""
    net = Net()
    with torch.no_grad():
        for tensor in net.state_dict().values():
            if tensor.is_floating_point():
                tensor.normal_(generator=torch.Generator().manual_seed(3))
    return net


@pytest.fixture
def files(tmp_path):
    return tmp_path / "old.pth", tmp_path / "new.safetensors"


def equal(model, other):
    return all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), other.state_dict().values(), strict=True))


@needs_safe_torch
@pytest.mark.parametrize(
    "shape",
    [
        lambda weights: weights,
        lambda weights: {
            "model_state_dict": weights,
            "epoch": 3,
            "optimizer_state_dict": {"state": {0: torch.ones(9)}},
        },
        lambda weights: {"state_dict": weights, "args": argparse.Namespace(lr=1e-3), "out": pathlib.Path("runs")},
        lambda weights: {"model": weights, "val_dice": np.float64(0.8), "losses": np.arange(3.0), "one": np.float32(1)},
        lambda weights: {f"module.{name}": tensor for name, tensor in weights.items()},
        lambda weights: {f"module._orig_mod.{name}": tensor for name, tensor in weights.items()},
        lambda weights: {f"_orig_mod.module.{name}": tensor for name, tensor in weights.items()},
        lambda weights: {name.replace("encoder.", "encoder._orig_mod."): tensor for name, tensor in weights.items()},
        lambda weights: {name.replace("encoder.", "features.conv."): tensor for name, tensor in weights.items()},
        lambda weights: {**weights, "classifier.weight": torch.ones(5)},
        lambda weights: {
            name: tensor.double() if tensor.is_floating_point() else tensor for name, tensor in weights.items()
        },
    ],
)
def test_every_shape_that_people_save_gives_the_same_network(shape, theirs, files):
    old, new = files
    torch.save(shape(theirs.state_dict()), old)
    assert import_foreign(old, new, Net(), CARD).matched == len(theirs.state_dict())
    model, card = load_model(new, {"net": Net})
    assert card == CARD
    assert equal(model, theirs)


class Pointwise(Net):
    """The same with a linear layer in the place of the convolution of size 1."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(4, 2)


@needs_safe_torch
def test_a_convolution_of_size_1_fills_a_linear_layer_and_a_larger_one_does_not(theirs, files):
    torch.save(theirs.state_dict(), files[0])
    model = Pointwise()
    import_foreign(*files, model, CARD)
    x = torch.rand(1, 4, 1, 1)
    torch.testing.assert_close(model.head(x[..., 0, 0]), theirs.head(x)[..., 0, 0])
    torch.save({**theirs.state_dict(), "head.weight": torch.ones(2, 4, 3, 1)}, files[0])
    with pytest.raises(MedsegError, match="head"):
        import_foreign(files[0], files[1], Pointwise(), CARD, overwrite=True)


@needs_safe_torch
def test_a_model_may_refuse_a_file_by_its_own_names_of_the_tensors(theirs, files):
    class Picky(Net):
        def check_foreign(self, tensors):
            raise MedsegError(f"not with {next(iter(tensors))}")

    torch.save({f"module.{name}": tensor for name, tensor in theirs.state_dict().items()}, files[0])
    with pytest.raises(MedsegError, match=r"old.pth: not with encoder.weight"):
        import_foreign(*files, Picky(), CARD)
    assert not files[1].exists()


@needs_safe_torch
def test_files_of_pytorch_before_1_6_open_too(theirs, files):
    torch.save(theirs.state_dict(), files[0], _use_new_zipfile_serialization=False)
    import_foreign(*files, Net(), CARD)
    assert equal(load_model(files[1], {"net": Net})[0], theirs)


@needs_safe_torch
def test_renames_that_are_given_stand_for_those_of_the_class(theirs, files):
    renamed = {
        f"net.a{name.removeprefix('encoder')}" if "encoder" in name else f"net.{name}": t
        for name, t in theirs.state_dict().items()
    }
    torch.save({**renamed, "net.aux.weight": torch.ones(1)}, files[0])
    import_foreign(*files, Net(), CARD, renames={"net": "", "net.nor": "x", "net.a": "encoder", "net.aux": None})
    assert equal(load_model(files[1], {"net": Net})[0], theirs)


@needs_safe_torch
@pytest.mark.parametrize("before", ["", "module.", "_orig_mod."])
def test_tensors_that_a_rename_drops_are_told_by_their_names_in_the_file(before, theirs, files):
    more = {"classifier.weight": torch.ones(5), "classifier.bias": torch.ones(1)}
    torch.save({f"{before}{name}": t for name, t in (theirs.state_dict() | more).items()}, files[0])
    found = import_foreign(*files, Net(), CARD)
    assert found.ignored == (f"{before}classifier.weight", f"{before}classifier.bias")
    assert found.matched == len(theirs.state_dict())
    assert import_foreign(*files, Net(), CARD, renames={"classifier": None}, overwrite=True).ignored == found.ignored


@needs_safe_torch
def test_where_nothing_is_dropped_nothing_is_told(theirs, files):
    torch.save(theirs.state_dict(), files[0])
    assert import_foreign(*files, Net(), CARD).ignored == ()


@needs_safe_torch
@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda w: w.pop("head.bias"), "has no 'head.bias'.*; 8 of 9 tensors match"),
        (lambda w: w.update({"more": torch.ones(1)}), "unknown 'more'"),
        (lambda w: w.update({"head.bias": torch.ones(3)}), r"'head.bias' is \(3,\) in the file, \(2,\) in the model"),
        (lambda w: w.update({"module.head.bias": torch.ones(2)}), "'head.bias' and 'module.head.bias' both become"),
        (lambda w: w.update({"more": torch.eye(2).to_sparse()}), "'more' is sparse"),
        (lambda w: w.update({"more": torch.ones(1, device="meta")}), "'more' is sparse, quantized or empty of values"),
        (
            lambda w: w.update({"head.bias": torch.ones(1).expand(10**12)}),
            "'head.bias' is .1000000000000,. in the file",
        ),
    ],
)
def test_what_does_not_fit_wholly_is_refused_and_nothing_written(change, said, theirs, files):
    weights = dict(theirs.state_dict())
    change(weights)
    torch.save(weights, files[0])
    with pytest.raises(MedsegError, match=said) as refused:
        import_foreign(*files, Net(), CARD)
    assert "\n" not in str(refused.value)
    assert list(files[0].parent.iterdir()) == [files[0]]


@needs_safe_torch
@pytest.mark.parametrize(
    "where", ["beside the weights", "among the weights", "alone", "in an old file", "in a bare pickle"]
)
def test_a_file_that_would_run_code_is_refused_and_does_not_run(where, theirs, files, tmp_path):
    import pickle

    marker = tmp_path / "ran"
    weights, evil = theirs.state_dict(), Runs(marker)
    if where == "in a bare pickle":
        files[0].write_bytes(pickle.dumps({**weights, "x": evil}, protocol=2))
    else:
        shapes = {"beside the weights": {"state_dict": weights, "x": evil}, "among the weights": {**weights, "x": evil}}
        torch.save(shapes.get(where, evil), files[0], _use_new_zipfile_serialization=where != "in an old file")
    with pytest.raises(MedsegError, match="was not opened, as it may run code") as refused:
        import_foreign(*files, Net(), CARD)
    assert "\n" not in str(refused.value)
    assert not marker.exists()
    assert not files[1].exists()


def test_the_malicious_file_would_run_where_pickles_are_trusted(tmp_path):
    torch.save(Runs(tmp_path / "ran"), tmp_path / "evil.pth")
    torch.load(tmp_path / "evil.pth", weights_only=False)
    assert (tmp_path / "ran").exists()


def saved(content, **how):
    stream = io.BytesIO()
    torch.save(content, stream, **how)
    return stream.getvalue()


def script():
    stream = io.BytesIO()
    torch.jit.save(torch.jit.trace(nn.Linear(2, 2), torch.ones(1, 2)), stream)
    return stream.getvalue()


def packed():
    """An archive that unpacks to a thousand times its size."""
    with zipfile.ZipFile(io.BytesIO(saved({"w": torch.zeros(10**6)}))) as plain:
        stream = io.BytesIO()
        with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
            for name in plain.namelist():
                archive.writestr(name, plain.read(name))
    return stream.getvalue()


def lying(num):
    """A tensor of 4 values that says it has `num`."""
    with zipfile.ZipFile(io.BytesIO(saved({"w": torch.zeros(4)}))) as plain:
        stream = io.BytesIO()
        with zipfile.ZipFile(stream, "w") as archive:
            for name in plain.namelist():
                content = plain.read(name)
                if name.endswith("data.pkl"):  # K 4: the number 4 in a byte; 8a 8: a number in 8 bytes
                    content = content.replace(b"K\x04\x85", b"\x8a\x08" + struct.pack("<q", num) + b"\x85")
                archive.writestr(name, content)
    return stream.getvalue()


@needs_safe_torch
@pytest.mark.filterwarnings("ignore:`torch.jit")
@pytest.mark.parametrize(
    ("content", "said"),
    [
        (lambda: b"", "no checkpoint of PyTorch"),
        (lambda: b"no checkpoint at all" * 9, "no checkpoint of PyTorch"),
        (lambda: saved({"w": torch.ones(99)})[:-200], "cut short"),
        (lambda: saved({"w": torch.ones(99)})[:400], "cut short"),
        (lambda: saved({"w": torch.ones(99)}, _use_new_zipfile_serialization=False)[:-200], "or damaged"),
        (lambda: saved({"epoch": 3, "optimizer": {}}), "holds no tensors by name, but epoch, optimizer"),
        (lambda: saved([torch.ones(1)]), "no tensors by name, but a list"),
        (lambda: saved(nn.Linear(2, 2)), "holds torch.nn.modules.linear.Linear and not only tensors"),
        (script, "TorchScript"),
        (packed, "packed"),
        (lambda: lying(10**13), "or damaged"),
        (lambda: struct.pack("<Q", 2) + b"{}", "is a safetensors file"),
    ],
)
def test_what_is_no_checkpoint_is_one_line(content, said, files):
    files[0].write_bytes(content())
    with pytest.raises(MedsegError, match=said) as refused:
        import_foreign(*files, Net(), CARD)
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 400
    assert not files[1].exists()


@needs_safe_torch
def test_an_archive_with_any_byte_changed_is_opened_or_refused(theirs, files):
    content = bytearray(saved({"state_dict": theirs.state_dict()}))
    rng = np.random.default_rng(0)
    for place in rng.integers(len(content), size=150).tolist():
        before, content[place] = content[place], int(rng.integers(256))
        files[0].write_bytes(content)
        with suppress(MedsegError):
            assert read_foreign(files[0])
        content[place] = before


def test_a_pytorch_whose_unpickler_can_be_tricked_is_refused(files, monkeypatch):
    torch.save({"w": torch.ones(1)}, files[0])
    for version in ("2.6.0", "2.9.1+cu128", "2.10.0"):
        monkeypatch.setattr(torch, "__version__", version)
        with pytest.raises(MedsegError, match=r"pip install 'torch>=2\.11'"):
            read_foreign(files[0])


@needs_safe_torch
def test_weights_are_never_replaced_unasked(theirs, files):
    torch.save(theirs.state_dict(), files[0])
    files[1].write_text("mine")
    with pytest.raises(MedsegError, match=r"exists.*--overwrite"):
        import_foreign(*files, Net(), CARD)
    assert files[1].read_text() == "mine"
    import_foreign(*files, Net(), CARD, overwrite=True)
    assert equal(load_model(files[1], {"net": Net})[0], theirs)


@needs_safe_torch
def test_a_file_that_is_not_there_or_may_not_be_read_is_named(tmp_path):
    with pytest.raises(MedsegError, match=r"no file .*gone\.pth"):
        read_foreign(tmp_path / "gone.pth")
    with pytest.raises(MedsegError, match="no file"):
        read_foreign(tmp_path)
