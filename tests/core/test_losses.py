"""Answers by hand, from torch.nn.functional and from MONAI."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from medseg_core import blocks
from medseg_core.errors import MedsegError
from medseg_core.losses import (
    LOSSES,
    bce,
    combine,
    cross_entropy,
    dice_bce,
    dice_ce,
    dice_loss,
    focal_loss,
    iou_loss,
    multilabel_dice,
    multilabel_focal,
    multilabel_iou,
    multilabel_tversky,
    tversky_loss,
)

SOFTMAX = list(LOSSES["softmax"].values())
SIGMOID = list(LOSSES["sigmoid"].values())
CLOSE = {"rtol": 1e-10, "atol": 1e-12}


def logits_of(probs):
    """(K, V) probabilities as logits of one case, shape (1, K, V)."""
    return torch.tensor(probs, dtype=torch.float64).log()[None]


def random_case(*, num=2, classes=4, size=(5, 6), seed=0, dtype=torch.float64):
    rng = torch.Generator().manual_seed(seed)
    logits = torch.randn((num, classes, *size), generator=rng, dtype=dtype)
    label = torch.randint(0, classes, (num, *size), generator=rng)
    return logits, label


def random_target(*, num=2, size=(5, 6)):
    logits, label = random_case(num=num, classes=3, size=size)
    return logits, torch.stack([label == 0, label != 1, label == 2], 1)  # channels that overlap


@pytest.fixture(params=[1, 7, 2**18])
def block(request, monkeypatch):
    """Every loss has to come out the same whatever the block."""
    monkeypatch.setattr(blocks, "BLOCK", request.param)
    monkeypatch.setattr(blocks, "MAX_BLOCKS", 10**9)


# Two voxels with probabilities (.5 .25 .25) and (.2 .2 .6), label 1 and 2; a third, (.8 .1 .1), is background.
PROBS = [[0.5, 0.2, 0.8], [0.25, 0.2, 0.1], [0.25, 0.6, 0.1]]
LABEL = torch.tensor([[1, 2, 0]])


@pytest.mark.usefixtures("block")
class TestByHand:
    def test_cross_entropy_is_minus_the_mean_log_probability(self):
        expected = -(math.log(0.25) + math.log(0.6) + math.log(0.8)) / 3
        assert cross_entropy(logits_of(PROBS), LABEL).item() == pytest.approx(expected)

    def test_dice_leaves_background_out(self):
        one = 1 - (2 * 0.25 + 1) / (0.55 + 1 + 1)
        two = 1 - (2 * 0.6 + 1) / (0.95 + 1 + 1)
        assert dice_loss(logits_of(PROBS), LABEL).item() == pytest.approx((one + two) / 2)

    def test_dice_leaves_absent_classes_out(self):
        label = torch.tensor([[1, 0, 0]])
        assert dice_loss(logits_of(PROBS), label, smooth=0).item() == pytest.approx(1 - 2 * 0.25 / 1.55)

    def test_dice_of_a_case_without_foreground_is_zero_and_still_has_a_gradient(self):
        logits = logits_of(PROBS).requires_grad_()
        loss = dice_loss(logits, torch.zeros(1, 3, dtype=torch.int64))
        loss.backward()
        assert loss.item() == 0
        assert logits.grad.abs().max() == 0

    def test_dice_is_a_mean_over_cases_of_a_mean_over_classes(self):
        logits = logits_of(PROBS).expand(2, -1, -1)
        label = torch.tensor([[1, 2, 0], [0, 0, 2]])
        first = ((1 - 2 * 0.25 / 1.55) + (1 - 2 * 0.6 / 1.95)) / 2
        second = 1 - 2 * 0.1 / 1.95
        assert dice_loss(logits, label, smooth=0).item() == pytest.approx((first + second) / 2)

    def test_iou_is_the_overlap_over_the_union(self):
        one = 1 - 0.25 / (0.55 + 1 - 0.25)
        two = 1 - 0.6 / (0.95 + 1 - 0.6)
        assert iou_loss(logits_of(PROBS), LABEL, smooth=0).item() == pytest.approx((one + two) / 2)

    def test_alpha_weighs_false_positives_and_beta_false_negatives(self):
        label = torch.tensor([[1, 0, 0]])  # of class 1: p 0.25 on its voxel, 0.3 elsewhere, 0.75 missed
        expected = 1 - 0.25 / (0.25 + 0.2 * 0.3 + 0.9 * 0.75)
        loss = tversky_loss(logits_of(PROBS), label, alpha=0.2, beta=0.9, smooth=0)
        assert loss.item() == pytest.approx(expected)

    def test_focal_fades_what_is_learnt(self):
        expected = -sum((1 - p) ** 2 * math.log(p) for p in (0.25, 0.6, 0.8)) / 3
        assert focal_loss(logits_of(PROBS), LABEL, gamma=2.0).item() == pytest.approx(expected)

    def test_dice_ce_is_the_sum_of_both(self):
        logits, label = random_case()
        torch.testing.assert_close(dice_ce(logits, label), dice_loss(logits, label) + cross_entropy(logits, label))

    def test_sigmoid_losses_of_one_channel(self):
        logits = torch.tensor([[[0.0, math.log(3)]]], dtype=torch.float64)  # p 0.5 and 0.75
        target = torch.tensor([[[0, 1]]], dtype=torch.uint8)
        assert bce(logits, target).item() == pytest.approx(-(math.log(0.5) + math.log(0.75)) / 2)
        assert multilabel_dice(logits, target).item() == pytest.approx(1 - (2 * 0.75 + 1) / (1.25 + 1 + 1))
        assert multilabel_iou(logits, target, smooth=0).item() == pytest.approx(1 - 0.75 / 1.5)
        tversky = multilabel_tversky(logits, target, alpha=0.2, beta=0.9, smooth=0)
        assert tversky.item() == pytest.approx(1 - 0.75 / (0.75 + 0.2 * 0.5 + 0.9 * 0.25))
        focal = multilabel_focal(logits, target, gamma=2.0, alpha=0.25)
        expected = -(0.75 * 0.5**2 * math.log(0.5) + 0.25 * 0.25**2 * math.log(0.75)) / 2
        assert focal.item() == pytest.approx(expected)
        torch.testing.assert_close(dice_bce(logits, target), multilabel_dice(logits, target) + bce(logits, target))

    def test_a_soft_target_is_taken_as_it_is(self):
        logits, target = torch.zeros(1, 1, 1, dtype=torch.float64), torch.full((1, 1, 1), 0.25)
        assert bce(logits, target).item() == pytest.approx(math.log(2))
        assert multilabel_dice(logits, target, smooth=0).item() == pytest.approx(1 - 2 * 0.125 / 0.75)

    def test_a_channel_absent_from_the_case_leaves_dice_but_not_bce(self):
        logits = torch.zeros(1, 2, 2, dtype=torch.float64)
        target = torch.tensor([[[1, 1], [0, 0]]])
        assert multilabel_dice(logits, target, smooth=0).item() == pytest.approx(1 - 2 / 3)
        assert bce(logits, target).item() == pytest.approx(math.log(2))


@pytest.mark.usefixtures("block")
class TestPartialAnnotation:
    """Marginal loss: classes nobody drew become one with background (Shi et al., 2021)."""

    known = torch.tensor([[True, True, False]])

    def test_background_may_be_any_class_that_was_not_annotated(self):
        label = torch.tensor([[1, 0, 0]])
        expected = -(math.log(0.25) + math.log(0.2 + 0.6) + math.log(0.8 + 0.1)) / 3
        assert cross_entropy(logits_of(PROBS), label, known=self.known).item() == pytest.approx(expected)

    def test_dice_counts_annotated_classes_only(self):
        loss = dice_loss(logits_of(PROBS), torch.tensor([[1, 2, 0]]), smooth=0, known=self.known)
        assert loss.item() == pytest.approx(1 - 2 * 0.25 / 1.55)

    def test_focal_on_background_counts_all_that_was_not_annotated(self):
        p = 0.2 + 0.6
        loss = focal_loss(logits_of([[0.2], [0.2], [0.6]]), torch.tensor([[0]]), known=self.known)
        assert loss.item() == pytest.approx(-((1 - p) ** 2) * math.log(p))

    def test_each_case_has_its_own_annotated_classes(self):
        logits, label = logits_of(PROBS).expand(2, -1, -1), torch.tensor([[1, 0, 0], [1, 0, 0]])
        known = torch.tensor([[True, True, False], [True, True, True]])
        both = dice_ce(logits, label, known=known)
        apart = [dice_ce(logits[:1], label[:1], known=known[i : i + 1]) for i in range(2)]
        torch.testing.assert_close(both, (apart[0] + apart[1]) / 2)

    @pytest.mark.parametrize("loss", SOFTMAX)
    def test_all_classes_annotated_is_the_plain_loss(self, loss):
        logits, label = random_case()
        torch.testing.assert_close(loss(logits, label, known=torch.ones(2, 4, dtype=torch.bool)), loss(logits, label))

    @pytest.mark.parametrize("loss", SOFTMAX)
    def test_it_equals_the_loss_on_merged_logits(self, loss):
        logits, label = random_case()
        label[label == 2] = 0
        known = torch.tensor([[True, True, False, True]]).expand(2, -1)
        rest = torch.logsumexp(logits[:, [0, 2]], 1, keepdim=True)
        merged, ids = torch.cat([rest, logits[:, [1, 3]]], 1), torch.tensor([0, 1, 0, 2])
        torch.testing.assert_close(loss(logits, label, known=known), loss(merged, ids[label]))

    def test_the_id_of_a_class_said_to_be_unknown_counts_as_background(self):
        logits, label = random_case()
        known = torch.tensor([[True, True, False, True]]).expand(2, -1)
        emptied = torch.where(label == 2, 0, label)
        torch.testing.assert_close(dice_ce(logits, label, known=known), dice_ce(logits, emptied, known=known))

    def test_background_counts_whatever_its_column_says(self):
        logits, label = random_case()
        known = torch.tensor([[True, True, False, True], [True, False, True, True]])
        denied = known.clone()
        denied[:, 0] = False
        torch.testing.assert_close(dice_ce(logits, label, known=known), dice_ce(logits, label, known=denied))

    @pytest.mark.parametrize("loss", SIGMOID)
    def test_channels_that_were_not_annotated_count_nowhere(self, loss):
        logits, target = random_target()
        known = torch.tensor([[True, False, True]]).expand(2, -1)
        torch.testing.assert_close(loss(logits, target, known=known), loss(logits[:, ::2], target[:, ::2]))

    @pytest.mark.parametrize("loss", SIGMOID)
    def test_a_case_without_annotated_channels_has_loss_zero(self, loss):
        logits, target = random_target(num=1)
        assert loss(logits, target, known=torch.zeros(1, 3, dtype=torch.bool)).item() == 0


@pytest.mark.usefixtures("block")
class TestIgnore:
    @pytest.mark.parametrize("loss", SOFTMAX)
    @pytest.mark.parametrize("ignore", [255, -1, 2])
    def test_ignored_voxels_count_nowhere(self, loss, ignore):
        logits, label = random_case(num=1, size=(9,))
        label[label == 2] = 1
        marked = label.clone()
        marked[:, 5:] = ignore
        torch.testing.assert_close(loss(logits, marked, ignore=ignore), loss(logits[..., :5], label[..., :5]))

    @pytest.mark.parametrize("loss", SOFTMAX)
    def test_a_case_of_ignored_voxels_alone_has_loss_zero(self, loss):
        logits, label = random_case(num=1)
        assert loss(logits, torch.full_like(label, 255), ignore=255).item() == 0

    @pytest.mark.parametrize("loss", SOFTMAX)
    def test_ignored_voxels_get_no_gradient(self, loss):
        logits, label = random_case(num=1, size=(9,))
        label[:, 5:] = 255
        logits.requires_grad_()
        loss(logits, label, ignore=255).backward()
        assert logits.grad[..., 5:].abs().max() == 0
        assert logits.grad[..., :5].abs().min() > 0


@pytest.mark.usefixtures("block")
class TestGradients:
    known = torch.tensor([[True, True, False, True], [True, True, True, False]])

    @pytest.mark.parametrize("loss", SOFTMAX)
    @pytest.mark.parametrize("how", [{}, {"ignore": 3}, {"known": known}], ids=str)
    def test_softmax_losses_have_the_gradient_of_differences(self, loss, how):
        logits, label = random_case(size=(5,))
        assert torch.autograd.gradcheck(lambda x: loss(x, label, **how), logits.requires_grad_())

    @pytest.mark.parametrize("loss", SIGMOID)
    @pytest.mark.parametrize("how", [{}, {"known": known[:, 1:]}], ids=str)
    def test_sigmoid_losses_have_the_gradient_of_differences(self, loss, how):
        logits, target = random_target(size=(5,))
        assert torch.autograd.gradcheck(lambda x: loss(x, target, **how), logits.requires_grad_())

    def test_unknown_classes_share_the_pull_of_background(self):
        logits = logits_of([[0.5], [0.1], [0.4]]).requires_grad_()
        cross_entropy(logits, torch.tensor([[0]]), known=torch.tensor([[True, True, False]])).backward()
        # -log((a + c) / (a + b + c)): p minus the share of the merged class
        expected = torch.tensor([0.5 - 0.5 / 0.9, 0.1, 0.4 - 0.4 / 0.9], dtype=torch.float64)
        torch.testing.assert_close(logits.grad[0, :, 0], expected)

    @pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
    def test_the_gradient_keeps_type_and_layout(self, layout):
        logits, label = random_case(dtype=torch.bfloat16)
        logits = logits.to(memory_format=layout).requires_grad_()
        dice_ce(logits, label).backward()
        assert logits.grad.dtype == torch.bfloat16
        assert logits.grad.is_contiguous(memory_format=layout)


@pytest.mark.usefixtures("block")
@pytest.mark.parametrize("size", [(7, 8), (3, 4, 5)])
class TestPeers:
    def test_cross_entropy_is_torchs(self, size):
        logits, label = random_case(size=size)
        torch.testing.assert_close(cross_entropy(logits, label), F.cross_entropy(logits, label), **CLOSE)

    def test_bce_is_torchs(self, size):
        logits, target = random_target(size=size)
        expected = F.binary_cross_entropy_with_logits(logits, target.double())
        torch.testing.assert_close(bce(logits, target), expected, **CLOSE)

    def test_dice_and_dice_ce_are_monais_where_every_class_is_present(self, size):
        monai = pytest.importorskip("monai.losses")
        logits, label = random_case(size=size)
        assert (F.one_hot(label).flatten(1, -2).sum(1) > 0).all()
        how = {"softmax": True, "to_onehot_y": True, "include_background": False, "smooth_nr": 0.5, "smooth_dr": 0.5}
        for ours, theirs in ((dice_loss, monai.DiceLoss), (dice_ce, monai.DiceCELoss)):
            got, grad = value_and_grad(lambda x, f=ours: f(x, label, smooth=0.5), logits)
            expected, other = value_and_grad(lambda x, f=theirs: f(**how)(x, label[:, None]), logits)
            torch.testing.assert_close(got, expected, rtol=1e-6, atol=0)  # MONAI makes its one-hot float32
            torch.testing.assert_close(grad, other, rtol=1e-6, atol=1e-9)

    def test_tversky_is_monais(self, size):
        monai = pytest.importorskip("monai.losses")
        logits, label = random_case(size=size)
        how = {"softmax": True, "to_onehot_y": True, "include_background": False, "smooth_nr": 1, "smooth_dr": 1}
        theirs = monai.TverskyLoss(alpha=0.2, beta=0.9, **how)(logits, label[:, None])
        torch.testing.assert_close(tversky_loss(logits, label, alpha=0.2, beta=0.9), theirs, rtol=1e-6, atol=0)

    def test_focal_is_monais_times_the_classes_it_divides_by(self, size):
        monai = pytest.importorskip("monai.losses")
        logits, label = random_case(size=size)
        theirs = monai.FocalLoss(use_softmax=True, to_onehot_y=True, gamma=2.0)(logits, label[:, None]) * 4
        torch.testing.assert_close(focal_loss(logits, label), theirs.double(), rtol=1e-6, atol=0)

    def test_multilabel_dice_and_focal_are_monais(self, size):
        monai = pytest.importorskip("monai.losses")
        logits, target = random_target(size=size)
        dice = monai.DiceLoss(sigmoid=True, smooth_nr=1, smooth_dr=1)(logits, target.double())
        torch.testing.assert_close(multilabel_dice(logits, target), dice, **CLOSE)
        focal = monai.FocalLoss(gamma=2.0, alpha=0.25)(logits, target.double())
        torch.testing.assert_close(multilabel_focal(logits, target, alpha=0.25), focal.double(), rtol=1e-6, atol=0)


def value_and_grad(loss, logits):
    logits = logits.detach().clone().requires_grad_()
    value = loss(logits)
    value.backward()
    return value.detach(), logits.grad


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("head", LOSSES)
def test_sums_of_half_precision_logits_are_float32(head, dtype):
    logits, label = random_case(size=(64, 64), dtype=torch.float32)
    logits = logits.to(dtype)
    target = label if head == "softmax" else F.one_hot(label).movedim(-1, 1)
    for loss in LOSSES[head].values():
        got = loss(logits, target)
        assert got.dtype == torch.float32
        torch.testing.assert_close(got.double(), loss(logits.double(), target), rtol=1e-5, atol=1e-6)


def test_logits_of_any_size_give_finite_losses_and_gradients():
    logits = torch.tensor([[[80.0, -80.0, 1e4], [-80.0, 80.0, -1e4]]])
    for head, target in (("softmax", torch.tensor([[1, 0, 1]])), ("sigmoid", torch.tensor([[[0, 1, 0], [1, 0, 1]]]))):
        for loss in LOSSES[head].values():
            value, grad = value_and_grad(lambda x, f=loss, t=target: f(x, t), logits)
            assert value.isfinite()
            assert grad.isfinite().all()


def test_the_gradient_of_a_batch_is_the_mean_of_those_of_its_parts():
    logits, label = random_case(num=4)
    label[0] = 0
    label[1, :3] = 255
    whole = value_and_grad(lambda x: dice_ce(x, label, ignore=255), logits)[1]
    parts = [
        value_and_grad(lambda x, i=i: dice_ce(x, label[i : i + 1], ignore=255), logits[i : i + 1])[1] for i in range(4)
    ]
    torch.testing.assert_close(whole, torch.cat(parts) / 4, **CLOSE)


class Storages(TorchDispatchMode):
    """The memory of every tensor of at least `num` elements that some operation made."""

    def __init__(self, num):
        super().__init__()
        self.num, self.made = num, {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in torch.utils._pytree.tree_leaves(out):
            if isinstance(tensor, torch.Tensor) and tensor.numel() >= self.num:
                self.made[tensor.untyped_storage().data_ptr()] = tensor
        return out


@pytest.mark.parametrize(("head", "name"), [("softmax", "dice_ce"), ("sigmoid", "dice"), ("sigmoid", "focal")])
def test_beside_the_gradient_nothing_of_its_size_is_made(head, name, monkeypatch):
    monkeypatch.setattr(blocks, "BLOCK", 64)
    monkeypatch.setattr(blocks, "MAX_BLOCKS", 100)
    features, label = random_case(classes=8, size=(16, 16), dtype=torch.bfloat16)
    bias = torch.zeros(8, 1, 1, dtype=torch.bfloat16, requires_grad=True)
    target = label if head == "softmax" else F.one_hot(label).movedim(-1, 1).to(torch.uint8).contiguous()
    logits = features + bias
    with Storages(logits.numel() // 4) as storages:
        LOSSES[head][name](logits, target).backward()
    made = set(storages.made) - {logits.data_ptr(), target.data_ptr()}
    assert len(made) == 1


def test_a_weighted_combination_is_the_weighted_sum():
    logits, label = random_case()
    loss = combine({"dice": 2.0, "focal": 0.5})
    expected = 2.0 * dice_loss(logits, label, ignore=1) + 0.5 * focal_loss(logits, label, ignore=1)
    torch.testing.assert_close(loss(logits, label, ignore=1), expected)
    logits, target = random_target()
    expected = multilabel_dice(logits, target) + 3 * bce(logits, target)
    torch.testing.assert_close(combine({"dice": 1, "bce": 3}, head="sigmoid")(logits, target), expected)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda x, y: dice_ce(x, y[:, :3]), r"\(2, 3, 6\).*make it \(2, 5, 6\)"),
        (bce, r"make it \(2, 4, 5, 6\)"),
        (lambda x, y: dice_ce(x[:, :1], y), "sigmoid"),
        (lambda x, y: dice_ce(x, y, known=torch.ones(2, 3, dtype=torch.bool)), r"torch.bool \(2, 4\)"),
        (lambda x, y: bce(x[:, :, 0, 0], y), r"\(2, 4\); make it \(cases, channels"),
        (lambda x, y: combine({"dise": 1.0}), "did you mean 'dice'"),
        (lambda x, y: combine({"margin": 1.0}), "there are dice_ce, ce"),
        (lambda *_: combine({}), "at least one"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_fix(call, says):
    logits, label = random_case()
    with pytest.raises(MedsegError, match=says):
        call(logits, label)
