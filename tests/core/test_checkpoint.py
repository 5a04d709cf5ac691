import json
import re
import subprocess
import sys
from dataclasses import asdict, replace
from importlib.metadata import EntryPoint, version

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from medseg_core import checkpoint
from medseg_core.checkpoint import Card, load_model, load_weights, read_card, registered, save_model
from medseg_core.errors import MedsegError


class Net(nn.Module):
    def __init__(self, width=4):
        super().__init__()
        self.encoder, self.decoder = nn.Linear(2, width), nn.Linear(width, 1)

    def forward(self, x):
        return self.decoder(self.encoder(x))


CARD = Card(package="test", version="0", model="net", arguments={"width": 4}, labels={5: "liver"}, channels=(0, 5))


def test_the_card_rebuilds_the_network_in_eval_mode(tmp_path):
    net = Net()
    save_model(tmp_path / "w.safetensors", net, CARD)
    loaded, card = load_model(tmp_path / "w.safetensors", {"net": Net})
    assert card == CARD
    assert not loaded.training
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), loaded.parameters(), strict=True))


def test_equal_weights_and_cards_make_equal_bytes(tmp_path):
    net = Net()
    for name in "ab":
        save_model(tmp_path / name, net, CARD)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_the_file_is_hardly_larger_than_its_tensors(tmp_path):
    net = nn.Linear(500, 500)
    save_model(tmp_path / "w", net, CARD)
    raw = sum(p.numel() * 4 for p in net.parameters())
    assert (tmp_path / "w").stat().st_size <= 1.02 * raw + 16 * 1024


def test_a_part_of_another_network_is_taken_and_counted(tmp_path):
    net, encoder = Net(), nn.Linear(2, 4)
    save_model(tmp_path / "w", net, CARD)
    assert load_weights(encoder, tmp_path / "w", take="encoder").matched == 2
    assert torch.equal(encoder.weight, net.encoder.weight)


def test_weights_that_do_not_fit_are_never_loaded_in_part(tmp_path):
    save_model(tmp_path / "w", Net(), CARD)
    other = nn.Sequential(nn.Linear(2, 4))
    before = other[0].weight.clone()
    with pytest.raises(MedsegError, match="0 of 2 tensors match"):
        load_weights(other, tmp_path / "w")
    assert torch.equal(other[0].weight, before)


def test_weights_whose_header_calls_them_whole_numbers_are_refused_instead_of_cast(tmp_path):
    save_model(tmp_path / "w", Net(), CARD)
    content = (tmp_path / "w").read_bytes()
    (tmp_path / "w").write_bytes(content.replace(b'"dtype":"F32"', b'"dtype":"I32"', 1))
    with pytest.raises(MedsegError, match=r"torch.int32 in the file, torch.float32 in the model"):
        load_model(tmp_path / "w", {"net": Net})


def test_another_shape_is_named(tmp_path):
    save_model(tmp_path / "w", Net(), CARD)
    with pytest.raises(MedsegError, match=r"in the file, .* in the model; the settings"):
        load_weights(Net(8), tmp_path / "w")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: p.write_bytes(b"junk"), "not a readable safetensors"),
        (lambda p: p.write_bytes(b""), "not a readable safetensors"),
        (lambda p: save_file({"a": torch.zeros(1)}, p), "no medseg card"),
        (lambda p: save_file({"a": torch.zeros(1)}, p, {"medseg": "[]"}), "not a table"),
        (lambda p: save_file({"a": torch.zeros(1)}, p, {"medseg": "{}"}), "another format"),
        (lambda p: None, "no weights at"),
        (lambda p: p.mkdir(), "no weights at"),
    ],
)
def test_what_is_no_checkpoint_is_one_clear_error(tmp_path, make, message):
    make(tmp_path / "w")
    with pytest.raises(MedsegError, match=message):
        read_card(tmp_path / "w")


def test_somebody_else_s_weights_are_told_the_way_in(tmp_path):
    (tmp_path / "unet.pth").write_bytes(b"PK")
    with pytest.raises(MedsegError, match="`medseg checkpoint import`"):
        load_model(tmp_path / "unet.pth")


def test_another_package_s_weights_are_named(tmp_path):
    save_model(tmp_path / "w", Net(), CARD)
    with pytest.raises(MedsegError, match="holds 'net' of 'test'; here are unet2d"):
        load_model(tmp_path / "w", {"unet2d": Net})


def test_a_package_that_is_not_installed_is_named(tmp_path):
    save_model(tmp_path / "w", Net(), replace(CARD, package="medseg-other"))
    with pytest.raises(MedsegError, match="pip install medseg-other"):
        load_model(tmp_path / "w")


