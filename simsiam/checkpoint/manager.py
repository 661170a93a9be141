"""Checkpoints: written beside the training, complete or absent, checked before they are read."""

import os
import re
import shutil
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor

from simsiam.atomic import write_atomically
from simsiam.checkpoint.manifest import NAME, damage, synced_facts, write_manifest
from simsiam.checkpoint.reader import CheckedReader
from simsiam.checkpoint.remote import Remote
from simsiam.checkpoint.staging import Staging, checksums, differing
from simsiam.distributed.runtime import Runtime
from simsiam.errors import TrainingStopped, UserError
from simsiam.settings.tree import Checkpoint
from simsiam.training.clock import due
from simsiam.training.state import TrainState

T = TypeVar("T")

# One rank without a process group is how plain `python pretrain.py` runs, not something to warn of.
warnings.filterwarnings("ignore", message="torch.distributed is disabled, unavailable or uninitialized")

# What a save or a download that was cut off leaves.
_LEFT = (".step_*.tmp", ".step_*.part", ".epoch_*.tmp", ".epoch_*.part")
_NAME = re.compile(r"(step_\d{8})|(epoch_\d{4,})")


class Checkpoints:
    """Writes and finds the checkpoints of one run.

    A save copies the state and returns; a thread then has torch.distributed.checkpoint write the copy to a temporary
    folder, synchronises that to disk and renames it, and writes the manifest, which completes it. Only then `latest`
    names it, and only then old ones are deleted. Rank 0 alone looks at the disk to decide; all ranks read and write.

    Args:
        folder: where they are; with a URL in `settings.folder` they pass through here on their way.
    """

    def __init__(self, folder: Path, settings: Checkpoint, runtime: Runtime) -> None:
        remote = "://" in settings.folder
        self.folder = folder if remote or not settings.folder else Path(settings.folder)
        self.settings, self.runtime = settings, runtime
        self.seconds = 0.0
        """What the last save took, from its beginning to `latest`."""
        self._remote = Remote(settings.folder) if remote else None
        self._staging = Staging()
        self._writing: Future[None] | None = None
        self._group: dist.ProcessGroup | None = None

    def check_remote(self) -> None:
        """Tries the URL, if there is one, before a run begins. Raises UserError where nothing can be written there."""
        if self._remote is not None:
            self._remote.check_writable()

    def save(self, state: TrainState) -> Path:
        """Begins to save the state of all ranks as `step_00001234`; returns that folder. Every rank must call it.

        It waits for the copy alone. What became of the save `wait` tells; call it before the next one and at the end.
        """
        if self._writing is not None:
            raise RuntimeError("a save is begun before `wait` was asked about the last one")
        if self._group is None and self.runtime.world_size > 1:
            # Of its own, for the thread: collectives of two threads in one group would be taken for each other's.
            self._group = dist.new_group(backend="gloo")
        began, step = time.monotonic(), state.step
        copy = self._staging.copy(state.tensors())
        final, kept = self.folder / f"step_{step:08d}", self._kept(state)
        done: Future[None] = Future()

        def work() -> None:
            try:
                self._write(copy, final, kept, step, began)
            except BaseException as error:
                done.set_exception(error)
            else:
                done.set_result(None)

        self._writing = done
        # A daemon: where a rank is lost, nobody waits for the others' collectives before the process ends.
        threading.Thread(target=work, name="checkpoint", daemon=True).start()
        return final

    def is_done(self) -> bool:
        """Whether `wait` would answer at once and has something to say; ranks may see it at different steps."""
        return self._writing is not None and self._writing.done()

    def wait(self) -> None:
        """Waits for the save that was begun last. Every rank must call it.

        Raises:
            UserError: the disk refused; what was saved before is as it was, and `latest` with it.
            TrainingStopped: the ranks have come to hold different states; nothing was saved.
        """
        if self._writing is not None:
            done, self._writing = self._writing, None
            done.result()

    def find(self, resume: str) -> Path | None:
        """The checkpoint that `--resume` means, whole to the byte, the same on every rank; None to begin at step 0.

        Damaged ones are named and passed over for the newest whole one.

        Raises:
            UserError: there are checkpoints, and none is whole; or `resume` is none.
        """
        return self.runtime.on_main(lambda: self._find(resume))

    def load(self, path: Path, state: TrainState) -> None:
        """Fills the state, on any number of ranks, from what `find` has found.

        Raises UserError where the checkpoint does not fit the settings.
        """
        if self._remote is not None and path.parent == self.folder:
            self._fetch(path)
        self.runtime.barrier()
        tensors = state.tensors()
        with _told_as(f"Checkpoint {path} does not load", "use the settings it was made with, or another --out"):
            reader = CheckedReader(path)
            held = set(reader.read_metadata().state_dict_metadata)
            # DCP itself would take a part of a larger network's checkpoint without a word.
            if strangers := sorted(held.symmetric_difference(tensors)):
                raise ValueError(f"{len(strangers)} tensors are in one and not in the other, such as {strangers[0]}")
            dcp.load(tensors, storage_reader=reader, no_dist=self.runtime.world_size == 1)
        state.restore()
        kept = self._kept(state)
        if kept is not None and path.parent == self.folder:
            # The run may have ended when the checkpoint was complete and its second name not yet made.
            self.runtime.on_main(lambda: kept.exists() or self._keep(path, kept))

    def newest(self) -> Path | None:
        """The newest complete checkpoint on disk, as this rank sees it."""
        return max(self._complete(), default=None)

    def close(self) -> None:
        """Ends what `save` has begun. Every rank must call it."""
        self.wait()
        if self._group is not None:
            dist.destroy_process_group(self._group)
            self._group = None

    def _fetch(self, path: Path) -> None:
        """Gives a node that does not share the folder with rank 0's the checkpoint that rank 0 has found."""
        told = self.runtime.on_main((path / NAME).read_text)
        if self.runtime.is_main or self.runtime.local_rank != 0:
            return  # rank 0 has looked at its own, which is that of its node
        if damage(path) or (path / NAME).read_text() != told:
            self._remote.download(path.name, path)
            if wrong := damage(path):
                raise UserError(f"{self._remote.url}/{path.name} as it came here {wrong}; start again")

    def _complete(self) -> list[Path]:
        return [path for path in _named(self.folder, "step_") if (path / NAME).is_file()]

    def _find(self, resume: str) -> Path | None:
        if resume == "never":
            return None
        if resume == "auto":
            return self._newest_whole(self.folder, resume, self._remote)
        path = Path(resume)
        inside = path / "checkpoints"
        if inside.is_dir():
            found = self._newest_whole(inside, resume)
            if found is not None:
                return found
        if not _NAME.fullmatch(path.name) or not path.is_dir():
            raise UserError(
                f"--resume {resume} is no checkpoint; give auto, never, a run folder or one of its checkpoints/step_*"
            )
        if wrong := damage(path):
            raise UserError(f"--resume {resume} {wrong}; give another one, or auto for the newest that is whole")
        return path

    def _newest_whole(self, folder: Path, resume: str, remote: Remote | None = None) -> Path | None:
        """Of those in a folder, and at a URL, from where one is fetched when its turn comes."""
        there = remote.names() if remote else []
        elsewhere = {folder / name for name in there if _NAME.fullmatch(name)}
        # Kept epochs are older than the newest steps or the same; they are a last resort, and last by their names.
        candidates = sorted({*_named(folder, ""), *elsewhere}, reverse=True)
        passed_over = []
        for path in candidates:
            wrong = damage(path)
            if wrong and path in elsewhere:
                remote.download(path.name, path)
                wrong = damage(path)
            if wrong is None:
                for what in passed_over:
                    print(f"warning: checkpoint {what}; going on from {path}", file=sys.stderr, flush=True)
                return path
            passed_over.append(f"{path} {wrong}")
        # Before the first save is complete there is neither manifest nor `latest`: a run killed then has lost nothing.
        begun = "latest" in there or (folder / "latest").exists()
        begun = begun or any((path / NAME).exists() for path in candidates)
        if passed_over and begun:
            raise UserError(
                f"--resume {resume}: none of the {len(passed_over)} checkpoints in {folder} is whole: "
                f"{'; '.join(passed_over[:3])}; restore one, or begin anew with another --out"
            )
        return None

    def _write(self, copy: dict[str, Tensor], final: Path, kept: Path | None, step: int, began: float) -> None:
        """The work of the thread, on every rank."""
        temporary = self.folder / f".{final.name}.tmp"
        ranks = self.runtime.world_size
        place, remedy = final, "make room, or give an --out that you may write to"
        if self._remote is not None:
            place = f"{self._remote.url}/{final.name}"
            remedy = f"see that {final.parent} has room and that the credentials of --checkpoint.folder may write there"
        with _told_as(f"Checkpoint {place} cannot be written", remedy):
            apart = differing(list(copy), self._gather(checksums(copy))) if ranks > 1 else None
            if apart is not None:
                raise TrainingStopped(
                    f"at step {step} the ranks hold different states, first in {apart}; nothing saved"
                )
            self._on_main(lambda: self._make_room(temporary, final.name))
            # One thread: with more, a failed write inside a thread can go unreported (pytorch#191391). Synchronised by
            # us, since hashing costs nothing while the disk writes.
            writer = dcp.FileSystemWriter(temporary, thread_count=1, sync_files=False, per_thread_copy_ahead=0)
            facts = {}
            try:
                dcp.save(copy, no_dist=ranks == 1, storage_writer=writer, process_group=self._group)
                for told in self._gather(self._facts(temporary, final.name)):
                    if isinstance(told, str):
                        raise OSError(told)
                    facts |= told
            except BaseException:
                self._on_main(lambda: shutil.rmtree(temporary, ignore_errors=True))  # room for the next one
                raise
            self._on_main(lambda: self._publish(temporary, final, kept, step, facts))
            if self._remote is not None and self.runtime.local_rank == 0:
                shutil.rmtree(temporary, ignore_errors=True)  # of a node that does not share the folder with rank 0's
        self.seconds = time.monotonic() - began

    def _facts(self, temporary: Path, name: str) -> dict[str, Any] | str:
        """Facts of the files that this rank wrote, after they are on the disk and at the URL; or what went wrong."""
        mine = f"__{self.runtime.rank}_"
        try:
            facts = {
                path.name: synced_facts(path)
                for path in sorted(temporary.iterdir())
                if path.name.startswith(mine) or (self.runtime.is_main and path.name == ".metadata")
            }
            if self._remote is not None:
                self._remote.upload(temporary, name, facts)
        except Exception as error:
            return f"rank {self.runtime.rank}: {error}"
        return facts

    def _make_room(self, temporary: Path, name: str) -> None:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        if self._remote is not None:
            self._remote.remove(name)  # what a save that was cut off has left, perhaps by more ranks

    def _publish(self, temporary: Path, final: Path, kept: Path | None, step: int, facts: dict[str, Any]) -> None:
        for name, known in facts.items():
            # Another rank's file is not here where the ranks do not share this folder.
            if self._remote is None and (temporary / name).stat().st_size != known["bytes"]:
                raise OSError(f"{name} is not as long as it was written")
        _sync_folder(temporary)
        _remove(final)
        os.rename(temporary, final)
        _sync_folder(self.folder)
        write_manifest(final, step, self.runtime.world_size, facts)
        _sync_folder(final)  # only now may older ones go
        if self._remote is not None:
            self._remote.upload(final, final.name, [NAME])
            self._remote.write_text("latest", final.name + "\n")
        write_atomically(self.folder / "latest", final.name + "\n")
        if kept is not None:
            self._keep(final, kept)
        self._clean(final)

    def _kept(self, state: TrainState) -> Path | None:
        """The name under which a checkpoint of this step stays for good; None where it does not."""
        keeps = due(state.step, self.settings.keep_every_epochs * state.steps_per_epoch)
        return self.folder / f"epoch_{state.step // state.steps_per_epoch:04d}" if keeps else None

    def _keep(self, final: Path, kept: Path) -> None:
        _link(final, kept)
        if self._remote is not None:
            self._remote.copy(final.name, kept.name)

    def _clean(self, final: Path) -> None:
        """Deletes what is older than the newest ones, and what an interrupted save left."""
        stay = self._stay([path.name for path in self._complete()], final.name)
        # Later steps than the one just saved are of a branch that was left by resuming from before it.
        gone = [path for path in _named(self.folder, "step_") if path.name not in stay]
        gone += [path for pattern in _LEFT for path in self.folder.glob(pattern)]
        for path in gone:
            _remove(path)
        for path in self.folder.glob(".latest.*"):
            path.unlink(missing_ok=True)
        if self._remote is not None:
            there = [name for name in self._remote.names() if name.startswith("step_")]
            stay = self._stay([name for name in there if self._remote.is_complete(name)], final.name)
            for name in set(there) - stay:
                self._remote.remove(name)

    def _stay(self, complete: list[str], final: str) -> set[str]:
        here = complete.index(final) + 1
        return set(complete[max(0, here - max(1, self.settings.keep)) : here])

    def _gather(self, value: T) -> list[T]:
        if self._group is None:
            return [value]
        values: list[Any] = [None] * self.runtime.world_size
        dist.all_gather_object(values, value, group=self._group)
        return values

    def _on_main(self, make: Callable[[], T]) -> T:
        return self.runtime.on_main(make, group=self._group)


