"""What a view is: the distribution of torchvision's transforms, as a pure function of (seed, epoch, sample, view)."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats
from torchvision.transforms import RandomResizedCrop

from simsiam.data.views import Colour, boxes_of_views, colours, colours_of_views, crop_boxes
from simsiam.settings.tree import Views

VIEWS = Views()
N = 20_000


def draw_boxes(
    views: Views, height: int, width: int, n: int, *, seed: int = 0, epoch: int = 0, view: int = 0
) -> np.ndarray:
    return crop_boxes(views, seed, epoch, np.arange(n), view, np.full(n, height), np.full(n, width))


def as_columns(colour: Colour) -> np.ndarray:
    """float64 (N, 13): every choice of a view's colour."""
    columns = [np.asarray(part, np.float64).reshape(len(colour.flip), -1) for part in vars(colour).values()]
    return np.concatenate(columns, axis=1)


def shape_and_place(boxes: np.ndarray, height: int, width: int) -> dict[str, np.ndarray]:
    top, left, h, w = boxes.T.astype(np.float64)
    return {
        "area": h * w / (height * width),
        "log ratio": np.log(w / h),
        "left": left / np.maximum(width - w, 1),
        "top": top / np.maximum(height - h, 1),
    }


SIZES = [(32, 32), (224, 224), (375, 500), (500, 375), (60, 200), (200, 60), (30, 400), (7, 9), (2, 5), (1, 2)]
RECIPES = [
    VIEWS,
    Views(scale=(0.08, 1.0)),  # linear classification
    Views(scale=(0.5, 0.6), ratio=(0.5, 3.0)),
]


CASES = [*((0, size) for size in SIZES), *((r, size) for r in (1, 2) for size in [(224, 224), (60, 200), (5, 17)])]


@pytest.mark.parametrize(("recipe", "size"), CASES)
def test_boxes_have_the_distribution_of_torchvision(recipe: int, size: tuple[int, int]) -> None:
    (height, width), views, n = size, RECIPES[recipe], 1000
    torch.manual_seed(height * 1000 + width)
    image = torch.empty(3, height, width)
    theirs = np.array([RandomResizedCrop.get_params(image, list(views.scale), list(views.ratio)) for _ in range(n)])
    ours = shape_and_place(draw_boxes(views, height, width, 10 * n), height, width)
    for name, values in shape_and_place(theirs, height, width).items():
        assert stats.ks_2samp(ours[name], values).pvalue > 1e-4, name


@pytest.mark.parametrize("views", RECIPES, ids=["pretrain", "lincls", "odd"])
@pytest.mark.parametrize(("height", "width"), [(1, 400), (400, 1), (10, 4000), (4000, 11), (1, 1)])
def test_fallback_for_elongated_images_is_the_box_of_torchvision(views: Views, height: int, width: int) -> None:
    image = torch.empty(3, height, width)
    theirs = {RandomResizedCrop.get_params(image, list(views.scale), list(views.ratio)) for _ in range(20)}
    assert len(theirs) == 1
    assert {tuple(box) for box in draw_boxes(views, height, width, 500).tolist()} == theirs


@pytest.mark.parametrize(
    ("height", "width"), [*SIZES, (1, 1), (1, 400), (400, 1), (1, 2), (2, 1), (4096, 3), (2160, 3840), (1, 100_000)]
)
def test_boxes_lie_inside_the_image(height: int, width: int) -> None:
    for views in (*RECIPES, Views(scale=(1.0, 1.0), ratio=(1.0, 1.0))):
        boxes = draw_boxes(views, height, width, 3000)
        assert boxes.dtype == np.int64
        assert boxes.shape == (3000, 4)
        top, left, h, w = boxes.T
        assert (np.stack([top, left]) >= 0).all()
        assert (np.stack([h, w]) >= 1).all()
        assert (top + h).max() <= height
        assert (left + w).max() <= width


def test_crops_reach_all_four_edges_of_a_small_image() -> None:
    boxes = draw_boxes(Views(scale=(0.2, 0.5)), 9, 9, 3000)
    top, left, h, w = boxes.T
    assert {(top == 0).any(), (left == 0).any(), (top + h == 9).any(), (left + w == 9).any()} == {True}
    middle = (h == 5) & (w == 5)
    assert stats.chisquare(np.bincount(top[middle], minlength=5)).pvalue > 0.001
    assert stats.chisquare(np.bincount(left[middle], minlength=5)).pvalue > 0.001


def test_whole_image_when_the_scale_says_so() -> None:
    boxes = draw_boxes(Views(scale=(1.0, 1.0), ratio=(1.0, 1.0)), 32, 32, 100)
    assert (boxes == [0, 0, 32, 32]).all()


