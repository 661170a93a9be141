"""The last look before the first step: the ranks agree, and what goes on is what began."""

import torch

from simsiam.checkpoint.manager import Checkpoints
from simsiam.distributed.preflight import preflight, source_hash
from simsiam.distributed.runtime import Runtime
from simsiam.evaluation.ledger import config_hash
from simsiam.run.changes import check_facts, read_facts, rounding_changes, write_facts
from simsiam.run.folder import RunFolder, make_writable
from simsiam.settings.effects import OF_A_NODE
from simsiam.settings.tree import Job
from simsiam.training.state import TrainState


def check_start(
    settings: Job,
    runtime: Runtime,
    folder: RunFolder,
    checkpoints: Checkpoints,
    state: TrainState,
    *,
    data_sha256: str,
    bn_images: int = 0,
) -> str:
    """Compares the ranks, and a run that goes on with how it began. Every rank must call it.

    Args:
        state: as it was loaded.
        data_sha256: hash of the data of this rank.
        bn_images: images that share batch-norm statistics, where ranks do not share them all; else 0.

    Returns:
        What was found, for the banner.

    Raises:
        UserError: on every rank, where something differs that must not.
    """
    facts = {
        "data_sha256": data_sha256,
        "code": source_hash()[:12],
        "torch": torch.__version__,
        "ranks": runtime.world_size,
        "threads": torch.get_num_threads(),
        "device": runtime.device.type,
        "precision": state.precision.name,
        **({"bn_images": bn_images} if bn_images else {}),
    }
    found = "skipped"
    if not settings.skip_preflight:
        asked = settings.checkpoint.folder
        elsewhere = "://" in asked
        option = "--checkpoint.folder" if asked and not elsewhere else "--out"
        runtime.on_main(lambda: make_writable(checkpoints.folder, option))
        runtime.on_main(checkpoints.check_remote)
        found = preflight(
            runtime,
            {"settings": config_hash(settings, OF_A_NODE), "dataset": data_sha256},
            folder=checkpoints.folder,
            checkpoint_bytes=0 if elsewhere else sum(tensor.nbytes for tensor in state.tensors().values()),
            workers=getattr(settings, "workers", 0),
        )
    rounding = runtime.on_main(lambda: _compare(settings, folder, state, facts))
    return f"{found}. {rounding}" if rounding else found


def _compare(settings: Job, folder: RunFolder, state: TrainState, facts: dict[str, str | int]) -> str | None:
    goes_on = state.step > 0 and folder.goes_on(settings.resume)
    earlier = read_facts(folder.path) if goes_on else {}
    check_facts(folder.path, earlier, facts, settings.allow_change)
    write_facts(folder.path, facts)
    return rounding_changes(earlier, facts)
