"""The paper's argument in small: what keeps SimSiam from collapsing, and the run says which failure is which."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from simsiam.methods.simsiam import SimSiam
from simsiam.settings.tree import Health
from simsiam.training.health import examine, limits

HEALTH = limits(Health(), collapsed_std=0.6, warn_std=0.8)
SMALL = ("--recipe", "quickstart", "--views.size", 16, "--views.resize", 16, "--workers", 0, "--log-every", 13)


def measures(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def synthetic_views(mixing: Tensor) -> tuple[Tensor, Tensor]:
    """Two views (64, 3, 4, 4) that have six numbers an image in common, and noise of their own."""
    numbers = torch.randn(64, 6)
    views = ((numbers + 0.5 * torch.randn(64, 6)) @ mixing + 0.5 * torch.randn(64, 48) for _ in range(2))
    return tuple(view.view(64, 3, 4, 4) for view in views)


def course(steps: int, **options: object) -> list[dict]:
    """Measures, loss and verdict every 50 steps of a small network, at a rate that is high for it."""
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Flatten(), nn.Linear(48, 32, bias=False), nn.BatchNorm1d(32), nn.ReLU())
    encoder.feature_dim = 32
    model = SimSiam(encoder, dim=32, predictor_hidden=8, projector_layers=2, **options)
    trained = [p for group in model.parameter_groups().values() for p in group]
    optimizer, mixing, lines = torch.optim.SGD(trained, 1.0, momentum=0.9, weight_decay=1e-4), torch.randn(6, 48), []
    for step in range(1, steps + 1):
        output = model(*synthetic_views(mixing))
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
        if step % 50 == 0:
            measures, _ = examine(output.projections, HEALTH, output.loss, model.loss_range, step)
            lines.append({**measures, "loss": output.loss.item()})
    return lines


@pytest.mark.parametrize("options", [{"predictor": "none"}, {"stop_gradient": False}])
def test_what_the_paper_says_collapses_is_called_collapsed_by_loss_and_spread(options: dict) -> None:
    lines = course(400, **options)
    assert lines[-1]["verdict"] == "collapsed"
    assert lines[-1]["loss"] < -0.75
    assert "stuck" not in {line["verdict"] for line in lines}


def test_a_fixed_random_predictor_is_stuck_and_not_collapsed() -> None:
    lines = course(200, predictor="fixed")
    assert [line["verdict"] for line in lines] == ["ok", "stuck", "stuck", "stuck"]  # none before step 100
    assert all(line["std"] > 0.9 and line["loss"] > -0.35 for line in lines)


def test_a_trained_predictor_is_neither() -> None:
    lines = course(200)
    assert {line["verdict"] for line in lines} == {"ok"}
    assert all(line["std"] > 0.95 and line["loss"] < -0.65 for line in lines)


@pytest.mark.slow
def test_without_stop_gradient_the_verdict_is_collapsed_within_two_epochs(forked, tmp_path: Path) -> None:
    without = ("--method.stop_gradient", "false", "--health.on_collapse", "stop")
    done = forked("pretrain.py", *SMALL, "--max-steps", 156, "--knn-every", 0, *without, "--out", tmp_path, check=False)
    last = measures(tmp_path)[-1]
    assert done.returncode == 3
    assert last["verdict"] == "collapsed"
    assert last["epoch"] <= 2
    assert "collapsed at step" in done.stderr
    assert (tmp_path / "failed").read_text() == "3"
    assert list((tmp_path / "checkpoints").glob("step_*"))


@pytest.mark.slow
def test_with_stop_gradient_every_verdict_is_ok_and_knn_gains_15_points(forked, tmp_path: Path) -> None:
    eight = ("--epochs", 8, "--knn-every", 4)
    forked("pretrain.py", *SMALL, *eight, "--out", tmp_path)
    assert {line["verdict"] for line in measures(tmp_path) if "verdict" in line} == {"ok"}
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["knn"] > summary["knn_random"] + 15
