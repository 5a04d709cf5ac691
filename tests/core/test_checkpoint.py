import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from medseg_core.checkpoint import Card, load_model, load_weights, read_card, save_model
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


def test_another_package_s_weights_are_named(tmp_path):
    save_model(tmp_path / "w", Net(), CARD)
    with pytest.raises(MedsegError, match="holds test's 'net'; here are unet2d"):
        load_model(tmp_path / "w", {"unet2d": Net})


def test_a_package_that_is_not_installed_is_named(tmp_path):
    save_model(tmp_path / "w", Net(), CARD)
    with pytest.raises(MedsegError, match="pip install test"):
        load_model(tmp_path / "w")
