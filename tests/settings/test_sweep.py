"""--sweep is a grid of rates, or one sentence about what is wrong with it."""

import pytest

from simsiam.errors import UserError
from simsiam.settings.sweep import cell_name, sweep_cells


def test_the_grid_has_every_combination_and_each_has_a_name() -> None:
    cells = sweep_cells("lr=0.005,0.02 head_lr=0.5,5", ("lr", "head_lr"))
    assert [tuple(cell.values()) for cell in cells] == [(0.005, 0.5), (0.005, 5), (0.02, 0.5), (0.02, 5)]
    assert cell_name(cells[1]) == "lr=0.005,head_lr=5"
    assert sweep_cells("", ("lr",)) == []
    assert sweep_cells("lr=1e-3", ("lr",)) == [{"lr": 0.001}]


@pytest.mark.parametrize(
    ("sweep", "says"),
    [
        ("rate=1,2", "names 'rate'"), ("head_lr=1", "names 'head_lr'"), ("lr", "''"), ("lr=", "''"), ("lr=1,,2", "''"),
        ("lr=1,fast", "'fast'"), ("lr=0,1", "'0'"), ("lr=-1", "'-1'"), ("lr=nan", "'nan'"), ("lr=inf", "'inf'"),
        ("lr=1,1.0", "a rate twice"), ("lr=1 lr=2", "'lr' twice"), ("1,2", "names '1,2'"),
    ],
)  # fmt: skip
def test_what_is_no_grid_is_one_sentence(sweep: str, says: str) -> None:
    with pytest.raises(UserError, match="--sweep") as told:
        sweep_cells(sweep, ("lr",))
    assert says in str(told.value)
