"""Sliding windows: against the net on the whole image, a full buffer of logits, SciPy and MONAI."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import medseg_core.infer
from medseg_core.checkpoint import Card
from medseg_core.errors import MedsegError
from medseg_core.infer import decide, entropy, infer, mean_of


def random_net(num_axes, *, edge=3, channels=2, num_classes=5):
    """A convolution: with an edge above 1 its logits near a window's border depend on where the border lies."""
    torch.manual_seed(0)
    kind = nn.Conv2d if num_axes == 2 else nn.Conv3d
    return kind(channels, num_classes, edge, padding=edge // 2).eval()


def random_image(*shape):
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def argmax(y):
    return y.argmax(0)


def everything(y):
    return y


def card(head="softmax", channels=(0, 1), **chosen):
    return Card(package="test", version="0", model="net", head=head, channels=channels, chosen=chosen)


def full_buffer(net, image, window, overlap):
    """Blended logits (K, *space), summed over all windows in float64 and divided by the weights at the end."""
    gaussian = pytest.importorskip("scipy.signal.windows").gaussian
    space = image.shape[1:]
    weight = np.ones(())
    for edge in window:
        weight = weight[..., None] * gaussian(edge, std=edge / 8)
    starts = []
    for size, edge in zip(space, window, strict=True):
        num = math.ceil((size - edge) / max(1, edge * (1 - overlap))) + 1
        starts.append([round(i * (size - edge) / max(1, num - 1)) for i in range(num)])
    total, weights = 0.0, np.zeros(space)
    for corner in itertools.product(*starts):
        at = tuple(slice(c, c + w) for c, w in zip(corner, window, strict=True))
        with torch.no_grad():
            y = net(torch.from_numpy(image[:, *at].copy())[None])[0].double().numpy()
        total = np.zeros((len(y), *space)) if np.isscalar(total) else total
        total[:, *at] += y * weight
        weights[at] += weight
    return total / weights


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_a_net_of_single_voxels_is_not_changed_by_any_windows(data):
    num_axes = data.draw(st.sampled_from([2, 3]))
    space, window = (data.draw(st.tuples(*[st.integers(1, 9)] * num_axes)) for _ in range(2))
    image, net = random_image(2, *space), random_net(num_axes, edge=1)
    batch_size, overlap = data.draw(st.integers(1, 7)), data.draw(st.sampled_from([0.0, 0.25, 0.5, 0.9]))
    got = infer(net, image, window=window, reduce=everything, overlap=overlap, batch_size=batch_size)
    with torch.no_grad():
        np.testing.assert_allclose(got, net(torch.from_numpy(image)[None])[0], atol=1e-5)


@pytest.mark.parametrize("overlap", [0.0, 0.5, 0.7])
@pytest.mark.parametrize("batch_size", [1, 3, 50])
@pytest.mark.parametrize(
    ("space", "window"),
    [((14, 9, 21), (8, 8, 8)), ((21, 14, 9), (8, 8, 8)), ((12, 10, 7), (6, 4, 1)), ((6, 9, 20), (6, 9, 8))],
)
def test_ids_equal_those_of_a_full_buffer_for_any_slabs(space, window, batch_size, overlap):
    image, net = random_image(2, *space), random_net(3)
    want = full_buffer(net, image, window, overlap)
    got = infer(net, image, window=window, reduce=argmax, overlap=overlap, batch_size=batch_size)
    second, first = np.sort(want, axis=0)[-2:]
    sure = first - second > 1e-5
    assert sure.mean() > 0.999
    np.testing.assert_array_equal(got[sure], want.argmax(0)[sure])


def test_blended_logits_equal_those_of_a_full_buffer_in_2d():
    image, net = random_image(2, 23, 17), random_net(2)
    want = full_buffer(net, image, (8, 6), 0.5)
    np.testing.assert_allclose(infer(net, image, window=(8, 6), reduce=everything), want, atol=1e-5)


def test_blended_logits_equal_monais_where_its_windows_lie_alike():
    inferers = pytest.importorskip("monai.inferers")
    image, net = random_image(2, 24, 16, 32), random_net(3)
    edge = torch.exp(-0.5 * (torch.arange(8) - 3.5) ** 2)
    weight = 1e6 * torch.einsum("x,y,z->xyz", edge, edge, edge)  # MONAI lifts weights below 1e-3
    with torch.no_grad():
        want = inferers.sliding_window_inference(
            torch.from_numpy(image)[None], (8, 8, 8), 4, net, overlap=0.5, roi_weight_map=weight
        )[0]
    np.testing.assert_allclose(infer(net, image, window=(8, 8, 8), reduce=everything), want, atol=1e-4)


@pytest.mark.parametrize("batch_size", [1, 4])
def test_a_window_of_one_runs_a_2d_net_on_each_plane_alone(batch_size):
    image, net = random_image(2, 8, 12, 9), random_net(2)
    planes = lambda x: net(x[..., 0])[..., None]  # noqa: E731
    got = infer(planes, image, window=(8, 12, 1), reduce=everything, batch_size=batch_size)
    with torch.no_grad():
        want = torch.stack([net(torch.from_numpy(image[..., z].copy())[None])[0] for z in range(9)], -1)
    np.testing.assert_allclose(got, want, atol=1e-6)


def test_planes_travel_in_full_batches():
    sizes = []

    def net(x):
        sizes.append(len(x))
        return x

    infer(net, random_image(1, 6, 6, 9), window=(6, 6, 1), reduce=everything, batch_size=4)
    assert sizes == [1, 4, 4]  # the first tells how many classes there are


def test_an_image_smaller_than_the_window_is_padded_evenly_with_the_outside_value():
    image, net = random_image(2, 5, 4), random_net(2)
    got = infer(net, image, window=(8, 8), reduce=everything, outside=-1.0)
    padded = np.pad(image, ((0, 0), (1, 2), (2, 2)), constant_values=-1.0)
    with torch.no_grad():
        want = net(torch.from_numpy(padded)[None])[0][:, 1:6, 2:6]
    np.testing.assert_allclose(got, want, atol=1e-6)


def test_several_answers_come_back_in_front_of_space():
    image, net = random_image(2, 6, 7, 5), random_net(3)
    both = lambda y: torch.stack([y.argmax(0).float(), y.amax(0)])  # noqa: E731
    got = infer(net, image, window=(4, 4, 4), reduce=both)
    want = infer(net, image, window=(4, 4, 4), reduce=everything)
    assert got.shape == (2, 6, 7, 5)
    np.testing.assert_array_equal(got[0], want.argmax(0))
    np.testing.assert_array_equal(got[1], want.max(0))


@pytest.mark.parametrize("num_bytes", [2 * 4 * 5 * 8 * 8, 3 * 4 * 5 * 8, 1])
@pytest.mark.parametrize(
    ("space", "window", "overlap"),
    [((8, 8, 20), (8, 8, 4), 0.5), ((8, 8, 20), (8, 8, 10), 0.0), ((20, 8, 8), (4, 8, 8), 0.5)],
)
def test_reduce_sees_no_larger_block_than_stated(monkeypatch, space, window, overlap, num_bytes):
    image, net = random_image(2, *space), random_net(3)
    want = infer(net, image, window=window, overlap=overlap, reduce=everything)
    monkeypatch.setattr(medseg_core.infer, "REDUCE_BYTES", num_bytes)
    sizes = []

    def reduce(y):
        sizes.append(4 * y.numel())
        return y

    got = infer(net, image, window=window, overlap=overlap, reduce=reduce)
    np.testing.assert_array_equal(got, want)
    line = 4 * 5 * 8
    assert max(sizes) <= max(num_bytes, line)


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("window", [(4, 4, 1), (12, 4, 4)])
def test_the_answer_keeps_the_images_memory_order(order, window):
    volume = np.asarray(random_image(7, 6, 5), order=order)
    net = random_net(3, edge=1, channels=1)
    for got in (
        infer(net, volume[None], window=window, reduce=argmax),
        infer(net, volume[None], window=window, reduce=everything)[1],
    ):
        assert got.flags[f"{order}_CONTIGUOUS"]
        assert not got.flags["CF".replace(order, "") + "_CONTIGUOUS"]


def test_a_memory_map_of_small_integers_gives_the_answer_of_its_floats(tmp_path):
    ints = np.random.default_rng(0).integers(-1000, 1000, (1, 6, 6, 6)).astype(np.int16)
    np.save(tmp_path / "ct.npy", ints)
    mapped, net = np.load(tmp_path / "ct.npy", mmap_mode="r"), random_net(3, channels=1)
    got = infer(net, mapped, window=(4, 4, 4), reduce=argmax)
    assert type(got) is np.ndarray
    np.testing.assert_array_equal(got, infer(net, ints.astype(np.float32), window=(4, 4, 4), reduce=argmax))


def test_bf16_is_what_the_net_computes_in_and_float32_what_reduce_sees():
    seen = []
    conv = random_net(2, edge=1)

    def net(x):
        seen.append(conv(x).dtype)
        return conv(x)

    def reduce(y):
        seen.append(y.dtype)
        return y.argmax(0)

    infer(net, random_image(2, 4, 4), window=(4, 4), reduce=reduce, precision="bf16")
    assert seen == [torch.bfloat16, torch.float32]


def test_softmax_decides_for_the_id_of_the_largest_logit():
    y = torch.tensor([[3.0, 0.0, 1.0], [1.0, 2.0, 1.0], [2.0, 1.0, 0.0]])
    ids = decide(card(channels=(0, 7, 117)))(y)
    assert ids.dtype == torch.uint8
    assert ids.tolist() == [0, 7, 0]  # the last is a draw: the first channel wins


def test_ids_above_255_come_as_uint16():
    ids = decide(card(channels=(0, 300)))(torch.tensor([[0.0], [1.0]])).numpy()
    assert ids.dtype == np.uint16
    assert ids.tolist() == [300]


def test_sigmoid_decides_for_the_likeliest_id_above_the_chosen_threshold():
    probs = torch.tensor([[0.45, 0.3, 0.6, 0.2], [0.1, 0.35, 0.7, 0.9]])
    assert decide(card("sigmoid", (4, 9)))(probs.logit()).tolist() == [0, 0, 9, 9]
    assert decide(card("sigmoid", (4, 9), threshold=0.4))(probs.logit()).tolist() == [4, 0, 9, 9]
    assert decide(card("sigmoid", (4, 9), threshold=0.0))(probs.logit()).tolist() == [4, 9, 9, 9]
    assert decide(card("sigmoid", (4, 9), threshold=1.0))(probs.logit()).tolist() == [0, 0, 0, 0]


def test_entropy_is_scipys_over_the_largest_possible():
    stats = pytest.importorskip("scipy.stats")
    y = 3 * torch.randn(6, 50, generator=torch.Generator().manual_seed(0))
    want = stats.entropy(y.softmax(0).numpy(), axis=0) / np.log(6)
    np.testing.assert_allclose(entropy(card(channels=range(6)))(y), want, atol=1e-6)


def test_entropy_of_sigmoids_is_that_of_the_most_undecided_channel():
    stats = pytest.importorskip("scipy.stats")
    y = 3 * torch.randn(6, 50, generator=torch.Generator().manual_seed(0))
    p = y.sigmoid().numpy()
    want = stats.entropy(np.stack([p, 1 - p]), base=2).max(0)
    np.testing.assert_allclose(entropy(card("sigmoid", range(6)))(y), want, atol=1e-6)


def test_entropy_of_extreme_logits_is_finite():
    y = torch.tensor([[1e4, 0.0], [-1e4, 0.0]])
    assert entropy(card())(y).tolist() == [0, 1]
    assert entropy(card("sigmoid", (1, 2)))(y).tolist() == [0, 1]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"window": (4, 4, 4)}, r"window \(4, 4, 4\) does not fit an image \(2, 6, 6\)"),
        ({"window": (4, 0)}, "must be at least 1"),
        ({"overlap": 1.0}, r"overlap in \[0, 1\)"),
        ({"batch_size": 0}, "must be at least 1"),
        ({"mirror": (2,)}, "different axes from 0 to 1"),
        ({"mirror": (0,), "swap": {1: 2}}, "each channel once on either side"),
        ({"mirror": (0,), "swap": {1: 9, 9: 1}}, "swap names channel 9, the net gives 5"),
        ({"reduce": lambda y: y.sum()}, "only axis 0 may change or go"),
        ({"reduce": decide(card())}, "gives 5 channels, its card names 2"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(changes, message):
    with pytest.raises(MedsegError, match=message):
        infer(random_net(2), random_image(2, 6, 6), **{"window": (4, 4), "reduce": argmax, **changes})


def test_a_net_that_changes_the_grid_is_refused():
    with pytest.raises(MedsegError, match=r"gave \(1, 2, 2, 2\) for \(1, 2, 4, 4\); it must give \(1, K, 4, 4\)"):
        infer(nn.MaxPool2d(2).eval(), random_image(2, 6, 6), window=(4, 4), reduce=argmax)


def test_a_net_in_training_mode_is_refused():
    net = random_net(2).train()
    with pytest.raises(MedsegError, match="training mode"):
        infer(net, random_image(2, 6, 6), window=(4, 4), reduce=argmax)
    with pytest.raises(MedsegError, match="training mode"):
        mean_of([net])


def test_logits_that_are_not_finite_are_refused():
    image = random_image(2, 6, 6)
    image[0, 5, 5] = np.nan
    with pytest.raises(MedsegError, match="not finite"):
        infer(random_net(2), image, window=(4, 4), reduce=argmax)


@pytest.mark.parametrize("wrong", [card("none", (1,)), card("softmax", (0, 70000))])
def test_a_card_without_ids_decides_nothing(wrong):
    with pytest.raises(MedsegError, match="ids need softmax or sigmoid"):
        decide(wrong)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_gives_the_labels_of_the_cpu():
    image, net = random_image(2, 14, 9, 21), random_net(3)
    options = {"window": (8, 8, 8), "reduce": everything}
    want = infer(net, image, **options)
    np.testing.assert_allclose(infer(net.cuda(), image, device="cuda", **options), want, atol=1e-2)
