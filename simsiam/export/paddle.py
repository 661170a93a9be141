"""PaddlePaddle's `.pdparams` (PASSL): a pickle of numpy arrays, read without running anything that it may name."""

from collections import OrderedDict
from pathlib import Path

import torch

from simsiam.errors import UserError
from simsiam.pickled_arrays import PickledArray, load_arrays
from simsiam.unpickle import Foreign

_STATISTICS = {"._mean": ".running_mean", "._variance": ".running_var"}
_CONTAINERS = {
    **{(builtins, "tuple"): tuple for builtins in ("builtins", "__builtin__")},  # a tensor is tuple((name, array))
    ("collections", "OrderedDict"): OrderedDict,
}


def read_pdparams(path: Path) -> object:
    """What was saved, with arrays as tensors and the statistics of batch-norm under torch's names.

    Shapes are Paddle's: those of convolutions and batch-norm are torch's, a Linear's weight is transposed to it.
    Raises UserError where the file is damaged or holds anything but arrays in dicts.
    """
    try:
        return _as_torch(load_arrays(path.read_bytes(), _CONTAINERS), {})
    except Foreign as error:
        raise UserError(
            f"{path} holds the Python object {error} beside its arrays, and is not loaded because that could run code: "
            "where you trust it, save the state_dict() alone in a new file by paddle.save and give that one"
        ) from error
    except Exception as error:  # whatever a cut or foreign file makes the reader stumble over
        raise UserError(f"{path} is no PaddlePaddle file, or a damaged one: copy or download it again") from error


def _as_torch(value: object, done: dict[int, object]) -> object:
    """`done` has what was made of each dict: one that stands in several places is gone through once."""
    if isinstance(value, dict):
        if id(value) not in done:
            done[id(value)] = {_torch_name(key): _as_torch(inner, done) for key, inner in value.items()}
        return done[id(value)]
    if isinstance(value, tuple) and len(value) == 2 and isinstance(value[1], PickledArray):
        value = value[1]
    if isinstance(value, PickledArray):
        array = value.array()
        value = torch.from_numpy(array if array.flags.writeable else array.copy()) if array.dtype.kind in "fi" else None
    return value


def _torch_name(key: object) -> object:
    ending = next((end for end in _STATISTICS if str(key).endswith(end)), None)
    return key if ending is None else str(key).removesuffix(ending) + _STATISTICS[ending]
