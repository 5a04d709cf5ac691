import math

import pytest
import torch

from medseg_core.losses import cross_entropy, dice_balanced_ce, dice_loss


def test_each_class_of_a_case_counts_the_same():
    probs = torch.tensor([[[0.5, 0.5, 0.5, 0.2], [0.5, 0.5, 0.5, 0.8]]], dtype=torch.float64)  # three of 0, one of 1
    label = torch.tensor([[0, 0, 0, 1]])
    logits = probs.log()
    balanced = (math.log(2) - math.log(0.8)) / 2
    expected = dice_loss(logits, label) + (cross_entropy(logits, label) + balanced) / 2
    assert dice_balanced_ce(logits, label).item() == pytest.approx(expected.item(), abs=1e-12)


def test_a_class_that_was_not_annotated_counts_nowhere():
    logits = torch.randn(1, 3, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    label = torch.tensor([[0, 0, 1, 1, 2, 2]])
    known = torch.tensor([[True, True, False]])
    merged = torch.stack([logits[:, [0, 2]].logsumexp(1), logits[:, 1]], 1)  # background and what nobody drew are one
    expected = dice_balanced_ce(merged, label.masked_fill(label == 2, 0))
    assert dice_balanced_ce(logits, label, known=known).item() == pytest.approx(expected.item(), abs=1e-12)
