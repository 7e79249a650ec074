"""Free space and memory, before the work starts: what would fail after hours of computing is refused at once."""

from pathlib import Path

from medsegdiff_cli import atomic
from medsegdiff_cli.artifacts.fingerprint import Fingerprint
from medsegdiff_cli.artifacts.plan import Plan
from medsegdiff_cli.artifacts.run import read_run
from medsegdiff_cli.methods.base import Trainable
from medsegdiff_cli.paths import CHECKPOINTS, RUN_JSON
from medsegdiff_cli.planning.memory import require_memory
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


def require_training_memory(setup: RunSetup) -> None:
    """Refuse to train where a step is forecast to need more memory than can be had; a finished run needs none.

    Raises:
        ResourceError: it does.
    """
    if not setup.request.overwrite and (setup.folder / RUN_JSON).is_file() and read_run(setup.folder).is_finished:
        return
    if setup.patch.forecast_bytes is not None:
        require_memory(setup.patch.forecast_bytes, "a training step", setup.request.device)


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
