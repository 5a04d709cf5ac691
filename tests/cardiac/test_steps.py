"""The parts of the losses: what each one counts, what it does not, and that the truth scores best."""

import math

import pytest
import torch
from torch import nn

from medseg_cardiac.fields import compose, warp
from medseg_cardiac.settings import MotionConfig, RegistrationConfig
from medseg_cardiac.steps import MotionStep, RegistrationStep, infarct_step, length_of, outline_error, rest_of
from medseg_core.trainer import At

N, SIZE = 2, 48
PLAIN = {"passes": 1, "similarity": "l1"}


def at(progress=0.0, *, seed=0):
    return At(epoch=0, step=0, progress=progress, rng=torch.Generator().manual_seed(seed), teacher=None)


def places(size=SIZE):
    axis = torch.arange(float(size)) - (size - 1) / 2
    return torch.stack(torch.meshgrid(axis, axis, indexing="ij"))[None]


def shift(h, w, num=N):
    return torch.tensor([h, w]).reshape(1, 2, 1, 1).expand(num, 2, SIZE, SIZE).clone()


def bent(num=N):
    """A smooth motion about the middle, of 3 pixels at most."""
    x = places()
    return (-0.25 * x * torch.exp(-x.square().sum(1, keepdim=True) / 12**2)).expand(num, -1, -1, -1).clone()


def picture(num=N):
    """Smooth and alike nowhere, 0 to 1."""
    h, w = places()[:, :1], places()[:, 1:]
    return (0.5 + 0.25 * torch.sin(h / 1.5 + w / 3) + 0.25 * torch.cos(w / 2 - h / 4)).expand(num, -1, -1, -1).clone()


class Says(nn.Module):
    """A network whose answers are given, one for each call; coarser levels say the same, averaged."""

    def __init__(self, *flows, coarse=None):
        super().__init__()
        self.gain = nn.Parameter(torch.ones(()))
        self.flows, self.seen, self.coarse = flows, [], coarse

    def forward(self, moving, fixed, *, deep=False):
        flow = self.flows[min(len(self.seen), len(self.flows) - 1)] * self.gain
        self.seen.append(moving)
        if not deep:
            return flow
        coarse = [nn.functional.avg_pool2d(flow, 2**level) for level in (1, 2, 3, 4)]
        return [flow, *(coarse if self.coarse is None else self.coarse)]


def pair(flow, *, known=1.0, drawn=0.0):
    """Two frames of which the fixed one is `picture` looked up along a displacement."""
    num = len(flow)
    moving = picture(num)
    fixed = warp(moving, flow)
    far = torch.zeros(num, 1, SIZE, SIZE)
    plain = {"moving_plain": moving, "fixed_plain": fixed}
    marks = {"known": torch.full((num,), known), "drawn": torch.full((num,), drawn)}
    return {"moving": moving, "fixed": fixed, **plain, "flow": flow, **marks, "near_moving": far, "near_fixed": far}


def parts_of(model, batch, when=None, **settings):
    with torch.no_grad():
        parts = MotionStep(MotionConfig(**{**PLAIN, **settings}))(model, batch, when or at())
    return {name: value.item() for name, value in parts.items()}


def discs(*radii):
    """(1, 1, H, W) signed distance to circles, positive inside, one for each radius."""
    return [radius - places().norm(dim=1, keepdim=True) for radius in radii]


def test_the_length_of_an_error_is_in_pixels_over_what_has_weight():
    error = torch.zeros(1, 2, 1, 3)
    error[0, :, 0, 0], error[0, :, 0, 1] = torch.tensor([3.0, 4.0]), torch.tensor([50.0, 0.0])
    weight = torch.tensor([3.0, 0.0, 1.0]).reshape(1, 1, 1, 3)
    assert length_of(error, weight).item() == pytest.approx(3 * 5 / 4, abs=0.1)
    assert length_of(error, 0 * weight).item() == 0


