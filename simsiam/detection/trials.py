"""The same fine-tuning with several seeds: what VOC's numbers are means of."""

from collections.abc import Callable
from dataclasses import replace
from statistics import mean, stdev

from simsiam.distributed.runtime import Runtime
from simsiam.evaluation.ledger import config_hash
from simsiam.run.folder import RunFolder
from simsiam.settings.detect import Detect


def run_trials(
    settings: Detect, runtime: Runtime, folder: RunFolder, run: Callable[[Detect, RunFolder], dict[str, float]]
) -> None:
    """Runs each trial in OUT/trials/NUMBER; then mean and standard deviation are in OUT/summary.json.

    A trial that has ended is not run again, one that was interrupted goes on. Every rank must call it.

    Args:
        run: trains and tests, or only tests, in a folder of its own; returns its figures.
    """
    with folder.opened(settings, runtime):
        if runtime.is_main and not settings.evaluate_only:
            folder.begin(settings)
        answers = []
        for number in range(1, settings.trials + 1):
            place = RunFolder(str(folder.path / "trials" / str(number)))
            if runtime.is_main:
                print(f"trial {number}/{settings.trials}", flush=True)
            # A trial's own checkpoint is what it goes on from, whatever the command named.
            resume = "never" if settings.resume == "never" else "auto"
            trial = replace(settings, trials=1, seed=settings.seed + number - 1, out=str(place.path), resume=resume)
            answers.append(run(trial, place))
        figures = summarised(answers)
        if not runtime.is_main:
            return
        told = ", ".join(f"{name} {figures[name]:.2f} +- {figures[f'{name}_std']:.2f}" for name in answers[0])
        print(f"{settings.trials} trials: {told}", flush=True)
        if not settings.evaluate_only:
            about = {"trials": settings.trials, "config_sha256": config_hash(settings), "each": answers}
            folder.write_summary({**figures, **about, "state": "completed"})
            folder.mark("completed")


def summarised(answers: list[dict[str, float]]) -> dict[str, float]:
    """Mean of each figure under its name and, under NAME_std, the standard deviation of a trial (n - 1)."""
    names = [name for name in answers[0] if all(name in answer for answer in answers)]
    means = {name: mean(answer[name] for answer in answers) for name in names}
    deviations = {f"{name}_std": stdev(answer[name] for answer in answers) for name in names}
    return {**means, **deviations}
