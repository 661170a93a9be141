"""Signals that ask a run to end: noted whatever the main thread does, and by the process they were sent to alone."""

import ctypes
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from simsiam.training.signals import Signals
from tests.processes import wait_until

AN_ASKED = f"""
import os, signal, sys, time
sys.path.insert(0, {os.getcwd()!r})
from simsiam.training.signals import Signals
with Signals() as signals:
    print("ready", flush=True)
    while signals.received is None:
        time.sleep(0.01)
    print(signals.received.name, flush=True)
    time.sleep(60)
"""


def test_the_first_is_noted_and_what_was_before_comes_back() -> None:
    before = signal.getsignal(signal.SIGUSR1)
    with Signals() as signals:
        assert signals.received is None
        os.kill(os.getpid(), signal.SIGUSR1)
        wait_until(lambda: signals.received, 20)
        os.kill(os.getpid(), signal.SIGTERM)  # at once: the same wish by another way
        time.sleep(0.1)
        assert signals.received is signal.SIGUSR1
    assert signal.getsignal(signal.SIGUSR1) is before
    assert not any(thread.name == "signals" for thread in threading.enumerate())


def test_it_is_noted_while_the_main_thread_is_in_c() -> None:
    """As in a collective that a lost rank never joins, which no signal interrupts."""
    heard = []
    with Signals() as signals:

        def ask() -> None:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])
            signal.pthread_kill(threading.get_ident(), signal.SIGTERM)
            wait_until(lambda: signals.received, 20)
            heard.append(time.monotonic())

        before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
        thread = threading.Thread(target=ask)
        thread.start()
        ctypes.CDLL(None).sleep(1)
        back = time.monotonic()
        thread.join()
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    assert heard[0] < back - 0.3


def test_a_forked_child_keeps_its_signals_to_itself() -> None:
    with Signals() as signals:
        lives, says = os.pipe()
        child = os.fork()
        if child == 0:
            os.write(says, b"!")
            time.sleep(60)
            os._exit(0)
        os.read(lives, 1)
        os.kill(child, signal.SIGTERM)
        time.sleep(0.3)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        assert signals.received is None


@pytest.mark.parametrize(("wait", "code"), [(2.2, 128 + signal.SIGTERM), (0.0, None)])
def test_a_second_one_later_ends_the_process(wait: float, code: int | None) -> None:
    with subprocess.Popen([sys.executable, "-c", AN_ASKED], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGUSR2)
        assert process.stdout.readline() == "SIGUSR2\n"
        time.sleep(wait)
        process.send_signal(signal.SIGTERM)
        try:
            assert process.wait(timeout=20 if code else 0.5) == code
        except subprocess.TimeoutExpired:
            assert code is None
        process.kill()
