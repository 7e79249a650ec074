"""Stitching: what windows predict becomes one map, averaged where they overlap."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from medsegdiff_cli.inference.windows import WindowGrid

Overlap = Literal["mean", "log-mean"]
# The published code of Fu et al. 2023 bounds probabilities so before it takes their logarithm.
_SMALLEST_PROBABILITY = 1e-5


class Stitcher:
    """Adds up windows, one after the other in their order, so that the number per network call changes nothing.

    Args:
        overlap: "mean" averages probabilities; "log-mean" averages their logarithms and scales the result to a sum of
            one (for regions: averages log p / (1 - p)), as the published code of Fu et al. 2023 does before its argmax.
        exclusive: classes exclude each other, or are regions.
    """

    def __init__(self, grid: WindowGrid, overlap: Overlap, exclusive: bool) -> None:
        self._grid, self._overlap, self._exclusive = grid, overlap, exclusive
        self._canvas: Tensor | None = None

    def add(self, numbers: Sequence[int], windows: Tensor) -> None:
        """Add windows (batch, map, class, *patch) by their numbers in the grid."""
        windows = self._to_average(windows.float().cpu())
        if self._canvas is None:
            self._canvas = torch.zeros((*windows.shape[1:3], *self._grid.shape))
        for number, window in zip(numbers, windows, strict=True):
            place = (slice(None), slice(None), *self._grid.slices(self._grid.starts[number]))
            self._canvas[place] += window * self._grid.weight

    def result(self) -> Tensor:
        """Return the averaged maps, float32 (map, class, *grid) on the CPU; to be called once, after all windows."""
        if self._canvas is None:
            raise RuntimeError("an image without windows")
        canvas, self._canvas = self._canvas, None
        canvas /= self._grid.total_weight
        if self._overlap == "mean":
            return canvas
        return canvas.softmax(1) if self._exclusive else canvas.sigmoid_()

    def _to_average(self, probabilities: Tensor) -> Tensor:
        if self._overlap == "mean":
            return probabilities
        if self._exclusive:
            return probabilities.clamp(min=_SMALLEST_PROBABILITY).log()
        return torch.logit(probabilities, _SMALLEST_PROBABILITY)
