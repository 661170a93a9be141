"""The tensors of any file under its own names: pickles, safetensors, .pdparams, run folders and their checkpoints."""

import json
import pickle
import re
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
import yaml
from safetensors import SafetensorError, safe_open
from torch import Tensor

from simsiam.checkpoint.reader import CheckedReader
from simsiam.errors import UserError
from simsiam.export.names import NESTS
from simsiam.export.paddle import read_pdparams
from simsiam.settings.plain_yaml import plain_yaml


def read_state(path: str | Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """All tensors of a file under its own names, on the CPU, and what it says about them.

    A run folder gives `encoder.safetensors`, or the `encoder.*` tensors of its newest complete checkpoint; so does a
    checkpoint folder. Info has `path` (the file read) and, where the file says it, `encoder`, `pixel_mean` and
    `pixel_std` (JSON lists), `epoch` and more. Pickles load with weights_only=True, PaddlePaddle's as numpy arrays and
    nothing else. Raises UserError.
    """
    path = Path(path)
    if path.is_dir():
        return _read_folder(path)
    if not path.is_file():
        raise UserError(f"There is no file or folder {path}: give a run folder, an encoder file or a checkpoint")
    tensors, info = _read_safetensors(path) if path.suffix == ".safetensors" else _unnest(_read_pickle(path))
    if not tensors:
        raise UserError(f"{path} holds no tensors by name: give a file with a state-dict, such as model.state_dict()")
    return tensors, {**info, "path": str(path)}


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        with safe_open(path, "pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is no whole safetensors file ({error}): copy or download it again") from error


def _read_pickle(path: Path) -> object:
    if path.suffix == ".pdparams":
        return read_pdparams(path)
    _refuse_compressed(path)
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL (\S+)", str(error))
        if found is None:
            raise UserError(f"{path} is no PyTorch file, or a damaged one: copy or download it again") from error
        raise UserError(
            f"{path} holds the Python object {found[1]} beside its tensors, and is not loaded because that could run "
            "code: where you trust it, save its state-dict alone in a new file by torch.save and give that one"
        ) from error
    except Exception as error:  # whatever a cut or foreign file makes the reader stumble over
        raise UserError(f"{path} is a damaged PyTorch file: copy or download it again") from error


def _refuse_compressed(path: Path) -> None:
    """torch.save compresses nothing; a file of a megabyte that somebody compressed could unfold to any size."""
    try:
        with zipfile.ZipFile(path) as archive:
            compressed = any(member.compress_type != zipfile.ZIP_STORED for member in archive.infolist())
    except (OSError, zipfile.BadZipFile, ValueError, NotImplementedError):
        return  # no zip file, or a damaged one: torch.load says so
    if compressed:
        raise UserError(f"{path} has compressed parts, which torch.save never writes: get it as it was saved")


def _unnest(content: object) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a checkpoint's model, and what stands beside it."""
    info = {}
    if isinstance(content, dict):
        info = {key: str(content[key]) for key in ("epoch", "arch") if isinstance(content.get(key), int | str)}
        for nest in NESTS:
            if isinstance(content.get(nest), dict):
                content = content[nest]
    if "arch" in info:
        info["encoder"] = info.pop("arch")
    tensors = content.items() if isinstance(content, dict) else ()
    return {key: value for key, value in tensors if isinstance(key, str) and isinstance(value, Tensor)}, info


def _read_folder(folder: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    if (folder / ".metadata").is_file():  # a checkpoint folder, in `checkpoints` of its run folder
        return _read_checkpoint(folder, run_folder_of(folder))
    if (folder / "encoder.safetensors").is_file():
        tensors, info = read_state(folder / "encoder.safetensors")
        return tensors, {**_about_run(folder), **info}
    # torch.distributed.checkpoint writes `.metadata` last, so a folder without it is incomplete.
    steps = {int(p.parent.name[5:]): p.parent for p in folder.glob("checkpoints/step_*/.metadata") if _is_step(p)}
    if not steps:
        raise UserError(
            f"The folder {folder} has neither encoder.safetensors nor a complete checkpoint in checkpoints/step_*: "
            "give the --out folder of a pretraining run, or a file"
        )
    return _read_checkpoint(steps[max(steps)], folder)


def _is_step(metadata: Path) -> bool:
    return re.fullmatch(r"step_\d+", metadata.parent.name) is not None


def _read_checkpoint(folder: Path, run: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        reader = CheckedReader(folder)
        tensors = {
            key: torch.empty(entry.size, dtype=entry.properties.dtype)
            for key, entry in reader.read_metadata().state_dict_metadata.items()
            if key.startswith("model.encoder.")
        }
        # no_dist: each rank of a running group may read on its own, and a lone process needs no group.
        with warnings.catch_warnings(action="ignore", category=UserWarning):  # torch warns of a lone process
            dcp.load(tensors, storage_reader=reader, no_dist=True)
    except (Exception, dcp.api.CheckpointException) as error:  # the latter is none of Exception's
        raise UserError(
            f"The checkpoint {folder} cannot be read ({str(error).splitlines()[0] if str(error) else 'damaged'}): "
            "give an older step_* folder of the run"
        ) from error
    if not tensors:
        raise UserError(f"The checkpoint {folder} holds no tensor model.encoder.*: give a pretraining run")
    info = {**_about_run(run), "step": folder.name.removeprefix("step_").lstrip("0") or "0", "path": str(folder)}
    return {key.removeprefix("model."): tensor for key, tensor in tensors.items()}, info


def run_folder_of(path: Path) -> Path:
    """The run folder that a file, or a checkpoint folder, is in; a folder of any other kind itself."""
    if (path / ".metadata").is_file():
        return path.parent.parent
    return path if path.is_dir() else path.parent


def read_config(run: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """What config.yaml of a run folder says, and of it the views; empty where it says nothing, or cannot be read."""
    try:
        config = plain_yaml((run / "config.yaml").read_bytes())
    except (OSError, yaml.YAMLError):
        return {}, {}
    config = config if isinstance(config, dict) else {}
    return config, config["views"] if isinstance(config.get("views"), dict) else {}


def _about_run(run: Path) -> dict[str, str]:
    config, views = read_config(run)
    info = {f"pixel_{key}": json.dumps(views[key]) for key in ("mean", "std") if key in views}
    return info | ({"encoder": str(config["encoder"])} if "encoder" in config else {})
