"""Provenance: what is recorded with every run, prediction and score."""

import platform
import shlex
import sys
from pathlib import Path

import numpy as np
import torch

from medsegdiff_cli import __version__


def command_line() -> str:
    """Return the command that is running, as one would type it again."""
    program = Path(sys.argv[0]).name
    return shlex.join(["msd" if program == "__main__.py" else program, *sys.argv[1:]])


def versions() -> dict[str, str]:
    """Return the versions that decide over the last bits of a result."""
    return {
        "msd": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
    }
