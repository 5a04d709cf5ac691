"""Each of `ModelChecks` turns red on a network that is broken in just that way, and none on a sound one."""

from typing import ClassVar

import pytest
import torch
from torch import nn

from medseg_core.errors import MedsegError
from medseg_core.testing.models import ModelChecks


class Sound(nn.Module):
    """Two convolutions that halve and double: 3 * 4 * 9 + 4 + 4 * 2 + 2 parameters."""

    def __init__(self, in_channels=3, num_classes=2):
        super().__init__()
        self.fold = nn.Conv2d(in_channels, 4, 3, padding=1)
        self.head = nn.Conv2d(4, num_classes, 1)

    def forward(self, x):
        h, w = x.shape[2:]
        if h % 2 or w % 2 or not h * w:
            raise MedsegError(f"{h}x{w} must be even; try {h + h % 2}x{w + w % 2}")
        return self.head(self.fold(x).relu())


class Unused(Sound):
    def __init__(self, **arguments):
        super().__init__(**arguments)
        self.spare = nn.Parameter(torch.ones(2))


class Tied(Sound):
    def __init__(self, **arguments):
        super().__init__(**arguments)
        self.again = self.head.weight


class Noisy(Sound):
    def forward(self, x):
        return super().forward(x) + torch.rand(())


class Sociable(Sound):
    def forward(self, x):
        y = super().forward(x)
        return y - y.mean(0, keepdim=True)


class Smaller(Sound):
    def forward(self, x):
        return super().forward(x)[..., 1:]


class Forgetful(Sound):
    def __init__(self, in_channels=3, num_classes=2, scale=1.0):
        super().__init__(in_channels, num_classes)
        self.scale = scale

    def forward(self, x):
        return super().forward(x) * self.scale


class Lenient(Sound):
    def forward(self, x):
        return self.head(self.fold(x).relu())


class Unhelpful(Sound):
    def forward(self, x):
        try:
            return super().forward(x)
        except MedsegError:
            h, w = x.shape[2:]
            raise MedsegError(f"{h}x{w} is odd; try 7x7") from None


class Checks(ModelChecks):
    model = Sound
    small: ClassVar = {"in_channels": 3, "num_classes": 2}
    shapes = ((2, 3, 8, 6), (1, 3, 4, 4))
    bad_shapes = ((1, 3, 7, 8),)
    num_parameters = (({}, 3 * 4 * 9 + 4 + 4 * 2 + 2),)


def run(checks, name, tmp_path):
    arguments = [tmp_path] if name == "test_its_card_rebuilds_it" else []
    getattr(checks, name)(*arguments)


NAMES = [name for name in dir(ModelChecks) if name.startswith("test_")]


@pytest.mark.parametrize("name", NAMES)
def test_a_sound_network_passes(name, tmp_path):
    run(Checks(), name, tmp_path)


@pytest.mark.parametrize(
    ("network", "name"),
    [
        (Smaller, "test_logits_lie_on_the_grid_of_the_input"),
        (Unused, "test_every_parameter_gets_a_gradient"),
        (Tied, "test_no_tensor_is_saved_twice"),
        (Noisy, "test_is_repeatable_in_eval"),
        (Sociable, "test_a_case_does_not_depend_on_its_companions_in_eval"),
        (Lenient, "test_a_bad_shape_is_refused_with_shapes_that_work"),
        (Unused, "test_has_the_stated_number_of_parameters"),
    ],
)
def test_a_broken_network_fails_its_check(network, name, tmp_path):
    checks = Checks()
    checks.model = network
    with pytest.raises(AssertionError):
        run(checks, name, tmp_path)


def test_a_refusal_that_offers_what_does_not_work_fails():
    checks = Checks()
    checks.model = Unhelpful
    with pytest.raises(MedsegError, match="7x7 is odd"):
        checks.test_a_bad_shape_is_refused_with_shapes_that_work()


def test_a_network_whose_card_leaves_something_out_fails(tmp_path):
    checks = Checks()
    checks.model = Forgetful
    checks.build = lambda: Forgetful(**checks.small, scale=2.0)
    with pytest.raises(AssertionError):
        checks.test_its_card_rebuilds_it(tmp_path)
