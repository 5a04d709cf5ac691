"""How alike two pictures are, pixel by pixel, against numbers that are known without the code."""

import numpy as np
import pytest
import torch

from medseg_cardiac.losses import SIMILARITIES, absolute, charbonnier, local_ncc, mean_over, near_middle

EDGE, QUIET = 9, 1e-3


def noise(*, seed=0, size=32):
    return torch.rand(1, 1, size, size, generator=torch.Generator().manual_seed(seed))


def test_absolute_is_the_distance_of_grey_values():
    one, other = torch.tensor([[[[0.2, 0.9]]]]), torch.tensor([[[[0.5, 0.4]]]])
    assert absolute(one, other).flatten().tolist() == pytest.approx([0.3, 0.5])


def test_charbonnier_is_round_at_zero_and_linear_far_from_it():
    gap = torch.tensor([0.0, 0.01, 3.0], requires_grad=True)
    loss = charbonnier(gap.reshape(1, 1, 1, 3), torch.zeros(1, 1, 1, 3))
    assert loss.flatten().tolist() == pytest.approx([0.0, 0.01 * (2**0.5 - 1), 3 - 0.01], abs=2e-5)
    loss.sum().backward()
    assert gap.grad.tolist() == pytest.approx([0.0, 0.5**0.5, 1.0], abs=1e-4)


def test_local_correlation_of_a_neighbourhood_is_what_numpy_says():
    one, other = noise(), noise(seed=1)
    found = local_ncc(one, other)[0, 0]
    for h, w in ((16, 12), (0, 0), (3, 31)):  # whole, in a corner, at an edge: what is beyond counts nowhere
        part = np.s_[0, 0, max(0, h - 4) : h + 5, max(0, w - 4) : w + 5]
        both = np.cov(one[part].numpy().ravel(), other[part].numpy().ravel(), bias=True)
        want = 1 - both[0, 1] ** 2 / ((both[0, 0] + QUIET) * (both[1, 1] + QUIET))
        assert found[h, w].item() == pytest.approx(want, abs=1e-4)


@pytest.mark.parametrize(("factor", "more"), [(1.0, 0.0), (0.5, 0.4), (-1.0, 1.0), (-2.0, 0.1)])
def test_local_correlation_does_not_see_contrast_or_which_way_it_goes(factor, more):
    found = local_ncc(noise(), factor * noise() + more)
    assert found.max() < 0.08  # of which 0.02 to 0.06 are the noise that is allowed for


def test_pictures_that_have_nothing_in_common_are_unlike():
    assert local_ncc(noise(), noise(seed=1)).mean() > 0.9


def test_where_a_picture_is_flat_nothing_is_alike():
    flat = torch.full((1, 1, 32, 32), 0.7)
    for pair in ((flat, noise()), (noise(), flat), (flat, flat)):
        assert local_ncc(*pair).min() > 0.999


def test_noise_on_a_flat_wall_says_little():
    """A spread of 1 % about one value, the same in both pictures, is far below what counts as a pattern."""
    wall = 0.5 + 0.01 * (noise() - 0.5)
    assert local_ncc(wall, wall).min() > 0.99


def test_local_correlation_is_computed_in_float32_and_has_a_gradient():
    one = noise().bfloat16().requires_grad_()
    found = local_ncc(one, noise(seed=1).bfloat16())
    found.mean().backward()
    assert found.dtype == torch.float32
    assert torch.isfinite(one.grad).all()
    assert one.grad.abs().max() > 0


@pytest.mark.parametrize("name", ["l1", "charbonnier", "ncc"])
def test_every_similarity_gives_a_value_for_each_pixel_and_less_for_what_is_alike(name):
    one, other = noise(size=20), noise(seed=1, size=20)
    unlike = SIMILARITIES[name]
    assert unlike(one, other).shape == (1, 1, 20, 20)
    assert (unlike(one, one) < unlike(one, other)).float().mean() > 0.95
    assert torch.allclose(unlike(one, other), unlike(other, one), atol=1e-6)


def test_a_mean_over_weights_counts_each_case_alike():
    values = torch.tensor([[1.0, 3.0], [10.0, 20.0]]).reshape(2, 1, 1, 2)
    weight = torch.tensor([[3.0, 1.0], [0.0, 0.1]]).reshape(2, 1, 1, 2)
    assert mean_over(values, weight).item() == pytest.approx((1.5 + 20) / 2)
    assert mean_over(values, torch.ones(1, 1, 1, 2)).item() == pytest.approx((2 + 15) / 2)


def test_a_case_without_weight_counts_as_zero():
    values = torch.tensor([4.0, 100.0]).reshape(2, 1, 1, 1)
    weight = torch.tensor([1.0, 0.0]).reshape(2, 1, 1, 1)
    assert mean_over(values, weight).item() == pytest.approx(2.0)


def test_the_middle_counts_most_and_alike_to_all_sides():
    bell = near_middle(33, reach=5.0, device=torch.device("cpu"))
    assert bell.shape == (1, 1, 33, 33)
    bell = bell[0, 0]
    assert bell[16, 16] == 1 == bell.max()
    assert bell[16 + 3, 16 - 4].item() == pytest.approx(np.exp(-0.5), rel=1e-5)  # 5 pixels away, one reach
    for turned in (bell.flip(0), bell.flip(1), bell.T):
        assert torch.equal(turned, bell)


def test_half_the_bits_are_not_enough_for_a_variance_and_are_not_taken():
    """Grey values near 1 that vary by 0.03: their variance is smaller than what 16 bits tell apart."""
    one, other = 0.9 + 0.1 * noise(), 0.9 + 0.1 * noise(seed=1)
    exact = local_ncc(one, other)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(local_ncc(one, other), exact)


def test_what_was_asked_in_inference_first_can_be_learnt_from_later():
    with torch.inference_mode():
        local_ncc(noise(size=27), noise(size=27))
    one = noise(size=27).requires_grad_()
    local_ncc(one, noise(seed=1, size=27)).mean().backward()
    assert one.grad.abs().max() > 0
