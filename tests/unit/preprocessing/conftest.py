"""A dataset of small volumes, and a store for it."""

from pathlib import Path

import numpy as np
import pytest
from small_store import save

from medsegdiff_cli import atomic
from medsegdiff_cli.artifacts.dataset_folder import DatasetFolder, open_dataset
from medsegdiff_cli.artifacts.preprocessed_store import PreprocessedStore


@pytest.fixture
def dataset(tmp_path: Path) -> DatasetFolder:
    """Three labelled volumes, one unlabelled."""
    folder, rng = tmp_path / "Dataset001_Phantom", np.random.default_rng(0)
    for name, part in (("a", "Tr"), ("b", "Tr"), ("c", "Tr"), ("u", "Un")):
        save(folder / f"images{part}" / f"{name}_0000.nii.gz", rng.normal(size=(6, 10, 8)).astype(np.float32))
        if part == "Tr":
            label = np.zeros((6, 10, 8), np.uint8)
            label[1:3, 2:6, 2:5], label[4, 6:9, 4:7] = 100, 200
            save(folder / "labelsTr" / f"{name}.nii.gz", label)
    content = {"channel_names": {"0": "T1"}, "labels": {"background": 0, "a": 100, "b": 200}, "numTraining": 3}
    content |= {"file_ending": ".nii.gz", "groups": {"a": "patient 1"}, "domains": {"a": "scanner 1"}}
    atomic.write_json(folder / "dataset.json", content)
    return open_dataset(folder)


@pytest.fixture
def store(tmp_path: Path) -> PreprocessedStore:
    return PreprocessedStore(tmp_path / "store")
