"""What a GPU is told of the kernels to take; that they then do as they are told is in tests/gpu."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from simsiam.distributed import runtime
from simsiam.distributed.kernel_choice import choose_kernels
from simsiam.errors import UserError

LOOK = """
import json, os, torch
from simsiam.distributed.kernel_choice import choose_kernels
choose_kernels(deterministic={deterministic}, by_trial={by_trial})
variables = [os.environ.get("CUBLAS_WORKSPACE_CONFIG"), os.environ.get("NCCL_ALGO")]
print(json.dumps([torch.backends.cudnn.benchmark, torch.are_deterministic_algorithms_enabled(), *variables]))
"""


@pytest.mark.parametrize(
    ("deterministic", "by_trial", "expected"),
    [
        (False, True, [True, False, None, None]),
        (False, False, [False, False, None, None]),
        (True, True, [False, True, ":4096:8", "Ring"]),
    ],
)
def test_the_fastest_or_those_that_repeat_themselves(deterministic: bool, by_trial: bool, expected: list) -> None:
    clean = {k: v for k, v in os.environ.items() if k not in ("CUBLAS_WORKSPACE_CONFIG", "NCCL_ALGO")}
    look = LOOK.format(deterministic=deterministic, by_trial=by_trial)
    done = subprocess.run([sys.executable, "-c", look], env=clean, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == expected
    assert not done.stderr


def test_variables_that_are_set_stay_and_an_operation_without_such_a_kernel_is_a_warning(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("NCCL_ALGO", "Tree")
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", torch.backends.cudnn.benchmark)
    try:
        choose_kernels(deterministic=True, by_trial=True)
        assert torch.is_deterministic_algorithms_warn_only_enabled()
        assert torch.empty(8).isfinite().all() or not torch.utils.deterministic.fill_uninitialized_memory
    finally:
        torch.use_deterministic_algorithms(False)
        torch.utils.deterministic.fill_uninitialized_memory = True
    assert (os.environ["NCCL_ALGO"], os.environ["CUBLAS_WORKSPACE_CONFIG"]) == ("Tree", ":16:8")


@pytest.mark.parametrize("deterministic", [False, True])
def test_a_run_on_a_gpu_asks_for_them(monkeypatch: pytest.MonkeyPatch, deterministic: bool) -> None:
    asked = []
    monkeypatch.setattr(runtime, "choose_device", lambda *_: torch.device("cuda", 0))
    monkeypatch.setattr(torch.cuda, "set_device", lambda _: None)
    monkeypatch.setattr(runtime, "choose_kernels", lambda **words: asked.append(words))
    tf32 = torch.backends.cuda.matmul.allow_tf32
    with runtime.running("auto", deterministic=deterministic):
        pass
    torch.backends.cuda.matmul.allow_tf32 = tf32
    assert asked == [{"deterministic": deterministic, "by_trial": True}]


@pytest.mark.parametrize(
    ("script", "words", "expected"),
    [
        ("pretrain", ["--deterministic"], {"deterministic": True}),
        ("pretrain", [], {"deterministic": False}),
        ("lincls", ["--pretrained", "random", "--encoder", "resnet8", "--deterministic"], {"deterministic": True}),
        ("semisup", ["--pretrained", "random", "--encoder", "resnet8", "--deterministic"], {"deterministic": True}),
        (
            "transfer.classify",
            ["--protocol", "finetune", "--pretrained", "random", "--encoder", "resnet8", "--deterministic"],
            {"deterministic": True},
        ),
        (
            "transfer.classify",
            ["--protocol", "few-shot", "--pretrained", "random", "--encoder", "resnet8"],
            {"by_trial": False},
        ),
        (
            "transfer.detect",
            ["--recipe", "shapes-voc", "--pretrained", "random", "--encoder", "resnet18"],
            {"by_trial": False},
        ),
    ],
)
def test_every_script_says_what_it_needs(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, script: str, words: list[str], expected: dict
) -> None:
    def stop(*_: Any, **words: Any) -> None:
        raise UserError(json.dumps(words))

    data = [] if "--recipe" in words else ["--data", "digits"]
    monkeypatch.setattr(sys, "argv", [script, *words, *data, "--out", str(tmp_path / "run")])
    monkeypatch.setattr(runtime, "running", stop)
    with pytest.raises(UserError) as asked:
        importlib.import_module(script).main.__wrapped__()
    assert json.loads(str(asked.value)) == expected
