"""SimSiam on CIFAR-size images: our loop beside those that other projects document, at equal network, batch, precision
and images.

    python benchmarks/peers.py [--data FOLDER] [--encoder resnet20] [--batch-size 128] [--workers 2] [--rounds 6]

Theirs are in peer_loops.py; where lightly is installed, its own parts are taken. Ours: resident loader, augmentation by
the batch, both views at once, in float32 as theirs and in our default precision. All hold the decoded images in memory.
Theirs run in a process of their own, without what we set in ours. The sides take turns; a turn begins with steps that
are not counted, for workers start ahead, and ends its workers.
"""

import argparse
import itertools
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
from torch import Tensor

from benchmarks import peer_loops
from benchmarks.measure import in_turns, seconds_of
from benchmarks.peer_loops import Given
from benchmarks.report import Report, ratios, spread, turns_parser
from simsiam.data.augment import Augment
from simsiam.data.loaders.resident import ResidentLoader
from simsiam.data.open import open_images
from simsiam.data.plan import Plan
from simsiam.data.resident import ResidentImages, make_resident
from simsiam.data.sources.arrays import ArrayImages
from simsiam.distributed.runtime import Runtime, choose_device, running
from simsiam.methods.simsiam import SimSiam
from simsiam.settings.derive import derive
from simsiam.settings.tree import Optim, Pretrain, Views
from simsiam.training.build import build_state
from simsiam.training.precision import Precision
from simsiam.training.step import train_step

GOALS = {"ours, fp32": 1.4, "ours, bf16": 2.0}  # over lightly's
Loops = dict[str, Callable[[], Iterator[Tensor]]]
"""Name -> what begins a turn: an iterator that makes a step each time it is asked."""


def main() -> None:
    options = turns_parser(__doc__, rounds=6)
    options.add_argument("--data", default="", help="images of one small size, as pretrain.py takes them")
    options.add_argument("--encoder", default="resnet20")
    options.add_argument("--batch-size", type=int, default=128)
    options.add_argument("--workers", type=int, default=2, help="of their loaders")
    options.add_argument("--dim", type=int, default=2048)
    options.add_argument("--hidden", type=int, default=2048)
    options.add_argument("--bottleneck", type=int, default=512)
    options.add_argument("--steps", type=int, default=4, help="counted steps of a turn")
    options.add_argument("--ahead", type=int, default=4, help="steps before them")
    options.add_argument("--device", default="auto")
    arguments = options.parse_args()
    with Apart(their_loops, arguments) as theirs, Apart(our_loops, arguments) as ours:
        device, what = choose_device(arguments.device, 0), f"{arguments.encoder}, {arguments.batch_size} pairs, float32"
        with Report(f"Beside other projects' loops: {what}", arguments, device) as report:
            if Precision("auto", device).name == "fp32":
                report.say("Our default precision is float32 here, for this CPU has no avx512_bf16.\n")
            sides = {name: partial(side.rate, name) for side in (theirs, ours) for name in side.names}
            rates = in_turns(sides, arguments.rounds, arguments.seconds)
            report.table(("loop", "pairs/s"), [(name, spread(taken)) for name, taken in rates.items()])
            official, lightly, solo_learn = theirs.names
            for name in ours.names:
                report.ratio(f"{name}, over {lightly}", ratios(rates[name], rates[lightly]), at_least=GOALS.get(name))
            for other in (official, solo_learn):
                report.ratio(f"ours, fp32, over {other}", ratios(rates["ours, fp32"], rates[other]))


class Apart:
    """Loops in a process of their own: each project's as its users start it, with nothing of ours set in theirs."""

    def __init__(
        self, make: Callable[[argparse.Namespace], AbstractContextManager[Loops]], arguments: argparse.Namespace
    ):
        fork = get_context("fork")  # from a process that has not computed and has not touched a GPU
        self._pipe, other = fork.Pipe()
        self._process = fork.Process(target=_serve, args=(make, arguments, other))
        self._process.start()
        other.close()

    def __enter__(self) -> "Apart":
        self.names: list[str] = self._answer()
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.is_alive():
            self._pipe.send("")
        self._process.join()

    def rate(self, name: str) -> float:
        """Pairs a second of a turn of this loop."""
        self._pipe.send(name)
        return self._answer()

    def _answer(self) -> Any:
        try:
            return self._pipe.recv()
        except EOFError:
            sys.exit("A loop failed; what it said is above")