def test_a_pixel_exactly_right_has_a_gradient_of_zero_and_not_of_nothing():
    error = torch.zeros(1, 2, 1, 1, requires_grad=True)
    length_of(error, torch.ones(1, 1, 1, 1)).backward()
    assert not error.grad.any()


def test_the_rest_of_a_shift_is_what_is_left_of_it():
    rest = rest_of(shift(3.0, -2.0), shift(1.0, 0.5))
    assert torch.allclose(rest, shift(2.0, -2.5))


def test_going_the_rest_first_and_then_what_was_before_is_the_whole():
    whole, before = bent() + shift(1.0, -0.5), 0.6 * bent() + shift(0.5, 1.5)
    gap = compose(rest_of(whole, before), before) - whole
    assert gap[..., 4:-4, 4:-4].norm(dim=1).max() < 0.05
    assert (rest_of(whole, before) - (whole - before)).norm(dim=1).max() > 0.2  # the plain difference is not it


def test_an_outline_that_has_moved_onto_the_drawn_one_is_no_error():
    moving, fixed = discs(8.0, 14.0)
    radial = places() / places().norm(dim=1, keepdim=True)
    batch = {"near_moving": moving, "near_fixed": fixed, "drawn": torch.ones(1)}
    assert outline_error((8.0 - 14.0) * radial, batch).item() < 0.02
    assert outline_error(torch.zeros(1, 2, SIZE, SIZE), batch).item() == pytest.approx(6 - 0.5, abs=0.02)
    assert outline_error((6.0 - 14.0) * radial, batch).item() == pytest.approx(2 - 0.5, abs=0.05)


def test_far_from_an_outline_nothing_is_compared():
    _, fixed = discs(8.0, 14.0)
    batch = {"near_moving": torch.where(fixed.abs() < 6, fixed, 99.0), "near_fixed": fixed, "drawn": torch.ones(1)}
    assert outline_error(torch.zeros(1, 2, SIZE, SIZE), batch).item() < 1e-3


def test_outlines_count_only_where_they_are_drawn():
    moving, fixed = (torch.cat([one, one]) for one in discs(8.0, 14.0))
    still = torch.zeros(2, 2, SIZE, SIZE)
    errors = {
        drawn: outline_error(still, {"near_moving": moving, "near_fixed": fixed, "drawn": torch.tensor(drawn)}).item()
        for drawn in ((1.0, 1.0), (1.0, 0.0), (0.0, 0.0))
    }
    assert errors[1.0, 1.0] == pytest.approx(errors[1.0, 0.0])
    assert errors[0.0, 0.0] == 0


def test_the_true_motion_is_no_error_at_any_level():
    parts = parts_of(Says(bent()), pair(bent()))
    assert parts["motion_px"] < 1e-3
    assert parts["coarse_px"] < 1e-3


def test_an_answer_that_is_off_by_a_vector_is_off_by_its_length():
    parts = parts_of(Says(bent() + shift(3.0, 4.0)), pair(bent()))
    assert parts["motion_px"] == pytest.approx(5.0, abs=0.1)
    assert parts["coarse_px"] == pytest.approx(5.0, abs=0.1)


