"""Which of our ResNets a state-dict comes nearest to, where it is none of them exactly."""

import re
from collections import defaultdict
from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor

from simsiam.export.names import count_names
from simsiam.models.encoders import encoder_shapes, list_encoders

Shapes = Mapping[str, tuple[int, ...]]


class Likeness(NamedTuple):
    """The nearest name, `its blocks per stage 3, 4, 6, 3 are those of resnet50`, and `2 are missing (...)`."""

    name: str
    blocks: str
    faults: str

    def __str__(self) -> str:
        return f"{self.blocks}, but of its tensors {self.faults}"


def likeness(state: Mapping[str, Tensor]) -> Likeness | None:
    """The nearest of our ResNets to a state-dict of an encoder's own keys, which is none of them.

    None where fewer than half of what could be a ResNet's tensors fit the nearest.
    """
    found = _trunk(state)
    all_known = {name: encoder_shapes(name) for name in list_encoders()}
    name, known = max(all_known.items(), key=lambda item: _overlap(item[1], found))
    if not blocks_per_stage(found) or 2 * len(known.items() & found.items()) < len(found):
        return None
    ours, theirs = (", ".join(map(str, blocks_per_stage(shapes))) for shapes in (known, found))
    like = f"those of {name}" if ours == theirs else f"nearest to those of {name}, {ours}"
    faults = {
        "missing": tuple(key for key in known if key not in found),
        "of another shape": tuple(key for key in known if found.get(key, known[key]) != known[key]),
        "too many": tuple(key for key in found if key not in known),
    }
    counts = [count_names(keys, f"{'is' if len(keys) == 1 else 'are'} {what}") for what, keys in faults.items() if keys]
    return Likeness(name, f"its blocks per stage {theirs} are {like}", " and ".join(counts))


def blocks_per_stage(shapes: Shapes) -> tuple[int, ...]:
    """Numbers of residual blocks that occur in each stage, from keys such as `layer3.5.conv1.weight`."""
    stages = defaultdict(set)
    for key in shapes:
        if found := re.match(r"layer(\d+)\.(\d+)\.", key):
            stages[int(found[1])].add(found[2])
    return tuple(len(stages[stage]) for stage in sorted(stages))


def _trunk(state: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """Shapes of what may be a ResNet's own; batch counters, which old files lack, do not count."""
    own = re.compile(r"(conv1|bn1|layer\d+)\.(?!.*num_batches_tracked$)")
    return {key: tuple(tensor.shape) for key, tensor in state.items() if own.match(key)}


def _overlap(known: Shapes, found: Shapes) -> float:
    """1 where names and shapes are the same, 0 where none is."""
    both = len(known.items() & found.items())
    return both / (len(known) + len(found) - both)
