"""How an image is predicted: everything that changes the bytes of a result."""

import contextlib
from dataclasses import dataclass, field
from typing import Literal

import torch

from medsegdiff_cli.inference.fusion import Fusion
from medsegdiff_cli.inference.stitching import Overlap
from medsegdiff_cli.inference.windows import WindowWeights
from medsegdiff_cli.methods.base import Sampling

Canvas = Literal["window", "shared"]


@dataclass(frozen=True, kw_only=True)
class InferenceSettings:
    """How an image is predicted; everything that changes bytes is here.

    Attributes:
        patch_size: window edges, as many axes as the network has.
        slices: the network is 2D and the image 3D: each slice of the first axis is a window of its own.
        step_size: distance of windows as a share of the patch.
        mirror_axes: axes of the image grid over whose mirrored versions a window's probabilities are averaged.
        draws: repetitions of a stochastic method.
        window_batch: windows per network call; recorded, since other values may change the last bits.
        precision: "float32" or "bfloat16" (autocast).
        seed: first part of each noise stream's key.
        fusion: how members become one label map (see `RunningFusion`).
        overlap: what is averaged where windows overlap: probabilities, or their logarithms (see `Stitcher`).
        window_weights: weights of a window's voxels in that average.
        canvas: an iterative method walks down in each window by itself, or in all of them on one canvas.
    """

    patch_size: tuple[int, ...]
    slices: bool = False
    step_size: float = 0.5
    mirror_axes: tuple[int, ...] = ()
    draws: int = 1
    window_batch: int = 1
    precision: str = "float32"
    seed: int = 0
    fusion: Fusion = "mean"
    overlap: Overlap = "mean"
    window_weights: WindowWeights = "gaussian"
    canvas: Canvas = "window"
    sampling: Sampling = field(default_factory=Sampling)

    @property
    def window(self) -> tuple[int, ...]:
        """Window edges, as many axes as the image grid has."""
        return (1, *self.patch_size) if self.slices else self.patch_size


def autocast(precision: str, device: torch.device) -> contextlib.AbstractContextManager[object]:
    """Return the autocast context of a recorded precision."""
    if precision == "bfloat16":
        return torch.autocast(device.type, dtype=torch.bfloat16)
    return contextlib.nullcontext()
