"""Structural similarity beside scikit-image's."""

import pytest
import torch

from medseg_sem_al.objectives import ssim

metrics = pytest.importorskip("skimage.metrics")


@pytest.mark.parametrize("scale", [1.0, 255.0])
def test_ssim_is_that_of_scikit_image(scale):
    rng = torch.Generator().manual_seed(0)
    x = scale * torch.rand(1, 1, 33, 47, generator=rng, dtype=torch.float64)
    y = x + scale * 0.3 * torch.randn(x.shape, generator=rng, dtype=torch.float64)
    how = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": scale}
    want = metrics.structural_similarity(x[0, 0].numpy(), y[0, 0].numpy(), **how)
    assert float(ssim(x, y, data_range=scale)) == pytest.approx(want, rel=1e-9)
