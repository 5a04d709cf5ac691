import dataclasses
import itertools
import pickle

import numpy as np
import pytest
import torch

from medseg_core.draw import Draw, order_of
from medseg_core.errors import MedsegError

DRAW = Draw(index=3, epoch=1, place=7, seed=42)


class Plain:
    def __init__(self, num):
        self.num = num

    def __len__(self):
        return self.num

    def __getitem__(self, draw):
        return {}


class Ordered(Plain):
    def __init__(self, num, order):
        super().__init__(num)
        self.order = order


def numpy_stream(draw):
    return draw.numpy().random(4).tolist()


def torch_stream(draw):
    return torch.rand(4, generator=draw.torch()).tolist()


@pytest.mark.parametrize("stream", [numpy_stream, torch_stream])
def test_equal_draws_give_equal_numbers(stream):
    assert stream(DRAW) == stream(dataclasses.replace(DRAW))


@pytest.mark.parametrize("stream", [numpy_stream, torch_stream])
@pytest.mark.parametrize("field", ["index", "epoch", "place", "seed"])
def test_each_part_of_a_draw_changes_the_numbers(stream, field):
    assert stream(DRAW) != stream(dataclasses.replace(DRAW, **{field: getattr(DRAW, field) + 1}))


def test_small_draws_have_streams_of_their_own():
    draws = [Draw(*words) for words in itertools.product(range(3), repeat=4)]
    assert len({tuple(numpy_stream(d)) for d in draws}) == len({tuple(torch_stream(d)) for d in draws}) == 81


def test_the_numbers_are_those_of_numpys_generator_seeded_by_four_words():
    assert numpy_stream(DRAW) == np.random.default_rng([42, 1, 7, 3]).random(4).tolist()


def test_drawing_leaves_the_global_generators_alone():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    torch_stream(DRAW)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_draw_travels_to_a_worker():
    assert numpy_stream(pickle.loads(pickle.dumps(DRAW))) == numpy_stream(DRAW)


def test_an_epoch_sees_every_sample_once_and_each_epoch_differs():
    first, second = order_of(Plain(50), 0, 1), order_of(Plain(50), 1, 1)
    assert sorted(first) == sorted(second) == list(range(50))
    assert first.dtype == np.int64
    assert not np.array_equal(first, second)
    assert not np.array_equal(first, order_of(Plain(50), 0, 2))


def test_the_order_of_an_epoch_repeats():
    np.testing.assert_array_equal(order_of(Plain(50), 3, 1), order_of(Plain(50), 3, 1))


def test_samples_with_an_order_decide_themselves():
    samples = Ordered(4, lambda epoch, rng: [epoch, 0, 3, 3])
    assert order_of(samples, 2, 42).tolist() == [2, 0, 3, 3]


def test_an_order_draws_from_the_generator_of_its_epoch():
    samples = Ordered(9, lambda epoch, rng: rng.integers(0, 9, 9))
    np.testing.assert_array_equal(order_of(samples, 1, 5), order_of(samples, 1, 5))
    assert not np.array_equal(order_of(samples, 1, 5), order_of(samples, 2, 5))


@pytest.mark.parametrize(
    ("order", "says"),
    [([0, 1, 2], "4 whole numbers"), ([-1, 0, 1, 2], "from 0 on, got -1"), ([0.0, 1, 2, 3], "float64")],
)
def test_an_order_that_does_not_fit_is_refused(order, says):
    with pytest.raises(MedsegError, match=says):
        order_of(Ordered(4, lambda epoch, rng: order), 0, 0)
