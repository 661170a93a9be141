"""Who am I: torchrun's environment -> rank, device, backend; and a clean end for every ending."""

import atexit
import ctypes
import multiprocessing
import os
import re
import resource
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from simsiam.distributed.collectives import meet_in
from simsiam.distributed.host_memory import HostMemory
from simsiam.distributed.kernel_choice import choose_kernels
from simsiam.distributed.processes import end_with_parent, process_age
from simsiam.distributed.store import fresh_store
from simsiam.distributed.threads import usable_cores
from simsiam.errors import OutOfMemory, PeersLost, ToldByMain, UserError

T = TypeVar("T")

_NVIDIA_DRIVER = Path("/proc/driver/nvidia/version")
_COMING = timedelta(minutes=10)
_COLLECTIVE = timedelta(minutes=30)
_MADE = "made on rank 0"  # in the store: how often
_NO_MEMORY = re.compile(r"out of memory|can't allocate|ALLOC_FAILED", re.IGNORECASE)
_FAREWELL_SECONDS = 20.0  # less than the 30 that torchrun gives


@dataclass(frozen=True)
class Runtime:
    """This process among the others of the run."""

    rank: int
    world_size: int
    local_rank: int
    device: torch.device
    began: float = field(default_factory=time.monotonic)
    """When the run began, by the monotonic clock: the torchrun of this process, whose restarts are of the same run."""
    store: dist.Store | None = None
    """What the ranks share besides the group; None for one rank."""
    _turns: Iterator[int] = field(default_factory=partial(count, 1), repr=False, compare=False)

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def on_main(self, make: Callable[[], T], group: dist.ProcessGroup | None = None) -> T:
        """`make()` on rank 0, its result or its error on every rank: one reads the disk, all agree.

        `group` is another group of all ranks on the CPU, for a thread that must not share the main one.
        """
        if self.world_size == 1:
            return make()
        box: list[Any] = [None, None]
        failed: BaseException | None = None
        if self.is_main:
            try:
                box[0] = make()
            except BaseException as error:  # the others must hear of it, whatever it is, or they would wait for ever
                failed, box[1] = error, str(error) or type(error).__name__
        if group is None and self.store is not None:
            self._wait_for_main(self.store)
        device = self.device if self.device.type == "cuda" and group is None else None
        dist.broadcast_object_list(box, src=0, group=group, device=device)
        if failed is not None:
            raise failed
        if box[1] is not None:
            raise ToldByMain(box[1])
        return box[0]

    def _wait_for_main(self, store: dist.Store) -> None:
        """Until rank 0 is here as often as this rank: in a collective it would have half an hour for what it makes."""
        if self.is_main:
            store.add(_MADE, 1)
            return
        turn, pause = next(self._turns), 0.001
        while store.add(_MADE, 0) < turn:
            time.sleep(pause)
            pause = min(2 * pause, 0.02 + self.world_size / 5000)

    def barrier(self) -> None:
        if self.world_size > 1:
            dist.barrier()


