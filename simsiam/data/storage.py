"""A folder of files, on this machine or behind a URL that fsspec knows: s3://, gs://, hf://, memory://."""

import errno
import os
import resource
import stat
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from functools import lru_cache, partial
from typing import IO, Protocol, TypeVar

import fsspec

from simsiam.data.decode import MAX_PIXELS
from simsiam.stores import connect

T = TypeVar("T")
_PASSING = {errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EAGAIN}  # what a network file system says and then recovers
_LASTING = (
    FileNotFoundError,
    PermissionError,
    IsADirectoryError,
    NotADirectoryError,
)  # other errors of a store may pass
_RETRY_SECONDS = (0.1, 1.0)
_MOST_OPEN = 4096
MOST_IMAGE_BYTES = 6 * MAX_PIXELS + (1 << 20)
"""The largest image that is decoded, stored without compression at 16 bits."""


class Storage(Protocol):
    """A folder. Its methods raise OSError and nothing else, except where a package is missing: that is a UserError.

    It may be used by several threads, after a fork, and in another process that it was pickled to.

    Attributes:
        root: path or URL without a slash at its end.
    """

    root: str

    def names(self) -> list[str]:
        """The files directly in the folder, in any order; none where the folder does not exist."""
        ...

    def has(self, name: str) -> bool:
        """Whether there is such a file."""
        ...

    def read(self, name: str) -> bytes:
        """A whole file."""
        ...

    def read_range(self, name: str, start: int, length: int) -> bytes:
        """`length` bytes from `start` on, fewer where the file ends before, by one request."""
        ...

    def writing(self, name: str) -> AbstractContextManager[IO[bytes]]:
        """A binary file to write: there under its name when the block has ended, and not at all after an error."""
        ...

    def remove(self, name: str) -> None:
        """Deletes a file."""
        ...


def is_url(place: str) -> bool:
    """Whether `place` is a URL, not a path on this machine."""
    return "://" in place


def open_storage(place: str) -> Storage:
    """The folder at a path or URL; nothing is read yet, and it need not exist."""
    protocol, _, path = place.partition("://")
    if not is_url(place) or protocol in ("file", "local"):
        return LocalStorage(path or place)
    return RemoteStorage(place)


def patiently(read: Callable[[], T]) -> T:
    """What `read` returns, asked again after 0.1 s and 1 s where it raises an OSError that may pass."""
    for pause in _RETRY_SECONDS:
        try:
            return read()
        except OSError as error:
            if not _may_pass(error):
                raise
        time.sleep(pause)
    return read()


def is_inside(name: str) -> bool:
    """Whether a path that a file names stays below the folder that it is meant from, links aside."""
    try:
        os.fsencode(name)
    except UnicodeEncodeError:
        return False
    return bool(name) and "\0" not in name and ".." not in name.split("/") and not os.path.isabs(name)


def read_whole(path: str | os.PathLike[str]) -> bytes:
    """A file's bytes. Raises OSError too for what is no file, such as a device or a pipe, or too large for an image."""
    # Without O_NONBLOCK a pipe would keep the reader waiting for somebody who writes.
    with open(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK), "rb") as file:
        about = os.fstat(file.fileno())
        if not stat.S_ISREG(about.st_mode):
            raise OSError(errno.EINVAL, "it is no file")
        if about.st_size > MOST_IMAGE_BYTES:
            raise OSError(errno.EFBIG, f"it has more than {MOST_IMAGE_BYTES:,} bytes")
        return file.read()


def reason(error: Exception) -> str:
    """An error in a few words, without the path that the message around it names."""
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


class _StoreError(OSError):
    """An error of a store's client that may pass."""


def _may_pass(error: OSError) -> bool:
    return error.errno in _PASSING or isinstance(error, (_StoreError, TimeoutError, ConnectionError))


