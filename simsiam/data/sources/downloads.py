"""torchvision unpacks what it downloads by `tarfile.extractall`, which before Python 3.14 lets members climb out."""

import tarfile
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def unpacking_inside() -> Iterator[None]:
    """Until it ends every tar file unpacks by Python's `data` filter: no member, link or device outside the folder.

    An archive that tries raises tarfile.FilterError, a TarError. Zip files need none: Python's own cuts names down.
    """
    before = vars(tarfile.TarFile).get("extraction_filter")
    tarfile.TarFile.extraction_filter = staticmethod(tarfile.data_filter)
    try:
        yield
    finally:
        tarfile.TarFile.extraction_filter = before
