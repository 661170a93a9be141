"""Batch size is global: the number of ranks, workers and the loader change a run by rounding only."""

from pathlib import Path

import pytest

from tests.faults.harness import logged, run

SMALL = (
    "--recipe", "quickstart", "--precision", "fp32", "--batch-size", 32, "--max-steps", 20, "--log-every", 1,
    "--knn-every", 0, "--hide-progress", "--optim.lr", 0.03, "--views.size", 16, "--views.resize", 16,
)  # fmt: skip


@pytest.mark.slow
def test_ranks_workers_and_loaders_give_the_same_losses(tmp_path: Path) -> None:
    runs = {
        (1, "resident", 0): [],
        (2, "torchvision", 1): [],
        (4, "resident", 0): [],
        (1, "torchvision", 2): [],
    }
    for number, (ranks, loader, workers) in enumerate(runs):
        out = tmp_path / str(number)
        assert run(ranks, out, "--loader", loader, "--workers", workers, settings=SMALL) == [0] * ranks
        runs[ranks, loader, workers] = list(logged(out).values())
    reference = runs[1, "resident", 0]
    assert len(reference) == 20
    assert reference[-1] < reference[0] - 0.02
    for losses in runs.values():
        assert losses == pytest.approx(reference, abs=1e-4)
