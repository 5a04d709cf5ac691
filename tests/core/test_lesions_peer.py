"""Pairs of lesions and their panoptic quality as MONAI and panoptica have them, lesions found as SimpleITK's parts."""

import numpy as np
import pytest

from medseg_core.lesions import lesion_metrics
from medseg_core.masks import components

ABOVE_A_HALF = float(np.nextafter(0.5, 1))  # MONAI asks for more than its threshold


def pair(seed: int, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Boxes, most of them moved, some on one side only; those of the mask are cut at some planes."""
    rng = np.random.default_rng(seed)
    mask, label = np.zeros((2, *shape), np.uint8)
    for n in range(24):
        size = rng.integers(3, 8, len(shape))
        begin = rng.integers(1, np.array(shape) - size - 1)
        for side, is_there in ((label, n % 6 > 0), (mask, n % 5 > 0)):
            moved = begin + rng.integers(-1, 2, len(shape))
            if is_there:
                side[tuple(map(slice, moved, moved + size))] = 1
    mask[..., ::11] = 0
    return mask, label


CASES = [(seed, shape) for seed in (0, 1, 2) for shape in ((80, 70), (40, 36, 33))]


@pytest.mark.parametrize(("seed", "shape"), CASES)
def test_panoptic_quality_is_monais(seed, shape):
    torch, monai = pytest.importorskip("torch"), pytest.importorskip("monai.metrics.panoptic_quality")
    mask, label = pair(seed, shape)
    sides = [torch.from_numpy(components(side).astype(np.int32)) for side in (mask, label)]
    found = lesion_metrics(mask, label, ids=[1], spacing=shape, min_iou=ABOVE_A_HALF)
    true, invented, missed, _ = monai.compute_panoptic_quality(*sides, output_confusion_matrix=True).tolist()
    assert true > 0
    assert (found["lesions_found"], found["lesions_invented"], found["lesions_missed"]) == (true, invented, missed)
    assert found["lesion_pq"] == pytest.approx(monai.compute_panoptic_quality(*sides).item(), rel=1e-5)


@pytest.mark.parametrize(("seed", "shape"), CASES)
@pytest.mark.parametrize("min_iou", [0.2, 0.5])
def test_pairs_and_panoptic_quality_are_panopticas(seed, shape, min_iou):
    peer = pytest.importorskip("panoptica")
    mask, label = pair(seed, shape)
    evaluator = peer.Panoptica_Evaluator(
        expected_input=peer.InputType.SEMANTIC,
        instance_approximator=peer.ConnectedComponentsInstanceApproximator(),
        instance_matcher=peer.MaxBipartiteMatching(matching_threshold=min_iou),
    )
    (expected,) = evaluator.evaluate(mask, label).values()
    connectivity = {2: 4, 3: 26}[len(shape)]  # panoptica's own
    found = lesion_metrics(mask, label, ids=[1], spacing=shape, connectivity=connectivity, min_iou=min_iou)
    assert (found["lesions_found"], found["lesions_invented"]) == (expected.tp, expected.fp)
    assert found["lesions_missed"] == expected.fn
    assert found["lesion_f1"] == pytest.approx(expected.rq)
    assert found["lesion_pq"] == pytest.approx(expected.pq)


@pytest.mark.parametrize(("seed", "shape"), CASES)
def test_lesions_found_are_those_of_simpleitks_parts(seed, shape):
    sitk = pytest.importorskip("SimpleITK")
    mask, label = pair(seed, shape)
    found = lesion_metrics(mask, label, ids=[1], spacing=shape)
    shares = []
    for side, other in ((label, mask), (mask, label)):
        parts = sitk.GetArrayFromImage(sitk.ConnectedComponent(sitk.GetImageFromArray(side), True))
        shares.append(len(np.unique(parts[(parts > 0) & (other > 0)])) / parts.max())
    sensitivity, precision = shares
    assert found["lesion_sensitivity"] == sensitivity < 1
    assert found["lesion_precision"] == precision
    assert found["lesion_f1"] == pytest.approx(2 * sensitivity * precision / (sensitivity + precision))
