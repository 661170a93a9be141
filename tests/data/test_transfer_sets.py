"""The sets of classification transfer, from folders as they are published, with labels by class and files in reach."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from simsiam.data.datasets import open_dataset
from simsiam.errors import UserError


def picture(path: Path, shade: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (12, 10), (shade, shade, shade)).save(path)


def write(path: Path, *lines: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")


def pets(root: Path) -> None:
    folder = root / "oxford-iiit-pet"
    (folder / "annotations/trimaps").mkdir(parents=True)
    for split, names in (("trainval", ("Abyssinian_1", "beagle_7")), ("test", ("beagle_2",))):
        numbers = {"Abyssinian": 1, "beagle": 2}
        write(folder / f"annotations/{split}.txt", *(f"{name} {numbers[name.split('_')[0]]} 1 1" for name in names))
        for name in names:
            picture(folder / f"images/{name}.jpg", 40 * numbers[name.split("_")[0]])
    write(folder / "annotations/test.txt", "beagle_2 2 1 1", "Abyssinian_9 1 1 1")
    picture(folder / "images/Abyssinian_9.jpg", 40)


def dtd(root: Path) -> None:
    for split, names in (
        ("train", ("banded/a", "zigzag/b")),
        ("val", ("banded/c",)),
        ("test", ("zigzag/d", "banded/e")),
    ):
        write(root / f"dtd/dtd/labels/{split}1.txt", *(f"{name}.jpg" for name in names))
        for name in names:
            picture(root / f"dtd/dtd/images/{name}.jpg", 40 if "banded" in name else 80)


def food101(root: Path) -> None:
    for split, names in (("train", ("pie/1", "tart/2")), ("test", ("tart/3", "pie/4"))):
        by_class: dict[str, list[str]] = {}
        for name in names:
            by_class.setdefault(name.split("/")[0], []).append(name)
            picture(root / f"food-101/images/{name}.jpg", 40 if "pie" in name else 80)
        write(root / f"food-101/meta/{split}.json", json.dumps(by_class))


def aircraft(root: Path) -> None:
    data = root / "fgvc-aircraft-2013b/data"
    write(data / "variants.txt", "707-320", "A340-500")
    for split, lines in (("trainval", ("1 707-320", "2 A340-500")), ("test", ("3 A340-500", "4 707-320"))):
        write(data / f"images_variant_{split}.txt", *lines)
        for line in lines:
            picture(data / f"images/{line[0]}.jpg", 40 if "707" in line else 80)


@pytest.mark.parametrize(
    ("name", "make", "train"), [("pets", pets, 2), ("dtd", dtd, 3), ("food101", food101, 2), ("aircraft", aircraft, 2)]
)
def test_both_splits_are_read_with_the_labels_of_their_classes(
    tmp_path: Path, name: str, make: Callable[[Path], None], train: int
) -> None:
    make(tmp_path)
    sets = {split: open_dataset(f"{name}:{tmp_path}", split) for split in ("train", "val")}
    assert {split: len(images) for split, images in sets.items()} == {"train": train, "val": 2}
    assert sets["train"].classes == sets["val"].classes
    assert len(sets["train"].classes) == 2
    for images in sets.values():
        for sample, label in enumerate(images.labels.tolist()):
            assert abs(int(images.read(sample).float().mean()) - 40 * (label + 1)) <= 3
    assert not set(sets["train"].index.names) & set(sets["val"].index.names)


def test_a_set_that_is_not_there_says_where_it_belongs(tmp_path: Path) -> None:
    for name in ("pets", "dtd", "food101", "aircraft", "flowers102", "cars"):
        with pytest.raises(UserError, match=f"--data {name}:.* has no .* split of {name}.*put .* there"):
            open_dataset(f"{name}:{tmp_path}", "train")
