"""`simsiam knn`: what an encoder's nearest neighbours get right, for every k and temperature at once."""

import argparse
import json
import math
import os
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from simsiam.commands.say import counted, say
from simsiam.errors import UserError
from simsiam.settings.tree import Knn, Linear, Pretrain, Run, Views
from simsiam.settings.view_recipes import check_views

if TYPE_CHECKING:
    from torch import nn

    from simsiam.data.image_set import ImageSet
    from simsiam.distributed.runtime import Runtime
    from simsiam.evaluation.knn import KnnAnswer

HELP = "classify the validation images by their nearest training images; under torchrun on several GPUs"
_DEFAULT_RECIPE = "lincls-imagenet"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `simsiam knn`."""
    parser.add_argument(
        "source", metavar="ENCODER", help="run folder, encoder file, any checkpoint, or `random` for random weights"
    )
    place = parser.add_argument("place", metavar="DATA", help="what training takes as --data (default: $DATA)")
    place.required = False  # not nargs="?": before Python 3.12.7 that is no more to be had after an option
    parser.add_argument("--data", help="the same as DATA")
    parser.add_argument("--encoder", metavar="NAME", help="name of the encoder, where the file does not say it")
    parser.add_argument("--seed", type=int, default=0, help="of the weights of `random` (default %(default)s)")
    parser.add_argument("--k", default="10,20,100,200", help="numbers of neighbours that vote (default %(default)s)")
    parser.add_argument(
        "--temperature",
        default="0.07,0.1,0.2",
        help="a vote weighs exp(cosine similarity / temperature) (default %(default)s)",
    )
    parser.add_argument("--subset", default="", help="part of the training images that votes, as in training")
    parser.add_argument(
        "--recipe",
        metavar="NAME_OR_FILE",
        help="whose `views` say how images are resized, cropped and normalised (default: the config.yaml of a run "
        f"folder; else {_DEFAULT_RECIPE}, with what the encoder's file says of its images)",
    )
    parser.add_argument(
        "--batch-size", type=int, default=256, help="images of a forward pass on each rank (default %(default)s)"
    )
    parser.add_argument("--workers", type=int, default=8, help="worker processes per rank (default %(default)s)")
    parser.add_argument(
        "--loader", default="auto", choices=("auto", "dali", "torchvision", "resident"), help="as in training"
    )
    parser.add_argument("--download", action="store_true", help="download a built-in dataset that is not on disk")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"), help="as in training")
    parser.add_argument(
        "--precision",
        default="fp32",
        choices=("auto", "fp32", "bf16", "fp16"),
        help="of the forward pass; auto is bf16 where the device computes in it (default %(default)s)",
    )
    parser.add_argument("--out", metavar="FOLDER", help="write knn.json there, with every figure")


def run(arguments: argparse.Namespace) -> None:
    """Prints top-1 and top-5 of every k and temperature.

    Raises UserError for an encoder or a set that cannot be read, and for a set without labels or validation images.
    """
    ks = _numbers("--k", arguments.k, int, "whole numbers above 0, such as 10,20,100,200")
    temperatures = _numbers("--temperature", arguments.temperature, float, "numbers above 0, such as 0.07,0.1,0.2")
    settings = _settings(arguments)
    from simsiam.atomic import write_atomically
    from simsiam.distributed.runtime import running
    from simsiam.run.folder import make_writable

    with running(arguments.device, by_trial=False) as runtime:
        folder = Path(arguments.out) if arguments.out is not None else None
        if folder is not None:
            runtime.on_main(lambda: make_writable(folder))
        figures = _measure(arguments, settings, ks, temperatures, runtime)
        if runtime.is_main and folder is not None:
            write_atomically(folder / "knn.json", json.dumps(figures, indent=2) + "\n")
            say("wrote", str(folder / "knn.json"))


def _measure(
    arguments: argparse.Namespace, settings: Run, ks: list[int], temperatures: list[float], runtime: "Runtime"
) -> dict[str, Any]:
    """Opens, says what will be done, does it and says what came out; the figures are those of knn.json."""
    import torch

    from simsiam.data.loaders import choose_centres, choose_images
    from simsiam.data.open import open_images
    from simsiam.evaluation.knn import knn
    from simsiam.export.write import encoder_hash
    from simsiam.training.precision import Precision

    # Everything that a mistake can stop comes before the first image is decoded.
    precision = Precision(arguments.precision, runtime.device)
    torch.backends.cudnn.allow_tf32 = False  # fp32 gives the same digits everywhere
    encoder, info = _encoder(arguments)
    views, of = views_for(arguments.recipe, info)
    settings = replace(settings, views=views)
    train = open_images(settings, "train", runtime)
    if not train.classes or not (train.labels >= 0).any():
        raise UserError(f"{settings.data} has no labelled training images; kNN needs train/CLASS/ folders")
    val = open_images(settings, "val", runtime, classes=train.classes)
    if not (val.labels >= 0).any():
        raise UserError(f"{settings.data} has no labelled validation images; kNN needs val/CLASS/ folders")
    train, loader_is = choose_images(train, settings, runtime.is_main)
    val, _ = choose_images(val, settings, runtime.is_main)

    source = arguments.source + (f" (seed {arguments.seed})" if arguments.source == "random" else "")
    device = torch.cuda.get_device_name(runtime.device) if runtime.device.type == "cuda" else "cpu"
    figures = {
        "encoder": info.get("path", source),
        "encoder_name": encoder.encoder_name,
        "encoder_sha256": encoder_hash(encoder),
        "data": settings.data,
        "subset": settings.subset,
        "views": {key: asdict(views)[key] for key in ("size", "resize", "mean", "std")},
        "views_of": of,
        "loader": loader_is,
        "device": device,
        "precision": precision.name,
        "world_size": runtime.world_size,
    }
    if runtime.is_main:
        _say_before(figures, encoder, train, val)
    began = time.monotonic()
    answer = knn(
        encoder.to(runtime.device, memory_format=torch.channels_last), train, val, views, runtime,
        ks=ks, temperatures=temperatures, batch=arguments.batch_size, precision=precision,
        centres=choose_centres(settings, runtime.device), show_progress=True,
    )  # fmt: skip
    figures |= {
        "bank_images": answer.bank,
        "bank_skipped": answer.bank_skipped,
        "images": len(answer.samples),
        "skipped": answer.skipped,
        "seconds": round(time.monotonic() - began, 3),
        "cells": [
            {"k": k, "temperature": temperature, "top1": top1, "top5": top5}
            for k, *rows in zip(ks, answer.top1.tolist(), answer.top5.tolist())
            for temperature, top1, top5 in zip(temperatures, *rows)
        ],
    }
    if answer.not_finite:
        raise UserError(
            f"{figures['encoder']} gives {counted(answer.not_finite, 'image')} of {settings.data} features that are "
            f"not finite by --precision {precision.name}; take --precision fp32, or an earlier checkpoint"
        )
    if runtime.is_main:
        _say_after(figures, answer, ks, temperatures)
    return figures


def views_for(recipe: str | None, info: dict[str, str]) -> tuple[Views, str]:
    """How the images of an encoder are made, and whose word that is.

    A recipe that is named counts alone. Otherwise the settings of the run that the encoder is read from; and where it
    is a file, what it says of its images, and what it leaves out is the default recipe's.

    Args:
        info: as `read_encoder` gives it.
    """
    config = None if recipe else _config(info.get("path", ""))
    chosen = recipe or config or _DEFAULT_RECIPE
    views = _views_of(str(chosen))
    if recipe or config:
        return views, str(chosen)
    said = {
        name: _said(info, key, kind)
        for name, key, kind in (
            ("size", "size", int),
            ("resize", "resize", int),
            ("mean", "pixel_mean", tuple),
            ("std", "pixel_std", tuple),
        )
        if key in info
    }
    rest = f"the rest {chosen}" if said else chosen
    views = replace(views, **said)
    if "resize" not in said:
        views = replace(views, resize=max(views.resize, views.size))
    check_views(views)
    return views, f"{' and '.join(said)} of {info['path']}, {rest}" if said else rest


def _views_of(recipe: str) -> Views:
    from simsiam.settings.parse import parse

    @dataclass(frozen=True)
    class AnyRecipe(Linear, Pretrain):
        """The keys of every training command: of each recipe only the views are wanted."""

        batchnorm: bool | str = False
        """A switch in lincls.py, a word in semisup.py."""

    return parse(AnyRecipe, [], recipe=recipe, prog="simsiam knn").views


def _config(path: str) -> Path | None:
    """The config.yaml of the run whose encoder file or checkpoint was read."""
    from simsiam.export.state import run_folder_of

    place = Path(path)
    folder = run_folder_of(place)
    is_run = place.name == "encoder.safetensors" or (place / ".metadata").is_file()
    return folder / "config.yaml" if is_run and (folder / "config.yaml").is_file() else None


def _said(info: dict[str, str], key: str, kind: type) -> Any:
    """A number of pixels, or the three numbers of red, green and blue, that an encoder's file says."""
    try:
        value = json.loads(info[key])
        if kind is tuple:
            red, green, blue = map(float, value)
            return red, green, blue
        return int(value)
    except (ValueError, TypeError):
        what = "list of three numbers" if kind is tuple else "whole number"
        raise UserError(
            f"{info['path']} says that its {key} is {info[key]!r}, which is no {what}; name a --recipe instead"
        ) from None


