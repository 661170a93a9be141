"""Pairs a second of the training step: on a cached batch, on real batches, the loader alone; and how far that is from
what the machine's memory allows.

    python benchmarks/step.py [--encoder resnet50] [--size 224] [--batch-size 16] [--data PHOTOGRAPHS] [--loader auto]
    python benchmarks/step.py --against fp32+nchw,nchw,compile      other ways to run it, by turns with the first

Ways are words joined by +: fp32, bf16, fp16; nchw, channels_last; compile, graphs (compiled, and replayed as CUDA
graphs), eager. What is not said is as the options say. The bound is that of bound.py, from the rates of a copy and of a
matrix product measured here; MFU is by the same product. Without --data pictures are made up.
"""

import argparse
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch import Tensor

from benchmarks.bound import count
from benchmarks.measure import copy_rate, in_turns, multiply_rate, seconds_of
from benchmarks.parts import profile
from benchmarks.pictures import write_pictures
from benchmarks.report import Report, ratios, spread, turns_parser
from simsiam.data.augment import Augment
from simsiam.data.loaders import choose_images, make_loader
from simsiam.data.open import open_images
from simsiam.data.plan import Plan
from simsiam.distributed.runtime import Runtime, running
from simsiam.methods.simsiam import SimSiam
from simsiam.optim.build import begin_momentum
from simsiam.settings.derive import derive
from simsiam.settings.tree import Optim, Pretrain, Views
from simsiam.training.build import build_state
from simsiam.training.compiling import compile_parts
from simsiam.training.precision import Precision
from simsiam.training.state import TrainState
from simsiam.training.step import train_step

GOALS = {
    "cpu": {"bf16 channels_last over fp32 nchw": 1.7},
    "cuda": {
        "bf16 channels_last over bf16 nchw": 1.25,
        "bf16 channels_last compiled over bf16 channels_last": 1.15,
    },
}
OF_BOUND = {False: 0.65, True: 0.80}  # of the eager bound eager, of the fused one compiled
REAL_OVER_CACHED = {"cpu": 0.95, "cuda": 0.98}


class Way(NamedTuple):
    """How a step is run."""

    precision: str
    nchw: bool
    compiled: bool
    graphs: bool = False

    def __str__(self) -> str:
        words = [self.precision, "nchw" if self.nchw else "channels_last"]
        return " ".join(words + ["compiled"] * self.compiled + ["graphs"] * self.graphs)

    def said(self, words: str) -> "Way":
        """This way, but for what the words say."""
        way = self
        for word in words.split("+"):
            match word:
                case "fp32" | "bf16" | "fp16":
                    way = way._replace(precision=word)
                case "nchw" | "channels_last":
                    way = way._replace(nchw=word == "nchw")
                case "compile" | "graphs" | "eager":
                    way = way._replace(compiled=word != "eager", graphs=word == "graphs")
                case _:
                    sys.exit(f"--against: {word!r} is no way to run a step; see --help")
        return way


def main() -> None:
    options = turns_parser(__doc__, rounds=5)
    options.add_argument("--encoder", default="resnet50")
    options.add_argument("--size", type=int, default=224, help="side of a view, pixels (default %(default)s)")
    options.add_argument("--batch-size", type=int, default=16, help="images, each with two views (default %(default)s)")
    options.add_argument("--precision", default="auto")
    options.add_argument("--nchw", action="store_true", help="in place of channels_last")
    options.add_argument("--compile", action="store_true")
    options.add_argument("--against", default="", metavar="WAY,WAY", help="such as fp32+nchw,compile")
    options.add_argument("--data", default="", help="as pretrain.py takes it")
    options.add_argument("--loader", default="auto")
    options.add_argument("--workers", type=int, default=2)
    options.add_argument("--steps", type=int, default=3, help="of a turn (default %(default)s)")
    options.add_argument("--device", default="auto")
    options.add_argument("--no-real", action="store_true", help="the cached batch alone")
    arguments = options.parse_args()
    with running(arguments.device) as runtime, tempfile.TemporaryDirectory() as folder:
        what = f"{arguments.encoder}, {arguments.batch_size} pairs of {arguments.size} pixels"
        with Report(f"Training step: {what}", arguments, runtime.device) as report:
            first = Way(Precision(arguments.precision, runtime.device).name, arguments.nchw, arguments.compile)
            others = [first.said(words) for words in arguments.against.split(",") if words]
            ways = list(_possible([first, *others], runtime.device, report))
            bench(ways, arguments, runtime, report, Path(folder))


