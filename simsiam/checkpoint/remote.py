"""Checkpoints in an object store: the files of a finished local folder, its manifest last."""

import shutil
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from uuid import uuid4

from simsiam.checkpoint.manifest import NAME
from simsiam.errors import UserError
from simsiam.stores import connect


class Remote:
    """A place of checkpoints at an fsspec URL, such as s3://bucket/run."""

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        self._files, self._root = connect(self.url)

    def check_writable(self) -> None:
        """Raises UserError where nothing can be written there."""
        remedy = "see that it is there and that the credentials may write to it"
        with _told_as(f"--checkpoint.folder {self.url} cannot be written", remedy):
            self._files.makedirs(self._root, exist_ok=True)
            self.write_text(".write-test", "")
            self._files.rm(f"{self._root}/.write-test")

    def names(self) -> list[str]:
        """Names of the checkpoints that were begun there, complete or not, in order."""
        with _reading(self.url):
            self._files.invalidate_cache()
            try:
                return sorted(Path(path).name for path in self._files.ls(self._root, detail=False))
            except FileNotFoundError:  # an object store has no empty folders
                return []

    def upload(self, folder: Path, name: str, files: Iterable[str]) -> None:
        """Puts files of a local folder into checkpoint `name`."""
        self._files.makedirs(f"{self._root}/{name}", exist_ok=True)
        for file in files:
            self._files.put_file(str(folder / file), f"{self._root}/{name}/{file}")

    def download(self, name: str, folder: Path) -> None:
        """Makes `folder` a copy of checkpoint `name`, in one move."""
        # Nodes that share the disk but not yet what it shows may do this at once.
        temporary = folder.with_name(f".{folder.name}.{uuid4().hex}.part")
        temporary.mkdir(parents=True)
        try:
            with _reading(f"{self.url}/{name}"):
                for path in self._files.ls(f"{self._root}/{name}", detail=False):
                    self._files.get_file(path, str(temporary / Path(path).name))
            shutil.rmtree(folder, ignore_errors=True)
            temporary.rename(folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    def is_complete(self, name: str) -> bool:
        """Whether a checkpoint has its manifest there."""
        with _reading(f"{self.url}/{name}"):
            return self._files.exists(f"{self._root}/{name}/{NAME}")

    def copy(self, name: str, other: str) -> None:
        """Makes checkpoint `other` a copy of `name`, within the store, its manifest last."""
        self._files.makedirs(f"{self._root}/{other}", exist_ok=True)
        files = [Path(path).name for path in self._files.ls(f"{self._root}/{name}", detail=False)]
        for file in sorted(files, key=lambda file: file == NAME):
            self._files.cp_file(f"{self._root}/{name}/{file}", f"{self._root}/{other}/{file}")

    def remove(self, name: str) -> None:
        """Deletes a checkpoint, its manifest first: what is left of it by a crash is not taken for a whole one."""
        # Each by itself: with its last object the folder is gone too, where it is only the beginning of names.
        for path in (f"{self._root}/{name}/{NAME}", f"{self._root}/{name}"):
            with suppress(FileNotFoundError):
                self._files.rm(path, recursive=True)

    def write_text(self, name: str, text: str) -> None:
        """Replaces a small file beside the checkpoints."""
        self._files.pipe_file(f"{self._root}/{name}", text.encode())


def _reading(url: str) -> AbstractContextManager[None]:
    return _told_as(f"{url} cannot be read", "see whether it is there and may be read")


@contextmanager
def _told_as(what: str, remedy: str) -> Iterator[None]:
    """Turns what a store raises, which may be of any class, into a UserError."""
    try:
        yield
    except Exception as error:
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise UserError(f"{what} ({reason}); {remedy}") from None
