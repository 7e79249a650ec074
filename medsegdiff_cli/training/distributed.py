"""Several processes as one: gradients are averaged over the global batch, rank 0 decides and writes.

Started by torchrun (RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT are set by it). All ranks hold the same
weights, averages and counters after every step, so one checkpoint, written by rank 0, serves them all. The run folder
must be on a file system that all ranks share.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor, nn

from medsegdiff_cli.errors import ResourceError

# A rank that dies closes its connection and is noticed at once; this is for one that hangs. Rank 0 validates while the
# others wait, so it must be longer than a validation.
_TIMEOUT_S = 3600.0


class Team:
    """The processes that train together; the default is one process, for which every method is trivial.

    Args:
        rank, world_size: this process's number, and how many there are.
        device: where tensors that are exchanged must lie.
    """

    def __init__(self, rank: int = 0, world_size: int = 1, device: torch.device | None = None) -> None:
        self.rank, self.world_size = rank, world_size
        self.device = device or torch.device("cpu")

    @property
    def is_lead(self) -> bool:
        """True in the process that validates and writes."""
        return self.rank == 0

    @torch.no_grad()
    def average(self, parameters: Sequence[nn.Parameter], values: Tensor, n_items: int) -> Tensor:
        """Average gradients (in place) and `values` (1D) over the global batch.

        Every rank counts by its number of items, so the result is that of one process with the whole batch for every
        loss that is a mean over items. A parameter without a gradient on all ranks keeps none.

        Raises:
            ResourceError: another rank is gone.
        """
        if self.world_size == 1:
            return values
        flat = [(p.grad if p.grad is not None else torch.zeros_like(p)).reshape(-1) for p in parameters]
        used = torch.tensor([p.grad is not None for p in parameters], dtype=torch.float32, device=self.device)
        items = torch.ones(1, device=self.device)
        packed = torch.cat([*flat, used, values.float(), items]).mul_(n_items)
        with _collective():
            dist.all_reduce(packed)
        packed /= packed[-1].clone()
        sizes = [*(p.numel() for p in parameters), len(parameters), len(values), 1]
        *gradients, used, averaged, _ = packed.split(sizes)
        for parameter, gradient, share in zip(parameters, gradients, used.tolist(), strict=True):
            if share > 0:
                parameter.grad = gradient.view_as(parameter).clone()
        return averaged

    @torch.no_grad()
    def total(self, values: Tensor) -> Tensor:
        """Return the sum of a tensor over all ranks, in a tensor of its own."""
        shared = values.clone()
        if self.world_size > 1:
            with _collective():
                dist.all_reduce(shared)
        return shared

    def any(self, *flags: bool) -> tuple[bool, ...]:
        """Return for each flag whether it is set on any rank, so that all ranks decide alike."""
        if self.world_size == 1:
            return flags
        shared = torch.tensor(flags, dtype=torch.int32, device=self.device)
        with _collective():
            dist.all_reduce(shared, op=dist.ReduceOp.MAX)
        return tuple(bool(flag) for flag in shared.tolist())

    def from_lead(self, *values: float) -> tuple[float, ...]:
        """Return rank 0's numbers on every rank."""
        if self.world_size == 1:
            return values
        shared = torch.tensor(values, dtype=torch.float32 if self.device.type == "mps" else torch.float64)
        shared = shared.to(self.device)
        with _collective():
            dist.broadcast(shared, src=0)
        return tuple(shared.tolist())

    @torch.no_grad()
    def copy_from_lead(self, tensors: Sequence[Tensor]) -> None:
        """Overwrite the tensors by rank 0's."""
        if self.world_size > 1:
            with _collective():
                for tensor in tensors:
                    dist.broadcast(tensor, src=0)

    def wait(self) -> None:
        """Return when every rank has come here, so that rank 0's files are there for all."""
        self.any(False)


@contextmanager
def join_team(device: torch.device, timeout_s: float = _TIMEOUT_S) -> Iterator[Team]:
    """Join torchrun's process group for the duration of the block; without torchrun, be a team of one.

    Blocks may lie in one another: the outermost one joins and leaves.

    Args:
        device: "cuda" becomes the rank's own GPU; see `Team.device`.

    Raises:
        ResourceError: the other ranks cannot be reached.
    """
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    if world_size == 1:
        yield Team(device=device)
        return
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(device)
    if dist.is_initialized():
        yield Team(dist.get_rank(), world_size, device)
        return
    with _collective():
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=timedelta(seconds=timeout_s))
    try:
        yield Team(dist.get_rank(), world_size, device)
    finally:
        dist.destroy_process_group()


@contextmanager
def _collective() -> Iterator[None]:
    try:
        yield
    except (RuntimeError, ValueError) as error:
        raise ResourceError(
            f"another training process is gone or cannot be reached ({str(error).splitlines()[0][:200]})",
            where=f"rank {os.environ.get('RANK', '?')} of {os.environ.get('WORLD_SIZE', '?')}",
            fix="see the other processes' messages (memory?), then run the same command again: training resumes",
        ) from error