def _encoder(arguments: argparse.Namespace) -> tuple["nn.Module", dict[str, str]]:
    """The encoder on the CPU, and what its file says."""
    if arguments.source != "random":
        from simsiam.export.read import read_encoder

        found = read_encoder(arguments.source, name=arguments.encoder)
        return found.encoder, found.info
    if not arguments.encoder:
        raise UserError("ENCODER is random, which does not say which encoder: give --encoder NAME, such as resnet50")
    import torch

    from simsiam.models.encoders import build_encoder

    torch.manual_seed(arguments.seed)
    return build_encoder(arguments.encoder), {}


def _settings(arguments: argparse.Namespace) -> Run:
    """What reading images needs of a training command's settings."""
    if arguments.place and arguments.data and arguments.place != arguments.data:
        raise UserError(f"The data is given twice, as {arguments.place} and as --data {arguments.data}; give one")
    if arguments.batch_size < 1:
        raise UserError(f"--batch-size {arguments.batch_size} is below 1; 256 is the default")
    if arguments.workers < 0:
        raise UserError(f"--workers {arguments.workers} is below 0; 0 reads in this process")
    data = arguments.place or arguments.data or os.environ.get("DATA", "")
    if not data:
        raise UserError("No dataset is given: `simsiam knn ENCODER DATA`, or set DATA in the environment")
    return Run(
        data=data,
        subset=arguments.subset,
        workers=arguments.workers,
        loader=arguments.loader,
        download=arguments.download,
        device=arguments.device,
    )


