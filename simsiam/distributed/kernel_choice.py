"""Which kernels a GPU computes with: the fastest that a trial finds, or those that give the same bits each time."""

import os

import torch


def choose_kernels(*, deterministic: bool, by_trial: bool) -> None:
    """For this process; to be called before the GPU is first used, since libraries read their variables then.

    `by_trial` has cuDNN try its convolutions at the first sight of a shape and keep the fastest: a loss where shapes
    differ from step to step. A trial ends as the clock has it and the fastest may add up in any order, so two runs
    differ in their last digits; `deterministic` takes kernels, and a path of NCCL's sums, that do not. An operation
    that has no such kernel is named in a warning. Variables that are set already are left as they are.
    """
    torch.backends.cudnn.benchmark = by_trial and not deterministic
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        os.environ.setdefault("NCCL_ALGO", "Ring")
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.utils.deterministic.fill_uninitialized_memory = False  # nothing here reads what it has not written