class LocalStorage:
    """A folder on this machine."""

    def __init__(self, root: str) -> None:
        self.root = os.path.normpath(os.path.expanduser(root))
        # Half of what the process may open; a shard beyond that costs a look-up of its name at each read.
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        most_open = min(_MOST_OPEN, limit // 2) if limit > 0 else _MOST_OPEN  # -1 is no limit
        self._opened = lru_cache(most_open)(partial(_OpenFile, self.root))

    def __reduce__(self) -> tuple:
        return LocalStorage, (self.root,)

    def names(self) -> list[str]:
        with suppress(FileNotFoundError):
            return os.listdir(self.root)
        return []

    def has(self, name: str) -> bool:
        return os.path.isfile(os.path.join(self.root, name))

    def read(self, name: str) -> bytes:
        with open(os.path.join(self.root, name), "rb") as file:
            return file.read()

    def read_range(self, name: str, start: int, length: int) -> bytes:
        try:
            return self._opened(name).read(start, length)
        except OSError:
            self._opened.cache_clear()  # a stale handle of a network file system stays stale
            raise

    @contextmanager
    def writing(self, name: str) -> Iterator[IO[bytes]]:
        os.makedirs(self.root, exist_ok=True)
        path, draft = os.path.join(self.root, name), os.path.join(self.root, f".{name}.tmp")
        try:
            with open(draft, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())  # or a power cut could leave the name without the bytes
            os.replace(draft, path)
        except BaseException:
            with suppress(OSError):
                os.remove(draft)
            raise

    def remove(self, name: str) -> None:
        os.remove(os.path.join(self.root, name))


class _OpenFile:
    """A file descriptor, shared with forked processes: a read at an offset moves no common position.

    It is closed with its last reference, so no thread loses it in the middle of a read.
    """

    def __init__(self, root: str, name: str) -> None:
        # Without O_NONBLOCK a pipe in its place would keep the reader waiting; so it raises.
        self._descriptor = os.open(os.path.join(root, name), os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)

    def read(self, start: int, length: int) -> bytes:
        data = os.pread(self._descriptor, length, start)
        while len(data) < length:  # a single read returns 2 GiB at most, and less where a signal comes
            more = os.pread(self._descriptor, length - len(data), start + len(data))
            if not more:
                break
            data += more
        return data

    def __del__(self, close: Callable[[int], None] = os.close) -> None:
        if hasattr(self, "_descriptor"):  # not where opening failed
            close(self._descriptor)


class RemoteStorage:
    """A folder behind a URL."""

    def __init__(self, url: str) -> None:
        self.root = url if url.endswith("://") else url.rstrip("/")
        self._connection: tuple[int, fsspec.AbstractFileSystem, str] | None = None

    def __reduce__(self) -> tuple:
        return RemoteStorage, (self.root,)

    def names(self) -> list[str]:
        files, folder = self._connected()
        with _only_os_errors(), suppress(FileNotFoundError):
            files.invalidate_cache()
            return [entry["name"].rpartition("/")[2] for entry in files.ls(folder, True) if entry["type"] == "file"]
        return []

    def has(self, name: str) -> bool:
        files, folder = self._connected()
        with _only_os_errors(), suppress(FileNotFoundError):
            files.invalidate_cache()
            return files.info(f"{folder}/{name}")["type"] == "file"
        return False

    def read(self, name: str) -> bytes:
        files, folder = self._connected()
        with _only_os_errors():
            return files.cat_file(f"{folder}/{name}")

    def read_range(self, name: str, start: int, length: int) -> bytes:
        files, folder = self._connected()
        with _only_os_errors():
            return files.cat_file(f"{folder}/{name}", start=start, end=start + length)

    @contextmanager
    def writing(self, name: str) -> Iterator[IO[bytes]]:
        files, folder = self._connected()
        # By way of a local file: what fsspec opens for writing becomes an object even if an error ends it half-way.
        with tempfile.NamedTemporaryFile(prefix="simsiam-") as file:
            yield file
            file.flush()
            with _only_os_errors():
                files.put_file(file.name, f"{folder}/{name}")

    def remove(self, name: str) -> None:
        files, folder = self._connected()
        with _only_os_errors():
            files.rm_file(f"{folder}/{name}")

    def _connected(self) -> tuple[fsspec.AbstractFileSystem, str]:
        """The file system and the folder in it, made once per process: a client's threads do not survive a fork."""
        if self._connection is None or self._connection[0] != os.getpid():
            self._connection = os.getpid(), *connect(self.root)
        return self._connection[1:]


@contextmanager
def _only_os_errors() -> Iterator[None]:
    try:
        yield
    except _LASTING:
        raise
    except Exception as error:  # each backend has its own: botocore's, aiohttp's, Google's
        if isinstance(error, OSError) and error.errno == errno.EINVAL:  # such as a range behind the end
            raise
        raise _StoreError(reason(error)) from error
