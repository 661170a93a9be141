"""Numpy arrays in pickles from elsewhere: numpy takes no part, which trusts what a pickle says of an array."""

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import numpy as np

from simsiam.unpickle import Inert, TableUnpickler

_NUMBERS = re.compile(r"[fiu][1248]|b1")


class _Dtype(Inert):
    """Of numbers alone. State: version, `<`, `>` or `|`, and nothing else that counts for numbers."""

    def resolved(self) -> np.dtype:
        code = str(self.given[0])
        if _NUMBERS.fullmatch(code) is None:
            raise ValueError(f"an array of the type {code[:20]}, which are no numbers")
        order = self.state[1] if self.state else "="
        return np.dtype(code).newbyteorder(order if order in ("<", ">") else "=")


class PickledArray(Inert):
    """An array of any version of numpy and of pickle."""

    def array(self) -> np.ndarray:
        """The numbers, read-only where the file's are. Raises nearly anything where they do not fit their shape."""
        if self.state is not None:
            shape, dtype, is_fortran, content = self.state[-4:]
            order = "F" if is_fortran else "C"
        else:
            content, dtype, shape, order = self.given
        content = content.encode("latin1") if isinstance(content, str) else content  # Python 2's
        # Not -1 for a side, which numpy would work out.
        if not isinstance(dtype, _Dtype) or any(side < 0 for side in shape):
            raise ValueError("an array without a type or a shape")
        return np.frombuffer(content, dtype.resolved()).reshape(shape, order="F" if order == "F" else "C")


class _Latin1(Inert):
    """How pickles of protocol 2 spell bytes; no codec is looked up, for that would import a module of its name."""

    def __new__(cls, text: str, _encoding: str) -> bytes:
        return text.encode("latin1")


_CORES = ("numpy.core", "numpy._core")  # before and since numpy 2
_TABLE: dict[tuple[str, str], Any] = {
    **{(f"{core}.multiarray", "_reconstruct"): PickledArray for core in _CORES},
    **{(f"{core}.numeric", "_frombuffer"): PickledArray for core in _CORES},  # protocol 5
    **{(f"{core}.multiarray", "scalar"): Inert for core in _CORES},
    ("numpy", "ndarray"): Inert,
    ("numpy", "dtype"): _Dtype,
    ("_codecs", "encode"): _Latin1,
}


def load_arrays(data: bytes, further: Mapping[tuple[str, str], Any] = MappingProxyType({})) -> Any:
    """What was pickled, each array a `PickledArray`; strings of Python 2 are read as latin1.

    Args:
        further: what a file may name besides numpy's, as in `TableUnpickler`.

    Raises `Foreign` where it names anything else, and nearly anything where it is damaged.
    """
    return TableUnpickler(data, {**_TABLE, **further}, encoding="latin1").load()
