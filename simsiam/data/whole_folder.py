"""A folder that appears whole or not at all, whatever else makes the same one at the same time."""

import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from simsiam.errors import UserError


@contextmanager
def whole_folder(root: Path, is_made: Callable[[], bool], *, what: str, remedy: str) -> Iterator[Path | None]:
    """A folder beside `root` to write into, renamed to it at the end; None where the content is there already.

    Args:
        what, remedy: for the message, such as `the dataset shapes` and `set SIMSIAM_CACHE`.

    Raises:
        UserError: the folder cannot be written, or is there with something else in it.
    """
    if is_made():
        yield None
        return
    draft = None
    try:
        root.parent.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(prefix=f".{root.name}-", dir=root.parent))
        draft.chmod(0o755)  # mkdtemp's 0700 would hide a shared cache from its other users
        yield draft
        draft.rename(root)  # refused where another process was first
    except OSError as error:
        if not is_made():
            raise UserError(f"Cannot write {what} to {root} ({error.strerror}); {remedy}") from error
    finally:
        if draft is not None:
            shutil.rmtree(draft, ignore_errors=True)
