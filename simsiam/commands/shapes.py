"""`simsiam shapes`: the embedded set as scenes, so that detection trains and evaluates where nothing can be fetched."""

import argparse
from pathlib import Path

from simsiam.commands.say import say
from simsiam.errors import UserError

HELP = "write the embedded set as scenes with boxes and masks, in the layout of PASCAL VOC or COCO"
_MOST = 999_999  # scenes: six digits in a file's name


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `simsiam shapes`."""
    parser.add_argument("--voc", metavar="DIR", help="folder to write DIR/VOC2007 and DIR/classes.txt in")
    parser.add_argument("--coco", metavar="DIR", help="folder to write DIR/annotations and DIR/{train,val}2017 in")
    parser.add_argument("--train", type=int, default=1000, metavar="N", help="training scenes (default %(default)s)")
    parser.add_argument("--val", type=int, default=200, metavar="N", help="test scenes (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="another one gives other scenes (default %(default)s)")


def run(arguments: argparse.Namespace) -> None:
    """Writes the sets asked for, the same scenes in each, and says what is in them.

    Raises UserError for no folder, one that has something in it, one of two that lies in the other, and a count or seed
    out of range.
    """
    from simsiam.data.sources.scenes import make_scenes

    wanted = {layout: Path(folder) for layout in ("voc", "coco") if (folder := getattr(arguments, layout))}
    _refuse_nonsense(arguments, list(wanted.values()))
    for layout, root in wanted.items():
        make_scenes(root, layout, arguments.train, arguments.val, arguments.seed)
        _report(layout, root)


def _refuse_nonsense(arguments: argparse.Namespace, folders: list[Path]) -> None:
    for name in ("train", "val"):
        count = getattr(arguments, name)
        if not 1 <= count <= _MOST:
            raise UserError(f"--{name} {count} is no number of scenes from 1 to {_MOST:,}; give one")
    if not 0 <= arguments.seed < 1 << 32:
        raise UserError(f"--seed {arguments.seed} is not from 0 to {(1 << 32) - 1}; give one that is")
    if not folders:
        raise UserError("There is no folder to write to; give --voc DIR, --coco DIR or both")
    for folder in folders:
        if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
            raise UserError(f"{folder} is there and not an empty folder; give a new one or remove it")
    if len(folders) == 2:
        voc, coco = (folder.resolve() for folder in folders)
        if voc.is_relative_to(coco) or coco.is_relative_to(voc):
            raise UserError(f"One of {folders[0]} and {folders[1]} lies in the other; give two folders apart")


def _report(layout: str, root: Path) -> None:
    from simsiam.detection.coco import open_coco
    from simsiam.detection.findings import check
    from simsiam.detection.voc import open_voc

    for of_voc, of_coco in (("trainval", "train2017"), ("test", "val2017")):
        images = open_voc(root, [("2007", of_voc)]) if layout == "voc" else open_coco(root, of_coco)
        first, *more = check(images).lines()
        say(layout, f"{of_voc if layout == 'voc' else of_coco}: {first}")
        for line in more:
            say("", line)
    say("", f"{root}, first scenes in {root / 'preview.png'}")