def bench(ways: list[Way], arguments: argparse.Namespace, runtime: Runtime, report: Report, folder: Path) -> None:
    """Measures all sides by turns, and reports."""
    device, pairs = runtime.device, arguments.batch_size
    first = ways[0]
    states = {way: build(way, arguments, runtime) for way in ways}
    cached = torch.randn(2, pairs, 3, arguments.size, arguments.size, device=device)
    batches = {way: laid_out(cached, way) for way in ways}

    def steps(way: Way, views: Callable[[], Tensor], untimed: int = 1) -> float:
        def step() -> None:
            train_step(states[way], [(views(),)])

        return pairs / seconds_of(step, arguments.steps, device, untimed)

    names = {way: f"cached batch, {way}" for way in ways}
    sides = {names[way]: lambda way=way: steps(way, lambda: batches[way]) for way in ways}
    real: Callable[[], Tensor] | None = None
    why = ""
    if not arguments.no_real:
        real, why = loaded(arguments, runtime, folder)
        ahead = 0 if why.startswith("resident") else 2 * arguments.workers  # what workers have made in others' turns
        sides["real batches"] = lambda: steps(first, lambda: laid_out(real(), first), 1 + ahead)
        sides["loader and augmentation alone"] = lambda: (
            pairs / seconds_of(real, arguments.steps + ahead, device, 1 + ahead)
        )
    rates = in_turns(sides, arguments.rounds, arguments.seconds)

    with torch.compiler.set_stance("force_eager"):  # of one image in evaluation: nothing to compile for
        work = count(states[first].module, arguments.size)
    copies = copy_rate(device)
    types = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
    products = {way.precision: multiply_rate(device, types[way.precision]) for way in ways}
    rows = []
    for way in ways:
        width, multiplies = types[way.precision].itemsize, products[way.precision]
        bound = [1 / (2 * work.seconds(width, copies, multiplies, fused=fused)) for fused in (False, True)]
        taken = rates[names[way]]
        of_bound = [[rate / limit for rate in taken] for limit in bound]
        mfu = [2 * work.operations() * rate / multiplies for rate in taken]
        rows.append(
            (names[way], spread(taken), spread(mfu), *(f"{limit:.4g}" for limit in bound), *map(spread, of_bound))
        )
        report.ratio(
            f"{way}: of the {'fused' if way.compiled else 'eager'} bound", of_bound[way.compiled],
            at_least=OF_BOUND[way.compiled] if device.type == "cuda" and way.precision != "fp32" else None,
        )  # fmt: skip
    rows += [(name, spread(rates[name]), *[""] * 5) for name in rates if name not in names.values()]
    report.table(("", "pairs/s", "MFU", "eager bound", "fused bound", "of the eager", "of the fused"), rows)
    width = types[first.precision].itemsize
    eager, fused = (f"{work.bytes(width, fused=fused) / 1e6:.1f} MB" for fused in (False, True))
    rates_of = ", ".join(f"{name} product {rate / 1e9:,.0f} GFLOP/s" for name, rate in products.items())
    report.say(
        f"Copy {copies / 1e9:.1f} GB/s, read and written; {rates_of}. A view of {first.precision} moves {eager}, fused "
        f"{fused}, in {work.operations() / 1e9:.2f} GFLOP. {f'Loader: {why}.' if why else ''}\n"
    )
    _report_profile(report, states[first], lambda: laid_out(real() if real else cached, first), arguments.steps)
    _report_ratios(report, rates, names, ways, device)


