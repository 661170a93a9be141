"""What checkpoints cost: what a save takes from training, how large it is, and how soon a killed rank is back.

    python benchmarks/checkpoint.py [--rounds 5] [--ranks 2] [--encoder resnet50] [--folder DISK] [--only save,restart]

Saves: SimSiam's state on gloo or NCCL ranks; torch.distributed.checkpoint's own `save`, ours with nothing beside it and
ours beside training steps, in turn. Restarts: torchrun --max-restarts, rank 1 killed; `pretrain.py --recipe quickstart`
and a script that imports torch, joins the group and sums a number, in turn. All by the slowest rank.
"""

import argparse
import hashlib
import json
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import ModuleType
from typing import BinaryIO

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

Round = dict[str, float]

# Without it torchrun alone does not come back from a kill in about half of the tries; pretrain.py does not need it.
BARE = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
ROOT = Path(__file__).resolve().parents[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--encoder", default="resnet50")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()), help="on the disk to write to")
    parser.add_argument("--only", default="save,restart", help="which parts, as A,B")
    parser.add_argument("--size", type=int, default=64, help="side of a view of the steps beside a save, pixels")
    parser.add_argument("--batch-size", type=int, default=4, help="images of such a step, over all ranks")
    parser.add_argument("--steps", type=int, default=8, help="steps before each save that tell what a step takes")
    parser.add_argument("--part", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.part:
        {"save": save_part, "bare": bare_part}[arguments.part](arguments)
        return
    with tempfile.TemporaryDirectory(prefix="checkpoint-", dir=arguments.folder) as folder:
        arguments.folder = Path(folder)
        if "save" in arguments.only:
            report_saves(saves(arguments))
        if "restart" in arguments.only:
            report_restarts(restarts(arguments))


# Saves


def saves(arguments: argparse.Namespace) -> list[Round]:
    """The rounds of `save_part` under torchrun."""
    options = ("rounds", "encoder", "folder", "size", "batch_size", "steps")
    words = [f"--{name.replace('_', '-')}={getattr(arguments, name)}" for name in options]
    done = subprocess.run(torchrun(arguments.ranks, 0, __file__, "--part=save", *words), check=False)
    if done.returncode:
        sys.exit("the saves failed; what they said is above")
    return json.loads((arguments.folder / "rounds.json").read_text())


def save_part(arguments: argparse.Namespace) -> None:
    """One rank; rank 0 writes rounds.json."""
    import torch
    import torch.distributed as dist
    import torch.distributed.checkpoint as dcp

    from simsiam.checkpoint import manager
    from simsiam.distributed.runtime import running
    from simsiam.methods.simsiam import SimSiam
    from simsiam.settings.derive import derive
    from simsiam.settings.tree import Checkpoint, Optim, Pretrain
    from simsiam.training.build import build_state
    from simsiam.training.step import train_step

    hashes = Hashes(manager)
    settings = Pretrain(batch_size=arguments.batch_size, epochs=1, precision="fp32", optim=Optim(lr=0.01))
    with running("auto") as runtime:
        torch.manual_seed(0)
        state = build_state(
            SimSiam(arguments.encoder), settings, derive(settings, runtime.world_size, 1 << 20), runtime
        )
        views = torch.randn(
            2, arguments.batch_size // runtime.world_size, 3, arguments.size, arguments.size, device=runtime.device
        )
        ours = manager.Checkpoints(arguments.folder / "ours", Checkpoint(keep=1), runtime)

        def slowest(value: float) -> float:
            told = torch.tensor(value, dtype=torch.float64, device=runtime.device)
            dist.all_reduce(told, dist.ReduceOp.MAX)
            return told.item()

        def seconds(act: Callable[[], object]) -> float:
            runtime.barrier()
            began = time.perf_counter()
            act()
            if runtime.device.type == "cuda":
                torch.cuda.synchronize()
            return slowest(time.perf_counter() - began)

        def step() -> None:
            train_step(state, [(views,)])

        def save_alone() -> Round:
            hashes.seconds = dict.fromkeys(hashes.seconds, 0.0)
            held = seconds(lambda: ours.save(state))
            ours.wait()
            return {
                "held": held,
                "all": slowest(ours.seconds),
                **{key: slowest(s) for key, s in hashes.seconds.items()},
            }

        def one_round() -> Round:
            found, plain = {}, arguments.folder / "plain"
            found["plain"] = seconds(lambda: dcp.save(state.tensors(), checkpoint_id=plain))
            runtime.on_main(lambda: shutil.rmtree(plain))

            alone = save_alone()
            found |= {"ours": alone["all"], "hold alone": alone["held"]}
            found |= {key: alone[key] for key in ("sha256", "crc", "disk", "facts")}
            hashes.off = True
            found["ours without hashes"] = save_alone()["all"]
            hashes.off = False

            usual = statistics.median(seconds(step) for _ in range(arguments.steps))
            found["hold"] = seconds(lambda: ours.save(state))
            beside = []
            while slowest(float(not ours.is_done())):
                beside.append(seconds(step))
            ours.wait()
            found |= {"step": usual, "steps beside": len(beside), "lost": sum(beside) - len(beside) * usual}
            found["ours beside steps"] = slowest(ours.seconds)
            return found

        rounds = []
        # The first save is the one that makes the buffers; it is told apart, as the others do not pay for them.
        first = seconds(lambda: ours.save(state))
        ours.wait()
        for _ in range(2):
            step()
        for number in range(arguments.rounds):
            rounds.append({**one_round(), "first hold": first, **sizes(ours.newest(), state.tensors())})
            if runtime.is_main:
                told = ("plain", "ours", "hold alone", "hold", "lost", "sha256", "crc")
                print(f"round {number + 1}  " + "  ".join(f"{key} {rounds[-1][key]:.3f}" for key in told), flush=True)
        ours.close()
        if runtime.is_main:
            (arguments.folder / "rounds.json").write_text(json.dumps(rounds))


class Hashes:
    """Stands before what hashes in a save: counts its seconds and those of the disk beside it, or leaves it out."""

    def __init__(self, manager: ModuleType) -> None:
        self.off = False
        self.seconds = {"facts": 0.0, "disk": 0.0, "sha256": 0.0, "crc": 0.0}
        plain_digest, plain_checksums = hashlib.file_digest, manager.checksums
        plain_facts, plain_sync = manager.synced_facts, os.fsync

        def synced_facts(path: Path) -> dict[str, object]:
            with self._timed("facts"):
                return plain_facts(path)

        def sync(descriptor: int) -> None:
            beside = threading.current_thread().name == "sync"
            with self._timed("disk") if beside else nullcontext():
                plain_sync(descriptor)

        def file_digest(file: BinaryIO, name: str) -> object:
            if self.off:
                file.seek(0, os.SEEK_END)
                return hashlib.sha256()
            with self._timed("sha256"):
                return plain_digest(file, name)

        def checksums(tensors: Mapping[str, object]) -> list[int]:
            if self.off:
                return [0] * len(tensors)
            with self._timed("crc"):
                return plain_checksums(tensors)

        hashlib.file_digest, manager.checksums = file_digest, checksums
        manager.synced_facts, os.fsync = synced_facts, sync

    @contextmanager
    def _timed(self, what: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self.seconds[what] += time.perf_counter() - began


def sizes(checkpoint: Path, tensors: Mapping[str, "torch.Tensor"]) -> Round:  # noqa: F821
    """Bytes of a checkpoint's files, of the rank that wrote most, and of the tensors it holds."""
    files = {path.name: path.stat().st_size for path in checkpoint.iterdir()}
    of_ranks: dict[str, int] = {}
    for name, size in files.items():
        if match := re.match(r"__(\d+)_", name):
            of_ranks[match[1]] = of_ranks.get(match[1], 0) + size
    momentum = {name: tensor for name, tensor in tensors.items() if name.startswith("optimizer.")}
    parameters = {name.removeprefix("optimizer.").removesuffix(".momentum_buffer") for name in momentum}
    needed = sum(t.nbytes for t in momentum.values()) + sum(tensors[f"model.{name}"].nbytes for name in parameters)
    return {
        "bytes": sum(files.values()),
        "largest rank": max(of_ranks.values()),
        "needed": needed,
        "with buffers": sum(tensor.nbytes for tensor in tensors.values()),
    }


def report_saves(rounds: list[Round]) -> None:
    row = Table("saves, seconds")
    row("torch.distributed.checkpoint.save", [r["plain"] for r in rounds])
    row("ours, nothing beside it, from beginning to `latest`", [r["ours"] for r in rounds])
    row("ours without hashes, nothing beside it", [r["ours without hashes"] for r in rounds])
    row("ours, beside steps", [r["ours beside steps"] for r in rounds])
    row("held up, the first save, which makes the buffers", [rounds[0]["first hold"]])
    row("held up, nothing beside it", [r["hold alone"] for r in rounds])
    row("held up, between steps", [r["hold"] for r in rounds])
    row("lost by the steps beside it", [r["lost"] for r in rounds])
    row("  a step without", [r["step"] for r in rounds])
    row("  steps beside a save", [r["steps beside"] for r in rounds])
    row("SHA-256 of the files", [r["sha256"] for r in rounds])
    row("  the disk meanwhile", [r["disk"] for r in rounds])
    row("  both", [r["facts"] for r in rounds])
    row("CRC-32 of the tensors, which the ranks compare", [r["crc"] for r in rounds])
    row = Table("ratios")
    row("held up, between steps, over plain save", [r["hold"] / r["plain"] for r in rounds], 0.10)
    row("held up and lost, over plain save", [(r["hold"] + r["lost"]) / r["plain"] for r in rounds])
    row("what both hashes add, over ours", [1 - r["ours without hashes"] / r["ours"] for r in rounds], 0.10)
    row("SHA-256, past what the disk takes, over ours", [(r["facts"] - r["disk"]) / r["ours"] for r in rounds], 0.10)
    row("the same and CRC-32, over ours", [(r["facts"] - r["disk"] + r["crc"]) / r["ours"] for r in rounds])
    row("largest rank's bytes over all", [r["largest rank"] / r["bytes"] for r in rounds], 0.55)
    row("bytes over parameters + momentum", [r["bytes"] / r["needed"] for r in rounds], 1.02)
    row("bytes over the same + buffers", [r["bytes"] / r["with buffers"] for r in rounds])
    print(f"{rounds[0]['with buffers'] / 1e6:.1f} MB of state, {rounds[0]['bytes'] / 1e6:.1f} MB on disk")


# Restarts


def bare_part(_: argparse.Namespace) -> None:
    """The least that a restarted rank does; the first attempt waits to be killed."""
    import torch
    import torch.distributed as dist

    dist.init_process_group("gloo")
    dist.all_reduce(torch.ones(1))
    print("summed", flush=True)
    if os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
        time.sleep(600)
    dist.destroy_process_group()


def restarts(arguments: argparse.Namespace) -> list[dict[str, Round]]:
    """Seconds of the parts of a restart, of both sides."""
    rounds = []
    for number in range(arguments.rounds):
        out = arguments.folder / f"run-{number}"
        words = (
            "--recipe", "quickstart", "--out", out, "--log-every", 1, "--knn-every", 0, "--checkpoint.every-steps", 5
        )  # fmt: skip
        ours = torchrun(arguments.ranks, 1, ROOT / "pretrain.py", *words)
        bare = torchrun(arguments.ranks, 1, __file__, "--part=bare")
        latest = out / "checkpoints/latest"
        rounds.append(
            {
                "bare": restart(bare, "summed", lambda: True, BARE),
                "ours": restart(ours, r"step \d+/", latest.exists, {}, between="resumed"),
            }
        )
        told = (f"{side} {found['all']:.2f}" for side, found in rounds[-1].items())
        print(f"round {number + 1}  from kill to next step: {'  '.join(told)}", flush=True)
        shutil.rmtree(out)
    return rounds


def restart(
    words: list[str], step: str, ready: Callable[[], bool], variables: Mapping[str, str], between: str = ""
) -> Round:
    """Kills rank 1 after a line that begins with `step`, when ready; seconds until such a line of the next attempt.

    `between` begins a line of the way there, to be timed too.
    """
    with started(words, variables) as torchrun_process:
        found: Round = {}
        killed, victims, began = 0.0, {}, time.monotonic()
        for line in torchrun_process.stdout:
            now = time.clock_gettime(time.CLOCK_BOOTTIME)
            if time.monotonic() - began > 300:
                break
            if not killed:
                if re.match(step, line) and ready():
                    victims = ranks(torchrun_process.pid)
                    killed = time.clock_gettime(time.CLOCK_BOOTTIME)
                    os.kill(victims[1], signal.SIGKILL)
                continue
            if between and line.strip().startswith(between):
                found["between"] = now - killed
            here = ranks(torchrun_process.pid) if re.match(step, line) else {}
            if here.get(0, victims[0]) != victims[0]:  # not a last line of the rank that was left
                found["started"] = max(map(start_time, here.values())) - killed
                return {**found, "all": now - killed}
    sys.exit(f"{words[-1]}: no step after the kill; last line: {line.strip()}")


def report_restarts(rounds: list[dict[str, Round]]) -> None:
    row = Table("from SIGKILL of rank 1, seconds")
    for side, what in (("bare", "bare script"), ("ours", "pretrain.py")):
        row(f"{what}: torchrun has started all ranks again", [r[side]["started"] for r in rounds])
        if side == "ours":
            row(f"{what}: before the first step", [r[side]["between"] for r in rounds])
        row(f"{what}: {'next step' if side == 'ours' else 'next sum'}", [r[side]["all"] for r in rounds])
    row("pretrain.py over the bare script", [r["ours"]["all"] - r["bare"]["all"] for r in rounds], 2.0)


@contextmanager
def started(words: list[str], variables: Mapping[str, str]) -> Iterator[subprocess.Popen]:
    """torchrun, asked to end at the end."""
    process = subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env={**os.environ, **variables}
    )
    try:
        yield process
    finally:
        process.terminate()
        process.communicate(timeout=120)


def ranks(torchrun_pid: int) -> dict[int, int]:
    """Process numbers of the ranks that torchrun has now."""
    found = {}
    for pid in Path(f"/proc/{torchrun_pid}/task/{torchrun_pid}/children").read_text().split():
        try:
            variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        except OSError:  # gone
            continue
        found |= {int(v.removeprefix(b"RANK=")): int(pid) for v in variables if v.startswith(b"RANK=")}
    return found


def start_time(pid: int) -> float:
    """When a process was started, by the clock since boot."""
    after_name = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(after_name[19]) / os.sysconf("SC_CLK_TCK")


# Both


def torchrun(ranks: int, restarts: int, script: object, *arguments: object) -> list[str]:
    options = ("--standalone", f"--nproc_per_node={ranks}", f"--max-restarts={restarts}")
    return [sys.executable, "-m", "torch.distributed.run", *options, str(script), *map(str, arguments)]


class Table:
    """Rows of median, least, most and goal, printed as they come."""

    def __init__(self, title: str) -> None:
        print(f"\n{title:<56}{'median':>9}{'least':>9}{'most':>9}{'at most':>9}")

    def __call__(self, what: str, values: list[float], goal: float | None = None) -> None:
        figures = (statistics.median(values), min(values), max(values))
        print(f"{what:<56}" + "".join(f"{f:>9.3f}" for f in figures) + (f"{goal:>9.2f}" if goal else ""), flush=True)


if __name__ == "__main__":
    main()
