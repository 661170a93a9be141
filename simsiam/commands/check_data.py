"""`simsiam check-data`: what is in a dataset, what is wrong with it, and what would limit training on it."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from simsiam.commands.say import counted, say, say_first
from simsiam.distributed.threads import usable_cores
from simsiam.errors import UserError

if TYPE_CHECKING:
    import numpy as np

    from simsiam.data.check import Findings, Prints
    from simsiam.data.image_set import ImageSet
    from simsiam.data.index import Index

HELP = "count classes and images, find files that are unreadable, odd, changed or repeated, name the bottleneck"
_BAR = 40  # characters of the longest bar
_SIDES = (1, 32, 64, 128, 192, 256, 320, 384, 448, 512, 768, 1024, 2048, 4096)
_MEGAPIXELS = (0, 0.01, 0.03, 0.1, 0.2, 0.3, 0.5, 1, 2, 5, 10, 20, 50)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `simsiam check-data`."""
    cores = usable_cores()
    parser.add_argument("data", metavar="PATH", help="what training takes as --data")
    parser.add_argument("--list", metavar="FILE", help="write every finding, one a line: finding, split, file, note")
    parser.add_argument(
        "--checksums",
        action="store_true",
        help="list the files whose bytes have changed since an earlier check, then take the new checksums in",
    )
    parser.add_argument("--strict", action="store_true", help="exit code 2 where a file cannot be read")
    parser.add_argument("--workers", type=int, default=cores, help="worker processes (default: the cores, %(default)s)")
    parser.add_argument("--download", action="store_true", help="download a built-in dataset that is not on disk")
    account = parser.add_argument_group("throughput account")
    account.add_argument("--no-throughput", action="store_true", help="measure no rates")
    account.add_argument(
        "--recipe", default="imagenet-r50-100ep", help="encoder, method and views to time (default %(default)s)"
    )
    account.add_argument(
        "--loader", default="auto", choices=("auto", "dali", "torchvision", "resident"), help="as in training"
    )
    account.add_argument(
        "--batch-size", type=int, help="images a step of one rank (default 64; on a CPU 8, but for small views)"
    )
    account.add_argument("--seconds", type=float, default=3.0, help="length of a measurement (default %(default)s)")
    account.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"), help="as in training")


def run(arguments: argparse.Namespace) -> None:
    """Prints the report; exit code 0, whatever was found.

    Raises UserError for a set that training would refuse, and with --strict where a file cannot be read.
    """
    from simsiam.data.datasets import has_split, open_dataset

    _refuse_nonsense(arguments)
    listing = _Listing(arguments.list)
    splits = {"train": open_dataset(arguments.data, "pretrain", download=arguments.download)}
    if has_split(arguments.data, "val"):
        splits["val"] = open_dataset(arguments.data, "val")  # numbered by itself, so a class unknown to train is no end
    checked = {name: _check(name, images, arguments, listing) for name, images in splits.items()}
    if "val" in splits:
        _compare_classes(splits["train"], splits["val"])
        _compare_files(splits, checked, listing)
    listing.close()
    train, bad = splits["train"], checked["train"].bad
    if not arguments.no_throughput and len(bad) < len(train):
        import numpy as np

        from simsiam.commands.throughput import account_for

        print()
        for line in account_for(train, np.setdiff1d(np.arange(len(train)), list(bad)), arguments):
            print(line, flush=True)
    if arguments.strict:
        _refuse_unreadable(splits, checked, arguments.data)


class _Checked(NamedTuple):
    prints: "Prints"
    bad: dict[int, str]


class _Listing:
    """What --list writes. The file is made at once: a mistake in its name costs no reading."""

    def __init__(self, path: str | None) -> None:
        self._path, self._lines = path, []
        self._write()

    def add(self, finding: str, split: str, file: str, note: str = "") -> None:
        if self._path is not None:
            self._lines.append(f"{finding}\t{split}\t{file}\t{' '.join(note.split())}\n")

    def close(self) -> None:
        self._write()
        if self._path is not None:
            say("list", f"{counted(len(self._lines), 'finding')} in {self._path}")

    def _write(self) -> None:
        if self._path is None:
            return
        try:
            with Path(self._path).open("w", encoding="utf-8", errors="surrogateescape") as file:
                file.writelines(self._lines)
        except OSError as error:
            raise UserError(
                f"The list {self._path} cannot be written ({error.strerror}); give --list another file"
            ) from None


