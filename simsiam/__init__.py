"""SimSiam pretraining for ResNets: `from simsiam import SimSiam, load_encoder`."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from simsiam.export.read import load_encoder
    from simsiam.methods.simsiam import SimSiam

__version__ = "0.1.0"
__all__ = ["SimSiam", "__version__", "load_encoder"]


def __getattr__(name: str) -> object:
    # Lazy, so that `--help` and `simsiam recipes` do not pay for importing torch.
    if name == "SimSiam":
        from simsiam.methods.simsiam import SimSiam

        return SimSiam
    if name == "load_encoder":
        from simsiam.export.read import load_encoder

        return load_encoder
    raise AttributeError(f"module 'simsiam' has no attribute {name!r}")
