"""What an encoder holds alike, for people to look at: nearest neighbours, and maps in two dimensions."""

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from simsiam.data.augment import Augment
from simsiam.data.image_set import ImageSet
from simsiam.data.labelled import centre_batches
from simsiam.data.subsets import even_places
from simsiam.errors import UserError
from simsiam.evaluation.knn import nearest
from simsiam.settings.tree import Views

NEIGHBOURS = 10

_CLASSES, _IMAGES = 10, 600  # more classes have no colours of their own, and more images cover each other
_BATCH = 64
_FEWEST = 5  # images that have a map
_ONE_POINT = 1e-6  # spread below which features of length 1 differ by rounding alone
_MAP_DIMS = 50  # principal components that t-SNE is given, as its authors did


class Alike(NamedTuple):
    """What was found among N images.

    Attributes:
        crops: uint8 (N, S, S, 3).
        samples, labels: int64 (N,), ids and classes in the set; -1 without a label.
        neighbours: int64 (N, K), places among the N, the most similar first, never the image itself.
        maps: name -> float64 (N, 2) in 0..1; empty where all features are one point.
        kept: share of the variance along the two axes of the map PCA.
    """

    crops: Tensor
    samples: Tensor
    labels: Tensor
    neighbours: Tensor
    maps: dict[str, np.ndarray]
    kept: float


def some_images(images: ImageSet) -> np.ndarray:
    """Sample ids, int64, ascending, of at most 600 images: equally many of at most ten classes, evenly spaced."""
    labels = np.asarray(images.labels)
    present = np.unique(labels[labels >= 0])
    if not len(present):
        return even_places(len(labels), _IMAGES)
    chosen = present[even_places(len(present), _CLASSES)]
    of_class = [np.flatnonzero(labels == label) for label in chosen]
    return np.sort(np.concatenate([places[even_places(len(places), _IMAGES // len(chosen))] for places in of_class]))


@torch.no_grad()
def alike(encoder: nn.Module, images: ImageSet, samples: np.ndarray, views: Views, device: torch.device) -> Alike:
    """Features of the centre crops of `samples`, at length 1, compared by their cosines as kNN does.

    Raises UserError where fewer than five images can be read, or a feature is not finite.
    """
    encoder, augment = encoder.to(device).eval(), Augment(views, 0).to(device)
    parts = list(centre_batches(images, samples, views, _BATCH))
    features = torch.cat(
        [F.normalize(encoder(augment.centred(part.images)).float(), dim=1).cpu() for part in parts if len(part.images)]
        or [torch.empty(0, 1)]
    )
    if len(features) < _FEWEST:
        raise UserError(f"{len(features)} of {len(samples)} images can be read, and {_FEWEST} are needed")
    if not features.isfinite().all():
        raise UserError("the encoder gives features that are not finite")
    places = torch.arange(len(features))
    count = min(NEIGHBOURS, len(features) - 1)
    found = nearest(features, places, features, count + 1)[1]
    # An image is not always its own first neighbour: copies of it are as near.
    others = [row[row != place][:count] for place, row in enumerate(found)]
    maps, kept = _maps(features.double())
    crops, labels, kept_samples = (
        torch.cat([getattr(part, name) for part in parts]) for name in ("images", "labels", "samples")
    )
    return Alike(crops, kept_samples, labels, torch.stack(others), maps, kept)


def _maps(features: Tensor) -> tuple[dict[str, np.ndarray], float]:
    """PCA, and t-SNE of the first principal components, from where PCA puts the images."""
    from sklearn.manifold import TSNE  # costs a second

    centred = features - features.mean(0)
    if centred.norm(dim=1).max() < _ONE_POINT:
        return {}, 0.0
    left, singular, _ = torch.linalg.svd(centred, full_matrices=False)
    left = left * left.gather(0, left.abs().argmax(0, keepdim=True)).sign()  # the sign of an axis is chance
    components = (left * singular).numpy()
    kept = float((singular[:2] ** 2).sum() / (singular**2).sum())
    start = components[:, :2] / components[:, 0].std() * 1e-4
    # The usual perplexity, or what so few images allow.
    tsne = TSNE(perplexity=min(30.0, (len(features) - 1) / 3), init=start, random_state=0)
    placed = tsne.fit_transform(components[:, :_MAP_DIMS].astype(np.float32))
    return {"PCA": _in_square(components[:, :2]), "t-SNE": _in_square(placed)}, kept


def _in_square(places: np.ndarray) -> np.ndarray:
    """(N, 2) moved and scaled, alike in both directions, into 0..1."""
    low, high = places.min(0), places.max(0)
    return ((places - (low + high) / 2) / max((high - low).max(), 1e-12) + 0.5).astype(np.float64)
