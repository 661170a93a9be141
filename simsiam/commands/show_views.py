"""`simsiam show-views`: an image and its views as training makes them, by each loader that can read the set."""

import argparse
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from simsiam.errors import UserError

if TYPE_CHECKING:
    import numpy as np
    import torch
    from matplotlib.axes import Axes

    from simsiam.data.image_set import ImageSet
    from simsiam.settings.tree import Pretrain, Views

HELP = "draw an image, its crops and its views, by each loader, with the numbers they were made from"
LOADERS = ("torchvision", "dali", "resident")
_DPI = 100
_CELL = 300  # pixels of a column and of a row
_TITLE, _LINE, _END = 60, 26, 38  # pixels above the rows, and below them: of a view's line, and of what is left
_COLOURS = ("tab:red", "tab:blue", "tab:green", "tab:orange", "tab:purple", "tab:brown", "tab:pink", "tab:olive")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `simsiam show-views`."""
    parser.add_argument("data", metavar="PATH", help="what training takes as --data")
    parser.add_argument("--sample", default="0", help="number of an image of the training set, or its file name")
    parser.add_argument("--epoch", type=int, default=0, help="epoch whose views to draw, from 0 (default %(default)s)")
    parser.add_argument("--recipe", default="imagenet-r50-100ep", help="whose views to draw (default %(default)s)")
    parser.add_argument("--seed", type=int, help="seed of the run (default: the recipe's)")
    parser.add_argument(
        "--subset", default="", help="as in training: samples are then numbered within the part (default: all images)"
    )
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"), help="as in training")
    parser.add_argument("--out", metavar="FILE", help="picture to write (default views_SAMPLE_EPOCH.png)")


def run(arguments: argparse.Namespace) -> None:
    """Writes the picture and prints how far the loaders differ.

    Raises UserError for a sample that is not there or cannot be read, and for a picture that cannot be written.
    """
    from simsiam.data.open import open_images
    from simsiam.distributed.runtime import running
    from simsiam.settings.parse import parse
    from simsiam.settings.tree import Pretrain
    from simsiam.settings.view_recipes import check_view_recipes, view_recipes

    settings = parse(Pretrain, [], recipe=arguments.recipe, prog="simsiam show-views")
    settings = replace(settings, data=arguments.data, subset=arguments.subset, batch_size=1, accumulate=1, workers=0)
    if arguments.seed is not None:
        settings = replace(settings, seed=arguments.seed)
    if arguments.epoch < 0:
        raise UserError(f"--epoch {arguments.epoch} is below 0; the first epoch is 0")
    num_views = num_views_of(settings)
    check_view_recipes(settings, num_views, takes_small_views=True)
    recipes = view_recipes(settings, arguments.epoch, num_views)
    with running(arguments.device) as runtime:
        settings = replace(settings, device=runtime.device.type)
        images = open_images(settings, "pretrain", runtime)
        sample = find_sample(images, arguments.sample)
        image = _read(images, sample)
        rows, left_out = _rows(images, sample, arguments.epoch, settings, num_views, runtime.device)
    out = Path(arguments.out or f"views_{sample}_{arguments.epoch}.png")
    title = (
        f"{images.name(sample)}   sample {sample}, epoch {arguments.epoch}, seed {settings.seed}, {arguments.recipe}"
    )
    _draw(title, image, rows, _Drawn.of(recipes, settings.seed, sample, arguments.epoch, image), settings.views, out)
    for loader, reason in left_out.items():
        print(f"{loader:<12}left out: {reason}")
    for line in differences(rows, settings.views):
        print(line)
    print(f"wrote       {out}")


class Row(NamedTuple):
    """What one loader made of the sample.

    Attributes:
        crops: uint8 (V, S, S, 3).
        views: float32 (V, 3, S, S), normalised, on the CPU.
        small_crops, small_views: the same of the small views; None where the recipe has none.
    """

    loader: str
    crops: "torch.Tensor"
    views: "torch.Tensor"
    small_crops: "torch.Tensor | None" = None
    small_views: "torch.Tensor | None" = None


@dataclass(frozen=True)
class OneSample:
    """In place of a `Plan`: one step after another of this one sample, in this epoch."""

    sample: int
    chosen_epoch: int
    global_batch: int = 1
    world_size: int = 1

    def epoch(self, step: int) -> int:
        return self.chosen_epoch

    def rank_batch(self, step: int) -> "np.ndarray":
        """int64 (1,)."""
        import numpy as np

        return np.array([self.sample])


def num_views_of(settings: "Pretrain") -> int:
    """Full-size views of an image that the recipe's method takes."""
    from simsiam.methods.registry import build_method, method_class, resolve_method

    section = resolve_method(settings.method)
    try:
        return build_method(section, settings.encoder).num_views
    except UserError:  # it may want a teacher that is not there yet, and views can be looked at all the same
        return method_class(section["name"]).num_views