def test_a_file_never_names_a_stranger_to_install(tmp_path):
    save_model(tmp_path / "w", Net(), replace(CARD, package="evil && rm -rf ~"))
    with pytest.raises(MedsegError, match="install the one that made it"):
        load_model(tmp_path / "w")


def test_what_a_card_lies_about_takes_no_memory(tmp_path):
    save_model(tmp_path / "w", Net(), replace(CARD, arguments={"width": 10**13}))
    with pytest.raises(MedsegError, match=r"in the file, .*10000000000000.* in the model"):
        load_model(tmp_path / "w", {"net": Net})


@pytest.mark.parametrize("arguments", [{"width": "wide"}, {"width": -1}, {"width": None}, {"depth": 3}, {"width": [4]}])
def test_arguments_that_the_class_does_not_take_are_one_line(tmp_path, arguments):
    save_model(tmp_path / "w", Net(), replace(CARD, arguments=arguments))
    with pytest.raises(MedsegError, match="'net' of this version does not take the card's arguments: ") as refused:
        load_model(tmp_path / "w", {"net": Net})
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("labels", ["liver"]),
        ("labels", {"liver": 5}),
        ("labels", {"5": None}),
        ("labels", {"70000": "liver"}),
        ("channels", "0,5"),
        ("channels", [0, "5"]),
        ("channels", [0, -1]),
        ("channels", [True]),
        ("channels", 5),
        ("inputs", "ct"),
        ("inputs", [1]),
        ("head", "soft"),
        ("head", ["softmax"]),
        ("weights", None),
        ("format", "1"),
        ("format", 2),
        ("format", None),
        ("format", [1]),
        ("package", None),
        ("model", 3),
        ("arguments", [1]),
        ("arguments", None),
        ("grid", "RAS"),
        ("intensity", 3),
        ("chosen", []),
        ("colour", "red"),
    ],
)
def test_a_field_of_another_type_is_one_line(tmp_path, name, value):
    fields = {**asdict(CARD), name: value}
    save_file({"a": torch.zeros(1)}, tmp_path / "w", {"medseg": json.dumps(fields)})
    with pytest.raises(MedsegError, match="the card") as refused:
        read_card(tmp_path / "w")
    assert "\n" not in str(refused.value)
    assert str(tmp_path / "w") in str(refused.value)


def test_a_header_nested_without_end_is_one_line(tmp_path):
    save_file({"a": torch.zeros(1)}, tmp_path / "w", {"medseg": "[" * 100_000})
    with pytest.raises(MedsegError, match="not a readable safetensors file"):
        read_card(tmp_path / "w")


def test_a_disk_that_is_full_leaves_the_old_weights_whole(tmp_path):
    file = tmp_path / "best.safetensors"
    save_model(file, Net(), CARD)
    before = file.read_bytes()
    code = f"""
import resource, signal, sys
from pathlib import Path
import torch
from medseg_core.checkpoint import Card, save_model
from medseg_core.errors import MedsegError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    save_model(Path({str(file)!r}), torch.nn.Linear(500, 500), Card(package="test", version="0", model="net"))
except MedsegError as error:
    sys.exit(f"error: {{error}}")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert re.fullmatch(rf"error: cannot write {file}: .*File too large.*; nothing was left behind\n", done.stderr)
    assert file.read_bytes() == before
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.skipif(
    tuple(map(int, version("safetensors").split(".")[:2])) < (0, 8),
    reason="safetensors before 0.8 copies what it saves",
)
def test_saving_holds_no_second_copy_of_the_weights(tmp_path):
    code = f"""
import resource
from pathlib import Path
import torch
from medseg_core.checkpoint import Card, save_model
net, card = torch.nn.Linear(5000, 10_000), Card(package="test", version="0", model="net")  # 200 MB
save_model(Path({str(tmp_path / "small")!r}), torch.nn.Linear(2, 2), card)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
save_model(Path({str(tmp_path / "large")!r}), net, card)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 50  # MB


def test_others_may_read_weights_as_far_as_the_umask_says(tmp_path):
    (tmp_path / "plain").touch()
    save_model(tmp_path / "w", Net(), CARD)
    assert (tmp_path / "w").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_a_package_is_found_by_its_short_name(monkeypatch):
    point = EntryPoint("medseg-test", "medseg_core.testing.models:ModelChecks", "medseg.models")
    monkeypatch.setattr(checkpoint, "entry_points", lambda group: [point])
    assert registered("test") == registered("medseg-test") == ("medseg-test", point.load())
    with pytest.raises(MedsegError, match=r"'other' \(here are medseg-test\); install the one"):
        registered("other")
