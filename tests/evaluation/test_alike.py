"""Neighbours are those of the features, and maps keep apart what the encoder keeps apart."""

import numpy as np
import pytest
import torch

from simsiam.errors import UserError
from simsiam.evaluation.alike import alike, some_images
from simsiam.settings.tree import Views

VIEWS = Views(size=8, resize=8, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
CPU = torch.device("cpu")


class Colours:
    """Images of one colour each."""

    def __init__(self, colours, labels, classes=("red", "green", "blue")):
        self._colours, self.labels, self.classes = colours, np.asarray(labels), classes

    def __len__(self):
        return len(self.labels)

    def name(self, sample):
        return str(sample)

    def read(self, sample):
        return torch.tensor(self._colours[sample], dtype=torch.uint8).view(3, 1, 1).expand(3, 8, 8)


class MeanColour(torch.nn.Module):
    def forward(self, images):
        return images.mean((2, 3))


def three_colours(of_each=20):
    noise = np.random.default_rng(0).integers(0, 40, (3, of_each, 3))
    pure = np.array([[200, 20, 20], [20, 200, 20], [20, 20, 200]])[:, None]
    return Colours((pure + noise).reshape(-1, 3), np.repeat([0, 1, 2], of_each))


def test_neighbours_are_of_the_same_colour_and_maps_keep_colours_apart():
    images = three_colours()
    found = alike(MeanColour(), images, np.arange(60), VIEWS, CPU)
    assert found.crops.shape == (60, 8, 8, 3)
    assert found.samples.tolist() == list(range(60))
    assert (found.labels[found.neighbours] == found.labels.unsqueeze(1)).all()
    assert found.neighbours.shape == (60, 10)
    unit = torch.nn.functional.normalize(torch.tensor(images._colours).double(), dim=1)
    similarity = (unit @ unit.T).fill_diagonal_(-1)
    assert torch.equal(similarity.gather(1, found.neighbours).sum(1).round(decimals=5),
                       similarity.topk(10).values.sum(1).round(decimals=5))  # fmt: skip
    assert list(found.maps) == ["PCA", "t-SNE"]
    assert 0.9 < found.kept <= 1
    for places in found.maps.values():
        assert places.min() >= 0
        assert places.max() <= 1
        centres = np.stack([places[found.labels == label].mean(0) for label in range(3)])
        own = np.linalg.norm(places[:, None] - centres, axis=2).argmin(1)
        assert (own == found.labels.numpy()).all()


def test_no_image_is_its_own_neighbour_though_copies_of_it_are():
    copies = Colours([[200, 20, 20]] * 15 + [[20, 200, 20]] * 15, [0] * 15 + [1] * 15)
    found = alike(MeanColour(), copies, np.arange(30), VIEWS, CPU)
    assert (found.neighbours != torch.arange(30).unsqueeze(1)).all()
    assert (found.labels[found.neighbours] == found.labels.unsqueeze(1)).all()


def test_features_that_are_one_point_have_no_map():
    found = alike(MeanColour(), Colours([[9, 9, 9]] * 8, [0] * 8), np.arange(8), VIEWS, CPU)
    assert found.maps == {}
    assert found.neighbours.shape == (8, 7)


def test_what_cannot_be_looked_at_is_a_sentence():
    few = Colours([[1, 2, 3]] * 4, [0] * 4)
    with pytest.raises(UserError, match="4 of 4 images can be read, and 5 are needed"):
        alike(MeanColour(), few, np.arange(4), VIEWS, CPU)
    black = Colours([[0, 0, 0]] * 6, [0] * 6)
    with pytest.raises(UserError, match="not finite"):
        alike(torch.nn.Sequential(MeanColour(), NotFinite()), black, np.arange(6), VIEWS, CPU)


class NotFinite(torch.nn.Module):
    def forward(self, features):
        return features / 0


@pytest.mark.parametrize(
    ("labels", "classes", "images"),
    [
        (np.repeat(np.arange(100), 50), 10, 500),
        (np.repeat([0, 2], 5000), 2, 600),
        (np.full(2000, -1), 1, 600),
        (np.r_[np.zeros(30, int), np.full(2000, -1)], 1, 30),
    ],
)
def test_few_images_of_few_classes_are_taken_alike(labels, classes, images):
    samples = some_images(Colours([], labels))
    assert len(samples) == images
    taken, counts = np.unique(labels[samples], return_counts=True)
    assert len(taken) == classes
    assert counts.max() - counts.min() <= 1
    assert (np.diff(samples) > 0).all()