@contextmanager
def running(
    device: str, world_size: int = 0, *, deterministic: bool = False, by_trial: bool = True
) -> Iterator[Runtime]:
    """The process group of this run, from torchrun's variables; plain `python` is one rank.

    `world_size` is how many ranks there must be, 0 any number. Each rank looks for itself: one that a slow clock has
    left alone would find itself in agreement. Raises UserError then, and PeersLost where other ranks end or go away.
    The last two say what kernels a GPU is to compute with: see `choose_kernels`.

    At the end the ranks meet and the group is destroyed: without that, three clean runs in four abort on exit. After an
    exception they do not meet: the process says what it has to say and ends, whatever its group still waits for.
    """
    _end_with_agent()
    _allow_many_files()
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    local, local_world = int(os.environ.get("LOCAL_RANK", 0)), int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    where = choose_device(device, local)
    cuda = where.type == "cuda"
    if cuda:
        choose_kernels(deterministic=deterministic, by_trial=by_trial)
        torch.cuda.set_device(where)
        torch.backends.cuda.matmul.allow_tf32 = False  # crops and neighbours are products in float32, whole ones
    else:
        torch.set_num_threads(max(1, usable_cores() // local_world))
        keep_freed_memory()
    if world_size not in (0, world):
        raise UserError(
            f"The run has {world} rank(s), but --world-size asks for {world_size}; see that every node is up and its "
            "clock right, and that --nnodes and --nproc_per_node are those of the run"
        )
    store = fresh_store(rank, world, _COMING) if world > 1 else None
    runtime = Runtime(rank, world, local, where, time.monotonic() - _age_of_agent(), store)
    try:
        if store is not None:
            _check_devices(store, rank, world, where.type)
            backend = "nccl" if cuda else "gloo"
            device_id = where if cuda else None
            dist.init_process_group(
                backend, store=store, rank=rank, world_size=world, timeout=_COLLECTIVE, device_id=device_id
            )
            if not cuda and local_world == world:
                meet_in(HostMemory.among(rank, world, store))
        yield runtime
        runtime.barrier()
        meet_in(None)
        if store is not None:
            dist.destroy_process_group()
    except BaseException as error:
        told = _in_a_sentence(error, rank, world, where)
        if store is not None:
            _leave_alone(told or error)
        if told is not None:
            raise told from None
        raise


def _in_a_sentence(error: BaseException, rank: int, world: int, device: torch.device) -> Exception | None:
    """What a rank says of memory that ran out and of peers that are gone; None for any other error."""
    reason = " ".join(str(error).split())
    if isinstance(error, torch.OutOfMemoryError) or _NO_MEMORY.search(reason):
        return OutOfMemory(
            f"rank {rank} has no memory left on {device} ({reason.partition(' See ')[0][:300]}); lower --batch-size; "
            "in training --accumulate 2 and --precision bf16 take less too, and in pretrain.py --recompute"
        )
    if world > 1 and _is_of_the_network(error):
        return PeersLost(
            f"rank {rank} lost the others ({reason[-200:]}); one of them ended, and said why, or the network failed; "
            "the same command goes on from the newest checkpoint"
        )
    return None


def _is_of_the_network(error: BaseException) -> bool:
    """Whether a collective or the store failed; gloo says so by a plain RuntimeError that names its own source."""
    return isinstance(error, dist.DistError) or (type(error) is RuntimeError and "gloo" in str(error))


def _has_agent() -> bool:
    return "TORCHELASTIC_RUN_ID" in os.environ and sys.platform == "linux"


def _age_of_agent() -> float:
    """Seconds since torchrun began; 0 without one."""
    return (process_age(os.getppid()) or 0.0) if _has_agent() else 0.0


def _allow_many_files() -> None:
    """Takes all the open files that the system grants: a group of gloo has a socket for each rank."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with suppress(OSError, ValueError):  # macOS names a hard limit that it does not grant
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _end_with_agent() -> None:
    """Has Linux kill this process when torchrun's agent is killed, which otherwise leaves its ranks running."""
    if not _has_agent():
        return
    parent = os.getppid()
    end_with_parent()
    if os.getppid() != parent:  # it was gone before the kernel knew
        os._exit(1)


def _leave_alone(error: BaseException) -> None:
    """Has this process end with the error's code once it is told, without taking the group down.

    Destroying a group waits for what its peers may never do, and an interpreter that ends with a group in it aborts.
    """
    code = 128 + signal.SIGINT if isinstance(error, KeyboardInterrupt) else getattr(error, "exit_code", 1)
    if isinstance(error, SystemExit):
        code = error.code if isinstance(error.code, int) else int(error.code is not None)

    def leave() -> None:
        for child in multiprocessing.active_children():
            child.terminate()
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):
                stream.flush()
        os._exit(code)

    atexit.register(leave)
    # For a thread that the interpreter waits for before it comes to that, such as one that saves with the others.
    hard = threading.Timer(_FAREWELL_SECONDS, os._exit, (code,))
    hard.daemon = True
    hard.start()


def choose_device(wanted: str, local_rank: int) -> torch.device:
    """The device of a rank for auto, cpu or cuda. Raises UserError where there is none such."""
    if wanted == "cpu":
        return torch.device("cpu")
    if not torch.cuda.is_available():
        lack = f"torch {torch.__version__} sees no CUDA device ({_why_no_cuda()})"
        if wanted == "cuda":
            raise UserError(f"--device cuda, but {lack}; take --device cpu, or see what nvidia-smi says")
        hidden = os.environ.get("CUDA_VISIBLE_DEVICES", "0") in ("", "-1")
        if _NVIDIA_DRIVER.exists() and not hidden and int(os.environ.get("RANK", 0)) == 0:
            print(f"warning: {lack}, though there is an NVIDIA driver; this run is on the CPU", file=sys.stderr)
        return torch.device("cpu")
    devices = torch.cuda.device_count()
    if devices == 1 and not _has_agent():
        return torch.device("cuda", 0)  # what starts the ranks itself may show each a GPU of its own, as srun does
    if local_rank >= devices:
        raise UserError(
            f"Rank {local_rank} of this node has no GPU: torchrun started more processes than the {devices} device(s) "
            "that it sees here; lower --nproc_per_node, or let it see more of them"
        )
    return torch.device("cuda", local_rank)


def _check_devices(store: dist.Store, rank: int, world_size: int, kind: str) -> None:
    """Raises UserError on all ranks where some have a GPU and others none: NCCL would wait for these in vain."""
    store.set(f"device/{rank}", kind)
    kinds = [value.decode() for value in store.multi_get([f"device/{other}" for other in range(world_size)])]
    if len(set(kinds)) > 1:
        without = [str(other) for other, theirs in enumerate(kinds) if theirs == "cpu"]
        raise UserError(
            f"Rank{'s' * (len(without) > 1)} {', '.join(without)} of {world_size} cannot use a GPU, and the others do; "
            "see what nvidia-smi says on their nodes, or take --device cpu"
        )


def _why_no_cuda() -> str:
    try:
        torch.cuda.init()
    except (RuntimeError, AssertionError) as error:  # the latter from a build for CPUs
        return str(error).partition(". ")[0].partition("\n")[0]
    return "its devices cannot be used"


def keep_freed_memory() -> None:
    """Tells glibc to reuse large blocks: by default each step gives them back and pays page faults to get them again.

    Measured on two cores: a ResNet-20 step is 1.2 times as fast.
    """
    m_trim_threshold, m_top_pad, m_mmap_threshold = -1, -2, -3  # malloc.h
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(m_mmap_threshold, 2**31 - 1)
        mallopt(m_trim_threshold, 2**31 - 1)
        mallopt(m_top_pad, 1 << 28)
