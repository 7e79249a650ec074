"""Sixty-four file descriptors: the commands that start processes work with them."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from medsegdiff_cli import atomic
from medsegdiff_cli.imaging.image import Geometry, Image
from medsegdiff_cli.imaging.writing import write_image, write_label

# One process for all commands, since loading torch takes most of the time.
SCRIPT = """
import resource, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
from typer.testing import CliRunner
from medsegdiff_cli.cli.app import app

def run(*words):
    outcome = CliRunner().invoke(app, [str(word) for word in words])
    assert outcome.exit_code == 0, (words, outcome.output, outcome.stderr)

if __name__ == "__main__":
    place = sys.argv[1]
    workspace = ["--workspace", f"{place}/workspace"]
    source = ["convert", "folder", place, "--images", "images/*", "--labels", "labels/*", "--label-map", "1:organ"]
    run(*source, "--dataset", 1, "--name", "Few", *workspace)
    run("plan", 1, "--scale", "tiny", "--memory", "2G", "--workers", 0, *workspace)
    quick = ["--set", "steps=2", "--set", "validate_every_steps=0", "--fold", "all", "--device", "cpu"]
    run("train", "supervised", 1, "--config", "3d", *quick, "--workers", 2, *workspace)
    from pathlib import Path
    (model,) = Path(f"{place}/workspace/results/Dataset001_Few").iterdir()
    run("predict", model, f"{place}/images", f"{place}/out", "--workers", 2, "--device", "cpu")
    run("evaluate", f"{place}/out", f"{place}/labels", "--workers", 2)
"""


@pytest.mark.slow
@pytest.mark.fault("F62")
def test_sixty_four_descriptors_are_enough(tmp_path: Path) -> None:
    geometry, random = Geometry.plain((8, 8, 8), (1.0, 1.0, 1.0)), np.random.default_rng(0)
    label = np.zeros((8, 8, 8), np.uint8)
    label[2:6, 2:6, 2:5] = 1
    for index in range(4):
        image = Image(array=random.normal(size=(1, 8, 8, 8)).astype(np.float32), geometry=geometry)
        write_image(tmp_path / "images" / f"case{index}.nii.gz", image)
        write_label(tmp_path / "labels" / f"case{index}.nii.gz", label, geometry)
    script = tmp_path / "few.py"
    atomic.write_text(script, SCRIPT)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    words = [sys.executable, str(script), str(tmp_path)]
    result = subprocess.run(words, capture_output=True, text=True, env=environment, timeout=900, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    assert len(list((tmp_path / "out").glob("case*.nii.gz"))) == 4
