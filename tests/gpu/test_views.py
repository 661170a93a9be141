"""On a GPU views are made by kernels of our own, and are those of a CPU."""

import numpy as np
import pytest
import torch

from simsiam.data.augment import Augment, _gpu_views
from simsiam.settings.tree import Views

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


def test_triton_makes_kernels_here() -> None:
    assert _gpu_views() is not None


@pytest.mark.parametrize("own_kernels", [True, False])
@pytest.mark.parametrize("side", [32, 96, 224])
def test_views_are_those_of_a_cpu(monkeypatch: pytest.MonkeyPatch, side: int, own_kernels: bool) -> None:
    if not own_kernels:
        monkeypatch.setattr("simsiam.data.augment._gpu_views", lambda: None)
    augment = Augment(Views(size=side, solarize=0.3, hue=0.3), 0)
    crops = torch.randint(0, 256, (2, 32, side, side, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    expected = augment(crops, np.arange(32), 0)
    torch.testing.assert_close(augment.cuda()(crops, np.arange(32), 0).cpu(), expected, rtol=0, atol=1e-3)


def test_the_host_does_not_wait_for_views() -> None:
    augment = Augment(Views(size=96), 0).cuda()
    crops = torch.zeros((2, 32, 96, 96, 3), dtype=torch.uint8, device="cuda")
    augment(crops, np.arange(32), 0)
    torch.cuda.set_sync_debug_mode("error")
    try:
        augment(crops, np.arange(32, 64), 0)
    finally:
        torch.cuda.set_sync_debug_mode("default")
