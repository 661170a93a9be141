"""YAML as plain data: no tags, no bombs, no key twice, no classes to make."""

from typing import Any

import yaml

_MOST_BYTES = 1 << 16  # a whole settings file has 5,000, and 300 nodes
_MOST_NODES = 20_000
_NOT_KEYS = {"class_path": "names a class to make", "<<": "merges another mapping"}


class NotPlain(yaml.YAMLError):
    """YAML that holds more than data, or more of it than anybody writes."""


def plain_yaml(data: bytes) -> Any:
    """What a YAML file says, of numbers, strings, lists and mappings. None where it is empty.

    `class_path` is refused as a key: jsonargparse would import what it names and call it. So are strings that are
    mappings or lists themselves, which it would read again.

    Raises yaml.YAMLError for anything else, with the reason in its first line.
    """
    if len(data) > _MOST_BYTES:
        raise NotPlain(f"it has more than {_MOST_BYTES:,} bytes")
    try:
        loader = yaml.SafeLoader(data.decode())  # the loader itself would take UTF-16 too
        node = loader.get_single_node()
        if node is None:
            return None
        _check(node)
        return loader.construct_document(node)
    except RecursionError:
        raise yaml.YAMLError("it is nested too deeply") from None
    # Numbers of thousands of digits, dates that are none, bytes that are no UTF-8, keys that are lists.
    except (ValueError, TypeError, OverflowError) as error:
        raise yaml.YAMLError(str(error).splitlines()[0]) from None


def _check(root: yaml.Node) -> None:
    """Counts each node as often as aliases repeat it, which is what it costs to walk what comes of it."""
    waiting, count, texts = [root], 0, {}
    while waiting:
        node = waiting.pop()
        count += 1
        if count > _MOST_NODES:
            raise NotPlain(f"it says more than {_MOST_NODES:,} things, written out")
        if isinstance(node, yaml.MappingNode):
            _check_keys(node)
            waiting += [part for pair in node.value for part in pair]
        elif isinstance(node, yaml.SequenceNode):
            waiting += node.value
        elif node.tag == "tag:yaml.org,2002:str":
            texts[id(node)] = node
    for node in texts.values():
        _check_text(node)


def _check_text(node: yaml.Node) -> None:
    try:
        # JSON, of which YAML is not quite a part, begins with one of the two.
        is_more = node.value.lstrip()[:1] in ("{", "[") or not isinstance(
            yaml.compose(node.value), yaml.ScalarNode | None
        )
    except yaml.YAMLError:
        is_more = False
    if is_more:
        raise NotPlain(f"the text on line {node.start_mark.line + 1} is a mapping or a list in quotation marks")


def _check_keys(node: yaml.MappingNode) -> None:
    keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
    for key in keys:
        if key in _NOT_KEYS:
            raise NotPlain(f"{key!r} on line {node.start_mark.line + 1} {_NOT_KEYS[key]}")
    twice = {key for key in keys if keys.count(key) > 1} if len(set(keys)) < len(keys) else set()
    if twice:
        raise NotPlain(f"{min(twice)!r} stands twice in the mapping on line {node.start_mark.line + 1}")