def find_sample(images: "ImageSet", wanted: str) -> int:
    """The sample id that a number, a name or the end of a name from a `/` on stands for. Raises UserError."""
    from simsiam.data.subset_lists import all_names

    total = len(images)
    if wanted.lstrip("-").isdecimal():
        if not 0 <= int(wanted) < total:
            raise UserError(f"There is no sample {wanted}: the training set has {total:,} images, 0 to {total - 1}")
        return int(wanted)
    names = list(all_names(images))
    found = [sample for sample, name in enumerate(names) if name == wanted]
    found = found or [sample for sample, name in enumerate(names) if name.endswith(f"/{wanted}")]
    if not found:
        raise UserError(
            f"No image of the training set is called {wanted!r}: give a number, or a name such as {names[0]}"
        )
    if len(found) > 1:
        raise UserError(
            f"{len(found)} images are called {wanted!r}, such as {names[found[0]]} and {names[found[1]]}; "
            "give the whole name"
        )
    return found[0]


def differences(rows: list[Row], views: "Views") -> list[str]:
    """A line for each loader after the first: its largest and mean difference from that one, in levels of 255."""
    import torch

    first, *others = rows
    if not others:
        return [f"{first.loader:<12}is the only loader that can read this set here, so there is nothing to compare"]
    level = 255 * torch.tensor(views.std).view(3, 1, 1)
    lines = []
    for row in others:
        pairs = ((row.crops, first.crops), (row.small_crops, first.small_crops))
        crops = torch.cat([(a.float() - b.float()).abs().flatten() for a, b in pairs if a is not None])
        pairs = ((row.views, first.views), (row.small_views, first.small_views))
        made = torch.cat([((a - b) * level).abs().flatten() for a, b in pairs if a is not None])
        lines.append(
            f"{row.loader:<12}differs from {first.loader} by at most {crops.max():.0f} levels of 255 in the crops, on "
            f"average {crops.mean():.3f}, and by at most {made.max():.1f} in the views, on average {made.mean():.3f}"
        )
    return lines


def _read(images: "ImageSet", sample: int) -> "np.ndarray":
    """The image, uint8 (H, W, 3)."""
    from simsiam.data.image_set import BadImage

    try:
        return images.read(sample).permute(1, 2, 0).numpy()
    except BadImage as error:
        raise UserError(
            f"Sample {sample}, {images.name(sample)}, cannot be read ({error}); take another, or see "
            "`simsiam check-data`"
        ) from None


def _rows(
    images: "ImageSet", sample: int, epoch: int, settings: "Pretrain", num_views: int, device: "torch.device"
) -> tuple[list[Row], dict[str, str]]:
    """What each loader makes of a sample; and why, for those that cannot."""
    from simsiam.data.augment import Augment
    from simsiam.data.loaders import choose_images, make_loader
    from simsiam.settings.view_recipes import view_recipes

    augment = Augment(settings.views, settings.seed, partial(view_recipes, settings, num_views=num_views)).to(device)
    rows, left_out = [], {}
    for loader in LOADERS:
        chosen = replace(settings, loader=loader)
        try:
            held, _ = choose_images(images, chosen, show_progress=True)
        except UserError as error:
            left_out[loader] = str(error)
            continue
        steps = make_loader(held, OneSample(sample, epoch), chosen, num_views, device).steps(0, 1)
        (crops,) = next(iter(steps))
        of_each_size = (crops.images, crops.small) if crops.small is not None else (crops.images,)
        pairs = zip(of_each_size, augment.inputs(crops), strict=True)
        row = [part[:, 0].cpu() for pair in pairs for part in pair]
        rows.append(Row(loader, *row))
    return rows, left_out


class _Drawn(NamedTuple):
    """What the views of a sample were drawn as: for each its box (top, left, height, width), and all of it in words.

    Full-size views come first, small ones after them.
    """

    boxes: list[list[int]]
    words: list[str]

    @classmethod
    def of(cls, recipes: "list[Views]", seed: int, sample: int, epoch: int, image: "np.ndarray") -> "_Drawn":
        import numpy as np

        from simsiam.data.views import boxes_of_views

        height, width = image.shape[:2]
        boxes = boxes_of_views(recipes, seed, epoch, np.array([sample]), [height], [width])[:, 0].tolist()
        words = (describe(recipe, seed, epoch, sample, view, boxes[view]) for view, recipe in enumerate(recipes))
        return cls(boxes, list(words))


