"""results.jsonl: a measurement a line, with what was measured, on what, by which settings and where."""

import errno
import hashlib
import json
import logging
import math
import os
import platform
from collections.abc import Collection
from dataclasses import asdict, dataclass, field, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision

import simsiam
from simsiam.data.image_set import ImageSet
from simsiam.data.subset_lists import all_names
from simsiam.distributed.runtime import Runtime
from simsiam.distributed.threads import usable_cores
from simsiam.errors import UserError
from simsiam.settings.effects import UNMEASURED
from simsiam.settings.tree import Job

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Result:
    """One measurement.

    Attributes:
        protocol: knn, linear, 1pct, 10pct, random-linear, or any other word.
        encoder, encoder_name, encoder_sha256: where it came from, its architecture, `encoder_hash`.
        config_sha256, data_sha256: `config_hash` of the settings, `list_hash` of the images.
        top1, top5: percent; None where the protocol has no such number.
        figures: further numbers by name, such as `knn_cell(200, 0.1)` or `val_images`.
        hours: of wall time, None where nobody measured it.
        finished: ISO 8601, UTC; see `utc_now`.
        run: the run folder, empty where there is none.
    """

    protocol: str
    encoder: str
    recipe: str = ""
    encoder_name: str = ""
    encoder_sha256: str = ""
    config_sha256: str = ""
    data: str = ""
    data_sha256: str = ""
    seed: int = 0
    top1: float | None = None
    top5: float | None = None
    figures: dict[str, Any] = field(default_factory=dict)
    hardware: str = ""
    world_size: int = 1
    versions: dict[str, str] = field(default_factory=dict)
    hours: float | None = None
    finished: str = ""
    run: str = ""


def append(path: str | Path, result: Result) -> None:
    """Adds a line in one write that many processes may make at once, and waits until it is on disk.

    After a line that a crash cut off it starts a new one. What is not finite is written as null.

    Raises UserError where the file cannot be written.
    """
    line = (json.dumps(_finite(asdict(result)), allow_nan=False) + "\n").encode()
    try:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o666)
        try:
            size = os.fstat(file).st_size
            if size and os.pread(file, 1, size - 1) != b"\n":
                line = b"\n" + line
            if os.write(file, line) < len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(file)
        finally:
            os.close(file)
    except OSError as error:
        raise UserError(
            f"The results {path} cannot be written ({error.strerror}); give a file that you may write to"
        ) from None


def read(path: str | Path) -> list[Result]:
    """The results of a file in their order, none where there is no file; damaged lines are left out and counted aloud.

    Raises UserError where the file cannot be read.
    """
    try:
        lines = Path(path).read_bytes().split(b"\n")
    except FileNotFoundError:
        return []
    except OSError as error:
        raise UserError(f"The results {path} cannot be read ({error.strerror})") from None
    written = [line for line in lines if line.strip()]
    results = [result for line in written if (result := _parse(line)) is not None]
    if len(results) < len(written):
        _log.warning("%s: %d of %d lines are damaged and left out", path, len(written) - len(results), len(written))
    return results


def find(
    path: str | Path, *, protocol: str, config_sha256: str, encoder_sha256: str, data_sha256: str, seed: int
) -> Result | None:
    """The newest result of the same encoder, images and settings, which need not be measured again."""
    wanted = (protocol, config_sha256, encoder_sha256, data_sha256, seed)
    for r in reversed(read(path)):
        if (r.protocol, r.config_sha256, r.encoder_sha256, r.data_sha256, r.seed) == wanted:
            return r
    return None


def knn_cell(k: int, temperature: float) -> str:
    """What a kNN accuracy is called among the figures: `k=200,T=0.1`."""
    return f"k={k},T={temperature:g}"


def hardware(runtime: Runtime) -> str:
    """`8 x NVIDIA H100 80GB HBM3`, one GPU a rank, or `CPU, 2 cores, AMD EPYC 9354`."""
    if runtime.device.type == "cuda":
        return f"{runtime.world_size} x {torch.cuda.get_device_name(runtime.device)}"
    return f"CPU, {usable_cores()} cores, {_processor()}"


def versions() -> dict[str, str]:
    """Of what computes a result."""
    return {"torch": torch.__version__, "torchvision": torchvision.__version__, "simsiam": simsiam.__version__}


def utc_now() -> str:
    """`2026-01-31T09:30:00+00:00`."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def config_hash(settings: Job, without: Collection[str] = UNMEASURED) -> str:
    """SHA-256, in hex, of the settings that may change a result, or of all but `without`, as JSON with sorted keys.

    A setting that a later version adds gives its runs another hash than those of this version.
    """
    values = {key: value for key, value in asdict(settings).items() if key not in without}
    text = json.dumps(_canonical(values), sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def list_hash(images: ImageSet) -> str:
    """SHA-256, in hex, of the names and labels of a set in order; ImageNet takes about a second.

    A folder and its shards have the same images in another order, and so another hash.
    """
    # No path holds a zero byte, so it alone can stand between names.
    digest = hashlib.sha256(os.fsencode("\0".join(all_names(images))))
    digest.update(np.ascontiguousarray(images.labels, "<i8").tobytes())
    return digest.hexdigest()


def data_hash(train: ImageSet, val: ImageSet) -> str:
    """SHA-256, in hex, of what a protocol trains and validates on: of the `list_hash` of both."""
    return hashlib.sha256(f"{list_hash(train)} {list_hash(val)}".encode()).hexdigest()


_FITS = {str: str, int: int, float | None: (float, int)}


def _parse(line: bytes) -> Result | None:
    try:
        values = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(values, dict):
        return None
    known = {f.name: values[f.name] for f in fields(Result) if values.get(f.name) is not None}
    for f in fields(Result):
        if f.name in known and not isinstance(known[f.name], _FITS.get(f.type, dict)):
            return None
    return Result(**known) if {"protocol", "encoder"} <= known.keys() else None


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _canonical(value: Any) -> Any:
    """1 and 1.0 are the same setting: YAML and Python write either."""
    if isinstance(value, dict):
        return {key: _canonical(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_canonical(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names and names[0] else platform.processor() or platform.machine()
