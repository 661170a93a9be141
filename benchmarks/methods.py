"""What a method costs beside SimSiam: seconds a step, and the most memory a process has had, for the same images.

    python benchmarks/methods.py [--encoder resnet18] [--size 64] [--batch-size 32] [--methods simsiam,simclr,...]

Random views and the training step of pretrain.py, float32 or --precision. Seconds are taken in one process that holds
all methods: they take turns of a few steps, round after round, so that a machine that slows down slows all of them, and
a round's seconds are compared with SimSiam's of the same round. Memory is that of a process of each method's own.
"""

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from simsiam.methods.registry import METHODS

if TYPE_CHECKING:
    from simsiam.distributed.runtime import Runtime

_BASE = "simsiam"
_TURN = 5  # steps: a multiple of what `adv` goes through, whose encoder moves in every fifth


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--encoder", default="resnet18")
    parser.add_argument("--size", type=int, default=64, help="side of a view, pixels")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.memory_of:
        print(memory(json.loads(arguments.memory_of), arguments))
        return
    sections = {name: {"name": name} for name in dict.fromkeys([_BASE, *arguments.methods.split(",")])}
    for name, section in sections.items():
        if name.startswith("simsiam-kd"):  # a teacher costs the same whatever it knows
            section |= {"teacher": "random", "teacher_encoder": arguments.encoder}
        if name == "adv":  # past its first epochs, in which the encoder rests
            section |= {"discriminator_epochs": 0}
    sizes = {name: _memory_in_a_process(section) for name, section in sections.items()}
    seconds = times(sections, arguments)
    print(
        f"{arguments.encoder}, {arguments.batch_size} images, views of {arguments.size} pixels, {arguments.precision}"
    )
    print(f"{'method':<24} {'s/step':>8} {'ratio (middle half)':>22} {'MiB':>8} {'more':>8}")
    for name, taken in seconds.items():
        ratios = [one / other for one, other in zip(taken, seconds[_BASE])]
        low, middle, high = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else ratios * 3
        spread = f"{middle:.2f} ({low:.2f}, {high:.2f})"
        more = (sizes[name] - sizes[_BASE]) / 2**20
        print(f"{name:<24} {statistics.median(taken):8.3f} {spread:>22} {sizes[name] / 2**20:8.0f} {more:+8.0f}")


def times(sections: dict[str, dict], arguments: argparse.Namespace) -> dict[str, list[float]]:
    """Mean seconds of a step in each round, by method."""
    from benchmarks.measure import in_turns, seconds_of
    from simsiam.distributed.runtime import running

    with running("auto") as runtime:
        steps = {name: stepper(section, arguments, runtime) for name, section in sections.items()}
        sides = {name: lambda step=step: seconds_of(step, _TURN, runtime.device) for name, step in steps.items()}
        return in_turns(sides, arguments.rounds)


def memory(section: dict, arguments: argparse.Namespace) -> int:
    """The most bytes that this process or the GPU has held after a turn of steps."""
    from simsiam.distributed.runtime import running
    from simsiam.run.journal import memory_bytes

    with running("auto") as runtime:
        step = stepper(section, arguments, runtime)
        for _ in range(_TURN):
            step()
        return memory_bytes(runtime.device)


def stepper(section: dict, arguments: argparse.Namespace, runtime: "Runtime") -> Callable[[], object]:
    """What makes one step of a method."""
    from simsiam.commands.forecast import random_inputs
    from simsiam.methods.registry import build_method
    from simsiam.settings.derive import derive
    from simsiam.settings.tree import Optim, Pretrain, Views
    from simsiam.training.build import build_state
    from simsiam.training.step import train_step

    settings = Pretrain(
        batch_size=arguments.batch_size, epochs=100, precision=arguments.precision, encoder=arguments.encoder,
        method=section, optim=Optim(lr=0.01), views=Views(size=arguments.size),
    )  # fmt: skip
    num_images = 16 * settings.batch_size
    method = build_method(section, settings.encoder)
    method.prepare(num_images, settings.batch_size)
    state = build_state(method, settings, derive(settings, 1, num_images), runtime)
    inputs = random_inputs(method, settings, settings.batch_size, runtime.device)
    return lambda: train_step(state, [inputs])


def _memory_in_a_process(section: dict) -> int:
    words = [sys.executable, *sys.argv, "--memory-of", json.dumps(section)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{section['name']}: {done.stderr.strip().splitlines()[-1]}")
    return int(done.stdout.strip().splitlines()[-1])


if __name__ == "__main__":
    main()