def describe(views: "Views", seed: int, epoch: int, sample: int, view: int, box: list[int]) -> str:
    """The parameters of one view in the order they apply."""
    import numpy as np

    from simsiam.data.views import BRIGHTNESS, CONTRAST, HUE, SATURATION, colours

    colour = colours(views, seed, epoch, np.array([sample]), view)
    top, left, height, width = box
    steps = {
        BRIGHTNESS: f"brightness x {colour.brightness[0]:.3f}",
        CONTRAST: f"contrast x {colour.contrast[0]:.3f}",
        SATURATION: f"saturation x {colour.saturation[0]:.3f}",
        HUE: f"hue {colour.hue[0]:+.3f} turns",
    }
    jitter = ", ".join(steps[int(number)] for number in colour.order[0]) if colour.jitter[0] else "no jitter"
    gray = "gray" if colour.gray[0] else "not gray"
    blur = f"blur sigma {colour.sigma[0]:.2f} px" if colour.sigma[0] else "no blur"
    solarized = "; solarized" if colour.solarize[0] else "; not solarized" if views.solarize else ""
    flip = "flipped" if colour.flip[0] else "not flipped"
    where = f"{width}x{height} pixels at left {left}, top {top}"
    return f"view {view + 1}: {where}; {jitter}; {gray}; {blur}{solarized}; {flip}"


def _draw(title: str, image: "np.ndarray", rows: list[Row], drawn: _Drawn, views: "Views", out: Path) -> None:
    """Writes the picture: for each loader a row with the image, V crops and V views, and one with the small views.

    It is columns x _CELL pixels wide and rows x _CELL + _TITLE + _END high, and a _LINE for each view.
    """
    import torch
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    num_views = len(rows[0].crops)
    num_small = len(drawn.boxes) - num_views
    columns, deep = max(1 + 2 * num_views, num_small), 2 if num_small else 1
    text = _END + _LINE * len(drawn.words)
    width, height = columns * _CELL, deep * len(rows) * _CELL + _TITLE + text
    figure = Figure(figsize=(width / _DPI, height / _DPI), dpi=_DPI)
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(
        deep * len(rows),
        columns,
        left=0.02,
        right=0.995,
        top=1 - _TITLE / height,
        bottom=text / height,
        wspace=0.05,
    )
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (views.mean, views.std))

    def pixels(view: torch.Tensor) -> "np.ndarray":
        return (view * std + mean).clamp(0, 1).permute(1, 2, 0).numpy()

    title = title.encode("utf-8", "replace").decode()  # a file's name need not be UTF-8
    figure.text(0.5, 1 - 8 / height, title, ha="center", va="top", fontsize=11, parse_math=False)
    for number, row in enumerate(rows):
        first = figure.add_subplot(grid[deep * number, 0])
        _picture(first, image, f"image, {image.shape[1]}x{image.shape[0]}")
        first.set_ylabel(row.loader, fontsize=11)
        for view, box in enumerate(drawn.boxes):
            _frame(first, box, _colour(view), "-" if view < num_views else ":")
        for view in range(num_views):
            cells = (figure.add_subplot(grid[deep * number, 1 + part * num_views + view]) for part in range(2))
            _picture(next(cells), row.crops[view].numpy(), f"crop {view + 1}", _colour(view))
            _picture(next(cells), pixels(row.views[view]), f"view {view + 1}", _colour(view))
        for small in range(num_small):
            view, cell = num_views + small, figure.add_subplot(grid[deep * number + 1, small])
            _picture(cell, pixels(row.small_views[small]), f"small view {view + 1}", _colour(view))
    for line, words in enumerate(drawn.words):
        figure.text(0.02, (text - 22 - _LINE * line) / height, words, fontsize=10, color=_colour(line), va="top")
    try:
        figure.savefig(out, dpi=_DPI, format="png")
    except OSError as error:
        raise UserError(f"The picture {out} cannot be written ({error.strerror}); give --out another file") from None


def _colour(view: int) -> str:
    return _COLOURS[view % len(_COLOURS)]


def _frame(cell: "Axes", box: list[int], colour: str, style: str) -> None:
    from matplotlib.patches import Rectangle

    top, left, height, width = box
    # Pixel centres are at whole numbers, their edges half a pixel off.
    cell.add_patch(Rectangle((left - 0.5, top - 0.5), width, height, fill=False, lw=2, ls=style, ec=colour))


def _picture(cell: "Axes", pixels: "np.ndarray", title: str, colour: str = "black") -> None:
    cell.imshow(pixels)
    cell.set_title(title, fontsize=10, color=colour)
    cell.set_xticks([])
    cell.set_yticks([])
