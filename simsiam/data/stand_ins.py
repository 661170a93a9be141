"""What stands in for an image that cannot be read: in every loader the next by number that can, round the end."""

from collections.abc import Callable
from typing import Protocol, TypeVar

from simsiam.data.image_set import BadImage
from simsiam.errors import UserError

T = TypeVar("T")
_MOST_TRIED = 1000


class Named(Protocol):
    """A set of images, of whatever task, that knows what to call each of them."""

    def __len__(self) -> int: ...

    def name(self, sample: int) -> str: ...


class WithStandIns(Protocol):
    """A batch that says which of its samples could not be read, and why: `replaced` is (sample, reason) pairs."""

    replaced: tuple[tuple[int, str], ...]


def next_good(sample: int, total: int, bad: dict[int, str]) -> int:
    """The stand-in for a bad sample, where it is known which are bad."""
    return next(s % total for s in range(sample + 1, sample + total) if s % total not in bad)


def read_or_next(images: Named, sample: int, read: Callable[[int], T]) -> tuple[T, int, tuple[int, str] | None]:
    """What `read` makes of a sample or of its stand-in, which of them, and (sample, reason) where it is a stand-in.

    Args:
        read: reads one sample of the set; raises `BadImage`.

    Raises:
        UserError: none of the next thousand can be read either.
    """
    total = len(images)
    failed: tuple[int, str] | None = None
    for taken in range(sample, sample + min(total, _MOST_TRIED)):
        try:
            return read(taken % total), taken % total, failed
        except BadImage as error:
            failed = failed or (sample, str(error))
    raise UserError(
        f"{min(total, _MOST_TRIED)} images from {images.name(sample)} on cannot be read; see `simsiam check-data`"
    )