def test_views_of_a_sample_do_not_depend_on_the_rest_of_the_batch() -> None:
    samples = np.array([5, 1_281_166, 0, 77, 12, 5_000_000_000])
    heights, widths = np.array([32, 375, 1, 500, 20, 64]), np.array([32, 500, 400, 333, 300, 64])
    boxes = crop_boxes(VIEWS, 3, 7, samples, 1, heights, widths)
    colour = as_columns(colours(VIEWS, 3, 7, samples, 1))
    for subset in ([0], [3], [5, 2], [4, 3, 2, 1, 0], [1, 1, 1]):
        assert (crop_boxes(VIEWS, 3, 7, samples[subset], 1, heights[subset], widths[subset]) == boxes[subset]).all()
        assert (as_columns(colours(VIEWS, 3, 7, samples[subset], 1)) == colour[subset]).all()


def test_views_do_not_depend_on_the_type_of_the_sample_ids() -> None:
    ids = [3, 1, 2]
    for samples in (ids, np.array(ids, np.int32), np.array(ids, np.uint64)):
        assert (
            as_columns(colours(VIEWS, 0, 0, samples, 0)) == as_columns(colours(VIEWS, 0, 0, np.array(ids), 0))
        ).all()
        assert (crop_boxes(VIEWS, 0, 0, samples, 0, [32] * 3, [40] * 3) == draw_boxes(VIEWS, 32, 40, 4)[ids]).all()


def test_stream_of_views_never_changes_by_accident() -> None:
    """A change here changes every run that users have started."""
    boxes = crop_boxes(VIEWS, 0, 7, [1234, 5], 1, [375, 32], [500, 32])
    assert boxes.tolist() == [[109, 23, 254, 315], [11, 7, 16, 21]]
    columns = as_columns(colours(VIEWS, 0, 7, [1234, 5], 1))
    expected = [
        [1, 0, 3, 1, 2, 0.7942992121066, 1.0277145620319, 0.6361394153297, -0.0190599325504, 0, 0, 0, 0],
        [1, 1, 3, 2, 0, 0.7693862376413, 0.7950929185112, 0.9068218406269, 0.0408759367966, 1, 0.1559026885187, 0, 1],
    ]
    np.testing.assert_allclose(columns, expected, atol=1e-12)


def test_stream_of_solarization_never_changes_by_accident() -> None:
    solarized = colours(Views(solarize=0.2), 0, 7, np.arange(40), 1).solarize
    assert np.flatnonzero(solarized).tolist() == [9, 10, 15, 17, 18, 27, 30, 32, 33]


@pytest.mark.parametrize("rate", [0.0, 0.2, 1.0])
def test_solarization_moves_no_other_choice(rate: float) -> None:
    plain, other = (vars(colours(views, 4, 5, np.arange(2000), 1)) for views in (VIEWS, Views(solarize=rate)))
    assert not plain["solarize"].any()
    assert abs(other["solarize"].mean() - rate) <= 5 * math.sqrt(rate * (1 - rate) / 2000)
    assert all(np.array_equal(plain[name], other[name]) for name in plain if name != "solarize")


# BYOL's two views, and a third with an anchor's settings and a crop of its own.
BRANCHES = [
    replace(VIEWS, blur=1.0),
    replace(VIEWS, blur=0.1, solarize=0.2),
    replace(VIEWS, jitter=0.0, gray=0.0, blur=0.0, scale=(0.5, 0.6)),
]


def test_each_view_has_the_rates_of_its_own_recipe() -> None:
    colour = colours_of_views(BRANCHES, 1, 2, np.arange(N))
    happens = {"jitter": colour.jitter, "gray": colour.gray, "blur": colour.sigma > 0, "solarize": colour.solarize}
    for name, values in happens.items():
        for view, (recipe, got) in enumerate(zip(BRANCHES, values.reshape(3, N), strict=True)):
            rate = getattr(recipe, name)
            assert abs(got.sum() - N * rate) <= 5 * math.sqrt(N * rate * (1 - rate)), (name, view)
    both = colour.solarize.reshape(3, N)[1] & (colour.sigma.reshape(3, N)[1] > 0)
    assert abs(both.mean() - 0.02) < 5 * math.sqrt(0.02 * 0.98 / N)  # independent of each other


@pytest.mark.parametrize(("first", "count"), [(0, 1), (0, 4), (2, 3)])
@pytest.mark.parametrize("recipes", [[VIEWS] * 7, [*BRANCHES, *[replace(VIEWS, size=96, scale=(0.05, 0.14))] * 4]])
def test_views_drawn_together_are_those_drawn_one_by_one(recipes: list[Views], first: int, count: int) -> None:
    samples, heights, widths = np.array([9, 2, 1_281_166]), np.array([32, 375, 7]), np.array([40, 500, 400])
    boxes = boxes_of_views(recipes, 3, 7, samples, heights, widths)
    assert boxes.shape == (7, 3, 4)
    colour = as_columns(colours_of_views(recipes[first : first + count], 3, 7, samples, first)).reshape(count, 3, -1)
    for number in range(count):
        view = first + number
        assert (boxes[view] == crop_boxes(recipes[view], 3, 7, samples, view, heights, widths)).all()
        assert (colour[number] == as_columns(colours(recipes[view], 3, 7, samples, view))).all()