def _numbers(option: str, text: str, kind: type, what: str) -> list:
    """Positive numbers with commas between them, ascending, each once."""
    try:
        found = sorted({kind(word) for word in text.split(",")})
    except ValueError:
        found = []
    if not found or not all(0 < number < math.inf for number in found):
        raise UserError(f"{option} {text} is no list of {what}")
    return found


def _say_before(figures: dict[str, Any], encoder: "nn.Module", train: "ImageSet", val: "ImageSet") -> None:
    views = figures["views"]
    mean, std = (", ".join(f"{value:g}" for value in views[key]) for key in ("mean", "std"))
    subset = f", subset {figures['subset']}" if figures["subset"] else ""
    say("encoder", f"{figures['encoder']}: {encoder.encoder_name}, {encoder.feature_dim} features")
    say("sha256", figures["encoder_sha256"])
    say(
        "data",
        f"{figures['data']}{subset}: {len(train.classes):,} classes, {len(train):,} images, {len(val):,} to classify",
    )
    say("images", f"shorter side {views['resize']}, centre {views['size']} pixels, mean {mean}, std {std}")
    say("", f"as in {figures['views_of']}; {figures['loader']}")
    say("device", f"{figures['device']}, {figures['precision']}, {counted(figures['world_size'], 'rank')}")


def _say_after(figures: dict[str, Any], answer: "KnnAnswer", ks: list[int], temperatures: list[float]) -> None:
    for number, what in ((answer.bank_skipped, "training"), (answer.skipped, "validation")):
        if number:
            say("left out", f"{counted(number, f'{what} image')} that cannot be read; `simsiam check-data` names them")
    say("", f"{answer.bank:,} images vote on {figures['images']:,}, in {figures['seconds']:.1f} s")
    for title, percent in (("top-1, %", answer.top1), ("top-5, %", answer.top5)):
        say(title, "".join(f"{f'T {temperature:g}':>10}" for temperature in temperatures))
        for k, row in zip(ks, percent.tolist()):
            say(f"  k {k}", "".join(f"{value:>10.2f}" for value in row))
    monitor = Knn()
    if monitor.k in ks and monitor.temperature in temperatures:
        say("", f"k {monitor.k} at T {monitor.temperature:g} is the default of the kNN monitor of pretraining")
    if ks[-1] > answer.bank:
        say("", f"k above {answer.bank:,}: all images of the training set vote")
