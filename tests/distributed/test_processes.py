"""Processes are told apart by when they began."""

import os
import subprocess
import sys
import time

import pytest

from simsiam.distributed.processes import process_age

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")


def test_the_age_of_a_process_is_that_since_its_start() -> None:
    before = time.monotonic()
    with subprocess.Popen(["sleep", "60"]) as process:
        time.sleep(0.5)
        age = process_age(process.pid)
        process.kill()
    assert 0.4 <= age <= time.monotonic() - before + 0.1
    assert process_age(os.getpid()) > age


def test_of_a_process_that_is_gone_no_age_is_known() -> None:
    with subprocess.Popen(["true"]) as process:
        process.wait()
    assert process_age(process.pid) is None
