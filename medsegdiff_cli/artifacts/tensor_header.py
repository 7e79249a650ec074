"""The header of a safetensors file, checked before any library sees the file.

Format (https://huggingface.co/docs/safetensors): 8 bytes little-endian length N, N bytes of JSON, then the data. The
JSON maps each tensor's name to its dtype, shape and [begin, end) in the data; `__metadata__` maps strings to strings.
Here the tensors must cover the data exactly, in some order: no hole, no overlap, nothing behind.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO

from medsegdiff_cli.artifacts.plain_data import NotPlainData, parse_json
from medsegdiff_cli.errors import IntegrityError, reading_error

_LENGTH_BYTES = 8
_LARGEST_HEADER_BYTES = 4 << 20
_LARGEST_METADATA_BYTES = 1 << 16
_MOST_TENSORS = 20_000
_MOST_AXES = 8
_METADATA = "__metadata__"
_KEYS = {"dtype", "shape", "data_offsets"}
_ITEM_BYTES = {"BOOL": 1, "U8": 1, "I8": 1, "I16": 2, "I32": 4, "I64": 8, "F16": 2, "BF16": 2, "F32": 4, "F64": 8}


@dataclass(frozen=True)
class TensorInfo:
    """What a header says about one tensor; `begin` and `end` count bytes of the data."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


def read_tensor_header(path: Path) -> dict[str, TensorInfo]:
    """Check the header of a safetensors file and return it.

    Raises:
        IntegrityError: the header is absurd, contradicts itself or does not fit the file.
        ResourceError: the disk fails.
    """
    try:
        with path.open("rb") as stream:
            return check_tensor_header(stream, path.stat().st_size, str(path))
    except OSError as problem:
        raise reading_error(problem, str(path), IntegrityError) from None


def check_tensor_header(stream: BinaryIO, n_bytes: int, where: str) -> dict[str, TensorInfo]:
    """Check the header of a safetensors file of `n_bytes`, of which at most the header is read.

    Raises:
        IntegrityError: see `read_tensor_header`.
    """
    try:
        header_bytes = int.from_bytes(stream.read(_LENGTH_BYTES), "little")
        room = n_bytes - _LENGTH_BYTES
        if room < 2:
            raise _Damage(f"{n_bytes} bytes are too few")
        if header_bytes > min(room, _LARGEST_HEADER_BYTES):
            raise _Damage(f"a header of {header_bytes} bytes in a file of {n_bytes}; at most {_LARGEST_HEADER_BYTES}")
        tensors = _tensors_in(stream.read(header_bytes))
        _check_cover(tensors, room - header_bytes)
    except _Damage as problem:
        fix = "restore the file, or train again"
        raise IntegrityError(f"not readable as safetensors ({problem})", where=where, fix=fix) from None
    return tensors


class _Damage(ValueError):
    pass


def _tensors_in(text: bytes) -> dict[str, TensorInfo]:
    # The parser counts values: a header of the largest size with the most tensors stays below its limit.
    try:
        content = parse_json(text, largest_bytes=_LARGEST_HEADER_BYTES)
    except NotPlainData as problem:
        raise _Damage(f"header: {problem}") from None
    if not isinstance(content, dict) or not text.startswith(b"{"):
        raise _Damage("the header is no JSON object")
    _check_metadata(content.pop(_METADATA, {}))
    if len(content) > _MOST_TENSORS:
        raise _Damage(f"{len(content)} tensors; at most {_MOST_TENSORS}")
    return {name: _tensor(name, entry) for name, entry in content.items()}


def _check_metadata(metadata: Any) -> None:
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise _Damage("the metadata are no texts by name")
    size = sum(len(name) + len(value) for name, value in metadata.items())
    if size > _LARGEST_METADATA_BYTES:
        raise _Damage(f"{size} characters of metadata; at most {_LARGEST_METADATA_BYTES}")


def _tensor(name: str, entry: Any) -> TensorInfo:
    shown = f"tensor {name!r:.100}"
    if not isinstance(entry, dict) or entry.keys() != _KEYS:
        raise _Damage(f"{shown} has not exactly dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _ITEM_BYTES:
        raise _Damage(f"{shown} has the unknown dtype {dtype!r:.40}")
    if not _are_sizes(shape) or len(shape) > _MOST_AXES:
        raise _Damage(f"{shown} has the impossible shape {shape!r:.80}")
    if not _are_sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise _Damage(f"{shown} has the impossible data_offsets {offsets!r:.80}")
    if math.prod(shape) * _ITEM_BYTES[dtype] != offsets[1] - offsets[0]:
        raise _Damage(f"{shown}: {offsets[1] - offsets[0]} bytes do not make {dtype} of shape {shape}")
    return TensorInfo(dtype, tuple(shape), offsets[0], offsets[1])


def _are_sizes(value: Any) -> bool:
    return isinstance(value, list) and all(type(item) is int and item >= 0 for item in value)


def _check_cover(tensors: Mapping[str, TensorInfo], data_bytes: int) -> None:
    spans = sorted((info.begin, info.end, name) for name, info in tensors.items())
    ends = [(0, 0, "the beginning"), *spans]
    for (_, end, before), (begin, _, name) in pairwise(ends):
        if begin != end:
            kind = "overlaps" if begin < end else "leaves a hole behind"
            raise _Damage(f"tensor {name!r:.100} {kind} {before!r:.100}")
    if ends[-1][1] != data_bytes:
        raise _Damage(f"tensors of {ends[-1][1]} bytes in {data_bytes} bytes of data")
