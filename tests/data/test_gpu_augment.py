"""The kernels of views on GPUs give what the operations give."""

import numpy as np
import pytest
from packaging.version import Version

from tests.triton_interpreter import interpreted

triton = pytest.importorskip("triton")


@pytest.mark.skipif(
    Version(triton.__version__) < Version("3.7") and Version(np.__version__) >= Version("2.4"),
    reason="Triton 3.6 cannot interpret a loop with this numpy",
)
@pytest.mark.parametrize("what", ["of_everything", "of_each_by_itself", "of_several_recipes"])
def test_views_are_those_of_the_operations(what: str) -> None:
    interpreted("tests.data.interpreted_views", what)
