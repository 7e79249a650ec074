"""Checkpoint: tensors as safetensors and, written last, a JSON file with their digest; never a pickle.

A checkpoint exists if and only if its JSON does; the JSON carries the sha256 of the tensors.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, load_file, save_file
from torch import Tensor

from medsegdiff_cli import atomic
from medsegdiff_cli.artifacts.document import read_json, refuse_newer
from medsegdiff_cli.artifacts.tensor_header import check_tensor_header, read_tensor_header
from medsegdiff_cli.errors import IntegrityError, ResourceError, reading_error

FORMAT_VERSION = 1
_FIX = "restore the file, or train again"


@dataclass(frozen=True)
class Checkpoint:
    """Tensors by dotted name (`model.`, `ema.`, `optimiser.` ...) and JSON-serialisable state.

    Attributes:
        digest: sha256 of the tensors' file, as it was read.
    """

    tensors: dict[str, Tensor]
    state: dict[str, Any]
    digest: str = ""

    def part(self, prefix: str) -> dict[str, Tensor]:
        """Return the tensors below `prefix.`, without it."""
        return {
            name.removeprefix(f"{prefix}."): tensor
            for name, tensor in self.tensors.items()
            if name.startswith(f"{prefix}.")
        }


def checkpoint_exists(path: Path) -> bool:
    """Return whether a complete checkpoint stands at `path` (given without an ending)."""
    return path.with_suffix(".json").is_file() and path.with_suffix(".safetensors").is_file()


def write_checkpoint(path: Path, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> str:
    """Write `path`.safetensors, then `path`.json.

    Returns:
        sha256 of the tensors' file.

    Raises:
        ResourceError: the disk is full or fails.
    """
    weights = path.with_suffix(".safetensors")
    contiguous = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    with atomic.staged(weights) as temporary:
        try:
            save_file(contiguous, temporary)
        except SafetensorError as error:  # its way to report a full disk
            raise ResourceError(
                f"writing failed ({error})", where=str(weights), fix="free some space and run the same command again"
            ) from None
    digest = atomic.digest_of_file(weights)
    atomic.write_json(
        path.with_suffix(".json"), {"format_version": FORMAT_VERSION, "sha256": digest, "state": dict(state)}
    )
    return digest


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint and verify its header and digest.

    Raises:
        IntegrityError: missing or damaged.
        UsageError: of a newer format. ResourceError: the disk fails.
    """
    header_file, weights = path.with_suffix(".json"), path.with_suffix(".safetensors")
    header = _checked_header(read_json(header_file, IntegrityError), str(header_file))
    if not weights.is_file():
        raise IntegrityError(f"{weights.name} is missing", where=str(weights.parent), fix=_FIX)
    read_tensor_header(weights)  # before the whole file is read, which takes a while
    try:
        _compare_digests(atomic.digest_of_file(weights), header["sha256"], str(weights))
        tensors = load_file(weights)
    except OSError as problem:
        raise reading_error(problem, str(weights), IntegrityError) from None
    except SafetensorError as error:
        raise IntegrityError(f"not readable as safetensors ({error})", where=str(weights)) from None
    return Checkpoint(tensors=tensors, state=header["state"], digest=header["sha256"])


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file that stands alone, as others publish it.

    Raises:
        IntegrityError: missing or damaged. ResourceError: the disk fails.
    """
    read_tensor_header(path)
    try:
        tensors: dict[str, Tensor] = load_file(path)
    except OSError as problem:
        raise reading_error(problem, str(path), IntegrityError) from None
    except SafetensorError as error:
        raise IntegrityError(f"not readable as safetensors ({error})", where=str(path)) from None
    return tensors


def parse_checkpoint(header: Any, weights: bytes, where: str) -> Checkpoint:
    """Return the checkpoint whose two files were read elsewhere: the parsed JSON, and the tensors' bytes.

    Raises:
        IntegrityError, UsageError: as for `read_checkpoint`.
    """
    header = _checked_header(header, where)
    check_tensor_header(BytesIO(weights), len(weights), where)
    _compare_digests(hashlib.sha256(weights).hexdigest(), header["sha256"], where)
    try:
        tensors = load(weights)
    except SafetensorError as error:
        raise IntegrityError(f"not readable as safetensors ({error})", where=where) from None
    return Checkpoint(tensors=tensors, state=header["state"], digest=header["sha256"])


def _checked_header(header: Any, where: str) -> dict[str, Any]:
    if not isinstance(header, dict) or not isinstance(header.get("state"), dict):
        raise IntegrityError("not the header of a checkpoint", where=where, fix="restore the file")
    refuse_newer(header, "format_version", FORMAT_VERSION, where)
    if type(header.get("format_version")) is not int or not isinstance(header.get("sha256"), str):
        raise IntegrityError("a checkpoint without format_version and sha256", where=where, fix="restore the file")
    return header


def _compare_digests(found: str, recorded: str, where: str) -> None:
    if found != recorded:
        raise IntegrityError("the weights do not match their recorded sha256", where=where, fix=_FIX)
