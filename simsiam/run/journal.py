"""What a run tells: the banner, metrics, progress, pictures, replaced files, the summary; and how it stops."""

import resource
import time
from collections.abc import Iterable, Iterator
from statistics import median
from typing import Any, NoReturn

import torch
from torch import Tensor
from torchvision.io import encode_png

from simsiam.data.stand_ins import Named, WithStandIns
from simsiam.distributed.collectives import mean_over_ranks
from simsiam.distributed.runtime import Runtime
from simsiam.errors import Preempted, TrainingStopped
from simsiam.run.curves_file import write_curves
from simsiam.run.folder import RunFolder
from simsiam.run.metrics import Metrics
from simsiam.run.pictures import view_grid
from simsiam.run.progress import Progress
from simsiam.run.record import read_run
from simsiam.settings.derive import Numbers
from simsiam.settings.tree import Job, Pretrain, Run, Views
from simsiam.training.clock import Clock
from simsiam.training.skew import over_ranks, remark
from simsiam.training.state import TrainState
from simsiam.training.step import StepResult


class Journal:
    """The record of one run; every rank has one, rank 0's writes.

    Args:
        facts: what the banner says besides the numbers, by name; None shows no banner.
    """

    def __init__(
        self,
        folder: RunFolder,
        settings: Job,
        numbers: Numbers,
        runtime: Runtime,
        state: TrainState,
        facts: dict[str, str] | None,
    ) -> None:
        self.folder, self._settings, self._numbers, self._runtime = folder, settings, numbers, runtime
        if runtime.is_main:
            folder.begin(settings)
        self._metrics = Metrics(folder.path if runtime.is_main else None, state.step)
        self._progress = Progress(numbers.stop_step, state.step, shown=runtime.is_main, hidden=settings.hide_progress)
        self._began, self._first_step = time.perf_counter(), state.step
        self._bad: set[int] = set()
        self._wants_views = runtime.is_main and not (folder.path / "first_views.png").exists()
        self.summary: dict[str, Any] = folder.read_summary() if runtime.is_main and state.step else {}
        if facts is not None:
            self.say(banner(settings, numbers, runtime, state, facts))

    def say(self, text: str) -> None:
        """A line on rank 0."""
        self._progress.say(text)

    def picturing_first_views(
        self, batches: Iterable[tuple[Tensor, ...]], views: Views
    ) -> Iterator[tuple[Tensor, ...]]:
        """Hands on what a step's micro-batches are made into; the first views the run ever sees become a picture."""
        for number, images in enumerate(batches):
            if number == 0 and self._wants_views:
                self._wants_views = False
                picture = view_grid(images, views)
                self._metrics.pictures("first_views", picture)
                with self._metrics.whatever_the_disk_says():
                    (self.folder.path / "first_views.png").write_bytes(encode_png(picture).numpy().tobytes())
            yield images

    def picture(self, name: str, picture: Tensor | None) -> None:
        """A picture for TensorBoard, uint8 (3, H, W); None is none."""
        if picture is not None:
            self._metrics.pictures(name, picture)

    def stepped(self, micro_batches: Iterable[WithStandIns], images: Named) -> None:
        """Moves the progress on by a step, and lists images that could not be read, each once a run."""
        self._progress.stepped()
        for sample, reason in (pair for batch in micro_batches for pair in batch.replaced):
            if sample not in self._bad:
                self._bad.add(sample)
                with self.folder.bad_files.open("a") as file:
                    file.write(f"{images.name(sample)}\t{reason}\n")

    def log(
        self, state: TrainState, result: StepResult, clock: Clock, measures: dict[str, Any], text: str = ""
    ) -> None:
        """A line of metrics, and of progress. Every rank must call it."""
        step, numbers = state.step, self._numbers
        timing = over_ranks(clock.read(), self._runtime.device)
        values = {
            "epoch": round(step / numbers.steps_per_epoch, 4),
            "loss": mean_over_ranks(result.loss).item(),
            **measures,
            "grad_norm": result.grad_norm.item(),
            **{f"lr/{group['name']}": group["lr"] for group in state.optimizer.param_groups},
            **timing,
            "memory_bytes": memory_bytes(self._runtime.device),
        }
        if "encoder" in (group["name"] for group in state.optimizer.param_groups):
            values["lr"] = values["lr/encoder"]
        if state.precision.scaler.is_enabled():
            values["loss_scale"] = state.precision.scaler.get_scale()
        self._metrics.write(step, values)
        self.summary.update({"step": step, "loss": values["loss"], **measures})
        waiting = 100 * timing["data_seconds"] / max(timing["step_seconds"], 1e-9)
        done = step - self._first_step
        left = (time.perf_counter() - self._began) / max(done, 1) * (numbers.stop_step - step)
        unit = "pairs/s" if isinstance(self._settings, Pretrain) else "images/s"
        rate = f"{timing['pairs_per_second']:.0f} {unit}  data {waiting:.0f}%"
        words = [f"epoch {values['epoch']:.2f}", f"loss {values['loss']:.4f}", text, rate, remark(timing)]
        self._progress.report(step, "  ".join(filter(None, words)), left)

    def answer(self, step: int, **figures: float) -> None:
        """An evaluation on the way, in percent: a line of metrics, a sentence, the summary's last and best."""
        self._metrics.write(step, figures)
        self.say(f"step {step}  " + "  ".join(f"{name} {value:.2f}%" for name, value in figures.items()))
        for name, value in figures.items():
            history = self._metrics.series(name)
            best = {f"{name}_best": max(v for _, v in history)} if history else {}
            # Of what a run begins with, which is random weights but where it is given others.
            begins = "start" if getattr(self._settings, "init", "") else "random"
            start = {f"{name}_{begins}": history[0][1]} if history and history[0][0] == 0 else {}
            self.summary.update({name: value, **best, **start})

    def lacks_answer(self, step: int) -> bool:
        """Whether what went before ended at `step` without its evaluation. Every rank must call it."""
        return self._runtime.on_main(lambda: step > 0 and not self._metrics.has_answer(step))

    def is_best(self, name: str) -> bool:
        """Whether the newest answer is the best so far; on rank 0."""
        history = self._metrics.series(name)
        return history[-1][1] == max(value for _, value in history)

    def stop(self, reason: str) -> NoReturn:
        """Ends the run as failed, with its reason, on every rank."""
        self._end("failed", {"reason": reason})
        raise TrainingStopped(f"{self.folder.path}: {reason}")

    def end_early(self, sentence: str) -> NoReturn:
        """Ends a run that was asked to, for the same command to go on with; every rank must call it."""
        self._end("preempted", {"reason": sentence})
        raise Preempted(f"{self.folder.path} ends early: {sentence}; the same command goes on from there")

    def finish(self, **figures: Any) -> None:
        """Ends the run as completed, with the figures of summary.json. Every rank must call it."""
        self._runtime.barrier()  # every rank has listed what it could not read
        bad = self.folder.count_bad_files()
        self._end("completed", {**figures, "replaced_images": bad})
        listed = f", {bad} images could not be read, see {self.folder.bad_files}" if bad else ""
        self.say(f"completed in {self.summary['seconds']:.0f} s{listed}; results in {self.folder.path}")

    def _end(self, how: str, figures: dict[str, Any]) -> None:
        self._progress.close()
        rates = [rate for _, rate in self._metrics.series("pairs_per_second")]
        if rates:
            self.summary["pairs_per_second"] = median(rates)
        self._metrics.close()
        self.summary.update({"state": how, "seconds": time.perf_counter() - self._began, **figures})
        if self._runtime.is_main:
            self.folder.write_summary(self.summary)
            self.folder.mark(how)
            with self._metrics.whatever_the_disk_says():
                write_curves(read_run(self.folder.path))


