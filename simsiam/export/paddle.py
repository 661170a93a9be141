"""PaddlePaddle's `.pdparams` (PASSL): a pickle of numpy arrays, read without running anything that it may name."""

import pickle
from pathlib import Path

import numpy as np
import torch

from simsiam.errors import UserError

_STATISTICS = {"._mean": ".running_mean", "._variance": ".running_var"}
_ARRAY_PARTS = {
    *((f"numpy.{core}.multiarray", name) for core in ("core", "_core") for name in ("_reconstruct", "scalar")),
    *((f"numpy.{core}.numeric", "_frombuffer") for core in ("core", "_core")),  # protocol 5
    *(("numpy", name) for name in ("ndarray", "dtype")),
    *((builtins, "tuple") for builtins in ("builtins", "__builtin__")),  # a tensor is tuple((name, array))
    ("collections", "OrderedDict"),
}


def read_pdparams(path: Path) -> object:
    """What was saved, with arrays as tensors and the statistics of batch-norm under torch's names.

    Shapes are Paddle's: those of convolutions and batch-norm are torch's, a Linear's weight is transposed to it.
    Raises UserError where the file is damaged or holds anything but arrays in dicts.
    """
    try:
        with open(path, "rb") as file:
            return _as_torch(_ArraysOnly(file, encoding="latin1").load())  # as Paddle itself, for files of Python 2
    except _Foreign as error:
        raise UserError(
            f"{path} holds the Python object {error} beside its arrays, and is not loaded because that could run code: "
            "where you trust it, save the state_dict() alone in a new file by paddle.save and give that one."
        ) from error
    except Exception as error:  # whatever a cut or foreign file makes the reader stumble over
        raise UserError(f"{path} is no PaddlePaddle file, or a damaged one: copy or download it again.") from error


class _Foreign(Exception):
    pass


class _ArraysOnly(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> object:
        if (module, name) == ("_codecs", "encode"):
            return _latin1
        if (module, name) not in _ARRAY_PARTS:
            raise _Foreign(f"{module}.{name}")
        return super().find_class(module, name)


def _latin1(text: str, _encoding: str) -> bytes:
    """How pickles of protocol 2 spell bytes; the codec is not looked up, for that would import a module of its name."""
    return text.encode("latin1")


def _as_torch(value: object) -> object:
    if isinstance(value, dict):
        return {_torch_name(key): _as_torch(inner) for key, inner in value.items()}
    if isinstance(value, tuple) and len(value) == 2 and isinstance(value[1], np.ndarray):
        value = value[1]
    if isinstance(value, np.ndarray) and value.dtype.kind in "fi":
        return torch.from_numpy(value if value.flags.writeable else value.copy())
    return value


def _torch_name(key: object) -> object:
    ending = next((end for end in _STATISTICS if str(key).endswith(end)), None)
    return key if ending is None else str(key).removesuffix(ending) + _STATISTICS[ending]
