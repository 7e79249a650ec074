"""How much memory a training may use: the GPU's, else a share of the RAM that this process is granted.

And how much can be had right now: what is forecast to need more is refused before the work starts.
"""

import os
import re
from pathlib import Path

import torch

from medsegdiff_cli.artifacts.plan import Scale
from medsegdiff_cli.errors import ResourceError, UsageError

RAM_SHARE = 0.5
_UNITS = {"": 1, "k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40}
# Limit and use of a control group, versions 2 and 1; and the lines of `memory.stat` that could be taken back.
_CGROUP_FILES = (("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes"))
_RECLAIMABLE = (("inactive_file", "active_file"), ("total_inactive_file", "total_active_file"))


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


def require_memory(needed_bytes: int, what: str, device: torch.device | None = None) -> None:
    """Refuse to start what is forecast to need more memory than can be had.

    Args:
        what: needs it, for people.
        device: that computes; a GPU has its own memory. None asks for the computer's.

    Raises:
        ResourceError: the forecast is over the limit; both are named.
    """
    known = available_memory() if device is None or device.type == "cpu" else _free_on(device)
    if known is None or needed_bytes <= known[0]:
        return
    limit, source = known
    raise ResourceError(
        f"{what} is forecast to need {format_bytes(needed_bytes)} of memory, but only {format_bytes(limit)} can be had",
        where=source,
        fix="free some memory or raise the limit, or ask for less: a smaller --scale, batch or patch to train, "
        "fewer maps and --workers 0 to predict",
    )


def available_memory(cgroup_root: Path = Path("/sys/fs/cgroup"), proc: Path = Path("/proc")) -> tuple[int, str] | None:
    """Return the bytes of RAM that this process can have beyond what it has, and what limits it, in words.

    It is the least of: free RAM, the rest of each control group's limit, and the rest of the address space (`ulimit
    -v`). None where the system tells nothing.
    """
    found = [(room, "the limit of this container or job") for room in _cgroup_rooms(cgroup_root)]
    if (free := free_ram_bytes(proc / "meminfo")) is not None:
        found.append((free, "the free memory of this machine"))
    if (room := _address_space_left(proc)) is not None:
        found.append((room, "the limit of the address space (ulimit -v)"))
    return min(found, default=None)


def free_ram_bytes(meminfo: Path = Path("/proc/meminfo")) -> int | None:
    """Return the RAM that can be had without swapping, None where the system does not tell."""
    try:
        lines = meminfo.read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    numbers = [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
    return numbers[0] if numbers else None


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


def _free_on(device: torch.device) -> tuple[int, str] | None:
    if device.type != "cuda":
        return None
    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device), f"the free memory of {torch.cuda.get_device_name(device)}"


def _address_space_left(proc: Path) -> int | None:
    """Return what the limit of the address space leaves; None without a limit, or where the system does not tell."""
    try:
        import resource
    except ImportError:  # outside of POSIX systems
        return None
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit == resource.RLIM_INFINITY:
        return None
    try:
        pages = int((proc / "self" / "statm").read_text(encoding="ascii").split()[0])
    except OSError:
        return None
    return max(0, limit - pages * resource.getpagesize())


def _cgroup_limits(root: Path) -> list[int]:
    """Return the limits of this process's control groups (versions 1 and 2), from its own up to the root."""
    names = [limit for limit, _ in _CGROUP_FILES]
    found = [_number_in(folder / name) for folder in _cgroup_folders(root) for name in names]
    return [limit for limit in found if limit]


def _cgroup_rooms(root: Path) -> list[int]:
    """Return what each limit leaves; pages of files, which give way to others, do not count as used."""
    rooms = []
    for folder in _cgroup_folders(root):
        for (limit_file, use_file), lines in zip(_CGROUP_FILES, _RECLAIMABLE, strict=True):
            limit, used = _number_in(folder / limit_file), _number_in(folder / use_file)
            if limit:
                rooms.append(max(0, min(limit, limit - (used or 0) + _sum_of(folder / "memory.stat", lines))))
    return rooms


def _number_in(path: Path) -> int | None:
    """Return the number that a file holds; None for another word ("max") and where there is no file."""
    try:
        text = path.read_text(encoding="utf-8").strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None


def _sum_of(path: Path, names: tuple[str, ...]) -> int:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError:
        return 0
    pairs = [line.split() for line in lines]
    return sum(int(pair[1]) for pair in pairs if len(pair) == 2 and pair[0] in names)


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
