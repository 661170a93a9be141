"""A store without the keys of an earlier attempt.

torchrun keeps one store for all restarts of a job. What the ranks of an attempt that was killed wrote there, addresses
above all, is read by those of the next: measured with two gloo ranks, half of the restarts fail for it.
"""

import json
import os
import time
from datetime import timedelta
from uuid import uuid4

from torch.distributed import DistNetworkError, PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from simsiam.errors import UserError

_ANSWERS = timedelta(minutes=1)


def fresh_store(rank: int, world_size: int, timeout: timedelta) -> Store:
    """The store of torchrun's variables, for `init_process_group(store=...)`. Every rank must call it.

    Raises UserError on rank 0 where ranks do not come in time, and on each where torchrun's store is not there.
    """
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        # Rank 0 of this attempt serves it, so nobody has written there before.
        return next(rendezvous("env://", rank, world_size, timeout=timeout))[0]
    try:
        # torchrun had it before it started this rank: one that does not answer was killed while this rank started.
        store, _, _ = next(rendezvous("env://", rank, world_size, timeout=min(timeout, _ANSWERS)))
    except DistNetworkError:
        address = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        raise UserError(
            f"The store of torchrun at {address} does not answer; see whether that torchrun has ended, and start again"
        ) from None
    store.set_timeout(timeout)
    return agree_on_prefix(store, rank, world_size, timeout)


def agree_on_prefix(store: Store, rank: int, world_size: int, timeout: timedelta) -> Store:
    """The store under a prefix that all live ranks share and no earlier attempt had.

    Each rank says hello with a nonce. Rank 0 answers with a token that lists the nonces it has read; a rank that finds
    its own there acknowledges. When every acknowledgement is of the newest token, rank 0 opens it, and all go.

    Nothing old passes: a rank takes no token without its nonce, which was drawn in this attempt; rank 0 makes a new
    token for each new hello, and waits for acknowledgements that carry the token's random name. Rank 0 opens one token,
    so no two ranks leave with different ones. Where a rank dies on the way the others wait until torchrun ends them.
    """
    # Attempts with another number of ranks share no key.
    desk = PrefixStore(f"handshake/{world_size}", store)
    deadline = time.monotonic() + timeout.total_seconds()
    pause = 0.01 + world_size / 5000  # a thousand ranks ask the store 5,000 times a second
    lead = _lead if rank == 0 else _follow
    return PrefixStore(f"attempt/{lead(desk, rank, world_size, deadline, pause)}", store)


def _lead(desk: Store, rank: int, world_size: int, deadline: float, pause: float) -> str:
    mine, name, listed = uuid4().hex, "", []
    hellos, acks = ([f"{kind}/{other}" for other in range(world_size)] for kind in ("hello", "ack"))
    desk.set(hellos[rank], mine)
    while True:
        nonces = _read(desk, hellos)
        if nonces and nonces[rank] != mine:
            raise UserError("Another process joined this job as rank 0, so this one ends; start each rank once")
        if nonces and nonces != listed:
            name, listed = uuid4().hex, nonces
            desk.set("token", json.dumps([name, listed, False]))
            desk.set(acks[rank], name)
        if name and _read(desk, acks) == [name] * world_size:
            _forget_failures(desk)
            desk.set("token", json.dumps([name, listed, True]))
            return name
        if time.monotonic() > deadline:
            came = [_read(desk, [ack if name else hello]) for hello, ack in zip(hellos, acks)]
            late = [str(other) for other, value in enumerate(came) if value is None or (name and value != [name])]
            raise UserError(
                f"Rank{'s' * (len(late) > 1)} {', '.join(late)} of {world_size} did not come in time; "
                "look for their messages or their nodes, and start again"
            )
        time.sleep(pause)


def _forget_failures(desk: Store) -> None:
    """Removes what NCCL's threads leave of a failed collective beneath all prefixes, and heed in any attempt.

    Their monitor (torch's HeartbeatMonitor) takes it for a failure of its own and aborts some eight minutes later. All
    ranks of this attempt have come, so those who may have written it are gone.
    """
    while isinstance(desk, PrefixStore):
        desk = desk.underlying_store
    desk.delete_key("exception_dump")


def _follow(desk: Store, rank: int, world_size: int, deadline: float, pause: float) -> str:
    mine, answered = uuid4().hex, ""
    desk.set(f"hello/{rank}", mine)
    while True:
        found = _read(desk, ["token", f"hello/{rank}", "hello/0"])
        if found:
            name, listed, opened = json.loads(found[0])
            if found[1] != mine:
                raise UserError(f"Another process joined this job as rank {rank}; start each rank once")
            if listed[rank] == mine and name != answered:
                desk.set(f"ack/{rank}", name)
                answered = name
            if opened and name == answered and listed[0] == found[2]:
                return name
        # Rank 0 knows who is missing: the others give it a moment to say so.
        if time.monotonic() > deadline + 5:
            raise TimeoutError("rank 0 of this job did not answer in time; look for its message, or for its node")
        time.sleep(pause)


def _read(desk: Store, keys: list[str]) -> list[str] | None:
    """The values, None where one has never been set: without the check the store would wait for it."""
    return [value.decode() for value in desk.multi_get(keys)] if desk.check(keys) else None
