"""Predicts a large image by a walk in a process of its own and prints by how many bytes its memory grew at most.

Arguments: draws, steps, canvas.
"""

import re
import sys
from pathlib import Path

import torch
from toy_walks import ToyWalk

from medsegdiff_cli.inference.volume import InferenceSettings, StepRecord, predict_volume
from medsegdiff_cli.methods.base import Sampling


def smooth_image(edge: int) -> torch.Tensor:
    """Return a ball, (1, edge, edge, edge)."""
    axis = torch.linspace(-1, 1, edge)
    square = axis**2
    radius = (square[:, None, None] + square[None, :, None] + square).sqrt()
    return 4 * (0.6 - radius)[None]


def predict(image: torch.Tensor, draws: int, steps: int, canvas: str) -> StepRecord:
    """Predict in two windows as `msd predict` does, with variance, label maps and votes."""
    method = ToyWalk(3, names=("background", "a", "b"), state=0.3, widened=2)
    settings = InferenceSettings(
        patch_size=(*image.shape[1:3], image.shape[3] // 2),
        draws=draws,
        canvas=canvas,
        sampling=Sampling(steps=steps),
        step_size=1.0,
    )
    record = StepRecord()
    predict_volume(
        [method], image, "case", settings, keep_variance=True, keep_labels=True, keep_votes=True, record=record
    )
    return record


def peak_bytes() -> int:
    """Return the most memory that this process has had at once, since it became a program of its own (Linux).

    `ru_maxrss` will not do: a child begins with that of the process that started it.
    """
    kilobytes = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="ascii"))
    assert kilobytes is not None
    return int(kilobytes[1]) * 1024


if __name__ == "__main__":
    torch.set_num_threads(1)
    whole = smooth_image(80)
    predict(smooth_image(8), 2, 2, sys.argv[3])
    before = peak_bytes()
    predict(whole, int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
    print(peak_bytes() - before)
