"""What all tests share: one thread, no network, a clean environment, and dataset folders of seeded phantoms."""

import json
import locale
import logging
import os
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

# Before torch and numpy are imported: their thread pools read these once.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["MPLBACKEND"] = "Agg"

import numpy as np
import pytest
import SimpleITK
from fault_report import FaultReport

MakeDataset = Callable[..., Path]


def pytest_configure(config: pytest.Config) -> None:
    """Sum up the faults at the end of `make faults`."""
    config.pluginmanager.register(FaultReport(), "faults")


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the user's own workspace and nnU-Net folders out of the tests."""
    for name in ("MSD_WORKSPACE", "nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(autouse=True)
def _fresh_log() -> Iterator[None]:
    """Undo what a command line set up, in the test or in its module's fixtures: its handler holds a closed stream."""
    _as_imported(logging.getLogger("medsegdiff_cli"))
    yield
    _as_imported(logging.getLogger("medsegdiff_cli"))


def _as_imported(logger: logging.Logger) -> None:
    logger.handlers.clear()
    logger.setLevel(logging.NOTSET)
    logger.propagate = True


@pytest.fixture(autouse=True)
def _same_locale() -> Iterator[None]:
    """SimpleITK's DICOM code sets the process's locale and, run in several threads at once, leaves it at "C"."""
    before = locale.setlocale(locale.LC_CTYPE)
    yield
    locale.setlocale(locale.LC_CTYPE, before)


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Refuse every connection that leaves the machine; torchrun's processes may meet on it."""
    connect = socket.socket.connect

    def refuse(self: socket.socket, address: Any) -> None:
        here = isinstance(address, str | bytes) or address[0] in ("127.0.0.1", "::1", "localhost", socket.gethostname())
        assert here, f"a test reached for the network: {address}"
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.fixture
def make_dataset(tmp_path: Path) -> MakeDataset:
    """Return a function that writes a dataset folder of phantoms and returns its path.

    Keyword arguments: `n_dims`, `n_labelled`, `n_test`, `n_unlabelled`, `n_channels`, `shape`, `spacing_mm`
    (z, y, x), `seed`, `parent` (default: `raw/` of a workspace in `tmp_path`), `number`, `name`.
    Each case holds an ellipsoid (value 1) with a smaller, brighter one inside (value 2), at places of its own.
    """

    def make(
        *,
        n_dims: int = 3,
        n_labelled: int = 5,
        n_test: int = 0,
        n_unlabelled: int = 0,
        n_channels: int = 1,
        shape: tuple[int, ...] | None = None,
        spacing_mm: tuple[float, ...] | None = None,
        seed: int = 0,
        parent: Path | None = None,
        number: int = 1,
        name: str = "Phantom",
    ) -> Path:
        shape = shape or {2: (40, 48), 3: (16, 20, 24)}[n_dims]
        ending = ".png" if n_dims == 2 and spacing_mm is None else ".nii.gz"
        folder = (parent or tmp_path / "workspace" / "raw") / f"Dataset{number:03d}_{name}"
        random = np.random.default_rng(seed)
        for part, count in (("Tr", n_labelled), ("Ts", n_test), ("Un", n_unlabelled)):
            for index in range(count):
                image, label = phantom(shape, n_channels, random)
                case = f"case_{part.lower()}_{index:02d}"
                for channel in range(n_channels):
                    write(folder / f"images{part}" / f"{case}_{channel:04d}{ending}", image[channel], spacing_mm)
                if part != "Un":
                    write(folder / f"labels{part}" / f"{case}{ending}", label, spacing_mm)
        description = {
            "channel_names": {str(channel): f"modality{channel}" for channel in range(n_channels)},
            "labels": {"background": 0, "organ": 1, "lesion": 2},
            "numTraining": n_labelled,
            "file_ending": ending,
        }
        (folder / "dataset.json").write_text(json.dumps(description))
        return folder

    return make


def phantom(shape: tuple[int, ...], n_channels: int, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Return an image (channel, *spatial), uint8, and its label (*spatial), uint8."""
    axes = np.meshgrid(*[np.linspace(-1, 1, size) for size in shape], indexing="ij")
    centre = random.uniform(-0.2, 0.2, len(shape))
    squared = sum((axis - middle) ** 2 for axis, middle in zip(axes, centre, strict=True))
    label = (squared < random.uniform(0.3, 0.5)).astype(np.uint8) + (squared < 0.1).astype(np.uint8)
    image = 60 + 50 * label + random.normal(0, 8, (n_channels, *shape))
    return np.clip(image, 0, 255).astype(np.uint8), label


def write(path: Path, array: np.ndarray, spacing_mm: tuple[float, ...] | None) -> None:
    """Write with SimpleITK, which takes spacings as (x, y, z)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = SimpleITK.GetImageFromArray(array)
    if spacing_mm is not None:
        image.SetSpacing(spacing_mm[::-1])
    SimpleITK.WriteImage(image, str(path))


@pytest.fixture(autouse=True)
def _same_random_tensors() -> None:
    """Give every test the same tensors in any order of tests; torch is not imported for those that don't use it."""
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)
