"""Checkpoint: tensors as safetensors and, written last, a JSON file with their digest; never a pickle.

A checkpoint exists if and only if its JSON does; the JSON carries the sha256 of the tensors.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from medsegdiff_cli import atomic
from medsegdiff_cli.artifacts.document import read_json
from medsegdiff_cli.errors import IntegrityError, ResourceError

FORMAT_VERSION = 1


@dataclass(frozen=True)
class Checkpoint:
    """Tensors by dotted name (`model.`, `ema.`, `optimiser.` ...) and JSON-serialisable state."""

    tensors: dict[str, Tensor]
    state: dict[str, Any]

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
    """Read a checkpoint and verify its digest.

    Raises:
        IntegrityError: missing, damaged, or of a newer format.
    """
    header_file, weights = path.with_suffix(".json"), path.with_suffix(".safetensors")
    header = read_json(header_file, IntegrityError)
    if not isinstance(header, dict) or not isinstance(header.get("state"), dict):
        raise IntegrityError("not the header of a checkpoint", where=str(header_file), fix="restore the file")
    if header.get("format_version") != FORMAT_VERSION:
        raise IntegrityError(
            f"checkpoint format {header.get('format_version')} (known: {FORMAT_VERSION})",
            where=str(path),
            fix="upgrade msd",
        )
    if not weights.is_file() or atomic.digest_of_file(weights) != header.get("sha256"):
        raise IntegrityError(
            "the weights do not match their recorded sha256", where=str(weights), fix="restore the file, or train again"
        )
    try:
        tensors = load_file(weights)
    except SafetensorError as error:
        raise IntegrityError(f"not readable as safetensors ({error})", where=str(weights)) from None
    return Checkpoint(tensors=tensors, state=header["state"])
