"""`--sweep lr=0.01,0.1 head_lr=1,10` -> the cells of its grid."""

import math
from itertools import product

from simsiam.errors import UserError


def sweep_cells(sweep: str, known: tuple[str, ...]) -> list[dict[str, float]]:
    """Every combination of the rates, the first key's slowest; none where nothing is swept.

    Args:
        known: the settings under `optim` that a command can sweep.

    Raises:
        UserError: another key, a key or rate that comes twice, or something that is no rate above 0.
    """
    values: dict[str, list[float]] = {}
    for words in sweep.split():
        key, _, rates = words.partition("=")
        if key not in known:
            raise UserError(f"--sweep {sweep!r} names {key!r}; write {' '.join(f'{name}=0.1,1' for name in known)}")
        if key in values:
            raise UserError(f"--sweep {sweep!r} names {key!r} twice; give its rates in one list")
        values[key] = [_rate(rate, sweep) for rate in rates.split(",")]
        if len(set(values[key])) < len(values[key]):
            raise UserError(f"--sweep {sweep!r} has a rate twice; give each once")
    return [dict(zip(values, cell)) for cell in product(*values.values())] if values else []


def cell_name(cell: dict[str, float]) -> str:
    """`lr=0.01,head_lr=1`."""
    return ",".join(f"{key}={value:g}" for key, value in cell.items())


def _rate(text: str, sweep: str) -> float:
    try:
        rate = float(text)
    except ValueError:
        rate = math.nan
    if not (0 < rate < math.inf):
        raise UserError(f"--sweep {sweep!r} has {text!r}, which is no rate above 0; write rates with commas between")
    return rate
