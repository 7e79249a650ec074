"""`msd doctor`: what this machine offers, what looks wrong, and which demands it does not meet."""

import importlib.metadata
import os
import platform
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from medsegdiff_cli import __version__
from medsegdiff_cli.errors import UsageError, did_you_mean
from medsegdiff_cli.paths import Workspace
from medsegdiff_cli.planning.memory import format_bytes, free_ram_bytes, granted_ram_bytes, parse_bytes
from medsegdiff_cli.training.precision import resolve_precision
from medsegdiff_cli.workflows.devices import usable_cores

_PACKAGES = ("torch", "numpy", "scipy", "SimpleITK", "nibabel", "batchgenerators", "diffusers", "safetensors")
_SHARED_MEMORY = Path("/dev/shm")
_SMALL_SHARED_MEMORY = 2**30
_FEW_FILE_DESCRIPTORS = 1024

Report = dict[str, Any]


def examine(workspace: Workspace) -> Report:
    """Return what the machine offers, section by section: versions, devices, processor, memory, disk, warnings.

    Sizes are bytes under keys that end in `_bytes`; nothing is written.
    """
    report: Report = {
        "versions": _versions(),
        "devices": _devices(),
        "processor": _processor(),
        "memory": _memory(),
        "disk": _disk(workspace),
    }
    return {**report, "warnings": _warnings(report)}


def unmet(report: Report, demands: str | None) -> list[str]:
    """Return a sentence for each demand that is not met; see `DEMANDS` for those there are.

    Args:
        report: from `examine`.
        demands: comma-separated, for example "gpu,free=50G,memory=16G"; None demands nothing.

    Raises:
        UsageError: an unknown demand, or one whose value is missing or wrong.
    """
    problems = []
    for text in filter(None, (part.strip() for part in (demands or "").split(","))):
        name, _, value = text.partition("=")
        if name not in DEMANDS:
            raise UsageError(f"unknown demand '{name}'", where="--require", fix=did_you_mean(name, DEMANDS))
        problem = DEMANDS[name](report, value)
        if problem is not None:
            problems.append(problem)
    return problems


def _gpu(report: Report, value: str) -> str | None:
    needed = _whole_number("gpu", value or "1")
    found = len(report["devices"]["cuda"]) + int(report["devices"]["mps"])
    return None if found >= needed else f"{needed} GPU demanded, {found} found"


def _gpu_memory(report: Report, value: str) -> str | None:
    needed, found = _size("gpu-memory", value), max((d["memory_bytes"] for d in report["devices"]["cuda"]), default=0)
    return None if found >= needed else f"a GPU with {format_bytes(needed)} demanded, {format_bytes(found)} found"


def _free(report: Report, value: str) -> str | None:
    needed, found = _size("free", value), report["disk"]["free_bytes"]
    where = report["disk"]["workspace"]
    return None if found >= needed else f"{format_bytes(needed)} of disk demanded, {format_bytes(found)} free ({where})"


def _demanded_memory(report: Report, value: str) -> str | None:
    needed, found = _size("memory", value), report["memory"]["limit_bytes"]
    return None if found >= needed else f"{format_bytes(needed)} of memory demanded, {format_bytes(found)} granted"


def _cores(report: Report, value: str) -> str | None:
    needed, found = _whole_number("cores", value), report["processor"]["cores_usable"]
    return None if found >= needed else f"{needed} cores demanded, {found} usable"


def _bf16(report: Report, value: str) -> str | None:
    devices = report["devices"]["cuda"]
    has = any(device["bf16"] for device in devices) if devices else report["processor"]["bf16"]
    return None if has else "fast bfloat16 demanded, this machine has none"


# A new demand is one function (report, value after "=") -> problem or None, and one line here.
DEMANDS: dict[str, Callable[[Report, str], str | None]] = {
    "gpu": _gpu,
    "gpu-memory": _gpu_memory,
    "free": _free,
    "memory": _demanded_memory,
    "cores": _cores,
    "bf16": _bf16,
}


