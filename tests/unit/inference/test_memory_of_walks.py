"""Memory does not grow with draws or steps: only the running state is kept."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from predict_in_a_child import predict, smooth_image

from medsegdiff_cli.networks.memory import _LiveBytes

HERE = Path(__file__).parent


def peak_of_tensors(draws, steps, canvas):
    """Return the most bytes that tensors took at once."""
    image = smooth_image(16)
    with _LiveBytes() as live:
        predict(image, draws, steps, canvas)
    return live.peak


@pytest.mark.parametrize("canvas", ["window", "shared"])
def test_tensors_take_as_much_for_many_draws_and_steps_as_for_two(canvas):
    two = peak_of_tensors(2, 3, canvas)
    assert two > 3 * 4 * 16**3
    assert peak_of_tensors(25, 3, canvas) <= 1.05 * two
    assert peak_of_tensors(2, 11, canvas) <= 1.02 * peak_of_tensors(2, 2, canvas)


def growth_of_a_process(draws, steps, canvas):
    words = [sys.executable, str(HERE / "predict_in_a_child.py"), str(draws), str(steps), canvas]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": "65536"}
    return int(subprocess.run(words, check=True, capture_output=True, text=True, env=environment).stdout)


@pytest.mark.slow
@pytest.mark.parametrize("canvas", ["window", "shared"])
def test_a_process_takes_as_much_for_many_draws_and_steps_as_for_two(canvas):
    two_draws, two_steps = growth_of_a_process(2, 3, canvas), growth_of_a_process(1, 2, canvas)
    assert two_draws > 20e6
    assert growth_of_a_process(25, 3, canvas) <= 1.05 * two_draws
    assert growth_of_a_process(1, 11, canvas) <= 1.02 * two_steps
