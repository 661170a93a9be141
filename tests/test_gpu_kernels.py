"""Kernels that cannot be made give way to torch's operations."""

from collections.abc import Iterator

import pytest
import torch

from simsiam.gpu_kernels import gpu_kernels


@pytest.fixture
def asked_afresh() -> Iterator[None]:
    gpu_kernels.cache_clear()
    yield
    gpu_kernels.cache_clear()


@pytest.mark.usefixtures("asked_afresh")
@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU has kernels")
@pytest.mark.parametrize("module", ["simsiam.models.gpu_affine", "simsiam.data.gpu_augment"])
def test_where_triton_makes_none_there_is_a_warning(module: str) -> None:
    with pytest.warns(UserWarning, match=f"Triton makes no kernels here .*, so {module} gives way"):
        assert gpu_kernels(module) is None