def _refuse_nonsense(arguments: argparse.Namespace) -> None:
    if arguments.workers < 0:
        raise UserError(f"--workers {arguments.workers} is below 0; 0 reads in this process")
    if arguments.batch_size is not None and arguments.batch_size < 2:
        raise UserError(f"--batch-size {arguments.batch_size} is below 2, and batch norm needs two images; take more")
    if not arguments.seconds > 0:
        raise UserError(f"--seconds {arguments.seconds:g} is no length of a measurement; take 3, or --no-throughput")


def _refuse_unreadable(splits: dict[str, "ImageSet"], checked: dict[str, _Checked], data: str) -> None:
    count = sum(len(of.bad) for of in checked.values())
    if count:
        split = next(name for name, of in checked.items() if of.bad)
        first = splits[split].name(min(checked[split].bad))
        raise UserError(
            f"{counted(count, 'file')} of {data} cannot be read, such as {first} of {split}; restore or remove what is "
            "listed as unreadable"
        )


def _check(name: str, images: "ImageSet", arguments: argparse.Namespace, listing: _Listing) -> _Checked:
    """Reports on one split alone."""
    from simsiam.data.check import prints, read_all
    from simsiam.data.encoded import EncodedImages

    _describe_classes(name, images)
    if not isinstance(images, EncodedImages):
        height, width = images.read(0).shape[1:]
        say("", f"{width}x{height} pixels each, an array in memory: there are no files to check")
        of = prints(images, None)
        _describe_repeated(name, images, of, listing)
        return _Checked(of, {})
    _describe_left_out(name, images, listing)
    found = read_all(images, arguments.workers, show_progress=True)
    bad = dict(found.bad)
    _describe_changes(name, images, found, bad, arguments.checksums, listing)
    _describe_unreadable(name, images, bad, listing)
    _describe_odd(name, images, found.odd, listing)
    of = prints(images, found.index)
    _describe_repeated(name, images, of, listing)
    _describe_sizes(found)
    return _Checked(of, bad)


def _describe_classes(name: str, images: "ImageSet") -> None:
    from simsiam.data.check import balance

    unlabelled = int((images.labels < 0).sum())
    labels = f"{unlabelled:,} without label" if unlabelled else "all labelled"
    say(name, f"{counted(len(images), 'image')}, {counted(len(images.classes), 'class', 'classes')}, {labels}")
    spread = balance(images)
    if spread is not None:
        few, middle, many = (f"{count:,} ({of})" for of, count in spread)
        say("", f"images per class: fewest {few}, median {middle}, most {many}")


def _describe_changes(
    name: str, images: "ImageSet", found: "Findings", bad: dict[int, str], take_in: bool, listing: _Listing
) -> None:
    """Compares with what was known; keeps what was learnt of a folder, and adds damage in shards to the bad images."""
    from simsiam.data.cache import cache_root
    from simsiam.data.check import changed, learnt
    from simsiam.data.sources.folder import FolderImages

    before = images.index
    rows = changed(before, found.index).tolist()
    for row in rows:
        listing.add("changed", name, images.name(row))
    if not isinstance(images, FolderImages):
        for row in rows:
            bad.setdefault(row, "its checksum is not the index's: it was damaged after it was packed")
        if before.checksums is not None:
            say("", f"checksums: {counted(len(rows), 'image')} of {len(images):,} not as they were packed")
        return
    is_kept = _keep(images.root, learnt(before, found.index, take_in=take_in))
    if rows:
        fate = "the new checksums are taken in" if take_in else "--checksums takes the new checksums in"
        say("", f"changed since an earlier check: {counted(len(rows), 'file')}; {fate}")
        say_first([images.name(row) for row in rows])
    if take_in:
        compared = int((before.is_read() & found.index.is_read()).sum())
        new = int((found.index.is_read() & ~before.is_read()).sum())
        say("", f"checksums: {counted(compared, 'file')} compared with an earlier check, {new:,} taken in as new")
    if not is_kept:
        say("", f"not kept for later: {images.root} was changed a moment ago, or {cache_root()} cannot be written")


def _keep(root: Path, index: "Index") -> bool:
    """Keeps what was learnt of a folder in the cache of its index; whether it is there now."""
    import numpy as np

    from simsiam.data.index_cache import folder_index, keep_facts

    for _ in range(2):  # at the first try its index may be missing: it was too young to be kept when it was opened
        keep_facts(root, index)
        kept = folder_index(root)
        if kept.checksums is not None and np.array_equal(kept.checksums, index.checksums):
            return True
    return False


def _describe_unreadable(name: str, images: "ImageSet", bad: dict[int, str], listing: _Listing) -> None:
    say("", f"unreadable: {counted(len(bad), 'file')}" if bad else "unreadable: none")
    for sample, reason in sorted(bad.items()):
        listing.add("unreadable", name, images.name(sample), reason)
    say_first([f"{images.name(sample)}: {reason}" for sample, reason in sorted(bad.items())])


