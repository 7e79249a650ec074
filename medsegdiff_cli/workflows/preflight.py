"""Free space, before the work starts: what would fail after hours of computing is refused at once."""

from pathlib import Path

from medsegdiff_cli import atomic
from medsegdiff_cli.artifacts.fingerprint import Fingerprint
from medsegdiff_cli.artifacts.plan import Plan
from medsegdiff_cli.methods.base import Trainable
from medsegdiff_cli.paths import CHECKPOINTS
from medsegdiff_cli.preprocessing.store import forecast_store_bytes
from medsegdiff_cli.workflows.forecast import checkpoint_bytes, store_bytes
from medsegdiff_cli.workflows.run_setup import RunSetup


def require_training_space(setup: RunSetup, store: Path, method: Trainable) -> None:
    """Refuse to train where preprocessed cases and checkpoints, but for those that are there, would fill the disk.

    Args:
        store: folder of the preprocessed cases.

    Raises:
        ResourceError: they would.
    """
    checkpoints = checkpoint_bytes(sum(parameter.numel() for parameter in method.parameters()))
    needed = max(0, checkpoints - size_of(setup.folder / CHECKPOINTS, ".safetensors"))
    needed += max(0, (store_bytes(setup) or 0) - size_of(store, ".npy"))
    atomic.require_space(setup.folder, needed, "the training")


def size_of(folder: Path, ending: str) -> int:
    """Return what the files of an ending take in a folder, which need not exist."""
    return sum(path.stat().st_size for path in folder.glob(f"*{ending}"))


def require_store_space(store: Path, fingerprint: Fingerprint, plan: Plan, config: str) -> None:
    """Refuse to preprocess where the cases, but for those that are there, would fill the disk.

    Raises:
        ResourceError: they would.
    """
    needed = forecast_store_bytes(fingerprint, plan, config) - size_of(store, ".npy")
    atomic.require_space(store, max(0, needed), "the preprocessed cases")
