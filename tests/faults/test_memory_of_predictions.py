"""Memory that does not grow: with the draws of a stochastic method, with the cases of a folder."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import SimpleITK
from toy_models import RECIPE, write_run_folder

# Each starts processes that import torch; a thousand cases flush thousands of files.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


# Each array is given back to the system at once. Else the C library keeps some that were freed, by chance.
ENVIRONMENT = {**os.environ, "MALLOC_MMAP_THRESHOLD_": str(2**17)}


def child(*words: object) -> dict[str, float]:
    """Run `predictions_in_a_child.py` and return what it measured."""
    command = [sys.executable, str(Path(__file__).with_name("predictions_in_a_child.py")), *map(str, words)]
    result = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def write(path: Path, voxels: np.ndarray) -> Path:
    path.parent.mkdir(exist_ok=True)
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(voxels.astype(np.float32)), str(path))
    return path


@pytest.mark.fault("F64")
def test_twenty_five_draws_take_no_more_memory_than_two(tmp_path):
    patch = {"patch_size_voxels": [48, 48, 48]}
    run = write_run_folder(tmp_path / "results", recipe={**RECIPE, **patch}) / "fold_0"
    write(tmp_path / "images" / "case.nii.gz", np.random.default_rng(0).normal(size=(96, 96, 96)))
    above = [child("draws", run, tmp_path / "images", tmp_path / f"{n}", n)["above"] for n in (2, 25)]
    assert above[0] > 30  # MB; the process is not so large that it hides what a prediction takes
    assert above[1] <= 1.05 * above[0]


@pytest.mark.fault("F65")
@pytest.mark.parametrize("workers", [0, 1])
def test_a_thousand_cases_take_no_more_memory_than_a_hundred(tmp_path, workers):
    run = write_run_folder(tmp_path / "results") / "fold_0"
    random, images = np.random.default_rng(0), tmp_path / "images"
    good = write(images / "case_000.nii.gz", random.normal(size=(8, 8, 8))).read_bytes()
    # A bad image holds 1 MB of voxels, and is refused only after they were read.
    voxels = random.normal(size=(64, 64, 64))
    voxels[0, 0, 0] = np.nan
    bad = write(tmp_path / "bad" / "bad.nii.gz", voxels).read_bytes()
    for number in range(1000):
        (images / f"case_{number:03d}.nii.gz").write_bytes(bad if number % 10 == 5 else good)
    found = child("many", run, images, tmp_path / "out", workers)
    assert found["cases"] == 1000
    assert "100 of 1000 cases failed" in found["words"]
    assert len(list((tmp_path / "out").glob("*.nii.gz"))) == 900
    assert found["peak"] - found["tenth_peak"] < 10  # MB
