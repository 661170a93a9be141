"""Triton's kernels, where it can make them: modules that import it, with a `try_out` that makes each kernel once."""

import functools
import importlib
import warnings
from types import ModuleType


@functools.cache
def gpu_kernels(module: str) -> ModuleType | None:
    """The module by its full name, tried out on the GPU; None, and a warning, where no kernels can be made."""
    try:
        found = importlib.import_module(module)
        found.try_out()
    except Exception as error:  # no Triton, no C compiler, no room for its files, a GPU that it does not know
        reason = " ".join(str(error).split())[:300]
        warnings.warn(
            f"Triton makes no kernels here ({type(error).__name__}: {reason}), so {module} gives way to torch's own "
            "operations, which are slower; it needs a C compiler, Python.h, and a place to write in, $TRITON_CACHE_DIR "
            "(or ~/.triton)",
            stacklevel=2,
        )
        return None
    return found
