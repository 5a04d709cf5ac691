"""Checkpoints of the original system, by the names it gave its tensors, through `medseg checkpoint import`.

No real file is public: the tensors here have the names and shapes that are stated for it, and the networks that say
what comes out of them are written down from the same statements.
"""

import json
import math

import pytest
import torch
from torch.nn import functional as F
from typer.testing import CliRunner

from medseg_cardiac.models import MODELS
from medseg_cardiac.predictor import EXAMPLE, Predictor
from medseg_core.checkpoint import load_weights, read_card
from medseg_core.cli import app
from medseg_core.foreign import SAFE

GRID = (1, 2, 256, 256)
WIDTH = 8  # of the U-Net that is run; 64 in the original
needs_safe_torch = pytest.mark.skipif(
    tuple(map(int, torch.__version__.split(".")[:2])) < SAFE, reason="needs PyTorch 2.11, as the importer does"
)


def call(*arguments):
    return CliRunner().invoke(app, ["checkpoint", "import", *map(str, arguments)])


def conv(name, before, after, edge=3):
    return {f"{name}.weight": (after, before, edge, edge), f"{name}.bias": (after,)}


def transposed(name, before, after):
    return {f"{name}.weight": (before, after, 4, 4), f"{name}.bias": (after,)}


def norm(name, width):
    parts = dict.fromkeys(("weight", "bias", "running_mean", "running_var"), (width,))
    return {f"{name}.{part}": shape for part, shape in {**parts, "num_batches_tracked": ()}.items()}


def twice(name, before, after):
    """Twice convolution and normalisation."""
    first, second = conv(f"{name}.0", before, after) | norm(f"{name}.1", after), conv(f"{name}.3", after, after)
    return first | second | norm(f"{name}.4", after)


def motion_shapes():
    shapes = {}
    for n, (before, after, edge) in enumerate(((2, 32, 7), (32, 64, 5), (64, 128, 3), (128, 256, 3)), 1):
        shapes |= conv(f"encoder.conv{n}.0", before, after, edge) | norm(f"encoder.conv{n}.1", after)
    for n, before in {4: 256, 3: 258, 2: 130, 1: 66}.items():
        shapes |= conv(f"decoder.flow_pred{n}", before, 2)
    for name, before, after in (("upconv3", 256, 128), ("upconv2", 130, 64), ("upconv1", 66, 32)):
        shapes |= transposed(f"decoder.{name}.0", before, after)
    shapes |= transposed("decoder.final_upconv.0", 34, 16) | conv("decoder.final_flow", 16, 2)
    return shapes | {"motion_compensation.grid": GRID}


def registration_shapes():
    blocks = {"enc1": (2, 32), "enc2": (32, 64), "enc3": (64, 128), "enc4": (128, 256)}
    blocks |= {"dec4": (384, 128), "dec3": (192, 64), "dec2": (96, 32), "dec1": (32, 16)}
    shapes = {name: shape for block, io in blocks.items() for name, shape in twice(f"unet.{block}", *io).items()}
    return shapes | conv("unet.flow_layer", 16, 2) | {"spatial_transformer.grid": GRID}


