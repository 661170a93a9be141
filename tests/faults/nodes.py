"""Two machines in one: namespaces of names, processes and network, and a switch between that delays, loses and cuts."""

import contextlib
import ctypes
import fcntl
import heapq
import os
import random
import select
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.conftest import ROOT, clean_environment
from tests.processes import wait_until

_TUNSETIFF, _TUN_WITHOUT_HEADER = 0x400454CA, 0x1001  # linux/if_tun.h
_CLONE_NEWNET = 0x40000000
_NAMESPACES = ("--net", "--uts", "--mount", "--pid")


def address(number: int) -> str:
    return f"10.77.0.{number + 1}"


class Switch:
    """Carries packets between nodes in a thread of this process; the kernel's netem is not on every machine.

    Attributes:
        cut: numbers of the nodes whose cable is out.
        delay, loss: seconds that a packet takes, and the part of packets that is lost.
    """

    def __init__(self) -> None:
        self.cut: set[int] = set()
        self.delay = self.loss = 0.0
        self._ports: dict[int, int] = {}
        self._unplugged: list[int] = []  # closed by the thread, which may just be reading one
        self._draw = random.Random(0)
        self._ends = threading.Event()
        self._thread = threading.Thread(target=self._carry, name="switch", daemon=True)
        self._thread.start()

    def connect(self, number: int, pid: int) -> None:
        """Gives the network namespace of a process an `eth0` that ends here."""
        with ThreadPoolExecutor(1) as another:  # a thread may be in another namespace than the rest
            self._ports[number] = another.submit(_tun_of, pid).result()
        for words in (
            f"addr add {address(number)}/24 dev eth0", "link set eth0 txqueuelen 10000 up", "link set lo up",
        ):  # fmt: skip
            subprocess.run(["nsenter", "-t", str(pid), "-n", "ip", *words.split()], check=True, capture_output=True)

    def disconnect(self, number: int) -> None:
        if number in self._ports:
            self._unplugged.append(self._ports.pop(number))

    def close(self) -> None:
        self._ends.set()
        self._thread.join()
        for port in (*self._ports.values(), *self._unplugged):
            os.close(port)

    def _carry(self) -> None:
        under_way: list[tuple[float, int, int, bytes]] = []
        count = 0
        while not self._ends.is_set():
            while self._unplugged:
                os.close(self._unplugged.pop())
            ports = dict(self._ports)
            until = min(0.1, under_way[0][0] - time.monotonic()) if under_way else 0.1
            readable, _, _ = select.select(list(ports.values()), [], [], max(0.0, until))
            for number in (each for each, port in ports.items() if port in readable):
                with contextlib.suppress(OSError):
                    packet = os.read(ports[number], 1 << 16)
                    to = packet[19] - 1 if packet[0] >> 4 == 4 else -1
                    if to in ports and number not in self.cut and self._draw.random() >= self.loss:
                        count += 1
                        heapq.heappush(under_way, (time.monotonic() + self.delay, count, to, packet))
            while under_way and under_way[0][0] <= time.monotonic():
                _, _, to, packet = heapq.heappop(under_way)
                if to not in self.cut and to in ports:
                    with contextlib.suppress(OSError):
                        os.write(ports[to], packet)


