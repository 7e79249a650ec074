"""Devices and workers: what `--device` and `--workers` mean on this machine."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from medsegdiff_cli.errors import ResourceError, UsageError


def choose_device(name: str | None) -> torch.device:
    """Return the device asked for, else CUDA, else MPS, else the CPU.

    Raises:
        UsageError: not a device's name.
        ResourceError: the device is not there.
    """
    if name is None:
        return torch.device(
            "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
        )
    try:
        device = torch.device("cuda" if name == "gpu" else name)
    except RuntimeError:
        raise UsageError(f"no device '{name}'", where="--device", fix="use cpu, cuda, cuda:N or mps") from None
    if device.type not in ("cpu", "cuda", "mps"):
        raise UsageError(f"device '{name}' is not supported", where="--device", fix="use cpu, cuda, cuda:N or mps")
    if device.type == "cuda" and (not torch.cuda.is_available() or (device.index or 0) >= torch.cuda.device_count()):
        raise ResourceError(
            f"device '{name}' is not there ({torch.cuda.device_count()} CUDA devices)",
            where="--device",
            fix="see `msd doctor`, or use --device cpu",
        )
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise ResourceError("device 'mps' is not there", where="--device", fix="use --device cpu")
    return device


def usable_cores() -> int:
    """Return how many processor cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def choose_workers(asked: int | None, device: torch.device | None = None) -> int:
    """Return `--workers`, else: all cores for jobs without a network, one beside a CPU network, 8 beside a GPU."""
    if asked is not None:
        return asked
    cores = usable_cores()
    if device is None:
        return cores if cores > 1 else 0
    return min(cores - 1, 8 if device.type == "cuda" else 1)


@contextmanager
def torch_threads(most: int) -> Iterator[None]:
    """Keep torch to at most so many threads: more threads than free cores slow small networks down tenfold."""
    before = torch.get_num_threads()
    torch.set_num_threads(max(1, min(before, most)))
    try:
        yield
    finally:
        torch.set_num_threads(before)