@pytest.mark.parametrize("other", [{"view": 1}, {"epoch": 1}, {"seed": 1}])
def test_another_view_epoch_or_seed_is_independent(other: dict[str, int]) -> None:
    limit = 5 / math.sqrt(N)
    first = shape_and_place(draw_boxes(VIEWS, 100, 100, N), 100, 100)
    second = shape_and_place(draw_boxes(VIEWS, 100, 100, N, **other), 100, 100)
    for name in first:
        assert abs(np.corrcoef(first[name], second[name])[0, 1]) < limit
    keys = {"seed": 0, "epoch": 0, "view": 0}
    views = Views(solarize=0.2)
    a = as_columns(colours(views, samples=np.arange(N), **keys))
    b = as_columns(colours(views, samples=np.arange(N), **(keys | other)))
    assert np.abs(np.corrcoef(a.T, b.T)[:13, 13:]).max() < limit


def test_seed_and_epoch_do_not_stand_in_for_each_other() -> None:
    samples = np.arange(50)
    drawn = {as_columns(colours(VIEWS, s, e, samples, v)).tobytes() for s in range(4) for e in range(4) for v in (0, 1)}
    assert len(drawn) == 32


def test_choices_within_a_view_are_independent_of_each_other() -> None:
    colour = colours(Views(solarize=0.2), 0, 0, np.arange(N), 0)
    columns = {name: value for name, value in vars(colour).items() if name != "order"}
    columns |= shape_and_place(draw_boxes(VIEWS, 100, 100, N), 100, 100)
    columns["first operation"] = colour.order[:, 0]
    for (name, a), (other, b) in itertools.combinations(columns.items(), 2):
        assert abs(np.corrcoef(a, b)[0, 1]) < 5 / math.sqrt(N), (name, other)


@pytest.mark.parametrize("rate", [0.0, 0.2, 0.5, 0.8, 1.0])
def test_rates_of_jitter_gray_blur_solarize_and_flip(rate: float) -> None:
    views = Views(jitter=rate, gray=rate, blur=rate, solarize=rate, flip=rate)
    colour = colours(views, 1, 2, np.arange(N), 0)
    for happens in (colour.jitter, colour.gray, colour.sigma > 0, colour.solarize, colour.flip):
        assert abs(happens.sum() - N * rate) <= 5 * math.sqrt(N * rate * (1 - rate))


def test_rates_of_the_official_recipe_are_the_defaults() -> None:
    colour = colours(Views(), 0, 0, np.arange(N), 1)
    expected = {"jitter": 0.8, "gray": 0.2, "sigma": 0.5, "flip": 0.5}
    for name, rate in expected.items():
        assert abs((getattr(colour, name) > 0).mean() - rate) < 5 * math.sqrt(rate * (1 - rate) / N), name


@pytest.mark.parametrize(
    ("strength", "low", "high"), [(0.4, 0.6, 1.4), (0.0, 1.0, 1.0), (1.0, 0.0, 2.0), (1.5, 0.0, 2.5)]
)
def test_factors_fill_their_range_evenly(strength: float, low: float, high: float) -> None:
    """As ColorJitter: 1 -+ strength, and never below 0."""
    colour = colours(Views(brightness=strength, contrast=strength, saturation=strength), 0, 0, np.arange(N), 0)
    for factor in (colour.brightness, colour.contrast, colour.saturation):
        assert low <= factor.min() <= factor.max() <= high
        if high > low:
            assert stats.kstest(factor, stats.uniform(low, high - low).cdf).pvalue > 0.001


@pytest.mark.parametrize("hue", [0.1, 0.5, 0.0])
def test_hue_shift_fills_its_range_evenly(hue: float) -> None:
    shift = colours(Views(hue=hue), 0, 0, np.arange(N), 0).hue
    assert np.abs(shift).max() <= hue
    if hue:
        assert stats.kstest(shift, stats.uniform(-hue, 2 * hue).cdf).pvalue > 0.001


@pytest.mark.parametrize("bounds", [(0.1, 2.0), (1.0, 1.0), (0.5, 5.0)])
def test_sigma_is_zero_or_even_over_its_range(bounds: tuple[float, float]) -> None:
    sigma = colours(Views(blur_sigma=bounds), 0, 0, np.arange(N), 0).sigma
    blurred = sigma[sigma != 0]
    assert 0 < len(blurred) < N
    assert bounds[0] <= blurred.min() <= blurred.max() <= bounds[1]
    if bounds[1] > bounds[0]:
        assert stats.kstest(blurred, stats.uniform(bounds[0], bounds[1] - bounds[0]).cdf).pvalue > 0.001


def test_all_24_orders_of_the_jitter_are_equally_likely() -> None:
    order = colours(VIEWS, 0, 0, np.arange(N), 0).order
    assert (np.sort(order, axis=1) == np.arange(4)).all()
    counts = np.unique(order, axis=0, return_counts=True)[1]
    assert len(counts) == 24
    assert stats.chisquare(counts).pvalue > 0.001
