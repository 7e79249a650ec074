"""Sliding windows: evenly distributed patches with Gaussian or uniform weights that sum to one everywhere.

nnU-Net's rule (Isensee et al. 2021): n = ceil((S - P) / (P * step)) + 1 windows per axis, evenly spread; sigma = P / 8.
"""

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

WindowWeights = Literal["gaussian", "uniform"]


def window_starts(length: int, patch: int, step_size: float) -> list[int]:
    """Return the first voxel of each window along one axis (length >= patch), first and last window at the ends.

    Neighbours are at least one voxel apart: a patch of one slice visits every slice once.
    """
    count = math.ceil((length - patch) / max(patch * step_size, 1)) + 1
    distance = (length - patch) / max(count - 1, 1)
    return [round(distance * index) for index in range(count)]


def gaussian_profile(patch: int) -> Tensor:
    """Return the weights along one axis of a window, float32 (patch,), largest 1, nowhere 0."""
    position = torch.arange(patch, dtype=torch.float64) - (patch - 1) / 2
    return torch.exp(-0.5 * (position / (patch / 8)) ** 2).float().clamp_min(1e-4)


@dataclass(frozen=True)
class WindowGrid:
    """All windows over one image grid.

    Attributes:
        shape: grid of the image, each axis at least as long as the patch.
        patch_size: window edges in voxels.
        step_size: distance of neighbouring windows as a share of the patch, in (0, 1].
        weights: of a window's voxels: the centre counts more, or all count the same.
    """

    shape: tuple[int, ...]
    patch_size: tuple[int, ...]
    step_size: float
    weights: WindowWeights = "gaussian"

    @cached_property
    def starts(self) -> tuple[tuple[int, ...], ...]:
        """First voxel of each window; the place in this tuple is the window's number."""
        per_axis = (
            window_starts(length, patch, self.step_size)
            for length, patch in zip(self.shape, self.patch_size, strict=True)
        )
        return tuple(itertools.product(*per_axis))

    @cached_property
    def weight(self) -> Tensor:
        """Weight of each voxel of a window, float32 `patch_size`."""
        return _outer([self._profile(patch) for patch in self.patch_size])

    @cached_property
    def total_weight(self) -> Tensor:
        """Sum of the weights of all windows at each voxel, float32 `shape`.

        Windows form a product grid and weights are separable, so the sum is a product of sums per axis.
        """
        sums = []
        for length, patch in zip(self.shape, self.patch_size, strict=True):
            profile, total = self._profile(patch), torch.zeros(length)
            for start in window_starts(length, patch, self.step_size):
                total[start : start + patch] += profile
            sums.append(total)
        return _outer(sums)

    def slices(self, start: Sequence[int]) -> tuple[slice, ...]:
        """Return the window that begins at `start`."""
        return tuple(slice(s, s + patch) for s, patch in zip(start, self.patch_size, strict=True))

    def _profile(self, patch: int) -> Tensor:
        return gaussian_profile(patch) if self.weights == "gaussian" else torch.ones(patch)

    def batches(self, size: int) -> Iterator[range]:
        """Yield window numbers in groups of `size`."""
        for first in range(0, len(self.starts), size):
            yield range(first, min(first + size, len(self.starts)))


def pad_to_patch(image: Tensor, patch_size: Sequence[int]) -> tuple[Tensor, tuple[slice, ...]]:
    """Pad (channel, *spatial) with 0 to at least the patch, centred.

    Returns:
        the padded image, and the slices of the spatial axes that undo the padding.
    """
    missing = [max(patch - size, 0) for patch, size in zip(patch_size, image.shape[1:], strict=True)]
    padding = [amount for m in reversed(missing) for amount in (m // 2, m - m // 2)]
    inside = tuple(slice(m // 2, m // 2 + size) for m, size in zip(missing, image.shape[1:], strict=True))
    return torch.nn.functional.pad(image, padding), inside


def _outer(profiles: Sequence[Tensor]) -> Tensor:
    product = torch.ones(())
    for profile in profiles:
        product = product[..., None] * profile
    return product
