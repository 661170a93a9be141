"""The encoder that a protocol measures, and the guard against measuring another one in its place."""

import json
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from torch import nn

from simsiam.atomic import write_atomically
from simsiam.distributed.runtime import Runtime
from simsiam.errors import UserError
from simsiam.export.read import load_encoder
from simsiam.export.state import read_config, read_state, run_folder_of
from simsiam.export.write import encoder_hash
from simsiam.models.encoders import build_encoder
from simsiam.settings.detect import Detect
from simsiam.settings.tree import Classify, Views


def pretrained_encoder(settings: Classify | Detect) -> nn.Module:
    """The encoder of `--pretrained`; `random` is drawn from torch's generator. Raises UserError where there is none.

    Rank 0 warns where the images are to be of another size than those of the run it is from, or otherwise normalised.
    """
    if not settings.pretrained:
        raise UserError("No encoder is given: set --pretrained to a run folder, an encoder file, or random")
    if settings.pretrained != "random":
        if isinstance(settings, Classify) and os.environ.get("RANK", "0") == "0":
            for line in unlike_pretraining(settings):
                print(f"warning: {line}", file=sys.stderr, flush=True)
        return load_encoder(settings.pretrained, name=settings.encoder or None)
    if not settings.encoder:
        raise UserError("--pretrained random needs the encoder's name; add --encoder, such as --encoder resnet50")
    return build_encoder(settings.encoder)


def unlike_pretraining(settings: Classify) -> Iterator[str]:
    """What of the views is other than in the run that `--pretrained` names, as far as its folder tells."""
    place, ours = settings.pretrained, settings.views
    _, theirs = read_config(run_folder_of(Path(place)))
    if theirs.get("size", ours.size) != ours.size:
        yield (
            f"{place} was trained on views of {theirs['size']} pixels and is measured on {ours.size}; "
            f"--views.size {theirs['size']}, with a --views.resize for it, measures on the same"
        )
    for name in ("mean", "std"):
        here = list(getattr(ours, name))
        if theirs.get(name, here) != here:
            yield f"views.{name} is {here} here and was {theirs[name]} where {place} was trained; give it as it was"


def pixel_statistics(settings: Detect) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of RGB in 0..1: the settings', else those of the encoder's file, else ImageNet's."""
    said = {} if settings.pretrained == "random" else read_state(settings.pretrained)[1]
    mean = settings.mean or json.loads(said.get("pixel_mean", "null")) or Views.mean
    return tuple(mean), tuple(settings.std or json.loads(said.get("pixel_std", "null")) or Views.std)


@dataclass(frozen=True)
class Subject:
    """What a run of a protocol is about: it cannot go on, or be validated, with another encoder or other classes."""

    encoder: str
    encoder_sha256: str
    classes: tuple[str, ...]

    @classmethod
    def of(cls, encoder: nn.Module, classes: tuple[str, ...]) -> "Subject":
        """The subject of a run that begins with `encoder` as it is now."""
        return cls(encoder.encoder_name, encoder_hash(encoder), tuple(classes))

    def check(self, path: Path, settings: Classify | Detect, runtime: Runtime) -> None:
        """Compares with the run folder that `path` is. Raises UserError, on every rank, where it is about another."""
        runtime.on_main(lambda: self._check(path, settings))

    def write(self, path: Path) -> None:
        """Notes it in the run folder, as subject.json; rank 0."""
        write_atomically(path / "subject.json", json.dumps(vars(self)) + "\n")

    def _check(self, path: Path, settings: Classify | Detect) -> None:
        file = path / "subject.json"
        if not file.exists():
            return
        try:
            held = Subject(**json.loads(file.read_text()))
        except (ValueError, TypeError):
            raise UserError(f"{file} is damaged; remove it to go on all the same, or give another --out") from None
        held = replace(held, classes=tuple(held.classes))
        if held.classes != self.classes:
            raise UserError(
                f"{path} holds a run with {_named(held.classes)}, but {settings.data} has {_named(self.classes)}; "
                "give the data it was trained on, or another --out"
            )
        if (held.encoder, held.encoder_sha256) != (self.encoder, self.encoder_sha256):
            raise UserError(
                f"{path} holds a run with another encoder ({held.encoder}, {held.encoder_sha256[:12]}) than "
                f"{settings.pretrained} ({self.encoder}, {self.encoder_sha256[:12]}); give another --out"
            )


def _named(classes: tuple[str, ...]) -> str:
    shown = ", ".join(classes[:3]) + (", ..." if len(classes) > 3 else "")
    return f"{len(classes)} classes ({shown})"
