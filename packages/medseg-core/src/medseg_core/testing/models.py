"""What every segmentation network must keep, as a class to inherit from.

```python
class TestUNet(ModelChecks):
    model = UNet
    small: ClassVar = {"in_channels": 2, "num_classes": 3, "widths": (4, 8)}
    shapes = ((2, 2, 16, 24), (1, 2, 8, 8))
    bad_shapes = ((1, 2, 15, 16),)
    num_parameters = (({}, 7_769_270), ({"num_classes": 117}, 7_769_237))
```
pytest finds the checks by their names and gives `tmp_path`; `$MEDSEG_TEST_DEVICE` says where the rest runs.
"""

import itertools
import math
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from medseg_core.checkpoint import Card, load_model, save_model
from medseg_core.errors import MedsegError


class ModelChecks:
    """Inherit as `Test...` and fill in the names below; override `build` where a model is not made by its class alone.

    Attributes:
        model: the class, made by `model(**arguments)`.
        small: arguments of a small one, `num_classes` among them; the counts aside, all is checked on it.
        shapes: inputs (N, C, ...) that the small one takes.
        bad_shapes: inputs that it refuses with a MedsegError whose sizes after "try" ("240x240 or 256x256") work.
        num_parameters: (arguments, how many) for the real ones.
    """

    model: ClassVar[type[nn.Module]]
    small: ClassVar[Mapping[str, Any]]
    shapes: ClassVar[Sequence[tuple[int, ...]]]
    bad_shapes: ClassVar[Sequence[tuple[int, ...]]] = ()
    num_parameters: ClassVar[Sequence[tuple[Mapping[str, Any], int]]] = ()

    def build(self) -> nn.Module:
        """The small model."""
        return self.model(**self.small)

    def test_logits_lie_on_the_grid_of_the_input(self) -> None:
        model = self._model()
        for shape in self.shapes:
            want = (shape[0], self.small["num_classes"], *shape[2:])
            got = tuple(model(self._input(shape)).shape)
            assert got == want, f"{shape} gave {got}, not {want}"

    def test_every_parameter_gets_a_gradient(self) -> None:
        for model in (self._model(), self._model().train()):
            model(self._input(self.shapes[0])).square().sum().backward()
            for name, parameter in model.named_parameters():
                assert parameter.grad is not None, f"{name} takes no part"
                # a bias before a batch norm has gradient 0 in training, by its nature
                assert model.training or parameter.grad.any(), f"{name} has gradient 0"

    def test_no_tensor_is_saved_twice(self) -> None:
        places: dict[int, str] = {}
        for name, tensor in self._model().state_dict().items():
            other = places.setdefault(tensor.untyped_storage().data_ptr(), name)
            assert other == name, f"{name} and {other} share memory"

    def test_is_repeatable_in_eval(self) -> None:
        model, x = self._model(), self._input(self.shapes[0])
        assert torch.equal(model(x), model(x))

    def test_a_case_does_not_depend_on_its_companions_in_eval(self) -> None:
        model = self._model()
        x = self._input((4, *self.shapes[0][1:]))
        x[1:] *= 10
        alone, among = model(x[:1]), model(x)[:1]
        assert torch.allclose(alone, among, rtol=1e-3, atol=1e-3 * float(alone.detach().std()))

    def test_a_bad_shape_is_refused_with_shapes_that_work(self) -> None:
        model = self._model()
        for shape in self.bad_shapes:
            message = self._refusal(model, shape)
            assert "x".join(map(str, shape[2:])) in message, f"{message!r} does not name {shape}"
            sizes = re.findall(r"\d+(?:x\d+)+", message.partition("try")[2])
            assert sizes, f"{message!r} offers no size after 'try'"
            for size in sizes:
                model(self._input((*shape[:2], *map(int, size.split("x")))))

    def test_its_card_rebuilds_it(self, tmp_path: Path) -> None:
        model, x = self._model(), self._input(self.shapes[0])
        card = Card(package="test", version="0", model="checked", arguments=self.small)
        save_model(tmp_path / "model.safetensors", model, card)
        again, read = load_model(tmp_path / "model.safetensors", {"checked": self.model})
        assert read.model == "checked"
        assert torch.equal(again.to(x.device)(x), model(x))

    def test_has_the_stated_number_of_parameters(self) -> None:
        for arguments, want in self.num_parameters:
            with torch.device("meta"):
                got = sum(parameter.numel() for parameter in self.model(**arguments).parameters())
            assert got == want, f"{self.model.__name__}({arguments}) has {got:,}, not {want:,}"

    def _model(self) -> nn.Module:
        """In eval mode, with running statistics and parameters that are not those of a start."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = self.build()
        noise = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for tensor in itertools.chain(model.parameters(), model.buffers()):
                if tensor.is_floating_point():
                    tensor.add_(0.1 * torch.rand(tensor.shape, generator=noise))
        return model.eval().to(_device())

    def _input(self, shape: Sequence[int]) -> Tensor:
        values = torch.randn(math.prod(shape), generator=torch.Generator().manual_seed(2))
        return values.reshape(tuple(shape)).to(_device())

    def _refusal(self, model: nn.Module, shape: tuple[int, ...]) -> str:
        try:
            model(self._input(shape))
        except MedsegError as error:
            return str(error)
        raise AssertionError(f"{shape} was not refused")


def _device() -> str:
    return os.environ.get("MEDSEG_TEST_DEVICE", "cpu")