class Node:
    """A machine `node0`, `node1`, ...: a first process, which takes all others with it, and what is started there."""

    def __init__(self, number: int, switch: Switch, folder: Path) -> None:
        self.number, self.name = number, f"node{number}"
        self._switch, self._folder = switch, folder
        setup = f"hostname {self.name} && mount --bind {folder}/hosts /etc/hosts && echo ready && exec cat"
        # It ends with this process too, whose end it reads from the pipe.
        self._process = subprocess.Popen(
            ["unshare", *_NAMESPACES, "--fork", "--kill-child", "--mount-proc", "sh", "-c", setup],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        if self._process.stdout.readline() != "ready\n":
            raise OSError(self._process.communicate()[1])
        self.pid = int(Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text())
        (folder / self.name).write_text(str(self.pid))
        # One core each: the number of threads is part of what sums round to.
        cores = sorted(os.sched_getaffinity(0))
        self.sets(f"taskset -cp {cores[number % len(cores)]} $$ >/dev/null")

    def plug_in(self) -> None:
        self._switch.connect(self.number, self.pid)

    def start(self, *command: object, **more: str) -> subprocess.Popen:
        """Starts a command there, in the project's folder; what it says comes to NAME.log."""
        with (self._folder / f"{self.name}.log").open("a") as log:
            return subprocess.Popen(
                ["nsenter", "-t", str(self.pid), *_NAMESPACES, "env", f"--chdir={ROOT}", *map(str, command)],
                env={**environment(self._folder), **more}, stdout=log, stderr=log, stdin=subprocess.DEVNULL,
            )  # fmt: skip

    def sets(self, line: str) -> None:
        """A line of shell that comes before each torchrun of this node."""
        with (self._folder / f"{self.name}.env").open("a") as file:
            file.write(line + "\n")

    def processes(self) -> dict[int, str]:
        """Command lines of what runs there beside the first process, by the number that a process has here."""
        namespace = os.readlink(f"/proc/{self.pid}/ns/pid")
        found = {}
        for path in Path("/proc").iterdir():
            with contextlib.suppress(OSError):
                if path.name.isdigit() and int(path.name) != self.pid and os.readlink(path / "ns/pid") == namespace:
                    words = (path / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                    if words:  # a zombie has none
                        found[int(path.name)] = words
        return found

    def kill_processes(self) -> None:
        """Kills all that was started there; the node stays."""
        for pid in self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def lose(self) -> None:
        """Takes the node away as when its power fails: not even the network says so."""
        self._switch.cut.add(self.number)
        self.close()

    def close(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
        for stream in (self._process.stdin, self._process.stdout, self._process.stderr):
            stream.close()
        self._process.wait()
        wait_until(lambda: not Path(f"/proc/{self.pid}").exists(), 30)
        self._switch.disconnect(self.number)


class Cluster:
    """Nodes 0 and 1 and the switch between them."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.switch = folder, Switch()
        hosts = [f"{address(number)} node{number}\n" for number in range(2)]
        (folder / "hosts").write_text("127.0.0.1 localhost\n" + "".join(hosts))
        _write_stand_ins(folder / "bin")
        self.nodes: list[Node] = []

    def power_on(self) -> None:
        """Starts the nodes. Raises OSError or CalledProcessError where that is not allowed."""
        for number in range(2):
            self.nodes.append(Node(number, self.switch, self.folder))
            self.nodes[number].plug_in()

    def replace(self, number: int) -> None:
        """Another machine under the name and address of one that is gone."""
        self.nodes[number].close()
        self.switch.cut.discard(number)
        self.nodes[number] = Node(number, self.switch, self.folder)
        self.nodes[number].plug_in()

    def launch(self, *words: object, **more: str) -> list[subprocess.Popen]:
        """launch/node.sh on both nodes."""
        return [self.launch_on(number, *words, **more) for number in range(2)]

    def launch_on(self, number: int, *words: object, **more: str) -> subprocess.Popen:
        places = {"PET_NODE_RANK": str(number), "PET_MASTER_PORT": "29400", **more}
        return self.nodes[number].start("launch/node.sh", *words, **places)

    def hosts(self, *words: object, **more: str) -> subprocess.Popen:
        """launch/hosts.sh, by an `ssh` that enters the nodes."""
        command = ["bash", "launch/hosts.sh", "node0,node1", *map(str, words)]
        with (self.folder / "hosts.log").open("a") as log:
            env = {**environment(self.folder), **more}
            return subprocess.Popen(command, cwd=ROOT, env=env, stdout=log, stderr=log, stdin=subprocess.DEVNULL)

    def said(self) -> str:
        return "".join(path.read_text() for path in sorted(self.folder.glob("*.log")))

    def close(self) -> None:
        for node in self.nodes:
            node.close()
        self.switch.close()


@contextlib.contextmanager
def cluster(folder: Path) -> Iterator[Cluster]:
    """Two nodes for a test, which is skipped where namespaces are not allowed."""
    made = Cluster(folder)
    try:
        try:
            made.power_on()
        except (OSError, subprocess.CalledProcessError) as refused:
            pytest.skip(f"namespaces are not allowed here: {str(refused).strip()}")
        yield made
    finally:
        made.close()


def environment(folder: Path) -> dict[str, str]:
    """What is given to a launch script of two nodes of one rank each."""
    places = {"PET_NNODES": "2", "PET_NPROC_PER_NODE": "1", "PET_MASTER_ADDR": "node0", "NODES": str(folder)}
    return {**clean_environment(), **places, "PATH": f"{folder / 'bin'}:{os.environ['PATH']}"}


def _tun_of(pid: int) -> int:
    namespace = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY)
    failed = ctypes.CDLL(None, use_errno=True).setns(namespace, _CLONE_NEWNET)
    os.close(namespace)
    if failed:
        raise OSError(ctypes.get_errno(), "setns")
    tun = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    fcntl.ioctl(tun, _TUNSETIFF, struct.pack("16sH22x", b"eth0", _TUN_WITHOUT_HEADER))
    return tun


def _write_stand_ins(folder: Path) -> None:
    """`torchrun` of this Python, with what NODE.env sets for its node; `ssh` that enters a node."""
    folder.mkdir()
    texts = {
        "torchrun": f'. "$NODES/$HOSTNAME.env"\nexec {sys.executable} -m torch.distributed.run "$@"',
        "ssh": "while [[ $1 != -- ]]; do shift; done\n"
        f'exec nsenter -t "$(<"$NODES/$2")" {" ".join(_NAMESPACES)} bash -c "export NODES=$NODES; $3"',
    }
    for name, text in texts.items():
        (folder / name).write_text(f"#!/bin/bash\n{text}\n")
        (folder / name).chmod(0o755)
