"""metrics.jsonl and TensorBoard from one call, on rank 0."""

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

from simsiam.atomic import write_atomically


class Metrics:
    """Writes scalars of a run. On a resume at step s the lines of later steps are cut off, so each step stands once.

    Args:
        folder: the run folder; None writes nothing (ranks other than 0).
        step: the step the run goes on from.
    """

    def __init__(self, folder: Path | None, step: int = 0) -> None:
        self._file, self._board, self._refused = None, None, False
        self._path = folder / "metrics.jsonl" if folder else None
        if folder is None:
            return
        from simsiam.run.board import Board, Growing  # here, since TensorBoard takes long to import

        text = self._path.read_text() if self._path.exists() else ""
        kept = "".join(line + "\n" for line in text.splitlines() if step and _step(line) <= step)
        if kept != text:
            with self.whatever_the_disk_says():
                write_atomically(self._path, kept)
        self._file = Growing(self._path)
        self._board = Board(folder / "tensorboard", purge_step=step + 1 if step else 0)

    def write(self, step: int, values: dict[str, Any]) -> None:
        """One line: step and values, numbers or strings; numbers go to TensorBoard too. NaN is written as null."""
        if self._file is None:
            return
        line = {"step": step, **{key: _number(value) for key, value in values.items()}}
        with self.whatever_the_disk_says():
            self._file.append((json.dumps(line) + "\n").encode())
        for key, value in values.items():
            if isinstance(value, (int, float)):
                with self.whatever_the_disk_says():
                    self._board.scalar(key, value, step)

    def series(self, key: str) -> list[tuple[int, float]]:
        """(step, value) of a scalar over the whole run, from before a resume too; empty on ranks other than 0."""
        return [(line["step"], line[key]) for line in self._lines() if line.get(key) is not None]

    def has_answer(self, step: int) -> bool:
        """Whether an evaluation at that step was written: a line without a loss."""
        return any(line.get("step") == step and "loss" not in line for line in self._lines())

    def pictures(self, name: str, images: Tensor) -> None:
        """A picture, uint8 (3, H, W), for TensorBoard."""
        if self._board is not None:
            with self.whatever_the_disk_says():
                self._board.picture(name, images)

    def close(self) -> None:
        """Flushes and closes both."""
        if self._file is not None:
            for part in (self._file, self._board):
                with self.whatever_the_disk_says():
                    part.close()

    def _lines(self) -> Iterator[dict[str, Any]]:
        return map(_object, self._path.read_text().splitlines() if self._path and self._path.exists() else ())

    @contextmanager
    def whatever_the_disk_says(self) -> Iterator[None]:
        """Curves are no reason to lose a run: a disk that is full is told once, and training goes on."""
        try:
            yield
        except OSError as error:
            if not self._refused:
                print(
                    f"warning: {self._path.parent}: metrics cannot be written ({error}); training goes on", flush=True
                )
            self._refused = True


def _object(line: str) -> dict[str, Any]:
    try:
        return json.loads(line)
    except ValueError:  # cut off by a crash, or by a full disk
        return {}


def _step(line: str) -> int:
    step = _object(line).get("step")
    return step if isinstance(step, int) else 1 << 62


def _number(value: Any) -> Any:
    if isinstance(value, float):
        return (
            round(value, 6) if math.isfinite(value) and abs(value) > 1e-3 else (value if math.isfinite(value) else None)
        )
    return value