@contextmanager
def _told_as(what: str, remedy: str) -> Iterator[None]:
    """Turns whatever goes wrong with a checkpoint's files into a UserError of one sentence."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit, UserError, TrainingStopped):
        raise
    except BaseException as error:  # dcp's CheckpointException is no Exception; a damaged pickle raises anything
        raise UserError(f"{what} ({_reason(error)}); {remedy}") from None


def _reason(error: BaseException) -> str:
    """What went wrong in a line; of dcp's CheckpointException what its ranks raised, for its own text is tracebacks."""
    failures = getattr(error, "failures", None)
    if failures:
        return "; ".join(f"rank {rank}: {_reason(raised)}" for rank, (raised, _) in list(failures.items())[:3])
    return " ".join(str(error).split())[-300:] or type(error).__name__


def _named(folder: Path, beginning: str) -> list[Path]:
    found = folder.glob(f"{beginning}*")
    return sorted(path for path in found if _NAME.fullmatch(path.name))


def _remove(folder: Path) -> None:
    """Deletes a checkpoint, its manifest first: what a crash leaves of it is not taken for a damaged one."""
    (folder / NAME).unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)


def _link(final: Path, kept: Path) -> None:
    """A second name for the files of a checkpoint, which takes no room; a copy where the disk knows no links."""
    temporary = kept.with_name(f".{kept.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    for path in final.iterdir():
        try:
            os.link(path, temporary / path.name)
        except OSError:
            shutil.copy2(path, temporary / path.name)
    _remove(kept)
    os.rename(temporary, kept)


def _sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
