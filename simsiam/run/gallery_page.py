"""A run's nearest neighbours and maps as parts of the page."""

import base64
from collections import Counter
from collections.abc import Iterable
from html import escape
from pathlib import Path

from simsiam.run.curves import style_class
from simsiam.run.gallery import SHEET, Gallery, read_gallery, without_encoder
from simsiam.run.record import Record

_SIDE, _MARGIN = 320, 10
_SHEET_BYTES = 2 << 20
_NOT_MADE = "Neighbours and map are not made yet: `simsiam report RUN --pictures` makes them, where the run's data is"


def gallery_parts(run: Record, why_not: str) -> Iterable[str]:
    """What the folder keeps, or a sentence why there is nothing.

    Args:
        why_not: what kept this report from making it, for the page to say; empty where nothing did.
    """
    gallery, sheet = read_gallery(run.path), _sheet(run.path)
    has_both = gallery is not None and bool(sheet)
    lacks = why_not or without_encoder(run) or ("" if has_both else _NOT_MADE)
    if lacks:
        yield f'<p class="lacking">{escape(lacks)}.</p>'
    if not has_both:
        return
    yield _neighbours(gallery, sheet)
    maps = "".join(_map(name, places, gallery) for name, places in gallery.maps.items())
    if maps:
        yield f'<h3>Map of the features</h3><div class="charts">{maps}</div>'
    else:
        yield '<p class="lacking">No map: the features of all images are one point.</p>'


def _sheet(folder: Path) -> str:
    try:
        if (folder / SHEET).stat().st_size > _SHEET_BYTES:
            return ""
        data = (folder / SHEET).read_bytes()
    except OSError:
        return ""
    return base64.b64encode(data).decode() if data.startswith(b"\xff\xd8\xff") else ""


def _neighbours(gallery: Gallery, sheet: str) -> str:
    across, down = len(gallery.rows[0]), len(gallery.rows)
    rows = []
    for number, row in enumerate(gallery.rows):
        names = [_name(gallery, place) for place in row]
        tiles = []
        for column, name in enumerate(names):
            at = f"{100 * column / (across - 1):.4g}% {100 * number / max(down - 1, 1):.4g}%"
            same = column and gallery.labels[row[column]] == gallery.labels[row[0]] >= 0
            kind = "same" if same else "query" if not column else "other"
            title = f' title="{escape(name)}"' if name else ""
            tiles.append(f'<i class="{kind}"{title} style="background-position:{at}"></i>')
        said = ", ".join(filter(None, names[1:]))
        label = f' role="img" aria-label="{escape(f"{names[0]}; its neighbours: {said}")}"' if said else ""
        rows.append(f'<div class="row"><span>{escape(names[0])}</span><div{label}>{"".join(tiles)}</div></div>')
    same = (
        f" Framed: of the image's own class, as {100 * gallery.same:.0f}% of the neighbours of all these images are "
        f"({100 * _by_chance(gallery.labels):.0f}% by chance)."
        if gallery.same is not None
        else ""
    )
    return (
        f'<figure class="near" style="--across:{across};--down:{down};--sheet:url(data:image/jpeg;base64,{sheet})">'
        f"<figcaption>Nearest neighbours</figcaption><p>An image, and the {across - 1} that are nearest to it by the "
        f"cosine of their features, among {escape(_among(gallery))}.{same}</p>{''.join(rows)}</figure>"
    )


def _map(name: str, places: list[list[float]], gallery: Gallery) -> str:
    labels = sorted(set(gallery.labels))
    groups, legend = [], []
    for label in labels:
        at = "".join(
            f"M{_MARGIN + _SIDE * x:.1f} {_MARGIN + _SIDE * (1 - y):.1f}h0"
            for (x, y), own in zip(places, gallery.labels)
            if own == label
        )
        title = escape(gallery.classes[label] if label >= 0 else "no label")
        style = style_class(max(label, 0))
        groups.append(f'<g class="series {style}"><title>{title}</title><path class="dots" d="{at}"/></g>')
        legend.append(
            f'<li><svg class="mark {style}" viewBox="0 0 24 8"><path class="dots" d="M12 4h0"/></svg>{title}</li>'
        )
    whole = _SIDE + 2 * _MARGIN
    kept = f", {100 * gallery.kept:.0f}% of the variance" if name == "PCA" else ""
    shown = f'<ul class="legend">{"".join(legend)}</ul>' if gallery.classes else ""
    return (
        f"<figure><figcaption>{escape(name)}{kept}</figcaption>"
        f'<svg class="map" viewBox="0 0 {whole} {whole}" role="img" aria-label="{escape(name)} of the features">'
        f"{''.join(groups)}</svg>{shown}</figure>"
    )


def _by_chance(labels: list[int]) -> float:
    """Share of an image's own class among all others, mean over images."""
    counts = Counter(label for label in labels if label >= 0)
    return sum(n * (n - 1) for n in counts.values()) / (sum(counts.values()) * max(len(labels) - 1, 1) or 1)


def _name(gallery: Gallery, place: int) -> str:
    label = gallery.labels[place]
    return gallery.classes[label] if label >= 0 else ""


def _among(gallery: Gallery) -> str:
    """`600 val images of 10 of 1,000 classes of /data/imagenet, by the encoder of step 312`."""
    classes = ""
    if gallery.classes:
        few = len(gallery.classes) < gallery.chosen_of
        classes = f" of {len(gallery.classes)}" + (f" of {gallery.chosen_of:,}" if few else "") + " classes"
    split = "validation" if gallery.split == "val" else "training"
    step = f", by the encoder of step {gallery.step}" if gallery.step else ""
    return f"{len(gallery.labels):,} {split} images{classes} of {gallery.data}{step}"
