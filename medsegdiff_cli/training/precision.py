"""Precision: bfloat16 where the hardware multiplies it natively, else float32; chosen once and recorded."""

import logging
from pathlib import Path
from typing import Literal

import torch

from medsegdiff_cli.errors import UsageError

log = logging.getLogger(__name__)

Precision = Literal["float32", "bfloat16"]

# x86: AVX-512 BF16 or AMX (Sapphire Rapids, Zen 4 and later); Arm: the BF16 extension (Neoverse N2/V1 and later).
_CPU_FEATURES = frozenset({"avx512_bf16", "amx_bf16", "bf16"})
_CPU_INFO = Path("/proc/cpuinfo")


def resolve_precision(wanted: str, device: torch.device) -> Precision:
    """Return the autocast type that `wanted` ("auto", "float32", "bfloat16") means on `device`.

    The answer is recorded with the run and reused: the same run must not change its arithmetic between two starts.

    Raises:
        UsageError: not a precision's name.
    """
    if wanted not in ("auto", "float32", "bfloat16"):
        raise UsageError(f"no precision '{wanted}'", where="training.precision", fix="use auto, float32 or bfloat16")
    if wanted == "float32":
        return "float32"
    native = _is_native(device)
    if wanted == "bfloat16" and not native:
        log.warning("%s emulates bfloat16: expect it to be slow; precision 'auto' would take float32 here", device)
    return "bfloat16" if native or wanted == "bfloat16" else "float32"


def _is_native(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu" and torch.backends.mkldnn.is_available() and _CPU_INFO.is_file():
        return cpu_multiplies_bfloat16(_CPU_INFO.read_text(encoding="utf-8", errors="replace"))
    return False


def cpu_multiplies_bfloat16(cpu_info: str) -> bool:
    """Return whether every processor of a Linux `/proc/cpuinfo` lists a bfloat16 product among its features."""
    lists = [
        set(line.partition(":")[2].split())
        for line in cpu_info.splitlines()
        if line.partition(":")[0].strip() in ("flags", "Features")
    ]
    return bool(lists) and all(features & _CPU_FEATURES for features in lists)