def _serve(
    make: Callable[[argparse.Namespace], AbstractContextManager[Loops]], arguments: argparse.Namespace, pipe: Connection
) -> None:
    with make(arguments) as loops:
        pipe.send(list(loops))
        for name in iter(pipe.recv, ""):
            with closing(loops[name]()) as steps:
                step, device = steps.__next__, choose_device(arguments.device, 0)
                pipe.send(arguments.batch_size / seconds_of(step, arguments.steps, device, arguments.ahead))


@contextmanager
def their_loops(arguments: argparse.Namespace) -> Iterator[Loops]:
    """The loops of the others, in the order official code, lightly, solo-learn."""
    runtime = Runtime(0, 1, 0, choose_device(arguments.device, 0))
    given = given_to(arguments, images_of(arguments, runtime), runtime)
    lightly = f"lightly {version('lightly')}" if find_spec("lightly") else "as lightly documents it"
    yield {
        "as the official code": lambda: peer_loops.official(given),
        lightly: lambda: peer_loops.lightly(given),
        "as solo-learn": lambda: peer_loops.solo_learn(given),
    }


@contextmanager
def our_loops(arguments: argparse.Namespace) -> Iterator[Loops]:
    """Ours, in float32, in the default precision where that is another, and without reading images."""
    with running(arguments.device) as runtime:
        images = images_of(arguments, runtime)
        given = given_to(arguments, images, runtime)
        loops = {"ours, fp32": ours(images, given, "fp32", runtime)}
        default = Precision("auto", runtime.device).name
        if default != "fp32":
            loops[f"ours, {default}"] = ours(images, given, default, runtime)
        loops["ours, fp32, one cached batch"] = ours(images, given, "fp32", runtime, cached=True)
        yield loops


def given_to(arguments: argparse.Namespace, images: ResidentImages, runtime: Runtime) -> Given:
    """What all loops have in common."""
    return Given(
        images.images, np.maximum(images.labels, 0), arguments.encoder, arguments.batch_size, arguments.workers,
        runtime.device, arguments.dim, arguments.hidden, arguments.bottleneck,
    )  # fmt: skip


def images_of(arguments: argparse.Namespace, runtime: Runtime) -> ResidentImages:
    """The training images in memory; made up ones where no data is given."""
    if arguments.data:
        settings = Pretrain(data=arguments.data, batch_size=arguments.batch_size)
        return make_resident(open_images(settings, "pretrain", runtime), settings.workers, False)
    random = np.random.Generator(np.random.Philox(0))
    pixels = random.integers(0, 256, (max(20_000, arguments.batch_size), 32, 32, 3), np.uint8)
    classes = [str(number) for number in range(10)]
    return make_resident(ArrayImages(pixels, np.arange(len(pixels)) % len(classes), classes, "random"), 0, False)


def ours(
    images: ResidentImages, given: Given, precision: str, runtime: Runtime, cached: bool = False
) -> Callable[[], Iterator[Tensor]]:
    """Our loop, over real batches or the same one again and again."""
    side = given.pixels.shape[1]
    settings = Pretrain(
        encoder=given.encoder, batch_size=given.batch_size, epochs=100, precision=precision,
        views=Views(size=side, resize=side, blur=0.0), optim=Optim(lr=0.03),
    )  # fmt: skip
    plan, augment = Plan(len(images), settings.batch_size, 0), Augment(settings.views, 0).to(runtime.device)
    method = SimSiam(
        settings.encoder, projector_layers=2, dim=given.dim, projector_hidden=given.hidden,
        predictor_hidden=given.bottleneck,
    )  # fmt: skip
    state = build_state(method, settings, derive(settings, 1, len(images)), runtime)
    loader = ResidentLoader(images, plan, settings, 2, runtime.device)

    def batches() -> Iterator[Tensor]:
        made = (augment(crops.images, crops.samples, crops.epoch) for (crops,) in loader.steps(0, 1 << 20))
        return itertools.repeat(next(made)) if cached else made

    def steps() -> Iterator[Tensor]:
        for views in batches():
            yield train_step(state, [(views,)]).loss

    return steps


if __name__ == "__main__":
    main()
