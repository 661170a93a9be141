"""Settings + number of ranks and images -> the numbers of the run."""

from dataclasses import dataclass

from simsiam.errors import UserError
from simsiam.settings.tree import Job, Run


@dataclass(frozen=True)
class Numbers:
    """What follows from the settings.

    Attributes:
        rank_batch: images per step on one rank; micro_batch: per forward on one rank.
        bn_group: images of one view that share batch-norm statistics.
        steps_per_epoch: whole global batches in an epoch; the rest of the epoch's order is dropped.
        total_steps: length of the schedule; stop_step: where this run ends.
        peak_lr: what the optimiser sees at the top of the schedule.
    """

    global_batch: int
    rank_batch: int
    micro_batch: int
    bn_group: int
    steps_per_epoch: int
    total_steps: int
    stop_step: int
    peak_lr: float

    def at_batch(self, base_lr: float) -> float:
        """What the optimiser sees of a base rate, which is for 256 images a step (the linear scaling rule)."""
        return base_lr * self.global_batch / 256


def derive(settings: Run, world_size: int, num_images: int) -> Numbers:
    """The run's numbers. Raises UserError where they do not work out."""
    check_batch(settings, world_size, num_images)
    if 0 < settings.epochs <= settings.optim.warmup_epochs:
        raise UserError(
            f"optim.warmup_epochs {settings.optim.warmup_epochs:g} leaves nothing of --epochs {settings.epochs} to the "
            "schedule; take fewer, such as a tenth"
        )
    total = settings.epochs * (num_images // settings.batch_size)
    return numbers_of(settings, world_size, num_images, total, settings.optim.lr * settings.batch_size / 256)


def numbers_of(settings: Job, world_size: int, num_images: int, total_steps: int, peak_lr: float) -> Numbers:
    """The numbers of a schedule of `total_steps` over a batch that `check_batch` has passed."""
    batch = settings.batch_size
    return Numbers(
        global_batch=batch,
        rank_batch=batch // world_size,
        micro_batch=batch // (world_size * settings.accumulate),
        bn_group=batch // settings.accumulate,
        steps_per_epoch=num_images // batch,
        total_steps=total_steps,
        stop_step=min(total_steps, settings.max_steps or total_steps),
        peak_lr=peak_lr,
    )


def check_batch(settings: Job, world_size: int, num_images: int) -> None:
    """Raises UserError where the batch does not divide over ranks and micro-batches, or outgrows the set."""
    check_divides(settings, world_size)
    batch, pieces = settings.batch_size, world_size * settings.accumulate
    if num_images < batch:
        fits = num_images // pieces * pieces
        remedy = f"take --batch-size {fits}" if fits else "use fewer ranks or micro-batches"
        raise UserError(f"--batch-size {batch} is larger than the training set of {num_images} images; {remedy}")


def check_divides(settings: Job, world_size: int) -> None:
    """Raises UserError where the batch does not divide over ranks and micro-batches."""
    batch, pieces = settings.batch_size, world_size * settings.accumulate
    if batch % pieces:
        lower, upper = batch // pieces * pieces, -(-batch // pieces) * pieces
        near = " or ".join(str(b) for b in (lower, upper) if b)
        raise UserError(
            f"--batch-size {batch} does not divide over {world_size} ranks x {settings.accumulate} micro-batches; "
            f"take {near}"
        )
