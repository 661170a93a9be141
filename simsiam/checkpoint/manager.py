"""Checkpoints: sharded by torch.distributed.checkpoint, complete or absent, the newest complete one found by number."""

import os
import re
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch.distributed.checkpoint as dcp

from simsiam.distributed.runtime import Runtime
from simsiam.errors import UserError
from simsiam.run.folder import write_atomically
from simsiam.training.state import TrainState

# One rank without a process group is how plain `python pretrain.py` runs, not something to warn of.
warnings.filterwarnings("ignore", message="torch.distributed is disabled, unavailable or uninitialized")

_NAME = re.compile(r"step_(\d{8})")


class Checkpoints:
    """Writes and finds the checkpoints of one run.

    A checkpoint is written to a temporary folder, synchronised to disk and renamed; only then `latest` names it, and
    only then old ones are deleted. Rank 0 alone looks at the disk to decide; all ranks read and write their shards.
    """

    def __init__(self, folder: Path, keep: int, runtime: Runtime) -> None:
        self.folder, self.keep, self.runtime = folder, max(1, keep), runtime

    def save(self, state: TrainState) -> Path:
        """Saves the state of all ranks as `step_00001234`; returns the folder. Every rank must call it.

        Raises UserError where the disk refuses; what was saved before stays as it was.
        """
        final = self.folder / f"step_{state.step:08d}"
        temporary = self.folder / f".step_{state.step:08d}.tmp"
        with _told_as(f"Checkpoint {final} cannot be written", "make room, or give an --out that you may write to"):
            self.runtime.on_main(lambda: self._prepare(temporary))
            # One thread: with more, a failed write inside a thread can go unreported (pytorch#191391).
            dcp.save(
                state.tensors(),
                no_dist=self.runtime.world_size == 1,
                storage_writer=dcp.FileSystemWriter(temporary, thread_count=1, sync_files=True),
            )
            self.runtime.on_main(lambda: self._publish(temporary, final))
        return final

    def find(self, resume: str) -> Path | None:
        """The checkpoint that `--resume` means, the same on every rank; None to begin at step 0."""
        return self.runtime.on_main(lambda: self._find(resume))

    def load(self, path: Path, state: TrainState) -> None:
        """Fills the state, on any number of ranks. Raises UserError where the checkpoint does not fit the settings."""
        tensors = state.tensors()
        reader = dcp.FileSystemReader(path)
        with _told_as(f"Checkpoint {path} does not load", "use the settings it was made with, or another --out"):
            held = set(reader.read_metadata().state_dict_metadata)
            # DCP itself would take a part of a larger network's checkpoint without a word.
            if strangers := sorted(held.symmetric_difference(tensors)):
                raise ValueError(f"{len(strangers)} tensors are in one and not in the other, such as {strangers[0]}")
            dcp.load(tensors, storage_reader=reader, no_dist=self.runtime.world_size == 1)
        state.restore()

    def newest(self) -> Path | None:
        """The newest complete checkpoint on disk, as this rank sees it."""
        return max(self._complete(), default=None)

    def _complete(self) -> list[Path]:
        found = (p for p in self.folder.glob("step_*") if _NAME.fullmatch(p.name) and (p / ".metadata").is_file())
        return sorted(found)

    def _find(self, resume: str) -> Path | None:
        if resume == "never":
            return None
        if resume == "auto":
            return self.newest()
        path = Path(resume)
        inside = Checkpoints(path / "checkpoints", self.keep, self.runtime).newest()
        if inside is not None:
            return inside
        if not (path / ".metadata").is_file():
            raise UserError(
                f"--resume {resume} is no checkpoint; give auto, never, a run folder or one of its checkpoints/step_*"
            )
        return path

    def _prepare(self, temporary: Path) -> None:
        if temporary.exists():
            shutil.rmtree(temporary)
        temporary.mkdir(parents=True)

    def _publish(self, temporary: Path, final: Path) -> None:
        if final.exists():
            shutil.rmtree(final)
        os.rename(temporary, final)
        _sync_folder(self.folder)
        write_atomically(self.folder / "latest", final.name + "\n")
        complete = self._complete()
        # Later steps than the one just saved are of a branch that was left by resuming from before it.
        here = complete.index(final) + 1
        for old in complete[: max(0, here - self.keep)] + complete[here:]:
            shutil.rmtree(old, ignore_errors=True)


@contextmanager
def _told_as(what: str, remedy: str) -> Iterator[None]:
    """Turns whatever goes wrong with a checkpoint's files into a UserError of one sentence."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit, UserError):
        raise
    except BaseException as error:  # dcp's CheckpointException is no Exception; a damaged pickle raises anything
        reason = " ".join(str(error).split())[-300:] or type(error).__name__
        raise UserError(f"{what} ({reason}); {remedy}") from None


def _sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
