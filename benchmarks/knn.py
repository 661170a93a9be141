"""Images a second of the kNN evaluation and of extracting features, over those of the encoder's forward pass alone.

    python benchmarks/knn.py [--encoder resnet18] [--size 32] [--bank 2048] [--queries 512] [--precision fp32]

Images in memory, as the monitor of a small set has them; the forward pass alone is over the same images, normalised
and on the device before. By turns in one run.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch

from benchmarks.measure import in_turns, seconds_of
from benchmarks.report import Report, ratios, spread, turns_parser
from simsiam.data.augment import Augment
from simsiam.data.sources.arrays import ArrayImages
from simsiam.distributed.runtime import running
from simsiam.evaluation.features import extract_features
from simsiam.evaluation.knn import knn
from simsiam.models.encoders import build_encoder
from simsiam.settings.tree import Views
from simsiam.training.precision import Precision

CLASSES = 10
FORWARD, FEATURES, KNN = "the encoder's forward pass", "features of all", "kNN, with its features"


def main() -> None:
    options = turns_parser(__doc__, rounds=5)
    options.add_argument("--encoder", default="resnet18")
    options.add_argument("--size", type=int, default=32, help="side of an image, pixels")
    options.add_argument("--bank", type=int, default=2048, help="images that vote")
    options.add_argument("--queries", type=int, default=512)
    options.add_argument("--batch-size", type=int, default=256)
    options.add_argument("--precision", default="fp32", help="as the monitor has it by default")
    options.add_argument("--device", default="auto")
    arguments = options.parse_args()
    size, batch = arguments.size, arguments.batch_size
    views, images = Views(size=size, resize=size), arguments.bank + arguments.queries
    train, val = (_random_images(number, size) for number in (arguments.bank, arguments.queries))
    with running(arguments.device) as runtime:
        precision, augment = Precision(arguments.precision, runtime.device), Augment(views, 0).to(runtime.device)
        encoder = build_encoder(arguments.encoder).to(runtime.device, memory_format=torch.channels_last).eval()
        ready = [
            augment.centred(torch.from_numpy(part.images[start : start + batch]))
            for part in (train, val)
            for start in range(0, len(part), batch)
        ]

        @torch.no_grad()
        def forward() -> None:
            for part in ready:
                with precision.autocast():
                    encoder(part)

        def features() -> None:
            for part in (train, val):
                extract_features(encoder, part, views, runtime, batch=batch, precision=precision, unit=True)

        def neighbours() -> None:
            knn(encoder, train, val, views, runtime, batch=batch, precision=precision)

        sides = {FORWARD: forward, FEATURES: features, KNN: neighbours}
        rates = in_turns(
            {name: lambda work=work: images / seconds_of(work, 1, runtime.device) for name, work in sides.items()},
            arguments.rounds,
            arguments.seconds,
        )
        what = f"{arguments.encoder}, {arguments.bank} + {arguments.queries} images of {size} pixels, {precision.name}"
        with Report(f"kNN: {what}", arguments, runtime.device) as report:
            report.table(("", "images/s"), [(name, spread(taken)) for name, taken in rates.items()])
            for name in (FEATURES, KNN):
                report.ratio(f"{name}, over the forward pass", ratios(rates[name], rates[FORWARD]))


def _random_images(number: int, size: int) -> ArrayImages:
    random = np.random.Generator(np.random.Philox(number))
    pixels = random.integers(0, 256, (number, size, size, 3), np.uint8)
    return ArrayImages(pixels, np.arange(number) % CLASSES, [str(name) for name in range(CLASSES)], "random")


if __name__ == "__main__":
    main()