def _report_ratios(report: Report, rates: dict, names: dict, ways: list[Way], device: torch.device) -> None:
    first, *others = ways
    for other in others:
        what = f"{first} over {other}"
        goal = GOALS[device.type].get(what)
        report.ratio(what, ratios(rates[names[first]], rates[names[other]]), at_least=goal)
    if "real batches" in rates:
        shares = ratios(rates["real batches"], rates[names[first]])
        report.ratio("real over cached batches", shares, at_least=REAL_OVER_CACHED[device.type])
        alone = [1 + a / b for a, b in zip(rates[names[first]], rates["loader and augmentation alone"], strict=True)]
        report.ratio("the same if step and loader shared all cores", [1 / value for value in alone])


def _report_profile(report: Report, state: TrainState, views: Callable[[], Tensor], steps: int) -> None:
    parts = profile(state, views, lambda batch: train_step(state, [(batch,)]), steps)
    collectives = parts.pop("collectives")
    total = sum(parts.values())
    rows = [(part, f"{1000 * seconds:.1f}", f"{seconds / total:.1%}") for part, seconds in parts.items()]
    report.table(("part of a step", "ms", "share"), [*rows, ("in collectives", f"{1000 * collectives:.1f}", "")])


def build(way: Way, arguments: argparse.Namespace, runtime: Runtime) -> TrainState:
    """A network of its own for each way, with the same weights."""
    settings = Pretrain(
        encoder=arguments.encoder, batch_size=arguments.batch_size, epochs=100, precision=way.precision,
        optim=Optim(lr=0.01),
    )  # fmt: skip
    torch.manual_seed(0)
    method = SimSiam(settings.encoder)
    if way.compiled:
        compile_parts(method, graphs=way.graphs)
    state = build_state(method, settings, derive(settings, runtime.world_size, 100 * settings.batch_size), runtime)
    if way.nchw:
        method.to(memory_format=torch.contiguous_format)
        begin_momentum(state.optimizer)
    return state


def laid_out(views: Tensor, way: Way) -> Tensor:
    """Views (2, N, 3, S, S), each in the way's layout."""
    layout = torch.contiguous_format if way.nchw else torch.channels_last
    return views.flatten(0, 1).contiguous(memory_format=layout).unflatten(0, views.shape[:2])


def loaded(arguments: argparse.Namespace, runtime: Runtime, folder: Path) -> tuple[Callable[[], Tensor], str]:
    """What makes the next real views, and which loader that is."""
    size = arguments.size
    small = size <= 96
    data = arguments.data or str(
        write_pictures(folder, 2 * max(arguments.batch_size, 64), *((size, size) if small else (375, 500)))
    )
    settings = Pretrain(
        data=data, batch_size=arguments.batch_size, workers=arguments.workers, loader=arguments.loader,
        device=arguments.device, views=Views(size=size, resize=size, blur=0.0 if small else 0.5),
    )  # fmt: skip
    images, why = choose_images(open_images(settings, "pretrain", runtime), settings, show_progress=False)
    plan, augment = Plan(len(images), arguments.batch_size, 0), Augment(settings.views, 0).to(runtime.device)
    loader = make_loader(images, plan, settings, 2, runtime.device)

    def endless() -> Iterator[Tensor]:
        with closing(loader.steps(0, 1 << 20)) as steps:
            for (crops,) in steps:
                yield augment(crops.images, crops.samples, crops.epoch)

    return endless().__next__, why


def _possible(ways: list[Way], device: torch.device, report: Report) -> Iterator[Way]:
    """Without those that this device has no instructions for, but the first."""
    slow = device.type == "cpu" and Precision("auto", device).name == "fp32"
    for way in dict.fromkeys(ways):
        if slow and way != ways[0] and way.precision != "fp32":
            report.say(f"Not run: {way}, for this CPU has no avx512_bf16.\n")
        else:
            yield way


if __name__ == "__main__":
    main()
