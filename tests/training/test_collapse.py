"""The paper's argument in small: stop-gradient is what keeps SimSiam from collapsing, and the run says which it is."""

import json
from pathlib import Path

import pytest

TWO_EPOCHS = ("--recipe", "quickstart", "--max-steps", 156, "--log-every", 13, "--knn-every", 0)


def measures(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_without_stop_gradient_the_verdict_is_collapsed_within_two_epochs(launch, tmp_path: Path) -> None:
    without = ("--method.stop_gradient", "false", "--health.on_collapse", "stop")
    done = launch("pretrain.py", *TWO_EPOCHS, *without, "--out", tmp_path, check=False)
    last = measures(tmp_path)[-1]
    assert done.returncode == 3
    assert last["verdict"] == "collapsed"
    assert last["epoch"] <= 2
    assert "collapsed at step" in done.stderr
    assert (tmp_path / "failed").exists()
    assert list((tmp_path / "checkpoints").glob("step_*"))


@pytest.mark.slow
def test_with_stop_gradient_every_verdict_is_ok_and_knn_gains_15_points(launch, tmp_path: Path) -> None:
    launch("pretrain.py", "--recipe", "quickstart", "--knn-every", 12, "--log-every", 13, "--out", tmp_path, ranks=2)
    assert {line["verdict"] for line in measures(tmp_path) if "verdict" in line} == {"ok"}
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["knn"] > summary["knn_random"] + 15
