"""JSON and YAML as plain data, within limits: what a hostile or broken text could do is refused before it is done.

Both become dicts, lists, strings, numbers, booleans and None. Refused: a name given twice, numbers that are not finite
or do not fit 64 bits, nesting deeper than 64, more than 2 million values (YAML's aliases are counted each time they are
used), and texts that are too long. A byte order mark at the start, as some editors write it, is let through.
"""

import json
import math
from collections.abc import Hashable
from typing import Any

import yaml

LARGEST_JSON_BYTES = 256 << 20
LARGEST_YAML_BYTES = 4 << 20
_DEEPEST = 64
_MOST_VALUES = 2_000_000
_MOST_DIGITS = 20
_LARGEST_INTEGER = 1 << 63


class NotPlainData(ValueError):
    """A text that is not within the limits; the message completes "not valid JSON (...)"."""


def parse_json(content: bytes, *, largest_bytes: int = LARGEST_JSON_BYTES) -> Any:
    """Return what a JSON text says.

    Raises:
        NotPlainData: not JSON, or beyond a limit.
    """
    _check_length(content, largest_bytes)
    try:
        data = json.loads(
            content.decode("utf-8-sig"),
            object_pairs_hook=_without_duplicates,
            parse_int=_integer,
            parse_float=_finite,
            parse_constant=_finite,
        )
    except RecursionError:
        raise NotPlainData(f"nested deeper than {_DEEPEST}") from None
    except NotPlainData:
        raise
    except ValueError as problem:  # also of text that is not UTF-8
        raise NotPlainData(str(problem)) from None
    _check_extent(data)
    return data


def parse_yaml(content: bytes, *, largest_bytes: int = LARGEST_YAML_BYTES) -> Any:
    """Return what a YAML text says; tags that would make anything but plain data are refused.

    Raises:
        NotPlainData: not YAML, or beyond a limit.
    """
    _check_length(content, largest_bytes)
    try:
        loader = _PlainLoader(content.decode("utf-8-sig"))
        try:
            data = loader.get_single_data()
        finally:
            loader.dispose()
    except NotPlainData:
        raise
    except (yaml.YAMLError, ValueError, OverflowError) as problem:  # the latter two from impossible dates and numbers
        raise NotPlainData(str(problem)) from None
    except (AttributeError, LookupError, TypeError):  # what PyYAML makes of `!!bool maybe` and `!!timestamp noon`
        raise NotPlainData("a value is not what its tag says") from None
    _check_extent(data)
    return data


class _PlainLoader(yaml.SafeLoader):
    """PyYAML's safe loader, which lets the last of two equal keys win, reads `.nan` and nests without end."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        self._depth += 1
        if self._depth > _DEEPEST + 1:  # a leaf may stand in the deepest list
            raise NotPlainData(f"nested deeper than {_DEEPEST}")
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        if len(set(keys)) < len(keys):
            raise NotPlainData(f"the name {_first_duplicate(keys)!r:.80} is given twice")
        return super().construct_mapping(node, deep)


def _yaml_integer(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> int:
    # Digits of 8 and 16 need less characters than of 2 (`0b...`), which nobody writes.
    if len(node.value) > 4 * _MOST_DIGITS:
        raise NotPlainData(f"an integer of {len(node.value)} digits")
    return _checked_integer(loader.construct_yaml_int(node))


def _yaml_float(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> float:
    return _checked_float(loader.construct_yaml_float(node), node.value)


_PlainLoader.add_constructor("tag:yaml.org,2002:int", _yaml_integer)
_PlainLoader.add_constructor("tag:yaml.org,2002:float", _yaml_float)


def _check_length(content: bytes, largest_bytes: int) -> None:
    if len(content) > largest_bytes:
        raise NotPlainData(f"{len(content)} bytes; at most {largest_bytes} are read")


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        name = _first_duplicate([name for name, _ in pairs])
        raise NotPlainData(f"the name {name!r:.80} is given twice")
    return content


def _first_duplicate(names: list[Any]) -> Any:
    seen: set[Any] = set()
    return next(name for name in names if name in seen or seen.add(name))  # type: ignore[func-returns-value]


def _integer(text: str) -> int:
    if len(text) > _MOST_DIGITS:
        raise NotPlainData(f"an integer of {len(text)} digits")
    return _checked_integer(int(text))


def _checked_integer(value: int) -> int:
    if not -_LARGEST_INTEGER <= value < _LARGEST_INTEGER:
        raise NotPlainData(f"the integer {value} does not fit 64 bits")
    return value


def _finite(text: str) -> float:
    return _checked_float(float(text), text)


def _checked_float(value: float, text: str) -> float:
    if not math.isfinite(value):
        raise NotPlainData(f"the number {text:.40} is not finite")
    return value


def _check_extent(data: Any) -> None:
    """Count values and depth, without recursion; shared parts of YAML count wherever they are used."""
    count, pending = 0, [(data, 1)]
    while pending:
        value, depth = pending.pop()
        if not isinstance(value, dict | list):
            continue
        if depth > _DEEPEST:
            raise NotPlainData(f"nested deeper than {_DEEPEST}")
        count += len(value)
        if count > _MOST_VALUES:
            raise NotPlainData(f"more than {_MOST_VALUES} values")
        pending += [(inner, depth + 1) for inner in (value.values() if isinstance(value, dict) else value)]
