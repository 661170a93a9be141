"""`simsiam predict`: the classes of images by a trained classifier, as a CSV file."""

import argparse
import contextlib
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from simsiam.commands.say import counted, say, say_first
from simsiam.distributed.threads import usable_cores
from simsiam.errors import UserError

if TYPE_CHECKING:
    from torch import nn

    from simsiam.commands.predictions import Told
    from simsiam.data.sources.folder import FolderImages
    from simsiam.evaluation.classifier import ReadClassifier
    from simsiam.settings.tree import Views

HELP = "classify a folder of images, or one image, with the classifier of lincls.py or semisup.py; write a CSV file"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `simsiam predict`."""
    cores = usable_cores()
    parser.add_argument(
        "classifier", metavar="CLASSIFIER", help="run folder of lincls.py or semisup.py, or its classifier.safetensors"
    )
    parser.add_argument("images", metavar="IMAGES", help="folder of images, with or without subfolders, or one image")
    parser.add_argument(
        "--encoder",
        metavar="ENCODER",
        help="run folder or file of the encoder that the classifier was trained on (default: encoder.safetensors "
        "beside the classifier, else where the classifier says it came from)",
    )
    parser.add_argument(
        "--out", default="predictions.csv", metavar="FILE", help="file to write; - is stdout (default %(default)s)"
    )
    parser.add_argument("--top", type=int, default=1, metavar="K", help="likeliest classes to write (default 1)")
    parser.add_argument(
        "--probabilities", action="store_true", help="write the probability of every class too, one column each"
    )
    parser.add_argument("--strict", action="store_true", help="exit code 2 where an image cannot be read")
    parser.add_argument("--batch-size", type=int, default=256, help="images at a time (default %(default)s)")
    parser.add_argument(
        "--workers", type=int, default=cores, help="decoding processes (default: the cores, %(default)s)"
    )
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"), help="as in training")
    parser.add_argument(
        "--precision",
        default="fp32",
        choices=("auto", "fp32", "bf16", "fp16"),
        help="autocast type of the network; fp32 gives the same digits everywhere (default %(default)s)",
    )


def run(arguments: argparse.Namespace) -> None:
    """Writes the predictions and reports on stderr.

    Raises UserError where the classifier, its encoder and the options do not go together, where there is no image,
    and with --strict, after writing, where an image cannot be read.
    """
    _refuse_nonsense(arguments)
    import torch

    from simsiam.commands.predictions import answers, open_images, write, writing
    from simsiam.distributed.runtime import running
    from simsiam.evaluation.classifier import read_classifier
    from simsiam.training.precision import Precision

    file = _classifier_file(Path(arguments.classifier))
    classifier = read_classifier(file)
    _refuse_mismatch(classifier, file, arguments.top)
    views = _views(classifier.about, file)
    images = open_images(Path(arguments.images))
    encoder = _open_encoder(arguments.encoder, classifier, file)
    with running(arguments.device, by_trial=False) as runtime, writing(arguments.out) as out:
        precision = Precision(arguments.precision, runtime.device)
        torch.backends.cudnn.allow_tf32 = False  # fp32 gives the same digits everywhere
        encoder, head = encoder.to(runtime.device), classifier.head.to(runtime.device)
        parts = answers(encoder, head, images, views, precision, batch=arguments.batch_size, workers=arguments.workers)
        told = write(parts, classifier.classes, images, out, top=arguments.top, every=arguments.probabilities)
    with contextlib.redirect_stdout(sys.stderr):  # stdout may be the CSV file
        _report(told, classifier, images, arguments.out)
    if arguments.strict and told.bad:
        raise UserError(
            f"{counted(len(told.bad), 'image')} of {arguments.images} cannot be read, such as {told.bad[0]}; "
            "restore or remove what is listed as unreadable"
        )


def _refuse_nonsense(arguments: argparse.Namespace) -> None:
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise UserError("simsiam predict works in one process; start it without torchrun, on a part of the images each")
    if arguments.top < 1:
        raise UserError(f"--top {arguments.top} is below 1; 1 writes the likeliest class alone")
    if arguments.batch_size < 1:
        raise UserError(f"--batch-size {arguments.batch_size} is below 1; take 1 or more images at a time")
    if arguments.workers < 0:
        raise UserError(f"--workers {arguments.workers} is below 0; 0 reads in this process")


def _classifier_file(given: Path) -> Path:
    file = given / "classifier.safetensors" if given.is_dir() else given
    if not file.is_file():
        raise UserError(f"There is no file {file}; give the run folder of a finished lincls.py or semisup.py")
    return file


def _refuse_mismatch(classifier: "ReadClassifier", file: Path, top: int) -> None:
    count = len(classifier.classes)
    if classifier.head.out_features != count:
        raise UserError(
            f"{file} names {count} classes and has weights of {classifier.head.out_features}; give an undamaged one"
        )
    if top > count:
        raise UserError(f"--top {top} is more than the {count} classes of {file}; take {count} or fewer")


def _views(about: dict[str, str], file: Path) -> "Views":
    """How the classifier wants its images."""
    from simsiam.settings.tree import Views
    from simsiam.settings.view_recipes import check_views

    try:
        resize, size, mean, std = (json.loads(about[key]) for key in ("resize", "size", "pixel_mean", "pixel_std"))
        views = Views(resize=int(resize), size=int(size), mean=_three(mean), std=_three(std))
    except (KeyError, ValueError, TypeError) as error:
        raise UserError(f"{file} does not say which images it wants ({error}); train the classifier again") from None
    check_views(views)
    return views


def _three(values: list[float]) -> tuple[float, float, float]:
    red, green, blue = map(float, values)
    return red, green, blue


def _open_encoder(given: str | None, classifier: "ReadClassifier", file: Path) -> "nn.Module":
    """The encoder that the classifier was trained on, to the bit. Raises UserError for any other."""
    from simsiam.export.read import read_encoder
    from simsiam.export.write import encoder_hash

    about = classifier.about
    source, name = _encoder_source(given, about, file), about.get("encoder")
    try:
        encoder, is_named_so = read_encoder(source, name=name).encoder, True
    except UserError:  # damaged, which this says again, or another encoder, which is told better below
        encoder, is_named_so = read_encoder(source).encoder, False
    if encoder.feature_dim != classifier.head.in_features:
        raise UserError(
            f"{file} classifies {classifier.head.in_features} features, and the encoder {source} gives "
            f"{encoder.feature_dim}; give as --encoder the one that it was trained on"
        )
    wanted, found = about.get("encoder_sha256", "unknown"), encoder_hash(encoder)
    # The hash is of tensors alone: two encoders of the same tensors may compute something else.
    if found != wanted or not is_named_so:
        raise UserError(
            f"{file} was trained on the encoder {name} of SHA-256 {wanted}, but {source} holds {encoder.encoder_name} "
            f"of SHA-256 {found}; give as --encoder the one that it was trained on"
        )
    return encoder


def _encoder_source(given: str | None, about: dict[str, str], file: Path) -> str | Path:
    if given is not None:
        return given
    beside, trained_on = file.with_name("encoder.safetensors"), about.get("pretrained", "")
    if beside.is_file():
        return beside
    if trained_on == "random":
        raise UserError(
            f"{file} was trained on random weights, which were not kept, so they cannot be read again; give a "
            "classifier of a pretrained encoder"
        )
    if not trained_on or not Path(trained_on).exists():
        where = f"came from {trained_on}, which is not here" if trained_on else "is not named in it"
        raise UserError(f"The encoder of {file} {where}; give it as --encoder")
    return trained_on


def _report(told: "Told", classifier: "ReadClassifier", images: "FolderImages", out: str) -> None:
    say("wrote", f"{counted(len(images), 'row')} to {'stdout' if out == '-' else out}")
    if told.bad:
        say("unreadable", f"{counted(len(told.bad), 'image')}, with an empty label:")
        say_first(told.bad)
    number = {name: label for label, name in enumerate(classifier.classes)}
    folders = [name.split("/")[0] if "/" in name else None for name in images.index.names]
    if told.first and all(folder in number for folder in folders):
        right = sum(number[folders[sample]] == label for sample, label in told.first.items())
        share = 100 * right / len(told.first)
        say("top-1", f"{share:.2f}% of {counted(len(told.first), 'image')}, by the classes that their folders name")