def _describe_left_out(name: str, images: "ImageSet", listing: _Listing) -> None:
    from simsiam.data.sources.folder import FolderImages, left_out

    files = left_out(images.root) if isinstance(images, FolderImages) else []
    for file in files:
        listing.add("left out", name, file, "its ending is no image's")
    if files:
        endings = ", ".join(sorted({Path(file).suffix.lower() or "none" for file in files})[:5])
        say("", f"left out: {counted(len(files), 'file')} by the ending ({endings}), such as {files[0]}")


def _describe_odd(name: str, images: "ImageSet", odd: "np.ndarray", listing: _Listing) -> None:
    from simsiam.data.check import ODD

    for bit, what in ODD.items():
        rows = (odd & bit).nonzero()[0].tolist()
        for row in rows:
            listing.add("odd", name, images.name(row), what)
        if rows:
            say("", f"odd: {counted(len(rows), 'file')} {what}, such as {images.name(rows[0])}")
    if not odd.any():
        say("", "odd: none")


def _describe_repeated(name: str, images: "ImageSet", of: "Prints", listing: _Listing) -> None:
    from simsiam.data.check import repeated

    groups = repeated(of)
    for group in groups:
        for row in group[1:].tolist():
            listing.add("repeated", name, images.name(row), f"as {images.name(int(group[0]))}")
    if not groups:
        say("", "repeated: none")
        return
    spare = sum(len(group) - 1 for group in groups)
    astray = sum(len(set(images.labels[group].tolist())) > 1 for group in groups)
    first, second = (images.name(row) for row in groups[0][:2].tolist())
    labels = f"; {astray:,} of them in more than one class" if astray else ""
    say("", f"repeated: {counted(spare, 'image')} equal to another to the byte, such as {second} to {first}{labels}")


def _describe_sizes(found: "Findings") -> None:
    import numpy as np

    lengths = found.index.byte_lengths[found.index.byte_lengths >= 0]
    pixels = found.index.pixels[found.index.pixels.min(axis=1) > 0].astype(np.int64)
    if len(lengths):
        say("", f"{_size(int(lengths.sum()))} in all, the median file {_size(int(np.median(lengths)))}")
    if len(pixels):
        _say_histogram("shorter side, pixels", pixels.min(axis=1), _SIDES)
        _say_histogram("megapixels", pixels.prod(axis=1) / 1e6, _MEGAPIXELS)


def _compare_classes(train: "ImageSet", val: "ImageSet") -> None:
    from simsiam.data.check import classes_apart

    if not train.classes or not val.classes:
        return
    missing, strange = classes_apart(train, val)
    if missing:
        say("classes", f"{counted(len(missing), 'class', 'classes')} of train without an image in val:")
        say_first(missing)
    if strange:
        say("classes", f"{counted(len(strange), 'class', 'classes')} of val without an image in train:")
        say_first(strange)
    if not missing and not strange:
        say("classes", f"the same {len(train.classes):,} in train and val")


def _compare_files(splits: dict[str, "ImageSet"], checked: dict[str, _Checked], listing: _Listing) -> None:
    from simsiam.data.check import shared

    pairs = []
    for ours, theirs in shared(checked["train"].prints, checked["val"].prints):
        train_name, val_name = splits["train"].name(ours), splits["val"].name(theirs)
        listing.add("in both", "val", val_name, f"as {train_name} of train")
        pairs.append(f"{val_name} of val is {train_name} of train")
    say(
        "splits", f"{counted(len(pairs), 'image')} of val in train too:" if pairs else "no image of val is in train too"
    )
    say_first(pairs)


def _say_histogram(title: str, values: "np.ndarray", edges: tuple[float, ...]) -> None:
    """Text bars of how many values lie from each edge to below the next; empty rows at the ends are left out."""
    import numpy as np

    counts = np.histogram(values, [*edges, np.inf])[0]
    filled = np.flatnonzero(counts)
    say("", title)
    for row in range(filled[0], filled[-1] + 1):
        reach = f"{edges[row]:g} to {edges[row + 1]:g}" if row + 1 < len(edges) else f"{edges[row]:g} and more"
        bar = "#" * max(round(_BAR * counts[row] / counts.max()), int(counts[row] > 0))
        say("", f"  {reach:<14}{counts[row]:>11,}  {bar}".rstrip())


def _size(number: int) -> str:
    for power, unit in ((40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")):
        if number >= 1 << power:
            return f"{number / 2**power:.1f} {unit}"
    return f"{number} bytes"
