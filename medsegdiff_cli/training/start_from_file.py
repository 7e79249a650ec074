"""Starting from public weights: a file that stands alone, whose tensors go by other names than a run's."""

import logging
from pathlib import Path

import torch

from medsegdiff_cli.artifacts.checkpoint import read_tensors
from medsegdiff_cli.errors import IntegrityError, UsageError
from medsegdiff_cli.methods.public_weights import StartsFromPublicWeights
from medsegdiff_cli.networks.transfer import TransferRow, adapt_state

log = logging.getLogger(__name__)

# Older files lack this counter, which changes nothing.
_OPTIONAL = "num_batches_tracked"


def start_from_file(method: StartsFromPublicWeights, path: Path) -> str:
    """Load public weights into a fresh method.

    Args:
        path: safetensors file.

    Returns:
        What was taken, in words.

    Raises:
        UsageError: the file lacks a tensor that the method must start from, or has another shape there.
        IntegrityError: the file is damaged.
    """
    state = method.named_here(read_tensors(path))
    broken = [name for name, tensor in state.items() if not torch.isfinite(tensor).all()]
    if broken:
        raise IntegrityError(f"'{broken[0]}' holds numbers that are not finite", where=str(path))
    transfer = adapt_state(state, method, (method.public_part,))
    missing = [row for row in transfer.rows if row.status == "new" and _must_come(row, method)]
    if missing:
        raise UsageError(
            f"these weights do not fit: {len(missing)} tensors are missing or of another shape, the first is "
            f"{missing[0].name.removeprefix(method.public_part)} {list(missing[0].target_shape or ())}",
            where=str(path),
            fix=f"give {method.public_file}; or make the network that the file is of",
        )
    method.load_state_dict(transfer.state)
    taken = sum(row.status in ("loaded", "adapted") for row in transfer.rows)
    adapted = [row.name for row in transfer.rows if row.status == "adapted"]
    return f"{taken} tensors of {path.name}" + (f", {', '.join(adapted)} for other channels" if adapted else "")


def _must_come(row: TransferRow, method: StartsFromPublicWeights) -> bool:
    return row.name.startswith(method.public_part) and not row.name.endswith(_OPTIONAL)
