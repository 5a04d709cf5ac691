"""Weights of other people's U-Nets, and ours, through `medseg checkpoint`."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from medseg_core.checkpoint import load_model, read_card
from medseg_core.cli import app
from medseg_core.errors import MedsegError
from medseg_core.export import TORCH
from medseg_core.foreign import SAFE
from medseg_totalseg.labels import CLASS_LISTS
from medseg_totalseg.models import MODELS
from medseg_totalseg.predict import Predictor
from medseg_totalseg.settings import PredictConfig

V2 = CLASS_LISTS["v2"]
WHERE = {
    "inputs": ["ct"],
    "grid": {"orientation": "RAS", "spacing_mm": [3.0, 3.0, 3.0], "size": 64},
    "intensity": {"percentiles": [1.0, 99.0]},
}
needs_safe_torch = pytest.mark.skipif(
    tuple(map(int, torch.__version__.split(".")[:2])) < SAFE, reason="needs PyTorch 2.11, as the importer does"
)


def call(*arguments):
    return CliRunner().invoke(app, ["checkpoint", *map(str, arguments)])


def fails(*arguments):
    result = call(*arguments)
    assert result.exit_code == 2, result.output
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    return line


class Twice(nn.Module):
    """Convolution, normalisation, ReLU, two times over."""

    def __init__(self, before, after):
        super().__init__()
        self.first, self.first_norm = nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after)
        self.second, self.second_norm = nn.Conv2d(after, after, 3, padding=1), nn.BatchNorm2d(after)

    def forward(self, x):
        return torch.relu(self.second_norm(self.second(torch.relu(self.first_norm(self.first(x))))))


class Original(nn.Module):
    """A 2D U-Net for 117 structures, as a notebook would write it: a member for each level."""

    def __init__(self, num_classes=117, widths=(32, 64, 128, 256, 512)):
        super().__init__()
        a, b, c, d, e = widths
        self.down1, self.down2, self.down3, self.down4 = Twice(1, a), Twice(a, b), Twice(b, c), Twice(c, d)
        self.pool, self.bottom = nn.MaxPool2d(2), Twice(d, e)
        self.up4, self.merge4 = nn.ConvTranspose2d(e, d, 2, stride=2), Twice(2 * d, d)
        self.up3, self.merge3 = nn.ConvTranspose2d(d, c, 2, stride=2), Twice(2 * c, c)
        self.up2, self.merge2 = nn.ConvTranspose2d(c, b, 2, stride=2), Twice(2 * b, b)
        self.up1, self.merge1 = nn.ConvTranspose2d(b, a, 2, stride=2), Twice(2 * a, a)
        self.last = nn.Conv2d(a, num_classes, 1)

    def forward(self, x):
        one = self.down1(x)
        two = self.down2(self.pool(one))
        three = self.down3(self.pool(two))
        four = self.down4(self.pool(three))
        y = self.bottom(self.pool(four))
        y = self.merge4(torch.cat([four, self.up4(y)], 1))
        y = self.merge3(torch.cat([three, self.up3(y)], 1))
        y = self.merge2(torch.cat([two, self.up2(y)], 1))
        return self.last(self.merge1(torch.cat([one, self.up1(y)], 1)))


PARTS = {"first": 0, "first_norm": 1, "second": 3, "second_norm": 4}
BLOCKS = {**{f"down{n}": f"encode.{n - 1}" for n in (1, 2, 3, 4)}, "bottom": "encode.4"}
BLOCKS |= {f"merge{n}": f"decode.{4 - n}" for n in (1, 2, 3, 4)}
RENAMES = {f"{theirs}.{part}": f"{ours}.{i}" for theirs, ours in BLOCKS.items() for part, i in PARTS.items()}
RENAMES |= {**{f"up{n}": f"upsample.{4 - n}" for n in (1, 2, 3, 4)}, "last": "head"}


class Widespread(nn.Module):
    """The names of a much copied implementation, two levels deep."""

    def __init__(self, num_classes):
        super().__init__()
        self.inc, self.down1, self.up1, self.outc = (nn.Module() for _ in range(4))
        self.inc.double_conv, self.down1.maxpool_conv = self.block(1, 4), nn.Sequential(nn.MaxPool2d(2), nn.Module())
        self.down1.maxpool_conv[1].double_conv = self.block(4, 8)
        self.up1.up, self.up1.conv = nn.ConvTranspose2d(8, 4, 2, stride=2), nn.Module()
        self.up1.conv.double_conv, self.outc.conv = self.block(8, 4), nn.Conv2d(4, num_classes, 1)

    def block(self, f, g):
        first = (nn.Conv2d(f, g, 3, padding=1), nn.BatchNorm2d(g), nn.ReLU())
        return nn.Sequential(*first, nn.Conv2d(g, g, 3, padding=1), nn.BatchNorm2d(g), nn.ReLU())

    def forward(self, x):
        fine = self.inc.double_conv(x)
        coarse = self.down1.maxpool_conv[1].double_conv(self.down1.maxpool_conv[0](fine))
        merged = self.up1.conv.double_conv(torch.cat([fine, self.up1.up(coarse)], 1))
        return self.outc.conv(merged)


def trained(net):
    """Running statistics and weights that are not those of a start."""
    draws = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for tensor in net.state_dict().values():
            if tensor.is_floating_point():
                tensor.add_(0.1 * torch.rand(tensor.shape, generator=draws))
    return net.eval()


@pytest.fixture
def original(tmp_path):
    """What the original system leaves: a checkpoint of an epoch, and which file each channel is of."""
    net = trained(Original())
    optimizer = torch.optim.Adam(net.parameters())
    epoch = {"epoch": 5, "model_state_dict": net.state_dict(), "optimizer_state_dict": optimizer.state_dict()}
    torch.save({**epoch, "train_loss": np.float64(0.1), "val_dice": 0.86}, tmp_path / "old.pth")
    files = sorted(f"{name}.nii.gz" for name in V2.values())
    (tmp_path / "label_map.json").write_text(json.dumps({file: channel for channel, file in enumerate(files)}))
    (tmp_path / "renames.json").write_text(json.dumps(RENAMES))
    (tmp_path / "labels.json").write_text(json.dumps({str(i): name for i, name in V2.items()}))
    (tmp_path / "where.json").write_text(json.dumps(WHERE))
    return net


@needs_safe_torch
def test_the_original_system_s_checkpoint_gives_its_logits_and_predicts(original, tmp_path):
    assert sum(p.numel() for p in original.parameters()) == 7_769_237  # as its notebook prints
    place = {name: tmp_path / f"{name}.json" for name in ("label_map", "renames", "labels", "where")}
    names = ["--channels", place["label_map"], "--labels", place["labels"]]
    more = ["--renames", place["renames"], "--card", place["where"]]
    new = tmp_path / "new.safetensors"
    told = call("import", tmp_path / "old.pth", new, "--as", "totalseg:unet2d", *names, *more)
    assert told.exit_code == 0, told.output
    assert "matched_tensors: 136" in told.stdout
    model, card = load_model(new)
    x = torch.rand(1, 1, 32, 48, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        assert torch.equal(model(x), original(x))
    assert [V2[i] for i in card.channels] == sorted(V2.values(), key=lambda name: f"{name}.nii.gz")
    assert (card.head, card.package, card.arguments["num_classes"]) == ("sigmoid", "medseg-totalseg", 117)
    mask = Predictor(new, config=PredictConfig(device="cpu", precision="fp32"))(
        np.zeros((24, 20, 3), np.int16), np.diag([3, 3, 3, 1])
    )
    assert mask.shape == (24, 20, 3)


@needs_safe_torch
def test_the_file_of_117_structures_is_hardly_larger_than_its_tensors(original, tmp_path):
    call(
        "import",
        tmp_path / "old.pth",
        tmp_path / "new.safetensors",
        "--as",
        "totalseg:unet2d",
        "--channels",
        tmp_path / "label_map.json",
        "--renames",
        tmp_path / "renames.json",
        "--card",
        tmp_path / "where.json",
    )
    raw = sum(t.numel() * t.element_size() for t in original.state_dict().values())
    assert raw < (tmp_path / "new.safetensors").stat().st_size <= 1.02 * raw + 16 * 1024


@needs_safe_torch
def test_predicting_asks_for_the_part_of_the_card_that_is_not_there(original, tmp_path):
    new, how = (
        tmp_path / "new.safetensors",
        ["--channels", tmp_path / "label_map.json", "--renames", tmp_path / "renames.json"],
    )
    done = call("import", tmp_path / "old.pth", new, "--as", "totalseg:unet2d", *how)
    assert "no inputs, grid, intensity, which predicting may need" in done.stderr
    with pytest.raises(MedsegError, match="does not say on which grid and intensities"):
        Predictor(new)


@needs_safe_torch
def test_names_of_a_much_copied_network_are_known(tmp_path):
    net = trained(Widespread(3))
    torch.save({"state_dict": {f"module.{k}": v for k, v in net.state_dict().items()}}, tmp_path / "old.pth")
    card = {**WHERE, "head": "softmax", "channels": [0, 1, 5], "labels": {"1": "spleen", "5": "liver"}}
    how = ["--as", "medseg-totalseg:unet2d", "--card", json.dumps(card), "--arguments", '{"widths": [4, 8]}']
    done = call("import", tmp_path / "old.pth", tmp_path / "new.safetensors", *how, "--json")
    assert done.exit_code == 0, done.output
    model, _ = load_model(tmp_path / "new.safetensors", MODELS)
    x = torch.rand(2, 1, 16, 8, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        assert torch.equal(model(x), net(x))


@pytest.fixture
def tiny(run, tmp_path):
    """The weights of a run as somebody else would save them."""
    model, card = load_model(run)
    torch.save(model.state_dict(), tmp_path / "old.pth")
    return tmp_path / "old.pth", tmp_path / "new.safetensors", card


@needs_safe_torch
def test_a_run_lends_its_card(run, tiny):
    old, new, card = tiny
    assert call("import", old, new, "--as", "totalseg:unet2d", "--card", run).exit_code == 0
    found, has = read_card(new), load_model(new)[0].state_dict()
    assert card.arguments.items() <= found.arguments.items()
    assert replace(found, arguments=card.arguments) == card
    assert all(torch.equal(has[name], tensor) for name, tensor in load_model(run)[0].state_dict().items())


@needs_safe_torch
def test_what_show_prints_is_a_card(run, tiny, tmp_path):
    old, new, card = tiny
    (tmp_path / "card.json").write_text(call("show", run, "--json").stdout)
    assert call("import", old, new, "--as", "totalseg:unet2d", "--card", tmp_path / "card.json").exit_code == 0
    assert replace(read_card(new), arguments=card.arguments) == card


@needs_safe_torch
def test_a_softmax_head_begins_with_the_background(run, tiny, tmp_path):
    old, new, card = tiny
    names = tmp_path / "names.txt"
    names.write_text("background\n" + "\n".join(card.labels.values()))
    how = ["--channels", names, "--arguments", json.dumps(card.arguments)]
    assert call("import", old, new, "--as", "totalseg:unet2d", *how).exit_code == 0
    found = read_card(new)
    assert (found.head, found.channels) == ("softmax", tuple(range(len(card.channels))))
    assert list(found.labels.values()) == list(card.labels.values())


@needs_safe_torch
@pytest.mark.parametrize(
    ("how", "said"),
    [
        (["--as", "totalseg:unet2", "--card", "RUN"], "did you mean 'unet2d'"),
        (["--as", "nothere:unet2d", "--card", "RUN"], "registers the models of 'nothere'"),
        (["--as", "totalseg", "--card", "RUN"], "--as totalseg:unet2d"),
        (["--as", "totalseg:unet2d"], "say what each is: --channels FILE"),
        (["--as", "totalseg:unet2d", "--card", "RUN", "--arguments", '{"width": 3}'], "did you mean 'widths'"),
        (["--as", "totalseg:unet2d", "--card", "RUN", "--arguments", "{"], "--arguments { is not valid JSON"),
        (["--as", "totalseg:unet2d", "--card", "RUN", "--arguments", '{"widths": [4, 8]}'], "are unknown"),
        (["--as", "totalseg:unet2d", "--card", "RUN", "--arguments", '{"widths": "ab"}'], "does not take"),
        (["--as", "totalseg:unet2d", "--card", "RUN", "--card", '{"head": "soft"}'], "head cannot be 'soft'"),
        (["--as", "totalseg:unet2d", "--card", "gone.json"], "cannot read --card gone.json"),
        (["--as", "totalseg:unet2d", "--card", "gone"], "no weights at gone"),
        (["--as", "totalseg:unet2d", "--card", "RUN", "--channels", "gone.json"], "cannot read --channels gone.json"),
        (["--as", "totalseg:unet2d", "--card", "RUN", "--renames", "gone.json"], "cannot read --renames gone.json"),
    ],
)
def test_what_cannot_be_is_one_line_with_the_fix(run, tiny, how, said):
    old, new, _ = tiny
    assert said in fails("import", old, new, *(run if part == "RUN" else part for part in how))
    assert not new.exists()


@needs_safe_torch
@pytest.mark.parametrize("channels", ['{"a": 0, "b": 2}', '{"a": 0, "b": 0}', '["a", 3]', "[]", "3", "{"])
def test_a_list_of_channels_with_a_gap_is_refused(tiny, tmp_path, channels):
    (tmp_path / "channels.json").write_text(channels)
    assert "--channels" in fails(
        "import", *tiny[:2], "--as", "totalseg:unet2d", "--channels", tmp_path / "channels.json"
    )


def test_show_tells_what_a_run_holds(run):
    told = call("show", run)
    assert told.exit_code == 0
    facts = json.loads(call("show", run, "--json").stdout)
    # widths 4, 8, 16: convolutions 3x3 and 2x2 with bias, two values for each channel that is normalised
    num = facts["card"]["arguments"]["num_classes"]
    blocks = [(1, 4), (4, 8), (8, 16), (16, 8), (8, 4)]
    total = sum(9 * f * g + g + 9 * g * g + g + 4 * g for f, g in blocks)
    total += (4 * 16 * 8 + 8) + (4 * 8 * 4 + 4) + 4 * num + num
    assert facts["parameters"] == {"total": total, "trainable": total, "frozen": 0}
    assert facts["buffers"] == sum(2 * (2 * g + 1) for _, g in blocks)
    assert facts["bytes"] == (run / "best.safetensors").stat().st_size
    assert facts["bytes_of_tensors"] == 4 * total + sum(2 * (2 * 4 * g + 8) for _, g in blocks)
    for words in ("unet2d of medseg-totalseg", f"{total:,}, none frozen", "spacing_mm", "window_hu", "liver"):
        assert words in told.stdout
    assert max(map(len, told.stdout.splitlines()[1:])) <= 100


def test_show_tells_where_a_saved_state_stands(run):
    told = call("show", run / "last")
    facts = json.loads(call("show", run / "last" / "state.safetensors", "--json").stdout)
    assert (facts["kind"], facts["epoch"], facts["ended"]) == ("state", 2, "finished")
    assert {"model", "moments"} <= facts["parts"].keys()
    assert "after epoch 2" in told.stdout


def test_a_network_exports_with_its_card_and_the_same_numbers(run, tmp_path):
    onnx, runtime = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    if tuple(map(int, torch.__version__.split(".")[:2])) < TORCH:
        pytest.skip("needs PyTorch 2.11, as the exporter does")
    out = tmp_path / "net.onnx"
    told = call("export", run, out)
    assert told.exit_code == 0, told.output
    model, card = load_model(run)
    session = runtime.InferenceSession(str(out), providers=["CPUExecutionProvider"])
    x = torch.rand(5, 1, 32, 96, generator=torch.Generator().manual_seed(4))
    with torch.inference_mode():
        want = model(x).numpy()
    (got,) = session.run(["logits"], {"ct": x.numpy()})
    assert np.abs(got - want).max() <= 1e-4 * np.abs(want).max()
    said = json.loads(onnx.load(out).metadata_props[0].value)
    assert said["labels"] == {str(i): name for i, name in card.labels.items()}
    assert str(tmp_path.parent) not in str(onnx.load(out))
