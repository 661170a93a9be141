"""`simsiam shards`: a folder of images as tar files that are read in sequence, on disk or in an object store."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from simsiam.commands.say import counted, say, say_first
from simsiam.errors import UserError

if TYPE_CHECKING:
    from simsiam.data.encoded import EncodedImages
    from simsiam.data.pack import Packed, Packing

HELP = "pack a folder of images into tar shards with an index, in a folder or at a URL; go on where it was interrupted"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `simsiam shards`."""
    parser.add_argument("source", metavar="IN", help="folder of images; each of its splits, such as train/ and val/")
    parser.add_argument(
        "out", metavar="OUT", help="folder or URL to write (s3://, gs://, hf://); what --data then takes"
    )
    parser.add_argument(
        "--shard-bytes",
        type=int,
        default=256 << 20,
        help="most bytes of images in a shard (default %(default)s, 256 MiB)",
    )
    parser.add_argument(
        "--shuffle",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="mix the images before packing: shards of one class each would mix badly in training (default: on)",
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of that order (default %(default)s)")
    parser.add_argument("--workers", type=int, default=16, help="threads that read files (default %(default)s)")


def run(arguments: argparse.Namespace) -> None:
    """Packs each split and says what came of it.

    Raises UserError for a set that training would refuse, and for an OUT that holds or would hold anything else.
    """
    from simsiam.data.datasets import has_split, is_in_splits, open_dataset
    from simsiam.data.pack import Packing

    _refuse_inside(arguments.source, arguments.out)
    train = open_dataset(arguments.source, "pretrain")
    splits = {"train": train}
    if has_split(arguments.source, "val"):
        splits["val"] = open_dataset(arguments.source, "val", classes=train.classes or None)
    packings: dict[str, Packing] = {}
    for name, images in splits.items():  # all before the first is packed: a mistake in one costs no hours
        out = f"{arguments.out.rstrip('/')}/{name}" if is_in_splits(arguments.source) else arguments.out
        packings[name] = Packing(
            _refuse_arrays(images, arguments.source),
            out,
            shard_bytes=arguments.shard_bytes,
            seed=arguments.seed if arguments.shuffle else None,
        )
    for name, packing in packings.items():
        _report(name, packing, packing.run(arguments.workers, show_progress=True))


def _refuse_inside(source: str, out: str) -> None:
    from simsiam.data.storage import is_url

    folder, target = Path(source).expanduser(), Path(out).expanduser()
    if folder.is_dir() and not is_url(out) and target.resolve().is_relative_to(folder.resolve()):
        raise UserError(f"{out} lies in {source}, where it would be taken for images; give a folder outside of it")


def _refuse_arrays(images: object, source: str) -> "EncodedImages":
    from simsiam.data.encoded import EncodedImages

    if not isinstance(images, EncodedImages):
        raise UserError(f"{source} is a few large files already, and no folder of images; there is nothing to pack")
    return images


def _report(name: str, packing: "Packing", packed: "Packed") -> None:
    index, left_out = packed.index, packed.left_out
    shards, size = len(index.shard_names), int(index.byte_lengths.sum())
    done = "had been packed before" if packed.was_there else "packed"
    say(name, f"{len(index):,} images, {size:,} bytes, in {counted(shards, 'shard')}: {done}, {packing.out}")
    if left_out:
        say("", f"left out as unreadable: {counted(len(left_out), 'file')}")
        say_first([f"{file}: {why}" for file, why in left_out])
