"""An encoder from any file: ours, SimSiam's, MoCo's, torchvision's, timm's, lightly's, PASSL's (`names.ENCODERS`)."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from simsiam.errors import UserError
from simsiam.export.likeness import likeness
from simsiam.export.names import count_names, encoder_names
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
            f"{len(self.matched)} matched, {count_names(self.missing, 'missing')}, "
            f"{count_names(self.unexpected, 'unexpected')}, {count_names(self.mismatched_shapes, 'of another shape')}"
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
        name = said if _is_known(said) else _recognise(state)
    if name is None:
        raise UserError(_unnamed(said, state, info["path"]))
    encoder = build_encoder(name)
    state = encoder_names(tensors, encoder.state_dict().keys())
    report = match_state(encoder, state, source=info["path"])
    _refuse_misfit(encoder, state, report, said, info["path"])
    _refuse_contradiction(name, state, said, info["path"])
    _refuse_not_finite({key: state[key] for key in report.matched}, info["path"])
    encoder.load_state_dict({key: state[key] for key in report.matched}, strict=False)
    return ReadEncoder(encoder.eval(), report, info)


def match_state(model: nn.Module, state: Mapping[str, Tensor], *, source: str = "The state-dict") -> MatchReport:
    """Compares names and shapes, and loads nothing; raises UserError, which names `source`, where no tensor fits."""
    own = model.state_dict()
    matched = tuple(key for key in own if key in state and own[key].shape == state[key].shape)
    if not matched:
        raise UserError(
            f"{source} does not fit the encoder {getattr(model, 'encoder_name', type(model).__name__)}, not one of its "
            f"{count_names(tuple(state), 'tensors')} does: {_remedy(state)}"
        )
    return MatchReport(
        matched=matched,
        missing=tuple(key for key in own if key not in state and not key.endswith("num_batches_tracked")),
        unexpected=tuple(key for key in state if key not in own),
        mismatched_shapes=tuple(k for k in own if k in state and k not in matched and "num_batches" not in k),
    )


def _refuse_not_finite(state: Mapping[str, Tensor], path: str) -> None:
    for key, tensor in state.items():
        if not tensor.isfinite().all():
            raise UserError(f"{path} has values that are not finite in {key}: give an encoder from before they came")


def _refuse_misfit(encoder: nn.Module, state: Mapping[str, Tensor], report: MatchReport, said: str, path: str) -> None:
    # A deeper ResNet holds every tensor of a shallower one: what gives it away are further blocks in the same stages.
    modules = {key.split(".")[0] for key in encoder.state_dict()}
    further = tuple(key for key in report.unexpected if key.split(".")[0] in modules)
    faults = [
        count_names(keys, what)
        for keys, what in (
            (report.missing, "missing"),
            (report.mismatched_shapes, "of another shape"),
            (further, "too many"),
        )
        if keys
    ]
    if faults:
        name = encoder.encoder_name
        against = f", which calls its encoder {said}," if said not in ("", name) else ""
        raise UserError(
            f"{path}{against} does not fit the encoder {name}, with tensors {' and '.join(faults)}: "
            f"{_remedy(state, given=name)}"
        )


def _refuse_contradiction(name: str, state: Mapping[str, Tensor], said: str, path: str) -> None:
    """Refuses a name that fits by its tensors where the one in the file fits too: what they compute differs."""
    if not _is_known(said) or _architecture(said) == _architecture(name):
        return
    try:
        own = build_encoder(said).state_dict()
    except UserError:  # a name that timm no longer has
        return
    if all(key in state and state[key].shape == own[key].shape for key in own if "num_batches" not in key):
        raise UserError(
            f"{path} says that it holds the encoder {said}, and its tensors do not speak against it: "
            f"leave --encoder {name} out, or give another file"
        )


def _is_known(said: str) -> bool:
    return said in list_encoders() or said.startswith("timm:")


def _architecture(name: str) -> str:
    """timm's ResNets are torchvision's, and the tag after a dot names weights."""
    return name.removeprefix("timm:").split(".")[0]


def _unnamed(said: str, state: Mapping[str, Tensor], path: str) -> str:
    import timm  # costs a second

    is_timm = bool(said) and timm.is_model(said)
    like = None if is_timm else likeness(state)
    return (
        f"{path} holds an encoder that is {f'called {said!r}' if said else 'not named'} and is none of our ResNets by "
        f"its tensors{f' ({like})' if like else ''}: give {'a whole file, or ' if like else ''}its name, such as "
        f"--encoder resnet50 or --encoder timm:{said if is_timm else 'NAME'}."
    )


def _recognise(state: Mapping[str, Tensor]) -> str | None:
    return recognise({key: tensor.shape for key, tensor in state.items()})


def _remedy(state: Mapping[str, Tensor], given: str = "") -> str:
    name = _recognise(state)
    if name:
        return f"it looks like {name}, so give --encoder {name}, or another file"
    like = likeness(state)
    if like is None:
        return "give the name of the encoder that it holds, or another file"
    # Of the encoder that was given, the faults stand in the sentence before.
    return f"{like.blocks if like.name == given else like}; give a whole file of it, or another"
