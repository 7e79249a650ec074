"""How batches come from the processes that make them: in shared memory, or through pipes where that is too small.

torch hands a tensor over as a file in /dev/shm and a descriptor of it. Containers often have 64 MB there (docker's
default) and clusters few descriptors; a worker that finds no room is killed by the system. Pipes need neither and cost
a copy.
"""

import logging
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from medsegdiff_cli.artifacts.batch import Batch

log = logging.getLogger(__name__)

_SHARED_MEMORY = Path("/dev/shm")
_MARGIN = 2
# A descriptor for each tensor of a batch; what the process has open beside them.
_TENSORS_OF_BATCH, _OTHER_DESCRIPTORS = 6, 128


@dataclass(frozen=True)
class PipedBatch:
    """A batch whose arrays are copied on their way to another process; attributes as of `Batch`."""

    image: np.ndarray
    label: np.ndarray | None
    valid: np.ndarray | None
    case_ids: tuple[str, ...]
    positions: np.ndarray
    views: tuple[np.ndarray, ...]

    @classmethod
    def of(cls, batch: Batch) -> "PipedBatch":
        """Return a batch's content."""
        return cls(
            image=batch.image.numpy(),
            label=None if batch.label is None else batch.label.numpy(),
            valid=None if batch.valid is None else batch.valid.numpy(),
            case_ids=batch.case_ids,
            positions=batch.positions.numpy(),
            views=tuple(view.numpy() for view in batch.views),
        )

    def in_tensors(self) -> Batch:
        """Return the batch that it was made of."""

        def tensor(array: np.ndarray | None) -> Tensor | None:
            return None if array is None else torch.from_numpy(array)

        return Batch(
            image=torch.from_numpy(self.image),
            label=tensor(self.label),
            valid=tensor(self.valid),
            case_ids=self.case_ids,
            positions=torch.from_numpy(self.positions),
            views=tuple(torch.from_numpy(view) for view in self.views),
        )


def can_share(batch_bytes: int, n_batches: int) -> bool:
    """Return whether shared memory and descriptors suffice for so many batches on their way; if not, it is logged."""
    needed = _MARGIN * batch_bytes * n_batches
    free = shutil.disk_usage(_SHARED_MEMORY).free if _SHARED_MEMORY.is_dir() else None
    if free is not None and free < needed:
        log.info("%s has %.3g MB free: batches come through pipes", _SHARED_MEMORY, free / 1e6)
        return False
    descriptors = _most_descriptors()
    if descriptors is not None and descriptors < _OTHER_DESCRIPTORS + _MARGIN * _TENSORS_OF_BATCH * n_batches:
        log.info("only %d files can be open at once: batches come through pipes", descriptors)
        return False
    return True


def _most_descriptors() -> int | None:
    """Return how many files can be open at once; None without a limit."""
    try:
        import resource
    except ImportError:  # outside of POSIX systems
        return None
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return None if soft == resource.RLIM_INFINITY else soft