def test_coarser_levels_answer_in_pixels_of_the_whole_picture():
    coarse = [shift(3.0, 0.0)[..., : SIZE // 2**level, : SIZE // 2**level] for level in (1, 2, 3, 4)]
    assert parts_of(Says(shift(3.0, 0.0), coarse=coarse), pair(shift(3.0, 0.0)))["coarse_px"] < 1e-3
    halved = [flow / 2**level for level, flow in enumerate(coarse, 1)]
    assert parts_of(Says(shift(3.0, 0.0), coarse=halved), pair(shift(3.0, 0.0)))["coarse_px"] > 1.5


@pytest.mark.parametrize("similarity", ["l1", "charbonnier", "ncc"])
def test_the_true_motion_makes_frames_alike(similarity):
    batch = pair(bent(), known=0.0)
    right, still = (parts_of(Says(f), batch, similarity=similarity) for f in (bent(), 0 * bent()))
    assert right["photometric"] < 0.05  # of which a correlation keeps what is allowed for noise
    assert right["photometric"] < still["photometric"] / 3
    assert right["motion_px"] == 0  # nobody knows it


def test_where_motion_is_known_grey_values_do_not_count():
    assert parts_of(Says(0 * bent()), pair(bent(), known=1.0))["photometric"] == 0


def test_the_middle_counts_more_than_the_rim():
    errors = {}
    for name, part in (("middle", (20, 28)), ("rim", (0, 8))):
        wrong = torch.zeros(N, 2, SIZE, SIZE)
        wrong[..., part[0] : part[1], part[0] : part[1]] = 4.0
        errors[name] = parts_of(Says(wrong), pair(torch.zeros(N, 2, SIZE, SIZE)))["motion_px"]
    assert errors["middle"] > 2 * errors["rim"] > 0


def test_roughness_of_a_uniform_stretch_is_its_square():
    """u = 0.1 h along h: one slope of 0.1, squared."""
    stretch = 0.1 * places() * torch.tensor([1.0, 0.0]).reshape(1, 2, 1, 1)
    assert parts_of(Says(stretch), pair(0 * stretch))["smoothness"] == pytest.approx(0.01 / 2, rel=1e-3)


def test_the_loss_is_the_weighed_sum_of_its_parts():
    moving, fixed = discs(8.0, 14.0)
    mixed = pair(bent(), drawn=1.0) | {"known": torch.tensor([1.0, 0.0])}
    mixed |= {"near_moving": torch.cat([moving] * 2), "near_fixed": torch.cat([fixed] * 2)}
    parts = parts_of(Says(0.5 * bent()), mixed, smoothness=0.3, contours=0.7, synthetic=0.5, coarse=0.2)
    assert min(parts.values()) > 0
    want = parts["photometric"] + 0.3 * parts["smoothness"] + 0.7 * parts["outline_px"]
    assert parts["loss"] == pytest.approx(want + parts["motion_px"] + 0.2 * parts["coarse_px"], rel=1e-5)
    parts = parts_of(Says(0.5 * bent()), mixed, smoothness=0.3, contours=0.0, synthetic=0.0)
    assert parts["loss"] == pytest.approx(parts["photometric"] + 0.3 * parts["smoothness"], rel=1e-5)


def test_a_network_of_one_pass_is_asked_once():
    for progress in (0.0, 0.5, 1.0):
        model = Says(bent())
        parts_of(model, pair(bent()), at(progress), passes=1)
        assert len(model.seen) == 1


def test_later_passes_begin_when_there_is_something_to_go_on_from():
    calls = {}
    for progress in (0.1, 0.9):
        models = [Says(bent()) for _ in range(40)]
        for seed, model in enumerate(models):
            parts_of(model, pair(bent()), at(progress, seed=seed), passes=2)
        calls[progress] = [len(model.seen) for model in models]
    assert set(calls[0.1]) == {1}
    again = sum(number > 1 for number in calls[0.9]) / 40
    assert 0.4 < again < 0.8


def later_pass(*flows, batch):
    """The parts of a step whose network was asked twice, and the network."""
    for seed in range(60):
        model = Says(*flows)
        parts = parts_of(model, batch, at(0.9, seed=seed), passes=2)
        if len(model.seen) == 2:
            return parts, model
    raise AssertionError("never asked twice")


def test_a_later_pass_sees_the_frame_moved_and_owes_only_the_rest():
    batch = pair(bent() + shift(1.0, 0.0))
    before = 0.5 * bent() + shift(0.0, 1.0)
    parts, model = later_pass(before, rest_of(batch["flow"], before), batch=batch)
    assert torch.allclose(model.seen[1], warp(batch["moving"], before))
    assert parts["motion_px"] < 0.01
    assert parts["smoothness"] > 0


def test_grey_values_are_compared_along_the_whole_way():
    batch = pair(shift(3.0, -2.0), known=0.0)
    parts, _ = later_pass(shift(2.0, 0.0), shift(1.0, -2.0), batch=batch)
    assert parts["photometric"] < 0.01
    assert parts_of(Says(shift(1.0, -2.0)), batch)["photometric"] > 0.05


def test_the_network_has_a_gradient_from_every_part():
    moving, fixed = discs(8.0, 14.0)
    batch = pair(bent(), drawn=1.0) | {"known": torch.tensor([1.0, 0.0])}
    batch |= {"near_moving": torch.cat([moving] * 2), "near_fixed": torch.cat([fixed] * 2)}
    for name in ("photometric", "smoothness", "motion_px", "coarse_px", "outline_px"):
        model = Says(0.5 * bent())
        MotionStep(MotionConfig(**PLAIN, contours=1.0))(model, batch, at())[name].backward()
        assert math.isfinite(model.gain.grad)
        assert model.gain.grad != 0


def test_lge_registers_by_its_pattern_though_its_contrast_is_another():
    moving = 1 - 0.6 * picture()
    batch = {"moving": moving, "fixed": warp(picture(), bent())}
    step = RegistrationStep(RegistrationConfig(smoothness=0.3))
    with torch.no_grad():
        right, still = (step(Says(flow), batch, at()) for flow in (bent(), 0 * bent()))
    assert right["photometric"] < 0.1 < still["photometric"]
    assert still["smoothness"] == 0 < right["smoothness"]
    assert right["loss"].item() == pytest.approx((right["photometric"] + 0.3 * right["smoothness"]).item())


class Draws(nn.Module):
    """Logits that are given, and in which order frames and displacement came."""

    def __init__(self, logits):
        super().__init__()
        self.logits, self.seen = logits, None

    def forward(self, ed, es, flow):
        self.seen = ed, es, flow
        return self.logits


def infarct_batch():
    myo, infarct = torch.zeros(2, N, 1, 16, 16, dtype=torch.uint8)
    myo[..., 4:12, 4:12], infarct[..., 4:8, 4:8] = 1, 1
    frames = {"fixed": torch.zeros(N, 1, 16, 16), "moving": torch.ones(N, 1, 16, 16)}
    frames["flow"] = torch.full((N, 2, 16, 16), 2.0)
    return {**frames, "myo": myo, "infarct": infarct}


def test_the_drawn_infarct_is_no_loss_and_its_opposite_a_large_one():
    batch = infarct_batch()
    right = 40.0 * batch["infarct"] - 20
    assert infarct_step(Draws(right), batch, at())["loss"] < 0.01
    assert infarct_step(Draws(-right), batch, at())["loss"] > 1


def test_half_the_infarct_has_a_dice_of_two_thirds():
    batch = infarct_batch()
    half = torch.full((N, 1, 16, 16), -20.0)
    half[..., 4:8, 4:6] = 20
    parts = infarct_step(Draws(half), batch, at())
    assert parts["dice_loss"].item() == pytest.approx(1 / 3, abs=0.02)
    assert parts["loss"].item() == pytest.approx((parts["dice_loss"] + parts["focal"]).item() / 2)


def test_what_is_said_outside_the_wall_does_not_count():
    batch = infarct_batch()
    calm = torch.zeros(N, 1, 16, 16)
    wild = torch.where(batch["myo"] > 0, calm, 15.0)
    losses = [infarct_step(Draws(logits), batch, at())["loss"].item() for logits in (calm, wild)]
    assert losses[0] == losses[1] > 0.1


def test_the_infarct_net_is_given_end_diastole_first():
    model, batch = Draws(torch.zeros(N, 1, 16, 16)), infarct_batch()
    infarct_step(model, batch, at())
    assert [frame.mean().item() for frame in model.seen] == [0, 1, 2]  # fixed, moving, displacement