def memory_bytes(device: torch.device) -> int:
    """The most memory so far: allocated on the GPU, or resident in this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def banner(settings: Job, numbers: Numbers, runtime: Runtime, state: TrainState, facts: dict[str, str]) -> str:
    """The effective settings of a run, a line each."""
    groups = (
        f"{group['name']} {schedule.peak:g} {schedule.shape}"
        for group, schedule in zip(state.optimizer.param_groups, state.schedules, strict=True)
    )
    pieces = f" = {settings.accumulate} micro-batches of {numbers.micro_batch}" if settings.accumulate > 1 else ""
    lines = {
        **facts,
        "batch": f"{numbers.global_batch} images, {numbers.rank_batch} on each of {runtime.world_size} rank(s){pieces}",
        "batch norm": f"over {numbers.bn_group} images of a view",
        "rates": ", ".join(groups) + f" ({type(state.optimizer).__name__.lower()})",
        "steps": f"{numbers.steps_per_epoch} an epoch, {numbers.total_steps} in "
        f"{numbers.total_steps / numbers.steps_per_epoch:.4g} epochs, "
        f"from {state.step} to {numbers.stop_step}",
        "device": f"{runtime.device}, {state.precision.name}",
    }
    if isinstance(settings, Run):
        mean, std = (", ".join(f"{value:g}" for value in getattr(settings.views, name)) for name in ("mean", "std"))
        lines["images"] = f"{settings.views.size} pixels, mean {mean}, std {std}"
    return "\n".join(f"{name:>12}  {value}" for name, value in lines.items())
