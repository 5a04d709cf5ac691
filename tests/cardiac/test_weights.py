"""Initial weights: how large they are by arithmetic, what a seed fixes, and that nobody takes them for trained."""

import pytest

from medseg_cardiac import weights
from medseg_cardiac.models import MODELS
from medseg_cardiac.predictor import Predictor
from medseg_cardiac.weights import init_weights
from medseg_core.checkpoint import load_weights, read_card
from medseg_core.errors import MedsegError

COUNTS = {"motion": 1_137_638, "registration": 1_956_674, "attention-unet": 34_879_149}
# channels that are normalised: a mean and a variance each, and a counter of 8 bytes for each layer
MOTION = (32, 64, 128, 256)
REGISTRATION = (32, 32, 64, 64, 128, 128, 256, 256, 128, 128, 64, 64, 32, 32, 16, 16)
WIDTHS = (64, 128, 256, 512)
ATTENTION = (
    *(channels for width in (*WIDTHS, 1024) for channels in (width, width)),
    *(channels for width in WIDTHS for channels in (width, width // 2, width // 2, 1, width, width)),
)
LAYERS = {"motion": MOTION, "registration": REGISTRATION, "attention-unet": ATTENTION}


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """The rows of the real networks; their 150 MB are not written."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(weights, "save_model", lambda *_: None)
        return {row["network"]: row for row in init_weights(tmp_path_factory.mktemp("nothing"))}


@pytest.fixture
def small(monkeypatch):
    """A U-Net of 8 channels in the place of the one of 34.9 million parameters."""
    nets = {**weights.NETS, "attention-unet": {"in_channels": 4, "num_classes": 1, "width": 8}}
    monkeypatch.setattr(weights, "NETS", nets)


def test_the_table_has_the_stated_counts_and_their_sum(table):
    assert {name: row["parameters"] for name, row in table.items()} == {**COUNTS, "sum": 37_973_461}


@pytest.mark.parametrize("name", list(COUNTS))
def test_megabytes_are_four_bytes_a_number_and_three_times_that_to_go_on_from(name, table):
    buffers = sum(8 * channels + 8 for channels in LAYERS[name])
    assert table[name]["weights_mb"] == pytest.approx((4 * COUNTS[name] + buffers) / 1e6, abs=0.006)
    assert table[name]["state_mb"] == pytest.approx((12 * COUNTS[name] + buffers) / 1e6, abs=0.006)


def test_the_sum_is_of_all_three(table):
    for key in ("weights_mb", "state_mb"):
        assert table["sum"][key] == pytest.approx(sum(table[name][key] for name in COUNTS), abs=0.02)


def test_three_files_load_as_the_networks_they_are_named_for(small, tmp_path):
    rows = {row["network"]: row for row in init_weights(tmp_path)}
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(f"{name}.safetensors" for name in COUNTS)
    for name in COUNTS:
        file = tmp_path / f"{name}.safetensors"
        card = read_card(file)
        assert (card.package, card.model, card.chosen) == ("medseg-cardiac", name, {"trained": False})
        model = MODELS[name](**card.arguments)
        assert load_weights(model, file).matched == len(model.state_dict())
        assert sum(p.numel() for p in model.parameters()) == rows[name]["parameters"]
        named = 200 * len(model.state_dict())  # the header has the name and the shape of every tensor
        assert 0 <= file.stat().st_size - rows[name]["weights_mb"] * 1e6 + 5_000 < named + 10_000


def test_equal_seeds_give_equal_bytes(small, tmp_path):
    for out, seed in (("one", 42), ("again", 42), ("other", 7)):
        init_weights(tmp_path / out, seed=seed)
    for name in COUNTS:
        one, again, other = ((tmp_path / out / f"{name}.safetensors").read_bytes() for out in ("one", "again", "other"))
        assert one == again != other


def test_a_network_does_not_depend_on_those_before_it(small, tmp_path, monkeypatch):
    init_weights(tmp_path / "all")
    monkeypatch.setattr(weights, "NETS", {"registration": {}})
    init_weights(tmp_path / "alone")
    files = (tmp_path / out / "registration.safetensors" for out in ("all", "alone"))
    assert len({file.read_bytes() for file in files}) == 1


def test_weights_are_never_replaced_unasked(small, tmp_path):
    mine = tmp_path / "registration.safetensors"
    mine.write_text("mine")
    with pytest.raises(MedsegError, match=r"registration\.safetensors exists; .*--overwrite"):
        init_weights(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [mine.name]
    assert mine.read_text() == "mine"
    init_weights(tmp_path, overwrite=True)
    assert read_card(mine).model == "registration"


@pytest.mark.parametrize(
    ("name", "said"), [("motion", "before any training; train first"), ("attention-unet", "give a run of")]
)
def test_nothing_is_predicted_with_weights_that_were_never_trained(name, said, small, tmp_path):
    init_weights(tmp_path)
    with pytest.raises(MedsegError, match=said):
        Predictor(tmp_path / f"{name}.safetensors")
