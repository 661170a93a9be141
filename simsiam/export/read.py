"""An encoder from any file: our run folders and encoder files, SimSiam and MoCo checkpoints, torchvision, timm."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from simsiam.errors import UserError
from simsiam.export.names import encoder_names
from simsiam.export.state import read_state
from simsiam.models.encoders import build_encoder, list_encoders, recognise


@dataclass(frozen=True)
class MatchReport:
    """How a file's tensors fit an encoder: names of tensors, batch counters left out of `missing`."""

    matched: tuple[str, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    mismatched_shapes: tuple[str, ...]

    def __str__(self) -> str:
        return (
            f"{len(self.matched)} matched, {_count(self.missing, 'missing')}, "
            f"{_count(self.unexpected, 'unexpected')}, {_count(self.mismatched_shapes, 'of another shape')}"
        )


@dataclass(frozen=True)
class ReadEncoder:
    """An encoder in evaluation mode, how its file matched, and what the file said (see `read_state`)."""

    encoder: nn.Module
    report: MatchReport
    info: dict[str, str]


def load_encoder(path: str | Path, *, name: str | None = None) -> nn.Module:
    """The encoder in evaluation mode, images (N, 3, H, W) to features (N, D), whatever file it came from.

    `name` is needed only where neither the file says it nor its shapes are those of a known ResNet.
    Raises UserError where the file is damaged, unsafe, or does not hold exactly such an encoder.
    """
    return read_encoder(path, name=name).encoder


def read_encoder(path: str | Path, *, name: str | None = None) -> ReadEncoder:
    """As `load_encoder`, with the report and the file's own words beside the encoder."""
    tensors, info = read_state(path)
    state = encoder_names(tensors)
    said = info.get("encoder", "")
    if name is None:
        name = said if said in list_encoders() or said.startswith("timm:") else _recognise(state)
    if name is None:
        raise UserError(
            f"{info['path']} holds an encoder that is {f'called {said!r}' if said else 'not named'} and is "
            "none of our ResNets by its tensors: give its name, such as --encoder resnet50 or --encoder timm:NAME."
        )
    encoder = build_encoder(name)
    report = match_state(encoder, state, source=info["path"])
    _refuse_misfit(encoder, state, report, info["path"])
    encoder.load_state_dict({key: state[key] for key in report.matched}, strict=False)
    return ReadEncoder(encoder.eval(), report, info)


def match_state(model: nn.Module, state: Mapping[str, Tensor], *, source: str = "The state-dict") -> MatchReport:
    """Compares names and shapes, and loads nothing; raises UserError, which names `source`, where no tensor fits."""
    own = model.state_dict()
    matched = tuple(key for key in own if key in state and own[key].shape == state[key].shape)
    if not matched:
        raise UserError(
            f"{source} does not fit the encoder {getattr(model, 'encoder_name', type(model).__name__)}, not one of its "
            f"{_count(tuple(state), 'tensors')} does: {_remedy(state)}."
        )
    return MatchReport(
        matched=matched,
        missing=tuple(key for key in own if key not in state and not key.endswith("num_batches_tracked")),
        unexpected=tuple(key for key in state if key not in own),
        mismatched_shapes=tuple(k for k in own if k in state and k not in matched and "num_batches" not in k),
    )


def _refuse_misfit(encoder: nn.Module, state: Mapping[str, Tensor], report: MatchReport, path: str) -> None:
    # A deeper ResNet holds every tensor of a shallower one: what gives it away are further blocks in the same stages.
    modules = {key.split(".")[0] for key in encoder.state_dict()}
    further = tuple(key for key in report.unexpected if key.split(".")[0] in modules)
    faults = [
        _count(keys, what)
        for keys, what in (
            (report.missing, "missing"),
            (report.mismatched_shapes, "of another shape"),
            (further, "too many"),
        )
        if keys
    ]
    if faults:
        raise UserError(
            f"{path} does not fit the encoder {encoder.encoder_name}, with tensors {' and '.join(faults)}: "
            f"{_remedy(state)}."
        )


def _recognise(state: Mapping[str, Tensor]) -> str | None:
    return recognise({key: tensor.shape for key, tensor in state.items()})


def _remedy(state: Mapping[str, Tensor]) -> str:
    name = _recognise(state)
    looks = f"it looks like {name}, so give --encoder {name}" if name else "give the name of the encoder that it holds"
    return f"{looks}, or another file"


def _count(keys: tuple[str, ...], what: str) -> str:
    shown = f" ({', '.join(keys[:2])}{', ...' if len(keys) > 2 else ''})" if keys else ""
    return f"{len(keys)} {what}{shown}"
