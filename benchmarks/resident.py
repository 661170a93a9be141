"""What the resident loader and the augmentation cost: real pairs/s over pairs/s on one cached batch.

    python benchmarks/resident.py [--encoder cifar_resnet18] [--rounds 5]

CIFAR-size random images; both sides run the same training step, in turn, in one process.
"""

import argparse
import statistics
import time

import numpy as np
import torch

from simsiam.data.augment import Augment
from simsiam.data.loaders.resident import ResidentLoader
from simsiam.data.plan import Plan
from simsiam.data.resident import make_resident
from simsiam.data.sources.arrays import ArrayImages
from simsiam.distributed.runtime import running
from simsiam.methods.simsiam import SimSiam
from simsiam.settings.derive import derive
from simsiam.settings.tree import Optim, Pretrain, Views
from simsiam.training.build import build_state
from simsiam.training.step import train_step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--encoder", default="cifar_resnet18")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--steps", type=int, default=5, help="steps of one side in a round")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    settings = Pretrain(
        encoder=arguments.encoder, batch_size=arguments.batch_size, epochs=1, precision="auto",
        views=Views(size=32, resize=32, blur=0.0), optim=Optim(lr=0.03),
    )  # fmt: skip
    with running("auto") as runtime:
        pixels = np.random.Generator(np.random.Philox(0)).integers(0, 256, (20_000, 32, 32, 3), np.uint8)
        images = make_resident(ArrayImages(pixels, np.zeros(len(pixels)), ["all"], "random"), 0, False)
        plan = Plan(len(images), settings.batch_size, 0)
        method = SimSiam(settings.encoder, projector_layers=2, projector_hidden=2048)
        state = build_state(method, settings, derive(settings, 1, len(images)), runtime)
        augment = Augment(settings.views, 0).to(runtime.device)
        steps = ResidentLoader(images, plan, settings, 2, runtime.device).steps(0, plan.steps_per_epoch)

        def views() -> torch.Tensor:
            crops = next(steps)[0]
            return augment(crops.images, crops.samples, crops.epoch)

        cached = views()

        def rate(make: object) -> float:
            if runtime.device.type == "cuda":
                torch.cuda.synchronize()
            began = time.perf_counter()
            for _ in range(arguments.steps):
                train_step(state, [(make(),)])
            if runtime.device.type == "cuda":
                torch.cuda.synchronize()
            return arguments.steps * settings.batch_size / (time.perf_counter() - began)

        rate(views)  # warm-up
        real, synthetic = [], []
        for number in range(arguments.rounds):
            real.append(rate(views))
            synthetic.append(rate(lambda: cached))
            print(f"round {number}: real {real[-1]:.1f}, cached {synthetic[-1]:.1f} pairs/s")
        ratios = [a / b for a, b in zip(real, synthetic)]
        print(
            f"{settings.encoder} on {runtime.device}, {state.precision.name}: real {statistics.median(real):.1f}, "
            f"cached {statistics.median(synthetic):.1f} pairs/s; ratio {statistics.median(ratios):.3f} "
            f"({min(ratios):.3f} to {max(ratios):.3f}, n = {len(ratios)})"
        )


if __name__ == "__main__":
    main()
