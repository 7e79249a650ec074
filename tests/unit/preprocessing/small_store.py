"""What the tests of the preprocessed store share: a plan, and files as a dataset has them."""

import os
from pathlib import Path
from typing import Any

import nibabel
import numpy as np

from medsegdiff_cli.artifacts.plan import Plan

AFFINE = np.diag([1.0, 1.0, 2.0, 1.0])


def plan_of(**changes: Any) -> Plan:
    """3D at 2 mm, 1 mm, 1 mm, 2D on slices as they are."""
    shared = {"median_shape_voxels": (6, 10, 8), "batch_size": 2, "strides": (), "batch_dice": False}
    configurations = {
        "3d": {**shared, "spacing_mm": (2.0, 1.0, 1.0), "patch_size_voxels": (4, 8, 8), "store_dtype": "float16"},
        "2d": {**shared, "spacing_mm": (None, 1.0, 1.0), "patch_size_voxels": (8, 8)},
    }
    content = {
        "dataset": "Dataset001_Phantom",
        "fingerprint_digest": "0",
        "file_ending": ".nii.gz",
        "labels": {"background": 0, "a": 100, "b": 200},
        "channels": [{"name": "T1", "normalisation": "zscore"}],
        "geometry": "spacing",
        "transpose": (0, 1, 2),
        "crop": "none",
        "default_config": "3d",
        "memory_bytes": 1,
        "configurations": configurations,
    }
    return Plan.model_validate({**content, **changes})


def save(path: Path, array: np.ndarray) -> None:
    """Write a NIfTI whose array is (z, y, x); the time of change lies in the past, as in a dataset."""
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(array.T, AFFINE), path)
    settle(path)


def settle(path: Path, seconds_ago: float = 100) -> None:
    then = path.stat().st_mtime - seconds_ago
    os.utime(path, (then, then))
