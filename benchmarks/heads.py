"""What a sweep of the linear protocol costs: seconds a step with K heads over seconds with one.

    python benchmarks/heads.py [--encoder resnet50] [--size 224] [--batch-size 16] [--classes 1000] [--heads 8]

Random images; both sides run the training step of lincls.py, in turn, in one process. Reading and augmenting images,
which a sweep does once too, are left out: they would bring the ratio nearer to 1.
"""

import argparse
import statistics
import time

import torch

from simsiam.distributed.runtime import running
from simsiam.evaluation.linear import LinearProbe
from simsiam.models.encoders import build_encoder
from simsiam.settings.derive import derive
from simsiam.settings.tree import Linear, Optim
from simsiam.training.build import build_state
from simsiam.training.step import train_step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--encoder", default="resnet50")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--heads", type=int, default=8)
    parser.add_argument("--optimizer", default="lars", choices=("sgd", "lars"))
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--steps", type=int, default=5, help="steps of one side in a round")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    settings = Linear(
        batch_size=arguments.batch_size, epochs=1, precision=arguments.precision,
        optim=Optim(name=arguments.optimizer, lr=0.1, weight_decay=0.0),
    )  # fmt: skip
    with running("auto") as runtime:
        numbers, encoder = derive(settings, 1, 100 * settings.batch_size), build_encoder(arguments.encoder)
        images = torch.randn(settings.batch_size, 3, arguments.size, arguments.size, device=runtime.device)
        images = images.contiguous(memory_format=torch.channels_last)
        labels = torch.arange(settings.batch_size, device=runtime.device) % arguments.classes

        def state(heads: int) -> object:
            names = [f"head {number}" for number in range(heads)]
            return build_state(LinearProbe(encoder, arguments.classes, names), settings, numbers, runtime)

        sides = {heads: state(heads) for heads in (1, arguments.heads)}

        def seconds(heads: int) -> float:
            began = time.perf_counter()
            for _ in range(arguments.steps):
                train_step(sides[heads], [(images, labels)])
            if runtime.device.type == "cuda":
                torch.cuda.synchronize()
            return (time.perf_counter() - began) / arguments.steps

        for heads in sides:
            seconds(heads)
        rounds = [(seconds(1), seconds(arguments.heads)) for _ in range(arguments.rounds)]
    ratios = [many / one for one, many in rounds]
    one, many = (statistics.median(side) for side in zip(*rounds))
    print(f"{arguments.encoder}, {settings.batch_size} images of {arguments.size}, {arguments.classes} classes")
    print(f"1 head {one:.4f} s a step, {arguments.heads} heads {many:.4f} s")
    print(f"ratio {statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f}, n = {len(ratios)})")


if __name__ == "__main__":
    main()
