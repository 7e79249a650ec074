"""How much memory a training may use: the GPU's, else a share of the RAM that this process is granted."""

import os
import re
from pathlib import Path

import torch

from medsegdiff_cli.artifacts.plan import Scale
from medsegdiff_cli.errors import UsageError

RAM_SHARE = 0.5
_UNITS = {"": 1, "k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40}
_CGROUP_FILES = ("memory.max", "memory.limit_in_bytes")


def default_memory_bytes(cgroup_root: Path = Path("/sys/fs/cgroup")) -> tuple[int, str]:
    """Return bytes and where the number comes from, as words for the plan."""
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        return int(properties.total_memory), f"all of the GPU {properties.name}"
    granted = granted_ram_bytes(cgroup_root)
    return int(granted * RAM_SHARE), f"half of the {format_bytes(granted)} of RAM"


def default_scale() -> tuple[Scale, str]:
    """Return the scale of trainings on this machine, and why."""
    if torch.cuda.is_available():
        return "full", "because there is a GPU"
    return "small", "because there is no GPU and a full training would take weeks (--scale full asks for it)"


def granted_ram_bytes(cgroup_root: Path = Path("/sys/fs/cgroup")) -> int:
    """Return the machine's RAM, or the container's or job's limit when that is lower."""
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min([physical, *_cgroup_limits(cgroup_root)])


def parse_bytes(text: str) -> int:
    """Return the bytes of `8G`, `8GB`, `8GiB`, `500M` or `1000000`; units are powers of 1024.

    Raises:
        UsageError: it is no size, or zero.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]?)(?:i?b)?\s*", text.lower())
    size = int(float(match[1]) * _UNITS[match[2]]) if match else 0
    if size <= 0:
        raise UsageError(f"'{text}' is no memory size", where="--memory", fix="write 8G, 500M or a number of bytes")
    return size


def format_bytes(n_bytes: float) -> str:
    """Return a size for people, for example `7.5 GB` (powers of 1024)."""
    for unit in ("B", "KB", "MB"):
        if n_bytes < 1024:
            return f"{n_bytes:.0f} {unit}"
        n_bytes /= 1024
    return f"{n_bytes:.1f} GB"


def _cgroup_limits(root: Path) -> list[int]:
    """Return the limits of this process's control groups (versions 1 and 2), from its own up to the root."""
    limits = []
    for folder in _cgroup_folders(root):
        for name in _CGROUP_FILES:
            try:
                text = (folder / name).read_text(encoding="utf-8").strip()
            except OSError:
                continue
            if text.isdigit() and int(text) > 0:
                limits.append(int(text))
    return limits


def _cgroup_folders(root: Path) -> list[Path]:
    folders = [root, root / "memory"]
    try:
        lines = Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return folders
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers in ("", "memory"):
            own = root / controllers / path.lstrip("/")
            folders += [own, *(parent for parent in own.parents if parent.is_relative_to(root))]
    return folders