def attention_shapes(width):
    a, b, c, d, e = (width * 2**level for level in range(5))
    blocks = {"encoder1": (4, a), "encoder2": (a, b), "encoder3": (b, c), "encoder4": (c, d), "bottleneck": (d, e)}
    blocks |= {f"decoder{n}": (2 * w, w) for n, w in enumerate((a, b, c, d), 1)}
    shapes = {name: shape for block, io in blocks.items() for name, shape in twice(f"{block}.conv", *io).items()}
    for n, w in enumerate((a, b, c, d), 1):
        shapes |= conv(f"upconv{n}.up.1", 2 * w, w) | norm(f"upconv{n}.up.2", w)
        for part, before, after in (("W_g", w, w // 2), ("W_x", w, w // 2), ("psi", w // 2, 1)):
            shapes |= conv(f"att{n}.{part}.0", before, after, 1) | norm(f"att{n}.{part}.1", after)
    return shapes | conv("output", a, 1, 1)


SHAPES = {
    "motion": motion_shapes(),
    "registration": registration_shapes(),
    "attention-unet": attention_shapes(WIDTH),
}


def weights_of(kind):
    """Random values that neither fade nor explode, nor fit any other name."""
    rng, weights = torch.Generator().manual_seed(len(kind)), {}
    for name, shape in SHAPES[kind].items():
        value = torch.randn(shape, generator=rng)
        if name.endswith("num_batches_tracked"):
            value = torch.tensor(7)
        elif name.endswith("running_var"):
            value = 0.5 + value.abs()
        elif len(shape) == 4 and "grid" not in name:
            value = value / math.sqrt(math.prod(shape[1:]))
        elif not name.endswith(("bias", "running_mean")):
            value = 1 + 0.2 * value
        else:
            value = 0.1 * value
        weights[name] = value
    return weights


class Net:
    """The layers of a state dict by their names, in eval mode."""

    def __init__(self, weights):
        self.weights = weights

    def conv(self, name, x, **how):
        weight = self.weights[f"{name}.weight"]
        return F.conv2d(x, weight, self.weights[f"{name}.bias"], padding=weight.shape[-1] // 2, **how)

    def up(self, name, x):
        return F.relu(F.conv_transpose2d(x, *self._pair(name), stride=2, padding=1))

    def norm(self, name, x):
        return F.batch_norm(
            x, *(self.weights[f"{name}.{part}"] for part in ("running_mean", "running_var")), *self._pair(name)
        )

    def twice(self, name, x, slope=0.0):
        for first, second in ((0, 1), (3, 4)):
            x = F.leaky_relu(self.norm(f"{name}.{second}", self.conv(f"{name}.{first}", x)), slope)
        return x

    def _pair(self, name):
        return self.weights[f"{name}.weight"], self.weights[f"{name}.bias"]


def doubled(x):
    return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True)


def motion_of(weights, x):
    """Of the two frames as channels."""
    net, levels = Net(weights), []
    for n in (1, 2, 3, 4):
        x = F.relu(net.norm(f"encoder.conv{n}.1", net.conv(f"encoder.conv{n}.0", x, stride=2)))
        levels.append(x)
    flow = net.conv("decoder.flow_pred4", x)
    for n in (3, 2, 1):
        x = net.up(f"decoder.upconv{n}.0", x)
        flow = net.conv(f"decoder.flow_pred{n}", torch.cat([x, levels[n - 1], doubled(flow)], 1))
        x = torch.cat([x, flow], 1)
    return net.conv("decoder.final_flow", net.up("decoder.final_upconv.0", x))


def registration_of(weights, x):
    net, skips = Net(weights), []
    for n in (1, 2, 3, 4):
        x = net.twice(f"unet.enc{n}", x if n == 1 else F.max_pool2d(x, 2), 0.2)
        skips.append(x)
    for n in (4, 3, 2):
        x = net.twice(f"unet.dec{n}", torch.cat([doubled(x), skips[n - 2]], 1), 0.2)
    return net.conv("unet.flow_layer", net.twice("unet.dec1", x, 0.2))


def attention_of(weights, x):
    net, skips = Net(weights), []
    for n in (1, 2, 3, 4):
        skips.append(net.twice(f"encoder{n}.conv", x))
        x = F.max_pool2d(skips[-1], 2)
    x = net.twice("bottleneck.conv", x)
    for n in (4, 3, 2, 1):
        x = F.relu(net.norm(f"upconv{n}.up.2", net.conv(f"upconv{n}.up.1", doubled(x))))
        skip = skips[n - 1]
        both = [net.norm(f"att{n}.{p}.1", net.conv(f"att{n}.{p}.0", y)) for p, y in (("W_g", x), ("W_x", skip))]
        share = torch.sigmoid(net.norm(f"att{n}.psi.1", net.conv(f"att{n}.psi.0", F.relu(sum(both)))))
        x = net.twice(f"decoder{n}.conv", torch.cat([skip * share, x], 1))
    return net.conv("output", x)


ORIGINALS = {"motion": motion_of, "registration": registration_of, "attention-unet": attention_of}


@pytest.fixture
def how(tmp_path):
    """What each network is asked for with."""
    (tmp_path / "channels.txt").write_text("infarct\n")
    wide = ["--arguments", json.dumps({"width": WIDTH}), "--channels", tmp_path / "channels.txt"]
    return {"motion": [], "registration": [], "attention-unet": wide}


def saved(kind, path, *, prefix=""):
    """A file as the original's training scripts leave it."""
    weights = weights_of(kind)
    state = {"state": {0: {"step": torch.tensor(3.0), "exp_avg": torch.zeros(4)}}, "param_groups": [{"lr": 1e-4}]}
    best = {"best_loss": 0.0388} if kind == "motion" else {"best_dice": 0.9}
    named = {f"{prefix}{name}": value for name, value in weights.items()}
    torch.save({"epoch": 12, "model_state_dict": named, "optimizer_state_dict": state, **best}, path)
    return weights


def imported(file, kind):
    """The network of a file, its weights filled in."""
    model = MODELS[kind](**read_card(file).arguments)
    load_weights(model, file)
    return model.eval()


def test_the_names_stand_for_as_many_numbers_as_the_original_has():
    counted = {**SHAPES, "attention-unet": attention_shapes(64)}
    for kind, want in {"motion": 1_137_638, "registration": 1_956_674, "attention-unet": 34_879_149}.items():
        parameters = [shape for name, shape in counted[kind].items() if name.endswith(("weight", "bias"))]
        assert sum(map(math.prod, parameters)) == want


@needs_safe_torch
@pytest.mark.parametrize(
    ("kind", "matched", "ignored"),
    [
        ("motion", 46, "motion_compensation.grid"),
        ("registration", 114, "spatial_transformer.grid"),
        ("attention-unet", 240, None),
    ],
)
def test_every_tensor_is_taken_over_and_the_grid_is_ignored_by_name(kind, matched, ignored, how, tmp_path):
    weights = saved(kind, tmp_path / "old.pth")
    new = tmp_path / "new.safetensors"
    told = call(tmp_path / "old.pth", new, "--as", f"cardiac:{kind}", *how[kind], "--json")
    assert told.exit_code == 0, told.output
    facts = json.loads(told.stdout)
    assert (facts["matched_tensors"], facts.get("ignored")) == (matched, ignored)
    has = imported(new, kind).state_dict()
    assert has.keys() == weights.keys() - {ignored}
    assert all(torch.equal(has[name], weights[name]) for name in has)


@needs_safe_torch
@pytest.mark.parametrize("kind", list(SHAPES))
def test_the_network_answers_as_the_original_s_layers_do(kind, how, tmp_path):
    weights = saved(kind, tmp_path / "old.pth")
    new = tmp_path / "new.safetensors"
    assert call(tmp_path / "old.pth", new, "--as", f"cardiac:{kind}", *how[kind]).exit_code == 0
    channels = 4 if kind == "attention-unet" else 2
    x = torch.rand(2, channels, 48, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        want, model = ORIGINALS[kind](weights, x), imported(new, kind)
        got = model(x) if channels == 4 else model(x[:, :1], x[:, 1:])
    assert want.std() > 0.01
    assert (got - want).abs().max() < 1e-4 * want.abs().max()


@needs_safe_torch
def test_the_command_says_in_words_what_it_matched_and_ignored(tmp_path):
    saved("motion", tmp_path / "old.pth")
    told = call(tmp_path / "old.pth", tmp_path / "new.safetensors", "--as", "cardiac:motion")
    assert "matched_tensors: 46\n" in told.stdout
    assert "parameters: 1137638\n" in told.stdout
    assert "ignored: motion_compensation.grid\n" in told.stdout


@needs_safe_torch
def test_a_grid_is_ignored_behind_the_prefix_of_several_gpus_too(tmp_path):
    saved("registration", tmp_path / "old.pth", prefix="module.")
    told = call(tmp_path / "old.pth", tmp_path / "new.safetensors", "--as", "cardiac:registration", "--json")
    assert json.loads(told.stdout)["ignored"] == "module.spatial_transformer.grid"


@needs_safe_torch
@pytest.mark.parametrize(
    ("kind", "other", "said"),
    [
        ("motion", "registration", "of 114 tensors match"),
        ("registration", "motion", "are unknown"),
        ("motion", "unet", "has no model"),
    ],
)
def test_weights_of_another_network_are_refused_in_one_line(kind, other, said, tmp_path):
    saved(kind, tmp_path / "old.pth")
    told = call(tmp_path / "old.pth", tmp_path / "new.safetensors", "--as", f"cardiac:{other}")
    assert told.exit_code == 2
    (line,) = [line for line in told.stderr.splitlines() if line.startswith("error: ")]
    assert said in line
    assert not (tmp_path / "new.safetensors").exists()


@needs_safe_torch
def test_the_u_net_wants_to_know_what_its_channel_is(tmp_path):
    saved("attention-unet", tmp_path / "old.pth")
    how = ["--as", "cardiac:attention-unet", "--arguments", json.dumps({"width": WIDTH})]
    told = call(tmp_path / "old.pth", tmp_path / "new.safetensors", *how)
    assert told.exit_code == 2
    assert "--channels FILE" in told.stderr


@needs_safe_torch
def test_an_imported_motion_net_predicts_once_it_is_told_on_which_pixels(tmp_path):
    saved("motion", tmp_path / "old.pth")
    new = tmp_path / "new.safetensors"
    told = call(tmp_path / "old.pth", new, "--as", "cardiac:motion", "--card", EXAMPLE)
    assert told.exit_code == 0, told.output
    assert Predictor(new) is not None
