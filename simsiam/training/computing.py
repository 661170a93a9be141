"""How a method's blocks are computed: as they are, compiled, or once more in the backward pass."""

from simsiam.distributed.runtime import Runtime
from simsiam.errors import UserError
from simsiam.methods.base import Method
from simsiam.settings.tree import Pretrain
from simsiam.training.compiling import compile_parts
from simsiam.training.recompute import recompute_blocks


def compute_as_asked(method: Method, settings: Pretrain, runtime: Runtime) -> None:
    """Does what `--compile`, `--cuda_graphs` or `--recompute` asks for, to a network that is not copied any more.

    Raises UserError where they cannot be had together or here, and where the encoder cannot be recomputed.
    """
    if settings.compile and settings.recompute:
        raise UserError("--compile and --recompute cannot be had together: leave one out")
    if settings.cuda_graphs and not settings.compile:
        raise UserError("--cuda_graphs records what --compile makes: give both")
    if settings.cuda_graphs and (runtime.device.type != "cuda" or runtime.world_size > 1):
        where = f"{runtime.world_size} rank(s) on {runtime.device.type}"
        raise UserError(f"--cuda_graphs is for one GPU and this run is {where}: leave it out")
    if settings.cuda_graphs and settings.accumulate > 1:
        raise UserError("--cuda_graphs cannot be had with --accumulate: a graph writes over gradients that are kept")
    if settings.compile:
        compile_parts(method, graphs=settings.cuda_graphs)
        method.is_compiled = True
    if settings.recompute:
        recompute_blocks(method)
