"""`digits`: scikit-learn's 1,797 scanned digits, real images that need no download."""

import numpy as np

from simsiam.data.sources.arrays import ArrayImages
from simsiam.errors import UserError

SCALE = 4  # 8x8 scans to 32x32, the size that small encoders and views are made for
_VAL_EVERY = 5


def digits(split: str) -> ArrayImages:
    """One split of the digits, bilinearly enlarged to 32x32 RGB.

    Args:
        split: `val` is each fifth image (360), `train` and `pretrain` the other 1,437.

    Raises:
        UserError: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise UserError(
            "The dataset digits is part of scikit-learn; install it with `pip install scikit-learn`"
        ) from None
    data = load_digits()
    in_val = np.arange(len(data.target)) % _VAL_EVERY == 0
    chosen = in_val if split == "val" else ~in_val
    gray = _enlarge(data.images[chosen] * (255 / 16), SCALE)  # scans have 17 levels, 0 to 16
    images = np.repeat(np.rint(gray).astype(np.uint8)[..., None], 3, axis=3)
    return ArrayImages(images, data.target[chosen], [str(digit) for digit in range(10)], f"digits/{split}")


def _enlarge(images: np.ndarray, scale: int) -> np.ndarray:
    """Bilinear, pixel centres aligned, edges held: (N, H, W) -> (N, H*scale, W*scale)."""
    size = images.shape[1]
    at = np.clip((np.arange(size * scale) + 0.5) / scale - 0.5, 0, size - 1)
    weights = np.maximum(0, 1 - np.abs(at[:, None] - np.arange(size)))
    return weights @ images @ weights.T
