"""What a method costs beside SimSiam: seconds a step, and the most memory a process has had, for the same images.

    python benchmarks/methods.py [--encoder resnet18] [--size 64] [--batch-size 32] [--methods simsiam,simclr,...]

Random views and the training step of pretrain.py, float32 or --precision. Each method is timed in a process of its own,
so that its memory is its own; all take turns, round after round, so that a machine that slows down slows all of them.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time

from simsiam.methods.registry import METHODS

_BASE = "simsiam"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--encoder", default="resnet18")
    parser.add_argument("--size", type=int, default=64, help="side of a view, pixels")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--steps", type=int, default=5, help="timed steps of a method in a round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(measure(json.loads(arguments.one), arguments)))
        return
    sections = {name: {"name": name} for name in dict.fromkeys([_BASE, *arguments.methods.split(",")])}
    for section in sections.values():
        if section["name"].startswith("simsiam-kd"):  # a teacher costs the same whatever it knows
            section |= {"teacher": "random", "teacher_encoder": arguments.encoder}
    measured: dict[str, list[dict]] = {name: [] for name in sections}
    for _ in range(arguments.rounds):
        for name, section in sections.items():
            words = [sys.executable, *sys.argv, "--one", json.dumps(section)]
            done = subprocess.run(words, capture_output=True, text=True, check=False)
            if done.returncode:
                sys.exit(f"{name}: {done.stderr.strip().splitlines()[-1]}")
            measured[name].append(json.loads(done.stdout.strip().splitlines()[-1]))
    base = measured[_BASE]
    print(
        f"{arguments.encoder}, {arguments.batch_size} images, views of {arguments.size} pixels, {arguments.precision}"
    )
    print(f"{'method':<24} {'s/step':>8} {'ratio (least, most)':>22} {'MiB':>8} {'more':>8}")
    for name, rounds in measured.items():
        ratios = [one["seconds"] / other["seconds"] for one, other in zip(rounds, base)]
        seconds, memory = (statistics.median(one[key] for one in rounds) for key in ("seconds", "bytes"))
        more = (memory - statistics.median(one["bytes"] for one in base)) / 2**20
        spread = f"{statistics.median(ratios):.2f} ({min(ratios):.2f}, {max(ratios):.2f})"
        print(f"{name:<24} {seconds:8.3f} {spread:>22} {memory / 2**20:8.0f} {more:+8.0f}")


def measure(section: dict, arguments: argparse.Namespace) -> dict[str, float]:
    """Median seconds of a step, and the most memory of this process or of the GPU."""
    import torch

    from simsiam.distributed.runtime import running
    from simsiam.methods.registry import build_method
    from simsiam.run.journal import memory_bytes
    from simsiam.settings.derive import derive
    from simsiam.settings.tree import Optim, Pretrain
    from simsiam.training.build import build_state
    from simsiam.training.step import train_step

    settings = Pretrain(
        batch_size=arguments.batch_size, epochs=2, precision=arguments.precision, encoder=arguments.encoder,
        method=section, optim=Optim(lr=0.01),
    )  # fmt: skip
    with running("auto") as runtime:
        num_images = 16 * settings.batch_size
        method = build_method(section, settings.encoder)
        method.prepare(num_images, settings.batch_size)
        state = build_state(method, settings, derive(settings, 1, num_images), runtime)
        side = arguments.size
        views = torch.randn(method.num_views, settings.batch_size, 3, side, side, device=runtime.device)
        samples = torch.arange(settings.batch_size, device=runtime.device)
        inputs = (views, samples) if method.takes_samples else (views,)
        taken = []
        for number in range(1 + arguments.steps):
            began = time.perf_counter()
            train_step(state, [inputs])
            if runtime.device.type == "cuda":
                torch.cuda.synchronize()
            if number:  # the first one warms up
                taken.append(time.perf_counter() - began)
        return {"seconds": statistics.median(taken), "bytes": memory_bytes(runtime.device)}


if __name__ == "__main__":
    main()
