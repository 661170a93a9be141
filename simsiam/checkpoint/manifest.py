"""The list of a checkpoint's files with sizes and SHA-256: it completes a checkpoint, and finds damage in it."""

import hashlib
import json
import os
import stat
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from simsiam.atomic import write_atomically

NAME = "manifest.json"


def file_facts(path: Path) -> dict[str, Any]:
    """`bytes` and `sha256` of a file."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return {"bytes": file.tell(), "sha256": digest}


def synced_facts(path: Path) -> dict[str, Any]:
    """`file_facts` of a file just written, which is on the disk then: hashed while the disk writes it."""
    failures: list[OSError] = []

    def sync() -> None:
        try:
            os.fsync(file.fileno())
        except OSError as error:
            failures.append(error)

    with path.open("r+b") as file:
        # A daemon: a process that has to end does not wait for a disk that does not answer.
        beside = threading.Thread(target=sync, name="sync", daemon=True)
        beside.start()
        facts = file_facts(path)
        beside.join()
    if failures:
        raise failures[0]
    return facts


def write_manifest(folder: Path, step: int, world_size: int, files: Mapping[str, Mapping[str, Any]]) -> None:
    """Completes the checkpoint in `folder`; `files` are the `file_facts` of its other files by name."""
    write_atomically(folder / NAME, _text({"step": step, "world_size": world_size, "files": dict(files)}))


def damage(folder: Path) -> str | None:
    """What is wrong with a checkpoint, as words that follow its name; None where every byte is as it was written."""
    path = folder / NAME
    if folder.is_symlink() or not folder.is_dir():
        return "is no folder"
    if path.is_symlink() or not path.is_file():
        return f"has no {NAME}: it was never completed, or the file is lost"
    try:
        text = path.read_text()
        told = json.loads(text)
        # Written again it must be the same text, its own checksum included: no bit of the list may be off.
        if _text({key: value for key, value in told.items() if key != "sha256"}) != text:
            raise ValueError
        step, files = int(told["step"]), dict(told["files"])
        expected = {name: (facts["bytes"], facts["sha256"]) for name, facts in files.items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return f"has a damaged {NAME}"
    if folder.name.startswith("step_") and folder.name != f"step_{step:08d}":
        return f"holds step {step}"
    here = {entry.name for entry in folder.iterdir()} - {NAME}
    for name in sorted(here ^ expected.keys()):
        return f"lacks {name}" if name in expected else f"holds {name}, which is not of it"
    for name, (size, sha256) in expected.items():
        entry = (folder / name).lstat()
        if not stat.S_ISREG(entry.st_mode):
            return f"has a {name} that is no file"
        if entry.st_size != size:
            return f"has {entry.st_size} bytes of {name} instead of {size}"
        try:
            if file_facts(folder / name)["sha256"] != sha256:
                return f"has a {name} that is not what was written: its SHA-256 differs"
        except OSError as error:
            return f"has a {name} that cannot be read ({error.strerror})"
    return None


def _text(told: dict[str, Any]) -> str:
    plain = json.dumps(told, sort_keys=True)
    return json.dumps({**told, "sha256": hashlib.sha256(plain.encode()).hexdigest()}, sort_keys=True, indent=1) + "\n"
