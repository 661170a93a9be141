"""Files of TensorBoard, written at once: its own writer has a thread, which a full disk ends for good."""

import os
import socket
import time
from io import BytesIO, FileIO
from pathlib import Path

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.summary.writer.record_writer import RecordWriter
from torch import Tensor
from torch.utils.tensorboard.summary import image, scalar

_OPEN_SECONDS = 60.0


class Growing:
    """A file that is appended to. What a disk refuses is kept, and written when it has room again.

    It is closed once a minute: a bucket that is mounted as a folder gets nothing of a file that is open.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._kept = path, b""
        self._file: FileIO | None = None
        self._opened = 0.0
        self.append(b"")

    def append(self, data: bytes) -> None:
        """Writes all that there is. Raises OSError where the disk refuses."""
        self._kept += data
        if self._file is None:
            self._file, self._opened = self._path.open("ab", buffering=0), time.monotonic()
        while self._kept:
            self._kept = self._kept[self._file.write(self._kept) :]
        if time.monotonic() > self._opened + _OPEN_SECONDS:
            self._close()

    def close(self) -> None:
        """Tries once more, and closes."""
        try:
            if self._kept:
                self.append(b"")
        finally:
            self._close()

    def _close(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            file.close()


class Board:
    """A file of events in a folder.

    Args:
        purge_step: what earlier files have of this step and later ones is not shown; 0 shows all.
    """

    def __init__(self, folder: Path, purge_step: int) -> None:
        folder.mkdir(exist_ok=True)
        name = f"events.out.tfevents.{time.time():.0f}.{socket.gethostname()}.{os.getpid()}.0"
        self._file = Growing(folder / name)
        self._add(Event(file_version="brain.Event:2"))
        if purge_step:
            self._add(Event(session_log=SessionLog(status=SessionLog.START), step=purge_step))

    def scalar(self, name: str, value: float, step: int) -> None:
        """A point of a curve. Raises OSError where the disk refuses; it is written later."""
        self._add(Event(summary=scalar(name, value), step=step))

    def picture(self, name: str, pixels: Tensor) -> None:
        """A picture, uint8 (3, H, W). Raises OSError as `scalar`."""
        self._add(Event(summary=image(name, pixels.numpy(), dataformats="CHW"), step=0))

    def close(self) -> None:
        self._file.close()

    def _add(self, event: Event) -> None:
        event.wall_time = time.time()
        record = BytesIO()
        RecordWriter(record).write(event.SerializeToString())
        self._file.append(record.getvalue())