def _size(name: str, value: str) -> int:
    try:
        return parse_bytes(value)
    except UsageError:
        fix = f"write {name}=50G or {name}=500M"
        raise UsageError(f"'{value}' is no size for '{name}'", where="--require", fix=fix) from None


def _whole_number(name: str, value: str) -> int:
    if not value.isdigit():
        raise UsageError(f"'{value}' is no number for '{name}'", where="--require", fix=f"write {name}=2")
    return int(value)


def _versions() -> dict[str, str]:
    found = {"msd": __version__, "python": platform.python_version(), "system": platform.platform()}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "missing"
    return found


def _devices() -> dict[str, Any]:
    cuda = []
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        cuda.append(
            {
                "name": properties.name,
                "memory_bytes": int(properties.total_memory),
                "memory": format_bytes(properties.total_memory),
                "bf16": resolve_precision("auto", torch.device("cuda", index)) == "bfloat16",
            }
        )
    return {"cuda": cuda, "mps": torch.backends.mps.is_available(), "cuda_of_torch": torch.version.cuda or "none"}


def _processor() -> dict[str, Any]:
    return {
        "cores_usable": usable_cores(),
        "cores_of_machine": os.cpu_count() or 1,
        "load": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "torch_threads": torch.get_num_threads(),
        "omp_num_threads": os.environ.get("OMP_NUM_THREADS"),
        "bf16": resolve_precision("auto", torch.device("cpu")) == "bfloat16",
    }


def _memory() -> dict[str, Any]:
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit, available = granted_ram_bytes(), free_ram_bytes()
    return {
        "total_bytes": total,
        "total": format_bytes(total),
        "limit_bytes": limit,
        "limit": format_bytes(limit) + (" (of this container or job)" if limit < total else ""),
        "available_bytes": available,
        "available": "unknown" if available is None else format_bytes(available),
    }


def _disk(workspace: Workspace) -> dict[str, Any]:
    existing = next(folder for folder in (workspace.root, *workspace.root.parents) if folder.exists())
    free = shutil.disk_usage(existing).free
    shared = shutil.disk_usage(_SHARED_MEMORY).total if _SHARED_MEMORY.is_dir() else None
    return {
        "workspace": str(workspace.root),
        "free_bytes": free,
        "free": format_bytes(free),
        "writable": os.access(existing, os.W_OK),
        "shared_memory_bytes": shared,
        "shared_memory": "none" if shared is None else format_bytes(shared),
        "file_descriptors": _file_descriptors(),
    }


def _file_descriptors() -> int | None:
    try:
        import resource
    except ImportError:  # no such limit is told outside of POSIX systems
        return None
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return None if soft == resource.RLIM_INFINITY else soft


def _warnings(report: Report) -> list[str]:
    processor, disk = report["processor"], report["disk"]
    cores, load = processor["cores_usable"], processor["load"] or 0.0
    shared, descriptors = disk["shared_memory_bytes"], disk["file_descriptors"]
    found = []
    if load > cores:
        found.append(f"the load ({load:g}) exceeds the usable cores ({cores}): others compute here too")
    if processor["omp_num_threads"] is None and load > cores / 2:
        found.append("OMP_NUM_THREADS is unset on a busy machine: set it to the cores that are yours")
    if processor["torch_threads"] > cores:
        found.append(f"torch uses {processor['torch_threads']} threads on {cores} usable cores: set OMP_NUM_THREADS")
    if shared is not None and shared < _SMALL_SHARED_MEMORY:
        found.append(f"/dev/shm has only {format_bytes(shared)}: use --workers 0, or enlarge it (docker --shm-size=8g)")
    if descriptors is not None and descriptors < _FEW_FILE_DESCRIPTORS:
        found.append(f"only {descriptors} files can be open at once: raise it with `ulimit -n 4096`")
    if not disk["writable"]:
        found.append(f"the workspace {disk['workspace']} cannot be written: choose another with --workspace")
    missing = [name for name, version in report["versions"].items() if version == "missing"]
    if missing:
        found.append(f"packages are missing: {', '.join(missing)}")
    return found
