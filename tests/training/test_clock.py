"""When something that comes every so many steps is due."""

import pytest

from simsiam.training.clock import due


@pytest.mark.parametrize(
    ("every", "steps"),
    [(0, []), (1, [1, 2, 3, 4, 5, 6, 7, 8]), (3, [3, 6]), (2.5, [3, 5, 8]), (0.5, [1, 2, 3, 4, 5, 6, 7, 8])],
)
def test_the_first_step_at_or_after_each_multiple(every: float, steps: list[int]) -> None:
    assert [step for step in range(1, 9) if due(step, every)] == steps
