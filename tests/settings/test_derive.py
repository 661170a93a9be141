"""The run's numbers follow from settings, ranks and images; what does not divide is refused with what would."""

import pytest

from simsiam.errors import UserError
from simsiam.settings.derive import Numbers, derive
from simsiam.settings.tree import Optim, Run


def test_numbers_of_the_official_run() -> None:
    assert derive(Run(batch_size=512, epochs=100), 8, 1_281_167) == Numbers(
        global_batch=512, rank_batch=64, micro_batch=64, bn_group=512, steps_per_epoch=2502, total_steps=250_200,
        stop_step=250_200, peak_lr=pytest.approx(0.1),
    )  # fmt: skip


def test_accumulation_shrinks_the_forward_and_the_statistics_but_not_the_rate() -> None:
    numbers = derive(Run(batch_size=24, accumulate=3, epochs=2, optim=Optim(lr=0.5)), 4, 100)
    assert (numbers.global_batch, numbers.rank_batch, numbers.micro_batch, numbers.bn_group) == (24, 6, 2, 8)
    assert (numbers.steps_per_epoch, numbers.total_steps) == (4, 8)
    assert numbers.peak_lr == pytest.approx(0.5 * 24 / 256)


@pytest.mark.parametrize(("max_steps", "stop"), [(0, 20), (7, 7), (99, 20)])
def test_max_steps_ends_the_run_and_leaves_the_schedule(max_steps: int, stop: int) -> None:
    numbers = derive(Run(batch_size=10, epochs=2, max_steps=max_steps), 1, 100)
    assert (numbers.stop_step, numbers.total_steps) == (stop, 20)


@pytest.mark.parametrize(
    ("run", "ranks", "images", "says"),
    [
        (Run(batch_size=50), 4, 100, "4 ranks x 1 micro-batches; take 48 or 52$"),
        (Run(batch_size=50, accumulate=3), 4, 100, "4 ranks x 3 micro-batches; take 48 or 60$"),
        (Run(batch_size=3), 4, 100, "take 4$"),
        (Run(batch_size=512), 8, 509, "larger than the training set of 509 images; take --batch-size 504$"),
        (Run(batch_size=8), 8, 5, "5 images; use fewer ranks or micro-batches"),
        (
            Run(batch_size=8, epochs=4, optim=Optim(warmup_epochs=10)),
            1,
            99,
            "warmup_epochs 10 leaves nothing of --epochs 4",
        ),
    ],
)
def test_numbers_that_do_not_work_out_name_those_that_do(run: Run, ranks: int, images: int, says: str) -> None:
    with pytest.raises(UserError, match=says):
        derive(run, ranks, images)


def test_a_set_of_exactly_one_batch_is_one_step() -> None:
    assert derive(Run(batch_size=100, epochs=1), 2, 100).steps_per_epoch == 1
